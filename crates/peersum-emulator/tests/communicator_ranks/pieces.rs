//! Ranks that make the same pieces of different calls, or one kernel where others make two. The
//! sizes are equal, and every rank is still told both sides.

use peersum::dispatch::Route;
use peersum::{CommunicatorBuilder, Error, RmsNorm};
use peersum_emulator::EmulatorBuffer;

use crate::disagreements::DEADLINE;
use crate::parts::sides;
use crate::stage::{Comm, failure, on_ranks, plan, settings};

/// Elements of a piece, in which its memory is full.
const PIECE: usize = 1024;

/// Makes one call of as many elements as that many pieces have.
type Call = fn(&mut Comm, usize) -> Result<(), Error>;

fn all_reduce(comm: &mut Comm, pieces: usize) -> Result<(), Error> {
    comm.all_reduce_in_place(&mut EmulatorBuffer::<f32>::zeroed(pieces * PIECE))
}

fn all_gather(comm: &mut Comm, pieces: usize) -> Result<(), Error> {
    let mut chunks = EmulatorBuffer::<f32>::zeroed(comm.world_size() as usize * pieces * PIECE);
    comm.all_gather_in_place(&mut chunks)
}

fn reduce_scatter(comm: &mut Comm, pieces: usize) -> Result<(), Error> {
    let mut chunks = EmulatorBuffer::<f32>::zeroed(comm.world_size() as usize * pieces * PIECE);
    comm.reduce_scatter_in_place(&mut chunks)
}

fn broadcast(comm: &mut Comm, pieces: usize) -> Result<(), Error> {
    comm.broadcast(&mut EmulatorBuffer::<f32>::zeroed(pieces * PIECE), 0)
}

/// A staging half holds one piece of an all-reduce. The slots hold one piece of another call.
fn builder(push_half_bytes: usize) -> CommunicatorBuilder {
    let settings = settings().max_bytes(4 * PIECE).timeout(DEADLINE);
    settings.push_half_bytes(push_half_bytes)
}

#[test]
fn ranks_of_which_one_makes_the_same_pieces_of_two_calls_are_told_at_the_first_piece() {
    // In a pair every unit has one slot in each half; an all-gather uses two of the slots.
    let calls: [(Call, usize, usize); 4] = [
        (all_reduce, 2, 64 << 10),
        (all_gather, 2, 8 * PIECE),
        (reduce_scatter, 4, 8 * PIECE),
        (broadcast, 2, 8 * PIECE),
    ];
    for (call, whole, push_half_bytes) in calls {
        let outcomes = on_ranks(
            2,
            || builder(push_half_bytes),
            |comm| {
                comm.force_plan(plan(Route::PullOneShot, 2, 8)).unwrap();
                let outcome = match comm.rank() {
                    0 => call(comm, whole),
                    _ => call(comm, whole / 2).and_then(|()| call(comm, whole / 2)),
                };
                failure(outcome.and_then(|()| comm.synchronize()))
            },
        );
        for reason in outcomes {
            let (_, own, theirs) = sides(&reason);
            assert_eq!(own.bytes, theirs.bytes, "{reason}");
            assert_ne!(
                own.more_pieces_follow, theirs.more_pieces_follow,
                "{reason}"
            );
            assert!(
                reason.to_string().contains("more pieces follow"),
                "{reason}"
            );
        }
    }
}

#[test]
fn ranks_of_which_one_makes_one_kernel_of_all_reduce_and_rms_norm_are_told() {
    let outcomes = on_ranks(
        3,
        || settings().timeout(DEADLINE),
        |comm| {
            comm.force_plan(plan(Route::PushOneShot, 2, 8)).unwrap();
            comm.force_fused(Some(comm.rank() == 1));
            let norm = RmsNorm {
                weight: &EmulatorBuffer::<f32>::zeroed(40),
                epsilon: 1e-6,
                weight_offset: 0.0,
            };
            let mut rows = EmulatorBuffer::<f32>::zeroed(3 * 40);
            let outcome = comm.all_reduce_rms_norm_in_place(&mut rows, &norm);
            failure(outcome.and_then(|()| comm.synchronize()))
        },
    );
    for (rank, reason) in (0..).zip(outcomes) {
        let (peer, own, theirs) = sides(&reason);
        assert_eq!(
            (own.fused, theirs.fused),
            (rank == 1, peer == 1),
            "{reason}"
        );
        assert!(reason.to_string().contains("in one kernel"), "{reason}");
    }
}
