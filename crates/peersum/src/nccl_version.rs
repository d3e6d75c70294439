//! Which NCCL this machine has. Not behind the feature `nccl`: the doctor asks without it.

use std::ffi::{OsStr, c_int};
use std::fmt;
use std::path::Path;

use crate::shared_library::{OpenError, SharedLibrary};

/// The names of NCCL's library: as runtime packages install it, then the link that development
/// packages add.
pub const LIBRARY_NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// Whether this build of peersum can send calls to NCCL.
pub const IS_USED: bool = cfg!(feature = "nccl");

/// A version of NCCL as `ncclGetVersion` encodes it: 22809 is 2.28.9.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NcclVersion(pub i32);

impl fmt::Display for NcclVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Up to 2.8 the factor was another one: 2803 is 2.8.3.
        let major = if self.0 < 10_000 { 1_000 } else { 10_000 };
        let minor = self.0 % major / 100;
        write!(f, "{}.{minor}.{}", self.0 / major, self.0 % 100)
    }
}

impl NcclVersion {
    /// The version of an open NCCL; `None` if the library does not tell.
    pub fn of(library: &SharedLibrary) -> Option<Self> {
        type GetVersion = unsafe extern "C" fn(*mut c_int) -> c_int;
        // SAFETY: this is the function's signature in nccl.h.
        let get = unsafe { library.function::<GetVersion>("ncclGetVersion") }?;
        let mut version = 0;
        // SAFETY: `version` is a place for one int; the function needs no set-up.
        let result = unsafe { get(&raw mut version) };
        (result == 0).then_some(Self(version))
    }
}

/// Opens the library at `path`, else the one that the dynamic loader finds under NCCL's names.
///
/// # Errors
/// There is none.
pub fn open(path: Option<&Path>) -> Result<SharedLibrary, OpenError> {
    let names: Vec<&OsStr> = match path {
        Some(path) => vec![path.as_os_str()],
        None => LIBRARY_NAMES.iter().map(OsStr::new).collect(),
    };
    // SAFETY: opening runs the initialisers of NCCL: the caller named the file as NCCL, or it has
    // NCCL's name on the loader's search path. NCCL expects to be opened at any time by any thread.
    unsafe { SharedLibrary::open(names) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_both_encodings_are_printed() {
        assert_eq!(NcclVersion(22_809).to_string(), "2.28.9");
        assert_eq!(NcclVersion(21_003).to_string(), "2.10.3");
        assert_eq!(NcclVersion(2_804).to_string(), "2.8.4");
    }
}
