//! The commands that are the harness's own (`bench load|call|allreduce|layer`, `tune`, `doctor`): builds the harness, precompiles what it
//! loads, and becomes it.

use crate::harness::{ask_device, become_harness, build_harness};
use crate::precompile;
use crate::toolchain;
use crate::workspace;
use clap::{Args, Parser};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The flags of the harness's own command, which it checks and documents (`--help`).
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
    if !wants_help && !args.has("--cubins") {
        let Some(cubins) = compile(bench, &harness)? else {
            return Ok(ExitCode::FAILURE);
        };
        command.arg("--cubins").arg(cubins);
    }
    if bench == Bench::Load && !wants_help && !args.has("--nvrtc") {
        let nvrtc = toolchain::resolve_nvrtc(&mut |note| eprintln!("note: {note}"))?;
        command.arg("--nvrtc").arg(nvrtc);
    }
    // Ranks that share a card need a hardware queue each.
    if std::env::var_os("CUDA_DEVICE_MAX_CONNECTIONS").is_none() {
        command.env("CUDA_DEVICE_MAX_CONNECTIONS", "32");
    }
    become_harness(command.args(&args.flags))
}

impl HarnessBenchArgs {
    fn has(&self, name: &str) -> bool {
        let is_it = |flag: &String| {
            flag.strip_prefix(name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        };
        self.flags.iter().any(is_it)
    }
}

/// Makes sure of the modules and returns their directory. `None` if some failed to compile, which was reported.
fn compile(bench: Bench, harness: &Path) -> anyhow::Result<Option<PathBuf>> {
    #[derive(Parser)]
    struct Precompile {
        #[command(flatten)]
        args: precompile::PrecompileArgs,
    }
    let target = workspace::root().join("target");
    let mut flags = vec!["precompile".to_owned()];
    let directory = if bench == Bench::Load {
        // What a user has: the whole release set, whose manifest takes the longest to read.
        target.join("cubins")
    } else {
        // Apart from the release set, which a run for fewer architectures would replace.
        let device = ask_device(harness, "auto")?;
        if device.kind != "cuda" {
            // Without a GPU the harness itself says what is missing.
            return Ok(Some(target.join("cubins")));
        }
        flags.extend(["--arch".to_owned(), device.architectures.join(",")]);
        target.join("bench/cubins")
    };
    flags.extend(["--out".to_owned(), directory.display().to_string()]);
    let precompile = Precompile::try_parse_from(&flags)?.args;
    let succeeded = precompile::run(&precompile)? == ExitCode::SUCCESS;
    Ok(succeeded.then_some(directory))
}
