//! The library itself: its handful of functions, its version, and its build id.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, FileKind, ReadCache};

use super::NvrtcError;
use crate::shared_library::loader_reason;

/// NVRTC's opaque program handle.
pub(super) type Program = *mut c_void;
/// `nvrtcResult`: 0 is success.
pub(super) type Status = c_int;

/// NVRTC's functions, as its C header declares them.
pub(super) struct Functions {
    pub(super) version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status,
    pub(super) error_string: unsafe extern "C" fn(Status) -> *const c_char,
    pub(super) supported_arch_count: unsafe extern "C" fn(*mut c_int) -> Status,
    pub(super) supported_archs: unsafe extern "C" fn(*mut c_int) -> Status,
    pub(super) create_program: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    pub(super) destroy_program: unsafe extern "C" fn(*mut Program) -> Status,
    pub(super) compile_program:
        unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status,
    pub(super) log_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    pub(super) log: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    pub(super) cubin_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    pub(super) cubin: unsafe extern "C" fn(Program, *mut c_char) -> Status,
}

/// An opened NVRTC. It stays loaded until the process ends: NVRTC keeps state of its own that does not survive
/// `dlclose`.
pub struct NvrtcLibrary {
    path: PathBuf,
    version: (u32, u32),
    load_time: Duration,
    pub(super) functions: Functions,
}

impl std::fmt::Debug for NvrtcLibrary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NvrtcLibrary")
            .field("path", &self.path)
            .field("version", &self.version)
            .field("load_time", &self.load_time)
            .finish_non_exhaustive()
    }
}

/// The libraries this process has opened, by the path they were asked for under.
static OPENED: Mutex<Option<HashMap<PathBuf, Arc<NvrtcLibrary>>>> = Mutex::new(None);

impl NvrtcLibrary {
    /// Opens the library at `path`, or returns the one already opened from there.
    ///
    /// `libnvrtc-builtins` is opened first when it lies beside: NVRTC asks for it by its bare name only when it first
    /// compiles, and a wheel's directory is on no search path.
    ///
    /// # Errors
    ///
    /// [`NvrtcError::Open`] when the dynamic linker refuses the file, [`NvrtcError::MissingSymbol`] when it is not an
    /// NVRTC that can make cubins.
    pub fn open(path: &Path) -> Result<Arc<Self>, NvrtcError> {
        // The lock is held while the library loads, so that threads that arrive together load it once.
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = opened.get_or_insert_default();
        if let Some(library) = opened.get(path) {
            return Ok(Arc::clone(library));
        }
        let library = Arc::new(Self::load(path)?);
        tracing::debug!(
            path = %path.display(),
            version = %format_args!("{}.{}", library.version.0, library.version.1),
            took_ms = library.load_time.as_secs_f64() * 1e3,
            "loaded NVRTC"
        );
        opened.insert(path.to_owned(), Arc::clone(&library));
        Ok(library)
    }

    /// Whether this process has already opened the library at `path`.
    pub(in crate::loader) fn is_open(path: &Path) -> bool {
        let opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        opened
            .as_ref()
            .is_some_and(|opened| opened.contains_key(path))
    }

    fn load(path: &Path) -> Result<Self, NvrtcError> {
        let start = Instant::now();
        for builtins in builtins_beside(path) {
            match open_shared(builtins.as_os_str()) {
                // Kept loaded: NVRTC finds it by its name among the loaded libraries.
                Ok(library) => std::mem::forget(library),
                // Not fatal: the linker may still find another one by name when NVRTC asks for it.
                Err(error) => {
                    tracing::debug!(path = %builtins.display(), %error, "NVRTC's builtins library does not open");
                }
            }
        }
        let library = open_shared(path.as_os_str()).map_err(|error| NvrtcError::Open {
            library: path.to_owned(),
            detail: loader_reason(&error),
        })?;
        let functions = resolve(&library, path)?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the symbol has NVRTC's signature and both pointers are valid for one `int`.
        let status = unsafe { (functions.version)(&raw mut major, &raw mut minor) };
        functions.check("nvrtcVersion", status)?;
        // The function pointers outlive the `Library` value because the library is never closed.
        std::mem::forget(library);
        Ok(Self {
            path: path.to_owned(),
            version: (major.unsigned_abs(), minor.unsigned_abs()),
            load_time: start.elapsed(),
            functions,
        })
    }

    /// The file it was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The CUDA version it belongs to, for example `(13, 0)`.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// How long opening it took, its builtins library included.
    pub fn load_time(&self) -> Duration {
        self.load_time
    }

