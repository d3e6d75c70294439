//! move.cu: the push calls that sum nothing, all-gather and broadcast. A rank takes what its peers
//! send, and stores its own data itself.
//!
//! A reduce-scatter is a one-shot push to this model: a rank sends each owner one unit of a place,
//! as it sends one to all.

use crate::machine::Machine;
use crate::memory::{begins_escaped, data, escaped, input_slot};
use crate::memory::{overflow_slot, rest_of_escaped, token};
use crate::program::{Break, Call, Kind};
use crate::push::SlotWord;
use crate::state::{At, Id, State, Word, thread};

impl Machine {
    /// Whether `source` sends something to `receiver`: its unit or, for the place in which all
    /// ranks meet, a token.
    fn sends(&self, call: &Call, (source, receiver): (usize, usize), is_meeting: bool) -> bool {
        if source == receiver {
            return false;
        }
        if call.kind == Kind::AllGather || source == call.root {
            return true;
        }
        let is_left_out = self.is_broken(Break::BroadcastWithoutTokens)
            || self.is_broken(Break::TokensForRootOnly) && receiver != call.root;
        is_meeting && !is_left_out
    }

    /// Whether all ranks meet in this place: it is the first one of the block's first thread. (For
    /// the data alone one block would do. The seats need a meeting of each block.)
    fn is_meeting(&self, id: Id, place: usize) -> bool {
        id.thread == 0 && place == id.block * self.threads
    }

    /// The words in the slot of `source` for a place.
    fn unit(&self, state: &State, id: Id, (source, place): (usize, usize)) -> Vec<SlotWord> {
        let call = self.call(state, id.rank);
        let number = state.ranks[id.rank].call;
        let half = self.push_half(state, id);
        let words = self.words_of(state, id, place);
        let first = words.start;
        let word = |word| SlotWord {
            slot: input_slot(half, source, word),
            value: match call.kind {
                Kind::Broadcast if source != call.root => token(number),
                Kind::AllGather if word == first && call.is_escaped(source, place) => {
                    escaped(number)
                }
                _ => data(number, false),
            },
            is_overflow: false,
        };
        words.map(word).collect()
    }

    /// The words of the rest of an escaped unit, in its overflow slot.
    fn rest(&self, state: &State, id: Id, (source, place): (usize, usize)) -> Vec<SlotWord> {
        let half = self.push_half(state, id);
        let value = rest_of_escaped(state.ranks[id.rank].call);
        let word = |word| SlotWord {
            slot: overflow_slot(half, source, word),
            value,
            is_overflow: true,
        };
        self.words_of(state, id, place).map(word).collect()
    }

    /// What a thread stores at its peers for a place.
    pub(crate) fn moved_words(&self, state: &State, id: Id, place: usize) -> Vec<(Word, u8)> {
        let call = self.call(state, id.rank);
        let mut words = self.unit(state, id, (id.rank, place));
        if call.is_escaped(id.rank, place) {
            words.append(&mut self.rest(state, id, (id.rank, place)));
        }
        let is_meeting = self.is_meeting(id, place);
        (0..self.world)
            .filter(|&peer| self.sends(call, (id.rank, peer), is_meeting))
            .flat_map(|peer| {
                words
                    .iter()
                    .map(move |word| ((peer, word.slot), word.value))
            })
            .collect()
    }

    /// The ranks for whose units or tokens a thread waits in a place.
    fn awaited_ranks(&self, state: &State, id: Id, place: usize) -> Vec<usize> {
        let call = self.call(state, id.rank);
        let is_meeting = self.is_meeting(id, place);
        (0..self.world)
            .filter(|&source| self.sends(call, (source, id.rank), is_meeting))
            .collect()
    }

    /// The words that a thread waits for in a place. Those of an overflow slot are among them once
    /// the unit in the slot says so.
    pub(crate) fn moved_inputs(&self, state: &State, id: Id, place: usize) -> Vec<SlotWord> {
        let mut awaited = Vec::new();
        for source in self.awaited_ranks(state, id, place) {
            let unit = self.unit(state, id, (source, place));
            let first = unit[0].slot;
            awaited.extend(unit);
            let is_gather = self.call(state, id.rank).kind == Kind::AllGather;
            if is_gather && begins_escaped(self.coming(state, id, first)) {
                awaited.extend(self.rest(state, id, (source, place)));
            }
        }
        awaited
    }

    /// Whether a look of this thread reads the header of `peer`. Beside the meeting of all ranks,
    /// a broadcast waits for its root alone.
    pub(crate) fn looks_at(&self, state: &State, id: Id, peer: usize) -> bool {
        let is_moving = self.call(state, id.rank).kind.is_move();
        let place = self.place(state, id);
        match thread(state, id).at {
            At::Collect if is_moving => {
                place.is_none_or(|place| self.awaited_ranks(state, id, place).contains(&peer))
            }
            _ => true,
        }
    }
}
