//! Finding an nvcc: one that the machine has, else the pinned one.

use super::discovery::{self, Candidate};
use super::nvcc::{self, Identity, Layout, Probed};
use super::wheels::{Installed, WheelSet};
use anyhow::{Context as _, bail};
use peersum_artifact::{CompilerId, CompilerKind};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Which CUDA toolkit to compile with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum ToolkitChoice {
    /// `$NVCC`, `$CUDA_HOME`, `$CUDA_PATH`, `PATH`, `/usr/local/cuda`, else the pinned one.
    #[default]
    Auto,
    /// The pinned one, whatever the machine has.
    Pinned,
    /// An nvcc, or a toolkit's directory with `bin/nvcc` in it.
    Path(PathBuf),
}

impl FromStr for ToolkitChoice {
    type Err = Infallible;

    /// Reads the value of `--toolkit`: `pinned` or a path.
    fn from_str(value: &str) -> Result<Self, Infallible> {
        Ok(match value {
            "pinned" => Self::Pinned,
            path => Self::Path(path.into()),
        })
    }
}

/// A usable nvcc.
#[derive(Debug, Clone)]
pub(crate) struct Nvcc {
    /// The program, by its absolute path.
    pub(crate) program: PathBuf,
    /// What led to it: `--toolkit`, `$NVCC`, `$CUDA_HOME`, `PATH`, `the pinned toolchain`.
    pub(crate) origin: String,
    /// Its version and build, as they go into cache keys and the manifest.
    pub(crate) compiler: CompilerId,
    /// The targets that it lists, such as `sm_80` and `compute_80`. It never lists those with a
    /// suffix (`sm_90a`), but compiles for them if it lists the plain one.
    pub(crate) gpu_codes: Vec<String>,
    /// The value for `-ccbin`.
    pub(crate) host_compiler: PathBuf,
    /// Its device compiler; `None` if nvcc did not say where it is.
    pub(crate) cicc: Option<PathBuf>,
    /// Its assembler; `None` if nvcc did not say where it is.
    pub(crate) ptxas: Option<PathBuf>,
    /// Whether it has a `cuda_runtime.h` of its own.
    pub(crate) stock_headers: bool,
}

/// The directory of the toolkit within the wheels of CUDA 13.
const WHEEL_TOOLKIT: &str = "nvidia/cu13";

/// Shown before anything of NVIDIA's is installed.
const LICENCE: &str = "NVIDIA's packages come under the CUDA Toolkit End User License Agreement \
                       (https://docs.nvidia.com/cuda/eula/); installing them means accepting it";

/// The pinned compiler.
pub(super) const COMPILER: WheelSet<'static> = WheelSet {
    name: "the CUDA 13.0 compiler",
    requirements: include_str!("../../../ci/cuda-toolchain.txt"),
    download: "about 100 MB",
    licence: Some(LICENCE),
    ways_out: &[
        "use a CUDA toolkit of the machine, 12.4 to 13.x: --toolkit PATH, or set NVCC to its nvcc",
    ],
};

/// The NVRTC of the same release.
pub(super) const NVRTC: WheelSet<'static> = WheelSet {
    name: "the CUDA 13.0 NVRTC",
    requirements: include_str!("../../../ci/nvrtc.txt"),
    download: "about 90 MB",
    licence: Some(LICENCE),
    ways_out: &[],
};

/// Finds the nvcc to compile with; installs the pinned one if there is no other.
///
/// `notes` gets one line for each nvcc that is passed over, and lines about an install.
///
/// # Errors
/// An nvcc that was asked for cannot be used, the machine has no C++ compiler, or the pinned
/// toolchain cannot be installed.
pub(crate) fn resolve(
    choice: &ToolkitChoice,
    notes: &mut dyn FnMut(String),
) -> anyhow::Result<Nvcc> {
    if let Some(nvcc) = find(choice, notes)? {
        return Ok(nvcc);
    }
    let host_compiler = discovery::host_compiler()?;
    let installed = install_compiler(&COMPILER, notes)?;
    Ok(pinned(installed, host_compiler))
}

