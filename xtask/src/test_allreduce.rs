//! `cargo xtask test-allreduce`: builds the harness, precompiles what its ranks need, and becomes the harness.

use crate::harness::{ask_device, become_harness, build_harness};
use crate::harness_kernels;
use crate::precompile;
use crate::toolchain::{self, ToolkitChoice};
use crate::workspace;
use anyhow::{Context as _, bail};
use clap::{Args, Parser};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

/// The kernels that make and compare the grid's data.
const CHECK_SOURCE: &str = "crates/peersum-harness/src/grid/check.cu";

/// Test every configuration of the all-reduce on whatever this machine has
///
/// Precompiles the modules that are needed, once and in parallel, and then runs ranks that may compile nothing: every algorithm, type, size,
/// eager and in graphs, whose results must have the bits of the reference. Exit status 1 if any has not.
#[derive(Debug, Args)]
pub(crate) struct TestAllreduceArgs {
    /// World sizes: a number, a range such as 2..8 (8 belongs to it), or a list of these; 1 is the precompile step alone
    #[arg(long, value_name = "LIST", default_value = "2..8")]
    world_size: String,

    /// Element types: f16, bf16, f32; a list [default: all]
    #[arg(long, value_name = "LIST")]
    dtype: Option<String>,

    /// push_one_shot, push_two_shot, pull_one_shot, pull_two_shot (staged and symmetric), symmetric_one_shot,
    /// symmetric_two_shot; a list [default: all]
    #[arg(long, value_name = "LIST")]
    algo: Option<String>,

    /// One GPU a rank where there are enough, else the GPUs that there are, shared, else the emulator (auto)
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = ["auto", "cuda", "emulator"])]
    device: String,

    /// What a rank is
    #[arg(long, value_name = "KIND", default_value = "threads", value_parser = ["threads", "processes"])]
    ranks: String,

    /// Few small sizes, or every size up to 4194304 elements in 16 rounds
    #[arg(long, value_name = "GRID", default_value = "smoke", value_parser = ["smoke", "full"])]
    grid: String,

    /// How ranks are given each other's memory: file descriptors where the driver can, else legacy IPC (auto), or one of the two
    #[arg(long, value_name = "SHARING", default_value = "auto", value_parser = ["auto", "file-descriptor", "legacy-ipc"])]
    sharing: String,

    /// The seed of all data, sizes and delays [default: a random one, which every report names]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Only configurations with such a name: ws4/bf16/push_one_shot/1040/eager/aligned, ws4/*/pull_two_shot, adversarial
    #[arg(long, value_name = "CASE")]
    filter: Option<String>,

    /// Print the names of the configurations and run none
    #[arg(long)]
    list: bool,

    /// Write a report in JSON
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,

    /// How long a call may wait for a peer, in seconds [default: 20]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<f64>,

    /// Compile for a machine with such GPUs and no compiler, into target/test-allreduce, and run nothing: sm_90, or a list. There the
    /// harness's `grid` finds it with PEERSUM_CUBIN_DIR=.../cubins, PEERSUM_GRID_CHECK_DIR=... and PEERSUM_JIT=deny
    #[arg(long, value_name = "ARCH", value_delimiter = ',')]
    compile_for: Vec<String>,

    /// The CUDA toolkit, as for precompile
    #[arg(long, value_name = "pinned|PATH")]
    toolkit: Option<ToolkitChoice>,
}

