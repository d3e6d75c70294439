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

pub(crate) use command::quoted;
pub(crate) use matrix::ArchChoice;
pub(crate) use request::Request;

use crate::output::{Contents, OutputDir};
use crate::{toolchain, workspace};
use anyhow::ensure;
use fs_err as fs;
use inputs::Inputs;
use peersum_artifact::MANIFEST_FILE;
use progress::Reporter;
use run::Run;
use std::time::Instant;

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

/// Carries out the request.
///
/// # Errors
/// The run cannot start, a module cannot be compiled, the result cannot be published, or a check
/// finds a problem.
pub(crate) fn run(request: &Request) -> anyhow::Result<()> {
    let started = Instant::now();
    let modules = request.modules()?;
    let out = request.out.clone().unwrap_or_else(workspace::cubins);
    let output = OutputDir::new(&out, &MODULES)?;
    let kernels = request.kernels.clone().unwrap_or_else(workspace::kernels);
    let kernels = fs::canonicalize(&kernels)?;
    let targets = matrix::targets(&request.arch)?;
    let artifacts = matrix::artifacts(&modules, &targets);
    let reporter = Reporter {
        format: request.message_format,
        quiet: request.quiet,
    };
    if request.check {
        let inputs = Inputs::read(&kernels, None, &modules)?;
        let problems = check::problems(output.path(), &artifacts, &inputs)?;
        return reporter.checked(output.path(), artifacts.len(), &problems);
    }
    let nvcc = toolchain::resolve(&request.toolkit)?;
    matrix::ensure_supported(&targets, &nvcc)?;
    let prelude = (!request.stock_headers).then(workspace::prelude);
    let mut inputs = Inputs::read(&kernels, prelude.as_deref(), &modules)?;
    inputs.allow_spills = request.allow_spills;
    let run = Run {
        request,
        nvcc: &nvcc,
        inputs: &inputs,
        reporter: &reporter,
        started,
    };
    let summary = run.carry_out(&artifacts, &output)?;
    reporter.summary(&summary);
    ensure!(
        summary.failed == 0,
        "nothing was published: {} modules failed",
        summary.failed
    );
    Ok(())
}
