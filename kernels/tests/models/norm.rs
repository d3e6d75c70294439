//! norm.cu: the norm words, which are exchanged within a call, and the rows of a block or cluster.

use crate::machine::Machine;
use crate::memory::{EMPTY, NAN, SIGNATURE_BITS, WRONG, norm_word, own_norm_word};
use crate::program::{Break, Call, Kind, Violation};
use crate::state::{At, Id, State, Word, thread, thread_mut};

/// What a thread adds to a row of which it has lost nothing.
fn value_of_row(index: u8) -> u8 {
    index + 1
}

impl Machine {
    fn norm_ring(&self, sequence: u8) -> u8 {
        if self.is_broken(Break::OnePlaceForNormWords) {
            return 0;
        }
        self.ring(sequence)
    }

    /// For signal threads: sends the norm words and waits for those of the peers.
    pub(crate) fn exchange_norm_words(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        if id.block == 0 && !self.is_broken(Break::NormWordsNotCompared) {
            let sequence = self.sequence(state, id);
            let word = self.call(state, id.rank).norm;
            let ring = self.norm_ring(sequence);
            if id.thread == self.threads {
                state.memory[id.rank][own_norm_word(ring)] = sequence << SIGNATURE_BITS | word;
            }
            for peer in self.peers(id) {
                self.send_to_empty(state, id, (peer, norm_word(ring, id.rank)), word)?;
            }
        }
        self.await_norm_words(state, id, 0)
    }

    /// Makes a signal thread wait for the words of the first of its peers from `from` on, or
    /// continue if there is none.
    fn await_norm_words(&self, state: &mut State, id: Id, from: usize) -> Result<(), Violation> {
        let is_exchanged = id.block == 0 && !self.is_broken(Break::NormWordsNotCompared);
        let next = self.peers(id).find(|&peer| peer >= from && is_exchanged);
        let me = thread_mut(state, id);
        me.index = next.unwrap_or(0) as u8;
        if next.is_some() {
            me.at = At::NormWords;
            return Ok(());
        }
        if self.call(state, id.rank).kind == Kind::NormRows {
            return self.finish(state, id);
        }
        self.await_headers(state, id, 0)
    }

    fn awaited_norm_word(&self, state: &State, id: Id) -> Word {
        let ring = self.norm_ring(self.sequence(state, id));
        (
            id.rank,
            norm_word(ring, usize::from(thread(state, id).index)),
        )
    }

    /// Whether the awaited words have arrived or are in flight, and equal this rank's own.
    pub(crate) fn has_norm_word(&self, state: &State, id: Id) -> bool {
        let own = self.call(state, id.rank).norm;
        let (rank, word) = self.awaited_norm_word(state, id);
        let mut coming = state.in_flight.to(rank, word);
        state.memory[rank][word] == own || coming.any(|store| store.value == own)
    }

    /// Takes the awaited words and removes them.
    pub(crate) fn take_norm_word(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        let word = self.awaited_norm_word(state, id);
        Self::receive_details(state, &[word]);
        if !self.is_broken(Break::NormWordsNotRemoved) {
            self.issue(state, id, word, EMPTY, false)?;
        }
        self.await_norm_words(state, id, usize::from(thread(state, id).index) + 1)
    }

    /// Whether the words of `peer` for the call with this sequence differ from what this rank has
    /// sent. A look compares them behind an equal header.
    pub(crate) fn norm_words_differ(
        &self,
        state: &State,
        rank: usize,
        peer: usize,
        sequence: u8,
    ) -> bool {
        let ring = self.norm_ring(sequence);
        let own = state.memory[rank][own_norm_word(ring)];
        if own >> SIGNATURE_BITS != sequence || self.is_broken(Break::LookSkipsNormWords) {
            return false;
        }
        let own = own & ((1 << SIGNATURE_BITS) - 1);
        let word = norm_word(ring, peer);
        let coming = state.in_flight.to(rank, word).map(|store| store.value);
        let mut words = coming.chain([state.memory[rank][word]]);
        words.any(|word| word != EMPTY && word != own)
    }

