//! The stream between kernels and the host: filling symmetric buffers, ending a kernel,
//! `synchronize`.

use crate::machine::Machine;
use crate::memory::{
    BLOCKS, EMPTY, NAN, Order, PLACES, SIGNATURE_BITS, Store, data, detail, header, own_header,
    poison, pull_epoch, push_epoch, symmetric,
};
use crate::program::{Break, Kind, Violation, Waits};
use crate::row_exchange::BlockMemory;
use crate::state::{Finds, Host, Rank, State, Step, Thread, Word};

impl Machine {
    /// Prepares a rank's next call, or its `synchronize` if there is none.
    pub(crate) fn prepare(&self, state: &mut State, rank: usize) {
        let number = usize::from(state.ranks[rank].call);
        let Some(call) = self.programs[rank].get(number) else {
            state.ranks[rank].host = Host::Synchronize;
            return;
        };
        if call.kind.is_symmetric() {
            state.ranks[rank].host = Host::Fill;
        } else {
            self.launch(state, rank);
        }
    }

    fn launch(&self, state: &mut State, rank: usize) {
        let blocks = self.call(state, rank).blocks;
        state.ranks[rank].host = Host::Running;
        let start = self.start(state, rank);
        for id in self.ids(rank).filter(|id| id.block < blocks) {
            state.threads[rank][id.block][id.thread].at = start;
        }
    }

    /// The caller's kernel that writes the input of a symmetric call.
    pub(crate) fn fill(
        &self,
        state: &mut State,
        rank: usize,
        finds: Finds,
    ) -> Result<(), Violation> {
        if finds == Finds::New {
            state
                .in_flight
                .perform_all(&mut state.memory, |store| self.races_with_fill(store, rank));
        }
        let number = state.ranks[rank].call;
        if number > 0 {
            self.check_in_place(state, rank, number - 1)?;
        }
        for unit in 0..self.world * PLACES {
            state.memory[rank][symmetric(unit)] = data(number, false);
        }
        self.launch(state, rank);
        Ok(())
    }

    /// Whether a store of a peer to this rank's symmetric buffer races with the caller's writes to
    /// it. If the ranks make the same calls there is none.
    pub(crate) fn races_with_fill(&self, store: &Store, rank: usize) -> bool {
        store.target == rank
            && (symmetric(0)..symmetric(self.world * PLACES)).contains(&store.address)
    }

    /// The result of a symmetric two-shot call stays in the buffer until the caller overwrites it.
    fn check_in_place(&self, state: &mut State, rank: usize, number: u8) -> Result<(), Violation> {
        let call = &self.programs[rank][usize::from(number)];
        if state.ranks[rank].lost != 0 || !(call.kind.is_symmetric() && call.kind.is_two_shot()) {
            return Ok(());
        }
        // With or without the stores in flight.
        let found: Vec<u8> = (0..self.world)
            .flat_map(|owner| (0..call.places).map(move |place| owner * PLACES + place))
            .map(symmetric)
            .flat_map(|word| {
                let coming = state.in_flight.to(rank, word).map(|store| store.value);
                coming.chain([state.memory[rank][word]])
            })
            .collect();
        let right = data(number, true);
        if found.iter().any(|&value| value != right && value != NAN) {
            return self.count_wrong(state, rank);
        }
        if found.contains(&NAN) {
            state.ranks[rank].lost = number + 1;
        }
        Ok(())
    }

    /// Whether the next kernel may start. With programmatic dependent launch it is on the GPU as
    /// soon as this kernel's blocks allow it, but `griddepcontrol.wait` waits for this kernel's
    /// end.
    pub(crate) fn has_kernel_ended(&self, state: &State, rank: usize) -> bool {
        state.threads[rank]
            .as_flattened()
            .iter()
            .all(|thread| *thread == Thread::DONE)
    }

    pub(crate) fn end_kernel(&self, state: &mut State, rank: usize) -> Result<(), Violation> {
        let performs_own =
            self.order == Order::Physical && !self.is_broken(Break::NoGriddepcontrolWait);
        if performs_own {
            state.in_flight.perform_all(&mut state.memory, |store| {
                store.issuer == rank && store.target == rank
            });
        }
        let number = state.ranks[rank].call;
        self.check_in_place(state, rank, number)?;
        if self.broken.is_none() {
            self.check_epochs(state, rank)?;
            self.check_peers_have_begun(state, rank)?;
        }
        state.blocks[rank] = [BlockMemory::INITIAL; BLOCKS];
        state.ranks[rank].call += 1;
        self.prepare(state, rank);
        Ok(())
    }

    /// Every block's epochs count the calls so far, whether or not a call launched the block.
    fn check_epochs(&self, state: &State, rank: usize) -> Result<(), Violation> {
        let calls = &self.programs[rank][..=usize::from(state.ranks[rank].call)];
        let count = |is_of: fn(Kind) -> bool| {
            let calls = calls.iter().filter(|call| is_of(call.kind));
            calls.count() as u8
        };
        let pushes = count(Kind::is_push);
        let pulls = count(|kind| kind != Kind::NormRows) - pushes;
        let memory = &state.memory[rank];
        let agree = (0..BLOCKS).all(|block| {
            (memory[push_epoch(block)], memory[pull_epoch(block)]) == (pushes, 1 + pulls)
        });
        if agree {
            Ok(())
        } else {
            Err(Violation::EpochsDiffer)
        }
    }

