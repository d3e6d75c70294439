//! NCCL's library, opened at run time, and the functions of it that are used.

use core::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;

use libloading::Library as Dynamic;

use super::{MIN_VERSION, Version};
use crate::device::DeviceError;
use crate::error::Error;
use crate::shared_library::loader_reason;

/// As the runtime packages install it, then the link of the development packages.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// `ncclUniqueId`, which travels by value.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UniqueId {
    internal: [c_char; 128],
}

/// `ncclComm_t`.
pub(super) type Comm = *mut c_void;

/// The functions that are used. Their signatures have been the same since NCCL 2.4.
pub(super) struct Functions {
    get_version: unsafe extern "C" fn(*mut c_int) -> c_int,
    get_error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    comm_init_rank: unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int) -> c_int,
    pub(super) comm_abort: unsafe extern "C" fn(Comm) -> c_int,
    pub(super) comm_get_async_error: unsafe extern "C" fn(Comm, *mut c_int) -> c_int,
    #[allow(clippy::type_complexity, reason = "the signature of ncclAllReduce")]
    pub(super) all_reduce: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        c_int,
        c_int,
        Comm,
        *mut c_void,
    ) -> c_int,
}

/// NCCL, open and of a version that can be used.
pub(crate) struct Library {
    pub(super) functions: Functions,
    version: Version,
}

impl Library {
    /// Opens NCCL under its usual names, or the one at `path`. It stays open: NCCL has threads of its own and does not take being unloaded.
    pub(super) fn open(path: Option<&Path>) -> Result<&'static Library, Error> {
        let library = match path {
            Some(path) => {
                // SAFETY: opening runs the initialisers of the library that the caller names as NCCL, which expects to be opened at any time and by any thread.
                unsafe { Dynamic::new(path) }.map_err(|error| {
                    missing(
                        &path.display().to_string(),
                        &format!("it could not be opened: {}", loader_reason(&error)),
                    )
                })?
            }
            None => open_by_name()?,
        };
        // Two words for each time that NCCL is asked for, and no unloading.
        let library: &'static Dynamic = Box::leak(Box::new(library));
        let functions = Functions::find(library)?;
        let version = functions.version()?;
        if version < MIN_VERSION {
            return Err(missing(
                NAMES[0],
                &format!(
                    "the one here is {version}, and {MIN_VERSION} is the first with bfloat16: install a newer one"
                ),
            ));
        }
        Ok(Box::leak(Box::new(Library { functions, version })))
    }

    pub(crate) fn version(&self) -> Version {
        self.version
    }

    pub(crate) fn unique_id(&self) -> Result<[c_char; 128], Error> {
        let mut id = UniqueId { internal: [0; 128] };
        // SAFETY: `id` is a place for an id.
        let result = unsafe { (self.functions.get_unique_id)(&raw mut id) };
        self.check("ncclGetUniqueId", result)?;
        Ok(id.internal)
    }

    /// Meets the other ranks. Waits for them without a limit.
    pub(super) fn comm_init_rank(
        &self,
        id: [c_char; 128],
        rank: c_int,
        world_size: c_int,
    ) -> Result<Comm, Error> {
        let mut comm = std::ptr::null_mut();
        let id = UniqueId { internal: id };
        // SAFETY: `comm` is a place for one handle; NCCL refuses numbers that make no sense.
        let result =
            unsafe { (self.functions.comm_init_rank)(&raw mut comm, world_size, id, rank) };
        self.check("ncclCommInitRank", result)?;
        Ok(comm)
    }

    /// The outcome of the NCCL function `call`.
    pub(super) fn check(&self, call: &'static str, result: c_int) -> Result<(), Error> {
        self.functions.check(call, result)
    }
}

impl Functions {
    fn find(library: &'static Dynamic) -> Result<Self, Error> {
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: the field that it is assigned to has the type that nccl.h gives this function, and the library is never closed.
                *unsafe { library.get($name) }.map_err(|_| {
                    let name = String::from_utf8_lossy($name);
                    missing(
                        NAMES[0],
                        &format!("the library that was opened is not NCCL: it has no {name}"),
                    )
                })?
            };
        }
        Ok(Self {
            get_version: symbol!(b"ncclGetVersion"),
            get_error_string: symbol!(b"ncclGetErrorString"),
            get_unique_id: symbol!(b"ncclGetUniqueId"),
            comm_init_rank: symbol!(b"ncclCommInitRank"),
            comm_abort: symbol!(b"ncclCommAbort"),
            comm_get_async_error: symbol!(b"ncclCommGetAsyncError"),
            all_reduce: symbol!(b"ncclAllReduce"),
        })
    }

    fn version(&self) -> Result<Version, Error> {
        let mut version = 0;
        // SAFETY: `version` is a place for one int.
        let result = unsafe { (self.get_version)(&raw mut version) };
        self.check("ncclGetVersion", result)?;
        Ok(Version(version))
    }

    fn check(&self, call: &'static str, result: c_int) -> Result<(), Error> {
        // ncclSuccess
        if result == 0 {
            return Ok(());
        }
        // SAFETY: takes any number.
        let text = unsafe { (self.get_error_string)(result) };
        let message = if text.is_null() {
            format!("NCCL error {result}")
        } else {
            // SAFETY: NCCL's texts are literals.
            unsafe { CStr::from_ptr(text) }
                .to_string_lossy()
                .into_owned()
        };
        Err(Error::Nccl { call, message })
    }
}

fn open_by_name() -> Result<Dynamic, Error> {
    let mut failures = Vec::new();
    for name in NAMES {
        // SAFETY: as for a path that the caller names.
        match unsafe { Dynamic::new(name) } {
            Ok(library) => return Ok(library),
            Err(error) => failures.push(loader_reason(&error)),
        }
    }
    Err(missing(
        NAMES[0],
        &format!(
            "install NCCL (Debian and Ubuntu: libnccl2; PyPI: nvidia-nccl-cu13) where the loader finds it, or name the file with \
             `Nccl::library`, or leave out `above_range`; tried: {}",
            failures.join("; ")
        ),
    ))
}

fn missing(library: &str, help: &str) -> Error {
    DeviceError::LibraryMissing {
        library: library.to_owned(),
        help: help.to_owned(),
    }
    .into()
}
