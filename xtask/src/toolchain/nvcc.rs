//! What an nvcc is: asked of the program itself, and remembered as long as its files stay the same.

use super::{sealed, wheels};
use peersum_artifact::{CudaVersion, Digest};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The oldest release that is supported.
const OLDEST: CudaVersion = CudaVersion {
    major: 12,
    minor: 4,
};

/// The last major release that is supported, with every minor of it.
const LAST_MAJOR: u32 = 13;

/// The form of a remembered answer.
const MEMORY_SCHEMA: u32 = 1;

/// Which compiler an nvcc is and what it compiles for. It is the same for every installation of one release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    /// `13.0.88`.
    pub(crate) version: String,
    /// `cuda_13.0.r13.0/compiler.36424714_0`.
    pub(crate) build: String,
    /// What `--list-gpu-code` and `--list-gpu-arch` print: `sm_80`, ..., `compute_80`, ...
    pub(crate) gpu_codes: Vec<String>,
}

/// Where the parts of a toolkit lie. What is unknown is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Layout {
    pub(crate) cicc: Option<PathBuf>,
    pub(crate) ptxas: Option<PathBuf>,
    /// Whether `cuda_runtime.h` and what it includes of `crt/` are there.
    pub(crate) stock_headers: bool,
}

/// An nvcc that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Probed {
    pub(crate) identity: Identity,
    pub(crate) layout: Layout,
}

/// Why an nvcc cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NvccFault {
    /// Nothing is there.
    #[error("there is no such program")]
    Absent,

    /// It is there and does not run.
    #[error("it cannot be started: {0}")]
    CannotStart(io::Error),

    /// It ran and failed.
    #[error("`nvcc {argument}` ended with {status}{}", indented(.output))]
    Failed {
        argument: &'static str,
        status: std::process::ExitStatus,
        output: String,
    },

    /// Its answer is not nvcc's.
    #[error("`nvcc {argument}` did not answer as nvcc does{}", indented(.output))]
    Garbled {
        argument: &'static str,
        output: String,
    },

    /// Its release is too old or too new.
    #[error("it is of CUDA {found}; supported are CUDA {OLDEST} to {LAST_MAJOR}.x")]
    Unsupported { found: CudaVersion },

    /// Its toolkit is half there.
    #[error("its toolkit is incomplete: there is no {}", .0.display())]
    Incomplete(PathBuf),
}

fn indented(output: &str) -> String {
    if output.trim().is_empty() {
        return " and printed nothing".to_owned();
    }
    let lines: Vec<String> = output
        .trim_end()
        .lines()
        .map(|line| format!("\n  {line}"))
        .collect();
    format!(" and printed:{}", lines.concat())
}

/// Finds out what `program` is, from memory if neither it nor its cicc and ptxas have changed since it was asked last;
/// no process is started then.
///
/// Only an nvcc that is a binary within its toolkit is remembered. A script or a compiler cache in front of nvcc may
/// call another one tomorrow and look the same, so such a one is asked each time.
///
/// # Errors
/// Why it cannot be used. Faults are never remembered.
pub(crate) fn probe(program: &Path) -> Result<Probed, NvccFault> {
    let memory = memory_file(program);
    let remembered = memory.as_deref().and_then(|file| recall(file, program));
    let probed = match remembered {
        Some(probed) => probed,
        None => {
            let before = Fingerprint::of(program);
            let identity = ask(program)?;
            let (layout, here) = layout(program);
            let probed = Probed { identity, layout };
            // The fingerprint from before the questions: if the program was exchanged meanwhile, it does not match.
            if let (Some(before), Some(memory)) = (before, memory)
                && is_binary_of(program, here.as_deref())
            {
                remember(&memory, before, &probed);
            }
            probed
        }
    };
    if let Some(cicc) = &probed.layout.cicc
        && !cicc.is_file()
    {
        return Err(NvccFault::Incomplete(cicc.clone()));
    }
    let found = release(&probed.identity.version).ok_or_else(|| NvccFault::Garbled {
        argument: "--version",
        output: probed.identity.version.clone(),
    })?;
    if found < OLDEST || found.major > LAST_MAJOR {
        return Err(NvccFault::Unsupported { found });
    }
    Ok(probed)
}

