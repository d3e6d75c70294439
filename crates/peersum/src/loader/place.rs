//! The places that a module can come from.

use std::fmt;
use std::path::PathBuf;

use crate::environment::CUBIN_DIR;

/// A place that the loader looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The kernels' sources, which say what a module must have been compiled from. No module comes
    /// from there, but without them there is none.
    Sources,
    /// The directory that the policy names.
    Directory(PathBuf),
    /// The directory that `PEERSUM_CUBIN_DIR` names, if it names one.
    EnvDirectory(Option<PathBuf>),
    /// The cubins embedded in `peersum-kernels`.
    Pack,
    /// The JIT cache, if there is a directory for it.
    JitCache(Option<PathBuf>),
    /// NVRTC, which compiles the module now.
    Nvrtc,
    /// PTX of this directory, or of the pack if there is none. The driver compiles it.
    Ptx(Option<PathBuf>),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Sources => f.write_str("the kernels' sources"),
            Place::Directory(path) => write!(f, "directory {}", path.display()),
            Place::EnvDirectory(Some(path)) => write!(f, "{CUBIN_DIR}={}", path.display()),
            Place::EnvDirectory(None) => f.write_str(CUBIN_DIR),
            Place::Pack => f.write_str("embedded cubins"),
            Place::JitCache(Some(path)) => write!(f, "JIT cache {}", path.display()),
            Place::JitCache(None) => f.write_str("JIT cache"),
            Place::Nvrtc => f.write_str("NVRTC"),
            Place::Ptx(Some(path)) => write!(f, "PTX of directory {}", path.display()),
            Place::Ptx(None) => f.write_str("embedded PTX"),
        }
    }
}
