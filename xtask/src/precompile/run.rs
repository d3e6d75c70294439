//! One run: compile what the plan asks for, and publish everything or nothing.

use super::compile::Job;
use super::inputs::Inputs;
use super::plan::Plan;
use super::progress::{Reporter, Status, Summary};
use super::timeline::Span;
use crate::output::{LockedOutput, Staging};
use crate::toolchain::Nvcc;
use crate::workers;
use anyhow::ensure;
use peersum_artifact::{MANIFEST_FILE, Manifest, ManifestModule};
use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// What a run works with.
pub(crate) struct Run<'a> {
    pub(crate) nvcc: &'a Nvcc,
    pub(crate) inputs: &'a Inputs,
    pub(crate) reporter: &'a Reporter,
    pub(crate) started: Started,
}

/// When a run began, and the CPU time that this process had used by then, for instance for a build.
#[derive(Clone, Copy)]
pub(crate) struct Started {
    at: Instant,
    cpu_seconds: f64,
}

impl Started {
    pub(crate) fn now() -> Started {
        Started {
            at: Instant::now(),
            cpu_seconds: cpu_seconds().unwrap_or(0.0),
        }
    }
}

impl Run<'_> {
    /// Compiles what the plan asks for and publishes everything, or nothing.
    ///
    /// # Errors
    /// The output cannot be staged or published; it then stays as it was.
    pub(crate) fn carry_out(
        &self,
        plan: &Plan,
        locked: &LockedOutput<'_>,
        present_files: &BTreeSet<String>,
        present: Option<&Manifest>,
        jobs: usize,
    ) -> anyhow::Result<(Summary, Vec<Span>)> {
        for entry in &plan.reused {
            let artifact = entry.sort_key();
            self.reporter.module(artifact, Status::Reused, None, None);
        }
        let mut spans = Vec::new();
        let mut summary = Summary {
            reused: plan.reused.len(),
            out: locked.path().display().to_string(),
            ..Summary::default()
        };
        if !plan.jobs.is_empty() || !self.is_published(plan, present_files, present) {
            let staging = locked.stage()?;
            let built;
            (built, spans) = self.compile(plan, &staging, jobs)?;
            let failed = spans.iter().filter(|span| span.status == Status::Failed);
            summary.failed = failed.map(|span| span.files).sum();
            summary.built = built.len();
            if summary.failed == 0 {
                self.ensure_sources_unchanged(&plan.jobs)?;
                for entry in &plan.reused {
                    staging.keep(locked.path(), &entry.file_name())?;
                }
                let manifest = self.manifest(plan.reused.iter().cloned().chain(built).collect());
                staging.write(MANIFEST_FILE, manifest.to_json_string().as_bytes())?;
                // Check again: publishing would delete a file that someone has added since.
                locked.file_names()?;
                locked.publish(&staging)?;
            }
        }
        summary.slowest = spans
            .iter()
            .max_by(|a, b| a.seconds.total_cmp(&b.seconds))
            .map(|span| (span.name.clone(), span.seconds));
        summary.wall_seconds = self.started.at.elapsed().as_secs_f64();
        summary.cpu_seconds = (cpu_seconds().unwrap_or(0.0) - self.started.cpu_seconds).max(0.0);
        Ok((summary, spans))
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
            toolkit: self.nvcc.toolkit.compiler.clone(),
            flags: self.inputs.flags.clone(),
            sources: self.inputs.sources.clone(),
            modules,
        }
    }

    /// Runs every job, `jobs` at a time, even if others fail.
    fn compile(
        &self,
        plan: &Plan,
        staging: &Staging,
        jobs: usize,
    ) -> anyhow::Result<(Vec<ManifestModule>, Vec<Span>)> {
        if plan.jobs.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        self.reporter.step(&format!(
            "compiling with {} ({}), {jobs} at a time",
            self.nvcc.program.display(),
            self.nvcc.toolkit.compiler
        ));
        let count = AtomicUsize::new(0);
        let ended = workers::each(&plan.jobs, jobs, |worker, job| {
            let begun = Instant::now();
            let outcome = job.run(self.nvcc, self.inputs, staging);
            let seconds = begun.elapsed().as_secs_f64();
            let ended = count.fetch_add(1, Ordering::Relaxed) + 1;
            let count = format!("{ended} of {}", plan.jobs.len());
            self.reporter.ended(job, &outcome, seconds, &count);
            let (status, modules) = match outcome {
                Ok(compiled) => (Status::Built, compiled.modules),
                Err(_) => (Status::Failed, Vec::new()),
            };
            let span = Span {
                name: job.label(),
                files: job.files.len(),
                status,
                worker,
                start_seconds: begun.duration_since(self.started.at).as_secs_f64(),
                seconds,
            };
            (modules, span)
        })?;
        let (modules, spans): (Vec<_>, Vec<_>) = ended.into_iter().unzip();
        Ok((modules.concat(), spans))
    }

    /// Refuses to publish modules whose sources were edited while they were compiled: their keys
    /// would be wrong.
    fn ensure_sources_unchanged(&self, jobs: &[Job]) -> anyhow::Result<()> {
        let modules: Vec<_> = jobs.iter().map(|job| job.module).collect();
        let prelude_dir = self.inputs.prelude.as_ref().map(|prelude| &*prelude.dir);
        let now = Inputs::read(&self.inputs.kernels_dir, prelude_dir, &modules)?;
        let same = now.prelude == self.inputs.prelude
            && modules
                .iter()
                .all(|module| now.closure(module) == self.inputs.closure(module));
        ensure!(
            same,
            "the sources in `{}` changed while they were compiled; nothing was published: run it \
             again",
            self.inputs.kernels_dir.display()
        );
        Ok(())
    }
}

/// CPU time of this process and of the children it has waited for, in seconds.
fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // Field 2 is the program's name in parentheses and may hold spaces; utime, stime, cutime,
    // cstime are 14 to 17.
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(4)
        .map(|field| field.parse::<u64>().unwrap_or(0))
        .sum();
    Some(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}
