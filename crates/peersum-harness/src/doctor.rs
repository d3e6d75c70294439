//! `doctor`: what the library finds from inside one process, and what takes a second one or the emulator.

use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::ValueEnum;
use peersum::Rendezvous;
use peersum::device::{Device, DeviceStream, MemorySharing};
use peersum::doctor::{
    Examination, Exchanged, Finding, Report, Subject, Usable, Verdict, all_reduce_between, bounded,
    exchange,
};
use peersum::loader::LoadPolicy;
use peersum::rendezvous::Group;
use peersum_emulator::EmulatorDevice;

/// A check of many steps may take so many times as long as one of few.
const STEPS: u32 = 4;

const GROUP: &str = "doctor";

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
    let mut examination = Examination::new().patience(args.patience);
    if let Some(cubins) = &args.cubins {
        examination = examination.cubin_dir(cubins);
    }
    let mut report = examination.run();
    if report.gpus.is_empty() {
        let pair = Pair {
            places: [Place::Emulator; 2],
            patience: args.patience,
        };
        report.push(pair.finding(Sharing::FileDescriptor));
        report.push(emulator(args.patience));
    } else if shares(&report) {
        let pair = Pair {
            places: places(&report),
            patience: args.patience,
        };
        report.push(pair.finding(Sharing::FileDescriptor));
        report.push(pair.finding(Sharing::LegacyIpc));
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

/// Whether memory could be shared within a process, without which two need not try.
fn shares(report: &Report) -> bool {
    report
        .about(Subject::SharedMemory)
        .any(|finding| finding.verdict != Verdict::Not)
}

/// The first two GPUs that shared memory, or the only one twice.
fn places(report: &Report) -> [Place; 2] {
    let mut ordinals = report
        .about(Subject::SharedMemory)
        .filter(|finding| finding.verdict != Verdict::Not)
        .flat_map(|finding| &finding.gpus);
    let first = ordinals.next().copied().unwrap_or(0);
    let second = ordinals.next().copied().unwrap_or(first);
    [Place::Gpu(first), Place::Gpu(second)]
}

/// What a process runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Emulator,
    Gpu(u32),
}

/// How memory travels between the two processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sharing {
    FileDescriptor,
    LegacyIpc,
}

impl From<Sharing> for MemorySharing {
    fn from(sharing: Sharing) -> Self {
        match sharing {
            Sharing::FileDescriptor => MemorySharing::FileDescriptor,
            Sharing::LegacyIpc => MemorySharing::LegacyIpc,
        }
    }
}

/// This process and another.
struct Pair {
    /// What each runs on, this one first.
    places: [Place; 2],
    patience: Duration,
}

impl Pair {
    /// Shares memory between the two, with data both ways.
    fn finding(&self, sharing: Sharing) -> Finding {
        let subject = match sharing {
            Sharing::FileDescriptor => Subject::Processes,
            Sharing::LegacyIpc => Subject::LegacyIpc,
        };
        let mut gpus: Vec<u32> = self
            .places
            .iter()
            .filter_map(|place| match place {
                Place::Gpu(ordinal) => Some(*ordinal),
                Place::Emulator => None,
            })
            .collect();
        gpus.dedup();
        let how = match sharing {
            Sharing::FileDescriptor => "as file descriptors",
            Sharing::LegacyIpc => "by handles",
        };
        let emulated = if gpus.is_empty() {
            ", on emulated devices"
        } else {
            ""
        };
        let finding = match self.exchange(sharing) {
            Ok(Exchanged {
                wrote: true,
                read: true,
                ..
            }) => Finding::new(
                subject,
                Verdict::Works,
                format!(
                    "memory shared {how} between two processes; random bytes arrived both \
            ways{emulated}"
                ),
            ),
            Ok(exchanged) => Finding::new(
                subject,
                Verdict::Not,
                format!(
                    "memory was shared {how} between two processes, but the data is wrong: written \
                {}, read {}",
                    exchanged.wrote, exchanged.read
                ),
            )
            .blocking(sharing == Sharing::FileDescriptor),
            Err(error) => Finding::new(subject, Verdict::Not, format!("{error:#}")),
        };
        let meaning = match (finding.verdict, sharing) {
            (Verdict::Works, _) => "",
            (_, Sharing::FileDescriptor) => {
                "ranks that are processes cannot share memory this way; ranks that are threads \
                of one process can, where `shared memory` works"
            }
            (_, Sharing::LegacyIpc) => {
                "not needed where memory is shared as file descriptors. In containers it needs \
                `--ipc=host --pid=host`"
            }
        };
        finding.on(gpus).meaning(meaning)
    }

