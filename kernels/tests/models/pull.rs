//! pull.cu: barriers between the blocks of the same index on all ranks, and reads of every rank's
//! copy.

use crate::machine::Machine;
use crate::memory::{NAN, PLACES, SCRATCH, Store, WRONG, data, flag, poison, staging, symmetric};
use crate::program::{Break, Kind, Violation};
use crate::state::{At, Id, State, Word, thread, thread_mut};

impl Machine {
    fn staging_half(&self, state: &State, id: Id) -> u8 {
        if self.is_broken(Break::OneStagingHalf) {
            return 0;
        }
        thread(state, id).pull_epoch & 1
    }

    /// The units of a place: one unit, or one in every owner's chunk.
    pub(crate) fn units(
        &self,
        state: &State,
        id: Id,
        place: usize,
    ) -> impl Iterator<Item = usize> + use<> {
        let has_chunks = self.call(state, id.rank).kind.has_chunks();
        let chunks = if has_chunks { self.world } else { 1 };
        (0..chunks).map(move |owner| owner * PLACES + place)
    }

    /// The address of a rank's copy of a unit in its memory.
    fn copy(&self, state: &State, id: Id, unit: usize) -> usize {
        if self.call(state, id.rank).kind.is_symmetric() {
            symmetric(unit)
        } else {
            staging(self.staging_half(state, id), unit)
        }
    }

    /// What a thread stores as the sum of its unit.
    pub(crate) fn sum(&self, state: &State, id: Id) -> u8 {
        if thread(state, id).is_wrong {
            return WRONG;
        }
        if thread(state, id).is_nan {
            return NAN;
        }
        data(state.ranks[id.rank].call, true)
    }

    pub(crate) fn stage(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        if self.call(state, id.rank).kind.is_symmetric() {
            return Ok(());
        }
        let value = data(state.ranks[id.rank].call, false);
        for place in self.places(state, id) {
            for unit in self.units(state, id, place) {
                let address = self.copy(state, id, unit);
                self.issue(state, id, (id.rank, address), value, false)?;
            }
        }
        Ok(())
    }

    fn flag_of(state: &State, id: Id, wait: At) -> u8 {
        2 * thread(state, id).pull_epoch + u8::from(wait == At::SecondFlags)
    }

    /// A signal thread tells its peers that its block has arrived.
    fn announce(&self, state: &mut State, id: Id, wait: At) -> Result<(), Violation> {
        let is_opening = wait == At::OpenFlags;
        let kind = self.call(state, id.rank).kind;
        // Whether the flag covers stores of this kernel.
        let announces_stores = if is_opening {
            !kind.is_symmetric()
        } else {
            kind.is_two_shot()
        };
        let release = announces_stores && !self.is_broken(Break::RelaxedStagingFlag);
        if !self.is_barrier_missing(wait) {
            for peer in self.peers(id) {
                let address = flag(id.block, id.rank);
                let value = Self::flag_of(state, id, wait);
                let stage = u8::from(!is_opening);
                self.issue_at(state, id, stage, (peer, address), value, release)?;
            }
        }
        Ok(())
    }

    /// The opening meeting. It comes after a block barrier if the flag covers what the block has
    /// staged.
    pub(crate) fn open(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        if !self.is_signal_thread(id) || thread(state, id).lost {
            return self.arrive(state, id, At::OpenedBarrier);
        }
        self.announce(state, id, At::OpenFlags)?;
        thread_mut(state, id).stage = 1;
        self.send_headers(state, id)?;
        thread_mut(state, id).at = At::OpenFlags;
        Ok(())
    }

    /// Whether the second meeting looks at poison before it stores its flag. A two-shot call does:
    /// it must not announce what was reduced from overwritten data. A flag that covers loads alone
    /// is true whatever was loaded, so the look may run beside it.
    fn looks_before_flag(&self, state: &State, id: Id) -> bool {
        self.call(state, id.rank).kind.is_two_shot() && !self.is_broken(Break::FlagBeforeLastLook)
    }

