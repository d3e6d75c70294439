//! What a rank has and must get in a call, as bytes.

use peersum::reference;

use super::cases::MoveCase;
use crate::data::{self, Content, Key, TestElement, bytes_of, with_element};
use crate::operation::Operation;

/// What `rank` has in a call, and what the array that it writes must hold after it. `keys` are
/// those of all ranks.
pub(super) fn arrays_of(
    case: &MoveCase,
    keys: &[Key],
    rank: u32,
    layer: usize,
) -> (Vec<u8>, Vec<u8>) {
    if case.op == Operation::ReduceScatter {
        return with_element!(case.dtype, T => scattered::<T>(case, keys, rank, layer));
    }
    let all = keys.iter().map(|&key| data::moved(key, case.chunk_bytes()));
    let mut all: Vec<Vec<u8>> = all.collect();
    let slices: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
    let expected = match case.op {
        Operation::Broadcast => reference::broadcast(&slices, case.root(layer) as usize),
        _ => reference::all_gather(&slices),
    };
    (all.swap_remove(rank as usize), expected)
}

fn scattered<T: TestElement>(
    case: &MoveCase,
    keys: &[Key],
    rank: u32,
    layer: usize,
) -> (Vec<u8>, Vec<u8>) {
    // Sums of special values are often the same whatever is added.
    let content = [Content::Ordinary, Content::Special][layer % 2];
    let rank = rank as usize;
    let whole = 0..case.elements * keys.len();
    let chunk = rank * case.elements..(rank + 1) * case.elements;
    let input_of = |(owner, &key): (usize, &Key)| match owner == rank {
        true => data::part::<T>(content, key, whole.clone()),
        // The sum of this rank's chunk needs no other chunk of a peer.
        false => {
            let mut input = vec![T::CANONICAL_NAN; whole.len()];
            input[chunk.clone()].copy_from_slice(&data::part::<T>(content, key, chunk.clone()));
            input
        }
    };
    let mut inputs: Vec<Vec<T>> = keys.iter().enumerate().map(input_of).collect();
    let slices: Vec<&[T]> = inputs.iter().map(Vec::as_slice).collect();
    let sum = reference::reduce_scatter(&slices, rank);
    let own = inputs.swap_remove(rank);
    let mut expected = own.clone();
    expected[chunk].copy_from_slice(&sum);
    if !case.is_in_place(rank as u32, layer) {
        expected = sum;
    }
    (bytes_of(&own).to_vec(), bytes_of(&expected).to_vec())
}
