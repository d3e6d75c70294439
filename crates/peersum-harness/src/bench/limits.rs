//! The limits of the machine, measured in the same run by the kernels of `limits.cu`.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use peersum::Cuda;
use peersum::cuda::launch_function;
use peersum::cudarc::driver::CudaModule;
use peersum::cudarc::nvrtc::Ptx;
use peersum::device::{Device, Export, Import, MemorySharing};
use peersum::dispatch::Topology;

use super::measured_limits::{ByPdl, Copied, Limits};
use super::ranks::run_ranks;
use super::timing::{Launch, Method, Stopwatch, median, rounded};
use crate::machine::{Gpus, Machine};

/// The control page in front of each rank's data, in bytes. As in limits.cu.
const DATA_OFFSET: u64 = 4096;
/// Where the kernels say that a wait took too long. As in limits.cu.
const FAILED_OFFSET: u64 = 520;
/// The bytes that each rank stores to measure a bandwidth: more than any cache holds.
const BULK_BYTES: u64 = 64 << 20;
/// Rounds of one ping-pong.
const ROUNDS: u32 = 1000;
/// Maximum time that a kernel waits.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Threads of kernels that move bytes.
const THREADS: u32 = 512;

/// The one argument of the kernels; `Parameters` in limits.cu.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct Parameters {
    memory: [u64; 8],
    bytes: u64,
    data_bytes: u64,
    timeout_ns: u64,
    rank: u32,
    world_size: u32,
    rounds: u32,
    reserved: u32,
}

/// One rank with the memory of all.
struct Rank<'a> {
    stopwatch: Stopwatch<'a, Cuda>,
    kernels: Arc<CudaModule>,
    parameters: Parameters,
    /// Blocks of kernels that move bytes: this rank's share of its device.
    blocks: u32,
    /// Whether the device supports programmatic dependent launch.
    pdl: bool,
}

/// Measures the limits of one world size, for calls of `bytes`.
///
/// # Errors
/// The kernels' cubin is not in `directory`, memory cannot be shared, or a rank failed.
pub(crate) fn measure(
    gpus: &Gpus,
    directory: &Path,
    world_size: u32,
    bytes: &[usize],
    method: Method,
) -> Result<Limits> {
    let link = gpus.link(world_size);
    let largest = bytes.iter().copied().max().unwrap_or(0) as u64;
    let data_bytes = largest.max(BULK_BYTES).next_multiple_of(4096);
    run_ranks(gpus, world_size, |stopwatch, _| {
        let context = gpus.context(stopwatch.peers.rank());
        context.bind_to_thread()?;
        let (major, minor) = context.compute_capability()?;
        let path = directory.join(format!("limits.sm_{major}{minor}.cubin"));
        let cubin = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let kernels = context
            .load_module(Ptx::from_binary(cubin))
            .with_context(|| format!("loading {}", path.display()))?;
        // Ranks that share a GPU share its multiprocessors.
        let sharing = world_size.div_ceil(gpus.devices());
        let blocks = stopwatch.device.identity()?.multiprocessors / sharing;
        let rank = Rank {
            stopwatch,
            kernels,
            parameters: Parameters::default(),
            blocks: blocks.max(1),
            pdl: major >= 9,
        };
        rank.with_memory(data_bytes, |rank| rank.measure_all(link, bytes, method))
    })
}

