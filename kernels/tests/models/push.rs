//! push.cu: units travel through slots; the data is the flag.

use std::ops::Range;

use crate::machine::Machine;
use crate::memory::{EMPTY, PLACES, SCRATCH, data, input_slot, reduced_slot, staging};
use crate::program::{Break, Kind, Violation};
use crate::state::{At, Id, State, Word, thread, thread_mut};

/// A word of a slot.
pub(crate) struct SlotWord {
    pub(crate) slot: usize,
    /// What the sender stores there in this call.
    pub(crate) value: u8,
    /// Whether the slot is that of the rest of an escaped unit.
    pub(crate) is_overflow: bool,
}

impl Machine {
    pub(crate) fn push_half(&self, state: &State, id: Id) -> u8 {
        if self.is_broken(Break::OnePushHalf) {
            return 0;
        }
        thread(state, id).push_epoch & 1
    }

    pub(crate) fn begin_push(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        if self.is_strict {
            self.await_acquire(state, id, 0)
        } else {
            self.send(state, id)
        }
    }

    /// `PEERSUM_STRICT_ORDER`: goes to the next peer whose header the block acquires before its
    /// first store to a slot.
    fn await_acquire(&self, state: &mut State, id: Id, from: usize) -> Result<(), Violation> {
        let next = self.peers(id).find(|&peer| peer >= from);
        let me = thread_mut(state, id);
        me.index = next.unwrap_or(0) as u8;
        if next.is_some() {
            me.at = At::Acquire;
            return Ok(());
        }
        self.arrive(state, id, At::AcquiredBarrier)
    }

    pub(crate) fn acquire_header(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        self.receive_header(state, id);
        self.await_acquire(state, id, usize::from(thread(state, id).index) + 1)
    }

    /// All stores to the peers: data threads send data and signal threads send headers, and neither
    /// waits for the other.
    pub(crate) fn send(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        if thread(state, id).lost {
            return self.end_or_lose_rows(state, id);
        }
        if self.is_signal_thread(id) {
            self.send_headers(state, id)?;
            if self.call(state, id.rank).kind == Kind::NormOneShot {
                return self.exchange_norm_words(state, id);
            }
            return self.await_headers(state, id, 0);
        }
        // A header that is a release covers the kernels before, not the data beside it.
        thread_mut(state, id).stage = 1;
        // Two places are in flight before the first is awaited.
        self.store_inputs(state, id, 0..2)?;
        self.collect_at(state, id, 0)
    }

    /// The words of a unit. A unit of a two-shot call is modelled as one word.
    pub(crate) fn words_of(&self, state: &State, id: Id, place: usize) -> Range<usize> {
        if self.call(state, id.rank).kind.is_two_shot() {
            return place..place + 1;
        }
        place * self.words..(place + 1) * self.words
    }

    /// Sends those of a thread's places with these indices that exist.
    pub(crate) fn store_inputs(
        &self,
        state: &mut State,
        id: Id,
        indices: Range<usize>,
    ) -> Result<(), Violation> {
        let places: Vec<usize> = match self.handles_rows(state, id) {
            // A place for each row.
            true => indices
                .take_while(|&index| index < PLACES)
                .filter_map(|index| self.unit_of_row(self.call(state, id.rank), id, index))
                .collect(),
            false => {
                let places = self.places(state, id).skip(indices.start);
                places.take(indices.len()).collect()
            }
        };
        for place in places {
            let words = match self.call(state, id.rank).kind.is_move() {
                true => self.moved_words(state, id, place),
                false => self.input_words(state, id, place),
            };
            for (word, value) in words {
                self.issue(state, id, word, value, false)?;
            }
            for unit in self.scratch_units(state, id, place) {
                state.memory[id.rank][unit] = SCRATCH;
            }
        }
        Ok(())
    }

