//! The header and the detail of a call: sent in the call, checked in the next call and by
//! `synchronize`.

use crate::machine::Machine;
use crate::memory::{EMPTY, SIGNATURE_BITS, Store, detail, header, own_header};
use crate::program::{Break, Kind, Violation};
use crate::state::{At, Id, State, Word, thread, thread_mut};

impl Machine {
    fn ring_size(&self) -> u8 {
        if self.is_broken(Break::RingOfTwo) {
            2
        } else {
            4
        }
    }

    pub(crate) fn ring(&self, sequence: u8) -> u8 {
        sequence % self.ring_size()
    }

    /// The position of a thread's call in the sequence of all calls.
    pub(crate) fn sequence(&self, state: &State, id: Id) -> u8 {
        let me = thread(state, id);
        let is_counted = self.call(state, id.rank).kind == Kind::NormRows;
        me.push_epoch + me.pull_epoch - u8::from(is_counted)
    }

    /// The header of the call that a thread is in.
    pub(crate) fn header(&self, state: &State, id: Id) -> u8 {
        let number = usize::from(state.ranks[id.rank].call);
        let mut calls = self.programs[id.rank][..=number].iter().rev();
        let call = calls.find(|call| call.kind != Kind::NormRows);
        let signature = call.map_or(0, |call| call.signature());
        self.sequence(state, id) << SIGNATURE_BITS | signature
    }

    /// Whether this store overwrites a header that a peer may still need.
    pub(crate) fn overwrites_header(&self, store: &Store) -> bool {
        store.value >> SIGNATURE_BITS >= self.ring_size()
    }

    pub(crate) fn send_headers(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        if id.block != 0 {
            return Ok(());
        }
        let ring = self.ring(self.sequence(state, id));
        let word = self.header(state, id);
        if id.thread == self.threads {
            state.memory[id.rank][own_header(ring)] = word;
        }
        let own_detail = self.call(state, id.rank).detail;
        for peer in self.peers(id) {
            if own_detail != 0 {
                self.send_to_empty(state, id, (peer, detail(ring, id.rank)), own_detail)?;
            }
            self.issue(
                state,
                id,
                (peer, header(ring, id.rank)),
                word,
                self.is_strict,
            )?;
        }
        Ok(())
    }

    /// A detail or a norm word must be stored into an empty place: the one before it was removed,
    /// and the removal is performed.
    pub(crate) fn send_to_empty(
        &self,
        state: &mut State,
        id: Id,
        (peer, word): Word,
        value: u8,
    ) -> Result<(), Violation> {
        let is_empty = state.memory[peer][word] == EMPTY;
        let is_raced = state.in_flight.to(peer, word).next().is_some();
        let is_checked = self.broken.is_none() || self.is_broken(Break::OnePlaceForNormWords);
        if self.ranks_agree() && (is_raced || !is_empty) && is_checked {
            return Err(Violation::SlotOverwritten);
        }
        self.issue(state, id, (peer, word), value, false)
    }

    /// This rank's detail of the previous call; 0 if that call had none.
    pub(crate) fn previous_detail(&self, state: &State, id: Id) -> u8 {
        let number = usize::from(state.ranks[id.rank].call);
        let mut before = self.programs[id.rank][..number].iter().rev();
        let call = before.find(|call| call.kind != Kind::NormRows);
        call.map_or(0, |call| call.detail)
    }

    fn awaited_detail(&self, state: &State, id: Id) -> Word {
        let ring = self.ring(self.sequence(state, id).wrapping_sub(1));
        (id.rank, detail(ring, usize::from(thread(state, id).index)))
    }

    /// Whether the awaited detail has arrived or is in flight, and equals this rank's own.
    pub(crate) fn has_detail(&self, state: &State, id: Id) -> bool {
        let own = self.previous_detail(state, id);
        let (rank, word) = self.awaited_detail(state, id);
        let mut coming = state.in_flight.to(rank, word);
        state.memory[rank][word] == own || coming.any(|store| store.value == own)
    }

    /// Performs the stores of details into empty places. A store that overwrites another detail is
    /// a step of its own.
    pub(crate) fn receive_details(state: &mut State, words: &[Word]) {
        for &(rank, word) in words {
            if state.memory[rank][word] == EMPTY {
                Self::perform_words(state, &[(rank, word)]);
            }
        }
    }

    /// Takes the awaited detail and removes it.
    pub(crate) fn take_detail(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        let word = self.awaited_detail(state, id);
        Self::receive_details(state, &[word]);
        if !self.is_broken(Break::DetailsNotRemoved) {
            self.issue(state, id, word, EMPTY, false)?;
        }
        self.await_headers(state, id, usize::from(thread(state, id).index) + 1)
    }

    /// This rank's header of the previous call, which a waiting thread compares.
    pub(crate) fn previous_own(&self, state: &State, id: Id) -> u8 {
        let ring = self.ring(self.sequence(state, id).wrapping_sub(1));
        state.memory[id.rank][own_header(ring)]
    }

    /// The word that receives the awaited peer's header of the previous call.
    fn awaited_word(&self, state: &State, id: Id) -> usize {
        let ring = self.ring(self.sequence(state, id).wrapping_sub(1));
        header(ring, usize::from(thread(state, id).index))
    }

    /// Whether the awaited header has arrived or is in flight, and equals this rank's own.
    pub(crate) fn has_header(&self, state: &State, id: Id) -> bool {
        let own = self.previous_own(state, id);
        let word = self.awaited_word(state, id);
        state.memory[id.rank][word] == own
            || state
                .in_flight
                .to(id.rank, word)
                .any(|store| store.value == own)
    }

    /// Whether no later header will be stored in the place of the awaited one.
    pub(crate) fn keeps_header(&self, state: &State, id: Id) -> bool {
        let awaited = usize::from(self.sequence(state, id)) - 1;
        awaited + usize::from(self.ring_size()) > self.count_calls(id.rank)
    }

    /// Takes the awaited header.
    pub(crate) fn receive_header(&self, state: &mut State, id: Id) {
        let own = self.previous_own(state, id);
        let word = self.awaited_word(state, id);
        if state.memory[id.rank][word] == own {
            return;
        }
        let awaited = state
            .in_flight
            .to(id.rank, word)
            .find(|store| store.value == own);
        if let Some(store) = awaited {
            state.in_flight.perform(&store, &mut state.memory);
        }
    }

    pub(crate) fn take_header(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        self.receive_header(state, id);
        let compares = !self.is_broken(Break::DetailsNotCompared);
        if self.previous_detail(state, id) != 0 && compares {
            thread_mut(state, id).at = At::Details;
            return Ok(());
        }
        self.await_headers(state, id, usize::from(thread(state, id).index) + 1)
    }

    /// Makes the thread wait for the first of its peers from `from` on, or continue if there is
    /// none.
    pub(crate) fn await_headers(
        &self,
        state: &mut State,
        id: Id,
        from: usize,
    ) -> Result<(), Violation> {
        let next = self.peers(id).find(|&peer| peer >= from && id.block == 0);
        let me = thread_mut(state, id);
        me.index = next.unwrap_or(0) as u8;
        if next.is_some() {
            me.at = At::Headers;
            Ok(())
        } else if self.call(state, id.rank).kind.is_push() {
            self.end(state, id)
        } else {
            self.arrive(state, id, At::OpenedBarrier)
        }
    }
}
