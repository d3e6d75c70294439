//! Where NVRTC's library may lie.
//!
//! The loader wants the library's *file* before it opens the library: the cache key holds its build id, and on a cache
//! hit the 100 MB library need not be loaded at all. So the places the dynamic linker would look at are looked at here,
//! in its order, and the library is then opened by its absolute path: the file that the key names is the one that compiles.

use std::ffi::{CStr, OsStr, OsString, c_void};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_LAZY, RTLD_LOCAL};

/// The sonames that work, newest major first, with that major.
pub(in crate::loader) const SONAMES: [(u32, &str); 2] =
    [(13, "libnvrtc.so.13"), (12, "libnvrtc.so.12")];

/// glibc's index of the libraries on its configured paths.
const LD_SO_CACHE: &str = "/etc/ld.so.cache";
/// The directory that NVIDIA's installers link to the chosen toolkit.
const DEFAULT_TOOLKIT: &str = "/usr/local/cuda";

/// Where to look for NVRTC.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NvrtcSearch {
    /// The one library to use. When it is set, no other place is looked at.
    pub library: Option<PathBuf>,
    /// Directories that the dynamic linker searches first (`LD_LIBRARY_PATH`). Relative ones are
    /// not looked at, and with one of them the linker is not asked, since it would follow it.
    pub library_dirs: Vec<PathBuf>,
    /// Roots of CUDA toolkits (`CUDA_HOME`, `CUDA_PATH`). Relative ones are not looked at: the
    /// working directory must not decide which library is loaded.
    pub toolkit_dirs: Vec<PathBuf>,
}

/// A library file that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NvrtcFile {
    /// Its absolute path.
    pub path: PathBuf,
    /// The major CUDA version its name says, where it says one.
    pub major: Option<u32>,
}

/// The outcome of a search.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NvrtcFound {
    /// The files found, the preferred one first.
    pub files: Vec<NvrtcFile>,
    /// Every place that was looked at, in words, in order.
    pub looked_at: Vec<String>,
}

impl NvrtcSearch {
    /// Looks for the library in every place, without loading it where that can be avoided.
    pub fn run(&self) -> NvrtcFound {
        let mut found = NvrtcFound::default();
        if let Some(library) = &self.library {
            found.looked_at.push(library.display().to_string());
            if library.is_file() {
                let path = std::path::absolute(library).unwrap_or_else(|_| library.clone());
                let major = major_of(&path);
                found.files.push(NvrtcFile { path, major });
            }
            return found;
        }
        let cache = std::fs::read(LD_SO_CACHE).unwrap_or_default();
        let toolkits = || absolute(&self.toolkit_dirs).chain([Path::new(DEFAULT_TOOLKIT)]);
        for (major, soname) in SONAMES {
            let mut add = |path: PathBuf| {
                if path.is_file() && !found.files.iter().any(|file| file.path == path) {
                    found.files.push(NvrtcFile {
                        path,
                        major: Some(major),
                    });
                }
            };
            if let Some(path) = already_loaded(soname) {
                add(path);
            }
            for directory in absolute(&self.library_dirs) {
                add(directory.join(soname));
            }
            for path in lookup_in_ld_cache(&cache, soname) {
                add(path);
            }
            for toolkit in toolkits() {
                // A toolkit has lib64, a wheel has lib.
                for directory in ["lib64", "lib"] {
                    add(toolkit.join(directory).join(soname));
                }
            }
        }
        // The dynamic linker itself follows relative entries of LD_LIBRARY_PATH.
        let linker_is_asked = self.library_dirs.iter().all(|dir| dir.is_absolute());
        if found.files.is_empty() && linker_is_asked {
            // What is left are the linker's built-in directories and the program's own run path: only it knows them.
            let by_name = SONAMES
                .iter()
                .find_map(|&(major, soname)| Some((major, open_by_name(soname)?)));
            found.files.extend(by_name.map(|(major, path)| NvrtcFile {
                path,
                major: Some(major),
            }));
        }
        let names: Vec<&str> = SONAMES.iter().map(|(_, soname)| *soname).collect();
        found.looked_at.push(format!(
            "{} among the libraries already loaded",
            names.join(" and ")
        ));
        found.looked_at.push(
            if linker_is_asked {
                "the dynamic linker's search path"
            } else {
                "the dynamic linker's cache (not its whole search path: LD_LIBRARY_PATH has \
                 relative or empty entries)"
            }
            .to_owned(),
        );
        found
            .looked_at
            .extend(absolute(&self.library_dirs).map(|directory| directory.display().to_string()));
        found.looked_at.extend(
            toolkits()
                .flat_map(|root| ["lib64", "lib"].map(|lib| root.join(lib).display().to_string())),
        );
        let relative = self.toolkit_dirs.iter().chain(&self.library_dirs);
        found.looked_at.extend(
            relative
                .filter(|directory| !directory.is_absolute())
                .filter(|directory| !directory.as_os_str().is_empty())
                .map(|directory| format!("not {}: it is relative", directory.display())),
        );
        found
    }
}

/// Those of the directories that do not depend on the working directory.
fn absolute(directories: &[PathBuf]) -> impl Iterator<Item = &Path> {
    directories
        .iter()
        .map(PathBuf::as_path)
        .filter(|directory| directory.is_absolute())
}

/// The major version in a name such as `libnvrtc.so.13` or `libnvrtc.so.12.8.93`, of the file or of what it links to.
fn major_of(path: &Path) -> Option<u32> {
    let of_name = |path: &Path| {
        let name = path.file_name()?.to_str()?;
        name.split_once(".so.")?.1.split('.').next()?.parse().ok()
    };
    of_name(path).or_else(|| of_name(&std::fs::canonicalize(path).ok()?))
}

