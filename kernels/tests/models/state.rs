//! The state of a run: the ranks, their threads and memory, and the steps that change it.

use std::hash::{Hash, Hasher};

use crate::memory::{BLOCKS, InFlight, Memory, RANKS, Store};
use crate::row_exchange::{BlockMemory, PhaseEnd};

/// Two data threads, and one signal thread for each peer.
pub(crate) const THREADS: usize = 2 + RANKS - 1;

/// A thread's position: what it does in its next step.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum At {
    /// Not launched, or finished.
    Done,
    /// The start of a cluster; a step only if it is left out.
    Join,
    Enter,
    /// `PEERSUM_STRICT_ORDER`: acquires the headers of the previous call.
    Acquire,
    AcquiredBarrier,
    /// Waits for the headers of the previous call.
    Headers,
    /// Waits for the details of the previous call.
    Details,
    /// Push: waits for the inputs of a unit, takes them and re-arms the slots.
    Collect,
    /// Push two-shot: the same for the reduced units.
    CollectReduced,
    /// Waits for the norm words of this call.
    NormWords,
    /// Waits for the sums of all threads that share a row.
    RowBarrier,
    /// Reads the sums of a row.
    RowSums,
    /// FP8: the same for the largest magnitudes of a row.
    LargestBarrier,
    Largest,
    /// Push: a signal thread waits until all threads of its block have read the epochs.
    ReadByAll,
    OpenBarrier,
    OpenFlags,
    OpenedBarrier,
    /// Pull: reads every rank's copy.
    Read,
    SecondBarrier,
    /// The last look at poison.
    Look,
    SecondFlags,
    SecondedBarrier,
    /// Pull two-shot: reads the reduced chunks.
    Gather,
    /// Leaving: waits until the poison words at the peers are performed.
    Fence,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Thread {
    pub(crate) at: At,
    /// Where to continue after the fence.
    pub(crate) resume: At,
    pub(crate) lost: bool,
    /// A value that is not data of this call went into a result.
    pub(crate) is_wrong: bool,
    /// NaN went into a result: this thread read a buffer that a lost block of its owner had filled
    /// with NaN.
    pub(crate) is_nan: bool,
    /// The epochs, as read on entry.
    pub(crate) push_epoch: u8,
    pub(crate) pull_epoch: u8,
    /// The next peer whose header is awaited, or the number of units done.
    pub(crate) index: u8,
    /// The number of the block's releases that may not cover what this thread stores now.
    pub(crate) stage: u8,
}

impl Hash for Thread {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let flags = [self.lost, self.is_wrong, self.is_nan];
        let flags = flags
            .iter()
            .fold(0, |bits, &flag| bits << 1 | u8::from(flag));
        hasher.write_u64(u64::from_le_bytes([
            self.at as u8,
            self.resume as u8,
            flags,
            self.push_epoch,
            self.pull_epoch,
            self.index,
            self.stage,
            0,
        ]));
    }
}

impl Thread {
    pub(crate) const DONE: Self = Thread {
        at: At::Done,
        resume: At::Done,
        lost: false,
        is_wrong: false,
        is_nan: false,
        push_epoch: 0,
        pull_epoch: 0,
        index: 0,
        stage: 0,
    };
}

/// What a rank's host does or waits for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Host {
    /// Runs the kernel that writes the symmetric buffer for the next call.
    Fill,
    Running,
    Synchronize,
    Ok,
    Failed,
    /// Stopped for good, at any step.
    Stopped,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Rank {
    pub(crate) host: Host,
    pub(crate) call: u8,
    /// A thread has claimed the task of poisoning all ranks.
    pub(crate) left: bool,
    pub(crate) status: bool,
    /// 1 + the first call whose output is NaN in some part; 0 if there is none.
    pub(crate) lost: u8,
    /// Data of a call that the peers did not make went into a result.
    pub(crate) is_wrong: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) memory: [Memory; RANKS],
    pub(crate) in_flight: InFlight,
    pub(crate) threads: [[[Thread; THREADS]; BLOCKS]; RANKS],
    pub(crate) ranks: [Rank; RANKS],
    /// The memory of each block, for what the threads of a row exchange.
    pub(crate) blocks: [[BlockMemory; BLOCKS]; RANKS],
}

/// Identifies a thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Id {
    pub(crate) rank: usize,
    pub(crate) block: usize,
    pub(crate) thread: usize,
}

/// What a load finds when stores race with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Finds {
    /// None of these stores is performed yet.
    Old,
    /// All of them are performed.
    New,
}

/// A word of a rank's memory: rank and address.
pub(crate) type Word = (usize, usize);

#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// A store of a header or detail that overwrites another is performed.
    Perform(Store),
    Run(Id, Finds),
    EndPhase(PhaseEnd),
    /// A wait ends without the peer's data. `New`: the look found poison.
    GiveUp(Id, Finds),
    EndKernel(usize),
    Fill(usize, Finds),
    Synchronize(usize, Finds),
    /// `synchronize` stops waiting for the headers of the last call.
    GiveUpSynchronize(usize),
    Stop(usize),
}

pub(crate) fn thread(state: &State, id: Id) -> &Thread {
    &state.threads[id.rank][id.block][id.thread]
}

pub(crate) fn thread_mut(state: &mut State, id: Id) -> &mut Thread {
    &mut state.threads[id.rank][id.block][id.thread]
}
