//! `cargo xtask bench precompile`: the compile times of this project against the floor that the
//! compiler sets.
//!
//! The floor is the time of cicc and ptxas alone, called directly for the same modules with as many
//! jobs: with one process a module, nothing can be faster. `nvcc --dryrun` prints how nvcc calls
//! the two; the preprocessing before them is not timed. Floor and precompile run in turn, so that
//! other load on the machine affects both.

use crate::cargo::captured;
use crate::precompile::command::nvcc_command;
use crate::precompile::inputs::Inputs;
use crate::toolchain::{self, Nvcc, ToolkitChoice};
use crate::{workers, workspace};
use anyhow::{Context as _, ensure};
use clap::Args;
use fs_err as fs;
use peersum_artifact::{ModuleKey, Target};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How many runs with nothing to do are timed; each takes milliseconds.
const IDLE_RUNS: usize = 21;

/// Time precompile against cicc and ptxas called directly
///
/// Prints the time of a cold build of every module for sm_90 and that of the compiler's own
/// processes alone, of a cold build of the release set, and of a run with nothing to do.
#[derive(Debug, Args)]
pub(crate) struct BenchPrecompileArgs {
    /// Runs of the cold build for sm_90 and of the compiler's own processes; the median is printed
    #[arg(long, value_name = "N", default_value = "3")]
    runs: NonZeroUsize,
}

/// Runs the command.
///
/// # Errors
/// There is no compiler, or something that is timed fails.
pub(crate) fn run(args: &BenchPrecompileArgs) -> anyhow::Result<()> {
    let nvcc = toolchain::resolve(&ToolkitChoice::Pinned)?;
    let directory = tempfile::tempdir().context("cannot make a directory for the builds")?;
    println!(
        "{}, {} jobs, median of {}",
        nvcc.toolkit.compiler,
        workers::count(None),
        args.runs
    );

    let calls = compiler_calls(&nvcc, &directory.path().join("floor"))?;
    let mut floors = Vec::new();
    let mut colds = Vec::new();
    for round in 0..args.runs.get() {
        floors.push(floor(&calls)?);
        let out = directory.path().join(format!("cold-{round}"));
        colds.push(precompile(&nvcc, &["sm_90"], &out)?);
    }
    let (floor, cold) = (median(floors), median(colds));
    let show = |what: &str, time: Duration, remark: &str| {
        println!("{what:36} {:9.3} s   {remark}", time.as_secs_f64());
    };
    show("floor, sm_90: cicc and ptxas alone", floor, "");
    let of_floor = |time: Duration, goal: &str| {
        let ratio = time.as_secs_f64() / floor.as_secs_f64();
        format!("{ratio:.2} x the floor (goal: at most {goal})")
    };
    let modules = format!("cold, sm_90, {} modules", calls.len());
    show(&modules, cold, &of_floor(cold, "1.20"));

    let full = directory.path().join("full");
    let cold = precompile(&nvcc, &[], &full)?;
    show("cold, the release set", cold, &of_floor(cold, "4.40"));
    let idle: Result<Vec<_>, _> = (0..IDLE_RUNS)
        .map(|_| precompile(&nvcc, &[], &full))
        .collect();
    show(
        "nothing changed, the release set",
        median(idle?),
        "(goal: at most 0.030 s)",
    );
    Ok(())
}

/// What compiles one preprocessed module.
struct Calls {
    directory: PathBuf,
    environment: Vec<(String, String)>,
    /// cicc, then ptxas, each as a line of shell.
    commands: Vec<String>,
}

/// Asks nvcc how it calls the compiler for every module, and runs what precedes those calls.
fn compiler_calls(nvcc: &Nvcc, directory: &Path) -> anyhow::Result<Vec<Calls>> {
    let modules: Vec<ModuleKey> = ModuleKey::all().collect();
    let inputs = Inputs::read(&workspace::kernels(), Some(&workspace::prelude()), &modules)?;
    let target: Target = "sm_90".parse()?;
    let calls = modules.into_iter().map(|module| {
        let directory = directory.join(module.name());
        fs::create_dir_all(&directory)?;
        let mut command = nvcc_command(nvcc, &inputs, module, target, &directory)?;
        let output = command.arg("--dryrun").output();
        let output = output.context("cannot start nvcc")?;
        let printed = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "nvcc --dryrun: {printed}");
        Calls::parse(&printed, directory)
    });
    calls.collect()
}

/// Times cicc and ptxas for every module, as many at a time as there are cores.
fn floor(modules: &[Calls]) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let outcomes = workers::each(modules, 0, |_, calls| {
        let mut commands = calls.commands.iter();
        commands.try_for_each(|command| calls.shell(command))
    })?;
    let took = begun.elapsed();
    outcomes.into_iter().collect::<anyhow::Result<()>>()?;
    Ok(took)
}

impl Calls {
    /// Parses the output of `nvcc --dryrun`: first variables, then the commands in order.
    fn parse(dryrun: &str, directory: PathBuf) -> anyhow::Result<Self> {
        let mut calls = Self {
            directory,
            environment: Vec::new(),
            commands: Vec::new(),
        };
        let mut before_cicc = Vec::new();
        for line in dryrun.lines().filter_map(|line| line.strip_prefix("#$ ")) {
            let variable = line
                .split_once('=')
                .filter(|(name, _)| !name.contains([' ', '"', '/', '-']));
            let program = line.split_whitespace().next().unwrap_or_default();
            if let Some((name, value)) = variable {
                calls.environment.push((name.to_owned(), value.to_owned()));
            } else if ["cicc", "ptxas"]
                .iter()
                .any(|tool| program.trim_end_matches('"').ends_with(tool))
            {
                calls.commands.push(line.to_owned());
            } else if calls.commands.is_empty() {
                before_cicc.push(line);
            }
        }
        ensure!(
            calls.commands.len() == 2,
            "nvcc --dryrun does not show exactly one call of cicc and one of ptxas:\n{dryrun}"
        );
        before_cicc
            .iter()
            .try_for_each(|command| calls.shell(command))?;
        Ok(calls)
    }

    fn shell(&self, command: &str) -> anyhow::Result<()> {
        let environment = self.environment.iter().map(|(name, value)| (name, value));
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec {command}")]);
        captured(shell.current_dir(&self.directory).envs(environment))?;
        Ok(())
    }
}

/// Times `precompile` of this binary for `arch`, a list; empty is the release set.
fn precompile(nvcc: &Nvcc, arch: &[&str], out: &Path) -> anyhow::Result<Duration> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.args(["precompile", "--quiet"]);
    command.arg("--toolkit").arg(&nvcc.program);
    command.arg("--out").arg(out);
    command.args(arch.iter().map(|arch| format!("--arch={arch}")));
    let begun = Instant::now();
    captured(&mut command)?;
    Ok(begun.elapsed())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