/// The file of a library that this process has already loaded under `soname`.
fn already_loaded(soname: &str) -> Option<PathBuf> {
    // SAFETY: RTLD_NOLOAD only takes a reference to what is loaded; no code runs that has not run.
    let library =
        unsafe { Library::open(Some(soname), RTLD_LAZY | RTLD_LOCAL | libc::RTLD_NOLOAD) }.ok()?;
    file_of(&library)
}

/// Lets the dynamic linker find `soname` by its own rules; the library stays loaded.
fn open_by_name(soname: &str) -> Option<PathBuf> {
    // SAFETY: opening a library runs its initialisers; this is NVRTC's name on the linker's own search path, trusted as
    // much as any library this process links against.
    let library = unsafe { Library::open(Some(soname), RTLD_LAZY | RTLD_LOCAL) }.ok()?;
    let file = file_of(&library);
    // NVRTC does not survive being unloaded and loaded again, and it is about to be opened by its path.
    std::mem::forget(library);
    file
}

/// The path from which the dynamic linker loaded `library`.
fn file_of(library: &Library) -> Option<PathBuf> {
    // SAFETY: the symbol is only used as an address.
    let symbol = unsafe { library.get::<*const c_void>(b"nvrtcVersion\0") }.ok()?;
    let mut info = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    // SAFETY: dladdr reads only the address's value and fills the struct; the address lies in a loaded library.
    if unsafe { libc::dladdr(symbol.into_raw().cast_const(), &raw mut info) } == 0
        || info.dli_fname.is_null()
    {
        return None;
    }
    // SAFETY: dladdr returned a NUL-terminated path owned by the linker, which lives as long as the library is loaded;
    // `library` keeps it loaded through this call.
    let path = unsafe { CStr::from_ptr(info.dli_fname) };
    std::fs::canonicalize(OsStr::from_bytes(path.to_bytes())).ok()
}

/// The paths under which glibc's cache lists `soname`, in its order.
///
/// The format is that of glibc 2.2 and newer: a header of 48 bytes, entries of 24 bytes, strings addressed by their
/// offset from the header. Anything that does not fit yields nothing: the linker itself is still asked later.
fn lookup_in_ld_cache(cache: &[u8], soname: &str) -> Vec<PathBuf> {
    const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
    const HEADER_BYTES: usize = 48;
    const ENTRY_BYTES: usize = 24;
    /// The low byte says "ELF, libc6"; the next one the machine: 3 is x86-64, 10 is AArch64.
    const FLAGS: u32 = if cfg!(target_arch = "aarch64") {
        0x0a03
    } else {
        0x0303
    };

    let word = |at: usize| -> Option<u32> {
        Some(u32::from_ne_bytes(
            cache.get(at..at.checked_add(4)?)?.try_into().ok()?,
        ))
    };
    let string = |at: u32| -> Option<&[u8]> {
        let tail = cache.get(usize::try_from(at).ok()?..)?;
        Some(&tail[..tail.iter().position(|&byte| byte == 0)?])
    };
    if !cache.starts_with(MAGIC) {
        return Vec::new();
    }
    let count = word(MAGIC.len())
        .and_then(|count| usize::try_from(count).ok())
        .unwrap_or(0);
    let entry = |index: usize| -> Option<PathBuf> {
        let at = HEADER_BYTES.checked_add(index.checked_mul(ENTRY_BYTES)?)?;
        if word(at)? != FLAGS || string(word(at + 4)?)? != soname.as_bytes() {
            return None;
        }
        Some(PathBuf::from(OsString::from_vec(
            string(word(at + 8)?)?.to_vec(),
        )))
    };
    let entries = count.min(cache.len() / ENTRY_BYTES);
    (0..entries)
        .filter_map(entry)
        .filter(|path| path.is_absolute())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linker_cache_of_this_machine_lists_libc_where_it_is() {
        let cache = std::fs::read(LD_SO_CACHE).unwrap();
        let found = lookup_in_ld_cache(&cache, "libc.so.6");
        assert!(
            found.iter().any(|path| path.is_file()),
            "found only {found:?}"
        );
        assert_eq!(
            lookup_in_ld_cache(&cache, "libno-such-library.so.1"),
            Vec::<PathBuf>::new()
        );
    }

    #[test]
    fn a_damaged_linker_cache_yields_nothing_and_never_panics() {
        let whole = std::fs::read(LD_SO_CACHE).unwrap();
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..500 {
            let mut cache = whole[..random.usize(..whole.len())].to_vec();
            for _ in 0..random.usize(..8) {
                if !cache.is_empty() {
                    let at = random.usize(..cache.len());
                    cache[at] = random.u8(..);
                }
            }
            let _ = lookup_in_ld_cache(&cache, "libc.so.6");
        }
        assert_eq!(
            lookup_in_ld_cache(b"something else entirely", "libc.so.6"),
            Vec::<PathBuf>::new()
        );
    }

    #[test]
    fn the_major_version_is_read_from_the_name() {
        assert_eq!(major_of(Path::new("/x/libnvrtc.so.13")), Some(13));
        assert_eq!(major_of(Path::new("/x/libnvrtc.so.12.8.93")), Some(12));
        assert_eq!(major_of(Path::new("/x/libnvrtc.so")), None);
    }

    #[test]
    fn a_library_named_in_the_policy_is_the_only_place_looked_at() {
        let search = NvrtcSearch {
            library: Some("/nowhere/libnvrtc.so.13".into()),
            ..NvrtcSearch::default()
        };
        let found = search.run();
        assert_eq!(found.files, []);
        assert_eq!(found.looked_at, ["/nowhere/libnvrtc.so.13"]);
    }
}
