//! The header of a call: sent in it, checked in the next one, and by `synchronize`.

use crate::machine::{At, Break, Id, Machine, State, Violation, thread, thread_mut};
use crate::memory::{Store, header, own_header};

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

    /// The place of a thread's call among all calls.
    pub(crate) fn sequence(state: &State, id: Id) -> u8 {
        let me = thread(state, id);
        me.push_epoch + me.pull_epoch
    }

    /// The header of the call that a thread is in.
    pub(crate) fn header(&self, state: &State, id: Id) -> u8 {
        Self::sequence(state, id) << 4 | self.call(state, id.rank).signature()
    }

    /// Whether a header is performed over one that may still be wanted.
    pub(crate) fn overwrites_header(&self, store: &Store) -> bool {
        store.value >> 4 >= self.ring_size()
    }

    pub(crate) fn send_headers(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        if id.block != 0 {
            return Ok(());
        }
        let ring = self.ring(Self::sequence(state, id));
        let word = self.header(state, id);
        if id.thread == self.threads {
            state.memory[id.rank][own_header(ring)] = word;
        }
        for peer in self.peers(id) {
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

    /// This rank's header of the call before, as a waiting thread compares it.
    pub(crate) fn previous_own(&self, state: &State, id: Id) -> u8 {
        let ring = self.ring(Self::sequence(state, id).wrapping_sub(1));
        state.memory[id.rank][own_header(ring)]
    }

    /// The word in which the awaited peer's header of the call before comes.
    fn awaited_word(&self, state: &State, id: Id) -> usize {
        let ring = self.ring(Self::sequence(state, id).wrapping_sub(1));
        header(ring, usize::from(thread(state, id).index))
    }

    /// Whether the awaited header is there or on its way, and equal.
    pub(crate) fn has_header(&self, state: &State, id: Id) -> bool {
        let own = self.previous_own(state, id);
        let word = self.awaited_word(state, id);
        state.memory[id.rank][word] == own
            || state
                .in_flight
                .to(id.rank, word)
                .any(|store| store.value == own)
    }

    /// Whether no later header comes into the place of the awaited one.
    pub(crate) fn keeps_header(&self, state: &State, id: Id) -> bool {
        let awaited = usize::from(Self::sequence(state, id)) - 1;
        awaited + usize::from(self.ring_size()) > self.programs[id.rank].len()
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
        self.await_headers(state, id, usize::from(thread(state, id).index) + 1)
    }

    /// Goes to wait for the first of this thread's peers from `from` on, or on.
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
