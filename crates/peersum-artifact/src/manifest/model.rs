//! The manifest as data, and its JSON: every field is written in one order and checked when read.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};

use crate::arch::Target;
use crate::cache_key::CompilerId;
use crate::cuda_version::PtxVersion;
use crate::digest::Digest;
use crate::key::ModuleKey;

/// The manifest's file name in its directory.
pub const MANIFEST_FILE: &str = "manifest.json";

/// The schema that this crate writes, and the only one that it reads.
pub const MANIFEST_SCHEMA: u64 = 3;

/// The largest manifest that is read, in bytes. The whole matrix for ten architectures takes about
/// one MiB.
pub const MAX_MANIFEST_BYTES: u64 = 8 << 20;

/// The largest module that is read, in bytes. Real ones are a thousandth of it.
pub const MAX_MODULE_BYTES: u64 = 64 << 20;

/// What a directory of compiled modules holds, and what it was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(expecting = "an object")]
pub struct Manifest {
    /// The schema, of which there is one.
    pub schema: Schema,
    /// The version of peersum that wrote it.
    pub peersum_version: String,
    /// The compiler.
    pub toolkit: CompilerId,
    /// The flags common to all modules, in the order in which they were passed.
    pub flags: Vec<String>,
    /// The kernels' sources.
    pub sources: Vec<SourceEntry>,
    /// The modules. Written in the order of [`ManifestModule::sort_key`], whatever their order
    /// here.
    pub modules: Vec<ManifestModule>,
}

/// [`MANIFEST_SCHEMA`], the number that every manifest has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Schema;

impl From<Schema> for u64 {
    fn from(_: Schema) -> u64 {
        MANIFEST_SCHEMA
    }
}

impl TryFrom<u64> for Schema {
    type Error = String;

    fn try_from(found: u64) -> Result<Self, String> {
        match found == MANIFEST_SCHEMA {
            true => Ok(Schema),
            false => Err(format!("it is {found}, but must be {MANIFEST_SCHEMA}")),
        }
    }
}

/// One source file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(expecting = "an object")]
pub struct SourceEntry {
    /// The path relative to the kernels' directory.
    #[serde(deserialize_with = "relative_path")]
    pub path: String,
    /// The digest of the text.
    pub sha256: Digest,
}

/// Reads a path, which must not lead out of its directory.
fn relative_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let path = String::deserialize(deserializer)?;
    let is_name = |part| matches!(part, Component::Normal(_));
    let is_within = Path::new(&path).components().all(is_name);
    if path.is_empty() || path.contains(['\0', '\\']) || !is_within {
        let path = path.escape_debug();
        return Err(D::Error::custom(format!(
            "`{path}` leads out of its directory"
        )));
    }
    Ok(path)
}

/// One compiled module. Its name and file name follow from [`key`](Self::key) and
/// [`target`](Self::target), so they cannot disagree with them, and no file lies elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(expecting = "an object")]
pub struct ManifestModule {
    /// Which module; `module` in JSON.
    #[serde(rename = "module")]
    pub key: ModuleKey,
    /// What it is compiled for.
    pub target: Target,
    /// The ISA version of PTX; `None` for a cubin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ptx_version: Option<PtxVersion>,
    /// The file's length, at most [`MAX_MODULE_BYTES`].
    pub bytes: u64,
    /// The file's digest.
    pub sha256: Digest,
    /// The digest of what it was compiled from; see [`Closure::digest`](crate::Closure::digest).
    pub closure_digest: Digest,
    /// The key it was compiled under; see [`cache_key`](crate::cache_key()).
    pub cache_key: Digest,
    /// The kernels, in the order of [`ModuleKey::entry_points`].
    pub entry_points: Vec<EntryPoint>,
}

/// One kernel of a module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(expecting = "an object")]
pub struct EntryPoint {
    /// The name by which it is found.
    pub name: String,
    /// Whether it may be launched with programmatic stream serialization: it then waits for the
    /// kernel before it.
    pub pdl: bool,
}

impl ManifestModule {
    /// The module's name.
    #[must_use]
    pub fn name(&self) -> String {
        self.key.name()
    }

    /// The file's name in the manifest's directory.
    #[must_use]
    pub fn file_name(&self) -> String {
        self.target.file_name(&self.key)
    }

    /// The order of modules in a manifest: family, dtype, world size, architecture as a number,
    /// cubins before PTX.
    #[must_use]
    pub fn sort_key(&self) -> (ModuleKey, Target) {
        (self.key, self.target)
    }

    /// What the types of the fields alone do not rule out.
    fn check(&self) -> Result<(), String> {
        if self.bytes > MAX_MODULE_BYTES {
            let bytes = self.bytes;
            return Err(format!(
                "`bytes` is {bytes}, but at most {MAX_MODULE_BYTES} are read"
            ));
        }
        match (self.target, self.ptx_version) {
            (Target::Ptx(_), None) => return Err("missing field `ptx_version`".to_owned()),
            (Target::Cubin(_), Some(_)) => return Err("a cubin with a `ptx_version`".to_owned()),
            _ => {}
        }
        let expected = self.key.entry_points();
        if !self.entry_points.iter().map(|it| &it.name).eq(&expected) {
            let expected = expected.join(", ");
            return Err(format!(
                "`entry_points` must be those of {}: {expected}",
                self.key
            ));
        }
        Ok(())
    }
}

impl Manifest {
    /// What the types of the fields alone do not rule out: the place and the problem.
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        for (index, module) in self.modules.iter().enumerate() {
            let checked = module.check();
            checked.map_err(|problem| (format!("modules[{index}]"), problem))?;
        }
        let mut paths = BTreeSet::new();
        if let Some(twice) = self.sources.iter().find(|it| !paths.insert(&it.path)) {
            let problem = format!("two entries for the source `{}`", twice.path);
            return Err((".".to_owned(), problem));
        }
        let mut keys = BTreeSet::new();
        if let Some(twice) = self.modules.iter().find(|it| !keys.insert(it.sort_key())) {
            let problem = format!("two entries for `{}`", twice.file_name());
            return Err((".".to_owned(), problem));
        }
        Ok(())
    }

    /// The manifest as it is written to [`MANIFEST_FILE`]: the same manifest gives the same bytes.
    #[must_use]
    #[expect(
        clippy::expect_used,
        reason = "names and numbers serialise to memory without failing"
    )]
    pub fn to_json_string(&self) -> String {
        let mut sorted = self.clone();
        sorted.modules.sort_by_key(ManifestModule::sort_key);
        let mut json = serde_json::to_string_pretty(&sorted).expect("a manifest is plain data");
        json.push('\n');
        json
    }

    /// The entry of one module for exactly one target.
    #[must_use]
    pub fn find(&self, key: ModuleKey, target: Target) -> Option<&ManifestModule> {
        self.modules
            .iter()
            .find(|module| module.sort_key() == (key, target))
    }
}
