//! `cargo xtask precompile`: the whole kernel matrix to cubins and a manifest.

mod check;
mod compile;
mod inputs;
mod matrix;
mod plan;
mod progress;
mod ptxas_report;
mod publish;
mod timeline;

use crate::toolchain::{self, Nvcc, ToolkitChoice};
use crate::workspace;
use anyhow::{Context as _, ensure};
use clap::Args;
use compile::{Compiled, Failure, Job};
use inputs::Inputs;
use matrix::{Artifact, Selection};
use peersum_artifact::{MANIFEST_FILE, Manifest, ManifestModule};
use plan::Plan;
use progress::{MessageFormat, Reporter, Status, Summary};
use publish::{LockedOutput, Method, OutputDir, Staging};
use std::collections::BTreeSet;
use std::fs;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use timeline::Span;

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

    /// Write {out}-timings.json and {out}-timings.html (a timeline of the jobs) beside the output
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

    /// Use nvcc's own implicit header instead of the short prelude: same code, twice the time. The way out if a new
    /// toolkit rejects the prelude
    #[arg(long)]
    stock_headers: bool,

    /// Read the kernels from another directory
    #[arg(long, value_name = "DIR", hide = true)]
    kernels: Option<PathBuf>,
}

const AFTER_HELP: &str = "\
Examples:
  cargo xtask precompile                                 the release set, into target/cubins
  cargo xtask precompile --arch native                   only for the GPUs of this machine
  cargo xtask precompile --arch sm_90 --dtype bf16 --world-size 2,4,8
  cargo xtask precompile --check                         is target/cubins complete and up to date?
  cargo xtask precompile --toolkit /usr/local/cuda-12.8  another toolkit, CUDA 12.4 to 13.x

Environment:
  NVCC, CUDA_HOME, CUDA_PATH   where to find nvcc; without any, the pinned CUDA 13.0 compiler is installed on first use
  PEERSUM_TOOLCHAIN_DIR        where that is installed [default: the user's cache directory]
  NVCC_CCBIN, CXX              the host C++ compiler that nvcc calls

Exit status: 0 if all is there, 1 if anything failed; the earlier output is then untouched.";

/// Runs the command.
///
/// # Errors
/// Anything that keeps the run from starting or from publishing. A module that does not compile is reported and makes
/// the exit code 1.
pub(crate) fn run(args: &PrecompileArgs) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
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
    ensure!(
        nvcc.stock_headers || !args.compiler.stock_headers,
        "{} has no cuda_runtime.h beside it, so --stock-headers cannot work with it",
        nvcc.program.display()
    );
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
    let present = plan::present_manifest(output.path(), |note| reporter.note(note))?;
    let plan = Plan::new(
        &artifacts,
        &inputs,
        &nvcc.compiler,
        present.as_ref(),
        output.path(),
    )?;
    let mut run = Run {
        nvcc: &nvcc,
        inputs: &inputs,
        output: &output,
        reporter: &mut reporter,
        started,
    };
    let (summary, spans, jobs) =
        run.carry_out(&plan, &locked, &present_files, present.as_ref(), args)?;
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

/// What a run works with.
struct Run<'a> {
    nvcc: &'a Nvcc,
    inputs: &'a Inputs,
    output: &'a OutputDir,
    reporter: &'a mut Reporter,
    started: Instant,
}

