//! The GPUs: what each is, what memory they share, and a sum over all of them.

use std::collections::{BTreeMap, BTreeSet};
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
    driver_finding, gpu_finding, link_findings, shared_by_address, shared_finding, trouble_finding,
    unshared, wrong_data,
};

/// The most ranks of a communicator.
const MOST_RANKS: usize = 8;

/// One look at the GPUs.
pub(crate) struct Gpus<'a> {
    pub(crate) report: &'a mut Report,
    pub(crate) policy: &'a LoadPolicy,
    pub(crate) patience: Duration,
}

impl Gpus<'_> {
    /// Looks at the driver, and at what it has.
    pub(crate) fn examine(mut self, traces: Traces) {
        if let Err(in_the_way) = self.try_all(traces) {
            self.report.push(in_the_way);
        }
    }

    /// # Errors
    /// What is in the way of all that would follow.
    fn try_all(&mut self, traces: Traces) -> Result<(), Finding> {
        let version = self
            .bounded(1, Subject::Driver, &[], start)?
            .map_err(|trouble| trouble_finding(&trouble, traces))?;
        let kernel_module = driver::kernel_module();
        self.report
            .push(driver_finding(version, kernel_module.as_deref()));
        self.report.driver = Some(DriverFacts {
            cuda: version.to_string(),
            kernel_module,
        });
        let usable = self.describe()?;
        let kernels = self.kernels(&usable, version);
        let open = self.open(&usable)?;
        if !open.is_empty() && self.share(&open)? && kernels {
            self.reduce(&open, &usable)?;
        }
        Ok(())
    }

    /// Reports every GPU. Those that can be used, by ordinal, with their architectures.
    fn describe(&mut self) -> Result<BTreeMap<u32, Arch>, Finding> {
        let (gpus, links) = self
            .bounded(1, Subject::Gpu, &[], facts)?
            .map_err(|error| {
                Finding::not(Subject::Gpu, error)
                    .meaning(RESTART)
                    .blocking(true)
            })?;
        let is_usable = |(gpu, arch): &&(GpuFacts, Arch)| {
            arch.runs_kernels() && gpu.compute_mode != ComputeMode::Prohibited
        };
        let usable: BTreeMap<u32, Arch> = gpus
            .iter()
            .filter(is_usable)
            .map(|(gpu, arch)| (gpu.ordinal, *arch))
            .collect();
        self.report.gpus = gpus.iter().map(|(gpu, _)| gpu.clone()).collect();
        self.report.links = links;
        for (gpu, arch) in gpus {
            let finding = gpu_finding(&gpu, arch.runs_kernels());
            self.report.push(finding.blocking(usable.is_empty()));
        }
        Ok(usable)
    }

    /// Whether there are compiled kernels for every architecture.
    fn kernels(&mut self, gpus: &BTreeMap<u32, Arch>, version: CudaVersion) -> bool {
        let mut by_arch: BTreeMap<Arch, Vec<u32>> = BTreeMap::new();
        for (&ordinal, &arch) in gpus {
            by_arch.entry(arch).or_default().push(ordinal);
        }
        let mut all = true;
        // All of them: the output of one command takes the place of the one before.
        let archs: Vec<String> = by_arch.keys().map(|arch| format!("sm_{arch}")).collect();
        let first_steps = format!(
            "run `cargo xtask precompile --arch {}` and name its output with PEERSUM_CUBIN_DIR, or \
             build with a released peersum-kernels, which carries cubins",
            archs.join(",")
        );
        for (arch, of_it) in by_arch {
            let finding = cubins(self.policy, arch, version, &first_steps);
            all &= finding.verdict != Verdict::Not;
            self.report.push(finding.on(of_it));
        }
        all
    }

    /// Opens a context on each GPU, with a stream and a page of locked memory.
    fn open(&mut self, gpus: &BTreeMap<u32, Arch>) -> Result<Vec<Arc<CudaContext>>, Finding> {
        let mut open = Vec::new();
        for &ordinal in gpus.keys() {
            match self.bounded(1, Subject::Gpu, &[ordinal], move || open_one(ordinal))? {
                Ok(context) => open.push(context),
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
        if !open.is_empty() {
            let seen = "opened, and a page of the host's memory locked and mapped";
            let opened = Finding::works(Subject::Context, seen);
            self.report.push(opened.on(open.iter().map(ordinal)));
        }
        Ok(open)
    }

    /// Sends data both ways between every two GPUs, or between two ranks on the only one. False if
    /// that does not work everywhere.
    fn share(&mut self, open: &[Arc<CudaContext>]) -> Result<bool, Finding> {
        let pairs: Vec<[&Arc<CudaContext>; 2]> = match open {
            [only] => vec![[only, only]],
            _ => (0..open.len())
                .flat_map(|second| (0..second).map(move |first| [&open[first], &open[second]]))
                .collect(),
        };
        let mut right = Vec::new();
        let mut faults = Vec::new();
        for &pair in &pairs {
            let ordinals = pair.map(ordinal);
            let (gpus, patience) = (pair.map(Arc::clone), self.patience);
            let exchange = move || exchange(&gpus, patience);
            match self.bounded(STEPS, Subject::SharedMemory, &ordinals, exchange)? {
                Ok(exchanged) => right.push((ordinals, exchanged)),
                Err(fault) => faults.push(fault.on(ordinals)),
            }
        }
        for (ordinals, exchanged) in &right {
            self.note(*ordinals, exchanged);
        }
        if !right.is_empty() {
            self.report.push(shared_finding(&right, pairs.len()));
        }
        let by_address = |fault: &Finding| fault.verdict == Verdict::Slower;
        let any = !right.is_empty() || faults.iter().any(by_address);
        let all = faults.iter().all(by_address);
        for fault in faults {
            let blocking = !any && !by_address(&fault);
            self.report.push(fault.blocking(blocking));
        }
        if open.len() > 1 {
            for finding in link_findings(&self.report.links) {
                self.report.push(finding);
            }
        }
        Ok(all)
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
    fn reduce(
        &mut self,
        open: &[Arc<CudaContext>],
        usable: &BTreeMap<u32, Arch>,
    ) -> Result<(), Finding> {
        let ranks: Vec<Arc<CudaContext>> = match open {
            [only] => vec![Arc::clone(only); 2],
            _ => open.iter().take(MOST_RANKS).cloned().collect(),
        };
        let world_size = ranks.len();
        let ordinals: Vec<u32> = ranks.iter().map(ordinal).collect();
        let (policy, patience) = (self.policy.clone(), self.patience);
        let outcome = self.bounded(STEPS, Subject::AllReduce, &ordinals, move || {
            let streams: Vec<Arc<CudaStream>> = ranks
                .iter()
                .map(new_stream)
                .collect::<Result<_, _>>()
                .map_err(|error| (0, error.into()))?;
            all_reduce_between(&streams, &policy, patience)
        })?;
        let archs: BTreeSet<Option<&Arch>> = ordinals.iter().map(|gpu| usable.get(gpu)).collect();
        let mut finding = all_reduce_finding(Subject::AllReduce, world_size, outcome).on(ordinals);
        if archs.len() > 1 && finding.verdict != Verdict::Works {
            finding = finding.meaning(
                "the GPUs are of different architectures, which a group may not be able to mix",
            );
        }
        self.report.push(finding);
        Ok(())
    }

    /// Runs a check that may take so many times the patience.
    ///
    /// # Errors
    /// It gave no answer: nothing that would need the driver after it should be tried.
    fn bounded<T: Send + 'static>(
        &self,
        times: u32,
        subject: Subject,
        gpus: &[u32],
        check: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Finding> {
        bounded(self.patience * times, check).map_err(|unanswered| {
            Finding::not(subject, unanswered)
                .on(gpus.iter().copied())
                .meaning(format!(
                    "{RESTART}. Further checks of the GPUs were left out"
                ))
                .blocking(true)
        })
    }
}

/// What both ranks saw if every byte arrived by file descriptors, else what is wrong.
fn exchange(gpus: &[Arc<CudaContext>; 2], patience: Duration) -> Result<Vec<Exchanged>, Finding> {
    let share_by = |sharing| {
        let on = |rank: usize, error: &dyn std::error::Error| {
            format!("GPU {}: {error}", ordinal(&gpus[rank]))
        };
        let stream = |rank: usize| new_stream(&gpus[rank]).map_err(|error| on(rank, &error));
        exchange_between([&stream(0)?, &stream(1)?], sharing, patience)
            .map_err(|(rank, error)| on(rank, &error))
    };
    let arrived = |exchanged: &[Exchanged]| exchanged.iter().all(Exchanged::all_arrived);
    let reason = match share_by(MemorySharing::FileDescriptor) {
        Ok(exchanged) if arrived(&exchanged) => return Ok(exchanged),
        Ok(exchanged) => return Err(wrong_data(&exchanged)),
        Err(reason) => reason,
    };
    Err(match share_by(MemorySharing::LegacyIpc) {
        Ok(exchanged) if arrived(&exchanged) => shared_by_address(&reason),
        Ok(exchanged) => wrong_data(&exchanged),
        Err(other) if other == reason => unshared(reason),
        Err(other) => unshared(format!("{reason}; by address: {other}")),
    })
}

fn ordinal(context: &Arc<CudaContext>) -> u32 {
    u32::try_from(context.ordinal()).unwrap_or(u32::MAX)
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

/// A context in which a page could be locked.
fn open_one(ordinal: u32) -> Result<Arc<CudaContext>, DeviceError> {
    let context = open_gpu(ordinal)?;
    Cuda::open(&new_stream(&context)?)?.allocate_status()?;
    Ok(context)
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
