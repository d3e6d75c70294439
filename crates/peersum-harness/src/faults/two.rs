//! Two communicators with default settings on the same devices, at once.

use anyhow::{Context, Result, ensure};
use peersum::device::{Device, DeviceStream};
use peersum::dispatch::Placement;
use peersum::{Communicator, Error, Graph, Rendezvous};

use super::stage::Stage;
use crate::calls::{Calls, What};
use crate::collective::Collective;
use crate::machine::DeviceKind;
use crate::norm_output::NormOutput;
use crate::ranks::Member;

/// Calls of each communicator in one graph, and the most in one batch of eager calls.
const MOST_CALLS: usize = 16;

/// The results are compared every so many rounds.
const LOOK_EVERY: usize = 8;

/// Maximum time that a call waits. A deadlock ends in a timeout that names the ranks.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// One of the two communicators. Of its all-reduces one fills the grid and one is small; of its
/// calls with RMSNorm one has as many clusters as there may be, and one has large ones. The others
/// are small.
struct Lane<D: Device> {
    communicator: Communicator<D>,
    calls: [Calls<D>; 7],
}

/// What the calls of a lane have.
struct Sizes {
    /// Of the all-reduces.
    elements: [usize; 2],
    /// Of the calls with RMSNorm.
    rows: [usize; 2],
    hidden: usize,
}

const GPU_SIZES: Sizes = Sizes {
    // 4 MB: the largest grid.
    elements: [2 << 20, 3000],
    // On a GPU for each rank 66 clusters of two blocks, of which 60 always find room, and 8 of
    // eight, of which 6 do. On one GPU 8 of four, of which 7 do.
    rows: [66, 8],
    hidden: 4096,
};

const EMULATOR_SIZES: Sizes = Sizes {
    elements: [9000, 3000],
    rows: [2, 1],
    hidden: 64,
};

impl<D: Device> Lane<D> {
    fn new<S: DeviceStream<Device = D>>(
        rendezvous: Rendezvous,
        stage: &Stage<'_, S>,
        pdl: bool,
        (seed, sizes): (u64, &Sizes),
    ) -> Result<Self> {
        let communicator = stage.build(rendezvous, |builder| {
            builder.max_bytes(4 << 20).pdl(pdl).timeout(PATIENCE)
        })?;
        let call = |what, elements| Calls::new(&communicator, what, seed, elements, sizes.hidden);
        // Calls with FP8 work in place, and would sum their own results.
        let norm = What::Norm(NormOutput::Same);
        let [large, small] = sizes.elements;
        let rows = sizes.rows.map(|rows| rows * sizes.hidden);
        let calls = [
            call(What::AllReduce, large)?,
            call(norm, rows[0])?,
            call(What::AllReduce, small)?,
            call(norm, rows[1])?,
            call(What::Other(Collective::AllGather), small)?,
            call(What::Other(Collective::ReduceScatter), small)?,
            call(What::Other(Collective::Broadcast { root: 1 }), small)?,
        ];
        Ok(Lane {
            communicator,
            calls,
        })
    }

    fn call(&mut self, call: usize) -> Result<(), Error> {
        self.calls[call % self.calls.len()].call(&mut self.communicator)
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
        self.calls.iter().try_for_each(Calls::prepare)
    }

    fn ensure_results(&self) -> Result<()> {
        self.calls.iter().try_for_each(Calls::ensure_result)
    }
}

/// Ranks enqueue batches of calls on both communicators, eager and as graphs, in opposite orders,
/// without waiting in between.
pub(super) fn two_communicators<S: DeviceStream>(
    mut member: Member<'_>,
    stage: &Stage<'_, S>,
    pdl: bool,
) -> Result<()> {
    let (sizes, rounds) = match stage.kind {
        DeviceKind::Cuda => (GPU_SIZES, 400),
        DeviceKind::Emulator => (EMULATOR_SIZES, 2 * LOOK_EVERY),
    };
    let mut lane = |seed| Lane::new(member.next_group()?, stage, pdl, (seed, &sizes));
    let mut lanes = [lane(3)?, lane(4)?];
    let shares = lanes.each_ref().map(|lane| lane.communicator.max_blocks());
    ensure!(
        shares[0] == shares[1],
        "shares of {shares:?} blocks: the second must not depend on the first"
    );
    let rank = lanes[0].communicator.rank();
    if rank == 0 {
        let communicator = &lanes[0].communicator;
        let bytes = 2 * sizes.elements[0] as u64;
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
    member.peers.meet()?;
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
                // At least one call of each kind.
                (0..7 + round % (MOST_CALLS - 6)).try_for_each(|call| lane.call(call))?;
            }
        }
        if looks {
            for index in order {
                let lane = &mut lanes[index];
                lane.communicator
                    .synchronize()
                    .with_context(|| format!("communicator {index}, round {round}"))?;
                lane.ensure_results()
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