impl Run<'_> {
    /// Compiles what the plan asks for and publishes the whole, or nothing at all.
    fn carry_out(
        &mut self,
        plan: &Plan,
        locked: &LockedOutput<'_>,
        present_files: &BTreeSet<String>,
        present: Option<&Manifest>,
        args: &PrecompileArgs,
    ) -> anyhow::Result<(Summary, Vec<Span>, usize)> {
        for entry in &plan.reused {
            self.reporter.reused(&Artifact {
                module: entry.key,
                target: entry.target,
            });
        }
        let jobs = args
            .compiler
            .jobs
            .or_else(|| std::thread::available_parallelism().ok())
            .map_or(1, NonZeroUsize::get);
        let jobs = jobs.min(plan.jobs.len().max(1));
        let mut summary = Summary {
            reused: plan.reused.len(),
            out: self.output.path().display().to_string(),
            ..Summary::default()
        };

        if plan.jobs.is_empty() && self.is_published(plan, present_files, present) {
            self.finish(&mut summary, &[]);
            return Ok((summary, Vec::new(), jobs));
        }
        let staging = locked.stage()?;
        let (built, spans) = self.compile(plan, &staging, jobs)?;
        summary.failed = spans
            .iter()
            .filter(|(job, span)| span.status == Status::Failed && !job.is_empty())
            .map(|(job, _)| job.len())
            .sum();
        summary.built = built.len();
        let spans: Vec<Span> = spans.into_iter().map(|(_, span)| span).collect();
        if summary.failed == 0 {
            self.ensure_sources_unchanged(&plan.jobs)?;
            for entry in &plan.reused {
                staging.keep(self.output, &entry.file_name())?;
            }
            let manifest = self.manifest(plan.reused.iter().cloned().chain(built).collect());
            staging.write(MANIFEST_FILE, manifest.to_json_string().as_bytes())?;
            locked.publish(&staging, Method::Exchange)?;
        }
        drop(staging);
        self.finish(&mut summary, &spans);
        Ok((summary, spans, jobs))
    }

    /// Whether the output is already exactly what the plan, which compiles nothing, would publish.
    fn is_published(
        &self,
        plan: &Plan,
        present_files: &BTreeSet<String>,
        present: Option<&Manifest>,
    ) -> bool {
        let mut wanted: BTreeSet<String> =
            plan.reused.iter().map(ManifestModule::file_name).collect();
        wanted.insert(MANIFEST_FILE.to_owned());
        wanted == *present_files
            && present.is_some_and(|present| *present == self.manifest(plan.reused.clone()))
    }

    fn manifest(&self, mut modules: Vec<ManifestModule>) -> Manifest {
        modules.sort_by_key(ManifestModule::sort_key);
        Manifest {
            peersum_version: env!("CARGO_PKG_VERSION").to_owned(),
            toolkit: self.nvcc.compiler.clone(),
            flags: self.inputs.flags.clone(),
            sources: self.inputs.sources.clone(),
            modules,
        }
    }

    /// Runs every job, `jobs` at a time, whatever becomes of the others.
    fn compile(
        &mut self,
        plan: &Plan,
        staging: &Staging,
        jobs: usize,
    ) -> anyhow::Result<(Vec<ManifestModule>, Vec<(Vec<Artifact>, Span)>)> {
        if plan.jobs.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        self.reporter.begin(
            plan.jobs.len(),
            &format!(
                "compiling with {} ({}), {jobs} at a time",
                self.nvcc.program.display(),
                self.nvcc.compiler
            ),
        );
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(jobs)
            .build()
            .context("cannot start the compile threads")?;
        let results = Mutex::new((Vec::new(), Vec::new()));
        let next = AtomicUsize::new(0);
        let (reporter, started) = (&*self.reporter, self.started);
        // Not a parallel iterator: those halve the list, and the slow modules at its front are to start first.
        pool.broadcast(|worker| {
            while let Some(job) = plan.jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let begun = Instant::now();
                let outcome = job.run(self.nvcc, self.inputs, staging);
                let seconds = begun.elapsed().as_secs_f64();
                let artifacts = job.artifacts();
                report(reporter, &artifacts, seconds, &outcome);
                let span = Span {
                    name: job.label(),
                    status: if outcome.is_ok() {
                        Status::Built
                    } else {
                        Status::Failed
                    },
                    worker: worker.index(),
                    start_seconds: begun.duration_since(started).as_secs_f64(),
                    seconds,
                };
                let mut results = results
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                results
                    .0
                    .extend(outcome.into_iter().flat_map(|compiled| compiled.modules));
                results.1.push((artifacts, span));
            }
        });
        Ok(results
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Refuses to publish modules whose sources were edited while they were compiled: their keys would lie.
    fn ensure_sources_unchanged(&self, jobs: &[Job]) -> anyhow::Result<()> {
        let modules: Vec<_> = jobs.iter().map(Job::module).collect();
        let prelude_dir = self.inputs.prelude.as_ref().map(|prelude| &*prelude.dir);
        let now = Inputs::read(&self.inputs.kernels_dir, prelude_dir, &modules)?;
        let same = now.prelude == self.inputs.prelude
            && modules
                .iter()
                .all(|module| now.closure(module) == self.inputs.closure(module));
        ensure!(
            same,
            "the sources in `{}` changed while they were compiled; nothing was published, run it again",
            self.inputs.kernels_dir.display()
        );
        Ok(())
    }

    fn finish(&self, summary: &mut Summary, spans: &[Span]) {
        summary.slowest = spans
            .iter()
            .max_by(|a, b| a.seconds.total_cmp(&b.seconds))
            .map(|span| (span.name.clone(), span.seconds));
        summary.wall_seconds = self.started.elapsed().as_secs_f64();
        summary.cpu_seconds = cpu_seconds().unwrap_or(0.0);
    }
}

fn report(
    reporter: &Reporter,
    artifacts: &[Artifact],
    seconds: f64,
    outcome: &Result<Compiled, Failure>,
) {
    match outcome {
        Ok(compiled) => reporter.built(artifacts, seconds, &compiled.remarks),
        Err(failure) => reporter.failed(artifacts, failure),
    }
}

/// CPU time of this process and of the children it has waited for, in seconds.
fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // Field 2 is the program's name in parentheses and may hold spaces; utime, stime, cutime, cstime are 14 to 17.
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(4)
        .map(|field| field.parse::<u64>().unwrap_or(0))
        .sum();
    Some(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}
