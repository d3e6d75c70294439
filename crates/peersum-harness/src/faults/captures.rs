//! Captures that the program begins itself with cudarc, cudarc's event tracking, and slices of
//! another GPU. Two ranks, on two GPUs where there are so many. On the emulator
//! `peersum-emulator`'s own tests have what it can show of this.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use peersum::cudarc::driver::sys::{
    CUgraphInstantiate_flags, CUstreamCaptureMode, CUstreamCaptureStatus,
};
use peersum::cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use peersum::{BufferError, Communicator, CommunicatorBuilder, Cuda, Error, Held};

use super::stage::{FaultsArgs, Stage};
use crate::machine::DeviceKind;
use crate::ranks::{Member, Peers, run_threads};

const ELEMENTS: usize = 5000;
const MODES: [CUstreamCaptureMode; 3] = [
    CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL,
    CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
    CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED,
];
const FLAGS: CUgraphInstantiate_flags =
    CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
/// By how much rank 1 calls later, so that rank 0's kernel waits for it meanwhile.
const LATE: Duration = Duration::from_millis(300);

/// Held while a thread captures: what ends a capture is one of the calls that the global mode
/// forbids to all other threads meanwhile.
static CAPTURING: Mutex<()> = Mutex::new(());

type CudaStage<'a> = Stage<'a, Arc<CudaStream>>;

/// All of it.
pub(super) fn captures(args: &FaultsArgs) -> Result<()> {
    let devices = CudaContext::device_count()?.max(1) as usize;
    let contexts = (0..2)
        .map(|rank| CudaContext::new(rank % devices))
        .collect::<Result<Vec<_>, _>>()?;
    let stream = |rank: u32| {
        let context = contexts.get(rank as usize).context("two ranks")?;
        Ok(context.new_stream()?)
    };
    let stage = Stage {
        args,
        kind: DeviceKind::Cuda,
        stream: &stream,
    };

    let plain = |builder| builder;
    pair(&stage, plain, event_tracking)?;
    println!("  event tracking: the error of a capture names the remedy, which helps");
    for context in &contexts {
        // SAFETY: everything below is used on one stream a rank.
        unsafe { context.disable_event_tracking() };
    }
    for mode in MODES {
        pair(&stage, plain, |rank| refused(rank, mode))?;
        pair(&stage, plain, |rank| replaced(rank, mode))?;
        pair(&stage, plain, |rank| dropped(rank, mode))?;
        // SAFETY: the graph is launched on the communicator's stream, one launch after the other,
        // while communicator and buffer live, and the last launch is waited for.
        let outside = |builder: CommunicatorBuilder| unsafe { builder.allow_outside_capture() };
        pair(&stage, outside, |rank| allowed(rank, mode))?;
        println!(
            "  {mode:?}: refused, also in place of the communicator's own; dropped while it \
             records; allowed by the unsafe setting"
        );
    }
    pair(&stage, plain, dropped_elsewhere)?;
    println!("  dropped by another thread while it records: the peer's call ends well");
    match devices {
        1 => println!("  slices of another GPU: not tried, there is one GPU"),
        _ => {
            pair(&stage, plain, |rank| foreign(rank, &contexts))?;
            println!("  slices of another GPU: a typed error, and nothing is launched");
        }
    }
    Ok(())
}

/// A rank's communicator, its stream, and a buffer that holds its rank + 1 everywhere.
struct Rank<'a> {
    communicator: Communicator<Cuda>,
    stream: Arc<CudaStream>,
    buffer: CudaSlice<f32>,
    peers: Peers<'a>,
}

/// Runs `body` on two ranks.
fn pair(
    stage: &CudaStage<'_>,
    settings: impl Fn(CommunicatorBuilder) -> CommunicatorBuilder + Sync,
    body: impl Fn(Rank<'_>) -> Result<()> + Sync,
) -> Result<()> {
    let run = |mut member: Member<'_>| {
        let communicator = stage.build(member.next_group()?, &settings)?;
        let stream = communicator.stream().clone();
        let value = communicator.rank() as f32 + 1.0;
        let buffer = stream.clone_htod(&vec![value; ELEMENTS])?;
        stream.synchronize()?;
        let peers = member.peers;
        peers.meet()?;
        body(Rank {
            communicator,
            stream,
            buffer,
            peers,
        })
    };
    run_threads(2, 1, run).map(drop)
}

