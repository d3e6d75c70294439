//! rms.cuh and fp8.cuh: the threads that share a row exchange a value each, its sum or its largest
//! magnitude. (A thread stands for a warp.)
//!
//! In one block they store it and reach a barrier. In a cluster each thread sends it into the
//! memory of every block, and each block's own mbarrier counts what has arrived there. A value and
//! its count arrive together, at any time after the send and in any order.
//!
//! An arrival is no step of its own, which would multiply the states: a value stays in flight until
//! a phase ends with it or a thread reads its place. The end of a phase is explored with every
//! choice of as many values in flight to its mbarrier as it lacks. A read is explored without the
//! values in flight to its places and with them. Nothing else can tell when a value arrived.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Range;

use crate::machine::Machine;
use crate::memory::{BLOCKS, NAN};
use crate::program::{Break, Kind, Violation};
use crate::state::{At, Id, State, Step, Thread, thread, thread_mut};

/// The sums of even rows, the sums of odd rows, the largest magnitudes.
const EXCHANGES: usize = 3;
const LARGEST: usize = 2;
/// Two data threads of each block.
const SENDERS: usize = 2 * BLOCKS;
const PLACES: usize = EXCHANGES * SENDERS;
/// Of the sums and of the largest magnitudes. A cluster has one row, so each serves once.
const MBARRIERS: usize = 2;

/// A barrier in block memory. Its phase ends when one thread has arrived and as many values are
/// there as it expects.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Mbarrier {
    /// The parity of its phase.
    is_odd: bool,
    is_expecting: bool,
    arrived: u8,
}

impl Mbarrier {
    const INITIAL: Self = Mbarrier {
        is_odd: false,
        is_expecting: false,
        arrived: 0,
    };
}

/// The memory of a block, by exchange and sender.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockMemory {
    values: [u8; PLACES],
    /// What was sent here and has not arrived; 0 if nothing was.
    in_flight: [u8; PLACES],
    barriers: [Mbarrier; MBARRIERS],
}

impl BlockMemory {
    pub(crate) const INITIAL: Self = BlockMemory {
        values: [0; PLACES],
        in_flight: [0; PLACES],
        barriers: [Mbarrier::INITIAL; MBARRIERS],
    };

    fn coming(&self) -> impl Iterator<Item = usize> + Clone + use<> {
        let in_flight = self.in_flight;
        (0..PLACES).filter(move |&place| in_flight[place] != 0)
    }
}

impl Hash for BlockMemory {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        // In most models there are no rows.
        let is_used = *self != Self::INITIAL;
        hasher.write_u64(u64::from(is_used));
        if !is_used {
            return;
        }
        hasher.write(&self.values);
        hasher.write(&self.in_flight);
        let bits = |bits, barrier: &Mbarrier| {
            bits << 16
                | u64::from(barrier.arrived) << 2
                | u64::from(barrier.is_expecting) << 1
                | u64::from(barrier.is_odd)
        };
        hasher.write_u64(self.barriers.iter().fold(0, bits));
    }
}

/// The end of a phase of a block's mbarrier.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PhaseEnd {
    pub(crate) rank: usize,
    pub(crate) block: usize,
    barrier: usize,
    /// The places of the values with which it ends, as bits.
    with: u16,
}

impl PhaseEnd {
    fn places(self) -> impl Iterator<Item = usize> {
        (0..PLACES).filter(move |place| self.with >> place & 1 == 1)
    }
}

impl fmt::Display for PhaseEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a phase of mbarrier {} ends with", self.barrier)?;
        for place in self.places() {
            let (exchange, sender) = (place / SENDERS, place % SENDERS);
            write!(f, " value {sender} of exchange {exchange},")?;
        }
        Ok(())
    }
}

/// What a thread takes part in.
fn exchange_of(thread: &Thread) -> usize {
    match thread.at {
        At::LargestBarrier | At::Largest => LARGEST,
        _ => usize::from(thread.index & 1),
    }
}

/// The mbarrier that counts the values of an exchange.
fn barrier_of(exchange: usize) -> usize {
    usize::from(exchange == LARGEST)
}

/// Whether a thread waits for the values of the others.
fn is_waiting(thread: &Thread) -> bool {
    matches!(thread.at, At::RowBarrier | At::LargestBarrier)
}

/// Lets a thread read the values of the others.
fn pass(thread: &mut Thread) {
    thread.at = match thread.at {
        At::LargestBarrier => At::Largest,
        _ => At::RowSums,
    };
}

impl Machine {
    /// The blocks that share a thread's rows.
    fn cluster(&self, state: &State, id: Id) -> Range<usize> {
        let blocks = self.call(state, id.rank).cluster;
        let first = id.block - id.block % blocks;
        first..first + blocks
    }

