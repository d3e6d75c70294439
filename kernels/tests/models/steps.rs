//! Which steps may come next, and taking one.

use crate::machine::Machine;
use crate::memory::{BLOCKS, EMPTY, is_detail, is_header, is_poison, poison};
use crate::program::{Break, Violation, Waits};
use crate::state::{At, Finds, Host, Id, Rank, State, Step, Word, thread};

impl Machine {
    /// The words that a thread's next step loads.
    fn loads(&self, state: &State, id: Id) -> Vec<Word> {
        let own_poison = (id.rank, poison(id.block));
        match thread(state, id).at {
            At::Enter => vec![own_poison],
            At::Look => vec![own_poison],
            At::Read => self.read_words(state, id),
            At::Gather => self.gathered_words(state, id),
            _ => Vec::new(),
        }
    }

    /// Whether a store to one of the words is in flight from anywhere but the thread's own block.
    fn is_raced(state: &State, id: Id, words: &[Word]) -> bool {
        state.in_flight.iter().any(|store| {
            words.contains(&(store.target, store.address))
                && (store.issuer, store.block) != (id.rank, id.block)
        })
    }

    pub(crate) fn perform_words(state: &mut State, words: &[Word]) {
        state.in_flight.perform_all(&mut state.memory, |store| {
            words.contains(&(store.target, store.address))
        });
    }

    /// Every step that may come next.
    pub(crate) fn steps(&self, state: &State) -> Vec<Step> {
        let mut steps = Vec::new();
        for store in state.in_flight.iter() {
            let overwrites_detail = is_detail(store.address)
                && store.value != EMPTY
                && state.memory[store.target][store.address] != EMPTY;
            if is_header(store.address) && self.overwrites_header(&store) || overwrites_detail {
                steps.push(Step::Perform(store));
            }
        }
        for rank in 0..self.world {
            match state.ranks[rank].host {
                Host::Fill => {
                    steps.push(Step::Fill(rank, Finds::Old));
                    if state
                        .in_flight
                        .iter()
                        .any(|store| self.races_with_fill(&store, rank))
                    {
                        steps.push(Step::Fill(rank, Finds::New));
                    }
                }
                Host::Synchronize => self.add_synchronize_steps(state, rank, &mut steps),
                Host::Running => {
                    for id in self.ids(rank) {
                        self.add_thread_steps(state, id, &mut steps);
                    }
                    self.add_phase_ends(state, rank, &mut steps);
                    if self.has_kernel_ended(state, rank) {
                        steps.push(Step::EndKernel(rank));
                    }
                }
                Host::Ok | Host::Failed | Host::Stopped => continue,
            }
            if self.stops == Some(rank) {
                steps.push(Step::Stop(rank));
            }
        }
        steps
    }

    fn add_thread_steps(&self, state: &State, id: Id, steps: &mut Vec<Step>) {
        if self.is_ready(state, id) {
            steps.push(Step::Run(id, Finds::Old));
            if Self::is_raced(state, id, &self.loads(state, id))
                || self.is_raced_by_values(state, id)
            {
                steps.push(Step::Run(id, Finds::New));
            }
        }
        self.add_give_ups(state, id, steps);
    }

    pub(crate) fn take(&self, state: &mut State, step: Step) -> Result<(), Violation> {
        match step {
            Step::Perform(store) => state.in_flight.perform(&store, &mut state.memory),
            Step::Run(id, finds) => {
                if finds == Finds::New {
                    let words = self.loads(state, id);
                    Self::perform_words(state, &words);
                    self.receive_racing_values(state, id)?;
                }
                self.run(state, id)?;
            }
            Step::EndPhase(end) => self.end_phase(state, end)?,
            Step::GiveUp(id, finds) => {
                if finds == Finds::New {
                    Self::perform_words(state, &[(id.rank, poison(id.block))]);
                }
                self.leave(state, id)?;
            }
            Step::EndKernel(rank) => self.end_kernel(state, rank)?,
            Step::Fill(rank, finds) => self.fill(state, rank, finds)?,
            Step::Synchronize(rank, finds) => self.synchronize(state, rank, finds)?,
            Step::GiveUpSynchronize(rank) => self.fail_synchronize(state, rank)?,
            Step::Stop(rank) => state.ranks[rank].host = Host::Stopped,
        }
        self.settle(state)
    }