impl Rank<'_> {
    /// Whether every element of the buffer is `expected`.
    fn ensure_holds(&self, expected: f32) -> Result<()> {
        ensure_holds(&self.stream, &self.buffer, expected)
    }
}

fn ensure_holds(stream: &Arc<CudaStream>, buffer: &CudaSlice<f32>, expected: f32) -> Result<()> {
    let elements = stream.clone_dtoh(buffer)?;
    stream.synchronize()?;
    let wrong = elements.iter().find(|element| **element != expected);
    ensure!(wrong.is_none(), "{wrong:?} instead of {expected}");
    Ok(())
}

fn ensure_capture_error(outcome: Result<(), Error>, remedy: &str) -> Result<()> {
    match outcome {
        Err(Error::Capture(text)) if text.contains(remedy) => Ok(()),
        other => anyhow::bail!("expected an error that names {remedy}, not {other:?}"),
    }
}

/// A slice whose events were recorded outside spoils the capture.
fn event_tracking(mut rank: Rank<'_>) -> Result<()> {
    let context = rank.stream.context().clone();
    ensure!(context.is_event_tracking(), "cudarc's default");
    let spoilt = {
        let mut held = Held::new(&mut rank.buffer);
        rank.communicator
            .capture(|capture| capture.all_reduce_in_place(&mut held))
            .map(drop)
    };
    ensure_capture_error(spoilt, "disable_event_tracking")?;
    // Where the ranks share a GPU they share its context.
    rank.peers.meet()?;
    // SAFETY: everything here is used on one stream.
    unsafe { context.disable_event_tracking() };
    rank.peers.meet()?;
    {
        let mut held = Held::new(&mut rank.buffer);
        let graph = rank
            .communicator
            .capture(|capture| capture.all_reduce_in_place(&mut held))?;
        graph.launch(&mut rank.communicator)?;
        rank.communicator.synchronize()?;
    }
    rank.ensure_holds(3.0)
}

/// A call in a capture of the program is refused, and leaves the program's capture as it is.
fn refused(mut rank: Rank<'_>, mode: CUstreamCaptureMode) -> Result<()> {
    let alone = CAPTURING.lock().unwrap_or_else(PoisonError::into_inner);
    rank.stream.begin_capture(mode)?;
    let called = rank.communicator.all_reduce_in_place(&mut rank.buffer);
    let begun = rank.communicator.capture_begin();
    let graph = rank.stream.end_capture(FLAGS);
    drop(alone);
    rank.peers.meet()?;
    ensure_capture_error(called, "capture_begin")?;
    ensure!(matches!(begun, Err(Error::Capture(_))), "{begun:?}");
    // Nothing is in it.
    if let Some(graph) = graph.context("the program's capture was spoilt")? {
        graph.launch()?;
    }
    rank.communicator.synchronize()?;
    rank.ensure_holds(rank.communicator.rank() as f32 + 1.0)?;
    rank.communicator.all_reduce_in_place(&mut rank.buffer)?;
    rank.communicator.synchronize()?;
    rank.ensure_holds(3.0)
}

/// The same if the program ends the communicator's capture and begins one of its own.
fn replaced(mut rank: Rank<'_>, mode: CUstreamCaptureMode) -> Result<()> {
    let alone = CAPTURING.lock().unwrap_or_else(PoisonError::into_inner);
    rank.communicator.capture_begin()?;
    rank.stream.end_capture(FLAGS)?;
    rank.stream.begin_capture(mode)?;
    let called = rank.communicator.all_reduce_in_place(&mut rank.buffer);
    // SAFETY: the call is refused, so nothing is recorded.
    let ended = unsafe { rank.communicator.capture_end() }.map(drop);
    drop(alone);
    rank.peers.meet()?;
    ensure_capture_error(called, "capture_end")?;
    ensure_capture_error(ended, "capture_end")?;
    rank.communicator.all_reduce_in_place(&mut rank.buffer)?;
    rank.communicator.synchronize()?;
    rank.ensure_holds(3.0)
}

