//! call.cuh: entering and ending a call, and the block barriers between.

use crate::machine::Machine;
use crate::memory::{BLOCKS, poison, pull_epoch, push_epoch};
use crate::program::{Break, Kind, Violation};
use crate::state::{At, Id, State, Thread, thread, thread_mut};

impl Machine {
    /// The first step of every call.
    pub(crate) fn enter(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        let is_poisoned = state.memory[id.rank][poison(id.block)] != 0;
        if self.enters_apart {
            return self.enter_thread(state, id, is_poisoned);
        }
        for thread in 0..self.threads + self.signals {
            self.enter_thread(state, Id { thread, ..id }, is_poisoned)?;
        }
        Ok(())
    }

    fn enter_thread(&self, state: &mut State, id: Id, is_poisoned: bool) -> Result<(), Violation> {
        let own = &state.memory[id.rank];
        let epochs = (own[push_epoch(id.block)], own[pull_epoch(id.block)]);
        let me = thread_mut(state, id);
        (me.push_epoch, me.pull_epoch) = epochs;
        let kind = self.call(state, id.rank).kind;
        if kind == Kind::NormRows {
            return self.enter_rows(state, id, is_poisoned);
        }
        let is_push = kind.is_push();
        if is_poisoned {
            if self.is_broken(Break::PoisonReadAfterStores) {
                if is_push {
                    self.store_inputs(state, id, 0..usize::MAX)?;
                } else {
                    self.stage(state, id)?;
                }
            }
            return self.leave(state, id);
        }
        if is_push {
            return self.begin_push(state, id);
        }
        self.stage(state, id)?;
        if kind.is_symmetric() {
            self.open(state, id)
        } else {
            self.arrive(state, id, At::OpenBarrier)
        }
    }

    /// A thread reaches a block barrier. The last one to reach it takes all threads past it.
    pub(crate) fn arrive(&self, state: &mut State, id: Id, barrier: At) -> Result<(), Violation> {
        thread_mut(state, id).at = barrier;
        let block = &mut state.threads[id.rank][id.block][..self.threads + self.signals];
        if block.iter().any(|thread| thread.at != barrier) {
            return Ok(());
        }
        // bar.red.or
        if !self.is_broken(Break::LostThreadAnnounced) {
            let lost = block.iter().any(|thread| thread.lost);
            block.iter_mut().for_each(|thread| thread.lost = lost);
        }
        for thread in 0..self.threads + self.signals {
            let id = Id { thread, ..id };
            match barrier {
                At::AcquiredBarrier => self.send(state, id)?,
                At::OpenBarrier => self.open(state, id)?,
                At::OpenedBarrier => self.begin_read(state, id)?,
                At::SecondBarrier => self.begin_second(state, id)?,
                At::SecondedBarrier => self.begin_gather(state, id)?,
                at => unreachable!("{at:?} is no barrier"),
            }
        }
        Ok(())
    }

    /// A thread's end of a call.
    pub(crate) fn finish(&self, state: &mut State, id: Id) -> Result<(), Violation> {
        let call = *self.call(state, id.rank);
        let me = *thread(state, id);
        let rank = &mut state.ranks[id.rank];
        if (me.lost || me.is_nan) && rank.lost == 0 {
            rank.lost = rank.call + 1;
        }
        if me.is_wrong && !me.lost {
            self.count_wrong(state, id.rank)?;
        }
        // The first signal thread counts the call for its own block, the data threads count it for
        // the blocks that were not launched.
        let (first, step) = if id.thread < self.threads {
            let first = id.block + call.blocks * (1 + id.thread);
            (first, call.blocks * self.threads)
        } else if id.thread == self.threads {
            (id.block, BLOCKS)
        } else {
            (BLOCKS, BLOCKS)
        };
        for block in (first..BLOCKS).step_by(step) {
            if call.kind == Kind::NormRows {
                break;
            }
            if self.is_broken(Break::EpochOfLaunchedBlocksOnly) && block != id.block {
                continue;
            }
            let (address, epoch) = if call.kind.is_push() {
                (push_epoch(block), me.push_epoch)
            } else {
                (pull_epoch(block), me.pull_epoch)
            };
            if self.is_broken(Break::NoGriddepcontrolWait) {
                self.issue(state, id, (id.rank, address), epoch + 1, false)?;
            } else {
                state.memory[id.rank][address] = epoch + 1;
            }
        }
        *thread_mut(state, id) = Thread::DONE;
        self.check_end_of_block(state, id)
    }

    /// A result of this rank is not the sum of this call's inputs. If the ranks make different
    /// calls no result can be, and `synchronize` must notice.
    pub(crate) fn count_wrong(&self, state: &mut State, rank: usize) -> Result<(), Violation> {
        if self.ranks_agree() {
            return Err(Violation::WrongResult);
        }
        state.ranks[rank].is_wrong = true;
        Ok(())
    }
}