    /// Called when no step is left: checks that all ranks ended as they must.
    pub(crate) fn check_end(&self, state: &State) -> Result<(), Violation> {
        let ranks = &state.ranks[..self.world];
        if ranks
            .iter()
            .any(|rank| matches!(rank.host, Host::Fill | Host::Running | Host::Synchronize))
        {
            return Err(Violation::Deadlock);
        }
        let has_failed = |rank: &Rank| rank.left || rank.host == Host::Failed;
        let is_poisoned = |rank: usize| {
            (0..BLOCKS).map(poison).all(|word| {
                state.memory[rank][word] != 0 || state.in_flight.to(rank, word).next().is_some()
            })
        };
        if ranks.iter().any(has_failed) && !(0..self.world).all(is_poisoned) {
            return Err(Violation::PeerNotPoisoned);
        }
        let last = self.programs[0].len() as u8;
        if ranks.iter().any(|rank| (1..last).contains(&rank.lost))
            && ranks.iter().any(|rank| rank.host == Host::Ok)
        {
            return Err(Violation::FailureNotShared);
        }
        Ok(())
    }

    pub(crate) fn describe(&self, state: &State, step: Step) -> String {
        match step {
            Step::Perform(store) => format!(
                "rank {} call {}: its header or detail to rank {} is performed",
                store.issuer, store.call, store.target
            ),
            Step::Run(id, finds) | Step::GiveUp(id, finds) => {
                let does = if matches!(step, Step::Run(..)) {
                    ""
                } else {
                    " given up"
                };
                format!(
                    "rank {} block {} thread {} call {}: {:?}{does}, finds {finds:?}",
                    id.rank,
                    id.block,
                    id.thread,
                    state.ranks[id.rank].call,
                    thread(state, id).at
                )
            }
            Step::EndPhase(end) => {
                let call = state.ranks[end.rank].call;
                format!("rank {} block {} call {call}: {end}", end.rank, end.block)
            }
            Step::Fill(rank, _)
            | Step::EndKernel(rank)
            | Step::Synchronize(rank, _)
            | Step::GiveUpSynchronize(rank)
            | Step::Stop(rank) => {
                format!("rank {rank} call {}: {step:?}", state.ranks[rank].call)
            }
        }
    }

    pub(crate) fn ids(&self, rank: usize) -> impl Iterator<Item = Id> + use<> {
        let threads = self.threads + self.signals;
        (0..BLOCKS).flat_map(move |block| {
            (0..threads).map(move |thread| Id {
                rank,
                block,
                thread,
            })
        })
    }

    /// Takes every step whose time no other thread can observe.
    pub(crate) fn settle(&self, state: &mut State) -> Result<(), Violation> {
        loop {
            let mut has_moved = false;
            for rank in 0..self.world {
                if self.no_longer_reads_its_words(state, rank) {
                    has_moved |= state.in_flight.perform_unread(rank, &mut state.memory);
                }
                if state.ranks[rank].host != Host::Running {
                    continue;
                }
                for id in self.ids(rank) {
                    if self.is_local(state, id) {
                        self.run(state, id)?;
                        has_moved = true;
                    }
                }
                if self.has_kernel_ended(state, rank) && !state.in_flight.has_own(rank) {
                    self.end_kernel(state, rank)?;
                    has_moved = true;
                }
            }
            if !has_moved {
                return Ok(());
            }
        }
    }