/// Asks `program` for its version, build and GPUs.
///
/// # Errors
/// It does not run, or does not answer as nvcc does.
pub(crate) fn ask(program: &Path) -> Result<Identity, NvccFault> {
    let text = answer(program, "--version")?;
    let (version, build) = parse_version(&text).ok_or_else(|| NvccFault::Garbled {
        argument: "--version",
        output: text.clone(),
    })?;
    let mut identity = Identity {
        version,
        build,
        gpu_codes: Vec::new(),
    };
    // A release that is not supported may lack the other questions; its version is what there is to say about it.
    if release(&identity.version).is_some_and(|found| found < OLDEST) {
        return Ok(identity);
    }
    for (argument, kind) in [("--list-gpu-code", "sm_"), ("--list-gpu-arch", "compute_")] {
        let text = answer(program, argument)?;
        let known = identity.gpu_codes.len();
        let codes = text.lines().map(str::trim).filter(|line| {
            line.strip_prefix(kind)
                .is_some_and(|number| number.starts_with(|c: char| c.is_ascii_digit()))
        });
        identity.gpu_codes.extend(codes.map(str::to_owned));
        if identity.gpu_codes.len() == known {
            return Err(NvccFault::Garbled {
                argument,
                output: text,
            });
        }
    }
    Ok(identity)
}

/// Runs `program` with one argument and returns its standard output.
fn answer(program: &Path, argument: &'static str) -> Result<String, NvccFault> {
    let output = run(program, &[argument]).map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound && !program.exists() {
            NvccFault::Absent
        } else {
            NvccFault::CannotStart(error)
        }
    })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(text)
    } else {
        Err(NvccFault::Failed {
            argument,
            status: output.status,
            output: text + &String::from_utf8_lossy(&output.stderr),
        })
    }
}

fn run(program: &Path, arguments: &[&str]) -> io::Result<Output> {
    Command::new(program)
        .args(arguments)
        // nvcc adds these to every command line; what is asked here must not depend on them.
        .env_remove("NVCC_PREPEND_FLAGS")
        .env_remove("NVCC_APPEND_FLAGS")
        .stdin(Stdio::null())
        .output()
}

/// Reads `Cuda compilation tools, release 13.0, V13.0.88` and `Build cuda_13.0.r13.0/compiler.36424714_0`.
fn parse_version(text: &str) -> Option<(String, String)> {
    let version = text.lines().find_map(|line| {
        let (_, rest) = line.split_once("release ")?;
        Some(rest.split_once(", V")?.1.trim().to_owned())
    })?;
    release(&version)?;
    let build = text
        .lines()
        .find_map(|line| line.strip_prefix("Build "))
        .map(|build| build.trim().to_owned())
        // Releases before 11 do not print it; they are refused for their version.
        .unwrap_or_default();
    if build.is_empty() && release(&version)? >= OLDEST {
        return None;
    }
    Some((version, build))
}

/// The release that a version such as `13.0.88` belongs to.
fn release(version: &str) -> Option<CudaVersion> {
    let mut numbers = version.split('.').map(str::parse);
    Some(CudaVersion {
        major: numbers.next()?.ok()?,
        minor: numbers.next()?.ok()?,
    })
}

/// Where the parts of `program`'s toolkit lie and in which directory nvcc itself believes to be, as `--dryrun` says, which
/// starts no part of the toolkit and needs no input file. Distributions lay toolkits out in several ways.
fn layout(program: &Path) -> (Layout, Option<PathBuf>) {
    let unknown = Layout {
        stock_headers: true,
        ..Layout::default()
    };
    let Ok(output) = run(program, &["--dryrun", "-cubin", "peersum.cu"]) else {
        return (unknown, None);
    };
    let text = String::from_utf8_lossy(&output.stderr);
    let value = |name: &str| {
        text.lines()
            .find_map(|line| {
                line.strip_prefix("#$ ")?
                    .strip_prefix(name)?
                    .strip_prefix('=')
            })
            .map(str::trim)
            .filter(|value| !value.is_empty())
    };
    let Some(here) = value("_HERE_").map(PathBuf::from) else {
        return (unknown, None);
    };
    let include_dirs = value("INCLUDES")
        .unwrap_or_default()
        .split('"')
        .filter_map(|word| word.strip_prefix("-I"));
    let layout = Layout {
        cicc: value("CICC_PATH").map(|dir| Path::new(dir).join("cicc")),
        ptxas: Some(here.join("ptxas")).filter(|ptxas| ptxas.is_file()),
        stock_headers: include_dirs
            .chain(["/usr/include"])
            .any(|dir| has_stock_headers(Path::new(dir))),
    };
    (layout, Some(here))
}

/// Whether nvcc's implicit include and the headers that it includes in turn lie in `dir`.
pub(crate) fn has_stock_headers(dir: &Path) -> bool {
    dir.join("cuda_runtime.h").is_file() && dir.join("crt/host_config.h").is_file()
}

/// Whether `program` is an ELF binary that lies in the directory `here`, where nvcc believes to be.
fn is_binary_of(program: &Path, here: Option<&Path>) -> bool {
    let mut magic = [0; 4];
    let is_elf = fs::File::open(program)
        .and_then(|mut file| file.read_exact(&mut magic))
        .is_ok_and(|()| magic == *b"\x7fELF");
    let same_file = here.is_some_and(|here| {
        let real = |path: &Path| fs::canonicalize(path).ok();
        real(program).is_some_and(|program| real(&here.join("nvcc")) == Some(program))
    });
    is_elf && same_file
}

