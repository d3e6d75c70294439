//! A measurement that is not finished: more ranks and more rounds may add to it.

use anyhow::{Context, Result};

use super::report::{Call, Cell, Limits};
use super::timing::shortest;

/// The times of one call.
#[derive(Clone)]
pub(crate) struct Sample {
    pub(crate) call: Call,
    /// Microseconds a call of each replay.
    pub(crate) times: Vec<f64>,
    /// The host's likewise, of eager calls.
    pub(crate) host: Vec<f64>,
}

impl Sample {
    /// The cell, with the limit of its call if that was measured.
    pub(crate) fn cell(&self, limits: &[Limits]) -> Cell {
        Cell::new(self.call, &self.times, &self.host, limits)
    }
}

/// Merges what the ranks of a group have measured, each the same calls.
///
/// # Errors
/// There is no rank.
pub(crate) fn merge(ranks: Vec<Vec<Sample>>) -> Result<Vec<Sample>> {
    let mut ranks = ranks.into_iter();
    let first = ranks.next().context("a group without ranks")?;
    let others: Vec<Vec<Sample>> = ranks.collect();
    let merged = first.into_iter().enumerate().map(|(index, mut sample)| {
        let mut times = vec![sample.times];
        for other in others.iter().filter_map(|rank| rank.get(index)) {
            times.push(other.times.clone());
            sample.host.extend(&other.host);
        }
        sample.times = shortest(&times);
        sample
    });
    Ok(merged.collect())
}

/// Adds the times of another round to those of the same calls.
pub(crate) fn add_round(samples: &mut Vec<Sample>, round: Vec<Sample>) {
    for sample in round {
        match samples.iter_mut().find(|other| other.call == sample.call) {
            Some(other) => {
                other.times.extend(sample.times);
                other.host.extend(sample.host);
            }
            None => samples.push(sample),
        }
    }
}
