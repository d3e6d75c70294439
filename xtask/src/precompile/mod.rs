//! `cargo xtask precompile`: the whole kernel matrix to cubins and a manifest.

mod check;
pub(crate) mod compile;
pub(crate) mod inputs;
mod matrix;
mod plan;
mod progress;
mod ptxas_report;
pub(crate) mod publish;
mod run;
pub(crate) mod stock_headers;
mod timeline;

use crate::toolchain::{self, ToolkitChoice};
use crate::workspace;
use anyhow::{Context as _, bail};
use clap::Args;
use inputs::Inputs;
use matrix::Selection;
use plan::Plan;
use progress::{MessageFormat, Reporter};
use publish::OutputDir;
use run::{Run, Started};
use std::fs;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Compile the kernel matrix to cubins and a manifest
///
/// Makes one file for each module ({push, pull} x {f16, bf16, f32} x world size 2 to 8) and architecture, and a
/// manifest.json that says what they are. What has not changed is not compiled again. The output is replaced as a whole,
/// so it is complete at any moment.
#[derive(Debug, Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct PrecompileArgs {
    #[command(flatten)]
    matrix: MatrixArgs,

    /// Where the files go; the directory's contents are replaced by exactly what is asked for [default: target/cubins]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    #[command(flatten)]
    compiler: CompilerArgs,

    /// Compile nothing; exit 0 if all that is asked for is there, whole and up to date, else list what is not and exit 1
    #[arg(long, conflicts_with_all = ["timings", "jobs", "toolkit", "stock_headers"])]
    check: bool,

    /// Write {out}-timings.json, {out}-timings.html (a timeline of the jobs) and its picture, .svg, beside the output
    #[arg(long)]
    timings: bool,

    /// Say nothing unless something fails
    #[arg(long, short)]
    quiet: bool,

    /// Text for people on stderr, or one JSON object a line on stdout
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "human")]
    message_format: MessageFormat,
}

/// The flags that select modules and targets.
#[derive(Debug, Clone, Args)]
pub(crate) struct MatrixArgs {
    /// What to compile for: sm_90 (a cubin), compute_80 (PTX), native (this machine's GPUs); a list
    /// [default: sm_80,sm_90,sm_100,sm_120,compute_80]
    #[arg(long, value_name = "LIST")]
    arch: Vec<String>,

    /// Element types: f16, bf16, f32; a list [default: all]
    #[arg(long, value_name = "LIST")]
    dtype: Vec<String>,

    /// World sizes: a number, a range such as 2..8 (8 belongs to it), or a list of these [default: 2..8]
    #[arg(long, value_name = "LIST")]
    world_size: Vec<String>,

    /// Kernel families: push, pull; a list [default: both]
    #[arg(long, value_name = "LIST")]
    family: Vec<String>,
}

/// The flags that select the compiler and how it runs.
#[derive(Debug, Clone, Args)]
pub(crate) struct CompilerArgs {
    /// Compiler processes at a time [default: the number of cores]
    #[arg(long, short, value_name = "N")]
    jobs: Option<NonZeroUsize>,

    /// The CUDA toolkit: `pinned`, or the path of a toolkit or an nvcc [default: $NVCC, $CUDA_HOME, $CUDA_PATH, PATH,
    /// /usr/local/cuda, else the pinned one]
    #[arg(long, value_name = "pinned|PATH")]
    toolkit: Option<ToolkitChoice>,

    /// Use nvcc's own implicit header instead of the short prelude: same code, twice the time. The
    /// way out if a new toolkit rejects the prelude. Cannot work where the toolkit's headers
    /// contradict those of the C library, as CUDA 13.0's do with glibc 2.42 or newer (rsqrt)
    #[arg(long)]
    stock_headers: bool,

    /// Read the kernels from another directory
    #[arg(long, value_name = "DIR", hide = true)]
    kernels: Option<PathBuf>,
}

impl CompilerArgs {
    /// How many compiler processes may run at a time.
    fn jobs(&self) -> usize {
        let given = self
            .jobs
            .or_else(|| std::thread::available_parallelism().ok());
        given.map_or(1, NonZeroUsize::get)
    }
}

const AFTER_HELP: &str = "\
Examples:
  cargo xtask precompile                                 the release set, into target/cubins
  cargo xtask precompile --arch native                   only for the GPUs of this machine
  cargo xtask precompile --arch sm_90 --dtype bf16 --world-size 2,4,8
  cargo xtask precompile --check                         is target/cubins complete and up to date?
  cargo xtask precompile --toolkit /usr/local/cuda-12.8  another toolkit, CUDA 12.4 to 13.x

