//! How a wait ends without the peer's data, and how a rank leaves.

use crate::machine::Machine;
use crate::memory::{BLOCKS, EMPTY, SIGNATURE_BITS, detail, header, is_poison, poison};
use crate::program::{Break, Kind, Violation, Waits};
use crate::state::{At, Finds, Host, Id, State, Step, thread, thread_mut};

impl Machine {
    /// The ways in which a look may end the wait of a thread.
    pub(crate) fn add_give_ups(&self, state: &State, id: Id, steps: &mut Vec<Step>) {
        let is_waiting = matches!(
            thread(state, id).at,
            At::Acquire
                | At::Headers
                | At::Details
                | At::NormWords
                | At::Collect
                | At::CollectReduced
                | At::OpenFlags
                | At::SecondFlags
        );
        if !is_waiting || self.waits == Waits::Endless {
            return;
        }
        let word = poison(id.block);
        let is_poisoned = state.memory[id.rank][word] != 0;
        let is_being_poisoned = state.in_flight.to(id.rank, word).next().is_some();
        if self.waits == Waits::Bounded || is_poisoned || self.sees_difference(state, id) {
            steps.push(Step::GiveUp(id, Finds::Old));
        }
        // A rank that leaves poisons itself anyway. So it matters only to what an observer does
        // whether a peer's poison arrived first.
        let makes_difference = self.waits == Waits::Look
            || self.is_broken(Break::ObserverRecordsNothing)
            || self.is_broken(Break::NoRelay);
        if !is_poisoned && is_being_poisoned && makes_difference {
            steps.push(Step::GiveUp(id, Finds::New));
        }
    }

    /// Whether a peer's words for the awaited call differ from this rank's: the header or, if the
    /// headers are equal, the detail. A wait for several peers checks each of them.
    fn sees_difference(&self, state: &State, id: Id) -> bool {
        let own = self.awaited_header(state, id);
        let own_detail = self.awaited_own_detail(state, id);
        let me = thread(state, id);
        (0..self.world)
            .filter(|&peer| peer != id.rank && self.looks_at(state, id, peer))
            .filter(|&peer| {
                !matches!(
                    me.at,
                    At::Headers | At::Details | At::Acquire | At::NormWords
                ) || peer == usize::from(me.index)
            })
            .any(|peer| {
                let ring = self.ring(own >> SIGNATURE_BITS);
                let holds = |word: usize, is_wanted: &dyn Fn(u8) -> bool| {
                    let coming = state.in_flight.to(id.rank, word).map(|store| store.value);
                    coming.chain([state.memory[id.rank][word]]).any(is_wanted)
                };
                let word = header(ring, peer);
                holds(word, &|word| {
                    word >> SIGNATURE_BITS == own >> SIGNATURE_BITS && word != own
                }) || own_detail != 0
                    && holds(word, &|word| word == own)
                    && holds(detail(ring, peer), &|word| {
                        word != EMPTY && word != own_detail
                    })
                    || holds(word, &|word| word == own)
                        && self.norm_words_differ(state, id.rank, peer, own >> SIGNATURE_BITS)
            })
    }

    fn awaited_own_detail(&self, state: &State, id: Id) -> u8 {
        match thread(state, id).at {
            At::Headers | At::Details | At::Acquire => self.previous_detail(state, id),
            // That of the call whose rows are normalised, if it has one.
            At::NormWords if self.call(state, id.rank).kind == Kind::NormRows => {
                self.previous_detail(state, id)
            }
            _ => self.call(state, id.rank).detail,
        }
    }

    fn awaited_header(&self, state: &State, id: Id) -> u8 {
        match thread(state, id).at {
            At::Headers | At::Details | At::Acquire => self.previous_own(state, id),
            _ => self.header(state, id),
        }
    }