impl Rank<'_> {
    /// Runs `body` while this rank can reach the memory of all.
    fn with_memory<R>(
        mut self,
        data_bytes: u64,
        body: impl FnOnce(&Self) -> Result<R>,
    ) -> Result<R> {
        let (device, peers) = (&self.stopwatch.device, self.stopwatch.peers);
        let total = DATA_OFFSET + 2 * data_bytes;
        let allocation = device.allocate_shared(total as usize, MemorySharing::Auto)?;
        let own = device.allocation_address(&allocation);
        // SAFETY: the allocation has so many bytes and lives to the end of this function.
        unsafe { device.fill(own, 0, total as usize / 4)? };
        device.synchronize()?;
        let exports = peers.gather(Arc::new(device.export(&allocation, true)?))?;
        self.parameters = Parameters {
            data_bytes,
            timeout_ns: TIMEOUT.as_nanos() as u64,
            rank: peers.rank(),
            world_size: exports.len() as u32,
            rounds: ROUNDS,
            ..Parameters::default()
        };
        let mut mappings = Vec::new();
        for (peer, export) in exports.iter().enumerate() {
            if peer == peers.rank() as usize {
                self.parameters.memory[peer] = own;
                continue;
            }
            let import = match &**export {
                Export::Fd(fd) => Import::Fd(fd.as_fd()),
                Export::LegacyIpc(handle) => Import::LegacyIpc(*handle),
                Export::SameProcess(address) => Import::SameProcess(*address),
            };
            let mapping = device.import(import, total as usize)?;
            self.parameters.memory[peer] = device.mapping_address(&mapping);
            mappings.push(mapping);
        }
        let measured = body(&self);
        device.synchronize()?;
        // No kernel of a peer may be running when this rank's memory is freed.
        peers.meet()?;
        measured
    }

    fn measure_all(&self, link: Topology, bytes: &[usize], method: Method) -> Result<Limits> {
        let by_pdl = |kernel| -> Result<ByPdl> {
            let off = self.time(kernel, 1, 128, 0, false, method)?;
            // Without support for the attribute both times are the same.
            let on = match self.pdl {
                true => self.time(kernel, 1, 128, 0, true, method)?,
                false => off,
            };
            Ok(ByPdl { on, off })
        };
        let (empty_us, exchange_us) = (by_pdl("empty")?, by_pdl("exchange")?);
        let one_way_us = self.ping_pong()?;
        let bulk = Method {
            calls: 10,
            warm_up: 1,
            replays: 5,
            ..method
        };
        let store_us = self.time("store", self.blocks, THREADS, BULK_BYTES, self.pdl, bulk)?;
        let mut copies = Vec::new();
        if link == Topology::Shared {
            let mut sizes = BTreeSet::from([16]);
            sizes.extend(bytes.iter().map(|&bytes| bytes as u64));
            for bytes in sizes {
                let us = self.copy(bytes, method)?;
                copies.push(Copied { bytes, us });
            }
        }
        let mut failed = [0; 8];
        let own = self.parameters.memory[self.parameters.rank as usize];
        // SAFETY: the control page is this rank's own memory.
        unsafe {
            self.stopwatch
                .device
                .read(own + FAILED_OFFSET, &mut failed)?
        };
        ensure!(
            failed == [0; 8],
            "a rank waited longer than {TIMEOUT:?} for a peer's word: the ranks' kernels do not \
             run at the same time"
        );
        Ok(Limits {
            world_size: self.parameters.world_size,
            link,
            empty_us,
            exchange_us,
            one_way_us,
            store_gb_s: (BULK_BYTES as f64 / store_us / 10.0).round() / 100.0,
            copies,
        })
    }

    /// The best of a few shapes, since there is no table for copies.
    fn copy(&self, bytes: u64, method: Method) -> Result<f64> {
        let bytes = bytes.next_multiple_of(16);
        let mut best = f64::INFINITY;
        for (threads, units_a_thread) in [(128, 1), (256, 1), (512, 1), (512, 4)] {
            let blocks = (bytes / 16).div_ceil(u64::from(threads) * units_a_thread);
            let blocks = blocks.min(u64::from(self.blocks)) as u32;
            best = best.min(self.time("copy", blocks, threads, bytes, self.pdl, method)?);
        }
        Ok(best)
    }

    /// Half a round of the ping-pong between ranks 0 and 1.
    fn ping_pong(&self) -> Result<f64> {
        let method = Method {
            launch: Launch::Eager,
            calls: 1,
            warm_up: 1,
            replays: 5,
        };
        let launch = self.launch("ping_pong", 1, 32, 0, false)?;
        let plays = self.parameters.rank < 2;
        let replay = || if plays { launch() } else { Ok(()) };
        let (times, _) = self.stopwatch.replay(method, replay)?;
        // The clocks of both players cover all rounds; those of the other ranks cover nothing.
        let own = if plays { median(&times) } else { f64::INFINITY };
        let all = self.stopwatch.peers.gather(own)?;
        let us = all.into_iter().fold(f64::INFINITY, f64::min);
        Ok(rounded(us / f64::from(2 * ROUNDS)))
    }

    /// The median time of one kernel in a graph of `method.calls`, of the rank that began last, in
    /// microseconds.
    fn time(
        &self,
        kernel: &str,
        blocks: u32,
        threads: u32,
        bytes: u64,
        pdl: bool,
        method: Method,
    ) -> Result<f64> {
        let launch = self.launch(kernel, blocks, threads, bytes, pdl)?;
        let graph = Method {
            launch: Launch::Graph,
            ..method
        };
        // SAFETY: what the kernel touches is mapped until all ranks have met at the end.
        let times = unsafe { self.stopwatch.time(graph, |_| launch())? };
        Ok(rounded(median(&times.shortest())))
    }

    /// What enqueues a kernel of limits.cu.
    fn launch(
        &self,
        kernel: &str,
        blocks: u32,
        threads: u32,
        bytes: u64,
        pdl: bool,
    ) -> Result<impl Fn() -> Result<()>> {
        let function = self
            .kernels
            .load_function(&format!("peersum_limit_{kernel}"))?;
        let stream = self.stopwatch.device.stream().cu_stream();
        let parameters = Parameters {
            bytes,
            ..self.parameters
        };
        Ok(move || {
            // SAFETY: each kernel of limits.cu takes these parameters. It touches the control pages
            // and data areas of all ranks' memory, which is mapped until all ranks have met.
            unsafe {
                let function = function.cu_function();
                launch_function(stream, function, [blocks, 1, 1], threads, pdl, &parameters)?;
            }
            Ok(())
        })
    }
}
