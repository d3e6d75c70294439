//! One program in NVRTC: sources in, log and cubin out.

use std::ffi::{CString, c_char, c_int};

use super::error::NvrtcError;
use super::library::{NvrtcLibrary, Program, Status};

/// An `nvrtcProgram`, destroyed when dropped.
pub(super) struct OpenProgram<'a> {
    library: &'a NvrtcLibrary,
    handle: Program,
}

impl<'a> OpenProgram<'a> {
    /// A program of the file `root` among `sources`. The others are its headers.
    pub(super) fn create(
        library: &'a NvrtcLibrary,
        root: &str,
        sources: &[(&str, &str)],
    ) -> Result<Self, NvrtcError> {
        let (mut root_text, mut paths, mut texts) = (None, Vec::new(), Vec::new());
        for (path, text) in sources {
            let text = c_string(text, path)?;
            if *path == root {
                root_text = Some(text);
            } else {
                paths.push(c_string(path, path)?);
                texts.push(text);
            }
        }
        let root_path = c_string(root, root)?;
        let root_text = root_text.ok_or_else(|| NvrtcError::MissingSource {
            path: root.to_owned(),
        })?;
        let (paths, texts) = (pointers(&paths), pointers(&texts));
        let mut handle: Program = std::ptr::null_mut();
        // SAFETY: every string is NUL-terminated and outlives the call, both arrays have as many
        // elements as the count says, and NVRTC copies what it keeps.
        let status = unsafe {
            (library.functions.nvrtcCreateProgram)(
                &raw mut handle,
                root_text.as_ptr(),
                root_path.as_ptr(),
                count(&texts),
                texts.as_ptr(),
                paths.as_ptr(),
            )
        };
        library.functions.check("nvrtcCreateProgram", status)?;
        Ok(Self { library, handle })
    }

    pub(super) fn compile(&self, options: &[String]) -> Result<(), NvrtcError> {
        let options = options
            .iter()
            .map(|option| c_string(option, option))
            .collect::<Result<Vec<_>, _>>()?;
        let options = pointers(&options);
        let compile = self.library.functions.nvrtcCompileProgram;
        // SAFETY: the handle is open; the strings are NUL-terminated and outlive the call; the
        // count is the array's.
        let status = unsafe { compile(self.handle, count(&options), options.as_ptr()) };
        self.library.functions.check("nvrtcCompileProgram", status)
    }

    pub(super) fn log(&self) -> Result<String, NvrtcError> {
        let functions = &self.library.functions;
        // SAFETY: the first function tells the size of what the second one writes.
        let mut log = unsafe {
            self.fetch(
                ("nvrtcGetProgramLogSize", functions.nvrtcGetProgramLogSize),
                ("nvrtcGetProgramLog", functions.nvrtcGetProgramLog),
            )
        }?;
        log.truncate(log.iter().position(|&byte| byte == 0).unwrap_or(log.len()));
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    pub(super) fn cubin(&self) -> Result<Vec<u8>, NvrtcError> {
        let functions = &self.library.functions;
        // SAFETY: the first function tells the size of what the second one writes.
        unsafe {
            self.fetch(
                ("nvrtcGetCUBINSize", functions.nvrtcGetCUBINSize),
                ("nvrtcGetCUBIN", functions.nvrtcGetCUBIN),
            )
        }
    }

    /// Asks for the size of a result, then for the result.
    ///
    /// # Safety
    /// `size` must tell how many bytes `bytes` writes for this program.
    unsafe fn fetch(
        &self,
        (size_name, size): Call<*mut usize>,
        (bytes_name, bytes): Call<*mut c_char>,
    ) -> Result<Vec<u8>, NvrtcError> {
        let mut len = 0;
        // SAFETY: the handle is open and the pointer is valid for one `size_t`.
        let status = unsafe { size(self.handle, &raw mut len) };
        self.library.functions.check(size_name, status)?;
        let mut result = vec![0_u8; len];
        // SAFETY: the handle is open, and the buffer has the size that NVRTC just told.
        let status = unsafe { bytes(self.handle, result.as_mut_ptr().cast()) };
        self.library.functions.check(bytes_name, status)?;
        Ok(result)
    }
}

/// A function of a program that writes to its second argument, and its name.
type Call<T> = (&'static str, unsafe extern "C" fn(Program, T) -> Status);

impl Drop for OpenProgram<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle came from nvrtcCreateProgram and is destroyed once, here. A failure
        // leaves nothing to do.
        unsafe { (self.library.functions.nvrtcDestroyProgram)(&raw mut self.handle) };
    }
}

fn c_string(text: &str, what: &str) -> Result<CString, NvrtcError> {
    CString::new(text).map_err(|_| NvrtcError::Nul {
        what: what.to_owned(),
    })
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).collect()
}

/// The length as C's `int`. It cannot saturate: the arrays hold a few files or options.
fn count(pointers: &[*const c_char]) -> c_int {
    c_int::try_from(pointers.len()).unwrap_or(c_int::MAX)
}
