//! The commands that are the harness's own (`bench load|call|allreduce|layer`, `tune`, `doctor`): builds the harness, precompiles what it
//! loads, and becomes it.

use crate::harness::{ask_device, become_harness, build_harness};
use crate::harness_kernels;
use crate::precompile;
use crate::toolchain;
use crate::workspace;
use anyhow::{Context as _, ensure};
use clap::{Args, Parser};
use peersum_artifact::MANIFEST_FILE;
use std::path::Path;
use std::process::{Command, ExitCode};

/// The kernels that measure what the machine allows.
const LIMITS_SOURCE: &str = "crates/peersum-harness/src/bench/limits.cu";

/// The flags of the harness's own command, which it checks and documents (`--help`).
///
/// Beside them `--compile-for sm_90,...`: compile what the command loads, for a machine with such GPUs and no compiler, print the harness's
/// flags for it, and run nothing.
#[derive(Debug, Args)]
pub(crate) struct HarnessBenchArgs {
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "FLAGS"
    )]
    flags: Vec<String>,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bench {
    Load,
    Call,
    Allreduce,
    Layer,
    Tune,
    Doctor,
}

/// Runs the command. Returns only if the harness was not started.
///
/// # Errors
/// It does not build, or the modules do not.
pub(crate) fn run(bench: Bench, args: &HarnessBenchArgs) -> anyhow::Result<ExitCode> {
    let harness = build_harness()?;
    let mut command = Command::new(&harness);
    command.arg(match bench {
        Bench::Load => "bench-load",
        Bench::Call => "bench-call",
        Bench::Allreduce => "bench-allreduce",
        Bench::Layer => "bench-layer",
        Bench::Tune => "tune",
        Bench::Doctor => "doctor",
    });
    let wants_help = args.has("--help") || args.has("-h");
    if bench == Bench::Doctor {
        // It says what is there, in the environment that there is, and must work where nothing can be compiled.
        let cubins = workspace::root().join("target/cubins");
        let named = args.has("--cubins") || std::env::var_os("PEERSUM_CUBIN_DIR").is_some();
        if !wants_help && !named && cubins.join(MANIFEST_FILE).is_file() {
            command.arg("--cubins").arg(cubins);
        }
        return become_harness(command.args(&args.flags));
    }
    let mut flags = args.flags.clone();
    if !wants_help && !args.measures_nothing() {
        let compile_for = take_value(&mut flags, "--compile-for")?;
        let prepared = prepare(bench, &harness, &mut flags, compile_for.as_deref())?;
        if !prepared {
            return Ok(ExitCode::FAILURE);
        }
        if compile_for.is_some() {
            println!("{}", flags.join(" "));
            return Ok(ExitCode::SUCCESS);
        }
    }
    if bench == Bench::Load && !wants_help && !args.has("--nvrtc") {
        let nvrtc = toolchain::resolve_nvrtc(&mut |note| eprintln!("note: {note}"))?;
        command.arg("--nvrtc").arg(nvrtc);
    }
    // Ranks that share a card need a hardware queue each.
    if std::env::var_os("CUDA_DEVICE_MAX_CONNECTIONS").is_none() {
        command.env("CUDA_DEVICE_MAX_CONNECTIONS", "32");
    }
    become_harness(command.args(&flags))
}

