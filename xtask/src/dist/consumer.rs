//! A program that depends on the release's crates, built and run without access to anything else of
//! this project.

use super::unpacked::UnpackedCrate;
use crate::cargo::{captured, cargo};
use crate::toolchain::discovery::find_program;
use crate::workspace;
use anyhow::{Context as _, ensure};
use fs_err as fs;
use std::fmt::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The program, as a new user of the library would write it.
const MAIN: &str = include_str!("consumer/main.rs");
const MANIFEST: &str = include_str!("consumer/manifest.toml");

/// The tools that are on the PATH when the program is built, beside cargo and rustc. nvcc is not.
const TOOLS: [&str; 11] = [
    "cc", "c++", "gcc", "g++", "clang", "clang++", "ar", "as", "ld", "ld.lld", "lld",
];

/// Builds the program in `place` from `crates` alone, apart from third-party sources at the
/// versions of Cargo.lock. Then runs it, and it prints what it checked.
///
/// # Errors
/// Something is not available or does not build, or the program fails.
pub(super) fn build_and_run(crates: &[UnpackedCrate], place: &Path) -> anyhow::Result<()> {
    let sources = place.join("sources");
    vendor_dependencies(crates, &place.join("seed"), &sources)?;
    add_release(crates, &sources)?;
    eprintln!("vendored the sources of a program that depends on the crates");
    let home = place.join("home");
    fs::create_dir(&home)?;
    let executable = build(crates, place, &sources, &home)?;
    run(&executable, &home)
}

/// Builds the program and returns its path.
fn build(
    crates: &[UnpackedCrate],
    place: &Path,
    sources: &Path,
    home: &Path,
) -> anyhow::Result<PathBuf> {
    let project = place.join("consumer");
    write_project(&project, &manifest(crates)?)?;
    fs::create_dir(project.join(".cargo"))?;
    fs::write(
        project.join(".cargo/config.toml"),
        format!(
            "[source.crates-io]\nreplace-with = \"release\"\n\
             [source.release]\ndirectory = {}\n",
            toml_string(sources)?
        ),
    )?;
    let tools = place.join("tools");
    link_tools(&tools)?;
    eprintln!("building it offline, which takes a minute or two");
    let mut command = bare(&tools.join("cargo"), home);
    command
        .args(["build", "--offline"])
        .current_dir(&project)
        .env("PATH", &tools)
        .env("CARGO_HOME", home.join("cargo"))
        // It runs one small all-reduce: compiling takes longer than running.
        .env("CXXFLAGS", "-O0");
    captured(&mut command).context("the program cannot be built from the release alone")?;
    eprintln!("built it, without nvcc");
    Ok(project.join("target/debug/peersum-consumer"))
}

fn run(executable: &Path, home: &Path) -> anyhow::Result<()> {
    let mut command = bare(executable, home);
    command
        .env("PATH", "")
        .env("PEERSUM_JIT", "deny")
        // Ranks that share a GPU need a hardware queue each.
        .env("CUDA_DEVICE_MAX_CONNECTIONS", "32");
    // The former may name the driver's place in a container. If NVRTC is there too, the program
    // finds out whether it is loaded.
    keep_variables(&mut command, &["LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES"]);
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "the program ended with {status}");
    Ok(())
}

/// Fills `sources` with everything else that the program needs, at the versions of this checkout's
/// Cargo.lock.
///
/// The registry does not have the release's crates yet, so the manifest for this step patches them
/// in. The program itself has no such patch.
fn vendor_dependencies(
    crates: &[UnpackedCrate],
    seed: &Path,
    sources: &Path,
) -> anyhow::Result<()> {
    let mut manifest = manifest(crates)? + "\n[patch.crates-io]\n";
    for unpacked in crates {
        writeln!(
            manifest,
            "{} = {{ path = {} }}",
            unpacked.name,
            toml_string(&unpacked.path)?
        )?;
    }
    write_project(seed, &manifest)?;
    fs::copy(
        workspace::root().join("Cargo.lock"),
        seed.join("Cargo.lock"),
    )?;
    let vendor = |offline: Option<&str>| {
        let mut command = cargo(seed);
        command
            .args(["vendor", "--versioned-dirs", "--respect-source-config"])
            .args(offline)
            .arg(sources);
        captured(&mut command)
    };
    // The crates that only other targets need are usually not downloaded yet.
    vendor(Some("--offline"))
        .or_else(|_| vendor(None))
        .map(|_| ())
        .context(
            "cannot get the sources of the program's other dependencies: without a network, run \
             `cargo fetch` in this checkout where there is one, and copy cargo's home",
        )
}

/// Adds the release's crates as a registry would serve them.
fn add_release(crates: &[UnpackedCrate], sources: &Path) -> anyhow::Result<()> {
    for unpacked in crates {
        let place = sources.join(format!("{}-{}", unpacked.name, unpacked.version));
        fs::rename(&unpacked.path, &place)?;
        // A directory source must have the checksum; it was verified already.
        fs::write(
            place.join(".cargo-checksum.json"),
            format!("{{\"files\":{{}},\"package\":\"{}\"}}", unpacked.sha256),
        )?;
    }
    Ok(())
}

/// The program's manifest, for the release's version.
fn manifest(crates: &[UnpackedCrate]) -> anyhow::Result<String> {
    let library = crates
        .iter()
        .find(|unpacked| unpacked.name == "peersum")
        .context("the release has no crate peersum")?;
    Ok(MANIFEST.replace("{version}", &library.version))
}

fn write_project(directory: &Path, manifest: &str) -> anyhow::Result<()> {
    fs::create_dir_all(directory.join("src"))?;
    fs::write(directory.join("Cargo.toml"), manifest)?;
    fs::write(directory.join("src/main.rs"), MAIN)?;
    Ok(())
}

/// Fills a directory with links to the tools that this machine has, and to the cargo and the rustc
/// that run us.
fn link_tools(tools: &Path) -> anyhow::Result<()> {
    fs::create_dir(tools)?;
    let cargo = std::env::var_os("CARGO").map(PathBuf::from);
    let beside_cargo = |name: &str| {
        let path = cargo.as_ref()?.with_file_name(name);
        path.is_file().then_some(path)
    };
    for name in ["cargo", "rustc"] {
        let program = beside_cargo(name)
            .or_else(|| find_program(name.as_ref()))
            .with_context(|| format!("there is no {name} on PATH"))?;
        symlink(program, tools.join(name))?;
    }
    for name in TOOLS {
        if let Some(program) = find_program(name.as_ref()) {
            symlink(program, tools.join(name))?;
        }
    }
    Ok(())
}

/// A command that inherits no variable, and whose home is empty.
fn bare(program: &Path, home: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("HOME", home);
    keep_variables(&mut command, &["TMPDIR"]);
    command
}

fn keep_variables(command: &mut Command, names: &[&str]) {
    let set = |name: &&str| Some((name.to_string(), std::env::var_os(name)?));
    command.envs(names.iter().filter_map(set));
}

/// The path as a string of TOML, which JSON's strings are.
fn toml_string(path: &Path) -> anyhow::Result<String> {
    let text = path
        .to_str()
        .with_context(|| format!("`{}` is not UTF-8, as cargo wants it", path.display()))?;
    Ok(serde_json::to_string(text)?)
}
