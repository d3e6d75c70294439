//! push.cu: units travel through slots, the data is the flag.

use crate::machine::{At, Break, Id, Machine, State, Violation, thread, thread_mut};
use crate::memory::{
    EMPTY, SCRATCH, data, gather_slot, one_shot_slot, scatter_slot, staging,
};

impl Machine {
    fn push_half(&self, state: &State, id: Id) -> u8 {
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

    /// `PEERSUM_STRICT_ORDER`: the next peer whose header a block acquires before its first store to a slot.
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

    /// All stores to the peers; then to the headers of the call before.
    pub(crate) fn send(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        if thread(state, id).lost {
            return self.arrive(state, id, At::EndBarrier);
        }
        self.store_inputs(state, id)?;
        self.send_headers(state, id)?;
        self.await_headers(state, id, 0)
    }

    pub(crate) fn store_inputs(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        let is_two_shot = self.call(state, id.rank).kind.is_two_shot();
        let half = self.push_half(state, id);
        let value = data(state.ranks[id.rank].call, false);
        for place in self.places(state, id) {
            for peer in (0..self.world).filter(|&peer| peer != id.rank) {
                if is_two_shot {
                    let slot = scatter_slot(half, id.rank, place);
                    self.issue(state, id, (peer, slot), value, false)?;
                    continue;
                }
                for word in 0..self.words {
                    let slot = one_shot_slot(half, id.rank, place * self.words + word);
                    self.issue(state, id, (peer, slot), value, false)?;
                }
            }
            for unit in self.scratch_units(state, id, place) {
                state.memory[id.rank][unit] = SCRATCH;
            }
        }
        Ok(())
    }

    /// Where the units of `place` lie in the staging half that serves as scratch, if they do.
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

    /// The slots of a unit that a thread waits for, of every peer.
    fn inputs(&self, state: &State, id: Id) -> Vec<usize> {
        let half = self.push_half(state, id);
        let Some(place) = self.place(state, id) else {
            return Vec::new();
        };
        let sources = (0..self.world).filter(|&source| source != id.rank);
        if self.call(state, id.rank).kind.is_two_shot() {
            return sources
                .map(|source| scatter_slot(half, source, place))
                .collect();
        }
        sources
            .flat_map(|source| {
                (0..self.words)
                    .map(move |word| one_shot_slot(half, source, place * self.words + word))
            })
            .collect()
    }

    fn reduced(&self, state: &State, id: Id) -> Vec<usize> {
        let half = self.push_half(state, id);
        let owners = (0..self.world).filter(|&owner| owner != id.rank);
        self.place(state, id)
            .into_iter()
            .flat_map(|place| owners.clone().map(move |owner| gather_slot(half, owner, place)))
            .collect()
    }

    /// Whether the `index`-th word of the slots waited for is not looked at.
    fn is_unchecked(&self, index: usize) -> bool {
        self.is_broken(Break::LaneUnchecked) && index % self.words == self.words - 1
    }

    pub(crate) fn has_inputs(&self, state: &State, id: Id) -> bool {
        let slots = self.inputs(state, id);
        slots
            .iter()
            .enumerate()
            .all(|(index, &slot)| self.is_unchecked(index) || self.has_come(state, id, slot))
    }

    pub(crate) fn has_reduced(&self, state: &State, id: Id) -> bool {
        self.reduced(state, id)
            .iter()
            .all(|&slot| self.has_come(state, id, slot))
    }

    /// Whether data is in a slot or on its way to it.
    fn has_come(&self, state: &State, id: Id, slot: usize) -> bool {
        self.load(state, id, id.rank, slot) != EMPTY
            || state.in_flight.to(id.rank, slot).any(|store| store.value != EMPTY)
    }

    /// Takes what came and empties the slots.
    fn take_slots(
        &self,
        state: &mut State,
        id: Id,
        slots: &[usize],
        expected: u8,
    ) -> Result<(), Violation> {
        for (index, &slot) in slots.iter().enumerate() {
            if !self.is_unchecked(index) {
                Self::perform_words(state, &[(id.rank, slot)]);
            }
            if self.load(state, id, id.rank, slot) != expected {
                thread_mut(state, id).is_wrong = true;
            }
            if !self.is_broken(Break::NoRearm) {
                self.issue(state, id, (id.rank, slot), EMPTY, false)?;
            }
        }
        Ok(())
    }

    pub(crate) fn begin_collect(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        if self.place(state, id).is_some() {
            thread_mut(state, id).at = At::Collect;
            return Ok(());
        }
        thread_mut(state, id).index = 0;
        if self.call(state, id.rank).kind.is_two_shot() {
            self.begin_collect_reduced(state, id)
        } else {
            self.end(state, id)
        }
    }

    fn begin_collect_reduced(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        if self.place(state, id).is_some() {
            thread_mut(state, id).at = At::CollectReduced;
            return Ok(());
        }
        self.end(state, id)
    }

    fn end(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        if self.is_broken(Break::EpochAdvancedBeforeBarrier) {
            return self.finish(state, id);
        }
        self.arrive(state, id, At::EndBarrier)
    }

    pub(crate) fn collect(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        let slots = self.inputs(state, id);
        let call = state.ranks[id.rank].call;
        self.take_slots(state, id, &slots, data(call, false))?;
        if let Some(place) = self.place(state, id) {
            // The own input, where it passes through scratch memory.
            for unit in self.scratch_units(state, id, place) {
                if state.memory[id.rank][unit] != SCRATCH {
                    thread_mut(state, id).is_wrong = true;
                }
            }
            if self.call(state, id.rank).kind.is_two_shot() {
                let slot = gather_slot(self.push_half(state, id), id.rank, place);
                let sum = self.sum(state, id);
                for peer in (0..self.world).filter(|&peer| peer != id.rank) {
                    self.issue(state, id, (peer, slot), sum, false)?;
                }
            }
        }
        thread_mut(state, id).index += 1;
        self.begin_collect(state, id)
    }

    pub(crate) fn collect_reduced(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        let slots = self.reduced(state, id);
        let call = state.ranks[id.rank].call;
        self.take_slots(state, id, &slots, data(call, true))?;
        thread_mut(state, id).index += 1;
        self.begin_collect_reduced(state, id)
    }
}
