//! The GPUs: what each is, what memory they share, and a sum over all of them.

use std::sync::Arc;
use std::time::Duration;

use peersum::Cuda;
use peersum::cuda::diagnosis::{RESTART, describe, device_count, open_gpu, start};
use peersum::cudarc::driver::{CudaContext, CudaStream};
use peersum::device::{Device, DeviceError, MemorySharing};
use peersum::loader::LoadPolicy;
use peersum_artifact::{Arch, CudaVersion};

use crate::all_reduce::{all_reduce_between, all_reduce_finding};
use crate::bounded::{STEPS, bounded};
use crate::cubins::cubins;
use crate::driver;
use crate::exchange::{Exchanged, exchange_between};
use crate::machine::Traces;
use crate::report::{
    ComputeMode, DriverFacts, Finding, GpuFacts, LinkFacts, Report, Subject, Verdict,
};
use crate::verdicts::{
    SharingFault, driver_finding, gpu_finding, link_findings, shared_finding, trouble_finding,
};

/// The most ranks of a communicator.
const MOST_RANKS: usize = 8;

/// A GPU whose context is open.
#[derive(Clone)]
struct OpenGpu {
    ordinal: u32,
    arch: Arch,
    context: Arc<CudaContext>,
}

/// One look at the GPUs.
pub(crate) struct Gpus<'a> {
    pub(crate) report: &'a mut Report,
    pub(crate) policy: &'a LoadPolicy,
    pub(crate) patience: Duration,
}

