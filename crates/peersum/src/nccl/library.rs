//! NCCL's library, opened at run time, and the functions of it that are used.

use core::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;

use crate::device::DeviceError;
use crate::error::Error;
use crate::nccl_version::{self, LIBRARY_NAMES, NcclVersion};
use crate::shared_library::functions;

/// The oldest NCCL that is used: the first with bfloat16, 2.10.
const MIN_VERSION: NcclVersion = NcclVersion(21_000);

/// `ncclUniqueId`, which travels by value.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UniqueId(pub(super) [c_char; 128]);

/// `ncclComm_t`.
pub(super) type Comm = *mut c_void;

functions! {
    /// The functions that are used. Their signatures have been the same since NCCL 2.4.
    pub(super) struct Functions;
    ncclGetErrorString(c_int) -> *const c_char;
    ncclGetUniqueId(*mut UniqueId) -> c_int;
    ncclCommInitRank(*mut Comm, c_int, UniqueId, c_int) -> c_int;
    ncclCommAbort(Comm) -> c_int;
    ncclCommGetAsyncError(Comm, *mut c_int) -> c_int;
    ncclAllReduce(*const c_void, *mut c_void, usize, c_int, c_int, Comm, *mut c_void) -> c_int;
}

/// NCCL, open and new enough.
pub struct Library {
    pub(super) functions: Functions,
    pub(crate) version: NcclVersion,
}

impl Library {
    /// Opens NCCL under its usual names, or the library at `path`.
    ///
    /// # Errors
    /// [`Error::Device`] if there is none, or one that is too old, with what to install.
    pub fn open(path: Option<&Path>) -> Result<&'static Library, Error> {
        let name = path.map_or(LIBRARY_NAMES[0].into(), |path| path.display().to_string());
        let missing = |help| DeviceError::LibraryMissing {
            library: name.clone(),
            help,
        };
        let library = nccl_version::open(path).map_err(|error| {
            missing(match path {
                Some(_) => format!("it could not be opened: {error}"),
                None => format!(
                    "install NCCL (Debian and Ubuntu: libnccl2; PyPI: nvidia-nccl-cu13) where the \
                     dynamic loader finds it, or name the file with `Nccl::library`, or leave out \
                     `above_range`; tried: {error}"
                ),
            })
        })?;
        // SAFETY: the signatures are those of nccl.h.
        let functions = unsafe { Functions::find(&library) }.map_err(|function| {
            missing(format!(
                "the library that was opened is not NCCL: it has no {function}"
            ))
        })?;
        let version = NcclVersion::of(&library).ok_or_else(|| Error::Nccl {
            call: "ncclGetVersion",
            message: "the library does not tell its version".to_owned(),
        })?;
        if version < MIN_VERSION {
            let help = format!(
                "the one here is {version}, and {MIN_VERSION} is the first with bfloat16: install \
                 a newer one"
            );
            return Err(missing(help).into());
        }
        // A few words each time that NCCL is opened.
        Ok(Box::leak(Box::new(Library { functions, version })))
    }

    /// The version that was opened.
    pub fn version(&self) -> NcclVersion {
        self.version
    }

    /// An id for one group.
    ///
    /// # Errors
    /// [`Error::Nccl`].
    pub fn unique_id(&self) -> Result<[c_char; 128], Error> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: `id` is a place for an id.
        let result = unsafe { (self.functions.ncclGetUniqueId)(&raw mut id) };
        self.check("ncclGetUniqueId", result)?;
        Ok(id.0)
    }

    /// The outcome of the NCCL function `call`.
    ///
    /// # Errors
    /// [`Error::Nccl`].
    pub fn check(&self, call: &'static str, result: c_int) -> Result<(), Error> {
        // ncclSuccess
        if result == 0 {
            return Ok(());
        }
        // SAFETY: takes any number.
        let text = unsafe { (self.functions.ncclGetErrorString)(result) };
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
