//! What an nvcc is: it is asked itself, and the answer is remembered as long as the program stays
//! the same.

use super::{sealed, wheels};
use anyhow::{Context as _, anyhow, bail, ensure};
use peersum_artifact::{CompilerId, CompilerKind, CudaVersion, Digest};
use serde::{Deserialize, Serialize};
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

/// Variables by which nvcc takes flags that no command shows. They would change code although the
/// cache key stays the same.
pub(crate) const HIDDEN_FLAG_VARIABLES: [&str; 2] = ["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"];

/// The version of the form in which answers are remembered.
const MEMORY_SCHEMA: u32 = 3;

/// What an nvcc says about itself and its toolkit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Toolkit {
    /// Version and build, as they go into cache keys and the manifest.
    pub(crate) compiler: CompilerId,
    /// What `--list-gpu-code` and `--list-gpu-arch` print: `sm_80`, ..., `compute_80`, ...
    pub(crate) gpu_codes: Vec<String>,
    /// Its device compiler; `None` if it did not say where it is.
    pub(crate) cicc: Option<PathBuf>,
}

/// Finds out what `program` is, from memory if it is the same file as when it was asked last; no
/// process is started then.
///
/// Only an nvcc that is a binary in its toolkit is remembered. A script or a compiler cache in
/// front of nvcc may call another nvcc without changing itself, so it is asked each time.
///
/// # Errors
/// Why it cannot be used. Faults are never remembered.
pub(crate) fn probe(program: &Path) -> anyhow::Result<Toolkit> {
    // Named before the questions: if the program is replaced meanwhile, nobody finds the answers.
    let memory = memory_file(program);
    let toolkit = match memory.as_deref().and_then(sealed::read::<Toolkit>) {
        Some(toolkit) => toolkit,
        None => {
            let (toolkit, is_lasting) = ask(program)?;
            if let Some(memory) = memory.filter(|_| is_lasting) {
                // If that fails, the next run asks again.
                let _ = sealed::write(&memory, &toolkit);
            }
            toolkit
        }
    };
    if let Some(cicc) = toolkit.cicc.as_ref().filter(|cicc| !cicc.is_file()) {
        bail!("its toolkit is incomplete: there is no {}", cicc.display());
    }
    let found = toolkit
        .compiler
        .toolkit()
        .ok_or_else(|| garbled("--version", &toolkit.compiler.version))?;
    ensure!(
        found >= OLDEST && found.major <= LAST_MAJOR,
        "it is of CUDA {found}; supported are CUDA {OLDEST} to {LAST_MAJOR}.x"
    );
    Ok(toolkit)
}

/// The file that remembers `program`, if the user has a cache directory. Its name has all that
/// distinguishes the program from one that replaces it.
fn memory_file(program: &Path) -> Option<PathBuf> {
    // Every symbolic link resolved: `/usr/local/cuda` may point elsewhere tomorrow.
    let path = fs::canonicalize(program).ok()?;
    let file = fs::metadata(&path).ok()?;
    let identity = format!(
        "{MEMORY_SCHEMA} {path:?} {} {} {}.{} {}.{}",
        file.len(),
        file.ino(),
        file.mtime(),
        file.mtime_nsec(),
        // Tools that copy a file can set the time of its modification, not this one.
        file.ctime(),
        file.ctime_nsec()
    );
    let name = Digest::of(identity.as_bytes()).to_string();
    Some(wheels::root()?.join("compilers").join(name))
}

/// Asks `program` what it is. Also returns whether the answers hold as long as the program stays
/// the same.
///
/// # Errors
/// It does not run, or does not answer as nvcc does.
pub(crate) fn ask(program: &Path) -> anyhow::Result<(Toolkit, bool)> {
    let text = answer(program, "--version")?;
    let (version, build) = parse_version(&text).ok_or_else(|| garbled("--version", &text))?;
    let compiler = CompilerId {
        kind: CompilerKind::Nvcc,
        version,
        build,
    };
    // An unsupported release may lack the other questions; then its version is what matters.
    let is_old = compiler.toolkit().is_some_and(|found| found < OLDEST);
    let gpu_codes = match is_old {
        true => Vec::new(),
        false => gpu_codes(program)?,
    };
    // The layout of toolkits differs between distributions. This starts no other program and needs
    // no input file.
    let dryrun = run(program, &["--dryrun", "-cubin", "peersum.cu"]);
    let dryrun = dryrun.map_or_else(|_| Vec::new(), |output| output.stderr);
    let dryrun = String::from_utf8_lossy(&dryrun);
    let value = |name: &str| {
        let mut values = dryrun.lines().filter_map(|line| {
            let variable = line.strip_prefix("#$ ")?.strip_prefix(name)?;
            variable.strip_prefix('=').map(str::trim)
        });
        values.find(|value| !value.is_empty())
    };
    let here = value("_HERE_").map(Path::new);
    let toolkit = Toolkit {
        compiler,
        gpu_codes,
        cicc: value("CICC_PATH").map(|dir| Path::new(dir).join("cicc")),
    };
    Ok((toolkit, is_binary_of(program, here)))
}

