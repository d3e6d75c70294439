//! What an nvcc is: it is asked itself, and the answer is remembered as long as its files stay the
//! same.

use super::memory;
pub(crate) use super::memory::{Identity, Layout, Probed};
use anyhow::{Context as _, anyhow, bail, ensure};
use peersum_artifact::CudaVersion;
use std::fs;
use std::io::{self, Read as _};
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

/// Finds out what `program` is, from memory if neither it nor its cicc and ptxas have changed since
/// it was asked last; no process is started then.
///
/// Only an nvcc that is a binary in its toolkit is remembered. A script or a compiler cache in
/// front of nvcc may call another nvcc without changing itself, so it is asked each time.
///
/// # Errors
/// Why it cannot be used. Faults are never remembered.
pub(crate) fn probe(program: &Path) -> anyhow::Result<Probed> {
    let probed = memory::recall_or(program, || {
        let identity = ask(program)?;
        let (layout, here) = layout(program);
        let is_lasting = is_binary_of(program, here.as_deref());
        Ok((Probed { identity, layout }, is_lasting))
    })?;
    if let Some(cicc) = probed.layout.cicc.as_ref().filter(|cicc| !cicc.is_file()) {
        bail!("its toolkit is incomplete: there is no {}", cicc.display());
    }
    let found = CudaVersion::of_release(&probed.identity.version)
        .ok_or_else(|| garbled("--version", &probed.identity.version))?;
    ensure!(
        found >= OLDEST && found.major <= LAST_MAJOR,
        "it is of CUDA {found}; supported are CUDA {OLDEST} to {LAST_MAJOR}.x"
    );
    Ok(probed)
}

/// Asks `program` for its version, build and GPUs.
///
/// # Errors
/// It does not run, or does not answer as nvcc does.
pub(crate) fn ask(program: &Path) -> anyhow::Result<Identity> {
    let text = answer(program, "--version")?;
    let (version, build) = parse_version(&text).ok_or_else(|| garbled("--version", &text))?;
    let mut identity = Identity {
        version,
        build,
        gpu_codes: Vec::new(),
    };
    // An unsupported release may lack the other questions; then its version is what matters.
    if CudaVersion::of_release(&identity.version).is_some_and(|found| found < OLDEST) {
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
            return Err(garbled(argument, &text));
        }
    }
    Ok(identity)
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
    Command::new(program)
        .args(arguments)
        // nvcc adds these to every command line; its answers must not depend on them.
        .env_remove(HIDDEN_FLAG_VARIABLES[0])
        .env_remove(HIDDEN_FLAG_VARIABLES[1])
        .stdin(Stdio::null())
        .output()
}

/// Reads `Cuda compilation tools, release 13.0, V13.0.88` and `Build
/// cuda_13.0.r13.0/compiler.36424714_0`.
fn parse_version(text: &str) -> Option<(String, String)> {
    let version = text.lines().find_map(|line| {
        let (_, rest) = line.split_once("release ")?;
        Some(rest.split_once(", V")?.1.trim().to_owned())
    })?;
    CudaVersion::of_release(&version)?;
    let build = text
        .lines()
        .find_map(|line| line.strip_prefix("Build "))
        .map(|build| build.trim().to_owned())
        // Releases before 11 do not print it; they are refused for their version.
        .unwrap_or_default();
    if build.is_empty() && CudaVersion::of_release(&version)? >= OLDEST {
        return None;
    }
    Some((version, build))
}

/// Where the parts of `program`'s toolkit are, and in which directory nvcc believes to be, as
/// `--dryrun` prints it. That starts no other program and needs no input file. The layout of
/// toolkits differs between distributions.
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

/// Whether nvcc's implicit header and the headers that it includes are in `dir`.
pub(crate) fn has_stock_headers(dir: &Path) -> bool {
    dir.join("cuda_runtime.h").is_file() && dir.join("crt/host_config.h").is_file()
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
}
