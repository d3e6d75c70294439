//! What is explored: ranks that run a sequence of calls, each a kernel of blocks of threads, and the steps between which others may come.
//!
//! A step is everything that a thread does up to the next load that another thread may race with. Loads of one phase are one step: whatever races
//! with one of them is explored before and after it.

use std::hash::{Hash, Hasher};

use crate::memory::{
    BLOCKS, EMPTY, InFlight, Memory, Order, RANKS, Store, is_slot, pull_epoch, zeroed,
};

/// Two for data, and one for each peer.
pub(crate) const THREADS: usize = 2 + RANKS - 1;

/// One entry point and the kind of its source.
#[expect(
    clippy::enum_variant_names,
    reason = "the algorithms are called one-shot and two-shot"
)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    PushOneShot,
    PushTwoShot,
    PullOneShot,
    PullTwoShot,
    SymmetricOneShot,
    SymmetricTwoShot,
}

impl Kind {
    pub(crate) fn is_push(self) -> bool {
        matches!(self, Kind::PushOneShot | Kind::PushTwoShot)
    }
    pub(crate) fn is_symmetric(self) -> bool {
        matches!(self, Kind::SymmetricOneShot | Kind::SymmetricTwoShot)
    }
    pub(crate) fn is_two_shot(self) -> bool {
        matches!(
            self,
            Kind::PushTwoShot | Kind::PullTwoShot | Kind::SymmetricTwoShot
        )
    }
}

/// One call of a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Call {
    pub(crate) kind: Kind,
    /// The grid.
    pub(crate) blocks: usize,
    /// Units of a one-shot call, or of each rank's chunk.
    pub(crate) places: usize,
    /// What the detail says of the call; 0 if it has none.
    pub(crate) detail: u8,
}

impl Call {
    /// What a header says of the call; never 0, which stands for the calls before the first. Calls of one or two places are told apart, and of one kind all.
    pub(crate) fn signature(&self) -> u8 {
        1 + 2 * self.kind as u8 + (self.places as u8 - 1)
    }

    /// The same call with a detail. Only symmetric calls have one.
    pub(crate) fn with_detail(self, detail: u8) -> Self {
        assert!(self.kind.is_symmetric());
        Call { detail, ..self }
    }
}

/// When a wait for a peer ends without the peer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waits {
    /// Never: what must be right without any failure is so.
    Endless,
    /// When a look finds poison or a header that differs; there is no deadline.
    Look,
    /// At any moment: the peer may be stalled before any of its steps, for as long as it takes.
    Bounded,
}

/// A protocol that lacks one of its rules.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Break {
    EpochAdvancedBeforeBarrier,
    EpochOfLaunchedBlocksOnly,
    RingOfTwo,
    SynchronizeSkipsHeaders,
    SynchronizeSkipsDetails,
    DetailsNotCompared,
    DetailsNotRemoved,
    NoClosingBarrier,
    NoOpeningBarrier,
    GatherByReadingWithoutThirdBarrier,
    OtherMappingInGather,
    RelaxedStagingFlag,
    OneStagingHalf,
    OnePushHalf,
    LaneUnchecked,
    NoRearm,
    ScratchInBusyHalf,
    PoisonLookedAtAfterStores,
    LeaverSkipsItself,
    SilentObserver,
    NoRelay,
    NoFenceBehindPoison,
    NoLastLookAtPoison,
    LookBesideAnnouncement,
    LoserGoesOn,
    LastLookRecordsNothing,
    LostThreadAnnounced,
    NothingWaitsForTheKernelBefore,
}

/// A promise that a run did not keep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Violation {
    /// A rank that can take no step has not ended.
    Deadlock,
    /// Data came into a slot from which the last was not taken, or a detail into a place of which
    /// the last was not removed.
    SlotOverwritten,
    /// An output that is not NaN holds something else than the sum of this call's inputs: something stale, torn or too new went into it.
    WrongResult,
    /// The blocks of a rank hold different epochs between calls.
    EpochsDiffer,
    /// `synchronize` returned Ok, and an output is not the sum, or the ranks called differently.
    FalseOk,
    /// A rank failed and all is quiet, and a peer is not poisoned.
    PeerNotTold,
    /// A rank lost a call before the last, and a peer returned Ok.
    FailureNotShared,
}

