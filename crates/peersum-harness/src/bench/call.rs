//! `bench call`: what one eager `all_reduce` costs the host, against a bare `cuLaunchKernelEx` of the same kernel.
//!
//! Both are launched in turn, by all ranks, with the same parameters: to the kernels a bare launch is a call like any other.
//! The stream is waited for after every few calls, so that no launch ever waits for room in the queue.

use std::ffi::c_void;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use half::bf16;
use peersum::cudarc::driver::sys::{self, CUstream};
use peersum::cudarc::driver::{CudaContext, CudaSlice, DevicePtr, DevicePtrMut};
use peersum::loader::{JitMode, LoadPolicy};
use peersum::{BareLaunch, Communicator, Cuda, Rendezvous};
use serde::Serialize;

use super::launch::with_config;
use super::timing::median;
use crate::data::{self, Content};

/// The most that an eager call may cost the host, as a multiple of a bare launch.
const GOAL: f64 = 1.3;

/// What `bench call` measures.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct CallArgs {
    /// Ranks, threads of one process; they share the cards if there are fewer.
    #[arg(long, default_value_t = 2)]
    world_size: u32,
    /// The message in bytes, of bf16.
    #[arg(long, default_value_t = 4096)]
    bytes: usize,
    /// Calls of each kind that are counted.
    #[arg(long, default_value_t = 2000)]
    calls: u32,
    /// Calls between two waits for the stream.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// The directory of cubins.
    #[arg(long, default_value = "target/cubins")]
    cubins: PathBuf,
    /// Writes one JSON object a line.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One setting, measured. Times are of the host, in nanoseconds a call, the median of batches of all ranks.
#[derive(Debug, Clone, Serialize)]
struct Measured {
    card: String,
    devices: usize,
    world_size: u32,
    bytes: usize,
    pdl: bool,
    event_tracking: bool,
    call_ns: f64,
    call_max_ns: f64,
    bare_ns: f64,
    bare_max_ns: f64,
    ratio: f64,
}

/// Nanoseconds a call of each batch.
#[derive(Default)]
struct Batches {
    call: Vec<f64>,
    bare: Vec<f64>,
}