    /// The place of a thread among those that share its rows.
    pub(crate) fn place_in_row(&self, cluster: usize, id: Id) -> usize {
        id.block % cluster * self.threads + id.thread
    }

    /// The first place of an exchange.
    fn first_place(&self, exchange: usize) -> usize {
        match exchange {
            1 if self.is_broken(Break::OneHalfForRowSums) => 0,
            _ => exchange * SENDERS,
        }
    }

    /// A thread gives its value to all that share its row, and waits for theirs at `barrier`.
    pub(crate) fn share(
        &self,
        state: &mut State,
        id: Id,
        barrier: At,
        value: u8,
    ) -> Result<(), Violation> {
        thread_mut(state, id).at = barrier;
        let exchange = exchange_of(thread(state, id));
        let cluster = self.cluster(state, id);
        let sender = self.place_in_row(cluster.len(), id);
        if cluster.len() > 1 {
            self.send_to_cluster(state, id, exchange * SENDERS + sender, value)?;
        } else {
            let place = self.first_place(exchange) + sender;
            state.blocks[id.rank][id.block].values[place] = value;
        }
        if self.is_broken(Break::NoRowBarrier) {
            pass(thread_mut(state, id));
            return Ok(());
        }
        if cluster.len() > 1 {
            self.look_at_phase(state, id);
            return Ok(());
        }
        // The barrier of a block counts the data threads alone.
        let block = &mut state.threads[id.rank][id.block][..self.threads];
        if block.iter().any(|thread| thread.at != barrier) {
            return Ok(());
        }
        block.iter_mut().for_each(pass);
        if self.threads > 1 {
            return Ok(());
        }
        match barrier {
            At::LargestBarrier => self.read_largest(state, id),
            _ => self.read_sums(state, id),
        }
    }

    /// Whether all data threads of a block have ended: its memory may be another block's.
    fn has_block_ended(&self, state: &State, rank: usize, block: usize) -> bool {
        let threads = &state.threads[rank][block][..self.threads];
        threads.iter().all(|thread| thread.at == At::Done)
    }

    /// For a data thread that ends.
    pub(crate) fn check_end_of_block(&self, state: &State, id: Id) -> Result<(), Violation> {
        let mut coming = state.blocks[id.rank][id.block].coming();
        if self.has_block_ended(state, id.rank, id.block) && coming.next().is_some() {
            return Err(Violation::StoreToEndedBlock);
        }
        Ok(())
    }

    /// Sends a value to every block of the cluster. The first thread says how many its own block
    /// expects.
    fn send_to_cluster(
        &self,
        state: &mut State,
        id: Id,
        place: usize,
        value: u8,
    ) -> Result<(), Violation> {
        for block in self.cluster(state, id) {
            if self.has_block_ended(state, id.rank, block) {
                return Err(Violation::StoreToEndedBlock);
            }
            let in_flight = &mut state.blocks[id.rank][block].in_flight[place];
            // Nothing orders the two.
            if *in_flight != 0 {
                return Err(Violation::SlotOverwritten);
            }
            *in_flight = value;
        }
        if id.thread == 0 {
            let barrier = barrier_of(place / SENDERS);
            state.blocks[id.rank][id.block].barriers[barrier].is_expecting = true;
            self.end_phase_if_complete(state, id.rank, id.block, barrier)?;
        }
        Ok(())
    }

    /// A waiting thread continues if the first phase has ended, as far as a parity can tell.
    fn look_at_phase(&self, state: &mut State, id: Id) {
        let me = thread(state, id);
        let barrier = barrier_of(exchange_of(me));
        if is_waiting(me) && state.blocks[id.rank][id.block].barriers[barrier].is_odd {
            pass(thread_mut(state, id));
        }
    }

    /// How many values a phase of a rank's call counts.
    fn values_of_row(&self, state: &State, rank: usize) -> usize {
        self.call(state, rank).cluster * self.threads
    }

    /// The ways in which a phase of a rank's mbarriers may end next.
    pub(crate) fn add_phase_ends(&self, state: &State, rank: usize, steps: &mut Vec<Step>) {
        let call = self.call(state, rank);
        if call.cluster == 1 {
            return;
        }
        let expected = self.values_of_row(state, rank);
        for (block, memory) in state.blocks[rank][..call.blocks].iter().enumerate() {
            for barrier in 0..MBARRIERS {
                let counts = |place: &usize| barrier_of(place / SENDERS) == barrier;
                let all = memory
                    .coming()
                    .filter(counts)
                    .fold(0, |all, p| all | 1 << p);
                let Mbarrier {
                    is_expecting,
                    arrived,
                    ..
                } = memory.barriers[barrier];
                if !is_expecting {
                    continue;
                }
                let lacking = expected.checked_sub(usize::from(arrived));
                let is_choice =
                    |with: &u16| with & !all == 0 && Some(with.count_ones() as usize) == lacking;
                for with in (0..=all).filter(is_choice) {
                    steps.push(Step::EndPhase(PhaseEnd {
                        rank,
                        block,
                        barrier,
                        with,
                    }));
                }
            }
        }
    }

