//! Timing of calls: replays of a graph of many calls, or batches of eager calls, each rank by its
//! own clock.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use peersum::cudarc::driver::sys::CUevent_flags;
use peersum::cudarc::driver::{CudaEvent, CudaStream};
use peersum::device::Device;
use peersum_emulator::EmulatorStream;
use serde::{Deserialize, Serialize};

use crate::machine::{Emulators, Gpus, Machine};
use crate::ranks::Peers;

/// How often and how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Method {
    /// Calls in one graph, or in one batch of eager calls.
    pub(crate) calls: u32,
    /// Replays that are not counted.
    pub(crate) warm_up: u32,
    /// Replays that are.
    pub(crate) replays: u32,
}

/// Measures what a stream does between two points.
pub(crate) trait Timer: Send {
    /// Marks the first point.
    fn begin(&mut self) -> Result<()>;

    /// Marks the second, waits until the stream has passed it, and returns the microseconds between
    /// the two.
    fn end(&mut self) -> Result<f64>;
}

/// By the device's own events.
pub(crate) struct EventTimer {
    stream: Arc<CudaStream>,
    begin: CudaEvent,
    end: CudaEvent,
}

impl EventTimer {
    pub(crate) fn new(stream: &Arc<CudaStream>) -> Result<EventTimer> {
        // cudarc's default events do not time.
        let event = || {
            let flags = Some(CUevent_flags::CU_EVENT_DEFAULT);
            stream.context().new_event(flags).context("making an event")
        };
        Ok(EventTimer {
            begin: event()?,
            end: event()?,
            stream: Arc::clone(stream),
        })
    }
}

impl Timer for EventTimer {
    fn begin(&mut self) -> Result<()> {
        Ok(self.begin.record(&self.stream)?)
    }

    fn end(&mut self) -> Result<f64> {
        self.end.record(&self.stream)?;
        self.end.synchronize()?;
        Ok(f64::from(self.begin.elapsed_ms(&self.end)?) * 1000.0)
    }
}

/// By the host's clock: the emulator has none of its own.
struct HostTimer {
    stream: EmulatorStream,
    begin: Instant,
}

impl Timer for HostTimer {
    fn begin(&mut self) -> Result<()> {
        self.stream.synchronize();
        self.begin = Instant::now();
        Ok(())
    }

    fn end(&mut self) -> Result<f64> {
        self.stream.synchronize();
        Ok(self.begin.elapsed().as_secs_f64() * 1e6)
    }
}

/// A machine whose streams can be timed.
pub(crate) trait Timed: Machine {
    fn timer(&self, stream: &Self::Stream) -> Result<Box<dyn Timer>>;
}

impl Timed for Gpus {
    fn timer(&self, stream: &Self::Stream) -> Result<Box<dyn Timer>> {
        Ok(Box::new(EventTimer::new(stream)?))
    }
}

impl Timed for Emulators {
    fn timer(&self, stream: &EmulatorStream) -> Result<Box<dyn Timer>> {
        Ok(Box::new(HostTimer {
            stream: stream.clone(),
            begin: Instant::now(),
        }))
    }
}

/// Records `method.calls` calls and replays the recording; microseconds a call for each replay. All
/// ranks must do so together.
///
/// # Safety
/// What `record` enqueues on the device's stream must stay valid until this returns.
pub(crate) unsafe fn time_recorded<D: Device>(
    device: &D,
    timer: &mut dyn Timer,
    peers: Peers<'_>,
    method: Method,
    mut record: impl FnMut() -> Result<()>,
) -> Result<Vec<f64>> {
    device.capture_begin()?;
    let recorded = (0..method.calls).try_for_each(|_| record());
    // End the capture in any case, so that the stream is usable again.
    let graph = device.capture_end();
    recorded?;
    let graph = graph?;
    time_replays(timer, peers, method, || {
        // SAFETY: the caller's promise.
        unsafe { device.launch_graph(&graph)? };
        Ok(())
    })
}

