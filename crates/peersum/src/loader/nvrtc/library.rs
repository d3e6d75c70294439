//! The library itself: its functions, its version, the architectures that it compiles for.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use peersum_artifact::{Arch, CudaVersion};

use super::error::NvrtcError;
use crate::shared_library::{SharedLibrary, functions};

/// NVRTC's opaque program handle.
pub(super) type Program = *mut c_void;
/// `nvrtcResult`: 0 is success.
pub(super) type Status = c_int;
/// An array of C strings.
type Strings = *const *const c_char;

functions! {
    /// NVRTC's functions, as its C header declares them.
    #[derive(Debug)]
    pub(super) struct Functions;
    nvrtcVersion(*mut c_int, *mut c_int) -> Status;
    nvrtcGetErrorString(Status) -> *const c_char;
    nvrtcGetNumSupportedArchs(*mut c_int) -> Status;
    nvrtcGetSupportedArchs(*mut c_int) -> Status;
    nvrtcCreateProgram(
        *mut Program, *const c_char, *const c_char, c_int, Strings, Strings,
    ) -> Status;
    nvrtcDestroyProgram(*mut Program) -> Status;
    nvrtcCompileProgram(Program, c_int, Strings) -> Status;
    nvrtcGetProgramLogSize(Program, *mut usize) -> Status;
    nvrtcGetProgramLog(Program, *mut c_char) -> Status;
    nvrtcGetCUBINSize(Program, *mut usize) -> Status;
    nvrtcGetCUBIN(Program, *mut c_char) -> Status;
}

/// An opened NVRTC. It stays loaded until the process ends: NVRTC keeps state of its own that does
/// not survive `dlclose`.
#[derive(Debug)]
pub struct NvrtcLibrary {
    path: PathBuf,
    version: CudaVersion,
    pub(super) functions: Functions,
}

/// The libraries this process has opened, by the path they were asked for under.
static OPENED: Mutex<BTreeMap<PathBuf, Arc<NvrtcLibrary>>> = Mutex::new(BTreeMap::new());

impl NvrtcLibrary {
    /// Opens the library at `path`, or returns the one already opened from there.
    ///
    /// If `libnvrtc-builtins` lies beside it, that is opened first: NVRTC asks for it by its bare
    /// name only when it first compiles, and a wheel's directory is on no search path.
    ///
    /// # Errors
    ///
    /// [`NvrtcError::Open`] if the dynamic loader refuses the file, [`NvrtcError::MissingSymbol`]
    /// if it is not an NVRTC that can make cubins.
    pub fn open(path: &Path) -> Result<Arc<Self>, NvrtcError> {
        // The lock is held while the library loads, so that threads that arrive together load it
        // once.
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(library) = opened.get(path) {
            return Ok(Arc::clone(library));
        }
        let start = Instant::now();
        let library = Arc::new(Self::load(path)?);
        tracing::debug!(
            path = %path.display(),
            version = %library.version,
            took_ms = start.elapsed().as_secs_f64() * 1e3,
            "loaded NVRTC"
        );
        opened.insert(path.to_owned(), Arc::clone(&library));
        Ok(library)
    }

    fn load(path: &Path) -> Result<Self, NvrtcError> {
        // SAFETY: opening a library runs its initialisers. The path is one that the program named
        // or that the dynamic loader itself would search, so its code is trusted as much as any
        // library this process links against.
        let open = |path: &Path| unsafe { SharedLibrary::open([path]) };
        for builtins in builtins_beside(path) {
            // It stays loaded: NVRTC finds it by its name among the loaded libraries. A failure is
            // not fatal: the loader may find another one by name when NVRTC asks for it.
            if let Err(error) = open(&builtins) {
                tracing::debug!(%error, "NVRTC's builtins library does not open");
            }
        }
        let library = open(path).map_err(|error| NvrtcError::Open {
            library: path.to_owned(),
            detail: error.to_string(),
        })?;
        // SAFETY: every signature repeats the declaration of that function in nvrtc.h, whose C ABI
        // has not changed since the functions were introduced (the youngest of them,
        // nvrtcGetSupportedArchs, in CUDA 11.2).
        let functions = unsafe { Functions::find(&library) };
        let functions = functions.map_err(|symbol| NvrtcError::MissingSymbol {
            library: path.to_owned(),
            symbol,
        })?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are valid for one `int`.
        let status = unsafe { (functions.nvrtcVersion)(&raw mut major, &raw mut minor) };
        functions.check("nvrtcVersion", status)?;
        Ok(Self {
            path: path.to_owned(),
            version: CudaVersion {
                major: major.unsigned_abs(),
                minor: minor.unsigned_abs(),
            },
            functions,
        })
    }

    /// The file it was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The CUDA version it belongs to.
    pub fn version(&self) -> CudaVersion {
        self.version
    }

    /// The architectures it compiles for, ascending.
    ///
    /// # Errors
    ///
    /// [`NvrtcError::Call`] if the library does not answer.
    pub fn supported_archs(&self) -> Result<Vec<Arch>, NvrtcError> {
        let mut count: c_int = 0;
        // SAFETY: the pointer is valid for one `int`.
        let status = unsafe { (self.functions.nvrtcGetNumSupportedArchs)(&raw mut count) };
        self.functions.check("nvrtcGetNumSupportedArchs", status)?;
        let mut archs = vec![0 as c_int; usize::try_from(count).unwrap_or(0)];
        // SAFETY: the buffer holds as many `int`s as the library just said it writes.
        let status = unsafe { (self.functions.nvrtcGetSupportedArchs)(archs.as_mut_ptr()) };
        self.functions.check("nvrtcGetSupportedArchs", status)?;
        // Two-digit or three-digit numbers: 90 is sm_90.
        let mut archs: Vec<Arch> = archs
            .iter()
            .filter_map(|number| number.to_string().parse().ok())
            .collect();
        archs.sort_unstable();
        Ok(archs)
    }
}

impl Functions {
    /// Turns a status into an error that carries NVRTC's own words for it.
    pub(super) fn check(&self, function: &'static str, status: Status) -> Result<(), NvrtcError> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: NVRTC returns a static NUL-terminated string for every value, or null.
        let message = unsafe {
            let text = (self.nvrtcGetErrorString)(status);
            if text.is_null() {
                String::new()
            } else {
                CStr::from_ptr(text).to_string_lossy().into_owned()
            }
        };
        Err(NvrtcError::Call {
            function,
            status,
            message,
        })
    }
}

/// The `libnvrtc-builtins.so.*` files beside `library` or beside the file it is a link to, the
/// shortest name first.
fn builtins_beside(library: &Path) -> Vec<PathBuf> {
    let resolved = std::fs::canonicalize(library).unwrap_or_else(|_| library.to_owned());
    let entries = resolved
        .parent()
        .and_then(|directory| std::fs::read_dir(directory).ok());
    let is_builtins = |path: &PathBuf| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with("libnvrtc-builtins.so."))
    };
    let mut found: Vec<PathBuf> = entries
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(is_builtins)
        .collect();
    // Where a full version is linked from the short name, both are the same file and the loader
    // opens it once.
    found.sort_by_key(|path| path.as_os_str().len());
    found
}
