//! `--device`, and the device that it selects on this machine.

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Serialize;

use super::gpus::{Gpus, open_context};
use super::kind::DeviceKind;

/// What the ranks run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceChoice {
    /// The GPUs of this machine, one for each rank or shared, or the emulator if there is no GPU.
    Auto,
    /// The GPUs of this machine.
    Cuda,
    /// The kernels on the CPU. Its times mean nothing.
    Emulator,
}

/// The device that `--device` selects.
#[derive(Debug, Clone)]
pub(crate) struct Decision {
    pub(crate) kind: DeviceKind,
    /// The decision as text for the user.
    pub(crate) line: String,
}

/// Decides what `ranks` ranks run on.
///
/// # Errors
/// `--device cuda` on a machine without a GPU.
pub(crate) fn decide(choice: DeviceChoice, ranks: u32) -> Result<Decision> {
    let count = match choice {
        DeviceChoice::Emulator => 0,
        DeviceChoice::Auto => Gpus::count().unwrap_or(0),
        DeviceChoice::Cuda => Gpus::count().context(
            "--device cuda: there is no GPU that the CUDA driver can use on this machine; \
             --device emulator runs the kernels on the CPU",
        )?,
    };
    let kind = match count {
        0 => DeviceKind::Emulator,
        _ => DeviceKind::Cuda,
    };
    let line = match (choice, count) {
        (DeviceChoice::Emulator, _) => "the emulator: the kernels on the CPU".to_owned(),
        (_, 0) => "no GPU here, so the emulator: the kernels on the CPU".to_owned(),
        (_, count) if count >= ranks => format!("{count} GPUs: one for each rank"),
        (_, 1) => "1 GPU, which all ranks share".to_owned(),
        (_, count) => format!("{count} GPUs, which {ranks} ranks share"),
    };
    Ok(Decision { kind, line })
}

/// The flags of `device`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DeviceArgs {
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceChoice,
}

/// What `device` prints.
#[derive(Serialize)]
struct Described {
    kind: DeviceKind,
    line: String,
    /// The architectures that modules are needed for, as `nvcc` names them.
    architectures: Vec<String>,
}

/// Prints the device that `--device` selects, as JSON. It decides which modules must be
/// precompiled.
///
/// # Errors
/// As [`decide`], or a GPU cannot be opened.
pub(crate) fn print_device(args: &DeviceArgs) -> Result<()> {
    let Decision { kind, line } = decide(args.device, 1)?;
    let count = match kind {
        DeviceKind::Cuda => Gpus::count()?,
        DeviceKind::Emulator => 0,
    };
    let mut architectures = (0..count)
        .map(|ordinal| {
            let (major, minor) = open_context(ordinal)?.compute_capability()?;
            Ok(format!("sm_{major}{minor}"))
        })
        .collect::<Result<Vec<String>>>()?;
    architectures.sort();
    architectures.dedup();
    let described = Described {
        kind,
        line,
        architectures,
    };
    println!("{}", serde_json::to_string(&described)?);
    Ok(())
}