/// The path of the pinned `libnvrtc.so.13`, installed on first use. Its builtins library lies
/// beside it.
///
/// # Errors
/// It is not there and cannot be installed.
pub(crate) fn resolve_nvrtc(notes: &mut dyn FnMut(String)) -> anyhow::Result<PathBuf> {
    let installed = install_nvrtc(&NVRTC, notes)?;
    Ok(installed.dir.join(installed.facts))
}

/// The nvcc of this machine to use; `None` if that is the pinned one. Installs nothing.
pub(super) fn find(
    choice: &ToolkitChoice,
    notes: &mut dyn FnMut(String),
) -> anyhow::Result<Option<Nvcc>> {
    let candidates = match choice {
        ToolkitChoice::Pinned => return Ok(None),
        ToolkitChoice::Path(path) => vec![discovery::of_path(path)],
        ToolkitChoice::Auto => discovery::candidates(notes),
    };
    for candidate in candidates {
        let Candidate {
            origin,
            program,
            explicit,
        } = candidate;
        match nvcc::probe(&program) {
            Ok(probed) => {
                let host_compiler = discovery::host_compiler()?;
                return Ok(Some(usable(program, origin, probed, host_compiler)));
            }
            Err(fault) if explicit => bail!(
                "the nvcc that {origin} names, {}, cannot be used: {fault:#}\n\
                 Name another one, or use `--toolkit pinned`, which needs no CUDA on the machine",
                program.display()
            ),
            Err(fault) => {
                let fault = format!("{fault:#}");
                let reason = fault.lines().next().unwrap_or_default();
                notes(format!(
                    "passed over {} ({origin}): {reason}",
                    program.display()
                ));
            }
        }
    }
    Ok(None)
}

fn usable(program: PathBuf, origin: String, probed: Probed, host_compiler: PathBuf) -> Nvcc {
    let Probed { identity, layout } = probed;
    Nvcc {
        program,
        origin,
        compiler: CompilerId {
            kind: CompilerKind::Nvcc,
            version: identity.version,
            build: identity.build,
        },
        gpu_codes: identity.gpu_codes,
        host_compiler,
        cicc: layout.cicc,
        ptxas: layout.ptxas,
        stock_headers: layout.stock_headers,
    }
}

/// The nvcc of an installed set, which was asked for its version when it was installed.
pub(super) fn pinned(installed: Installed<Identity>, host_compiler: PathBuf) -> Nvcc {
    let toolkit = installed.dir.join(WHEEL_TOOLKIT);
    let probed = Probed {
        identity: installed.facts,
        layout: Layout {
            cicc: Some(toolkit.join("nvvm/bin/cicc")),
            ptxas: Some(toolkit.join("bin/ptxas")),
            stock_headers: nvcc::has_stock_headers(&toolkit.join("include")),
        },
    };
    let origin = "the pinned toolchain".to_owned();
    usable(toolkit.join("bin/nvcc"), origin, probed, host_compiler)
}

/// Installs a compiler's wheels and keeps nvcc's answers about itself.
pub(super) fn install_compiler(
    set: &WheelSet<'_>,
    notes: &mut dyn FnMut(String),
) -> anyhow::Result<Installed<Identity>> {
    set.install(
        |site| {
            let toolkit = site.join(WHEEL_TOOLKIT);
            require_files(&toolkit, &["bin/nvcc", "bin/ptxas", "nvvm/bin/cicc"])?;
            nvcc::ask(&toolkit.join("bin/nvcc")).context("its nvcc cannot be used")
        },
        notes,
    )
}

/// Installs NVRTC's wheel and keeps the library's path in it.
pub(super) fn install_nvrtc(
    set: &WheelSet<'_>,
    notes: &mut dyn FnMut(String),
) -> anyhow::Result<Installed<PathBuf>> {
    set.install(
        |site| {
            let library = Path::new(WHEEL_TOOLKIT).join("lib/libnvrtc.so.13");
            require_files(site, &[&library.to_string_lossy()])?;
            Ok(library)
        },
        notes,
    )
}

/// Says which of `files` is missing from `dir`.
fn require_files(dir: &Path, files: &[&str]) -> anyhow::Result<()> {
    match files.iter().find(|file| !dir.join(file).is_file()) {
        Some(missing) => bail!("it has no {missing}"),
        None => Ok(()),
    }
}