    /// What a thread stores at its peers for a place that is summed.
    fn input_words(&self, state: &State, id: Id, place: usize) -> Vec<(Word, u8)> {
        let half = self.push_half(state, id);
        let value = data(state.ranks[id.rank].call, false);
        let words = self.words_of(state, id, place);
        let slots = words.map(|word| input_slot(half, id.rank, word));
        self.slot_peers(id.rank)
            .flat_map(|peer| slots.clone().map(move |slot| ((peer, slot), value)))
            .collect()
    }

    /// The addresses of the units of `place` in the staging half that serves as scratch; empty if
    /// none pass through it.
    fn scratch_units(&self, state: &State, id: Id, place: usize) -> Vec<usize> {
        if !self.has_narrow_units {
            return Vec::new();
        }
        let busy = u8::from(self.is_broken(Break::ScratchInBusyHalf));
        let half = (thread(state, id).pull_epoch + busy) & 1;
        self.units(state, id, place)
            .map(|unit| staging(half, unit))
            .collect()
    }

    /// The words, of every source, of the unit that a thread waits for.
    fn inputs(&self, state: &State, id: Id) -> Vec<SlotWord> {
        let half = self.push_half(state, id);
        let Some(place) = self.place(state, id) else {
            return Vec::new();
        };
        if self.call(state, id.rank).kind.is_move() {
            return self.moved_inputs(state, id, place);
        }
        let value = data(state.ranks[id.rank].call, false);
        let words = self.words_of(state, id, place);
        self.slot_peers(id.rank)
            .flat_map(|source| {
                words.clone().map(move |word| SlotWord {
                    slot: input_slot(half, source, word),
                    value,
                    is_overflow: false,
                })
            })
            .collect()
    }

    fn reduced(&self, state: &State, id: Id) -> Vec<SlotWord> {
        let half = self.push_half(state, id);
        let value = data(state.ranks[id.rank].call, true);
        let place = self.place(state, id).into_iter();
        place
            .flat_map(|place| {
                self.slot_peers(id.rank).map(move |owner| SlotWord {
                    slot: reduced_slot(half, owner, place),
                    value,
                    is_overflow: false,
                })
            })
            .collect()
    }

    /// Whether this word, the `index`-th of the awaited slots, is not checked.
    fn is_unchecked(&self, index: usize, word: &SlotWord) -> bool {
        self.is_broken(Break::LaneUnchecked) && index % self.words == self.words - 1
            || self.is_broken(Break::OverflowNotAwaited) && word.is_overflow
    }

    pub(crate) fn has_inputs(&self, state: &State, id: Id) -> bool {
        let words = self.inputs(state, id);
        let mut words = words.iter().enumerate();
        words.all(|(index, word)| {
            self.is_unchecked(index, word) || self.has_come(state, id, word.slot)
        })
    }

    pub(crate) fn has_reduced(&self, state: &State, id: Id) -> bool {
        self.reduced(state, id)
            .iter()
            .all(|word| self.has_come(state, id, word.slot))
    }

    /// Whether data is in a slot or in flight to it.
    fn has_come(&self, state: &State, id: Id, slot: usize) -> bool {
        self.coming(state, id, slot) != EMPTY
    }

    /// The data in a slot or, if it is empty, in flight to it.
    pub(crate) fn coming(&self, state: &State, id: Id, slot: usize) -> u8 {
        let stored = self.load(state, id, id.rank, slot);
        let coming = state.in_flight.to(id.rank, slot).map(|store| store.value);
        let mut values = [stored].into_iter().chain(coming);
        values.find(|&value| value != EMPTY).unwrap_or(EMPTY)
    }

    /// Takes the data that arrived and re-arms the slots.
    fn take_slots(&self, state: &mut State, id: Id, words: &[SlotWord]) -> Result<(), Violation> {
        for (index, word) in words.iter().enumerate() {
            let slot = (id.rank, word.slot);
            if !self.is_unchecked(index, word) {
                Self::perform_words(state, &[slot]);
            }
            if self.load(state, id, id.rank, word.slot) != word.value {
                thread_mut(state, id).is_wrong = true;
            }
            let is_left = self.is_broken(Break::NoRearm)
                || self.is_broken(Break::OverflowNotRearmed) && word.is_overflow;
            if !is_left {
                self.issue(state, id, slot, EMPTY, false)?;
            }
        }
        Ok(())
    }

