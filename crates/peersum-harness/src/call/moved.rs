//! A call of all-gather, reduce-scatter or broadcast as one rank makes it.

use std::time::Duration;

use peersum::reference;
use peersum_artifact::Dtype;

use super::array::{Array, Role, Values};
use super::rank_call::{CallKind, RankCall};
use crate::collective::Collective;
use crate::data::{self, Content, Key, TestElement, bytes_of, with_element};

/// One call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MoveCall {
    pub(crate) kind: Collective,
    pub(crate) dtype: Dtype,
    /// Of a rank's chunk, or of the buffer of a broadcast.
    pub(crate) elements: usize,
    pub(crate) is_unaligned: bool,
    pub(crate) in_place: bool,
    /// What is summed.
    pub(crate) content: Content,
}

impl MoveCall {
    /// The call of `rank`. `keys` are those of all ranks.
    pub(crate) fn of_rank(&self, keys: &[Key], rank: u32) -> RankCall {
        let (own, expected) = self.values(keys, rank);
        let (sent, received) = self.kind.lengths(self.elements, keys.len() as u32);
        let array = |role, elements, before, after| Array {
            role,
            elements,
            element_bytes: self.dtype.size_bytes(),
            is_symmetric: false,
            is_unaligned: self.is_unaligned,
            before,
            after: Values::Bytes(after),
        };
        let given = |first| Some((first, Values::Bytes(own.clone())));
        let arrays = if self.in_place {
            let before = match self.kind {
                Collective::AllGather => given(rank as usize * self.elements),
                // Whatever others hold is overwritten, so it stays poison.
                Collective::Broadcast { root } if root != rank => None,
                _ => given(0),
            };
            vec![array(Role::Output, sent.max(received), before, expected)]
        } else {
            vec![
                array(Role::Output, received, None, expected),
                array(Role::Input, sent, given(0), own.clone()),
            ]
        };
        RankCall {
            lane: 0,
            delay: Duration::ZERO,
            plan: None,
            kind: CallKind::Other(self.kind),
            dtype: self.dtype,
            elements: self.elements,
            arrays,
            label: match self.kind {
                Collective::Broadcast { root } => format!(" from rank {root}"),
                _ => String::new(),
            },
        }
    }

    /// The same with runs of marks in what is only moved.
    pub(crate) fn with_marks(&self, keys: &[Key], rank: u32) -> RankCall {
        let with_marks = |key: &Key| match self.kind {
            Collective::ReduceScatter => *key,
            _ => key.with_runs_of_marks(),
        };
        self.of_rank(&keys.iter().map(with_marks).collect::<Vec<_>>(), rank)
    }

    /// What `rank` has, and what the array that it writes must hold after the call.
    fn values(&self, keys: &[Key], rank: u32) -> (Vec<u8>, Vec<u8>) {
        if self.kind == Collective::ReduceScatter {
            return with_element!(self.dtype, T => self.scattered::<T>(keys, rank as usize));
        }
        let bytes = self.elements * self.dtype.size_bytes();
        let mut all: Vec<Vec<u8>> = keys.iter().map(|&key| data::moved(key, bytes)).collect();
        let slices: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
        let expected = match self.kind {
            Collective::Broadcast { root } => reference::broadcast(&slices, root as usize),
            _ => reference::all_gather(&slices),
        };
        (all.swap_remove(rank as usize), expected)
    }

    fn scattered<T: TestElement>(&self, keys: &[Key], rank: usize) -> (Vec<u8>, Vec<u8>) {
        let whole = 0..self.elements * keys.len();
        let chunk = rank * self.elements..(rank + 1) * self.elements;
        let input_of = |(owner, &key): (usize, &Key)| match owner == rank {
            true => data::part::<T>(self.content, key, whole.clone()),
            // The sum of this rank's chunk needs no other chunk of a peer.
            false => {
                let mut input = vec![T::CANONICAL_NAN; whole.len()];
                let part = data::part::<T>(self.content, key, chunk.clone());
                input[chunk.clone()].copy_from_slice(&part);
                input
            }
        };
        let mut inputs: Vec<Vec<T>> = keys.iter().enumerate().map(input_of).collect();
        let slices: Vec<&[T]> = inputs.iter().map(Vec::as_slice).collect();
        let sum = reference::reduce_scatter(&slices, rank);
        let own = inputs.swap_remove(rank);
        let mut expected = own.clone();
        expected[chunk].copy_from_slice(&sum);
        if !self.in_place {
            expected = sum;
        }
        (bytes_of(&own).to_vec(), bytes_of(&expected).to_vec())
    }
}