/// Runs the command. Returns only if the ranks were not started.
///
/// # Errors
/// A step before that fails, or the flags mean nothing.
pub(crate) fn run(args: &TestAllreduceArgs) -> anyhow::Result<ExitCode> {
    let harness = build_harness()?;
    if args.list {
        return become_harness(Command::new(&harness).args(args.harness_flags()));
    }
    let directory = workspace::root().join("target/test-allreduce");
    if !args.compile_for.is_empty() {
        let compiled = compile(args, &args.compile_for, &directory)?;
        println!("{}", directory.display());
        return Ok(if compiled {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    let device = ask_device(&harness, &args.device)?;
    let mut command = Command::new(&harness);
    command.args(args.harness_flags());
    if device.kind == "cuda" {
        let started = Instant::now();
        let compiled = compile(args, &device.architectures, &directory)?;
        if !compiled {
            return Ok(ExitCode::FAILURE);
        }
        let seconds = started.elapsed().as_secs_f64();
        eprintln!("precompiled in {seconds:.1} s");
        command
            .args(["--precompile-seconds", &format!("{seconds:.3}")])
            .env("PEERSUM_CUBIN_DIR", directory.join("cubins"))
            .env("PEERSUM_GRID_CHECK_DIR", &directory)
            .env("PEERSUM_JIT", "deny")
            // Ranks that share a card need a hardware queue each.
            .env("CUDA_DEVICE_MAX_CONNECTIONS", "32");
    }
    if args.world_size == "1" {
        eprintln!("world size 1 launches nothing: that was all");
        return Ok(ExitCode::SUCCESS);
    }
    become_harness(&mut command)
}

impl TestAllreduceArgs {
    fn harness_flags(&self) -> Vec<String> {
        let mut flags = vec!["grid".to_owned()];
        let mut flag = |name: &str, value: Option<String>| {
            flags.extend(
                value
                    .into_iter()
                    .flat_map(|value| [format!("--{name}"), value]),
            );
        };
        flag("world-size", Some(self.world_size.clone()));
        flag("dtype", self.dtype.clone());
        flag("algo", self.algo.clone());
        flag("device", Some(self.device.clone()));
        flag("ranks", Some(self.ranks.clone()));
        flag("grid", Some(self.grid.clone()));
        flag("sharing", Some(self.sharing.clone()));
        flag("seed", self.seed.map(|seed| seed.to_string()));
        flag("filter", self.filter.clone());
        flag("timeout", self.timeout.map(|seconds| seconds.to_string()));
        flag(
            "report",
            self.report.as_ref().map(|path| path.display().to_string()),
        );
        if self.list {
            flags.push("--list".to_owned());
        }
        flags
    }
}

/// Compiles the modules of the run and the grid's own kernels. `false` if modules failed, which were reported.
fn compile(
    args: &TestAllreduceArgs,
    architectures: &[String],
    directory: &Path,
) -> anyhow::Result<bool> {
    #[derive(Parser)]
    struct Precompile {
        #[command(flatten)]
        args: precompile::PrecompileArgs,
    }
    let mut flags = vec![
        "precompile".to_owned(),
        "--arch".to_owned(),
        architectures.join(","),
    ];
    let mut flag = |name: &str, value: &str| flags.extend([format!("--{name}"), value.to_owned()]);
    flag("out", &directory.join("cubins").display().to_string());
    // A group loads the modules of every type, so the types are not narrowed; and world size 1 has none.
    let world_sizes: Vec<&str> = args
        .world_size
        .split(',')
        .filter(|item| *item != "1")
        .collect();
    if !world_sizes.is_empty() {
        flag("world-size", &world_sizes.join(",").replace("1..", "2.."));
    }
    let toolkit = args.toolkit.clone().unwrap_or_default();
    let nvcc = toolchain::resolve(&toolkit, &mut |note| eprintln!("note: {note}"))?;
    flag("toolkit", &nvcc.program.display().to_string());
    let precompile = Precompile::try_parse_from(&flags)?.args;
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make `{}`", directory.display()))?;
    let (modules, checks) = std::thread::scope(|scope| {
        let checks = scope.spawn(|| {
            architectures.iter().try_for_each(|architecture| {
                harness_kernels::compile(&nvcc, CHECK_SOURCE, architecture, directory)
            })
        });
        let modules = precompile::run(&precompile);
        (modules, checks.join())
    });
    checks.unwrap_or_else(|_| bail!("compiling the grid's own kernels panicked"))?;
    Ok(modules? == ExitCode::SUCCESS)
}
