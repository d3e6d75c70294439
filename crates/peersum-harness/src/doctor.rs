//! `doctor`: the checks of `peersum-doctor`, and those that take a second process or the emulator.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use peersum::device::MemorySharing;
use peersum_doctor::{
    Examination, TwoProcesses, Usable, emulator_finding, open_stream, other_process,
};
use peersum_emulator::EmulatorDevice;

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
    #[arg(long, value_name = "SECONDS", default_value = "20", value_parser = seconds)]
    patience: Duration,
}

fn seconds(text: &str) -> Result<Duration> {
    let seconds = text.parse().context("not a number of seconds")?;
    ensure!(seconds > 0, "at least one second");
    Ok(Duration::from_secs(seconds))
}

/// Examines the machine and prints the report. The exit status is 1 if peersum cannot be used here.
pub(crate) fn run(args: &DoctorArgs) -> Result<ExitCode> {
    let patience = args.patience;
    let mut examination = Examination::new().patience(patience);
    if let Some(cubins) = &args.cubins {
        examination = examination.cubin_dir(cubins);
    }
    let mut report = examination.run();
    let program = std::env::current_exe().context("finding this program")?;
    let pair = |gpus: Vec<u32>, sharing| TwoProcesses {
        sharing,
        gpus,
        patience,
    };
    if report.gpus.is_empty() {
        let command = |meeting: &Path| {
            peer_command(
                &program,
                meeting,
                MemorySharing::FileDescriptor,
                patience,
                None,
            )
        };
        report.push(
            pair(Vec::new(), MemorySharing::FileDescriptor)
                .finding(command, || EmulatorDevice::new(0).stream()),
        );
        report.push(emulator_finding(patience, || {
            Ok([
                EmulatorDevice::new(0).stream()?,
                EmulatorDevice::new(1).stream()?,
            ])
        }));
    } else if let Some([first, second]) = report.sharing_pair() {
        for sharing in [MemorySharing::FileDescriptor, MemorySharing::LegacyIpc] {
            let command =
                |meeting: &Path| peer_command(&program, meeting, sharing, patience, Some(second));
            report.push(
                pair(vec![first, second], sharing).finding(command, move || open_stream(first)),
            );
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

/// The other process, as [`PeerArgs`] reads it.
fn peer_command(
    program: &Path,
    meeting: &Path,
    sharing: MemorySharing,
    patience: Duration,
    gpu: Option<u32>,
) -> Command {
    let mut command = Command::new(program);
    command
        .arg("doctor-peer")
        .args(["--parent", &std::process::id().to_string()])
        .arg("--directory")
        .arg(meeting)
        .args(["--patience", &patience.as_secs().to_string()]);
    if sharing == MemorySharing::LegacyIpc {
        command.arg("--legacy-ipc");
    }
    if let Some(ordinal) = gpu {
        command.args(["--gpu", &ordinal.to_string()]);
    }
    command
}

/// The flags of `doctor-peer`.
#[derive(Debug, clap::Args)]
pub(crate) struct PeerArgs {
    /// The process that started this one.
    #[arg(long)]
    parent: i32,
    /// Where the two meet.
    #[arg(long)]
    directory: PathBuf,
    /// Share memory by handles of legacy CUDA IPC, not as file descriptors.
    #[arg(long)]
    legacy_ipc: bool,
    /// How long each step may take.
    #[arg(long, value_parser = seconds)]
    patience: Duration,
    /// The GPU to use; else an emulated device.
    #[arg(long)]
    gpu: Option<u32>,
}

/// The other process.
pub(crate) fn run_peer(args: &PeerArgs) -> Result<()> {
    crate::parent::end_with(args.parent)?;
    let (directory, patience) = (&args.directory, args.patience);
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