impl HarnessBenchArgs {
    fn has(&self, name: &str) -> bool {
        let is_it = |flag: &String| {
            flag.strip_prefix(name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        };
        self.flags.iter().any(is_it)
    }

    /// Whether the harness reads a report, or runs on the emulator: there is nothing to compile.
    fn measures_nothing(&self) -> bool {
        let emulated = self
            .flags
            .windows(2)
            .any(|pair| pair == ["--device", "emulator"]);
        emulated
            || self.has("--from-json")
            || self.flags.iter().any(|flag| flag == "--device=emulator")
    }
}

/// Takes a flag with its value out of the flags.
fn take_value(flags: &mut Vec<String>, name: &str) -> anyhow::Result<Option<String>> {
    let Some(at) = flags
        .iter()
        .position(|flag| flag.split('=').next() == Some(name))
    else {
        return Ok(None);
    };
    let flag = flags.remove(at);
    if let Some((_, value)) = flag.split_once('=') {
        return Ok(Some(value.to_owned()));
    }
    ensure!(at < flags.len(), "{name} wants a value, for instance sm_90");
    Ok(Some(flags.remove(at)))
}

/// Whether a flag that may do without a value is given without one.
fn is_bare(flags: &[String], name: &str) -> bool {
    let at = flags.iter().position(|flag| flag == name);
    at.is_some_and(|at| flags.get(at + 1).is_none_or(|next| next.starts_with('-')))
}

/// Compiles what the command loads, and adds the flags that say where it is. `false` if some modules failed, which was reported.
fn prepare(
    bench: Bench,
    harness: &Path,
    flags: &mut Vec<String>,
    compile_for: Option<&str>,
) -> anyhow::Result<bool> {
    let target = workspace::root().join("target");
    let has = |flags: &[String], name: &str| {
        flags
            .iter()
            .any(|flag| flag.split('=').next() == Some(name))
    };
    let add = |flags: &mut Vec<String>, name: &str, directory: &Path| {
        flags.push(format!("{name}={}", directory.display()));
    };
    if bench == Bench::Load {
        if has(flags, "--cubins") {
            return Ok(true);
        }
        // What a user has: the whole release set, whose manifest takes the longest to read.
        let cubins = target.join("cubins");
        add(flags, "--cubins", &cubins);
        return compile(&[], &cubins);
    }
    let architectures = match compile_for {
        Some(architectures) => architectures.to_owned(),
        None => {
            let device = ask_device(harness, "auto")?;
            if device.kind != "cuda" {
                // Without a GPU the harness itself says what is missing.
                return Ok(true);
            }
            device.architectures.join(",")
        }
    };
    let arch = ["--arch", architectures.as_str()];
    if !has(flags, "--cubins") {
        // Apart from the release set, which a run for fewer architectures would replace.
        let cubins = target.join("bench/cubins");
        add(flags, "--cubins", &cubins);
        if !compile(&arch, &cubins)? {
            return Ok(false);
        }
    }
    if bench != Bench::Allreduce {
        return Ok(true);
    }
    for build in ["unsafe-baseline", "strict-order"] {
        let flag = format!("--{build}");
        if !is_bare(flags, &flag) {
            continue;
        }
        flags.retain(|other| *other != flag);
        let (sources, cubins) = (
            target.join(format!("bench/kernels-{build}")),
            target.join(format!("bench/cubins-{build}")),
        );
        write_sources(harness, build, &sources)?;
        add(flags, &flag, &cubins);
        let kernels = sources.display().to_string();
        let with_sources = [arch[0], arch[1], "--kernels", &kernels];
        if !compile(&with_sources, &cubins)? {
            return Ok(false);
        }
    }
    if !has(flags, "--limits") {
        let directory = target.join("bench/limits");
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make `{}`", directory.display()))?;
        let choice = toolchain::ToolkitChoice::default();
        let nvcc = toolchain::resolve(&choice, &mut |note| eprintln!("note: {note}"))?;
        for architecture in architectures.split(',') {
            harness_kernels::compile(&nvcc, LIMITS_SOURCE, architecture, &directory)?;
        }
        add(flags, "--limits", &directory);
    }
    Ok(true)
}

/// The sources of a build that is measured against the shipped one, as the harness has them.
fn write_sources(harness: &Path, build: &str, directory: &Path) -> anyhow::Result<()> {
    let status = Command::new(harness)
        .args(["kernel-sources", build])
        .arg(directory)
        .status()
        .with_context(|| format!("cannot start `{}`", harness.display()))?;
    ensure!(
        status.success(),
        "the sources of the {build} build cannot be written"
    );
    Ok(())
}

/// Runs `precompile` with these flags into a directory. `false` if modules failed, which was reported.
fn compile(flags: &[&str], directory: &Path) -> anyhow::Result<bool> {
    #[derive(Parser)]
    struct Precompile {
        #[command(flatten)]
        args: precompile::PrecompileArgs,
    }
    let out = directory.display().to_string();
    let all = [&["precompile"], flags, &["--out", out.as_str()]].concat();
    let precompile = Precompile::try_parse_from(all)?.args;
    Ok(precompile::run(&precompile)? == ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_flag_for_this_program_is_taken_out_with_its_value() {
        let mut given = flags("--dtype bf16 --compile-for sm_90,sm_100 --replays 3");
        let taken = take_value(&mut given, "--compile-for").unwrap();
        assert_eq!(taken.as_deref(), Some("sm_90,sm_100"));
        assert_eq!(given, flags("--dtype bf16 --replays 3"));
        assert_eq!(take_value(&mut given, "--compile-for").unwrap(), None);
        let joined = take_value(&mut flags("--compile-for=sm_80"), "--compile-for").unwrap();
        assert_eq!(joined.as_deref(), Some("sm_80"));
        assert!(take_value(&mut flags("--compile-for"), "--compile-for").is_err());
    }

    #[test]
    fn a_build_is_compiled_here_only_where_no_directory_is_given() {
        assert!(is_bare(&flags("--unsafe-baseline"), "--unsafe-baseline"));
        assert!(is_bare(
            &flags("--unsafe-baseline --pdl on"),
            "--unsafe-baseline"
        ));
        assert!(!is_bare(
            &flags("--unsafe-baseline somewhere"),
            "--unsafe-baseline"
        ));
        assert!(!is_bare(
            &flags("--unsafe-baseline=somewhere"),
            "--unsafe-baseline"
        ));
        assert!(!is_bare(&flags("--pdl on"), "--unsafe-baseline"));
    }

    #[test]
    fn reports_and_emulated_ranks_need_no_compiler() {
        let nothing = |text| HarnessBenchArgs { flags: flags(text) }.measures_nothing();
        assert!(nothing("--from-json report.json --html page.html"));
        assert!(nothing("--device emulator") && nothing("--device=emulator"));
        assert!(!nothing("--device cuda"));
    }
}
