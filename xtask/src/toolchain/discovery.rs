//! Where to look for an nvcc and for a host compiler.

use anyhow::Context as _;
use std::collections::BTreeSet;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// A program that may be an nvcc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// What led to it, as in "nvcc of {origin}": `$CUDA_HOME`, `PATH`.
    pub(crate) origin: &'static str,
    pub(crate) program: PathBuf,
    /// Whether the user asked for this one, so that no other may replace it.
    pub(crate) explicit: bool,
}

impl Candidate {
    fn new(origin: &'static str, program: PathBuf, explicit: bool) -> Self {
        Self {
            origin,
            program: real_nvcc(program),
            explicit,
        }
    }
}

/// The nvcc that `--toolkit` names: the program itself, or a toolkit with `bin/nvcc` in it.
pub(crate) fn of_path(path: &Path) -> Candidate {
    let program = match path.is_dir() {
        true => path.join("bin/nvcc"),
        false => path.to_owned(),
    };
    Candidate::new("--toolkit", program, true)
}

/// The nvccs that the environment names or that are in the usual places, in order of preference,
/// without duplicates.
///
/// Standard error gets a note for each directory that is ignored.
pub(crate) fn candidates() -> Vec<Candidate> {
    let mut candidates = Vec::new();
    if let Some(name) = variable("NVCC") {
        // A bare name is looked up as a shell would. If that fails, the message names it.
        let program = find_program(&name).unwrap_or_else(|| name.into());
        candidates.push(Candidate::new("$NVCC", program, true));
    }
    for origin in ["$CUDA_HOME", "$CUDA_PATH"] {
        let Some(dir) = variable(&origin[1..]).map(PathBuf::from) else {
            continue;
        };
        if dir.is_absolute() {
            candidates.push(Candidate::new(origin, dir.join("bin/nvcc"), false));
        } else {
            // The current directory must not decide which compiler is used.
            eprintln!(
                "note: passed over {} ({origin}): it must be an absolute path",
                dir.display()
            );
        }
    }
    let on_path = programs_on_path(OsStr::new("nvcc"));
    candidates.extend(on_path.map(|program| Candidate::new("PATH", program, false)));
    let usual = PathBuf::from("/usr/local/cuda/bin/nvcc");
    if is_executable(&usual) {
        candidates.push(Candidate::new("/usr/local/cuda", usual, false));
    }
    let mut known = BTreeSet::new();
    candidates.retain(|candidate| known.insert(candidate.program.clone()));
    candidates
}

/// The file behind symbolic links, since nvcc looks for its toolkit beside the name that it was
/// called by. A link to a program of another name, such as a compiler cache, is kept: the name
/// selects what that does.
fn real_nvcc(program: PathBuf) -> PathBuf {
    match fs::canonicalize(&program) {
        Ok(real) if real.file_name() == Some(OsStr::new("nvcc")) => real,
        _ => std::path::absolute(&program).unwrap_or(program),
    }
}

/// The host compiler for `-ccbin`: `$NVCC_CCBIN`, `$CXX`, else the first of the usual names on
/// `PATH`.
///
/// # Errors
/// `$NVCC_CCBIN` names no program, or there is none.
pub(crate) fn host_compiler() -> anyhow::Result<PathBuf> {
    if let Some(name) = variable("NVCC_CCBIN") {
        // nvcc takes a directory too and looks for its usual compiler there. It may run elsewhere.
        if Path::new(&name).is_dir() {
            return std::path::absolute(&name)
                .with_context(|| format!("$NVCC_CCBIN is {name:?}, which has no absolute path"));
        }
        return find_program(&name).with_context(|| {
            format!("$NVCC_CCBIN is {name:?}, which is no program; unset it or name a C++ compiler")
        });
    }
    // $CXX may be a command line ("ccache g++"), which -ccbin cannot take; then the usual names do.
    let usual = ["c++", "g++", "clang++", "cc"].map(OsString::from);
    variable("CXX")
        .into_iter()
        .chain(usual)
        .find_map(|name| find_program(&name))
        .context(
            "nvcc needs a C++ compiler of the host, and none of $CXX, c++, g++, clang++ and cc is \
             on PATH. Install one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++) \
             or name it in NVCC_CCBIN",
        )
}

/// A variable that is set to something.
fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// The program that a shell would run for `name`, as an absolute path.
pub(crate) fn find_program(name: &OsStr) -> Option<PathBuf> {
    if name.as_encoded_bytes().contains(&b'/') {
        let path = std::path::absolute(name).ok()?;
        return is_executable(&path).then_some(path);
    }
    programs_on_path(name).next()
}

/// Every executable file called `name` in the directories of `PATH`, in their order.
fn programs_on_path(name: &OsStr) -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = env::split_paths(&path)
        // An empty or relative entry means the current directory, which must not decide which
        // compiler is used.
        .filter(|dir| dir.is_absolute())
        .collect();
    let name = name.to_owned();
    dirs.into_iter()
        .map(move |dir| dir.join(&name))
        .filter(|program| is_executable(program))
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}