    /// The second meeting, after its first block barrier.
    pub(crate) fn begin_second(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        thread_mut(state, id).stage = 2;
        if !self.is_signal_thread(id) || thread(state, id).lost {
            return self.arrive(state, id, At::SecondedBarrier);
        }
        if !self.looks_before_flag(state, id) {
            self.announce(state, id, At::SecondFlags)?;
        }
        thread_mut(state, id).at = At::Look;
        Ok(())
    }

    fn is_barrier_missing(&self, wait: At) -> bool {
        self.is_broken(if wait == At::OpenFlags {
            Break::NoOpeningBarrier
        } else {
            Break::NoClosingBarrier
        })
    }

    pub(crate) fn are_flags_performed(&self, state: &State, id: Id) -> bool {
        let at = thread(state, id).at;
        let awaited = Self::flag_of(state, id, at);
        self.is_barrier_missing(at)
            || self
                .peers(id)
                .all(|peer| state.memory[id.rank][flag(id.block, peer)] >= awaited)
    }

    /// The oldest flag in flight from a peer that ends the wait.
    fn coming_flag(state: &State, id: Id, peer: usize) -> Option<Store> {
        let awaited = Self::flag_of(state, id, thread(state, id).at);
        state
            .in_flight
            .to(id.rank, flag(id.block, peer))
            .find(|store| store.value >= awaited)
    }

    fn has_flag(state: &State, id: Id, peer: usize) -> bool {
        let awaited = Self::flag_of(state, id, thread(state, id).at);
        state.memory[id.rank][flag(id.block, peer)] >= awaited
    }

    /// Whether every awaited flag has arrived or is in flight.
    pub(crate) fn has_flags(&self, state: &State, id: Id) -> bool {
        self.is_barrier_missing(thread(state, id).at)
            || self.peers(id).all(|peer| {
                Self::has_flag(state, id, peer) || Self::coming_flag(state, id, peer).is_some()
            })
    }

    /// Takes the flags and, with a released flag, what it covers.
    pub(crate) fn take_flags(&self, state: &mut State, id: Id) {
        if self.is_barrier_missing(thread(state, id).at) {
            return;
        }
        for peer in self.peers(id) {
            if Self::has_flag(state, id, peer) {
                continue;
            }
            if let Some(store) = Self::coming_flag(state, id, peer) {
                state.in_flight.perform(&store, &mut state.memory);
            }
        }
    }

    /// The last look at poison, after the block barrier that follows the block's last load of a
    /// peer's buffer.
    pub(crate) fn look_again(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        let is_poisoned = state.memory[id.rank][poison(id.block)] != 0;
        if is_poisoned && !self.is_broken(Break::NoLastLookAtPoison) {
            if !self.is_broken(Break::LastLookRecordsNothing) {
                return self.leave(state, id);
            }
            thread_mut(state, id).lost = true;
            return self.arrive(state, id, At::SecondedBarrier);
        }
        if self.looks_before_flag(state, id) {
            self.announce(state, id, At::SecondFlags)?;
        }
        thread_mut(state, id).at = At::SecondFlags;
        Ok(())
    }

    pub(crate) fn begin_read(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        thread_mut(state, id).stage = 1;
        if !self.is_signal_thread(id) && !thread(state, id).lost {
            thread_mut(state, id).at = At::Read;
            return Ok(());
        }
        self.end_read(state, id)
    }

    fn end_read(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        let kind = self.call(state, id.rank).kind;
        if kind.is_two_shot() || kind.is_symmetric() {
            return self.arrive(state, id, At::SecondBarrier);
        }
        self.finish(state, id)
    }

    /// The units that a thread sums.
    fn summed_units(&self, state: &State, id: Id) -> Vec<usize> {
        let is_two_shot = self.call(state, id.rank).kind.is_two_shot();
        let chunk = if is_two_shot { id.rank * PLACES } else { 0 };
        self.places(state, id).map(|place| chunk + place).collect()
    }

