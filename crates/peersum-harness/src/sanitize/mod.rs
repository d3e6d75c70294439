//! The kernels under compute-sanitizer: a reduced set of calls in which no tool may find an error,
//! and for each tool a planted error that it must find. Without the planted error, silence would
//! prove nothing.

mod bounded;
mod calls;
mod group;
mod group_run;
mod moves;
mod planted;
mod rows;
mod tool;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::machine::CONNECTIONS_VARIABLE;
use crate::names::name_of;
use crate::operation::Operation;
use bounded::Ended;
use tool::Tool;

pub(crate) use group::GroupArgs;
pub(crate) use group_run::run as run_group;
pub(crate) use planted::{PlantedArgs, run as run_planted};

/// The exit status of compute-sanitizer if it found errors. Neither it nor the harness uses this
/// status for anything else.
const FOUND: i32 = 86;

/// How many lines are shown from the end of a failed run's output.
const SHOWN_LINES: usize = 40;

/// The flags of `sanitize`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct SanitizeArgs {
    /// The tools to run.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "memcheck,initcheck,racecheck,synccheck"
    )]
    tool: Vec<Tool>,
    /// compute-sanitizer itself [default: the one on PATH, else
    /// /usr/local/cuda/bin/compute-sanitizer]
    #[arg(long, value_name = "PATH")]
    compute_sanitizer: Option<PathBuf>,
    /// The directory of the modules, as `cargo xtask precompile` writes it: those of the build
    /// `one-launch`, or with `--ranks processes` the shipped ones.
    #[arg(long, value_name = "DIR")]
    cubins: PathBuf,
    /// World sizes.
    #[arg(long, value_name = "LIST", default_value = "2,3")]
    world_size: String,
    /// What a rank is.
    #[arg(long, value_enum, default_value = "rows")]
    ranks: Ranks,
    /// The seed of the data.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Maximum time of one run, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    limit: u64,
}

/// What a rank is. The tools let only one kernel of a process run at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Ranks {
    /// A row of one grid: one launch is a call of all ranks.
    Rows,
    /// A process with a communicator, in the test grid. initcheck does not see what other processes
    /// write.
    Processes,
}

/// What a tool runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Planted,
    /// The calls of a group that is one grid.
    Group,
    /// The test grid of an operation.
    Grid(Operation),
}

impl Subject {
    fn name(self) -> String {
        match self {
            Subject::Planted => "planted".to_owned(),
            Subject::Group => "group".to_owned(),
            Subject::Grid(operation) => name_of(&operation),
        }
    }
}

impl Ranks {
    fn subjects(self) -> Vec<Subject> {
        let grids = Operation::value_variants().iter().copied();
        let calls: Vec<Subject> = match self {
            Ranks::Rows => vec![Subject::Group],
            Ranks::Processes => grids.map(Subject::Grid).collect(),
        };
        [vec![Subject::Planted], calls].concat()
    }
}

/// Runs each tool on its planted error and on the grid. Returns whether each tool found its planted
/// error and nothing in the grid.
pub(crate) fn run(args: &SanitizeArgs) -> Result<bool> {
    ensure!(args.limit > 0, "--limit 0 leaves no time for anything");
    let began = Instant::now();
    let mut failed = 0;
    let subjects = args.ranks.subjects();
    println!(
        "{:<10} {:<14} {:>7} {:>8}  result",
        "tool", "run", "errors", "seconds"
    );
    for &tool in &args.tool {
        for &subject in &subjects {
            let directory = tempfile::tempdir().context("making a directory for reports")?;
            let report_path = directory.path().join("report");
            let mut command = command(args, tool, subject, &report_path)?;
            let ended = bounded::run(
                &mut command,
                directory.path(),
                Duration::from_secs(args.limit),
            )
            .context(
                "compute-sanitizer comes with the CUDA toolkit, and by itself as the package \
                 nvidia-cuda-sanitizer-api of PyPI (13.4.92 is whole; 13.0.85 to 13.3.75 lack the \
                 program that starts others); --compute-sanitizer names one",
            )?;
            // Without a report file the report is empty.
            let report = fs::read_to_string(&report_path).unwrap_or_default();
            let errors = tool.errors(&report);
            let verdict = verdict(tool, subject, &ended, errors, &report, args.limit);
            println!(
                "{:<10} {:<14} {:>7} {:>8.1}  {}",
                name_of(&tool),
                subject.name(),
                errors.map_or("-".to_owned(), |errors| errors.to_string()),
                ended.took.as_secs_f64(),
                verdict.as_deref().unwrap_or_else(String::as_str)
            );
            if verdict.is_err() {
                failed += 1;
                println!("  {command:?}");
                show("its report", &report);
                show("what was printed", &ended.output);
            }
        }
    }
    println!(
        "{} of {} runs passed, in {:.1} s",
        args.tool.len() * subjects.len() - failed,
        args.tool.len() * subjects.len(),
        began.elapsed().as_secs_f64()
    );
    Ok(failed == 0)
}

