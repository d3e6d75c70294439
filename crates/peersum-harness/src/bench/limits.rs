//! The limits of the machine, measured in the same run by the kernels of `limits.cu`.

use std::ffi::{c_char, c_uint, c_void};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use peersum::Cuda;
use peersum::cudarc::driver::sys::{
    self, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue, CUlaunchConfig,
};
use peersum::cudarc::driver::{CudaContext, CudaFunction, CudaStream};
use peersum::cudarc::nvrtc::Ptx;
use peersum::device::{Device, Export, Import, MemorySharing};
use peersum::dispatch::Topology;

use super::report::{ByPdl, Copied, Limits};
use super::timing::{EventTimer, Method, median, rounded, shortest, time_recorded, time_replays};
use crate::machine::{Gpus, Machine};
use crate::ranks::{Member, Peers, run_threads};

/// The control page in front of each rank's data, in bytes. As in limits.cu.
const DATA_OFFSET: u64 = 4096;
/// Where the kernels say that a wait took too long. As in limits.cu.
const FAILED_OFFSET: u64 = 520;
/// The bytes that each rank stores or loads to measure a bandwidth: more than any cache holds.
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

struct Kernels {
    empty: CudaFunction,
    exchange: CudaFunction,
    store: CudaFunction,
    load: CudaFunction,
    copy: CudaFunction,
    ping_pong: CudaFunction,
    /// Whether the device supports programmatic dependent launch.
    pdl: bool,
}

impl Kernels {
    fn load(context: &Arc<CudaContext>, directory: &Path) -> Result<Kernels> {
        let (major, minor) = context.compute_capability()?;
        let path = directory.join(format!("limits.sm_{major}{minor}.cubin"));
        let cubin = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let module = context
            .load_module(Ptx::from_binary(cubin))
            .with_context(|| format!("loading {}", path.display()))?;
        let function = |name: &str| module.load_function(&format!("peersum_limit_{name}"));
        Ok(Kernels {
            empty: function("empty")?,
            exchange: function("exchange")?,
            store: function("store")?,
            load: function("load")?,
            copy: function("copy")?,
            ping_pong: function("ping_pong")?,
            pdl: major >= 9,
        })
    }
}

/// One rank with the memory of all.
struct Rank<'a> {
    device: Cuda,
    stream: Arc<CudaStream>,
    timer: EventTimer,
    kernels: Kernels,
    parameters: Parameters,
    /// Blocks of kernels that move bytes: this rank's share of its device.
    blocks: u32,
    peers: Peers<'a>,
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
    let ranks = run_threads(world_size, 0, |member| {
        let stream = gpus.stream(member.peers.rank())?;
        let context = gpus.context(member.peers.rank());
        context.bind_to_thread()?;
        let kernels = Kernels::load(context, directory)?;
        let sharing = world_size.div_ceil(gpus.devices());
        measure_rank(&member, stream, kernels, data_bytes, sharing, |rank| {
            rank.measure_all(link, bytes, method)
        })
    })?;
    // All ranks compute the same result from the times of all.
    ranks.into_iter().next().context("a group without ranks")
}

