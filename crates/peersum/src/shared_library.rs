//! Opening shared libraries at run time: NVIDIA's driver, NVRTC and NCCL.

use std::ffi::{CStr, OsStr, c_void};
use std::fs;
use std::mem::ManuallyDrop;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use libloading::os::unix::{Library, RTLD_LAZY, RTLD_LOCAL};

/// A shared library that stays loaded until the process ends: NVIDIA's libraries have threads and
/// state of their own, which do not survive being unloaded.
#[derive(Debug)]
pub struct SharedLibrary(ManuallyDrop<Library>);

/// Why a library could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", reasons.join("; "))]
pub struct OpenError {
    /// What the dynamic loader said, for each name in order.
    pub reasons: Vec<String>,
}

impl SharedLibrary {
    /// Opens the first of `names` that the dynamic loader can open. Each is a path, or a file name
    /// to look for on the loader's search path.
    ///
    /// # Errors
    /// The loader opens none of them.
    ///
    /// # Safety
    /// Opening runs the library's initialisers. They must be safe to run at any time in any thread.
    pub unsafe fn open<N: AsRef<OsStr>>(
        names: impl IntoIterator<Item = N>,
    ) -> Result<Self, OpenError> {
        let mut reasons = Vec::new();
        for name in names {
            // SAFETY: the caller's promise.
            match unsafe { Library::open(Some(name.as_ref()), RTLD_LAZY | RTLD_LOCAL) } {
                Ok(library) => return Ok(Self(ManuallyDrop::new(library))),
                Err(error) => reasons.push(loader_reason(&error)),
            }
        }
        Err(OpenError { reasons })
    }

    /// The library that this process has already loaded under this name.
    pub fn loaded(name: &str) -> Option<Self> {
        let flags = RTLD_LAZY | RTLD_LOCAL | libc::RTLD_NOLOAD;
        // SAFETY: RTLD_NOLOAD only takes a reference to what is loaded; no code runs that has not
        // run.
        let library = unsafe { Library::open(Some(name), flags) }.ok()?;
        Some(Self(ManuallyDrop::new(library)))
    }

    /// The function `name`, if the library has it. It may be called until the process ends.
    ///
    /// # Safety
    /// `T` must be the pointer type of this C function.
    pub unsafe fn function<T: Copy>(&self, name: &str) -> Option<T> {
        // SAFETY: the caller vouches for the type.
        let symbol = unsafe { self.0.get::<T>(name) }.ok()?;
        Some(*symbol)
    }

    /// The file from which the function `name` was loaded.
    pub fn file_of(&self, name: &str) -> Option<PathBuf> {
        // SAFETY: the symbol is only used as an address.
        let symbol = unsafe { self.function::<*const c_void>(name) }?;
        let mut info = libc::Dl_info {
            dli_fname: std::ptr::null(),
            dli_fbase: std::ptr::null_mut(),
            dli_sname: std::ptr::null(),
            dli_saddr: std::ptr::null_mut(),
        };
        // SAFETY: dladdr reads only the address's value and fills the struct.
        let found = unsafe { libc::dladdr(symbol, &raw mut info) } != 0;
        if !found || info.dli_fname.is_null() {
            return None;
        }
        // SAFETY: dladdr returned a NUL-terminated path owned by the loader, which lives as long as
        // the library is loaded: it is never unloaded.
        let path = unsafe { CStr::from_ptr(info.dli_fname) };
        fs::canonicalize(OsStr::from_bytes(path.to_bytes())).ok()
    }
}

/// Declares a struct of pointers to a library's functions, by their C names and signatures.
///
/// Its `find` looks all of them up, and returns the name of a function that the library lacks.
#[doc(hidden)]
#[macro_export]
macro_rules! functions {
    (
        $(#[$attribute:meta])*
        $visibility:vis struct $name:ident;
        $($function:ident($($argument:ty),* $(,)?) -> $result:ty;)*
    ) => {
        $(#[$attribute])*
        #[allow(non_snake_case, clippy::type_complexity, reason = "the header's names and types")]
        $visibility struct $name {
            $($visibility $function: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl $name {
            /// # Safety
            /// The signatures above must be those of the library's functions.
            unsafe fn find(
                library: &$crate::shared_library::SharedLibrary,
            ) -> Result<Self, &'static str> {
                Ok(Self {
                    $(
                        // SAFETY: the caller vouches for the type.
                        $function: unsafe { library.function(stringify!($function)) }
                            .ok_or(stringify!($function))?,
                    )*
                })
            }
        }
    };
}
pub use functions;

/// The reason that the dynamic loader gave, which is the source of libloading's error.
fn loader_reason(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_that_opens_is_taken_and_every_failure_is_told() {
        let names = ["/nowhere/libfirst.so", "/nowhere/libsecond.so"];
        // SAFETY: no library has these names.
        let error = unsafe { SharedLibrary::open(names) }.unwrap_err();
        assert_eq!(error.reasons.len(), 2);
        let text = error.to_string();
        assert!(names.iter().all(|name| text.contains(name)), "{text}");

        // SAFETY: the C library is loaded already.
        let libc = unsafe { SharedLibrary::open(["/nowhere/libfirst.so", "libc.so.6"]) }.unwrap();
        let file = libc.file_of("malloc").unwrap();
        assert!(file.is_absolute() && file.is_file(), "{}", file.display());
        assert_eq!(
            SharedLibrary::loaded("libc.so.6")
                .unwrap()
                .file_of("malloc"),
            Some(file)
        );
        assert!(SharedLibrary::loaded("libno-such-library.so.1").is_none());
        assert!(libc.file_of("no_such_function").is_none());
    }
}