    pub(crate) fn end_phase(&self, state: &mut State, end: PhaseEnd) -> Result<(), Violation> {
        for place in end.places() {
            self.receive(state, end.rank, end.block, place)?;
        }
        Ok(())
    }

    /// A value in flight arrives at a block, and its mbarrier counts it.
    fn receive(
        &self,
        state: &mut State,
        rank: usize,
        block: usize,
        place: usize,
    ) -> Result<(), Violation> {
        let exchange = place / SENDERS;
        let memory = &mut state.blocks[rank][block];
        let value = std::mem::take(&mut memory.in_flight[place]);
        memory.values[self.first_place(exchange) + place % SENDERS] = value;
        let barrier = barrier_of(exchange);
        memory.barriers[barrier].arrived += 1;
        self.end_phase_if_complete(state, rank, block, barrier)
    }

    fn end_phase_if_complete(
        &self,
        state: &mut State,
        rank: usize,
        block: usize,
        barrier: usize,
    ) -> Result<(), Violation> {
        let expected = self.values_of_row(state, rank);
        let own = &mut state.blocks[rank][block].barriers[barrier];
        if !own.is_expecting || usize::from(own.arrived) != expected {
            return Ok(());
        }
        *own = Mbarrier {
            is_odd: !own.is_odd,
            ..Mbarrier::INITIAL
        };
        for thread in 0..self.threads {
            let id = Id {
                rank,
                block,
                thread,
            };
            let me = crate::state::thread(state, id);
            let is_behind = matches!(me.at, At::RowSums | At::Largest);
            // If it has not looked since the phase before, the parity for which it waits is gone.
            if is_behind && barrier_of(exchange_of(me)) == barrier {
                return Err(Violation::Deadlock);
            }
            self.look_at_phase(state, id);
        }
        Ok(())
    }

    /// The values in flight that race with a thread's next step: a read of its places, or, with the
    /// start of the cluster left out, the initialisation of its mbarriers.
    fn racing_values(&self, state: &State, id: Id) -> impl Iterator<Item = usize> + use<> {
        let me = thread(state, id);
        let is_joining = me.at == At::Join;
        let is_reading = matches!(me.at, At::RowSums | At::Largest);
        let first = self.first_place(exchange_of(me));
        let firsts: [usize; EXCHANGES] = std::array::from_fn(|own| self.first_place(own));
        let coming = state.blocks[id.rank][id.block].coming();
        coming.filter(move |place| is_joining || is_reading && firsts[place / SENDERS] == first)
    }

    pub(crate) fn is_raced_by_values(&self, state: &State, id: Id) -> bool {
        self.racing_values(state, id).next().is_some()
    }

    pub(crate) fn receive_racing_values(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        let mut racing = self.racing_values(state, id);
        racing.try_for_each(|place| self.receive(state, id.rank, id.block, place))
    }

    /// Reads the values of a thread's row. Returns whether one of them is NaN; if none is, whether
    /// one is not `right`.
    pub(crate) fn read_values(&self, state: &State, id: Id, right: u8) -> (bool, bool) {
        let first = self.first_place(exchange_of(thread(state, id)));
        let count = self.values_of_row(state, id.rank);
        let values = &state.blocks[id.rank][id.block].values[first..first + count];
        let is_nan = values.contains(&NAN);
        (
            is_nan,
            !is_nan && values.iter().any(|&value| value != right),
        )
    }

    /// Where a thread of a call begins. The blocks of a cluster meet before any of them sends, so
    /// the start of all is one step, unless this rule is left out.
    pub(crate) fn start(&self, state: &State, rank: usize) -> At {
        let call = self.call(state, rank);
        let has_cluster = call.kind == Kind::NormOneShot && call.cluster > 1;
        match has_cluster && self.is_broken(Break::NoStartOfCluster) {
            true => At::Join,
            false => At::Enter,
        }
    }

    /// The first thread of a block initialises its mbarriers.
    pub(crate) fn join(&self, state: &mut State, id: Id) {
        state.blocks[id.rank][id.block].barriers = [Mbarrier::INITIAL; MBARRIERS];
        let block = &mut state.threads[id.rank][id.block][..self.threads + self.signals];
        block.iter_mut().for_each(|thread| thread.at = At::Enter);
    }
}
