//! `doctor`: the checks of `peersum-doctor`, and those that take a second process or the emulator.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use peersum::device::MemorySharing;
use peersum_doctor::{
    Examination, Finding, TwoProcesses, Usable, emulator_finding, open_stream, other_process,
};
use peersum_emulator::EmulatorDevice;
use serde::{Deserialize, Serialize};

use crate::ranks::{RankArgs, rank_command};

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

/// Examines the machine and prints the report. Returns whether peersum can be used here.
pub(crate) fn run(args: &DoctorArgs) -> Result<bool> {
    let patience = Duration::from_secs(args.patience);
    let examination = Examination {
        cubin_dir: args.cubins.clone(),
        patience,
    };
    let mut report = examination.run();
    let two_processes = |sharing, pair: Option<[u32; 2]>| -> Result<Finding> {
        let task = PeerTask {
            sharing,
            patience,
            gpu: pair.map(|[_, second]| second),
        };
        let mut command = rank_command("doctor-peer", 1, &task)?;
        let at = move |meeting: &Path| {
            command.arg("--directory").arg(meeting);
            command
        };
        let processes = TwoProcesses {
            sharing,
            gpus: pair.map_or(Vec::new(), Vec::from),
            patience,
        };
        Ok(match pair {
            Some([first, _]) => processes.finding(at, move || open_stream(first)),
            None => processes.finding(at, || EmulatorDevice::new(0).stream()),
        })
    };
    if report.gpus.is_empty() {
        report.push(two_processes(MemorySharing::FileDescriptor, None)?);
        report.push(emulator_finding(patience, || {
            Ok([
                EmulatorDevice::new(0).stream()?,
                EmulatorDevice::new(1).stream()?,
            ])
        }));
    } else if let Some(pair) = report.sharing_pair() {
        for sharing in [MemorySharing::FileDescriptor, MemorySharing::LegacyIpc] {
            report.push(two_processes(sharing, Some(pair))?);
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{report}");
    }
    Ok(report.conclusion.usable != Usable::No)
}

/// What the other process is to do.
#[derive(Serialize, Deserialize)]
struct PeerTask {
    sharing: MemorySharing,
    /// How long each step may take.
    patience: Duration,
    /// The GPU to use; else an emulated device.
    gpu: Option<u32>,
}

/// The other process.
pub(crate) fn run_peer(args: &RankArgs) -> Result<()> {
    let task: PeerTask = args.begin()?;
    let (directory, sharing, patience) = (&args.directory, task.sharing, task.patience);
    match task.gpu {
        Some(ordinal) => other_process(directory, sharing, patience, || open_stream(ordinal))?,
        None => other_process(directory, sharing, patience, || {
            EmulatorDevice::new(1).stream()
        })?,
    }
    Ok(())
}