/// Where a thread is: what it does at its next step.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum At {
    /// Not launched, or through.
    Done,
    Enter,
    /// `PEERSUM_STRICT_ORDER`: acquires the headers of the call before.
    Acquire,
    AcquiredBarrier,
    /// Waits for the headers of the call before.
    Headers,
    /// Waits for the details of the call before.
    Details,
    /// Push: waits for the inputs of a unit, takes them and re-arms.
    Collect,
    /// Push two-shot: the same for the reduced units.
    CollectReduced,
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
    /// Leaving: waits until the peers' poison words are performed.
    Fence,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Thread {
    pub(crate) at: At,
    /// Where to go behind the fence.
    pub(crate) resume: At,
    pub(crate) lost: bool,
    /// Something that is not the data of this call went into a result.
    pub(crate) is_wrong: bool,
    /// NaN went into a result: a buffer that a lost block of its rank has filled with it was read.
    pub(crate) is_nan: bool,
    /// As read on entry.
    pub(crate) push_epoch: u8,
    pub(crate) pull_epoch: u8,
    /// The next peer whose header is awaited, or how many units are through.
    pub(crate) index: u8,
    /// How many of the block's releases may not speak for what this thread stores now.
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

/// What a rank's host waits for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Host {
    /// To run the kernel that writes the symmetric buffer for the next call.
    Fill,
    Running,
    Synchronize,
    Ok,
    Failed,
    /// Stopped for good, wherever it was.
    Stopped,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Rank {
    pub(crate) host: Host,
    pub(crate) call: u8,
    /// A thread has undertaken to poison all.
    pub(crate) left: bool,
    pub(crate) status: bool,
    /// 1 + the first call whose output is NaN in some part.
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
}

/// A thread's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Id {
    pub(crate) rank: usize,
    pub(crate) block: usize,
    pub(crate) thread: usize,
}

/// What a load finds that other stores race with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Finds {
    /// None of them is performed yet.
    Old,
    /// They are.
    New,
}

/// A word of a rank's memory.
pub(crate) type Word = (usize, usize);

#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// A header that overwrites another is performed.
    Perform(Store),
    Run(Id, Finds),
    /// A wait ends without its peer. `New`: the look found poison.
    GiveUp(Id, Finds),
    EndKernel(usize),
    Fill(usize, Finds),
    Synchronize(usize, Finds),
    /// `synchronize` waits no longer for the last call's headers.
    GiveUpSynchronize(usize),
    Stop(usize),
}

/// What is to be explored.
#[derive(Clone)]
pub(crate) struct Machine {
    pub(crate) world: usize,
    /// Threads of a block that handle units.
    pub(crate) threads: usize,
    /// Threads of a block that carry signals, behind those. With one a peer, as in the kernels, less what the one for this rank itself does: the first of them
    /// keeps the own header, and a look of it that finds poison is the end of another's wait.
    pub(crate) signals: usize,
    /// Whether the threads of a block enter a call one by one. Otherwise they read its state in one step.
    pub(crate) enters_apart: bool,
    /// Words a unit that a push call sends one-shot.
    pub(crate) words: usize,
    /// The calls of each rank.
    pub(crate) programs: [Vec<Call>; RANKS],
    pub(crate) waits: Waits,
    /// A rank that may stop for good.
    pub(crate) stops: Option<usize>,
    pub(crate) order: Order,
    /// The build `PEERSUM_STRICT_ORDER`.
    pub(crate) is_strict: bool,
    /// Every unit of an ordinary buffer passes through scratch memory.
    pub(crate) has_narrow_units: bool,
    /// A signal thread takes a header as soon as it has been sent, so that its wait is given up ahead of that or not at all.
    pub(crate) takes_headers_at_once: bool,
    pub(crate) broken: Option<Break>,
}

impl Machine {
    /// `world` ranks that all make `calls`, one thread a block that handles units, one word a unit, no failure.
    pub(crate) fn new(world: usize, calls: &[Call]) -> Self {
        Machine {
            world,
            threads: 1,
            signals: world - 1,
            enters_apart: false,
            words: 1,
            programs: std::array::from_fn(|_| calls.to_vec()),
            waits: Waits::Endless,
            stops: None,
            order: Order::Physical,
            is_strict: false,
            has_narrow_units: false,
            takes_headers_at_once: false,
            broken: None,
        }
    }

    pub(crate) fn is_broken(&self, rule: Break) -> bool {
        self.broken == Some(rule)
    }

    pub(crate) fn ranks_agree(&self) -> bool {
        let said = |call: &Call| (call.signature(), call.detail);
        let signatures = |rank: usize| self.programs[rank].iter().map(said);
        (1..self.world).all(|rank| signatures(rank).eq(signatures(0)))
    }