/// Runs the benchmark and prints one line a setting.
pub(crate) fn run(args: &CallArgs) -> Result<()> {
    peersum::cuda::driver_present()?;
    let devices = CudaContext::device_count()? as usize;
    let card = peersum::open_context(0)?.name()?;
    println!(
        "# {card} x {devices}, W{}, {} bytes of bf16, {} calls in batches of {}, nanoseconds of the host a call",
        args.world_size, args.bytes, args.calls, args.batch
    );
    let mut measured = Vec::new();
    for pdl in [true, false] {
        for event_tracking in [false, true] {
            let batches = run_world(args, devices, pdl, event_tracking)?;
            let greatest = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
            let (call_ns, bare_ns) = (median(&batches.call), median(&batches.bare));
            let setting = Measured {
                card: card.clone(),
                devices: devices.min(args.world_size as usize),
                world_size: args.world_size,
                bytes: args.bytes,
                pdl,
                event_tracking,
                call_ns,
                call_max_ns: greatest(&batches.call),
                bare_ns,
                bare_max_ns: greatest(&batches.bare),
                ratio: call_ns / bare_ns,
            };
            // The goal is for programs that have switched cudarc's event tracking off; with it, cudarc's own calls count too.
            let verdict = match (event_tracking, setting.ratio <= GOAL) {
                (true, _) => "",
                (false, true) => "(goal 1.30: met)",
                (false, false) => "(goal 1.30: MISSED)",
            };
            println!(
                "pdl {:<3} event tracking {:<3}  all_reduce {:>7.0} [max {:.0}]  cuLaunchKernelEx {:>7.0} [max {:.0}]  ratio {:.3} {verdict}",
                on_off(pdl),
                on_off(event_tracking),
                setting.call_ns,
                setting.call_max_ns,
                setting.bare_ns,
                setting.bare_max_ns,
                setting.ratio,
            );
            measured.push(setting);
        }
    }
    if let Some(path) = &args.json {
        let mut file = std::fs::File::create(path).context("creating the JSON file")?;
        for setting in &measured {
            writeln!(file, "{}", serde_json::to_string(setting)?)?;
        }
    }
    Ok(())
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

fn run_world(args: &CallArgs, devices: usize, pdl: bool, event_tracking: bool) -> Result<Batches> {
    let barrier = Barrier::new(args.world_size as usize);
    let all = Mutex::new(Batches::default());
    std::thread::scope(|scope| {
        let ranks: Vec<_> = Rendezvous::threads(args.world_size)
            .into_iter()
            .enumerate()
            .map(|(rank, rendezvous)| {
                let (barrier, all) = (&barrier, &all);
                scope.spawn(move || {
                    let batches = run_rank(
                        args,
                        rank % devices,
                        rendezvous,
                        pdl,
                        event_tracking,
                        barrier,
                    )
                    .unwrap_or_else(|error| {
                        // The other ranks wait for this one at a barrier that has no deadline.
                        eprintln!("rank {rank} of {}: {error:#}", args.world_size);
                        std::process::exit(1)
                    });
                    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                    all.call.extend(batches.call);
                    all.bare.extend(batches.bare);
                })
            })
            .collect();
        for rank in ranks {
            if rank.join().is_err() {
                bail!("a rank panicked");
            }
        }
        Ok(())
    })?;
    Ok(all.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn run_rank(
    args: &CallArgs,
    ordinal: usize,
    rendezvous: Rendezvous,
    pdl: bool,
    event_tracking: bool,
    barrier: &Barrier,
) -> Result<Batches> {
    // A handle of its own each time: slices keep the tracking that their context had when they were made.
    let context = CudaContext::new(ordinal)?;
    if !event_tracking {
        // SAFETY: every slice here is used on its rank's own stream only.
        unsafe { context.disable_event_tracking() };
    }
    let stream = context.new_stream()?;
    let mut communicator = Communicator::builder()
        .rendezvous(rendezvous)
        .load_policy(
            LoadPolicy::default()
                .cubin_dir(&args.cubins)
                .jit(JitMode::Deny),
        )
        .max_bytes(args.bytes.max(1 << 20))
        .pdl(pdl)
        .timeout(Duration::from_secs(5))
        .build(&stream)?;
    let len = args.bytes / size_of::<bf16>();
    let values: Vec<bf16> = data::input(7, communicator.rank(), len, Content::Ordinary);
    let input: CudaSlice<bf16> = stream.clone_htod(&values)?;
    let mut output: CudaSlice<bf16> = stream.alloc_zeros(len)?;
    stream.synchronize()?;
    // The addresses outlive the guards: the slices live to the end of this function and are used on this stream only.
    let (input_address, output_address) = (
        input.device_ptr(&stream).0,
        output.device_ptr_mut(&stream).0,
    );
    let bare = communicator
        .bare_launch::<bf16>(input_address, output_address, len)
        .context("a bare launch needs two ranks and a message of one launch")?;

    let mut batches = Batches::default();
    // One batch of each kind is not counted.
    for batch in 0..=args.calls.div_ceil(args.batch) {
        let call = timed(args.batch, barrier, &mut communicator, |communicator| {
            Ok(communicator.all_reduce(&input, &mut output)?)
        })?;
        let bare = timed_bare(
            args.batch,
            barrier,
            &mut communicator,
            stream.cu_stream(),
            &bare,
        )?;
        if batch > 0 {
            batches.call.push(call);
            batches.bare.push(bare);
        }
    }
    Ok(batches)
}

/// Nanoseconds a call of one batch, the wait for its end not counted.
fn timed(
    calls: u32,
    barrier: &Barrier,
    communicator: &mut Communicator<Cuda>,
    mut call: impl FnMut(&mut Communicator<Cuda>) -> Result<()>,
) -> Result<f64> {
    barrier.wait();
    let start = Instant::now();
    for _ in 0..calls {
        call(communicator)?;
    }
    let took = start.elapsed();
    communicator.synchronize()?;
    Ok(took.as_secs_f64() * 1e9 / f64::from(calls))
}

/// As [`timed`], for the launch alone: what it takes is put together once.
fn timed_bare(
    calls: u32,
    barrier: &Barrier,
    communicator: &mut Communicator<Cuda>,
    stream: CUstream,
    bare: &BareLaunch,
) -> Result<f64> {
    let mut arguments: [*mut c_void; 1] = [(&raw const bare.params).cast_mut().cast()];
    let shape = bare.shape;
    with_config(stream, shape.blocks, shape.threads, shape.pdl, |config| {
        timed(calls, barrier, communicator, |_| {
            // SAFETY: the very launch that the communicator would make: its kernel and memory live as long as it does, which
            // is borrowed, and the buffers outlive this call, which waits for the stream. Every rank makes as many of them.
            unsafe {
                sys::cuLaunchKernelEx(
                    config,
                    bare.function,
                    arguments.as_mut_ptr(),
                    std::ptr::null_mut(),
                )
            }
            .result()
            .context("cuLaunchKernelEx")
        })
    })
}
