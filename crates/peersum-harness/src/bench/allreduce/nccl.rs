//! NCCL's all-reduce, by the same method as peersum's.

use anyhow::Result;
use peersum::Cuda;
use peersum::cudarc::driver::DevicePtr;
use peersum::device::Device;
use peersum::dispatch::Topology;

use super::arguments::BenchArgs;
use crate::bench::call::MeasuredCall;
use crate::bench::nccl::{Communicator, Nccl, SymmetricMemory};
use crate::bench::ranks::run_ranks;
use crate::bench::report::{Call, Report, Sample, System};
use crate::bench::timing::Stopwatch;
use crate::machine::{Gpus, Machine};
use crate::operation::Operation;

/// Measures NCCL by the same method, for groups with a GPU for each rank.
pub(super) fn measure_nccl(args: &BenchArgs, gpus: &Gpus, report: &mut Report) {
    let smallest = args.world_size.iter().copied().min().unwrap_or(0);
    let Some(nccl) = args.nccl.open(smallest, gpus.devices(), &mut report.run) else {
        return;
    };
    let version = nccl.version();
    let has_a_gpu_each = |world_size: &&u32| **world_size <= gpus.devices();
    for &world_size in args.world_size.iter().filter(has_a_gpu_each) {
        for system in [System::Nccl, System::NcclSymmetric] {
            if nccl.lacks(system) {
                let note = format!("NCCL {version} has no symmetric windows, which came with 2.27");
                report.run.notes.push(note);
                continue;
            }
            eprintln!("NCCL {version}, {world_size} ranks, {system:?}");
            let measured = measure(&nccl, args, gpus, system, world_size);
            let what = format!("{system:?} with {world_size} ranks");
            let samples = report.run.take(&what, measured).unwrap_or_default();
            let cells = samples.iter().map(|sample| sample.cell(&report.limits));
            report.cells.extend(cells);
        }
    }
}

/// Measures one group: one rank a GPU, all threads of this process.
///
/// # Errors
/// NCCL or the driver refuses something.
fn measure(
    nccl: &Nccl,
    args: &BenchArgs,
    gpus: &Gpus,
    system: System,
    world_size: u32,
) -> Result<Vec<Sample>> {
    let group = (nccl.group()?, world_size);
    let largest = args.largest_bytes();
    run_ranks(gpus, world_size, |stopwatch, _| {
        let communicator = &nccl.join(group, &stopwatch)?;
        let stream = stopwatch.device.stream();
        let (plain, windows);
        let places = match system {
            System::NcclSymmetric => {
                windows = [
                    SymmetricMemory::new(communicator, largest)?,
                    SymmetricMemory::new(communicator, largest)?,
                ];
                windows.each_ref().map(SymmetricMemory::address)
            }
            _ => {
                plain = [
                    stream.alloc_zeros::<u8>(largest)?,
                    stream.alloc_zeros(largest)?,
                ];
                // The addresses outlive the guards: the memory is used on this stream alone.
                plain.each_ref().map(|memory| memory.device_ptr(stream).0)
            }
        };
        let measured = measure_calls(args, communicator, &stopwatch, places, (system, world_size));
        stream.synchronize()?;
        let samples = measured?;
        // Windows are given back together.
        stopwatch.peers.meet()?;
        Ok(samples)
    })
}

/// Measures calls with messages in two places, each large enough for the largest.
fn measure_calls(
    args: &BenchArgs,
    communicator: &Communicator<'_>,
    stopwatch: &Stopwatch<'_, Cuda>,
    [input, output]: [u64; 2],
    (system, world_size): (System, u32),
) -> Result<Vec<Sample>> {
    let stream = stopwatch.device.stream();
    let mut samples = Vec::new();
    for &dtype in &args.dtype {
        for bytes in args.bytes(dtype) {
            let operation = match args.op {
                Operation::RmsNorm => Operation::AllReduce,
                operation => operation,
            };
            let sent = MeasuredCall::new(operation, bytes).sent_bytes(world_size);
            let elements = sent / dtype.size_bytes();
            // SAFETY: both places hold the largest message until the caller has waited.
            let enqueue =
                || unsafe { communicator.call(operation, [input, output], elements, dtype) };
            // The first call of a size may connect and allocate, which is not allowed in a capture.
            enqueue()?;
            stream.synchronize()?;
            for &launch in &args.method {
                // SAFETY: the places and the communicator outlive this call.
                let times = unsafe { stopwatch.time(args.call.method(launch), |_| enqueue())? };
                let group = (system, world_size, Topology::Peer);
                let call = Call::new(group, (operation, dtype, bytes), launch);
                samples.push(Sample::new(call, times));
            }
        }
    }
    Ok(samples)
}
