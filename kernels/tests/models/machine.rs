//! What is explored: ranks that run a sequence of calls, each a kernel of blocks of threads, and the steps between which others may come.
//!
//! A step is everything that a thread does up to the next load that another thread may race with. Loads of one phase are one step: whatever races
//! with one of them is explored before and after it.

use crate::memory::{
    BLOCKS, EMPTY, InFlight, Memory, Order, RANKS, Store, is_header, is_poison, is_slot, poison,
    pull_epoch, push_epoch, zeroed,
};

pub(crate) const THREADS: usize = 2;

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
}

impl Call {
    /// What a header says of the call; never 0, which stands for the calls before the first.
    pub(crate) fn signature(&self) -> u8 {
        1 + 2 * self.kind as u8 + (self.places as u8 - 1)
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
    LastLookRecordsNothing,
    LostThreadAnnounced,
    NothingWaitsForTheKernelBefore,
}

/// A promise that a run did not keep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Violation {
    /// A rank that can take no step has not ended.
    Deadlock,
    /// Data came into a slot from which the last was not taken.
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
    /// Push: waits for the inputs of a unit, takes them and re-arms.
    Collect,
    /// Push two-shot: the same for the reduced units.
    CollectReduced,
    EndBarrier,
    OpenBarrier,
    OpenFlags,
    OpenedBarrier,
    /// Pull: reads every rank's copy.
    Read,
    SecondBarrier,
    SecondFlags,
    SecondedBarrier,
    /// Pull two-shot: reads the reduced chunks.
    Gather,
    /// Leaving: waits until the peers' poison words are performed.
    Fence,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Thread {
    pub(crate) at: At,
    /// Where to go behind the fence.
    pub(crate) resume: At,
    pub(crate) lost: bool,
    /// Something that is not the data of this call went into a result.
    pub(crate) is_wrong: bool,
    /// As read on entry.
    pub(crate) push_epoch: u8,
    pub(crate) pull_epoch: u8,
    /// The next peer whose header is awaited, or how many units are through.
    pub(crate) index: u8,
    /// Releases that the block has issued.
    pub(crate) stage: u8,
}

impl Thread {
    pub(crate) const DONE: Self = Thread {
        at: At::Done,
        resume: At::Done,
        lost: false,
        is_wrong: false,
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
    /// Threads a block.
    pub(crate) threads: usize,
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
    pub(crate) broken: Option<Break>,
}

impl Machine {
    /// `world` ranks that all make `calls`, one thread a block, one word a unit, no failure.
    pub(crate) fn new(world: usize, calls: &[Call]) -> Self {
        Machine {
            world,
            threads: 1,
            words: 1,
            programs: std::array::from_fn(|_| calls.to_vec()),
            waits: Waits::Endless,
            stops: None,
            order: Order::Physical,
            is_strict: false,
            has_narrow_units: false,
            broken: None,
        }
    }

    pub(crate) fn is_broken(&self, rule: Break) -> bool {
        self.broken == Some(rule)
    }