    /// The architectures it compiles for, as two-digit or three-digit numbers (`90` is sm_90), ascending.
    ///
    /// # Errors
    ///
    /// [`NvrtcError::Call`] when the library does not answer.
    pub fn supported_archs(&self) -> Result<Vec<u32>, NvrtcError> {
        let mut count: c_int = 0;
        // SAFETY: the pointer is valid for one `int`.
        let status = unsafe { (self.functions.supported_arch_count)(&raw mut count) };
        self.functions.check("nvrtcGetNumSupportedArchs", status)?;
        let mut archs = vec![0 as c_int; usize::try_from(count).unwrap_or(0)];
        // SAFETY: the buffer holds as many `int`s as the library just said it writes.
        let status = unsafe { (self.functions.supported_archs)(archs.as_mut_ptr()) };
        self.functions.check("nvrtcGetSupportedArchs", status)?;
        let mut archs: Vec<u32> = archs
            .into_iter()
            .filter_map(|arch| u32::try_from(arch).ok())
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
            let text = (self.error_string)(status);
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

fn open_shared(path: &OsStr) -> Result<Library, libloading::Error> {
    // SAFETY: opening a library runs its initialisers. The path is one that the program named or that the dynamic
    // linker itself would search, so its code is trusted as much as any library this process links against.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }
}

fn resolve(library: &Library, path: &Path) -> Result<Functions, NvrtcError> {
    /// # Safety
    ///
    /// `T` must be the function pointer type of the C function `name`.
    unsafe fn symbol<T: Copy>(
        library: &Library,
        path: &Path,
        name: &'static CStr,
    ) -> Result<T, NvrtcError> {
        // SAFETY: the caller vouches for the type; the pointer is used only while the library stays loaded.
        let symbol = unsafe { library.get::<T>(name.to_bytes_with_nul()) };
        symbol
            .map(|symbol| *symbol)
            .map_err(|_| NvrtcError::MissingSymbol {
                library: path.to_owned(),
                symbol: name.to_str().unwrap_or_default(),
            })
    }
    // SAFETY: every field's type repeats the declaration of that function in nvrtc.h, whose C ABI has not changed since
    // the functions were introduced (the youngest of them, nvrtcGetSupportedArchs, in CUDA 11.2).
    unsafe {
        Ok(Functions {
            version: symbol(library, path, c"nvrtcVersion")?,
            error_string: symbol(library, path, c"nvrtcGetErrorString")?,
            supported_arch_count: symbol(library, path, c"nvrtcGetNumSupportedArchs")?,
            supported_archs: symbol(library, path, c"nvrtcGetSupportedArchs")?,
            create_program: symbol(library, path, c"nvrtcCreateProgram")?,
            destroy_program: symbol(library, path, c"nvrtcDestroyProgram")?,
            compile_program: symbol(library, path, c"nvrtcCompileProgram")?,
            log_size: symbol(library, path, c"nvrtcGetProgramLogSize")?,
            log: symbol(library, path, c"nvrtcGetProgramLog")?,
            cubin_size: symbol(library, path, c"nvrtcGetCUBINSize")?,
            cubin: symbol(library, path, c"nvrtcGetCUBIN")?,
        })
    }
}

/// The `libnvrtc-builtins.so.*` files beside `library` or beside the file it is a link to, the shortest name first.
fn builtins_beside(library: &Path) -> Vec<PathBuf> {
    let resolved = std::fs::canonicalize(library).unwrap_or_else(|_| library.to_owned());
    let Some(entries) = resolved
        .parent()
        .and_then(|directory| std::fs::read_dir(directory).ok())
    else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .filter(|entry| {
            entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.starts_with("libnvrtc-builtins.so."))
        })
        .map(|entry| entry.path())
        .collect();
    // Where a full version is linked from the short name, both are the same file and the linker opens it once.
    found.sort_by_key(|path| path.as_os_str().len());
    found
}

/// The GNU build id in the notes of the ELF file at `path`, in hexadecimal, read without loading the library: only its
/// headers and notes are touched. `None` when the file has none or is no ELF file.
///
/// # Errors
///
/// The I/O error when the file cannot be opened.
pub fn build_id(path: &Path) -> std::io::Result<Option<String>> {
    let data = ReadCache::new(File::open(path)?);
    Ok(match FileKind::parse(&data) {
        Ok(FileKind::Elf64) => find_build_id(&data),
        _ => None,
    })
}

fn find_build_id(data: &ReadCache<File>) -> Option<String> {
    let header = object::elf::FileHeader64::<Endianness>::parse(data).ok()?;
    let endian = header.endian().ok()?;
    for segment in header.program_headers(endian, data).ok()? {
        let Some(mut notes) = segment.notes(endian, data).ok().flatten() else {
            continue;
        };
        while let Some(note) = notes.next().ok().flatten() {
            if note.name() == object::elf::ELF_NOTE_GNU
                && note.n_type(endian) == object::elf::NT_GNU_BUILD_ID
            {
                return Some(
                    note.desc()
                        .iter()
                        .map(|byte| format!("{byte:02x}"))
                        .collect(),
                );
            }
        }
    }
    None
}
