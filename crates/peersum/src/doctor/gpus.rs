//! The GPUs: what each is, what memory they share, and a sum over all of them.

use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::{CudaContext, CudaStream};
use peersum_artifact::{Arch, CudaVersion};

use super::bounded::{Unanswered, bounded};
use super::cubins::cubins;
use super::driver;
use super::exchange::{Exchanged, exchange_between};
use super::machine::Traces;
use super::report::{
    ComputeMode, DriverFacts, Finding, GpuFacts, LinkFacts, Report, Subject, Verdict,
};
use super::trial::all_reduce_between;
use super::verdicts::{
    Shared, driver_finding, gpu_finding, link_findings, multicast_finding, reduced_finding,
    shared_finding, trouble_finding,
};
use crate::cuda::Cuda;
use crate::cuda::driver::{describe, device_count};
use crate::cuda::open::open_gpu;
use crate::cuda::start::{RESTART, start};
use crate::device::{Device, DeviceError, MemorySharing};
use crate::error::Error;
use crate::loader::LoadPolicy;

/// The most ranks of a communicator.
const MOST_RANKS: usize = 8;
/// A check that makes many calls of the driver may take several times as long as one of a few.
const STEPS: u32 = 4;

/// A GPU whose context is open.
#[derive(Clone)]
struct Open {
    ordinal: u32,
    arch: Arch,
    context: Arc<CudaContext>,
}

/// One look at the GPUs.
pub(super) struct Gpus<'a> {
    pub(super) report: &'a mut Report,
    pub(super) policy: &'a LoadPolicy,
    pub(super) patience: Duration,
}