Environment:
  NVCC, CUDA_HOME, CUDA_PATH   where to find nvcc (the latter two: absolute paths); without any, the pinned CUDA 13.0 compiler is
                               installed on first use
  PEERSUM_TOOLCHAIN_DIR        where that is installed [default: the user's cache directory]
  NVCC_CCBIN, CXX              the host C++ compiler that nvcc calls

Exit status: 0 if all is there, 1 if anything failed; the earlier output is then untouched.";

/// Runs the command.
///
/// # Errors
/// Anything that keeps the run from starting or from publishing. A module that does not compile is reported and makes
/// the exit code 1.
pub(crate) fn run(args: &PrecompileArgs) -> anyhow::Result<ExitCode> {
    let started = Started::now();
    let root = workspace::root();
    let selection = Selection::parse(
        &args.matrix.arch,
        &args.matrix.dtype,
        &args.matrix.world_size,
        &args.matrix.family,
    )?;
    let output = OutputDir::new(
        &args
            .out
            .clone()
            .unwrap_or_else(|| root.join("target/cubins")),
        &publish::MODULES,
    )?;
    let kernels_dir = args
        .compiler
        .kernels
        .clone()
        .unwrap_or_else(|| root.join("kernels"));
    let kernels_dir = fs::canonicalize(&kernels_dir).with_context(|| {
        format!(
            "cannot read the kernels' directory `{}`",
            kernels_dir.display()
        )
    })?;
    let prelude_dir = (!args.compiler.stock_headers).then(|| root.join("xtask/prelude"));
    let mut reporter = Reporter::new(args.message_format, args.quiet);

    if args.check {
        let artifacts = selection.artifacts(&selection.targets(None)?);
        let modules: Vec<_> = artifacts.iter().map(|artifact| artifact.module).collect();
        let inputs = Inputs::read(&kernels_dir, None, &modules)?;
        let problems = check::problems(output.path(), &artifacts, &inputs);
        reporter.checked(
            &output.path().display().to_string(),
            artifacts.len(),
            &problems,
        );
        return Ok(if problems.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }

    let nvcc = toolchain::resolve(
        &args.compiler.toolkit.clone().unwrap_or_default(),
        &mut |note| reporter.note(&note),
    )?;
    let targets = selection.targets(nvcc.program.parent())?;
    matrix::ensure_supported(
        &targets,
        &format!("{} ({})", nvcc.program.display(), nvcc.compiler),
        &nvcc.gpu_codes,
    )?;
    let artifacts = selection.artifacts(&targets);
    let modules: Vec<_> = artifacts.iter().map(|artifact| artifact.module).collect();
    let inputs = Inputs::read(&kernels_dir, prelude_dir.as_deref(), &modules)?;

    let locked = output.lock(|waiting| reporter.note(&waiting))?;
    let present_files = locked.file_names()?;
    let (present, files) = rayon::join(
        || plan::present_manifest(output.path(), |note| reporter.note(note)),
        || plan::file_states(output.path(), &present_files),
    );
    let present = present?;
    let plan = Plan::new(
        &artifacts,
        &inputs,
        &nvcc.compiler,
        present.as_ref(),
        &files,
    )?;
    if args.compiler.stock_headers && !plan.jobs.is_empty() {
        // Before the first module, whose error would be repeated for each.
        let fault = targets
            .first()
            .map(|&target| stock_headers::fault(&nvcc, target));
        if let Some(fault) = fault.transpose()?.flatten() {
            bail!("{fault}");
        }
    }
    let mut run = Run {
        nvcc: &nvcc,
        inputs: &inputs,
        output: &output,
        reporter: &mut reporter,
        started,
    };
    let jobs = args.compiler.jobs().min(plan.jobs.len().max(1));
    let (summary, spans) = run.carry_out(&plan, &locked, &present_files, present.as_ref(), jobs)?;
    if args.timings {
        let (json, html) = (
            output.beside("-timings.json"),
            output.beside("-timings.html"),
        );
        timeline::write(&json, &html, jobs, &summary, &spans)?;
        reporter.note(&format!("the timeline is in {}", html.display()));
    }
    reporter.summary(&summary);
    Ok(if summary.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