    pub(crate) fn read_words(&self, state: &State, id: Id) -> Vec<Word> {
        self.summed_units(state, id)
            .into_iter()
            .map(|unit| self.copy(state, id, unit))
            .flat_map(|address| (0..self.world).map(move |rank| (rank, address)))
            .collect()
    }

    /// Loads the words that make up a result and must all hold `expected`. If one is NaN the result
    /// is NaN, whatever the others hold.
    fn load_all(&self, state: &mut State, id: Id, words: &[Word], expected: u8) {
        let holds = |&(rank, address): &Word| self.load(state, id, rank, address);
        let is_nan = words.iter().map(holds).any(|value| value == NAN);
        let is_wrong = !is_nan && words.iter().map(holds).any(|value| value != expected);
        let me = thread_mut(state, id);
        me.is_nan |= is_nan;
        me.is_wrong |= is_wrong;
    }

    pub(crate) fn read(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        let kind = self.call(state, id.rank).kind;
        let input = data(state.ranks[id.rank].call, false);
        for words in self.read_words(state, id).chunks(self.world) {
            self.load_all(state, id, words, input);
        }
        let sum = self.sum(state, id);
        for unit in self.summed_units(state, id) {
            if self.has_narrow_units && !kind.is_symmetric() {
                // The output passes through the other half.
                let other = self.staging_half(state, id) ^ 1;
                state.memory[id.rank][staging(other, unit)] = SCRATCH;
            }
            if !kind.is_two_shot() {
                continue;
            }
            let is_written_to = |rank: usize| {
                rank == id.rank
                    || kind.is_symmetric()
                        && !self.is_broken(Break::GatherByReadingWithoutThirdBarrier)
            };
            let address = self.copy(state, id, unit);
            for rank in (0..self.world).filter(|&rank| is_written_to(rank)) {
                self.issue(state, id, (rank, address), sum, false)?;
            }
        }
        self.end_read(state, id)
    }

    pub(crate) fn begin_gather(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        let kind = self.call(state, id.rank).kind;
        let gathers = kind == Kind::PullTwoShot
            || self.is_broken(Break::GatherByReadingWithoutThirdBarrier)
                && kind == Kind::SymmetricTwoShot;
        if gathers && !self.is_signal_thread(id) && !thread(state, id).lost {
            thread_mut(state, id).at = At::Gather;
            return Ok(());
        }
        if thread(state, id).lost && kind == Kind::SymmetricTwoShot {
            self.fill_with_nan(state, id)?;
        }
        self.finish(state, id)
    }

    /// Fills with NaN, as a lost call does, the caller's buffer, which peers may still read.
    fn fill_with_nan(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        for place in self.places(state, id) {
            for unit in self.units(state, id, place) {
                self.issue(state, id, (id.rank, symmetric(unit)), NAN, false)?;
            }
        }
        Ok(())
    }

    /// The reduced units that a thread reads from their owners' memory.
    pub(crate) fn gathered_words(&self, state: &State, id: Id) -> Vec<Word> {
        let last = self.call(state, id.rank).places - 1;
        let is_mapped_otherwise = self.is_broken(Break::OtherMappingInGather);
        self.places(state, id)
            .map(|place| {
                if is_mapped_otherwise {
                    last - place
                } else {
                    place
                }
            })
            .flat_map(|place| {
                (0..self.world)
                    .filter(|&owner| owner != id.rank)
                    .map(move |owner| (owner, owner * PLACES + place))
            })
            .map(|(owner, unit)| (owner, self.copy(state, id, unit)))
            .collect()
    }

    pub(crate) fn gather(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        let words = self.gathered_words(state, id);
        let expected = data(state.ranks[id.rank].call, true);
        for word in words.chunks(1) {
            self.load_all(state, id, word, expected);
        }
        if self.call(state, id.rank).kind.is_symmetric() {
            for (_, address) in words {
                state.memory[id.rank][address] = expected;
            }
        }
        self.finish(state, id)
    }
}