    /// Makes a thread wait for the inputs of its place with this index. After its last place a
    /// one-shot call ends.
    fn collect_at(&self, state: &mut State, id: Id, index: u8) -> Result<(), Violation> {
        if self.handles_rows(state, id) {
            return self.begin_row(state, id, index);
        }
        thread_mut(state, id).index = index;
        if self.place(state, id).is_none() {
            return self.end(state, id);
        }
        if self.inputs(state, id).is_empty() {
            return self.collect(state, id);
        }
        thread_mut(state, id).at = At::Collect;
        Ok(())
    }

    /// A lost thread ends its call. One that handles rows first adds NaN to those that are left.
    pub(crate) fn end_or_lose_rows(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        if self.handles_rows(state, id) {
            return self.begin_row(state, id, thread(state, id).index);
        }
        self.end(state, id)
    }

    /// A thread's end of a push call. No thread waits for a data thread; a signal thread advances
    /// the block's epoch.
    pub(crate) fn end(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        if !self.is_signal_thread(id) || self.is_broken(Break::EpochAdvancedBeforeBarrier) {
            return self.finish(state, id);
        }
        thread_mut(state, id).at = At::ReadByAll;
        Ok(())
    }

    /// Whether all threads of the block have read its epochs.
    pub(crate) fn is_read_by_all(&self, state: &State, id: Id) -> bool {
        let block = &state.threads[id.rank][id.block][..self.threads + self.signals];
        block.iter().all(|thread| thread.at != At::Enter)
    }

    pub(crate) fn collect(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        let words = self.inputs(state, id);
        self.take_slots(state, id, &words)?;
        if let Some(place) = self.place(state, id) {
            // This rank's own input, if it passes through scratch memory.
            for unit in self.scratch_units(state, id, place) {
                if state.memory[id.rank][unit] != SCRATCH {
                    thread_mut(state, id).is_wrong = true;
                }
            }
            if self.call(state, id.rank).kind.is_two_shot() {
                let slot = reduced_slot(self.push_half(state, id), id.rank, place);
                let sum = self.sum(state, id);
                for peer in self.slot_peers(id.rank) {
                    self.issue(state, id, (peer, slot), sum, false)?;
                }
            }
        }
        let index = thread(state, id).index;
        if self.handles_rows(state, id) {
            return self.add_own_sum(state, id);
        }
        if !self.call(state, id.rank).kind.is_two_shot() {
            let after_next = usize::from(index) + 2;
            self.store_inputs(state, id, after_next..after_next + 1)?;
            return self.collect_at(state, id, index + 1);
        }
        if index == 0 {
            return self.next_of_two_shot(state, id, 0);
        }
        thread_mut(state, id).index = index - 1;
        thread_mut(state, id).at = At::CollectReduced;
        Ok(())
    }

    pub(crate) fn collect_reduced(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        let words = self.reduced(state, id);
        self.take_slots(state, id, &words)?;
        let index = thread(state, id).index;
        self.next_of_two_shot(state, id, index + 1)
    }

    /// The steps of a thread's places overlap. The thread has reduced the place with this index and
    /// gathered those before it. It now sends the place after the next and then reduces the next.
    /// After the last place it gathers the rest.
    fn next_of_two_shot(&self, state: &mut State, id: Id, index: u8) -> Result<(), Violation> {
        let after_next = usize::from(index) + 2;
        self.store_inputs(state, id, after_next..after_next + 1)?;
        thread_mut(state, id).index = index + 1;
        if self.place(state, id).is_some() {
            thread_mut(state, id).at = At::Collect;
            return Ok(());
        }
        thread_mut(state, id).index = index;
        if self.place(state, id).is_some() {
            thread_mut(state, id).at = At::CollectReduced;
            return Ok(());
        }
        self.end(state, id)
    }
}
