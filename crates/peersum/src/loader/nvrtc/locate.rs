//! Where NVRTC's library may lie.
//!
//! The loader wants the library's *file* before it opens the library: the JIT cache's key holds its
//! build id, and on a cache hit the 100 MB library need not be loaded at all. So the directories
//! that are named are looked at first. The dynamic loader is asked last, because it loads what it
//! finds. The library is then opened by its absolute path: the file that the key names is the one
//! that compiles.

use std::iter::once_with;
use std::path::{Path, PathBuf};

use crate::shared_library::SharedLibrary;

/// The sonames that work, newest major first, with that major.
const SONAMES: [(u32, &str); 2] = [(13, "libnvrtc.so.13"), (12, "libnvrtc.so.12")];

/// The directory that NVIDIA's installers link to the chosen toolkit.
const DEFAULT_TOOLKIT: &str = "/usr/local/cuda";

/// Where to look for NVRTC.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NvrtcSearch {
    /// The one library to use. If it is set, no other place is looked at.
    pub library: Option<PathBuf>,
    /// Directories to look in first (`LD_LIBRARY_PATH`). Relative ones are not looked at. If there
    /// is one, the dynamic loader is not asked, because it would follow it.
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
    /// The major CUDA version its name says, if it says one.
    pub major: Option<u32>,
}

impl NvrtcSearch {
    /// The library files that there are, the preferred one first.
    ///
    /// The search goes on as the iterator does: stop at the first file that serves, because the
    /// last place, the dynamic loader, loads the library that it finds.
    pub fn files(&self) -> impl Iterator<Item = NvrtcFile> + '_ {
        let named = self
            .library
            .iter()
            .filter(|library| library.is_file())
            .map(|library| {
                let path = std::path::absolute(library).unwrap_or_else(|_| library.clone());
                let major = major_of(&path);
                NvrtcFile { path, major }
            });
        let searched = SONAMES
            .into_iter()
            .filter(|_| self.library.is_none())
            .flat_map(|(major, soname)| {
                self.files_named(soname).map(move |path| NvrtcFile {
                    path,
                    major: Some(major),
                })
            });
        named.chain(searched)
    }

    /// The files of one soname, each once.
    fn files_named(&self, soname: &'static str) -> impl Iterator<Item = PathBuf> + '_ {
        let loaded = once_with(move || file_of(&SharedLibrary::loaded(soname)?)).flatten();
        let in_directories = self
            .directories()
            .map(move |directory| directory.join(soname))
            .filter(|path| path.is_file());
        let by_loader = once_with(move || self.ask_loader(soname)).flatten();
        let mut seen = Vec::new();
        loaded
            .chain(in_directories)
            .chain(by_loader)
            .filter(move |path| {
                let is_new = !seen.contains(path);
                seen.push(path.clone());
                is_new
            })
    }

    /// The named directories, then those of toolkits. A toolkit has lib64, a wheel has lib.
    fn directories(&self) -> impl Iterator<Item = PathBuf> {
        let toolkits = absolute(&self.toolkit_dirs).chain([Path::new(DEFAULT_TOOLKIT)]);
        absolute(&self.library_dirs)
            .map(Path::to_owned)
            .chain(toolkits.flat_map(|root| ["lib64", "lib"].map(|lib| root.join(lib))))
    }

    /// Lets the dynamic loader find `soname`: on its configured paths, in its built-in directories
    /// and on the program's own run path.
    fn ask_loader(&self, soname: &str) -> Option<PathBuf> {
        if !self.may_ask_loader() {
            return None;
        }
        // SAFETY: opening a library runs its initialisers; this is NVRTC's name on the loader's own
        // search path, trusted as much as any library this process links against.
        let library = unsafe { SharedLibrary::open([soname]) }.ok()?;
        file_of(&library)
    }

    /// The dynamic loader follows relative and empty entries of LD_LIBRARY_PATH.
    fn may_ask_loader(&self) -> bool {
        self.library_dirs.iter().all(|dir| dir.is_absolute())
    }

    /// Every place that [`files`](Self::files) looks at, in words, in order.
    pub fn looked_at(&self) -> Vec<String> {
        if let Some(library) = &self.library {
            return vec![library.display().to_string()];
        }
        let names: Vec<&str> = SONAMES.iter().map(|(_, soname)| *soname).collect();
        let loaded = format!("{} among the libraries already loaded", names.join(" and "));
        let directories = self.directories().map(|dir| dir.display().to_string());
        let by_loader = if self.may_ask_loader() {
            "the dynamic loader's search path"
        } else {
            "not the dynamic loader's search path: LD_LIBRARY_PATH has relative or empty entries"
        };
        let relative = self
            .toolkit_dirs
            .iter()
            .chain(&self.library_dirs)
            .filter(|dir| !dir.is_absolute() && !dir.as_os_str().is_empty())
            .map(|dir| format!("not {}: it is relative", dir.display()));
        [loaded]
            .into_iter()
            .chain(directories)
            .chain([by_loader.to_owned()])
            .chain(relative)
            .collect()
    }
}

/// Those of the directories that do not depend on the working directory.
fn absolute(directories: &[PathBuf]) -> impl Iterator<Item = &Path> {
    directories
        .iter()
        .map(PathBuf::as_path)
        .filter(|directory| directory.is_absolute())
}

/// The major version in a name such as `libnvrtc.so.13` or `libnvrtc.so.12.8.93`, of the file or of
/// what it links to.
fn major_of(path: &Path) -> Option<u32> {
    let of_name = |path: &Path| {
        let name = path.file_name()?.to_str()?;
        name.split_once(".so.")?.1.split('.').next()?.parse().ok()
    };
    of_name(path).or_else(|| of_name(&std::fs::canonicalize(path).ok()?))
}

/// The file from which an NVRTC was loaded.
fn file_of(library: &SharedLibrary) -> Option<PathBuf> {
    library.file_of("nvrtcVersion")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_the_name() {
        assert_eq!(major_of(Path::new("/x/libnvrtc.so.13")), Some(13));
        assert_eq!(major_of(Path::new("/x/libnvrtc.so.12.8.93")), Some(12));
        assert_eq!(major_of(Path::new("/x/libnvrtc.so")), None);
    }
}