impl Gpus<'_> {
    /// Looks at the driver, and at what it has.
    pub(super) fn examine(&mut self, traces: Traces) {
        let version = match bounded(self.patience, start) {
            Ok(Ok(version)) => version,
            Ok(Err(trouble)) => return self.report.push(trouble_finding(&trouble, traces)),
            Err(unanswered) => return self.stuck(Subject::Driver, &[], &unanswered),
        };
        self.report.push(driver_finding(version));
        self.report.driver = Some(DriverFacts {
            cuda: version.to_string(),
            kernel_module: driver::kernel_module(),
        });
        let architectures = match bounded(self.patience, facts) {
            Ok(Ok((gpus, links))) => {
                let (facts, architectures): (_, Vec<Arch>) = gpus.into_iter().unzip();
                self.report.gpus = facts;
                self.report.links = links;
                architectures
            }
            Ok(Err(error)) => {
                return self.report.push(
                    Finding::new(Subject::Gpu, Verdict::Not, error.to_string())
                        .meaning(RESTART)
                        .blocking(true),
                );
            }
            Err(unanswered) => return self.stuck(Subject::Gpu, &[], &unanswered),
        };
        let usable: Vec<bool> = self
            .report
            .gpus
            .iter()
            .zip(&architectures)
            .map(|(gpu, arch)| arch.runs_kernels() && gpu.compute_mode != ComputeMode::Prohibited)
            .collect();
        let any = usable.contains(&true);
        for gpu in self.report.gpus.clone() {
            let ordinal = gpu.ordinal as usize;
            let finding = gpu_finding(&gpu, architectures[ordinal].runs_kernels());
            self.report.push(finding.blocking(!any));
        }
        self.report.push(multicast_finding(&self.report.gpus));
        let candidates: Vec<(u32, Arch)> = (0..)
            .zip(architectures)
            .zip(usable)
            .filter_map(|(gpu, usable)| usable.then_some(gpu))
            .collect();
        let kernels = self.kernels(&candidates, version);
        let Some(open) = self.open(&candidates) else {
            return;
        };
        if self.share(&open) && kernels {
            self.reduce(&open);
        }
    }

    /// Whether compiled kernels can be had for every architecture.
    fn kernels(&mut self, gpus: &[(u32, Arch)], version: CudaVersion) -> bool {
        let mut architectures: Vec<Arch> = gpus.iter().map(|(_, arch)| *arch).collect();
        architectures.sort_unstable();
        architectures.dedup();
        let mut all = true;
        for arch in architectures {
            let of_it = gpus.iter().filter(|gpu| gpu.1 == arch).map(|gpu| gpu.0);
            let finding = cubins(
                self.policy,
                arch,
                version,
                &format!(
                    "run `cargo xtask precompile --arch sm_{arch}` and name its output with \
                    PEERSUM_CUBIN_DIR, or build with a \
                     released peersum-kernels, which carries cubins"
                ),
            );
            all &= finding.verdict != Verdict::Not;
            self.report.push(finding.on(of_it));
        }
        all
    }

    /// Makes a context on each GPU, with a stream, a page of locked memory and a handle of legacy IPC. `None` if that leaves nothing to go on with.
    fn open(&mut self, gpus: &[(u32, Arch)]) -> Option<Vec<Open>> {
        let mut open = Vec::new();
        let mut without_handle = Vec::new();
        for &(ordinal, arch) in gpus {
            match bounded(self.patience, move || open_one(ordinal)) {
                Ok(Ok((context, handle))) => {
                    open.push(Open {
                        ordinal,
                        arch,
                        context,
                    });
                    without_handle.extend(handle.err().map(|error| (ordinal, error)));
                }
                Ok(Err(error)) => self.report.push(
                    Finding::new(Subject::Context, Verdict::Not, error.to_string())
                        .on([ordinal])
                        .meaning(
                            "this GPU cannot be used by this process: another one may hold it \
                            or its memory (`nvidia-smi`)",
                        )
                        .blocking(gpus.len() == 1),
                ),
                Err(unanswered) => {
                    self.stuck(Subject::Gpu, &[ordinal], &unanswered);
                    return None;
                }
            }
        }
        if open.is_empty() {
            return None;
        }
        self.report.push(
            Finding::new(
                Subject::Context,
                Verdict::Works,
                "opened, and a page of the host's memory locked and mapped",
            )
            .on(open.iter().map(|gpu| gpu.ordinal)),
        );
        if without_handle.is_empty() {
            self.report.push(
                Finding::new(Subject::LegacyIpc, Verdict::Works, "a handle was made")
                    .on(open.iter().map(|gpu| gpu.ordinal))
                    .meaning(
                        "the fallback where memory cannot be shared as file descriptors. \
                    Whether another process can open it, `cargo xtask doctor` tries",
                    ),
            );
        }
        for (ordinal, error) in without_handle {
            self.report.push(
                Finding::new(Subject::LegacyIpc, Verdict::Not, error.to_string())
                    .on([ordinal])
                    .meaning("not needed where memory is shared as file descriptors"),
            );
        }
        Some(open)
    }

    /// Sends data both ways between every two GPUs, or between two ranks on the only one. False if that does not work everywhere.
    fn share(&mut self, open: &[Open]) -> bool {
        let pairs: Vec<[&Open; 2]> = match open {
            [only] => vec![[only, only]],
            _ => (0..open.len())
                .flat_map(|second| (0..second).map(move |first| [&open[first], &open[second]]))
                .collect(),
        };
        let mut right = Vec::new();
        let mut others = Vec::new();
        for pair in &pairs {
            let ordinals = pair.map(|gpu| gpu.ordinal);
            match self.exchange(*pair) {
                Ok(Shared::Right(exchanged)) => right.push((ordinals, exchanged)),
                Ok(other) => others.push((ordinals, other)),
                Err(unanswered) => {
                    self.stuck(Subject::SharedMemory, &ordinals, &unanswered);
                    return false;
                }
            }
        }
        for (ordinals, exchanged) in &right {
            self.note(*ordinals, exchanged);
        }
        if !right.is_empty() {
            self.report.push(shared_finding(&right, pairs.len()));
        }
        let works = |shared: &Shared| matches!(shared, Shared::Right(_) | Shared::ByAddress(_));
        let any = !right.is_empty() || others.iter().any(|(_, shared)| works(shared));
        let all = others.iter().all(|(_, shared)| works(shared));
        for (ordinals, shared) in others {
            let mut ordinals = ordinals.to_vec();
            ordinals.dedup();
            self.report.push(shared.finding(!any).on(ordinals));
        }
        if open.len() > 1 {
            for finding in link_findings(&self.report.links) {
                self.report.push(finding);
            }
        }
        all
    }

    fn exchange(&self, pair: [&Open; 2]) -> Result<Shared, Unanswered> {
        let attempt = |sharing| {
            let gpus = pair.map(Clone::clone);
            let patience = self.patience;
            bounded(patience * STEPS, move || {
                let on = |rank: usize, error: &dyn std::error::Error| {
                    format!("GPU {}: {error}", gpus[rank].ordinal)
                };
                let stream =
                    |rank: usize| new_stream(&gpus[rank].context).map_err(|error| on(rank, &error));
                exchange_between([&stream(0)?, &stream(1)?], sharing, patience)
                    .map_err(|(rank, error)| on(rank, &error))
            })
        };
        Ok(match attempt(MemorySharing::FileDescriptor)? {
            Ok(exchanged) if exchanged.iter().all(|rank| rank.wrote && rank.read) => {
                Shared::Right(exchanged)
            }
            Ok(exchanged) => Shared::Wrong(exchanged),
            Err(reason) => match attempt(MemorySharing::LegacyIpc)? {
                Ok(exchanged) if exchanged.iter().all(|rank| rank.wrote && rank.read) => {
                    Shared::ByAddress(reason)
                }
                Ok(exchanged) => Shared::Wrong(exchanged),
                Err(other) if other == reason => Shared::Failed(reason),
                Err(other) => Shared::Failed(format!("{reason}; by address: {other}")),
            },
        })
    }

    /// Keeps what was measured beside what the driver says of the two links.
    fn note(&mut self, [first, second]: [u32; 2], exchanged: &[Exchanged; 2]) {
        for link in &mut self.report.links {
            let reader = match (link.from, link.to) {
                ends if ends == (first, second) => &exchanged[0],
                ends if ends == (second, first) => &exchanged[1],
                _ => continue,
            };
            link.data_arrived = Some(reader.wrote && reader.read);
            link.gigabytes_per_second = Some(reader.gigabytes_per_second);
        }
    }

    /// Sums over all GPUs, or over two ranks on the only one.
    fn reduce(&mut self, open: &[Open]) {
        let ranks: Vec<Open> = match open {
            [only] => vec![only.clone(), only.clone()],
            _ => open.iter().take(MOST_RANKS).cloned().collect(),
        };
        let mut ordinals: Vec<u32> = ranks.iter().map(|rank| rank.ordinal).collect();
        ordinals.dedup();
        let world_size = ranks.len();
        let archs_differ = ranks.iter().any(|rank| rank.arch != ranks[0].arch);
        let (policy, patience) = (self.policy.clone(), self.patience);
        let outcome = bounded(patience * STEPS, move || {
            let streams: Vec<Arc<CudaStream>> = ranks
                .iter()
                .map(|rank| new_stream(&rank.context))
                .collect::<Result<_, _>>()
                .map_err(|error| (0, Error::from(error)))?;
            all_reduce_between(&streams, &policy, patience)
        });
        match outcome {
            Ok(outcome) => {
                let finding = reduced_finding(world_size, outcome);
                let finding = if archs_differ && finding.verdict != Verdict::Works {
                    finding.meaning(
                        "the GPUs are of different architectures, which a group \
                    may not be able to mix",
                    )
                } else {
                    finding
                };
                self.report.push(finding.on(ordinals));
            }
            Err(unanswered) => self.stuck(Subject::AllReduce, &ordinals, &unanswered),
        }
    }

    /// A check that gave no answer. What would need the driver after it is not tried.
    fn stuck(&mut self, subject: Subject, gpus: &[u32], unanswered: &Unanswered) {
        let mut gpus = gpus.to_vec();
        gpus.dedup();
        self.report.push(
            Finding::new(subject, Verdict::Not, unanswered.to_string())
                .on(gpus)
                .meaning(format!(
                    "{RESTART}. Further checks of the GPUs were left out"
                ))
                .blocking(true),
        );
    }
}