/// What tells a file from one that replaced it. The times are in nanoseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fingerprint {
    /// Every symbolic link resolved: `/usr/local/cuda` may point elsewhere tomorrow.
    path: PathBuf,
    bytes: u64,
    inode: u64,
    modified_ns: i128,
    /// Tools that copy a file can set the time of its modification, not this one.
    changed_ns: i128,
}

impl Fingerprint {
    /// `None` if there is no such file, or if its path is not UTF-8 and so cannot be written down.
    fn of(path: &Path) -> Option<Self> {
        let path = fs::canonicalize(path).ok()?;
        path.to_str()?;
        let metadata = fs::metadata(&path).ok()?;
        let nanoseconds = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
        Some(Self {
            bytes: metadata.len(),
            inode: metadata.ino(),
            modified_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
            path,
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Memory {
    schema: u32,
    nvcc: Fingerprint,
    /// Those of the parts in [`Layout`] that are known.
    parts: Vec<Fingerprint>,
    identity: Identity,
    layout: Layout,
}

/// The file that remembers `program`, if the user has a cache directory.
fn memory_file(program: &Path) -> Option<PathBuf> {
    let path: &OsStr = program.as_os_str();
    let name = Digest::of(path.as_encoded_bytes());
    Some(wheels::root()?.join("compilers").join(name.to_string()))
}

fn recall(file: &Path, program: &Path) -> Option<Probed> {
    let memory: Memory = sealed::read(file)?;
    let unchanged = memory.schema == MEMORY_SCHEMA
        && Fingerprint::of(program).as_ref() == Some(&memory.nvcc)
        && memory
            .parts
            .iter()
            .all(|part| Fingerprint::of(&part.path).as_ref() == Some(part));
    unchanged.then_some(Probed {
        identity: memory.identity,
        layout: memory.layout,
    })
}

/// Writes down what `probed` says. That it cannot be written costs the next run a few questions and nothing else.
fn remember(file: &Path, nvcc: Fingerprint, probed: &Probed) {
    let parts = [&probed.layout.cicc, &probed.layout.ptxas];
    let parts = parts
        .into_iter()
        .flatten()
        .map(|part| Fingerprint::of(part));
    let Some(parts) = parts.collect() else { return };
    let memory = Memory {
        schema: MEMORY_SCHEMA,
        nvcc,
        parts,
        identity: probed.identity.clone(),
        layout: probed.layout.clone(),
    };
    if let Some(dir) = file.parent() {
        let _ = fs::create_dir_all(dir);
        let _ = sealed::write(file, &memory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_and_build_of_each_major_are_read() {
        let text = "nvcc: NVIDIA (R) Cuda compiler driver\n\
                    Copyright (c) 2005-2024 NVIDIA Corporation\n\
                    Built on Thu_Mar_28_02:18:24_PDT_2024\n\
                    Cuda compilation tools, release 12.4, V12.4.131\n\
                    Build cuda_12.4.r12.4/compiler.34097967_0\n";
        assert_eq!(
            parse_version(text),
            Some((
                "12.4.131".to_owned(),
                "cuda_12.4.r12.4/compiler.34097967_0".to_owned()
            ))
        );
        let old = "Cuda compilation tools, release 9.0, V9.0.176\n";
        assert_eq!(
            parse_version(old),
            Some(("9.0.176".to_owned(), String::new()))
        );
    }

    #[test]
    fn what_is_not_a_version_is_not_taken_for_one() {
        for text in [
            "",
            "release ",
            "release 13.0, V",
            "release 13.0, Vthirteen",
            "clang version 18.1.3",
            // A supported nvcc without a build id would give two builds one cache key.
            "Cuda compilation tools, release 13.0, V13.0.88\n",
        ] {
            assert_eq!(parse_version(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_file_that_was_replaced_or_touched_has_another_fingerprint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nvcc");
        fs::write(&path, "one").unwrap();
        let first = Fingerprint::of(&path).unwrap();
        assert_eq!(Fingerprint::of(&path), Some(first.clone()));

        let other = dir.path().join("other");
        fs::write(&other, "two").unwrap();
        let times = fs::metadata(&path).unwrap().modified().unwrap();
        let file = fs::File::options().write(true).open(&other).unwrap();
        file.set_modified(times).unwrap();
        fs::rename(&other, &path).unwrap();
        assert_ne!(Fingerprint::of(&path), Some(first));

        fs::remove_file(&path).unwrap();
        assert_eq!(Fingerprint::of(&path), None);
    }
}
