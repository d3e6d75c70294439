//! Timing on a GPU: a graph of many calls, replayed; each rank's own events.

use anyhow::Result;
use peersum::Cuda;
use peersum::cudarc::driver::CudaEvent;
use peersum::cudarc::driver::sys::CUevent_flags;
use peersum::{Communicator, Graph};

/// How often and how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Method {
    /// Calls in one graph.
    pub(crate) calls: u32,
    /// Replays that are not counted.
    pub(crate) warm_up: u32,
    /// Replays that are.
    pub(crate) replays: u32,
}

/// Times replays of `graph`, in microseconds a call for each replay. All ranks must call it together; `meet` brings them to the same place
/// before each replay, so that their launches fall close to each other.
pub(crate) fn time_graph(
    communicator: &mut Communicator<Cuda>,
    graph: &Graph<'_, Cuda>,
    method: Method,
    meet: &dyn Fn(),
) -> Result<Vec<f64>> {
    let stream = communicator.stream().clone();
    let event = || -> Result<CudaEvent> {
        Ok(stream
            .context()
            .new_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?)
    };
    let (begin, end) = (event()?, event()?);
    let mut times = Vec::new();
    for replay in 0..method.warm_up + method.replays {
        meet();
        begin.record(&stream)?;
        graph.launch(communicator)?;
        end.record(&stream)?;
        end.synchronize()?;
        if replay >= method.warm_up {
            times.push(f64::from(begin.elapsed_ms(&end)?) * 1000.0 / f64::from(method.calls));
        }
    }
    Ok(times)
}

/// The middle value; of an even number the mean of the two in the middle.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}
