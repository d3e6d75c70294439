//! norm.cu: the norm words, which are exchanged within a call, and the rows of a block, whose sums
//! pass through block memory.

use crate::machine::Machine;
use crate::memory::{EMPTY, NAN, SIGNATURE_BITS, WRONG, norm_word, own_norm_word};
use crate::program::{Break, Call, Kind, Violation};
use crate::state::{At, Id, SUMS, State, Word, thread, thread_mut};

/// The sum of a row that a thread finds whole.
fn sum_of_row(index: u8) -> u8 {
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

    /// The unit of a row of a call's block that a thread handles, if it has one.
    pub(crate) fn unit_of_row(call: &Call, id: Id, index: usize) -> Option<usize> {
        let row = id.block + index * call.blocks;
        let place = row * call.row_units + id.thread;
        (id.thread < call.row_units && place < call.places).then_some(place)
    }

    /// Makes a data thread handle its block's row with this index, or end after the last. A thread
    /// without a unit, and a lost one, only adds its sum.
    pub(crate) fn begin_row(&self, state: &mut State, id: Id, index: u8) -> Result<(), Violation> {
        thread_mut(state, id).index = index;
        let call = self.call(state, id.rank);
        if id.block + usize::from(index) * call.blocks >= call.places / call.row_units {
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
        self.add_sum(state, id, sum_of_row(index))
    }

    /// The half of a block's memory for the sums of a thread's row.
    fn sums(&self, state: &State, id: Id) -> std::ops::Range<usize> {
        let is_odd = thread(state, id).index & 1 == 1;
        let half = usize::from(is_odd && !self.is_broken(Break::OneHalfForRowSums));
        let first = half * SUMS / 2;
        first..first + self.threads
    }

    /// A thread whose unit has arrived.
    pub(crate) fn add_own_sum(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        self.add_sum(state, id, sum_of_row(thread(state, id).index))
    }

    /// A thread stores its sum into block memory and reaches the row's barrier, which counts the
    /// data threads alone.
    fn add_sum(&self, state: &mut State, id: Id, sum: u8) -> Result<(), Violation> {
        let place = self.sums(state, id).start + id.thread;
        state.sums[id.rank][id.block][place] = sum;
        thread_mut(state, id).at = At::RowBarrier;
        if self.is_broken(Break::NoRowBarrier) {
            thread_mut(state, id).at = At::RowSums;
            return Ok(());
        }
        let block = &mut state.threads[id.rank][id.block][..self.threads];
        if block.iter().any(|thread| thread.at != At::RowBarrier) {
            return Ok(());
        }
        block.iter_mut().for_each(|thread| thread.at = At::RowSums);
        if self.threads == 1 {
            return self.read_sums(state, id);
        }
        Ok(())
    }

    /// A thread reads the sums of its row, stores its unit, and sends the row after the next.
    pub(crate) fn read_sums(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        let sums = &state.sums[id.rank][id.block][self.sums(state, id)];
        let index = thread(state, id).index;
        let is_nan = sums.contains(&NAN);
        let is_wrong = !is_nan && sums.iter().any(|&sum| sum != sum_of_row(index));
        let me = thread_mut(state, id);
        me.is_nan |= is_nan;
        me.is_wrong |= is_wrong;
        if !me.lost {
            let after_next = usize::from(index) + 2;
            self.store_inputs(state, id, after_next..after_next + 1)?;
        }
        self.begin_row(state, id, index + 1)
    }
}