/// Microseconds a call for each of `method.replays` runs of `launch`, which makes `method.calls`
/// calls.
pub(crate) fn time_replays(
    timer: &mut dyn Timer,
    peers: Peers<'_>,
    method: Method,
    mut launch: impl FnMut() -> Result<()>,
) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for replay in 0..method.warm_up + method.replays {
        // The ranks must launch at nearly the same time.
        peers.meet()?;
        timer.begin()?;
        launch()?;
        let us = timer.end()?;
        if replay >= method.warm_up {
            times.push(us / f64::from(method.calls));
        }
    }
    Ok(times)
}

/// Eager calls: microseconds a call by the timer, and of the host's time until the launch has
/// returned, for each batch.
pub(crate) fn time_eager(
    timer: &mut dyn Timer,
    peers: Peers<'_>,
    method: Method,
    mut call: impl FnMut() -> Result<()>,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let mut host = Vec::new();
    let times = time_replays(timer, peers, method, || {
        let start = Instant::now();
        (0..method.calls).try_for_each(|_| call())?;
        host.push(start.elapsed().as_secs_f64() * 1e6 / f64::from(method.calls));
        Ok(())
    })?;
    Ok((times, host.split_off(method.warm_up as usize)))
}

/// For each replay the shortest time of all ranks: that of the rank that began last and waited for
/// no other.
pub(crate) fn shortest(ranks: &[Vec<f64>]) -> Vec<f64> {
    of_each_replay(ranks, f64::min)
}

/// For each replay the longest time of any rank.
pub(crate) fn longest(ranks: &[Vec<f64>]) -> Vec<f64> {
    of_each_replay(ranks, f64::max)
}

fn of_each_replay(ranks: &[Vec<f64>], pick: fn(f64, f64) -> f64) -> Vec<f64> {
    let replays = ranks.iter().map(Vec::len).min().unwrap_or(0);
    (0..replays)
        .filter_map(|replay| ranks.iter().map(|rank| rank[replay]).reduce(pick))
        .collect()
}

/// Median and spread, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) lower_quartile: f64,
    pub(crate) upper_quartile: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of at least one value; NaN of none.
    pub(crate) fn of(values: &[f64]) -> Spread {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let half = sorted.len() / 2;
        let (lower, upper) = (&sorted[..half], &sorted[sorted.len() - half..]);
        let median_of = |part: &[f64]| middle(if part.is_empty() { &sorted } else { part });
        Spread {
            median: rounded(middle(&sorted)),
            lower_quartile: rounded(median_of(lower)),
            upper_quartile: rounded(median_of(upper)),
            min: rounded(sorted.first().copied().unwrap_or(f64::NAN)),
            max: rounded(sorted.last().copied().unwrap_or(f64::NAN)),
        }
    }
}

/// To a nanosecond: events do not resolve more, and files stay readable.
pub(crate) fn rounded(us: f64) -> f64 {
    (us * 1000.0).round() / 1000.0
}

/// The middle value; of an even number the mean of the two in the middle.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    middle(&sorted)
}

fn middle(sorted: &[f64]) -> f64 {
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_quartiles_of_few_values() {
        let spread = Spread::of(&[9.0, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!((spread.median, spread.min, spread.max), (3.0, 1.0, 9.0));
        assert_eq!((spread.lower_quartile, spread.upper_quartile), (1.5, 6.5));
        assert_eq!(median(&[1.0, 2.0, 4.0, 8.0]), 3.0);
        let one = Spread::of(&[2.0]);
        assert_eq!((one.lower_quartile, one.upper_quartile), (2.0, 2.0));
        assert!(Spread::of(&[]).median.is_nan());
    }

    #[test]
    fn of_each_replay_the_rank_that_began_last_counts() {
        let ranks = [vec![5.0, 2.0, 7.0], vec![4.0, 3.0, 9.0]];
        assert_eq!(shortest(&ranks), [4.0, 2.0, 7.0]);
    }

    #[test]
    fn where_nobody_waits_the_slowest_rank_counts() {
        let ranks = [vec![5.0, 2.0, 7.0], vec![4.0, 3.0, 9.0]];
        assert_eq!(longest(&ranks), [5.0, 3.0, 9.0]);
    }
}
