//! NCCL's all-reduce, by the same method as peersum's.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use peersum::Cuda;
use peersum::cudarc::driver::{CudaStream, DevicePtr};
use peersum::device::Device;
use peersum::dispatch::Topology;
use peersum_artifact::Dtype;

use super::arguments::BenchArgs;
use crate::bench::build::Build;
use crate::bench::nccl::{Nccl, OwnedCommunicator, SymmetricMemory};
use crate::bench::report::{Call, Launch, Report, System};
use crate::bench::sample::{Sample, merge};
use crate::bench::timing::{EventTimer, time_eager, time_recorded};
use crate::machine::{Gpus, Machine};
use crate::ranks::{Peers, run_threads};

/// Measures NCCL by the same method, for groups with a GPU for each rank.
pub(super) fn measure_nccl(args: &BenchArgs, gpus: &Gpus, report: &mut Report) {
    let smallest = args.world_size.iter().copied().min().unwrap_or(0);
    let notes = &mut report.notes;
    let Some(nccl) = args.nccl.open(smallest, gpus.devices(), notes) else {
        return;
    };
    let world_sizes = args.world_size.iter().copied();
    let world_sizes: Vec<u32> = world_sizes.filter(|size| *size <= gpus.devices()).collect();
    report.nccl = Some(nccl.version().to_owned());
    for world_size in world_sizes {
        for system in [System::Nccl, System::NcclSymmetric] {
            eprintln!("NCCL {}, {world_size} ranks, {system:?}", nccl.version());
            match measure(&nccl, args, gpus, system, world_size) {
                Ok(measured) => {
                    let cells = measured.iter().map(|sample| sample.cell(&report.limits));
                    report.cells.extend(cells);
                }
                Err(error) if nccl.lacks(system) => report.notes.push(format!("{error:#}")),
                Err(error) => report
                    .failures
                    .push(format!("{system:?} with {world_size} ranks: {error:#}")),
            }
        }
    }
}

/// Measures one group: one rank a GPU, all threads of this process.
///
/// # Errors
/// There are fewer GPUs than ranks, this NCCL has no symmetric windows, or NCCL or the driver
/// refuses something.
fn measure(
    nccl: &Nccl,
    args: &BenchArgs,
    gpus: &Gpus,
    system: System,
    world_size: u32,
) -> Result<Vec<Sample>> {
    ensure!(
        !nccl.lacks(system),
        "NCCL {} has no symmetric windows, which came with 2.27",
        nccl.version()
    );
    let communicators = nccl.communicators(gpus, world_size)?;
    let ranks = run_threads(world_size, 0, |member| {
        let rank = member.peers.rank();
        let communicator = communicators
            .get(rank as usize)
            .context("a communicator for each rank")?;
        Rank {
            args,
            communicator,
            stream: gpus.stream(rank)?,
            peers: member.peers,
            world_size,
        }
        .measure(system)
    })?;
    merge(ranks)
}

/// One rank.
struct Rank<'a> {
    args: &'a BenchArgs,
    communicator: &'a OwnedCommunicator<'a>,
    stream: Arc<CudaStream>,
    peers: Peers<'a>,
    world_size: u32,
}

/// Where messages are.
struct Buffers {
    input: u64,
    output: u64,
}

impl Rank<'_> {
    fn measure(&self, system: System) -> Result<Vec<Sample>> {
        self.stream.context().bind_to_thread()?;
        let largest = self.args.call.largest_bytes();
        if system == System::NcclSymmetric {
            let input = SymmetricMemory::new(self.communicator, largest)?;
            let output = SymmetricMemory::new(self.communicator, largest)?;
            let buffers = Buffers {
                input: input.address(),
                output: output.address(),
            };
            let measured = self.measure_in(system, &buffers);
            self.stream.synchronize()?;
            self.peers.meet()?;
            measured
        } else {
            let input = self.stream.alloc_zeros::<u8>(largest)?;
            let output = self.stream.alloc_zeros::<u8>(largest)?;
            // The addresses outlive the guards: both are dropped behind the wait below, and used on
            // this stream alone.
            let buffers = Buffers {
                input: input.device_ptr(&self.stream).0,
                output: output.device_ptr(&self.stream).0,
            };
            let measured = self.measure_in(system, &buffers);
            self.stream.synchronize()?;
            measured
        }
    }

    fn measure_in(&self, system: System, buffers: &Buffers) -> Result<Vec<Sample>> {
        let (args, method) = (self.args, self.args.call.method());
        let mut measured = Vec::new();
        let device = Cuda::open(&self.stream)?;
        let mut timer = EventTimer::new(&self.stream)?;
        for &dtype in &args.dtype {
            for &bytes in &args.call.bytes {
                let all_reduce = || self.all_reduce(buffers, dtype, bytes);
                // The first call of a size may connect and allocate, which is not allowed in a
                // capture.
                all_reduce()?;
                self.stream.synchronize()?;
                for &launch in args.method.launches() {
                    let (times, host) = match launch {
                        // SAFETY: the buffers and the communicator outlive this call.
                        Launch::Graph => unsafe {
                            let times =
                                time_recorded(&device, &mut timer, self.peers, method, all_reduce)?;
                            (times, Vec::new())
                        },
                        Launch::Eager => time_eager(&mut timer, self.peers, method, all_reduce)?,
                    };
                    let call = Call {
                        system,
                        build: Build::Shipped,
                        world_size: self.world_size,
                        link: Topology::Peer,
                        dtype,
                        bytes: bytes as u64,
                        launch,
                        pdl: false,
                        placement: None,
                        plan: None,
                        from_table: false,
                    };
                    measured.push(Sample { call, times, host });
                }
            }
        }
        Ok(measured)
    }

    fn all_reduce(&self, buffers: &Buffers, dtype: Dtype, bytes: usize) -> Result<()> {
        // SAFETY: both buffers hold the largest message; the stream is of this rank's device, the
        // communicator of this thread.
        unsafe {
            self.communicator.all_reduce(
                buffers.input,
                buffers.output,
                bytes / dtype.size_bytes(),
                dtype,
                &self.stream,
            )
        }
    }
}
