//! The machine that is explored: ranks that run a sequence of calls, each a kernel with blocks of
//! threads, and the steps between which other threads may run.
//!
//! A step is everything that a thread does up to its next load that another thread may race with.
//! The loads of one phase are one step: whatever races with one of them is explored before it and
//! after it.

use crate::memory::{BLOCKS, EMPTY, InFlight, Order, RANKS, Store, is_slot, pull_epoch, zeroed};
use crate::program::{Break, Call, Kind, Violation, Waits};
use crate::row_exchange::BlockMemory;
use crate::state::{Host, Id, Rank, State, THREADS, Thread, Word, thread};

/// A case to explore.
#[derive(Clone)]
pub(crate) struct Machine {
    pub(crate) world: usize,
    /// Data threads of a block: they handle units.
    pub(crate) threads: usize,
    /// Signal threads of a block, after the data threads. As in the kernels there is one for each
    /// peer, but none for this rank itself: the first signal thread stores this rank's own header,
    /// and a look of the missing thread that finds poison is modelled as the end of another
    /// thread's wait.
    pub(crate) signals: usize,
    /// Whether the threads of a block enter a call one by one. Otherwise they read the block's
    /// state in one step.
    pub(crate) enters_apart: bool,
    /// Words of a unit that a push call other than a two-shot sends.
    pub(crate) words: usize,
    /// The calls of each rank.
    pub(crate) programs: [Vec<Call>; RANKS],
    pub(crate) waits: Waits,
    /// The rank that may stop for good.
    pub(crate) stops: Option<usize>,
    pub(crate) order: Order,
    /// The `PEERSUM_STRICT_ORDER` build.
    pub(crate) is_strict: bool,
    /// Every unit of an ordinary buffer passes through scratch memory.
    pub(crate) has_narrow_units: bool,
    /// A signal thread takes a header and norm words as soon as they have been sent: it gives up
    /// its wait before that or never.
    pub(crate) takes_headers_at_once: bool,
    pub(crate) broken: Option<Break>,
}

impl Machine {
    /// `world` ranks that all make `calls`: one data thread in a block, one word in a unit, no
    /// failure.
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
        let said = |call: &Call| (call.signature(), call.detail, call.norm);
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
            blocks: [[BlockMemory::INITIAL; BLOCKS]; RANKS],
        };
        for rank in 0..self.world {
            self.prepare(&mut state, rank);
        }
        // These steps cannot fail: no peer has stored anything.
        let _ = self.settle(&mut state);
        state
    }

    pub(crate) fn call(&self, state: &State, rank: usize) -> &Call {
        &self.programs[rank][usize::from(state.ranks[rank].call)]
    }

    /// The calls of a rank, without the kernels that belong to the call before.
    pub(crate) fn count_calls(&self, rank: usize) -> usize {
        let calls = self.programs[rank].iter();
        calls.filter(|call| call.kind != Kind::NormRows).count()
    }

    pub(crate) fn is_signal_thread(&self, id: Id) -> bool {
        id.thread >= self.threads
    }

    /// The peers with which this thread exchanges headers and flags, counted from this rank
    /// upwards.
    pub(crate) fn peers(&self, id: Id) -> impl Iterator<Item = usize> + use<> {
        let (world, threads, signals) = (self.world, self.threads, self.signals);
        (0..world).filter(move |&peer| {
            let step = (peer + world - id.rank) % world;
            step != 0 && threads + (step - 1) % signals == id.thread
        })
    }

    /// The ranks that `rank` sends its units to and receives units from. A pair keeps its own unit
    /// in registers.
    pub(crate) fn slot_peers(&self, rank: usize) -> impl Iterator<Item = usize> + Clone + use<> {
        let keeps_own = self.world == 2;
        (0..self.world).filter(move |&peer| !keeps_own || peer != rank)
    }

    /// The place that a thread handles next, if there is one.
    pub(crate) fn place(&self, state: &State, id: Id) -> Option<usize> {
        let call = self.call(state, id.rank);
        if self.handles_rows(state, id) {
            return self.unit_of_row(call, id, usize::from(thread(state, id).index));
        }
        let place = id.block * self.threads
            + id.thread
            + usize::from(thread(state, id).index) * call.blocks * self.threads;
        (!self.is_signal_thread(id) && place < call.places).then_some(place)
    }

    /// All places that a thread handles.
    pub(crate) fn places(&self, state: &State, id: Id) -> impl Iterator<Item = usize> + use<> {
        let call = self.call(state, id.rank);
        let end = if self.is_signal_thread(id) {
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

    /// As `issue`, at a given stage of the call instead of the thread's.
    pub(crate) fn issue_at(
        &self,
        state: &mut State,
        id: Id,
        stage: u8,
        (target, address): Word,
        value: u8,
        release: bool,
    ) -> Result<(), Violation> {
        // Data for a slot whose last data was not taken, or which another rank's store in flight
        // may still re-arm.
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