    pub(crate) fn initial(&self) -> State {
        let mut memory = zeroed();
        for block in 0..BLOCKS {
            memory[pull_epoch(block)] = 1;
        }
        let rank = Rank {
            host: Host::Running,
            call: 0,
            left: false,
            status: false,
            lost: 0,
            is_wrong: false,
        };
        let mut state = State {
            memory: [memory; RANKS],
            in_flight: InFlight::none(),
            threads: [[[Thread::DONE; THREADS]; BLOCKS]; RANKS],
            ranks: [rank; RANKS],
        };
        for rank in 0..self.world {
            self.prepare(&mut state, rank);
        }
        // Nothing that is run here can fail: no peer has stored anything.
        let _ = self.settle(&mut state);
        state
    }

    pub(crate) fn call(&self, state: &State, rank: usize) -> &Call {
        &self.programs[rank][usize::from(state.ranks[rank].call)]
    }

    pub(crate) fn carries_signals(&self, id: Id) -> bool {
        id.thread >= self.threads
    }

    /// The peers with which this thread exchanges headers and flags: the next in the order that begins with this rank.
    pub(crate) fn peers(&self, id: Id) -> impl Iterator<Item = usize> + use<> {
        let (world, threads, signals) = (self.world, self.threads, self.signals);
        (0..world).filter(move |&peer| {
            let step = (peer + world - id.rank) % world;
            step != 0 && threads + (step - 1) % signals == id.thread
        })
    }

    /// The ranks that `rank` sends its units to, and receives units from. A pair keeps its own in registers.
    pub(crate) fn slot_peers(&self, rank: usize) -> impl Iterator<Item = usize> + Clone + use<> {
        let keeps_own = self.world == 2;
        (0..self.world).filter(move |&peer| !keeps_own || peer != rank)
    }

    /// The place that a thread handles next, if there is one.
    pub(crate) fn place(&self, state: &State, id: Id) -> Option<usize> {
        let call = self.call(state, id.rank);
        let place = id.block * self.threads
            + id.thread
            + usize::from(thread(state, id).index) * call.blocks * self.threads;
        (!self.carries_signals(id) && place < call.places).then_some(place)
    }

    /// All places that a thread handles.
    pub(crate) fn places(&self, state: &State, id: Id) -> impl Iterator<Item = usize> + use<> {
        let call = self.call(state, id.rank);
        let end = if self.carries_signals(id) {
            0
        } else {
            call.places
        };
        (id.block * self.threads + id.thread..end).step_by(call.blocks * self.threads)
    }

    /// A load of `address` in the memory of rank `target`.
    pub(crate) fn load(&self, state: &State, id: Id, target: usize, address: usize) -> u8 {
        let own = (target == id.rank).then(|| {
            state.in_flight.own_store(
                id.rank,
                address,
                (state.ranks[id.rank].call, id.block),
                self.order,
            )
        });
        own.flatten().unwrap_or(state.memory[target][address])
    }

    pub(crate) fn issue(
        &self,
        state: &mut State,
        id: Id,
        word: Word,
        value: u8,
        release: bool,
    ) -> Result<(), Violation> {
        let stage = thread(state, id).stage;
        self.issue_at(state, id, stage, word, value, release)
    }

    /// As `issue`, at a stage of the call that is not the thread's.
    pub(crate) fn issue_at(
        &self,
        state: &mut State,
        id: Id,
        stage: u8,
        (target, address): Word,
        value: u8,
        release: bool,
    ) -> Result<(), Violation> {
        // Data for a slot from which the last data was not taken, or whose re-arm by another rank is still to be performed.
        if is_slot(address) && value != EMPTY && self.ranks_agree() {
            let mut coming = state.in_flight.to(target, address);
            let is_raced = coming.any(|store| store.issuer != id.rank || store.value != EMPTY);
            if is_raced || self.load(state, id, target, address) != EMPTY {
                return Err(Violation::SlotOverwritten);
            }
        }
        state.in_flight.issue(Store {
            issuer: id.rank,
            call: state.ranks[id.rank].call,
            stage,
            block: id.block,
            release,
            target,
            address,
            value,
        });
        Ok(())
    }
}

pub(crate) fn thread(state: &State, id: Id) -> &Thread {
    &state.threads[id.rank][id.block][id.thread]
}

pub(crate) fn thread_mut(state: &mut State, id: Id) -> &mut Thread {
    &mut state.threads[id.rank][id.block][id.thread]
}
