//! `cargo xtask precompile`: the whole kernel matrix to cubins and a manifest.

mod check;
pub(crate) mod command;
mod compile;
pub(crate) mod inputs;
mod matrix;
mod native;
mod plan;
mod progress;
mod ptx_entries;
mod request;
mod run;
pub(crate) mod stock_headers;
mod timeline;

pub(crate) use command::{escaped, quoted};
pub(crate) use matrix::{ArchChoice, WorldSizes};
pub(crate) use request::Request;

use crate::output::{Contents, OutputDir};
use crate::toolchain::{self, Nvcc};
use crate::{workers, workspace};
use anyhow::bail;
use fs_err as fs;
use inputs::Inputs;
use peersum_artifact::{MANIFEST_FILE, ModuleKey};
use plan::Plan;
use progress::Reporter;
use run::{Run, Started};
use std::path::PathBuf;

/// Cubins, PTX and their manifest.
static MODULES: Contents = Contents {
    command: "precompile",
    is_name: is_output_name,
    last: MANIFEST_FILE,
    elsewhere: "give precompile another place with --out",
};

/// Whether precompile itself could have written a file of this name into its output.
fn is_output_name(name: &str) -> bool {
    name == MANIFEST_FILE
        || name.starts_with("peersum_")
            && ((name.contains(".sm_") && name.ends_with(".cubin"))
                || (name.contains(".compute_") && name.ends_with(".ptx")))
}

/// Carries out the request. `false` if something failed, which was reported.
///
/// # Errors
/// The run cannot start, or cannot publish its result.
pub(crate) fn run(request: &Request) -> anyhow::Result<bool> {
    let started = Started::now();
    let modules = request.modules()?;
    let out = request.out.clone().unwrap_or_else(workspace::cubins);
    let output = OutputDir::new(&out, &MODULES)?;
    let kernels = request.kernels.clone().unwrap_or_else(workspace::kernels);
    let kernels = fs::canonicalize(&kernels)?;
    let reporter = Reporter::new(request.message_format, request.quiet);
    if request.check {
        return check(request, &modules, &kernels, &output, &reporter);
    }
    let toolkit = request.toolkit.clone().unwrap_or_default();
    let nvcc = toolchain::resolve(&toolkit, &mut |note| match request.quiet {
        // Shown even with --quiet: it may be the licence of what is installed.
        true => eprintln!("note: {note}"),
        false => reporter.note(&note),
    })?;
    compile(
        request, &modules, &nvcc, &kernels, &output, &reporter, started,
    )
}

/// `--check`: whether the output is what the request asks for, without a compiler.
fn check(
    request: &Request,
    modules: &[ModuleKey],
    kernels: &std::path::Path,
    output: &OutputDir,
    reporter: &Reporter,
) -> anyhow::Result<bool> {
    let artifacts = matrix::artifacts(modules, &matrix::targets(&request.arch)?);
    let inputs = Inputs::read(kernels, None, modules)?;
    let problems = check::problems(output.path(), &artifacts, &inputs)?;
    reporter.checked(
        &output.path().display().to_string(),
        artifacts.len(),
        &problems,
    );
    Ok(problems.is_empty())
}

fn compile(
    request: &Request,
    modules: &[ModuleKey],
    nvcc: &Nvcc,
    kernels: &std::path::Path,
    output: &OutputDir,
    reporter: &Reporter,
    started: Started,
) -> anyhow::Result<bool> {
    let targets = matrix::targets(&request.arch)?;
    let compiler = format!("{} ({})", nvcc.program.display(), nvcc.toolkit.compiler);
    matrix::ensure_supported(&targets, &compiler, &nvcc.toolkit.gpu_codes)?;
    let artifacts = matrix::artifacts(modules, &targets);
    let prelude: Option<PathBuf> = (!request.stock_headers).then(workspace::prelude);
    let mut inputs = Inputs::read(kernels, prelude.as_deref(), modules)?;
    inputs.allow_spills = request.allow_spills;

    let locked = output.lock(|waiting| reporter.note(&waiting))?;
    let present_files = locked.file_names()?;
    let (present, files) = rayon_core::join(
        || plan::present_manifest(output.path(), |note| reporter.note(note)),
        || plan::file_states(output.path(), &present_files),
    );
    let (present, files) = (present?, files?);
    let plan = Plan::new(
        &artifacts,
        &inputs,
        &nvcc.toolkit.compiler,
        present.as_ref(),
        &files,
    )?;
    if request.stock_headers && !plan.jobs.is_empty() {
        // Before the first module, whose error would be repeated for each.
        let fault = targets
            .first()
            .map(|&target| stock_headers::fault(nvcc, target));
        if let Some(fault) = fault.transpose()?.flatten() {
            bail!("{fault}");
        }
    }
    let jobs = workers::count(request.jobs).min(plan.jobs.len().max(1));
    let run = Run {
        nvcc,
        inputs: &inputs,
        reporter,
        started,
    };
    let (summary, spans) = run.carry_out(&plan, &locked, &present_files, present.as_ref(), jobs)?;
    if request.timings {
        let picture = output.beside("-timings.svg");
        let json = output.beside("-timings.json");
        timeline::write(&json, &picture, jobs, &summary, &spans)?;
        reporter.note(&format!("the timeline is in {}", picture.display()));
    }
    reporter.summary(&summary);
    Ok(summary.failed == 0)
}