    /// A thread loses its call. The first such thread of a rank poisons all ranks; the others wait
    /// until it has done so.
    pub(crate) fn leave(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        let own = (
            self.awaited_header(state, id),
            self.awaited_own_detail(state, id),
        );
        let kind = self.call(state, id.rank).kind;
        let is_push = kind.is_push();
        let resume = match thread(state, id).at {
            At::Acquire => At::AcquiredBarrier,
            At::Enter if is_push && self.is_strict => At::AcquiredBarrier,
            At::Enter if !is_push && !kind.is_symmetric() => At::OpenBarrier,
            At::Look | At::SecondFlags => At::SecondedBarrier,
            _ if is_push => At::ReadByAll,
            _ if kind == Kind::NormRows => At::Done,
            _ => At::OpenedBarrier,
        };
        thread_mut(state, id).lost = true;
        let is_poisoned = state.memory[id.rank][poison(id.block)] != 0;
        if state.ranks[id.rank].left && !self.is_broken(Break::LostThreadDoesNotWait) {
            let me = thread_mut(state, id);
            me.at = At::Fence;
            me.resume = resume;
            return Ok(());
        }
        if state.ranks[id.rank].left || is_poisoned && self.is_broken(Break::ObserverRecordsNothing)
        {
            return self.continue_at(state, id, resume);
        }
        state.ranks[id.rank].left = true;
        if !self.is_broken(Break::LeaverSkipsItself) {
            state.ranks[id.rank].status = true;
            for block in 0..BLOCKS {
                state.memory[id.rank][poison(block)] = 1;
            }
        }
        if is_poisoned && self.is_broken(Break::NoRelay) {
            return self.continue_at(state, id, resume);
        }
        self.poison_peers(state, id, Some(own))?;
        let me = thread_mut(state, id);
        me.at = At::Fence;
        me.resume = resume;
        Ok(())
    }

    fn poison_peers(
        &self,
        state: &mut State,
        id: Id,
        own: Option<(u8, u8)>,
    ) -> Result<(), Violation> {
        for peer in (0..self.world).filter(|&peer| peer != id.rank) {
            if let Some((own, own_detail)) = own {
                let ring = self.ring(own >> SIGNATURE_BITS);
                let words = [
                    (detail(ring, id.rank), own_detail),
                    (header(ring, id.rank), own),
                ];
                for (word, value) in words.into_iter().filter(|(_, value)| *value != 0) {
                    // Usually this word was already sent.
                    let is_coming = state
                        .in_flight
                        .to(peer, word)
                        .any(|store| store.value == value);
                    if state.memory[peer][word] != value && !is_coming {
                        self.issue(state, id, (peer, word), value, false)?;
                    }
                }
            }
            for block in 0..BLOCKS {
                self.issue(state, id, (peer, poison(block)), 1, false)?;
            }
        }
        Ok(())
    }

    /// After the fence the poison words at the peers are performed.
    pub(crate) fn end_leave(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        if !self.is_broken(Break::NoFenceBehindPoison) {
            state.in_flight.perform_all(&mut state.memory, |store| {
                store.issuer == id.rank && is_poison(store.address)
            });
        }
        self.continue_at(state, id, thread(state, id).resume)
    }

    /// Where a thread continues after it has left.
    fn continue_at(&self, state: &mut State, id: Id, resume: At) -> Result<(), Violation> {
        if resume == At::ReadByAll {
            return self.end_or_lose_rows(state, id);
        }
        if resume == At::Done {
            return self.finish(state, id);
        }
        self.arrive(state, id, resume)
    }

    /// The host found a failure that no kernel noticed: it poisons its own rank and all peers.
    pub(crate) fn fail_synchronize(&self, state: &mut State, rank: usize) -> Result<(), Violation> {
        let id = Id {
            rank,
            block: 0,
            thread: 0,
        };
        for block in 0..BLOCKS {
            state.memory[rank][poison(block)] = 1;
        }
        state.ranks[rank].host = Host::Failed;
        self.poison_peers(state, id, None)
    }
}