    /// No rank ends a call before its peers have begun it. (A kernel that normalises rows is part
    /// of the call before.)
    fn check_peers_have_begun(&self, state: &State, rank: usize) -> Result<(), Violation> {
        let Rank { call, left, .. } = state.ranks[rank];
        let is_call = self.call(state, rank).kind != Kind::NormRows;
        let is_late = |peer: usize| state.ranks[peer].call < call;
        if is_call && self.ranks_agree() && !left && (0..self.world).any(is_late) {
            return Err(Violation::PeerNotBegun);
        }
        Ok(())
    }

    /// The words that receive the peers' headers of the last call, and this rank's own header of
    /// it.
    fn last_headers(&self, state: &State, rank: usize) -> (Vec<Word>, u8) {
        let memory = &state.memory[rank];
        let last = (memory[push_epoch(0)] + memory[pull_epoch(0)]).wrapping_sub(1);
        let ring = self.ring(last);
        let peers = (0..self.world).filter(|&peer| peer != rank);
        (
            peers.map(|peer| (rank, header(ring, peer))).collect(),
            memory[own_header(ring)],
        )
    }

    /// The words that receive the peers' details of the last call, and this rank's own detail.
    /// Empty if the call has no detail.
    fn last_details(&self, state: &State, rank: usize) -> (Vec<Word>, u8) {
        let mut calls = self.programs[rank].iter().rev();
        let last = calls.find(|call| call.kind != Kind::NormRows);
        let own = last.map_or(0, |call| call.detail);
        if own == 0 || self.is_broken(Break::SynchronizeSkipsDetails) {
            return (Vec::new(), 0);
        }
        let memory = &state.memory[rank];
        let last = (memory[push_epoch(0)] + memory[pull_epoch(0)]).wrapping_sub(1);
        let ring = self.ring(last);
        let peers = (0..self.world).filter(|&peer| peer != rank);
        (peers.map(|peer| (rank, detail(ring, peer))).collect(), own)
    }

    /// The host looks at status and poison, then waits for the headers and details of the last
    /// call.
    pub(crate) fn add_synchronize_steps(&self, state: &State, rank: usize, steps: &mut Vec<Step>) {
        if state.in_flight.to(rank, poison(0)).next().is_some() {
            steps.push(Step::Synchronize(rank, Finds::New));
        }
        if self.has_failed(state, rank) || self.is_broken(Break::SynchronizeSkipsHeaders) {
            steps.push(Step::Synchronize(rank, Finds::Old));
            return;
        }
        let (words, own) = self.last_headers(state, rank);
        let arrives = |&(rank, word): &Word, is_wanted: &dyn Fn(u8) -> bool| {
            let mut coming = state.in_flight.to(rank, word).map(|store| store.value);
            is_wanted(state.memory[rank][word]) || coming.any(is_wanted)
        };
        let is_last = |word: u8| word >> SIGNATURE_BITS == own >> SIGNATURE_BITS;
        let (details, own_detail) = self.last_details(state, rank);
        let is_detail = |word: u8| word != EMPTY;
        let all_arrive = words.iter().all(|word| arrives(word, &is_last))
            && details.iter().all(|word| arrives(word, &is_detail));
        if all_arrive
            || words
                .iter()
                .any(|word| arrives(word, &|word| is_last(word) && word != own))
            || details
                .iter()
                .any(|word| arrives(word, &|word| is_detail(word) && word != own_detail))
        {
            steps.push(Step::Synchronize(rank, Finds::Old));
        }
        if self.waits == Waits::Bounded {
            steps.push(Step::GiveUpSynchronize(rank));
        }
    }

    fn has_failed(&self, state: &State, rank: usize) -> bool {
        // An observer's status and the host's look at the poison word each suffice without the
        // other.
        let looks_at_poison = !self.is_broken(Break::ObserverRecordsNothing);
        state.ranks[rank].status || looks_at_poison && state.memory[rank][poison(0)] != 0
    }

    pub(crate) fn synchronize(
        &self,
        state: &mut State,
        rank: usize,
        finds: Finds,
    ) -> Result<(), Violation> {
        if finds == Finds::New {
            Self::perform_words(state, &[(rank, poison(0))]);
        }
        if self.has_failed(state, rank) {
            state.ranks[rank].host = Host::Failed;
            return Ok(());
        }
        if !self.is_broken(Break::SynchronizeSkipsHeaders) {
            let (words, own) = self.last_headers(state, rank);
            let (details, own_detail) = self.last_details(state, rank);
            Self::perform_words(state, &words);
            Self::receive_details(state, &details);
            let differ = |words: &[Word], own: u8| {
                words
                    .iter()
                    .any(|&(rank, word)| state.memory[rank][word] != own)
            };
            // A missing word is waited for only until another word differs.
            if differ(&words, own) || differ(&details, own_detail) {
                return self.fail_synchronize(state, rank);
            }
        }
        let number = state.ranks[rank].call - 1;
        self.check_in_place(state, rank, number)?;
        let Rank { lost, is_wrong, .. } = state.ranks[rank];
        if lost != 0 || is_wrong || !self.ranks_agree() {
            return Err(Violation::FalseOk);
        }
        state.ranks[rank].host = Host::Ok;
        Ok(())
    }
}
