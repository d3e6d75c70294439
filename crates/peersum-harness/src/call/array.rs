//! An array of a call: where it lies, and what it must hold before and after the call.

use std::borrow::Cow;
use std::fmt;

use peersum::Scalar;
use peersum_artifact::Dtype;

use super::slot::{Slot, number_of};
use crate::data::{self, Content, Key, bytes_of, with_element};
use crate::memory::{GUARD_BYTES, POISON};

/// Views begin fewer than this many elements behind an aligned address.
const OFFSETS: usize = 8;

/// What an array is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    Input,
    Output,
    Residual,
    Weight,
    Fp8Values,
    /// The scales of the rows, or the one inverse scale.
    Fp8Scales,
}

impl Role {
    pub(crate) const ALL: [Role; 6] = [
        Role::Input,
        Role::Output,
        Role::Residual,
        Role::Weight,
        Role::Fp8Values,
        Role::Fp8Scales,
    ];
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Input => "input",
            Role::Output => "output",
            Role::Residual => "residual",
            Role::Weight => "weight",
            Role::Fp8Values => "FP8 values",
            Role::Fp8Scales => "FP8 scales",
        })
    }
}

/// The sum of the arrays with these keys; of one, that array itself.
#[derive(Debug, Clone)]
pub(crate) struct Sum {
    pub(crate) dtype: Dtype,
    pub(crate) content: Content,
    pub(crate) keys: Vec<Key>,
    pub(crate) elements: usize,
}

impl Sum {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        with_element!(self.dtype, T => {
            bytes_of(&data::expected::<T>(self.content, &self.keys, self.elements)).to_vec()
        })
    }

    /// The bits of one element.
    pub(crate) fn bits_at(&self, index: u32) -> u64 {
        with_element!(self.dtype, T => {
            number_of(bytes_of(&[data::expected_at::<T>(self.content, &self.keys, index)]))
        })
    }
}

/// What an array holds.
#[derive(Debug, Clone)]
pub(crate) enum Values {
    Bytes(Vec<u8>),
    Sum(Sum),
}

impl Values {
    pub(crate) fn of<T: Scalar>(values: &[T]) -> Values {
        Values::Bytes(bytes_of(values).to_vec())
    }

    pub(crate) fn bytes(&self) -> Cow<'_, [u8]> {
        match self {
            Values::Bytes(bytes) => Cow::Borrowed(bytes),
            Values::Sum(sum) => Cow::Owned(sum.bytes()),
        }
    }
}

/// An array of a call. All of it is compared after the call.
#[derive(Debug, Clone)]
pub(crate) struct Array {
    pub(crate) role: Role,
    pub(crate) elements: usize,
    pub(crate) element_bytes: usize,
    /// Whether it lies in the symmetric buffer.
    pub(crate) is_symmetric: bool,
    pub(crate) is_unaligned: bool,
    /// What is written before the call, from which element on. The rest is poisoned.
    pub(crate) before: Option<(usize, Values)>,
    pub(crate) after: Values,
}

impl Array {
    /// An aligned array of elements of `T`.
    pub(crate) fn new<T: Scalar>(role: Role, before: Option<&[T]>, after: &[T]) -> Array {
        Array {
            role,
            elements: after.len(),
            element_bytes: size_of::<T>(),
            is_symmetric: false,
            is_unaligned: false,
            before: before.map(|values| (0, Values::of(values))),
            after: Values::of(after),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.elements * self.element_bytes
    }

    /// What all of it holds before the call.
    pub(crate) fn before(&self) -> Vec<u8> {
        let mut bytes = vec![POISON; self.bytes()];
        if let Some((first, values)) = &self.before {
            let (start, values) = (first * self.element_bytes, values.bytes());
            bytes[start..start + values.len()].copy_from_slice(&values);
        }
        bytes
    }

    /// How many elements behind an aligned address `rank`'s array begins.
    fn offset(&self, rank: u32, layer: usize) -> usize {
        match self.role {
            _ if !self.is_unaligned => 0,
            // All ranks use the same part of a symmetric buffer.
            _ if self.is_symmetric => (layer * 2 + 1) % OFFSETS,
            Role::Input => (rank as usize * 3 + layer + 1) % OFFSETS,
            _ => (rank as usize * 5 + layer * 3 + 2) % OFFSETS,
        }
    }

    /// The slot of `rank`'s array, which begins at `base`.
    pub(crate) fn slot(&self, base: u64, rank: u32, layer: usize) -> Slot {
        let start = GUARD_BYTES + self.offset(rank, layer) * self.element_bytes;
        Slot {
            base,
            start,
            bytes: self.bytes(),
            // A multiple of 4, since the GPU compares whole words.
            guarded_bytes: (start + self.bytes() + GUARD_BYTES).next_multiple_of(4),
        }
    }
}

/// Bytes from slot to slot for arrays of at most so many bytes.
pub(crate) fn stride(bytes: usize) -> usize {
    (2 * GUARD_BYTES + OFFSETS * size_of::<u64>() + bytes).next_multiple_of(256)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn unaligned_views_begin_at_another_element_on_different_ranks() {
        for role in [Role::Input, Role::Output] {
            let mut array = Array::new(role, None, &[0_u32]);
            array.is_unaligned = true;
            let offsets: HashSet<usize> = (0..8).map(|rank| array.offset(rank, 0)).collect();
            assert_eq!(offsets.len(), OFFSETS);
        }
    }
}