type Facts = (Vec<(GpuFacts, Arch)>, Vec<LinkFacts>);

/// All GPUs and all ordered pairs, as the driver describes them.
fn facts() -> Result<Facts, DeviceError> {
    let count = device_count()?;
    let gpus = (0..count).map(driver::gpu).collect::<Result<_, _>>()?;
    let links = (0..count)
        .flat_map(|from| (0..count).map(move |to| (from, to)))
        .filter(|(from, to)| from != to)
        .map(|(from, to)| driver::link(from, to))
        .collect::<Result<_, _>>()?;
    Ok((gpus, links))
}

/// A context in which a page could be locked, and whether memory has a handle of legacy IPC.
type Opened = (Arc<CudaContext>, Result<(), DeviceError>);

fn open_one(ordinal: u32) -> Result<Opened, DeviceError> {
    let context = open_gpu(ordinal)?;
    let device = Cuda::open(&new_stream(&context)?)?;
    device.allocate_status()?;
    let handle = device
        .allocate_shared(1, MemorySharing::LegacyIpc)
        .and_then(|memory| device.export(&memory, false))
        .map(drop);
    Ok((context, handle))
}

fn new_stream(context: &Arc<CudaContext>) -> Result<Arc<CudaStream>, DeviceError> {
    context.new_stream().map_err(|error| DeviceError::Driver {
        call: "cuStreamCreate",
        message: describe(error.0),
    })
}