    /// A data thread's first step of the kernel that normalises rows which are reduced already. It
    /// waits for no peer, and poison does not concern it: the rows are right or NaN.
    pub(crate) fn enter_rows(
        &self,
        state: &mut State,
        id: Id,
        is_poisoned: bool,
    ) -> Result<(), Violation> {
        if !self.is_signal_thread(id) || is_poisoned {
            return self.finish(state, id);
        }
        self.exchange_norm_words(state, id)
    }

    /// Whether a thread handles rows: a data thread of the fused call.
    pub(crate) fn handles_rows(&self, state: &State, id: Id) -> bool {
        self.call(state, id.rank).kind == Kind::NormOneShot && !self.is_signal_thread(id)
    }

    /// The unit of a row of a call's cluster that a thread handles, if it has one.
    pub(crate) fn unit_of_row(&self, call: &Call, id: Id, index: usize) -> Option<usize> {
        let in_row = self.place_in_row(call.cluster, id);
        let place = Self::row(call, id, index) * call.row_units + in_row;
        (in_row < call.row_units && place < call.places).then_some(place)
    }

    /// The row with this index among those of a block's cluster.
    fn row(call: &Call, id: Id, index: usize) -> usize {
        id.block / call.cluster + index * (call.blocks / call.cluster)
    }

    /// Makes a data thread handle its block's row with this index, or end after the last. A thread
    /// without a unit, and a lost one, only adds its sum.
    pub(crate) fn begin_row(&self, state: &mut State, id: Id, index: u8) -> Result<(), Violation> {
        thread_mut(state, id).index = index;
        let call = self.call(state, id.rank);
        if Self::row(call, id, usize::from(index)) >= call.places / call.row_units {
            return self.end(state, id);
        }
        if thread(state, id).lost {
            if self.is_broken(Break::LostThreadSkipsRowBarrier) {
                return self.end(state, id);
            }
            let adds_nothing = self.is_broken(Break::LostThreadAddsNothing);
            return self.add_sum(state, id, if adds_nothing { WRONG } else { NAN });
        }
        if self.place(state, id).is_some() {
            thread_mut(state, id).at = At::Collect;
            return Ok(());
        }
        self.add_sum(state, id, value_of_row(index))?;
        if self.is_broken(Break::IdleThreadDoesNotWait) {
            return self.begin_row(state, id, index + 1);
        }
        Ok(())
    }

    /// A thread whose unit has arrived.
    pub(crate) fn add_own_sum(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        self.add_sum(state, id, value_of_row(thread(state, id).index))
    }

    fn add_sum(&self, state: &mut State, id: Id, sum: u8) -> Result<(), Violation> {
        if self.is_broken(Break::LargestWithoutSum) {
            return self.share(state, id, At::LargestBarrier, sum);
        }
        self.share(state, id, At::RowBarrier, sum)
    }

    /// Takes the values of all threads that share a row. Returns this thread's value of the next
    /// exchange: NaN if one of them is.
    fn take_values(&self, state: &mut State, id: Id) -> u8 {
        let right = value_of_row(thread(state, id).index);
        let (is_nan, is_wrong) = self.read_values(state, id, right);
        let me = thread_mut(state, id);
        me.is_nan |= is_nan;
        me.is_wrong |= is_wrong;
        match (is_nan, is_wrong) {
            (true, _) => NAN,
            (_, true) => WRONG,
            _ => right,
        }
    }

    /// A thread reads the sums of its row and stores its unit. With FP8 it then shares the largest
    /// magnitude, which is NaN if the row is.
    pub(crate) fn read_sums(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        let largest = self.take_values(state, id);
        if self.call(state, id.rank).has_row_scales {
            return self.share(state, id, At::LargestBarrier, largest);
        }
        self.end_row(state, id)
    }

    pub(crate) fn read_largest(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        self.take_values(state, id);
        self.end_row(state, id)
    }

    /// A thread sends the row after the next.
    fn end_row(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        let index = thread(state, id).index;
        if !thread(state, id).lost {
            let after_next = usize::from(index) + 2;
            self.store_inputs(state, id, after_next..after_next + 1)?;
        }
        self.begin_row(state, id, index + 1)
    }
}
