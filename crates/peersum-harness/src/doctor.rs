//! `doctor`: the checks of `peersum-doctor`, and those that take a second process or the emulator.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::Result;
use peersum::device::MemorySharing;
use peersum_doctor::{
    Examination, TwoProcesses, Usable, emulator_finding, open_stream, other_process,
};
use peersum_emulator::EmulatorDevice;

use crate::ranks::{ParentArgs, rank_command};

/// The flags of `doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// Look for compiled kernels in this directory first.
    #[arg(long, value_name = "DIR")]
    cubins: Option<PathBuf>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    /// How long one check may take.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 20,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    patience: u64,
}

/// Examines the machine and prints the report. The exit status is 1 if peersum cannot be used here.
pub(crate) fn run(args: &DoctorArgs) -> Result<ExitCode> {
    let patience = Duration::from_secs(args.patience);
    let examination = Examination {
        cubin_dir: args.cubins.clone(),
        patience,
    };
    let mut report = examination.run();
    if report.gpus.is_empty() {
        let sharing = MemorySharing::FileDescriptor;
        let command = peer_command(sharing, args.patience, None)?;
        let pair = TwoProcesses {
            sharing,
            gpus: Vec::new(),
            patience,
        };
        report.push(pair.finding(
            |meeting| at(command, meeting),
            || EmulatorDevice::new(0).stream(),
        ));
        report.push(emulator_finding(patience, || {
            Ok([
                EmulatorDevice::new(0).stream()?,
                EmulatorDevice::new(1).stream()?,
            ])
        }));
    } else if let Some([first, second]) = report.sharing_pair() {
        for sharing in [MemorySharing::FileDescriptor, MemorySharing::LegacyIpc] {
            let command = peer_command(sharing, args.patience, Some(second))?;
            let pair = TwoProcesses {
                sharing,
                gpus: vec![first, second],
                patience,
            };
            report.push(pair.finding(|meeting| at(command, meeting), move || open_stream(first)));
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{report}");
    }
    Ok(match report.conclusion.usable {
        Usable::No => ExitCode::FAILURE,
        Usable::Ready | Usable::Slower | Usable::NoGpu => ExitCode::SUCCESS,
    })
}

/// The other process, as [`PeerArgs`] reads it, but for where the two meet.
fn peer_command(sharing: MemorySharing, patience: u64, gpu: Option<u32>) -> Result<Command> {
    let mut command = rank_command("doctor-peer")?;
    command.args(["--patience", &patience.to_string()]);
    if sharing == MemorySharing::LegacyIpc {
        command.arg("--legacy-ipc");
    }
    if let Some(ordinal) = gpu {
        command.args(["--gpu", &ordinal.to_string()]);
    }
    Ok(command)
}

fn at(mut command: Command, meeting: &Path) -> Command {
    command.arg("--directory").arg(meeting);
    command
}

/// The flags of `doctor-peer`.
#[derive(Debug, clap::Args)]
pub(crate) struct PeerArgs {
    #[command(flatten)]
    parent: ParentArgs,
    /// Where the two meet.
    #[arg(long)]
    directory: PathBuf,
    /// Share memory by handles of legacy CUDA IPC, not as file descriptors.
    #[arg(long)]
    legacy_ipc: bool,
    /// How long each step may take, in seconds.
    #[arg(long)]
    patience: u64,
    /// The GPU to use; else an emulated device.
    #[arg(long)]
    gpu: Option<u32>,
}

/// The other process.
pub(crate) fn run_peer(args: &PeerArgs) -> Result<()> {
    args.parent.end_with_it()?;
    let (directory, patience) = (&args.directory, Duration::from_secs(args.patience));
    let sharing = if args.legacy_ipc {
        MemorySharing::LegacyIpc
    } else {
        MemorySharing::FileDescriptor
    };
    match args.gpu {
        Some(ordinal) => other_process(directory, sharing, patience, || open_stream(ordinal))?,
        None => other_process(directory, sharing, patience, || {
            EmulatorDevice::new(1).stream()
        })?,
    }
    Ok(())
}
