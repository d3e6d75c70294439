//! Timing of calls: replays of a graph of many calls, or batches of eager calls, each rank by its
//! own clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use peersum::cudarc::driver::sys::CUevent_flags;
use peersum::cudarc::driver::{CudaEvent, CudaStream};
use peersum::device::Device;
use peersum_emulator::EmulatorStream;
use serde::{Deserialize, Serialize};

use crate::machine::{DeviceOf, Emulators, Gpus, Machine};
use crate::ranks::Peers;

/// How calls are launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Launch {
    /// All calls of a replay in one graph.
    Graph,
    /// One after the other.
    Eager,
}

impl Launch {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Launch::Graph => "graph",
            Launch::Eager => "eager",
        }
    }
}

/// How calls are launched, how often and how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Method {
    pub(crate) launch: Launch,
    /// Calls in one graph, or in one batch of eager calls.
    pub(crate) calls: u32,
    /// Replays that are not counted.
    pub(crate) warm_up: u32,
    /// Replays that are.
    pub(crate) replays: u32,
}

/// Two events of a GPU's stream.
pub(crate) struct Events {
    stream: Arc<CudaStream>,
    begin: CudaEvent,
    end: CudaEvent,
}

/// A machine whose streams can be timed.
pub(crate) trait Timed: Machine {
    /// The events that time a stream. `None` if the device has none: the host's clock times it.
    fn events(&self, stream: &Self::Stream) -> Result<Option<Events>>;

    /// What times a new stream of a rank.
    fn stopwatch<'a>(&self, peers: Peers<'a>) -> Result<Stopwatch<'a, DeviceOf<Self>>> {
        let stream = self.stream(peers.rank())?;
        Ok(Stopwatch {
            device: Device::open(&stream)?,
            events: self.events(&stream)?,
            peers,
        })
    }
}

impl Timed for Gpus {
    fn events(&self, stream: &Arc<CudaStream>) -> Result<Option<Events>> {
        // cudarc's default events do not time.
        let event = || {
            let flags = Some(CUevent_flags::CU_EVENT_DEFAULT);
            stream.context().new_event(flags).context("making an event")
        };
        Ok(Some(Events {
            begin: event()?,
            end: event()?,
            stream: Arc::clone(stream),
        }))
    }
}

impl Timed for Emulators {
    fn events(&self, _: &EmulatorStream) -> Result<Option<Events>> {
        Ok(None)
    }
}

/// Times what one rank enqueues on its stream, together with the other ranks.
pub(crate) struct Stopwatch<'a, D: Device> {
    pub(crate) device: D,
    events: Option<Events>,
    pub(crate) peers: Peers<'a>,
}

impl<D: Device> Stopwatch<'_, D> {
    /// Times calls, each of which `enqueue` enqueues when it gets the call's number. All ranks must
    /// do so together, and get the same.
    ///
    /// # Safety
    /// What `enqueue` enqueues on the device's stream must stay valid until this returns.
    pub(crate) unsafe fn time(
        &self,
        method: Method,
        mut enqueue: impl FnMut(u32) -> Result<()>,
    ) -> Result<Times> {
        let mut enqueue_all = || (0..method.calls).try_for_each(&mut enqueue);
        let (own, host) = match method.launch {
            Launch::Graph => {
                self.device.capture_begin()?;
                let recorded = enqueue_all();
                // End the capture in any case, so that the stream is usable again.
                let graph = self.device.capture_end();
                recorded?;
                let graph = graph?;
                let (times, _) = self.replay(method, || {
                    // SAFETY: the caller's promise.
                    Ok(unsafe { self.device.launch_graph(&graph) }?)
                })?;
                (times, Vec::new())
            }
            Launch::Eager => self.replay(method, enqueue_all)?,
        };
        Ok(Times {
            ranks: self.peers.gather(own)?,
            host: self.peers.gather(host)?.concat(),
        })
    }

    /// Runs `launch`, which makes `method.calls` calls, `method.replays` times: microseconds a call
    /// by the device's clock, and of the host until `launch` has returned.
    pub(crate) fn replay(
        &self,
        method: Method,
        mut launch: impl FnMut() -> Result<()>,
    ) -> Result<(Vec<f64>, Vec<f64>)> {
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        let mut times = Vec::new();
        for _ in 0..method.warm_up + method.replays {
            // The ranks must launch at nearly the same time.
            self.peers.meet()?;
            match &self.events {
                Some(events) => events.begin.record(&events.stream)?,
                None => self.device.synchronize()?,
            }
            let start = Instant::now();
            launch()?;
            let host = us(start.elapsed());
            let whole = match &self.events {
                Some(Events { stream, begin, end }) => {
                    end.record(stream)?;
                    end.synchronize()?;
                    f64::from(begin.elapsed_ms(end)?) * 1000.0
                }
                None => {
                    self.device.synchronize()?;
                    us(start.elapsed())
                }
            };
            let calls = f64::from(method.calls);
            times.push((whole / calls, host / calls));
        }
        Ok(times.into_iter().skip(method.warm_up as usize).unzip())
    }
}

/// The times of calls, in microseconds a call.
pub(crate) struct Times {
    /// Of each rank in each replay of a graph or batch of eager calls.
    ranks: Vec<Vec<f64>>,
    /// Of the host in each batch of eager calls, of all ranks.
    pub(crate) host: Vec<f64>,
}

impl Times {
    /// For each replay the shortest time of all ranks: that of the rank that began last and waited
    /// for no other.
    pub(crate) fn shortest(&self) -> Vec<f64> {
        self.of_each_replay(f64::min)
    }

    /// For each replay the longest time of any rank.
    pub(crate) fn longest(&self) -> Vec<f64> {
        self.of_each_replay(f64::max)
    }

    fn of_each_replay(&self, pick: fn(f64, f64) -> f64) -> Vec<f64> {
        let replays = self.ranks.iter().map(Vec::len).min().unwrap_or(0);
        (0..replays)
            .filter_map(|replay| self.ranks.iter().map(|rank| rank[replay]).reduce(pick))
            .collect()
    }
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
    fn of_each_replay_the_rank_that_began_last_counts_or_the_slowest_where_nobody_waits() {
        let times = Times {
            ranks: vec![vec![5.0, 2.0, 7.0], vec![4.0, 3.0, 9.0]],
            host: Vec::new(),
        };
        assert_eq!(times.shortest(), [4.0, 2.0, 7.0]);
        assert_eq!(times.longest(), [5.0, 3.0, 9.0]);
    }
}