    pub(crate) fn ranks_agree(&self) -> bool {
        self.programs[..self.world]
            .iter()
            .all(|program| *program == self.programs[0])
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

    /// The peers with which this thread exchanges words: the `thread`-th in the order that begins with this rank.
    pub(crate) fn peers(&self, id: Id) -> impl Iterator<Item = usize> + use<> {
        let (world, threads) = (self.world, self.threads);
        (0..world).filter(move |&peer| {
            let step = (peer + world - id.rank) % world;
            step != 0 && step % threads == id.thread
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
        (place < call.places).then_some(place)
    }

    /// All places that a thread handles.
    pub(crate) fn places(&self, state: &State, id: Id) -> impl Iterator<Item = usize> + use<> {
        let call = self.call(state, id.rank);
        (id.block * self.threads + id.thread..call.places).step_by(call.blocks * self.threads)
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
            stage: thread(state, id).stage,
            block: id.block,
            release,
            target,
            address,
            value,
        });
        Ok(())
    }

    /// The words that a thread's next step loads, whatever they hold.
    fn loads(&self, state: &State, id: Id) -> Vec<Word> {
        let own_poison = (id.rank, poison(id.block));
        match thread(state, id).at {
            At::Enter => vec![own_poison],
            At::SecondFlags if self.call(state, id.rank).kind.is_symmetric() => vec![own_poison],
            At::Read => self.read_words(state, id),
            At::Gather => self.gathered_words(state, id),
            _ => Vec::new(),
        }
    }

    /// Whether a store is on its way to one of the words from somewhere else than the thread's own block.
    fn is_raced(state: &State, id: Id, words: &[Word]) -> bool {
        state.in_flight.iter().any(|store| {
            words.contains(&(store.target, store.address))
                && (store.issuer, store.block) != (id.rank, id.block)
        })
    }

    pub(crate) fn perform_words(state: &mut State, words: &[Word]) {
        state.in_flight.perform_all(&mut state.memory, |store| {
            words.contains(&(store.target, store.address))
        });
    }

    /// Every step that may come next.
    pub(crate) fn steps(&self, state: &State) -> Vec<Step> {
        let mut steps = Vec::new();
        for store in state.in_flight.iter() {
            if is_header(store.address) && self.overwrites_header(&store) {
                steps.push(Step::Perform(store));
            }
        }
        for rank in 0..self.world {
            match state.ranks[rank].host {
                Host::Fill => {
                    steps.push(Step::Fill(rank, Finds::Old));
                    if state
                        .in_flight
                        .iter()
                        .any(|store| self.races_with_fill(&store, rank))
                    {
                        steps.push(Step::Fill(rank, Finds::New));
                    }
                }
                Host::Synchronize => self.add_synchronize_steps(state, rank, &mut steps),
                Host::Running => {
                    for id in self.ids(rank) {
                        self.add_thread_steps(state, id, &mut steps);
                    }
                    if self.has_kernel_ended(state, rank) {
                        steps.push(Step::EndKernel(rank));
                    }
                }
                Host::Ok | Host::Failed | Host::Stopped => continue,
            }
            if self.stops == Some(rank) {
                steps.push(Step::Stop(rank));
            }
        }
        steps
    }

    fn add_thread_steps(&self, state: &State, id: Id, steps: &mut Vec<Step>) {
        if self.is_ready(state, id) {
            steps.push(Step::Run(id, Finds::Old));
            if Self::is_raced(state, id, &self.loads(state, id)) {
                steps.push(Step::Run(id, Finds::New));
            }
        }
        self.add_give_ups(state, id, steps);
    }

    pub(crate) fn take(&self, state: &mut State, step: Step) -> Result<(), Violation> {
        match step {
            Step::Perform(store) => state.in_flight.perform(&store, &mut state.memory),
            Step::Run(id, finds) => {
                if finds == Finds::New {
                    let words = self.loads(state, id);
                    Self::perform_words(state, &words);
                }
                self.run(state, id)?;
            }
            Step::GiveUp(id, finds) => {
                if finds == Finds::New {
                    Self::perform_words(state, &[(id.rank, poison(id.block))]);
                }
                self.leave(state, id)?;
            }
            Step::EndKernel(rank) => self.end_kernel(state, rank)?,
            Step::Fill(rank, finds) => self.fill(state, rank, finds)?,
            Step::Synchronize(rank, finds) => self.synchronize(state, rank, finds)?,
            Step::GiveUpSynchronize(rank) => self.fail_synchronize(state, rank)?,
            Step::Stop(rank) => state.ranks[rank].host = Host::Stopped,
        }
        self.settle(state)
    }

    /// Nothing can happen any more: whether all ended as they must.
    pub(crate) fn check_end(&self, state: &State) -> Result<(), Violation> {
        let ranks = &state.ranks[..self.world];
        if ranks
            .iter()
            .any(|rank| matches!(rank.host, Host::Fill | Host::Running | Host::Synchronize))
        {
            return Err(Violation::Deadlock);
        }
        let has_failed = |rank: &Rank| rank.left || rank.host == Host::Failed;
        let is_poisoned = |rank: usize| {
            (0..BLOCKS).map(poison).all(|word| {
                state.memory[rank][word] != 0 || state.in_flight.to(rank, word).next().is_some()
            })
        };
        if ranks.iter().any(has_failed) && !(0..self.world).all(is_poisoned) {
            return Err(Violation::PeerNotTold);
        }
        let last = self.programs[0].len() as u8;
        if ranks.iter().any(|rank| (1..last).contains(&rank.lost))
            && ranks.iter().any(|rank| rank.host == Host::Ok)
        {
            return Err(Violation::FailureNotShared);
        }
        Ok(())
    }

    pub(crate) fn describe(&self, state: &State, step: Step) -> String {
        match step {
            Step::Perform(store) => format!(
                "rank {} call {}: its header to rank {} is performed",
                store.issuer, store.call, store.target
            ),
            Step::Run(id, finds) | Step::GiveUp(id, finds) => {
                let does = if matches!(step, Step::Run(..)) {
                    ""
                } else {
                    " given up"
                };
                format!(
                    "rank {} block {} thread {} call {}: {:?}{does}, finds {finds:?}",
                    id.rank,
                    id.block,
                    id.thread,
                    state.ranks[id.rank].call,
                    thread(state, id).at
                )
            }
            Step::Fill(rank, _)
            | Step::EndKernel(rank)
            | Step::Synchronize(rank, _)
            | Step::GiveUpSynchronize(rank)
            | Step::Stop(rank) => {
                format!("rank {rank} call {}: {step:?}", state.ranks[rank].call)
            }
        }
    }

    pub(crate) fn ids(&self, rank: usize) -> impl Iterator<Item = Id> + use<> {
        let threads = self.threads;
        (0..BLOCKS).flat_map(move |block| {
            (0..threads).map(move |thread| Id {
                rank,
                block,
                thread,
            })
        })
    }

    /// Takes every step that no other thread can tell from having been taken at another time.
    fn settle(&self, state: &mut State) -> Result<(), Violation> {
        loop {
            let mut has_moved = false;
            for rank in 0..self.world {
                if self.reads_its_words_no_more(state, rank) {
                    has_moved |= state.in_flight.perform_unread(rank, &mut state.memory);
                }
                if state.ranks[rank].host != Host::Running {
                    continue;
                }
                for id in self.ids(rank) {
                    if self.is_local(state, id) {
                        self.run(state, id)?;
                        has_moved = true;
                    }
                }
                if self.has_kernel_ended(state, rank) && !state.in_flight.has_own(rank) {
                    self.end_kernel(state, rank)?;
                    has_moved = true;
                }
            }
            if !has_moved {
                return Ok(());
            }
        }
    }

    /// Whether nothing that a peer may still store to this rank's slots, headers, flags and poison words will be looked at: each call of it
    /// that is left finds itself poisoned, and so does `synchronize`.
    fn reads_its_words_no_more(&self, state: &State, rank: usize) -> bool {
        let is_poisoned = || (0..BLOCKS).all(|block| state.memory[rank][poison(block)] != 0);
        let is_inside = || {
            let threads = state.threads[rank].as_flattened();
            threads
                .iter()
                .any(|thread| !matches!(thread.at, At::Done | At::Enter))
        };
        match state.ranks[rank].host {
            Host::Ok | Host::Failed | Host::Stopped => true,
            Host::Running | Host::Fill | Host::Synchronize => is_poisoned() && !is_inside(),
        }
    }

    /// A wait for flags that are there, a look at a poison word that is set: they only grow, so nothing can undo it. An entry that loads and stores nothing
    /// that another thread or rank stores or loads.
    fn is_local(&self, state: &State, id: Id) -> bool {
        match thread(state, id).at {
            At::Enter if self.waits == Waits::Endless => {
                self.threads == 1
                    && !self.has_narrow_units
                    && !self.is_broken(Break::NothingWaitsForTheKernelBefore)
            }
            At::Enter => state.memory[id.rank][poison(id.block)] != 0,
            At::OpenFlags => self.are_flags_performed(state, id),
            At::SecondFlags => {
                (self.waits == Waits::Endless || !self.call(state, id.rank).kind.is_symmetric())
                    && self.are_flags_performed(state, id)
            }
            At::Fence => !state
                .in_flight
                .iter()
                .any(|store| store.issuer == id.rank && is_poison(store.address)),
            _ => false,
        }
    }

    /// Whether a thread's next step may be taken now.
    fn is_ready(&self, state: &State, id: Id) -> bool {
        match thread(state, id).at {
            At::Enter | At::Read | At::Gather | At::Fence => true,
            At::Acquire | At::Headers => self.has_header(state, id),
            At::Collect => self.has_inputs(state, id),
            At::CollectReduced => self.has_reduced(state, id),
            At::OpenFlags | At::SecondFlags => self.has_flags(state, id),
            At::Done
            | At::AcquiredBarrier
            | At::EndBarrier
            | At::OpenBarrier
            | At::OpenedBarrier
            | At::SecondBarrier
            | At::SecondedBarrier => false,
        }
    }

    fn run(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        match thread(state, id).at {
            At::Enter => self.enter(state, id),
            At::Acquire => self.acquire_header(state, id),
            At::Headers => self.take_header(state, id),
            At::Collect => self.collect(state, id),
            At::CollectReduced => self.collect_reduced(state, id),
            At::OpenFlags => {
                self.take_flags(state, id);
                self.arrive(state, id, At::OpenedBarrier)
            }
            At::Read => self.read(state, id),
            At::SecondFlags => {
                self.take_flags(state, id);
                self.look_again(state, id)
            }
            At::Gather => self.gather(state, id),
            At::Fence => self.end_leave(state, id),
            at => unreachable!("{at:?} is no step"),
        }
    }

    /// The first act of every call.
    fn enter(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        let own = &state.memory[id.rank];
        let is_poisoned = own[poison(id.block)] != 0;
        let epochs = (own[push_epoch(id.block)], own[pull_epoch(id.block)]);
        let me = thread_mut(state, id);
        (me.push_epoch, me.pull_epoch) = epochs;
        let is_push = self.call(state, id.rank).kind.is_push();
        if is_poisoned {
            if self.is_broken(Break::PoisonLookedAtAfterStores) {
                if is_push {
                    self.store_inputs(state, id)?;
                } else {
                    self.stage(state, id)?;
                }
            }
            return self.leave(state, id);
        }
        if is_push {
            self.begin_push(state, id)
        } else {
            self.stage(state, id)?;
            self.arrive(state, id, At::OpenBarrier)
        }
    }

    /// A thread comes to a block barrier; the last one takes all past it.
    pub(crate) fn arrive(&self, state: &mut State, id: Id, barrier: At) -> Result<(), Violation> {
        thread_mut(state, id).at = barrier;
        let block = &mut state.threads[id.rank][id.block][..self.threads];
        if block.iter().any(|thread| thread.at != barrier) {
            return Ok(());
        }
        // bar.red.or; the last barrier of a push call is a plain one.
        if barrier != At::EndBarrier && !self.is_broken(Break::LostThreadAnnounced) {
            let lost = block.iter().any(|thread| thread.lost);
            block.iter_mut().for_each(|thread| thread.lost = lost);
        }
        for thread in 0..self.threads {
            let id = Id { thread, ..id };
            match barrier {
                At::AcquiredBarrier => self.send(state, id)?,
                At::EndBarrier => self.finish(state, id)?,
                At::OpenBarrier => self.announce(state, id, At::OpenFlags)?,
                At::OpenedBarrier => self.begin_read(state, id)?,
                At::SecondBarrier => self.announce(state, id, At::SecondFlags)?,
                At::SecondedBarrier => self.begin_gather(state, id)?,
                at => unreachable!("{at:?} is no barrier"),
            }
        }
        Ok(())
    }

    /// The end of every call: the block's last wait is over.
    pub(crate) fn finish(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        let call = *self.call(state, id.rank);
        let me = *thread(state, id);
        let rank = &mut state.ranks[id.rank];
        if me.lost && rank.lost == 0 {
            rank.lost = rank.call + 1;
        }
        if me.is_wrong && !me.lost {
            self.count_wrong(state, id.rank)?;
        }
        let first = id.block + call.blocks * id.thread;
        for block in (first..BLOCKS).step_by(call.blocks * self.threads) {
            if self.is_broken(Break::EpochOfLaunchedBlocksOnly) && block != id.block {
                continue;
            }
            let (address, epoch) = if call.kind.is_push() {
                (push_epoch(block), me.push_epoch)
            } else {
                (pull_epoch(block), me.pull_epoch)
            };
            if self.is_broken(Break::NothingWaitsForTheKernelBefore) {
                self.issue(state, id, (id.rank, address), epoch + 1, false)?;
            } else {
                state.memory[id.rank][address] = epoch + 1;
            }
        }
        *thread_mut(state, id) = Thread::DONE;
        Ok(())
    }

    /// A result of this rank is not the sum of this call's inputs. Where ranks call differently none can be, and it is `synchronize` that must
    /// find out.
    pub(crate) fn count_wrong(&self, state: &mut State, rank: usize) -> Result<(), Violation> {
        if self.ranks_agree() {
            return Err(Violation::WrongResult);
        }
        state.ranks[rank].is_wrong = true;
        Ok(())
    }
}

pub(crate) fn thread(state: &State, id: Id) -> &Thread {
    &state.threads[id.rank][id.block][id.thread]
}

pub(crate) fn thread_mut(state: &mut State, id: Id) -> &mut Thread {
    &mut state.threads[id.rank][id.block][id.thread]
}