    /// What this process saw.
    fn exchange(&self, sharing: Sharing) -> Result<Exchanged> {
        let directory = tempfile::Builder::new()
            .prefix("peersum-doctor-")
            .tempdir()
            .context("making a directory for the two processes")?;
        let program = std::env::current_exe().context("finding this program")?;
        let with = With {
            // Made with the mode that it must have by whoever comes first.
            directory: directory.path().join("ranks"),
            sharing,
            patience: self.patience,
        };
        let sharing_name = sharing
            .to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned());
        let mut command = Command::new(program);
        command
            .arg("doctor-peer")
            .args(["--parent", &std::process::id().to_string()])
            .arg("--directory")
            .arg(&with.directory)
            .args(["--sharing", &sharing_name])
            .args(["--patience", &self.patience.as_secs().to_string()]);
        if let Place::Gpu(ordinal) = self.places[1] {
            command.args(["--gpu", &ordinal.to_string()]);
        }
        // From this thread, which lives as long as the program: the child is killed when the thread that started it ends. What goes
        // wrong there comes back through the group.
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting the other process")?;
        let mut peer = Peer(child);
        let place = self.places[0];
        let exchanged =
            bounded(self.patience * STEPS, move || with.exchange(0, place))?.map_err(|error| {
                match peer.0.try_wait() {
                    Ok(Some(status)) => {
                        error.context(format!("the other process ended with {status}"))
                    }
                    _ => error,
                }
            })?;
        match peer.ended(self.patience) {
            Some(status) if status.success() => Ok(exchanged),
            Some(status) => bail!("the other process ended with {status}"),
            None => bail!("the other process did not end"),
        }
    }
}

/// The other process; it does not outlive this value.
struct Peer(Child);

impl Peer {
    /// Waits until it has ended, and says how; `None` if that takes too long.
    fn ended(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            match self.0.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended already, which is no error here.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How the two exchange.
struct With {
    /// Where they meet.
    directory: PathBuf,
    sharing: Sharing,
    patience: Duration,
}

impl With {
    /// Joins the group and exchanges, on whatever it is to be.
    fn exchange(&self, rank: u32, place: Place) -> Result<Exchanged> {
        // First of all, so that the other rank learns at once what goes wrong here.
        let mut group = Rendezvous::unix(&self.directory, GROUP, rank, 2).join(self.patience)?;
        let outcome = match place {
            Place::Emulator => EmulatorDevice::new(rank)
                .stream()
                .map_err(Into::into)
                .and_then(|stream| self.on_stream(&stream, &mut group)),
            Place::Gpu(ordinal) => peersum::open_context(ordinal)
                .map_err(anyhow::Error::from)
                .and_then(|context| Ok(context.new_stream()?))
                .with_context(|| format!("opening GPU {ordinal}"))
                .and_then(|stream| self.on_stream(&stream, &mut group)),
        };
        if let Err(error) = &outcome {
            group.abandon(&format!("{error:#}"));
        }
        outcome
    }

    fn on_stream<S: DeviceStream>(&self, stream: &S, group: &mut Group) -> Result<Exchanged> {
        let device = S::Device::open(stream)?;
        Ok(exchange(
            &device,
            group,
            self.sharing.into(),
            self.patience,
        )?)
    }
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
    /// How memory travels.
    #[arg(long)]
    sharing: Sharing,
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
    let place = args.gpu.map_or(Place::Emulator, Place::Gpu);
    With {
        directory: args.directory.clone(),
        sharing: args.sharing,
        patience: args.patience,
    }
    .exchange(1, place)
    .map(drop)
}

/// A sum between two emulated ranks.
fn emulator(patience: Duration) -> Finding {
    let outcome = bounded(patience * STEPS, move || {
        let streams = (0..2)
            .map(|rank| EmulatorDevice::new(rank).stream())
            .collect::<Result<Vec<_>, _>>()?;
        all_reduce_between(&streams, &LoadPolicy::default(), patience)
            .map_err(|(rank, error)| anyhow!("rank {rank}: {error}"))
    });
    match outcome.map_err(anyhow::Error::from) {
        Ok(Ok(reduced)) if reduced.wrong == 0 => Finding::new(
            Subject::Emulator,
            Verdict::Works,
            format!(
                "the kernels on the CPU: 2 ranks, {} calls of different sizes, every bit as \
                the reference has it",
                reduced.calls
            ),
        ),
        Ok(Ok(reduced)) => Finding::new(
            Subject::Emulator,
            Verdict::Not,
            format!("{} results differ from the reference", reduced.wrong),
        )
        .meaning("run `cargo xtask test-allreduce --device emulator` and report what it says"),
        Ok(Err(error)) | Err(error) => {
            Finding::new(Subject::Emulator, Verdict::Not, format!("{error:#}"))
        }
    }
}
