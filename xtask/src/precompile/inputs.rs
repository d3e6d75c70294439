//! What modules are compiled from: the kernels' sources, the prelude and the flags.

use anyhow::Context as _;
use fs_err as fs;
use peersum_artifact::{Closure, ClosureError, Digest, ModuleKey, SourceEntry, include_closure};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The flags common to all modules. None of them trades code for compile time, and `-lineinfo` is
/// absent because it writes the directory and the file's time into the cubin.
const FLAGS: [&str; 4] = ["-std=c++17", "-O3", "-Xptxas", "-v"];

/// The file that nvcc includes implicitly, and that the prelude replaces.
const PRELUDE_FILE: &str = "cuda_runtime.h";

/// The prelude, which replaces nvcc's own implicit header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prelude {
    /// Its directory, first on the include path.
    pub(crate) dir: PathBuf,
    digest: Digest,
}

/// Everything that modules are compiled from, as it was when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inputs {
    /// The directory of the kernels.
    pub(crate) kernels_dir: PathBuf,
    /// The prelude, unless the stock headers were asked for.
    pub(crate) prelude: Option<Prelude>,
    /// The flags common to all modules, in order.
    pub(crate) flags: Vec<String>,
    /// Whether modules whose registers spill are kept. Part of their keys, so that no other run
    /// reuses them.
    pub(crate) allow_spills: bool,
    /// Every source file with its digest, sorted by path.
    pub(crate) sources: Vec<SourceEntry>,
    closures: BTreeMap<&'static str, Closure>,
}

impl Inputs {
    /// Reads the sources that `modules` need. A `prelude_dir` of `None` means nvcc's stock headers.
    ///
    /// # Errors
    /// A file cannot be read, or includes something that is not among the sources.
    pub(crate) fn read(
        kernels_dir: &Path,
        prelude_dir: Option<&Path>,
        modules: &[ModuleKey],
    ) -> anyhow::Result<Self> {
        let texts = read_sources(kernels_dir)?;
        let sources = texts
            .iter()
            .map(|(path, text)| SourceEntry {
                path: path.clone(),
                sha256: Digest::of(text.as_bytes()),
            })
            .collect();
        let borrowed: Vec<(&str, &str)> = texts
            .iter()
            .map(|(path, text)| (&**path, &**text))
            .collect();
        let roots: BTreeSet<_> = modules.iter().map(ModuleKey::source_root).collect();
        let roots = roots.into_iter();
        let closures: Result<_, ClosureError> = roots
            .map(|root| Ok((root, include_closure(root, &borrowed)?)))
            .collect();
        let closures = closures.with_context(|| {
            let kernels = kernels_dir.display();
            format!("the kernels in `{kernels}` cannot be compiled")
        })?;
        let read_prelude = |dir: &Path| {
            let text = fs::read(dir.join(PRELUDE_FILE))?;
            anyhow::Ok(Prelude {
                dir: dir.to_path_buf(),
                digest: Digest::of(&text),
            })
        };
        let prelude = prelude_dir.map(read_prelude).transpose();
        let prelude =
            prelude.context("cannot read the prelude; --stock-headers works without it")?;
        Ok(Self {
            kernels_dir: kernels_dir.to_path_buf(),
            prelude,
            flags: FLAGS.map(str::to_owned).to_vec(),
            allow_spills: false,
            sources,
            closures,
        })
    }

    /// The include closure of one of the modules given to [`Inputs::read`].
    pub(crate) fn closure(&self, module: &ModuleKey) -> Option<&Closure> {
        self.closures.get(module.source_root())
    }

    /// The digest of the prelude, if it is used.
    pub(crate) fn prelude_digest(&self) -> Option<Digest> {
        self.prelude.as_ref().map(|prelude| prelude.digest)
    }
}

/// Reads every CUDA source of a directory, sorted by name.
fn read_sources(dir: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let is_source = path
            .extension()
            .is_some_and(|extension| extension == "h" || extension == "cuh" || extension == "cu");
        if let (true, Some(name)) = (is_source, path.file_name().and_then(|name| name.to_str())) {
            texts.push((name.to_owned(), fs::read_to_string(&path)?));
        }
    }
    texts.sort();
    Ok(texts)
}
