//! The arrays of a round: one slot a layer in each of a rank's regions, every slot between guards.

use super::calls::{Call, LAYERS, OFFSETS, Place, offset};
use super::event::Wrong;
use crate::memory::{GUARD_BYTES, POISON};

/// Bytes from slot to slot for arrays of at most `elements` elements.
pub(crate) fn stride(elements: usize, element_bytes: usize) -> usize {
    (2 * GUARD_BYTES + (OFFSETS + elements) * element_bytes).next_multiple_of(256)
}

/// The bytes that the largest round needs.
pub(crate) fn region_bytes(elements: usize) -> usize {
    LAYERS * stride(elements, size_of::<f32>())
}

/// Where the slots of each place begin on one rank, for one round.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slots {
    pub(crate) input: u64,
    pub(crate) output: u64,
    pub(crate) symmetric: u64,
    pub(crate) stride: usize,
    pub(crate) rank: u32,
}

/// One array within its slot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    /// The slot's first byte.
    pub(crate) base: u64,
    /// From there to the array's first byte.
    pub(crate) start: usize,
    /// The array's bytes.
    pub(crate) bytes: usize,
    /// All bytes up to the end of the guard behind the array.
    pub(crate) guarded_bytes: usize,
}

impl Slot {
    /// The array's address.
    pub(crate) fn address(&self) -> u64 {
        self.base + self.start as u64
    }
}

impl Slots {
    /// The first byte of all slots of a place.
    pub(crate) fn base(&self, place: Place) -> u64 {
        match place {
            Place::Input => self.input,
            Place::Output => self.output,
            Place::Symmetric => self.symmetric,
        }
    }

    pub(crate) fn slot(
        &self,
        call: &Call,
        place: Place,
        layer: usize,
        element_bytes: usize,
    ) -> Slot {
        let start = GUARD_BYTES + offset(call, place, self.rank, layer) * element_bytes;
        let bytes = call.elements * element_bytes;
        Slot {
            base: self.base(place) + (layer * self.stride) as u64,
            start,
            bytes,
            // A multiple of 4, since the GPU compares whole words.
            guarded_bytes: (start + bytes + GUARD_BYTES)
                .next_multiple_of(4)
                .min(self.stride),
        }
    }
}

/// The bits of an element, as memory holds it.
pub(crate) fn number_of(element: &[u8]) -> u32 {
    let bytes = element.iter().rev();
    bytes.fold(0, |bits, byte| bits << 8 | u32::from(*byte))
}

/// Compares a slot's memory with what it must hold. `element_bytes` is 2 or 4.
pub(crate) fn compare(
    slot: &Slot,
    memory: &[u8],
    expected: &[u8],
    element_bytes: usize,
) -> Option<Wrong> {
    let end = slot.start + slot.bytes;
    let (before, rest) = memory.split_at_checked(slot.start)?;
    let (array, behind) = rest.split_at_checked(slot.bytes)?;
    if array != expected {
        let pairs = array
            .chunks_exact(element_bytes)
            .zip(expected.chunks_exact(element_bytes));
        let (index, (actual, expected)) = pairs
            .enumerate()
            .find(|(_, (actual, expected))| actual != expected)?;
        return Some(Wrong::Element {
            index: index as u32,
            expected: number_of(expected),
            actual: number_of(actual),
        });
    }
    let touched = |byte: &u8| *byte != POISON;
    let byte = before
        .iter()
        .position(touched)
        .or_else(|| behind.iter().position(touched).map(|byte| end + byte))?;
    Some(Wrong::Outside {
        byte: byte as i64 - slot.start as i64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_wrong_element_and_a_touched_guard_are_found() {
        let slot = Slot {
            base: 0,
            start: GUARD_BYTES + 2,
            bytes: 6,
            guarded_bytes: 2 * GUARD_BYTES + 8,
        };
        let mut memory = vec![POISON; slot.guarded_bytes];
        memory[slot.start..slot.start + 6].copy_from_slice(&[1, 2, 3, 4, 5, 6]);
        let expected = [1, 2, 3, 4, 5, 6];
        assert_eq!(compare(&slot, &memory, &expected, 2), None);
        assert_eq!(
            compare(&slot, &memory, &[1, 2, 3, 0xFF, 5, 7], 2),
            Some(Wrong::Element {
                index: 1,
                expected: 0xFF03,
                actual: 0x0403
            })
        );
        memory[slot.start + 6] = 0;
        assert_eq!(
            compare(&slot, &memory, &expected, 2),
            Some(Wrong::Outside { byte: 6 })
        );
        memory[slot.start - 1] = 0;
        assert_eq!(
            compare(&slot, &memory, &expected, 2),
            Some(Wrong::Outside { byte: -1 })
        );
    }
}