/// The result of a run: why it passed, or why it failed.
fn verdict(
    tool: Tool,
    subject: Subject,
    ended: &Ended,
    errors: Option<u64>,
    report: &str,
    limit_seconds: u64,
) -> Result<&'static str, String> {
    let Some(status) = ended.status else {
        return Err(format!("killed: it did not end within {limit_seconds} s"));
    };
    let Some(errors) = errors else {
        return Err(format!(
            "it ended with {status} and no summary, so nothing was checked"
        ));
    };
    let is_planted = subject == Subject::Planted;
    match (is_planted, errors, status.code()) {
        (false, 0, Some(0)) => Ok("nothing found"),
        (false, 0, _) => Err(format!("nothing found, but the grid ended with {status}")),
        (false, ..) => Err("errors in the kernels".to_owned()),
        (true, 0, _) => Err("the planted error was not found".to_owned()),
        (true, _, Some(FOUND)) if report.contains(tool.planted_kernel()) => {
            Ok("the planted error was found")
        }
        (true, _, Some(FOUND)) => {
            Err("errors were found, but none in the kernel that has one".to_owned())
        }
        (true, ..) => Err(format!(
            "it ended with {status} and not with {FOUND}, the status for errors"
        )),
    }
}

fn command(args: &SanitizeArgs, tool: Tool, subject: Subject, report: &Path) -> Result<Command> {
    let harness = std::env::current_exe().context("finding this program")?;
    let named = args.compute_sanitizer.clone();
    let mut command = Command::new(named.unwrap_or_else(|| "compute-sanitizer".into()));
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .env("PATH", format!("{path}:/usr/local/cuda/bin"))
        .args(["--tool", &name_of(&tool)])
        .args(["--error-exitcode", &FOUND.to_string()])
        .args(["--target-processes", "all"])
        .args(["--print-limit", "10"])
        .args(tool.flags())
        .arg("--log-file")
        .arg(report)
        .arg(harness)
        // Ranks that share a GPU need a hardware queue each. Set here, since the tool may create a
        // context before the grid does.
        .env(CONNECTIONS_VARIABLE, "32")
        // Otherwise the tool would rewrite a kernel at its first launch, while the peers' kernels
        // wait.
        .env("CUDA_MODULE_LOADING", "EAGER");
    match subject {
        Subject::Planted => {
            command.args(["sanitize-planted", "--tool", &name_of(&tool)]);
        }
        Subject::Group => {
            command
                .arg("sanitize-group")
                .arg("--cubins")
                .arg(&args.cubins)
                .args(["--world-size", &args.world_size])
                .args(["--seed", &args.seed.to_string()]);
        }
        Subject::Grid(operation) => {
            command
                .args(["grid", "--device", "cuda", "--grid", "sanitizer"])
                .args(["--op", &name_of(&operation)])
                .args(["--dtype", "bf16", "--world-size", &args.world_size])
                .args(["--ranks", "processes"])
                .args(["--seed", &args.seed.to_string()])
                // Less than the limit of the run, so that the grid can report a rank that hangs.
                .args(["--timeout", &(args.limit / 3).max(1).to_string()])
                .env("PEERSUM_CUBIN_DIR", &args.cubins);
        }
    }
    Ok(command)
}

fn show(what: &str, text: &str) {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    if lines.is_empty() {
        return;
    }
    println!("  {what}:");
    if lines.len() > SHOWN_LINES {
        println!("    (the last {SHOWN_LINES} of {} lines)", lines.len());
    }
    for line in &lines[lines.len().saturating_sub(SHOWN_LINES)..] {
        println!("    {line}");
    }
}
