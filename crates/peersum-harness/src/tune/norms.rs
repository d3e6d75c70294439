//! The sweep of calls with RMSNorm: which are fused, and in which shape.

use std::time::Instant;

use anyhow::Result;
use half::bf16;
use peersum::device::Device;
use peersum::dispatch::{FusedShape, Placement, Plan, Route};
use peersum_artifact::{Arch, Dtype};

use super::sweep::{FINALISTS, LEAST_GAIN, Shapes, geometric_mean, is_over};
use crate::bench::norm::{NormCall, NormRank, Way};
use crate::bench::ranks::Rank;
use crate::bench::timing::{Method, median, rounded};
use crate::data::with_element;
use crate::norm_output::NormOutput;

/// The work of one group.
pub(super) struct NormSweep<'a> {
    pub(super) shapes: Shapes,
    pub(super) dtypes: &'a [Dtype],
    pub(super) hidden: &'a [u32],
    /// Of one buffer, in bytes, rising.
    pub(super) sizes: Vec<u64>,
    pub(super) deadline: Instant,
    /// Of the second pass.
    pub(super) method: Method,
}

/// A way to carry out calls, with its times: medians by type and hidden size, in microseconds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Measured {
    /// The shape of the fused kernel; `None` if the calls are not fused.
    pub(super) fused: Option<FusedShape>,
    pub(super) us: Vec<f64>,
}

/// The result for one size and kind of input.
#[derive(Debug)]
pub(super) struct TunedNorm {
    pub(super) bytes: u64,
    pub(super) placement: Placement,
    /// What the tables before say.
    pub(super) base: Measured,
    pub(super) best: Measured,
}

/// The rows of one type that a size has.
#[derive(Debug, Clone, Copy)]
struct Rows {
    dtype: Dtype,
    rows: u32,
    hidden: u32,
}

impl Rows {
    fn call(self, placement: Placement, way: Way) -> NormCall {
        NormCall {
            placement,
            rows: self.rows,
            hidden: self.hidden,
            output: NormOutput::Same,
            way,
        }
    }
}

impl NormSweep<'_> {
    /// Sweeps the sizes until the time is up, as the sweep of the plain calls does. Also returns
    /// the devices' architecture.
    pub(super) fn run<D: Device>(
        &self,
        rank: &mut Rank<'_, D>,
    ) -> Result<(Option<Arch>, Vec<TunedNorm>)> {
        let arch = rank.communicator.identity().arch;
        let rank = &mut NormRank::new(rank)?;
        rank.prepare::<bf16>(self.hidden.iter().copied().max().unwrap_or(0))?;
        let mut tuned = Vec::new();
        for (index, &bytes) in self.sizes.iter().enumerate() {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let share = left / (self.sizes.len() - index) as u32;
            let until = Instant::now() + share.mul_f64(0.6);
            if is_over(rank.rank, left.is_zero())? {
                break;
            }
            let rows = self.rows(bytes);
            if !rows.is_empty() {
                tuned.extend(self.tune_size(rank, bytes, &rows, until)?);
            }
        }
        Ok((arch, tuned))
    }

    /// The hidden sizes of which so many bytes are whole rows, for each type.
    fn rows(&self, bytes: u64) -> Vec<Rows> {
        let mut all = Vec::new();
        for &dtype in self.dtypes {
            for &hidden in self.hidden {
                let row_bytes = u64::from(hidden) * dtype.size_bytes() as u64;
                if bytes >= row_bytes && bytes.is_multiple_of(row_bytes) {
                    let rows = (bytes / row_bytes) as u32;
                    all.push(Rows {
                        dtype,
                        rows,
                        hidden,
                    });
                }
            }
        }
        all
    }

    fn tune_size<D: Device>(
        &self,
        rank: &mut NormRank<'_, '_, D>,
        bytes: u64,
        rows: &[Rows],
        until: Instant,
    ) -> Result<Vec<TunedNorm>> {
        let brief = Method {
            warm_up: 1,
            replays: 3.min(self.method.replays),
            ..self.method
        };
        let shapes = self.candidates(rank, rows)?;
        let mut tried = Vec::new();
        for &shape in &shapes {
            let way = Way::FusedAs(plan(shape));
            // The fused kernel reads every kind of input in the same way.
            let us = self.time(rank, rows, Placement::Ordinary, way, brief)?;
            tried.push((shape, geometric_mean(&us)));
            if is_over(rank.rank, Instant::now() >= until)? {
                break;
            }
        }
        tried.sort_by(|a, b| a.1.total_cmp(&b.1));
        let mut all = Vec::new();
        for placement in Placement::ALL {
            let base = Measured {
                fused: self.fused_by_table(rank, bytes, rows, placement, &shapes)?,
                us: self.time(rank, rows, placement, Way::Table, self.method)?,
            };
            let mut timed = Vec::new();
            if base.fused.is_some() {
                let us = self.time(rank, rows, placement, Way::Unfused, self.method)?;
                timed.push(Measured { fused: None, us });
            }
            for &(shape, _) in tried.iter().take(FINALISTS) {
                let way = Way::FusedAs(plan(shape));
                timed.push(Measured {
                    fused: Some(shape),
                    us: self.time(rank, rows, placement, way, self.method)?,
                });
            }
            all.push(TunedNorm {
                bytes,
                placement,
                best: winner(&base, &timed).clone(),
                base,
            });
        }
        Ok(all)
    }

    /// The shapes that differ in a launch of any of these rows. The first is the largest, which
    /// leaves the shape to the library.
    fn candidates<D: Device>(
        &self,
        rank: &mut NormRank<'_, '_, D>,
        rows: &[Rows],
    ) -> Result<Vec<FusedShape>> {
        let max_blocks = rank.rank.communicator.max_blocks();
        let mut seen = Vec::new();
        let mut shapes = Vec::new();
        for (blocks, threads) in self.shapes.of_rows(max_blocks) {
            let shape = FusedShape { blocks, threads };
            let mut launches = Vec::new();
            for rows in rows {
                let call = rows.call(Placement::Ordinary, Way::FusedAs(plan(shape)));
                launches.push(with_element!(rows.dtype, T => rank.fused_launch::<T>(call)?));
            }
            // A row that the slots do not hold is not fused in any shape.
            if launches.iter().all(Option::is_some) && !seen.contains(&launches) {
                seen.push(launches);
                shapes.push(shape);
            }
        }
        Ok(shapes)
    }

    /// The shape in which the tables before fuse such calls, if they do.
    fn fused_by_table<D: Device>(
        &self,
        rank: &mut NormRank<'_, '_, D>,
        bytes: u64,
        rows: &[Rows],
        placement: Placement,
        shapes: &[FusedShape],
    ) -> Result<Option<FusedShape>> {
        for rows in rows {
            let call = rows.call(placement, Way::Table);
            let launch = with_element!(rows.dtype, T => rank.fused_launch::<T>(call)?);
            if launch.is_none() {
                return Ok(None);
            }
        }
        let table = rank.rank.communicator.dispatch_table();
        let row = table.rms_norm.row(placement, bytes);
        let own = row.and_then(|row| row.fused);
        Ok(own.or(shapes.first().copied()))
    }

    /// The medians of all rows, the same on all ranks.
    fn time<D: Device>(
        &self,
        rank: &mut NormRank<'_, '_, D>,
        rows: &[Rows],
        placement: Placement,
        way: Way,
        method: Method,
    ) -> Result<Vec<f64>> {
        let mut us = Vec::new();
        for rows in rows {
            let call = rows.call(placement, way);
            let times = with_element!(rows.dtype, T => rank.time::<T>(call, method)?);
            us.push(rounded(median(&times.shortest())));
        }
        Ok(us)
    }
}