/// A communicator that is dropped while the program captures its stream waits for its kernel.
fn dropped(mut rank: Rank<'_>, mode: CUstreamCaptureMode) -> Result<()> {
    let is_first = rank.communicator.rank() == 0;
    if !is_first {
        std::thread::sleep(LATE);
    }
    rank.communicator.all_reduce_in_place(&mut rank.buffer)?;
    if is_first {
        rank.stream.begin_capture(mode)?;
    } else {
        rank.communicator.synchronize()?;
    }
    finish(rank, |communicator| {
        drop(communicator);
        Ok(())
    })
}

/// A communicator whose capture another thread began. If the driver lets this thread end it, the
/// communicator waits for its kernel; otherwise it leaks what the kernel uses.
fn dropped_elsewhere(mut rank: Rank<'_>) -> Result<()> {
    if rank.communicator.rank() == 1 {
        std::thread::sleep(LATE);
        rank.communicator.all_reduce_in_place(&mut rank.buffer)?;
        rank.communicator.synchronize()?;
        return rank.ensure_holds(3.0);
    }
    rank.communicator.all_reduce_in_place(&mut rank.buffer)?;
    rank.communicator.capture_begin()?;
    let stream = rank.stream.clone();
    finish(rank, |communicator| {
        ensure!(
            std::thread::spawn(move || drop(communicator))
                .join()
                .is_ok(),
            "the drop panicked"
        );
        if stream.capture_status()? != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
            drop(stream.end_capture(FLAGS)?);
        }
        Ok(())
    })
}

/// Ends a communicator and then looks at the result of its last call.
fn finish(rank: Rank<'_>, end: impl FnOnce(Communicator<Cuda>) -> Result<()>) -> Result<()> {
    let Rank {
        communicator,
        stream,
        buffer,
        ..
    } = rank;
    end(communicator)?;
    stream.synchronize()?;
    ensure_holds(&stream, &buffer, 3.0)
}

/// With the unsafe setting the program's own graph holds calls.
fn allowed(mut rank: Rank<'_>, mode: CUstreamCaptureMode) -> Result<()> {
    let alone = CAPTURING.lock().unwrap_or_else(PoisonError::into_inner);
    rank.stream.begin_capture(mode)?;
    let called = (0..2).try_for_each(|_| rank.communicator.all_reduce_in_place(&mut rank.buffer));
    let graph = rank.stream.end_capture(FLAGS);
    drop(alone);
    rank.peers.meet()?;
    called?;
    let graph = graph?.context("a graph of two calls")?;
    for expected in [6.0, 24.0] {
        graph.launch()?;
        rank.communicator.synchronize()?;
        rank.ensure_holds(expected)?;
    }
    Ok(())
}

/// A slice of the other rank's GPU is refused as input and as output.
fn foreign(mut rank: Rank<'_>, contexts: &[Arc<CudaContext>]) -> Result<()> {
    let other = contexts
        .get(1 - rank.communicator.rank() as usize)
        .context("two ranks")?;
    let elsewhere = other.new_stream()?;
    let mut foreign = elsewhere.clone_htod(&vec![7.0_f32; ELEMENTS])?;
    elsewhere.synchronize()?;
    let outcomes = [
        rank.communicator.all_reduce(&foreign, &mut rank.buffer),
        rank.communicator.all_reduce(&rank.buffer, &mut foreign),
        rank.communicator
            .all_reduce_in_place(&mut foreign.slice_mut(8..)),
    ];
    for outcome in outcomes {
        ensure!(
            matches!(outcome, Err(Error::Buffer(BufferError::OtherDevice { .. }))),
            "{outcome:?}"
        );
    }
    rank.communicator.all_reduce_in_place(&mut rank.buffer)?;
    rank.communicator.synchronize()?;
    rank.ensure_holds(3.0)?;
    ensure_holds(&elsewhere, &foreign, 7.0).context("the slice was written")
}