impl Gpus<'_> {
    /// Looks at the driver, and at what it has.
    pub(crate) fn examine(&mut self, traces: Traces) {
        // `None`: something is in the way of all that would follow, and has been reported.
        let _ = self.try_all(traces);
    }

    fn try_all(&mut self, traces: Traces) -> Option<()> {
        let version = match self.bounded(1, Subject::Driver, &[], start)? {
            Ok(version) => version,
            Err(trouble) => {
                self.report.push(trouble_finding(&trouble, traces));
                return None;
            }
        };
        let kernel_module = driver::kernel_module();
        self.report
            .push(driver_finding(version, kernel_module.as_deref()));
        self.report.driver = Some(DriverFacts {
            cuda: version.to_string(),
            kernel_module,
        });
        let candidates = self.describe()?;
        let kernels = self.kernels(&candidates, version);
        let open = self.open(&candidates)?;
        if self.share(&open)? && kernels {
            self.reduce(&open)?;
        }
        Some(())
    }

    /// Reports every GPU. Those that can be used, by ordinal, with their architectures.
    fn describe(&mut self) -> Option<Vec<(u32, Arch)>> {
        let (gpus, links) = match self.bounded(1, Subject::Gpu, &[], facts)? {
            Ok(facts) => facts,
            Err(error) => {
                self.report.push(
                    Finding::not(Subject::Gpu, error)
                        .meaning(RESTART)
                        .blocking(true),
                );
                return None;
            }
        };
        let is_usable = |(gpu, arch): &&(GpuFacts, Arch)| {
            arch.runs_kernels() && gpu.compute_mode != ComputeMode::Prohibited
        };
        let candidates: Vec<(u32, Arch)> = gpus
            .iter()
            .filter(is_usable)
            .map(|(gpu, arch)| (gpu.ordinal, *arch))
            .collect();
        self.report.gpus = gpus.iter().map(|(gpu, _)| gpu.clone()).collect();
        self.report.links = links;
        for (gpu, arch) in gpus {
            let finding = gpu_finding(&gpu, arch.runs_kernels());
            self.report.push(finding.blocking(candidates.is_empty()));
        }
        Some(candidates)
    }

    /// Whether there are compiled kernels for every architecture.
    fn kernels(&mut self, gpus: &[(u32, Arch)], version: CudaVersion) -> bool {
        let mut architectures: Vec<Arch> = gpus.iter().map(|(_, arch)| *arch).collect();
        architectures.sort_unstable();
        architectures.dedup();
        let mut all = true;
        for arch in architectures {
            let of_it = gpus.iter().filter(|gpu| gpu.1 == arch).map(|gpu| gpu.0);
            let first_steps = format!(
                "run `cargo xtask precompile --arch sm_{arch}` and name its output with \
                 PEERSUM_CUBIN_DIR, or build with a released peersum-kernels, which carries cubins"
            );
            let finding = cubins(self.policy, arch, version, &first_steps);
            all &= finding.verdict != Verdict::Not;
            self.report.push(finding.on(of_it));
        }
        all
    }

    /// Opens a context on each GPU, with a stream, a page of locked memory and a handle of legacy
    /// IPC. `None` if no GPU opens.
    fn open(&mut self, gpus: &[(u32, Arch)]) -> Option<Vec<OpenGpu>> {
        let mut open = Vec::new();
        let mut without_handle = Vec::new();
        for &(ordinal, arch) in gpus {
            match self.bounded(1, Subject::Gpu, &[ordinal], move || open_one(ordinal))? {
                Ok((context, handle)) => {
                    open.push(OpenGpu {
                        ordinal,
                        arch,
                        context,
                    });
                    without_handle.extend(handle.err().map(|error| (ordinal, error)));
                }
                Err(error) => self.report.push(
                    Finding::not(Subject::Context, error)
                        .on([ordinal])
                        .meaning(
                            "this process cannot use the GPU: another one may hold it or its \
                             memory (`nvidia-smi`)",
                        )
                        .blocking(gpus.len() == 1),
                ),
            }
        }
        if open.is_empty() {
            return None;
        }
        let ordinals: Vec<u32> = open.iter().map(|gpu| gpu.ordinal).collect();
        self.report.push(
            Finding::works(
                Subject::Context,
                "opened, and a page of the host's memory locked and mapped",
            )
            .on(ordinals.clone()),
        );
        if without_handle.is_empty() {
            self.report.push(
                Finding::works(Subject::LegacyIpc, "a handle was made")
                    .on(ordinals)
                    .meaning(
                        "the fallback if memory cannot be shared as file descriptors. `cargo xtask \
                         doctor` tries whether another process can open it",
                    ),
            );
        }
        for (ordinal, error) in without_handle {
            self.report.push(
                Finding::not(Subject::LegacyIpc, error)
                    .on([ordinal])
                    .meaning("not needed if memory is shared as file descriptors"),
            );
        }
        Some(open)
    }

    /// Sends data both ways between every two GPUs, or between two ranks on the only one. False if
    /// that does not work everywhere.
    fn share(&mut self, open: &[OpenGpu]) -> Option<bool> {
        let pairs: Vec<[&OpenGpu; 2]> = match open {
            [only] => vec![[only, only]],
            _ => (0..open.len())
                .flat_map(|second| (0..second).map(move |first| [&open[first], &open[second]]))
                .collect(),
        };
        let mut right = Vec::new();
        let mut faults = Vec::new();
        for pair in &pairs {
            let ordinals = pair.map(|gpu| gpu.ordinal);
            match self.exchange(*pair)? {
                Ok(exchanged) => right.push((ordinals, exchanged)),
                Err(fault) => faults.push((ordinals, fault)),
            }
        }
        for (ordinals, exchanged) in &right {
            self.note(*ordinals, exchanged);
        }
        if !right.is_empty() {
            self.report.push(shared_finding(&right, pairs.len()));
        }
        let by_address =
            |(_, fault): &(_, SharingFault)| matches!(fault, SharingFault::ByAddress(_));
        let any = !right.is_empty() || faults.iter().any(by_address);
        let all = faults.iter().all(by_address);
        for (ordinals, fault) in faults {
            let mut ordinals = ordinals.to_vec();
            ordinals.dedup();
            self.report.push(fault.finding(!any).on(ordinals));
        }
        if open.len() > 1 {
            for finding in link_findings(&self.report.links) {
                self.report.push(finding);
            }
        }
        Some(all)
    }

    /// What both ranks saw if every byte arrived by file descriptors, else why not.
    fn exchange(&mut self, pair: [&OpenGpu; 2]) -> Option<Result<Vec<Exchanged>, SharingFault>> {
        let arrived = |exchanged: &[Exchanged]| exchanged.iter().all(Exchanged::all_arrived);
        let reason = match self.exchange_by(MemorySharing::FileDescriptor, pair)? {
            Ok(exchanged) if arrived(&exchanged) => return Some(Ok(exchanged)),
            Ok(exchanged) => return Some(Err(SharingFault::Wrong(exchanged))),
            Err(reason) => reason,
        };
        Some(Err(
            match self.exchange_by(MemorySharing::LegacyIpc, pair)? {
                Ok(exchanged) if arrived(&exchanged) => SharingFault::ByAddress(reason),
                Ok(exchanged) => SharingFault::Wrong(exchanged),
                Err(other) if other == reason => SharingFault::Failed(reason),
                Err(other) => SharingFault::Failed(format!("{reason}; by address: {other}")),
            },
        ))
    }

    /// What both ranks saw, or the error of one.
    fn exchange_by(
        &mut self,
        sharing: MemorySharing,
        pair: [&OpenGpu; 2],
    ) -> Option<Result<Vec<Exchanged>, String>> {
        let gpus = pair.map(Clone::clone);
        let patience = self.patience;
        let ordinals = pair.map(|gpu| gpu.ordinal);
        self.bounded(STEPS, Subject::SharedMemory, &ordinals, move || {
            let on = |rank: usize, error: &dyn std::error::Error| {
                format!("GPU {}: {error}", gpus[rank].ordinal)
            };
            let stream =
                |rank: usize| new_stream(&gpus[rank].context).map_err(|error| on(rank, &error));
            exchange_between([&stream(0)?, &stream(1)?], sharing, patience)
                .map_err(|(rank, error)| on(rank, &error))
        })
    }

    /// Keeps what was measured beside what the driver says of the two links.
    fn note(&mut self, [first, second]: [u32; 2], exchanged: &[Exchanged]) {
        for link in &mut self.report.links {
            let reader = match (link.from, link.to) {
                ends if ends == (first, second) => &exchanged[0],
                ends if ends == (second, first) => &exchanged[1],
                _ => continue,
            };
            link.data_arrived = Some(reader.all_arrived());
            link.gigabytes_per_second = Some(reader.gigabytes_per_second);
        }
    }

    /// Sums over all GPUs, or over two ranks on the only one.
    fn reduce(&mut self, open: &[OpenGpu]) -> Option<()> {
        let ranks: Vec<OpenGpu> = match open {
            [only] => vec![only.clone(), only.clone()],
            _ => open.iter().take(MOST_RANKS).cloned().collect(),
        };
        let mut ordinals: Vec<u32> = ranks.iter().map(|rank| rank.ordinal).collect();
        ordinals.dedup();
        let world_size = ranks.len();
        let archs_differ = ranks.iter().any(|rank| rank.arch != ranks[0].arch);
        let (policy, patience) = (self.policy.clone(), self.patience);
        let outcome = self.bounded(STEPS, Subject::AllReduce, &ordinals, move || {
            let streams: Vec<Arc<CudaStream>> = ranks
                .iter()
                .map(|rank| new_stream(&rank.context))
                .collect::<Result<_, _>>()
                .map_err(|error| (0, error.into()))?;
            all_reduce_between(&streams, &policy, patience)
        })?;
        let mut finding = all_reduce_finding(Subject::AllReduce, world_size, outcome).on(ordinals);
        if archs_differ && finding.verdict != Verdict::Works {
            finding = finding.meaning(
                "the GPUs are of different architectures, which a group may not be able to mix",
            );
        }
        self.report.push(finding);
        Some(())
    }

    /// Runs a check that may take so many times the patience. If it gives no answer, that is
    /// reported, and nothing that would need the driver after it is tried.
    fn bounded<T: Send + 'static>(
        &mut self,
        times: u32,
        subject: Subject,
        gpus: &[u32],
        check: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        match bounded(self.patience * times, check) {
            Ok(answer) => Some(answer),
            Err(unanswered) => {
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
                None
            }
        }
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

/// A new stream of a GPU, for [`TwoProcesses`](crate::TwoProcesses).
///
/// # Errors
/// As [`peersum::open_context`].
pub fn open_stream(ordinal: u32) -> Result<Arc<CudaStream>, DeviceError> {
    new_stream(&peersum::open_context(ordinal)?)
}