fn plan(shape: FusedShape) -> Plan {
    Plan {
        route: Route::PushOneShot,
        blocks: shape.blocks,
        threads: shape.threads,
    }
}

/// The fastest, or the base if nothing gains enough over it.
fn winner<'a>(base: &'a Measured, timed: &'a [Measured]) -> &'a Measured {
    let mean = |measured: &Measured| geometric_mean(&measured.us);
    let best = timed.iter().min_by(|a, b| mean(a).total_cmp(&mean(b)));
    best.filter(|best| mean(best) <= mean(base) * (1.0 - LEAST_GAIN))
        .unwrap_or(base)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::timing::Launch;

    fn measured(blocks: Option<u32>, us: [f64; 2]) -> Measured {
        Measured {
            fused: blocks.map(|blocks| FusedShape {
                blocks,
                threads: 64,
            }),
            us: us.to_vec(),
        }
    }

    #[test]
    fn a_way_wins_only_if_it_gains_a_hundredth_over_the_hidden_sizes_together() {
        let base = measured(Some(1), [10.0, 10.0]);
        let slower = measured(None, [8.0, 14.0]);
        let as_good = measured(Some(2), [9.95, 9.95]);
        let faster = measured(Some(3), [8.0, 11.0]);
        assert_eq!(winner(&base, &[]), &base);
        assert_eq!(winner(&base, &[slower.clone(), as_good.clone()]), &base);
        let timed = [slower, as_good, faster.clone()];
        assert_eq!(winner(&base, &timed), &faster);
    }

    #[test]
    fn a_size_has_the_hidden_sizes_of_which_it_is_whole_rows() {
        let sweep = NormSweep {
            shapes: Shapes::of(peersum::dispatch::Topology::Peer),
            dtypes: &[Dtype::Bf16, Dtype::F32],
            hidden: &[4096, 8192, 5120],
            sizes: Vec::new(),
            deadline: Instant::now(),
            method: Method {
                launch: Launch::Graph,
                calls: 1,
                warm_up: 0,
                replays: 1,
            },
        };
        let rows = |bytes| {
            let all = sweep.rows(bytes).into_iter();
            all.map(|rows| (rows.dtype, rows.rows, rows.hidden))
                .collect::<Vec<_>>()
        };
        assert_eq!(rows(4096), []);
        assert_eq!(rows(8192), [(Dtype::Bf16, 1, 4096)]);
        let both = [
            (Dtype::Bf16, 2, 4096),
            (Dtype::Bf16, 1, 8192),
            (Dtype::F32, 1, 4096),
        ];
        assert_eq!(rows(16384), both);
    }
}
