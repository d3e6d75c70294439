//! Opening shared libraries at run time: NCCL and cuBLAS.

use std::error::Error as _;
use std::ffi::OsStr;
use std::mem::ManuallyDrop;

use libloading::Library;

/// A shared library that stays loaded until the process ends: NVIDIA's libraries have threads and
/// state of their own, which do not survive being unloaded.
pub(crate) struct SharedLibrary(ManuallyDrop<Library>);

/// Why a library could not be opened.
#[derive(Debug)]
pub(crate) struct OpenError {
    /// What the dynamic loader said, for each name in order.
    pub(crate) reasons: Vec<String>,
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reasons.join("; "))
    }
}

impl std::error::Error for OpenError {}

impl SharedLibrary {
    /// Opens the first of `names` that the dynamic loader can open.
    ///
    /// # Errors
    /// The loader opens none of them.
    ///
    /// # Safety
    /// Opening runs the library's initialisers. They must be safe to run at any time in any thread.
    pub(crate) unsafe fn open<N: AsRef<OsStr>>(
        names: impl IntoIterator<Item = N>,
    ) -> Result<Self, OpenError> {
        let mut reasons = Vec::new();
        for name in names {
            // SAFETY: the caller's promise.
            match unsafe { Library::new(name.as_ref()) } {
                Ok(library) => return Ok(Self(ManuallyDrop::new(library))),
                Err(error) => reasons.push(error.source().unwrap_or(&error).to_string()),
            }
        }
        Err(OpenError { reasons })
    }

    /// The function `name`, if the library has it. It may be called until the process ends.
    ///
    /// # Safety
    /// `T` must be the pointer type of this C function.
    pub(crate) unsafe fn function<T: Copy>(&self, name: &str) -> Option<T> {
        // SAFETY: the caller vouches for the type.
        let symbol = unsafe { self.0.get::<T>(name.as_bytes()) }.ok()?;
        Some(*symbol)
    }
}
