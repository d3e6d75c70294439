//! Two communicators with default settings on the same devices, at once.

use anyhow::{Context, Result, ensure};
use half::bf16;
use peersum::device::{Device, DeviceStream};
use peersum::dispatch::Placement;
use peersum::{Communicator, Error, Graph};

use super::stage::Stage;
use crate::arrays::Arrays;
use crate::machine::DeviceKind;
use crate::ranks::Member;

/// Calls of each communicator in one graph, and the most in one batch of eager calls.
const MOST_CALLS: usize = 16;

/// The results are compared every so many rounds.
const LOOK_EVERY: usize = 8;

/// Maximum time that a call waits. A deadlock ends in a timeout that names the ranks.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// One of the two communicators. It makes calls of two sizes: one fills the grid, one is small.
struct Lane<D: Device> {
    communicator: Communicator<D>,
    arrays: [Arrays<bf16, D>; 2],
}

impl<D: Device> Lane<D> {
    fn call(&mut self, call: usize) -> Result<(), Error> {
        self.arrays[call % 2].call(&mut self.communicator)
    }

    fn capture(&mut self) -> Result<Graph<'static, D>> {
        self.communicator.capture_begin()?;
        for call in 0..MOST_CALLS {
            self.call(call)?;
        }
        // SAFETY: the arrays live as long as the lane, which outlives its graph.
        Ok(unsafe { self.communicator.capture_end()? })
    }

    fn poison(&self) -> Result<()> {
        let mut arrays = self.arrays.iter();
        arrays.try_for_each(|arrays| arrays.output.poison(&arrays.device))
    }

    fn ensure_sums(&self) -> Result<()> {
        let mut arrays = self.arrays.iter();
        arrays.try_for_each(|arrays| arrays.ensure_sum(&arrays.output))
    }
}

/// Ranks enqueue batches of calls on both communicators, eager and as graphs, in opposite orders,
/// without waiting in between.
pub(super) fn two_communicators<S: DeviceStream>(
    mut member: Member<'_>,
    stage: &Stage<'_, S>,
    pdl: bool,
) -> Result<()> {
    let (elements, rounds) = match stage.kind {
        // 4 MB: the largest grid.
        DeviceKind::Cuda => ([2 << 20, 3000], 400),
        DeviceKind::Emulator => ([9000, 3000], 2 * LOOK_EVERY),
    };
    let mut lane = |seed| {
        let communicator = stage.build(member.next_group()?, |builder| {
            builder.max_bytes(4 << 20).pdl(pdl).timeout(PATIENCE)
        })?;
        let arrays = |elements| stage.arrays(&communicator, seed, elements);
        let arrays = [arrays(elements[0])?, arrays(elements[1])?];
        anyhow::Ok(Lane {
            communicator,
            arrays,
        })
    };
    let mut lanes = [lane(3)?, lane(4)?];
    let shares = lanes.each_ref().map(|lane| lane.communicator.max_blocks());
    ensure!(
        shares[0] == shares[1],
        "shares of {shares:?} blocks: the second must not depend on the first"
    );
    let rank = lanes[0].communicator.rank();
    if rank == 0 {
        let communicator = &lanes[0].communicator;
        let bytes = 2 * elements[0] as u64;
        let plan = communicator.launched(communicator.plan(Placement::Ordinary, bytes), bytes);
        println!(
            "  shares of {} blocks, calls of up to {} x {}",
            shares[0], plan.blocks, plan.threads
        );
    }
    let graphs = {
        let [first, second] = &mut lanes;
        [first.capture()?, second.capture()?]
    };
    for round in 0..rounds {
        let looks = round % LOOK_EVERY == LOOK_EVERY - 1;
        // Results of eager and of graph rounds are compared in turn.
        let in_graph = round / LOOK_EVERY % 2 == 1;
        if looks {
            lanes.iter().try_for_each(Lane::poison)?;
        }
        let order = if (round + rank as usize).is_multiple_of(2) {
            [0, 1]
        } else {
            [1, 0]
        };
        for index in order {
            let lane = &mut lanes[index];
            if in_graph {
                graphs[index].launch(&mut lane.communicator)?;
            } else {
                // At least one call of each size.
                (0..2 + round % (MOST_CALLS - 1)).try_for_each(|call| lane.call(call))?;
            }
        }
        if looks {
            for index in order {
                let lane = &mut lanes[index];
                lane.communicator
                    .synchronize()
                    .with_context(|| format!("communicator {index}, round {round}"))?;
                lane.ensure_sums()
                    .with_context(|| format!("communicator {index}, round {round}"))?;
            }
        }
    }
    drop(graphs);
    // In the same order on every rank, since each drop waits for the peers.
    let [first, second] = lanes;
    drop(first);
    drop(second);
    Ok(())
}
