//! Finding an nvcc: one that the machine has, else the pinned one.

use super::discovery;
use super::nvcc::{self, Toolkit};
use super::wheels::WheelSet;
use anyhow::{Context as _, bail};
use std::borrow::Cow;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use xshell::{Shell, cmd};

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

impl From<&str> for ToolkitChoice {
    /// Reads the value of `--toolkit`: `auto`, `pinned` or a path.
    fn from(value: &str) -> Self {
        match value {
            "auto" => Self::Auto,
            "pinned" => Self::Pinned,
            path => Self::Path(path.into()),
        }
    }
}

/// A usable nvcc.
#[derive(Debug, Clone)]
pub(crate) struct Nvcc {
    /// The program, by its absolute path.
    pub(crate) program: PathBuf,
    /// What led to it: `--toolkit`, `$NVCC`, `$CUDA_HOME`, `PATH`, `the pinned toolchain`.
    pub(crate) origin: &'static str,
    /// What it says of itself.
    pub(crate) toolkit: Toolkit,
    /// The value for `-ccbin`.
    pub(crate) host_compiler: PathBuf,
}

impl Nvcc {
    /// A command that works in `directory` alone, with no flags but those that it shows.
    ///
    /// # Errors
    /// The current directory is gone.
    pub(crate) fn command(&self, directory: &Path) -> anyhow::Result<Command> {
        let shell = Shell::new()?;
        let (program, host_compiler) = (&self.program, escaped(&self.host_compiler));
        let mut command = Command::from(cmd!(shell, "{program} -ccbin {host_compiler}"));
        nvcc::isolate(&mut command);
        command.current_dir(directory).env("TMPDIR", directory);
        Ok(command)
    }
}

/// A path escaped for nvcc, which passes its arguments to a shell between double quotes and escapes
/// only quotes.
pub(crate) fn escaped(path: &Path) -> OsString {
    let mut escaped = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        if b"$`\\".contains(&byte) {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    OsString::from_vec(escaped)
}

/// Shown before anything of NVIDIA's is installed.
const LICENCE: &str = "NVIDIA's packages come under the CUDA Toolkit End User License Agreement \
                       (https://docs.nvidia.com/cuda/eula/); installing them means accepting it";

/// The pinned nvcc within its wheels.
const WHEEL_NVCC: &str = "nvidia/cu13/bin/nvcc";

/// The pinned compiler.
pub(super) const COMPILER: WheelSet = WheelSet {
    name: "the CUDA 13.0 compiler",
    requirements: Cow::Borrowed(include_str!("../../../ci/cuda-toolchain.txt")),
    download: "about 100 MB",
    licence: Some(LICENCE),
    files: &[
        WHEEL_NVCC,
        "nvidia/cu13/bin/ptxas",
        "nvidia/cu13/nvvm/bin/cicc",
    ],
    check: |site| {
        nvcc::ask(&site.join(WHEEL_NVCC)).context("its nvcc cannot be used")?;
        Ok(())
    },
    ways_out: &[
        "copy the directory that PEERSUM_TOOLCHAIN_DIR names from a machine that has installed it; \
         `precompile`, `test-allreduce`, `bench` and `tune` can use a CUDA toolkit of the machine \
         instead, 12.4 to 13.x: --toolkit PATH, or set NVCC to its nvcc",
    ],
};

/// The library within NVRTC's wheel.
const WHEEL_NVRTC: &str = "nvidia/cu13/lib/libnvrtc.so.13";

/// The NVRTC of the same release.
pub(super) const NVRTC: WheelSet = WheelSet {
    name: "the CUDA 13.0 NVRTC",
    requirements: Cow::Borrowed(include_str!("../../../ci/nvrtc.txt")),
    download: "about 90 MB",
    licence: Some(LICENCE),
    files: &[WHEEL_NVRTC],
    check: |_| Ok(()),
    ways_out: &[],
};

/// Finds the nvcc to compile with; installs the pinned one if there is no other.
///
/// Standard error gets a note for each nvcc that is passed over, and notes about an install.
///
/// # Errors
/// An nvcc that was asked for cannot be used, the machine has no C++ compiler, or the pinned
/// toolchain cannot be installed.
pub(crate) fn resolve(choice: &ToolkitChoice) -> anyhow::Result<Nvcc> {
    if let Some(nvcc) = find(choice)? {
        return Ok(nvcc);
    }
    // Nothing is downloaded for a machine that cannot compile.
    discovery::host_compiler()?;
    pinned(&COMPILER.install()?)
}

/// The path of the pinned `libnvrtc.so.13`, installed on first use. Its builtins library lies
/// beside it.
///
/// # Errors
/// It is not there and cannot be installed.
pub(crate) fn resolve_nvrtc() -> anyhow::Result<PathBuf> {
    Ok(NVRTC.install()?.join(WHEEL_NVRTC))
}

/// The nvcc of this machine to use; `None` if that is the pinned one. Installs nothing.
pub(super) fn find(choice: &ToolkitChoice) -> anyhow::Result<Option<Nvcc>> {
    let candidates = match choice {
        ToolkitChoice::Pinned => return Ok(None),
        ToolkitChoice::Path(path) => vec![discovery::of_path(path)],
        ToolkitChoice::Auto => discovery::candidates(),
    };
    for candidate in candidates {
        let (origin, program) = (candidate.origin, candidate.program);
        match nvcc::probe(&program) {
            Ok(toolkit) => {
                return Ok(Some(Nvcc {
                    program,
                    origin,
                    toolkit,
                    host_compiler: discovery::host_compiler()?,
                }));
            }
            Err(fault) if candidate.explicit => bail!(
                "the nvcc that {origin} names, {}, cannot be used: {fault:#}\n\
                 Name another one, or use `--toolkit pinned`, which needs no CUDA on the machine",
                program.display()
            ),
            Err(fault) => {
                let fault = format!("{fault:#}");
                let reason = fault.lines().next().unwrap_or_default();
                eprintln!(
                    "note: passed over {} ({origin}): {reason}",
                    program.display()
                );
            }
        }
    }
    Ok(None)
}

/// The nvcc of the installed compiler in `dir`.
pub(super) fn pinned(dir: &Path) -> anyhow::Result<Nvcc> {
    let program = dir.join(WHEEL_NVCC);
    Ok(Nvcc {
        toolkit: nvcc::probe(&program).context("the pinned nvcc cannot be used")?,
        program,
        origin: "the pinned toolchain",
        host_compiler: discovery::host_compiler()?,
    })
}