/// What `program` compiles for.
fn gpu_codes(program: &Path) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    for (argument, kind) in [("--list-gpu-code", "sm_"), ("--list-gpu-arch", "compute_")] {
        let text = answer(program, argument)?;
        let codes = text.lines().map(str::trim).filter(|line| {
            line.strip_prefix(kind)
                .is_some_and(|number| number.starts_with(|c: char| c.is_ascii_digit()))
        });
        let known = all.len();
        all.extend(codes.map(str::to_owned));
        if all.len() == known {
            return Err(garbled(argument, &text));
        }
    }
    Ok(all)
}

fn indented(output: &str) -> String {
    if output.trim().is_empty() {
        return " and printed nothing".to_owned();
    }
    let lines = output.trim_end().lines().map(|line| format!("\n  {line}"));
    format!(" and printed:{}", lines.collect::<String>())
}

fn garbled(argument: &str, output: &str) -> anyhow::Error {
    let output = indented(output);
    anyhow!("`nvcc {argument}` did not answer as nvcc does{output}")
}

/// Runs `program` with one argument and returns its standard output.
fn answer(program: &Path, argument: &str) -> anyhow::Result<String> {
    let output = match run(program, &[argument]) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !program.exists() => {
            bail!("there is no such program")
        }
        output => output.context("it cannot be started")?,
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "`nvcc {argument}` ended with {}{}",
        output.status,
        indented(&(text + &String::from_utf8_lossy(&output.stderr)))
    );
    Ok(text)
}

fn run(program: &Path, arguments: &[&str]) -> io::Result<Output> {
    let mut command = Command::new(program);
    isolate(command.args(arguments));
    command.output()
}

/// Takes from an nvcc's command what no one sees: hidden flags and standard input.
pub(super) fn isolate(command: &mut Command) {
    for variable in HIDDEN_FLAG_VARIABLES {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null());
}

/// Reads `Cuda compilation tools, release 13.0, V13.0.88` and `Build
/// cuda_13.0.r13.0/compiler.36424714_0`.
fn parse_version(text: &str) -> Option<(String, String)> {
    let version = text.lines().find_map(|line| {
        let (_, rest) = line.split_once("release ")?;
        Some(rest.split_once(", V")?.1.trim().to_owned())
    })?;
    let release = CudaVersion::of_release(&version)?;
    let build = text.lines().find_map(|line| line.strip_prefix("Build "));
    let build = build.unwrap_or_default().trim().to_owned();
    // Releases before 11 print none; they are refused for their version.
    (!build.is_empty() || release < OLDEST).then_some((version, build))
}

/// Whether `program` is an ELF binary in the directory `here`, where nvcc believes to be.
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
        let (version, build) = parse_version(text).unwrap();
        assert_eq!(version, "12.4.131");
        assert_eq!(build, "cuda_12.4.r12.4/compiler.34097967_0");
        let old = "Cuda compilation tools, release 9.0, V9.0.176\n";
        assert_eq!(parse_version(old), Some(("9.0.176".into(), String::new())));
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
    fn a_program_that_was_replaced_is_not_recognised_though_its_length_and_time_are_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("nvcc"), dir.path().join("other"));
        fs::write(&path, "one").unwrap();
        let first = memory_file(&path);
        assert_eq!(memory_file(&path), first);

        fs::write(&other, "two").unwrap();
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        let file = fs::File::options().write(true).open(&other).unwrap();
        file.set_modified(modified).unwrap();
        fs::rename(&other, &path).unwrap();
        assert_ne!(memory_file(&path), first);
        fs::remove_file(&path).unwrap();
        assert_eq!(memory_file(&path), None);
    }
}