    /// Whether no thread will look at anything that a peer may still store to this rank's slots,
    /// headers, flags and poison words: each remaining call of the rank finds itself poisoned, and
    /// so does `synchronize`.
    fn no_longer_reads_its_words(&self, state: &State, rank: usize) -> bool {
        let is_poisoned = || (0..BLOCKS).all(|block| state.memory[rank][poison(block)] != 0);
        let is_inside = || {
            let threads = state.threads[rank].as_flattened();
            threads
                .iter()
                .any(|thread| !matches!(thread.at, At::Done | At::Enter))
        };
        match state.ranks[rank].host {
            Host::Ok | Host::Failed | Host::Stopped => true,
            Host::Running | Host::Fill | Host::Synchronize => is_poisoned() && !is_inside(),
        }
    }

    /// Whether no other thread can influence or observe the next step: a wait for flags that have
    /// arrived or a look at a poison word that is set, which only grow, so nothing can undo them;
    /// or an entry that touches nothing which another thread or rank loads or stores.
    fn is_local(&self, state: &State, id: Id) -> bool {
        match thread(state, id).at {
            At::Enter if self.waits == Waits::Endless => {
                !self.enters_apart
                    && !self.has_narrow_units
                    && !self.is_broken(Break::NoGriddepcontrolWait)
            }
            At::Enter => state.memory[id.rank][poison(id.block)] != 0,
            At::Look => {
                self.waits == Waits::Endless || state.memory[id.rank][poison(id.block)] != 0
            }
            At::OpenFlags | At::SecondFlags => self.are_flags_performed(state, id),
            At::ReadByAll => self.is_read_by_all(state, id),
            At::Headers => {
                (self.waits == Waits::Endless || self.takes_headers_at_once)
                    && self.keeps_header(state, id)
                    && self.has_header(state, id)
            }
            At::NormWords => self.takes_headers_at_once && self.has_norm_word(state, id),
            At::Fence => !state
                .in_flight
                .iter()
                .any(|store| store.issuer == id.rank && is_poison(store.address)),
            _ => false,
        }
    }

    /// Whether a thread's next step may be taken now.
    fn is_ready(&self, state: &State, id: Id) -> bool {
        match thread(state, id).at {
            At::Join => id.thread == 0,
            At::Enter => self.enters_apart || id.thread == 0,
            At::Read | At::Look | At::Gather | At::Fence | At::RowSums | At::Largest => true,
            At::Acquire | At::Headers => self.has_header(state, id),
            At::Details => self.has_detail(state, id),
            At::NormWords => self.has_norm_word(state, id),
            At::Collect => self.has_inputs(state, id),
            At::CollectReduced => self.has_reduced(state, id),
            At::OpenFlags | At::SecondFlags => self.has_flags(state, id),
            At::ReadByAll => self.is_read_by_all(state, id),
            At::Done
            | At::AcquiredBarrier
            | At::OpenBarrier
            | At::OpenedBarrier
            | At::SecondBarrier
            | At::SecondedBarrier
            | At::RowBarrier
            | At::LargestBarrier => false,
        }
    }

    fn run(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        match thread(state, id).at {
            At::Join => {
                self.join(state, id);
                Ok(())
            }
            At::Enter => self.enter(state, id),
            At::Acquire => self.acquire_header(state, id),
            At::Headers => self.take_header(state, id),
            At::Details => self.take_detail(state, id),
            At::NormWords => self.take_norm_word(state, id),
            At::RowSums => self.read_sums(state, id),
            At::Largest => self.read_largest(state, id),
            At::Collect => self.collect(state, id),
            At::CollectReduced => self.collect_reduced(state, id),
            At::OpenFlags => {
                self.take_flags(state, id);
                self.await_headers(state, id, 0)
            }
            At::Read => self.read(state, id),
            At::Look => self.look_again(state, id),
            At::SecondFlags => {
                self.take_flags(state, id);
                self.arrive(state, id, At::SecondedBarrier)
            }
            At::Gather => self.gather(state, id),
            At::Fence => self.end_leave(state, id),
            At::ReadByAll => self.finish(state, id),
            at => unreachable!("{at:?} is no step"),
        }
    }
}