/// Runs `body` as a rank that can reach the memory of all. `sharing` ranks share its GPU.
fn measure_rank<R>(
    member: &Member<'_>,
    stream: Arc<CudaStream>,
    kernels: Kernels,
    data_bytes: u64,
    sharing: u32,
    body: impl FnOnce(&mut Rank<'_>) -> Result<R>,
) -> Result<R> {
    let peers = member.peers;
    let rank = peers.rank();
    let device = Cuda::open(&stream)?;
    let total = DATA_OFFSET + 2 * data_bytes;
    let allocation = device.allocate_shared(total as usize, MemorySharing::Auto)?;
    let own = device.allocation_address(&allocation);
    // SAFETY: the allocation has so many bytes and lives to the end of this function.
    unsafe { device.fill(own, 0, total as usize / 4)? };
    device.synchronize()?;
    let exports = peers.gather(Arc::new(device.export(&allocation, true)?))?;
    let mut parameters = Parameters {
        data_bytes,
        timeout_ns: TIMEOUT.as_nanos() as u64,
        rank,
        world_size: exports.len() as u32,
        rounds: ROUNDS,
        ..Parameters::default()
    };
    let mut mappings = Vec::new();
    for (peer, export) in exports.iter().enumerate() {
        if peer == rank as usize {
            parameters.memory[peer] = own;
            continue;
        }
        let import = match &**export {
            Export::Fd(fd) => Import::Fd(fd.as_fd()),
            Export::LegacyIpc(handle) => Import::LegacyIpc(*handle),
            Export::SameProcess(address) => Import::SameProcess(*address),
        };
        let mapping = device.import(import, total as usize)?;
        parameters.memory[peer] = device.mapping_address(&mapping);
        mappings.push(mapping);
    }
    let mut this = Rank {
        timer: EventTimer::new(&stream)?,
        kernels,
        blocks: (device.identity()?.multiprocessors / sharing).max(1),
        peers,
        device,
        stream,
        parameters,
    };
    let measured = body(&mut this);
    this.device.synchronize()?;
    // No kernel of a peer may be running when this rank's memory is freed.
    peers.meet()?;
    measured
}

impl Rank<'_> {
    fn measure_all(&mut self, link: Topology, bytes: &[usize], method: Method) -> Result<Limits> {
        let (empty, exchange) = (self.kernels.empty.clone(), self.kernels.exchange.clone());
        let mut by_pdl = |kernel: CudaFunction| -> Result<ByPdl> {
            let off = self.time(&kernel, 1, 128, false, method)?;
            // Without support for the attribute both times are the same.
            let on = match self.kernels.pdl {
                true => self.time(&kernel, 1, 128, true, method)?,
                false => off,
            };
            Ok(ByPdl { on, off })
        };
        let (empty_us, exchange_us) = (by_pdl(empty)?, by_pdl(exchange)?);
        let one_way_us = self.ping_pong()?;
        let bulk = Method {
            calls: 10,
            warm_up: 1,
            replays: 5,
        };
        let pdl = self.kernels.pdl;
        self.parameters.bytes = BULK_BYTES;
        let (store, load) = (self.kernels.store.clone(), self.kernels.load.clone());
        let store_us = self.time(&store, self.blocks, THREADS, pdl, bulk)?;
        let load_us = self.time(&load, self.blocks, THREADS, pdl, bulk)?;
        let gb_s = |us: f64| (BULK_BYTES as f64 / us / 10.0).round() / 100.0;
        let mut copies = Vec::new();
        if link == Topology::Shared {
            let mut sizes: Vec<u64> = bytes.iter().map(|bytes| *bytes as u64).collect();
            sizes.push(16);
            sizes.sort_unstable();
            sizes.dedup();
            for bytes in sizes {
                let us = self.copy(bytes, method)?;
                copies.push(Copied { bytes, us });
            }
        }
        let mut failed = [0; 8];
        let own = self.parameters.memory[self.parameters.rank as usize];
        // SAFETY: the control page is this rank's own memory.
        unsafe { self.device.read(own + FAILED_OFFSET, &mut failed)? };
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
            store_gb_s: gb_s(store_us),
            load_gb_s: gb_s(load_us),
            copies,
        })
    }

    /// The best of a few shapes, since there is no table for copies.
    fn copy(&mut self, bytes: u64, method: Method) -> Result<f64> {
        self.parameters.bytes = bytes.next_multiple_of(16);
        let kernel = self.kernels.copy.clone();
        let units = self.parameters.bytes / 16;
        let mut best = f64::INFINITY;
        for (threads, units_a_thread) in [(128, 1), (256, 1), (512, 1), (512, 4)] {
            let blocks = units.div_ceil(threads * units_a_thread);
            let blocks = blocks.min(u64::from(self.blocks)) as u32;
            let us = self.time(&kernel, blocks, threads as u32, self.kernels.pdl, method)?;
            best = best.min(us);
        }
        Ok(best)
    }

    /// Half a round of the ping-pong between ranks 0 and 1.
    fn ping_pong(&mut self) -> Result<f64> {
        let method = Method {
            calls: 1,
            warm_up: 1,
            replays: 5,
        };
        let kernel = self.kernels.ping_pong.clone();
        let (stream, parameters) = (Arc::clone(&self.stream), self.parameters);
        let plays = parameters.rank < 2;
        let times = time_replays(&mut self.timer, self.peers, method, || {
            if plays {
                // SAFETY: as in `time`.
                unsafe { launch(&stream, &kernel, 1, 32, false, &parameters)? };
            }
            Ok(())
        })?;
        // The clocks of both players cover all rounds; those of the other ranks cover nothing.
        let own = if plays { median(&times) } else { f64::INFINITY };
        let all = self.peers.gather(own)?;
        let us = all.into_iter().fold(f64::INFINITY, f64::min);
        Ok(rounded(us / f64::from(2 * ROUNDS)))
    }

    /// The median time of one kernel in a graph of `method.calls`, of the rank that began last, in
    /// microseconds.
    fn time(
        &mut self,
        kernel: &CudaFunction,
        blocks: u32,
        threads: u32,
        pdl: bool,
        method: Method,
    ) -> Result<f64> {
        let (stream, parameters) = (Arc::clone(&self.stream), self.parameters);
        // SAFETY: the kernel touches the control pages and data areas of all ranks' memory, which
        // is mapped until all ranks have met at the end.
        let times = unsafe {
            time_recorded(&self.device, &mut self.timer, self.peers, method, || {
                launch(&stream, kernel, blocks, threads, pdl, &parameters)
            })?
        };
        let all = self.peers.gather(times)?;
        Ok(rounded(median(&shortest(&all))))
    }
}

/// Enqueues a kernel that takes [`Parameters`].
///
/// # Safety
/// What the parameters name is mapped until the kernel has ended.
unsafe fn launch(
    stream: &CudaStream,
    kernel: &CudaFunction,
    blocks: u32,
    threads: u32,
    pdl: bool,
    parameters: &Parameters,
) -> Result<()> {
    let mut value = CUlaunchAttributeValue {
        pad: [0 as c_char; 64],
    };
    value.programmaticStreamSerializationAllowed = 1;
    let mut programmatic = CUlaunchAttribute {
        id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value,
    };
    let config = CUlaunchConfig {
        gridDimX: blocks,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: 0,
        hStream: stream.cu_stream(),
        attrs: &raw mut programmatic,
        numAttrs: c_uint::from(pdl),
    };
    let mut arguments: [*mut c_void; 1] = [(&raw const *parameters).cast_mut().cast()];
    // SAFETY: each kernel of limits.cu takes one argument, which the driver copies before it
    // returns, as it does the configuration. The rest is the caller's promise.
    unsafe {
        sys::cuLaunchKernelEx(
            &raw const config,
            kernel.cu_function(),
            arguments.as_mut_ptr(),
            std::ptr::null_mut(),
        )
    }
    .result()
    .context("cuLaunchKernelEx")
}
