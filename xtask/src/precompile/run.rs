//! One run: compile what the plan asks for, and publish everything or nothing.

use super::compile::Job;
use super::inputs::Inputs;
use super::matrix::Artifact;
use super::plan::{self, Plan};
use super::progress::{Reporter, Status, Summary};
use super::request::Request;
use super::stock_headers;
use super::timeline::{self, Span};
use crate::output::{LockedOutput, OutputDir, Staging};
use crate::toolchain::Nvcc;
use crate::workers;
use anyhow::{bail, ensure};
use fs_err as fs;
use peersum_artifact::{MANIFEST_FILE, Manifest, ManifestModule, Target};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// What a run works with.
pub(crate) struct Run<'a> {
    pub(crate) request: &'a Request,
    pub(crate) nvcc: &'a Nvcc,
    pub(crate) inputs: &'a Inputs,
    pub(crate) reporter: &'a Reporter,
    pub(crate) started: Instant,
}

impl Run<'_> {
    /// Compiles those of the artifacts that the output does not have yet, and publishes everything
    /// or nothing.
    ///
    /// # Errors
    /// The output cannot be read, staged or published; it then stays as it was.
    pub(crate) fn carry_out(
        &self,
        artifacts: &[Artifact],
        output: &OutputDir,
    ) -> anyhow::Result<Summary> {
        let locked = output.lock(|waiting| self.reporter.note(&waiting))?;
        let present_files = locked.file_names()?;
        let (present, files) = rayon_core::join(
            || plan::present_manifest(output.path(), |note| self.reporter.note(note)),
            || plan::file_states(output.path(), &present_files),
        );
        let (present, files) = (present?, files?);
        let compiler = &self.nvcc.toolkit.compiler;
        let plan = Plan::new(artifacts, self.inputs, compiler, present.as_ref(), &files)?;
        for entry in &plan.reused {
            let artifact = entry.sort_key();
            self.reporter.module(artifact, Status::Reused, None, None);
        }
        let mut spans = Vec::new();
        let mut summary = Summary {
            reused: plan.reused.len(),
            out: output.path().display().to_string(),
            ..Summary::default()
        };
        let jobs = workers::count(self.request.jobs).min(plan.jobs.len().max(1));
        if !plan.jobs.is_empty() || !self.is_published(&plan, &present_files, present) {
            let staging = locked.stage()?;
            let built;
            (built, spans) = self.compile(&plan, &staging, jobs)?;
            let failed = spans.iter().filter(|span| span.status == Status::Failed);
            summary.failed = failed.map(|span| span.files).sum();
            summary.built = built.len();
            if summary.failed == 0 {
                self.publish(&plan, built, &locked, &staging)?;
            }
        }
        summary.slowest = spans
            .iter()
            .max_by(|a, b| a.seconds.total_cmp(&b.seconds))
            .map(|span| (span.name.clone(), span.seconds));
        summary.wall_seconds = self.started.elapsed().as_secs_f64();
        if self.request.timings {
            let file = output.beside("", "-timings.svg");
            fs::write(&file, timeline::picture(jobs, &spans))?;
            let note = format!("the timeline is in {}", file.display());
            self.reporter.note(&note);
        }
        Ok(summary)
    }

    /// Puts what was built and what is reused in the place of the output.
    fn publish(
        &self,
        plan: &Plan,
        built: Vec<ManifestModule>,
        locked: &LockedOutput<'_>,
        staging: &Staging,
    ) -> anyhow::Result<()> {
        self.ensure_sources_unchanged(&plan.jobs)?;
        for entry in &plan.reused {
            staging.keep(locked.path(), &entry.file_name())?;
        }
        let manifest = self.manifest(plan.reused.iter().cloned().chain(built).collect());
        staging.write(MANIFEST_FILE, manifest.to_json_string().as_bytes())?;
        // Check again: publishing would delete a file that someone has added since.
        locked.file_names()?;
        locked.publish(staging)
    }

    /// Whether the output is already exactly what the plan, which compiles nothing, would publish.
    fn is_published(
        &self,
        plan: &Plan,
        present_files: &BTreeSet<String>,
        present: Option<Manifest>,
    ) -> bool {
        let mut wanted: BTreeSet<String> =
            plan.reused.iter().map(ManifestModule::file_name).collect();
        wanted.insert(MANIFEST_FILE.to_owned());
        wanted == *present_files && present == Some(self.manifest(plan.reused.clone()))
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
        let Some(first) = plan.jobs.first() else {
            return Ok((Vec::new(), Vec::new()));
        };
        if self.request.stock_headers {
            // Before the first module, whose error would be repeated for each.
            if let Some(fault) = stock_headers::fault(self.nvcc, Target::Ptx(first.ptx_arch))? {
                bail!("{fault}");
            }
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
                start_seconds: begun.duration_since(self.started).as_secs_f64(),
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
