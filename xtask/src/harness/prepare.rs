//! What a command of the harness needs compiled, and how the harness is told where it is.

use super::build::ask_architectures;
use super::flags::Flags;
use super::kernels;
use crate::cargo::captured;
use crate::precompile::{self, ArchChoice, Request, quoted};
use crate::toolchain::{self, ToolkitChoice};
use crate::workspace;
use anyhow::Context as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// What to compile for, and with which compiler.
struct Needs {
    architectures: Vec<String>,
    toolkit: ToolkitChoice,
    /// Whether another machine will run it, so nothing runs here.
    for_elsewhere: bool,
}

impl Needs {
    /// Takes xtask's flags out of the others. `None` if nothing runs on a GPU.
    fn of(harness: &Path, flags: &mut Flags) -> anyhow::Result<Option<Self>> {
        let compile_for = flags.take("--compile-for")?;
        let toolkit = flags.take("--toolkit")?;
        let device = flags.value("--device").unwrap_or("auto");
        if flags.has("--list") || flags.has("--from-json") || device == "emulator" {
            return Ok(None);
        }
        let for_elsewhere = compile_for.is_some();
        let architectures = match compile_for {
            Some(list) => list.split(',').map(str::to_owned).collect(),
            None => ask_architectures(harness, device)?,
        };
        Ok((!architectures.is_empty()).then_some(Self {
            architectures,
            toolkit: toolkit.as_deref().unwrap_or("auto").into(),
            for_elsewhere,
        }))
    }

    /// The request for all modules into `out`.
    fn request(&self, out: &Path) -> anyhow::Result<Request> {
        let arch: Result<Vec<ArchChoice>, _> =
            self.architectures.iter().map(|name| name.parse()).collect();
        Ok(Request {
            arch: arch.context("--compile-for")?,
            out: Some(out.to_path_buf()),
            toolkit: self.toolkit.clone(),
            ..Request::default()
        })
    }
}

/// Prepares `test-allreduce`: the modules of its world sizes, and the kernels that check sums.
/// Whether the harness is to run on this machine.
pub(super) fn grid(
    harness: &Path,
    flags: &mut Flags,
    process: &mut Command,
) -> anyhow::Result<bool> {
    let world_sizes = flags.value("--world-size").unwrap_or("2..8").to_owned();
    if let Some(needs) = Needs::of(harness, flags)? {
        let started = Instant::now();
        let directory = workspace::target().join("test-allreduce");
        // A place for each selection: another run must not take modules away from this one.
        let cubins = directory.join(format!("cubins-{world_sizes}"));
        let nvcc = toolchain::resolve(&needs.toolkit)?;
        // A group loads the modules of every type, so the types are not narrowed.
        let sizes: Result<_, _> = world_sizes.split(',').map(str::parse).collect();
        let request = Request {
            world_size: sizes.context("--world-size")?,
            ..needs.request(&cubins)?
        };
        let (modules, checks) = rayon_core::join(
            || precompile::run(&request),
            || kernels::compile(&nvcc, kernels::CHECK, &needs.architectures, &directory),
        );
        modules.and(checks)?;
        if needs.for_elsewhere {
            println!("{}", directory.display());
            return Ok(false);
        }
        let seconds = started.elapsed().as_secs_f64();
        eprintln!("precompiled in {seconds:.1} s");
        process
            .args(["--precompile-seconds", &format!("{seconds:.3}")])
            .env("PEERSUM_CUBIN_DIR", cubins)
            .env("PEERSUM_GRID_CHECK_DIR", directory)
            .env("PEERSUM_JIT", "deny");
    }
    Ok(true)
}

/// Prepares a benchmark: the modules, and for `bench allreduce` the builds that it compares and the
/// kernels that measure the machine's limits. Whether the harness is to run on this machine.
pub(super) fn bench(
    harness: &Path,
    flags: &mut Flags,
    compares_builds: bool,
) -> anyhow::Result<bool> {
    let Some(needs) = Needs::of(harness, flags)? else {
        return Ok(true);
    };
    let directory = workspace::target().join("bench");
    if !flags.has("--cubins") {
        // Not the release set's directory, whose contents a run for fewer architectures would
        // replace.
        let cubins = directory.join("cubins");
        precompile::run(&needs.request(&cubins)?)?;
        flags.set("--cubins", &cubins);
    }
    for build in ["unsafe-baseline", "strict-order"] {
        let flag = format!("--{build}");
        if !compares_builds || !flags.is_bare(&flag) {
            continue;
        }
        let sources = directory.join(format!("kernels-{build}"));
        let cubins = directory.join(format!("cubins-{build}"));
        write_sources(harness, build, &sources)?;
        precompile::run(&Request {
            kernels: Some(sources),
            allow_spills: true,
            ..needs.request(&cubins)?
        })?;
        flags.set(&flag, &cubins);
    }
    if compares_builds && !flags.has("--limits") {
        let limits = directory.join("limits");
        let nvcc = toolchain::resolve(&needs.toolkit)?;
        kernels::compile(&nvcc, kernels::LIMITS, &needs.architectures, &limits)?;
        flags.set("--limits", &limits);
    }
    if needs.for_elsewhere {
        let flags: Vec<String> = flags.0.iter().map(|flag| quoted(flag)).collect();
        println!("{}", flags.join(" "));
        return Ok(false);
    }
    Ok(true)
}

/// Writes the sources of a build that is measured against the shipped one, as the harness has them.
fn write_sources(harness: &Path, build: &str, directory: &Path) -> anyhow::Result<()> {
    let mut command = Command::new(harness);
    captured(command.args(["kernel-sources", build]).arg(directory))
        .with_context(|| format!("the sources of the {build} build cannot be written"))?;
    Ok(())
}
