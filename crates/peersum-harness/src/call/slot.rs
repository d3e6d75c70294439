//! An array of a call in its slot between guards, and what may be wrong with it.

use std::fmt;

use crate::memory::POISON;

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

/// The first thing that is wrong with an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// An element.
    Element {
        index: u32,
        expected: u64,
        actual: u64,
    },
    /// Memory beside the array was written to.
    Outside {
        /// Counted from the array's first byte.
        byte: i64,
    },
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wrong::Element {
                index,
                expected,
                actual,
            } => write!(
                f,
                "first wrong index {index}: expected bits {expected:#x}, actual bits {actual:#x}"
            ),
            Wrong::Outside { byte } => {
                write!(f, "wrote outside its array, at byte {byte} from its start")
            }
        }
    }
}

impl Slot {
    /// The array's address.
    pub(crate) fn address(&self) -> u64 {
        self.base + self.start as u64
    }

    /// Compares the slot's memory with what it must hold. `element_bytes` is 1, 2, 4 or 8.
    pub(crate) fn compare(
        &self,
        memory: &[u8],
        expected: &[u8],
        element_bytes: usize,
    ) -> Option<Wrong> {
        let end = self.start + self.bytes;
        // All at once first: a program that is not optimised takes long for one by one.
        if memory[self.start..end] != *expected {
            let array = memory[self.start..end].chunks_exact(element_bytes);
            let mut pairs = array.zip(expected.chunks_exact(element_bytes)).enumerate();
            let wrong = pairs.find(|(_, (actual, it))| actual != it);
            let found = |(index, (actual, expected))| Wrong::Element {
                index: index as u32,
                expected: number_of(expected),
                actual: number_of(actual),
            };
            return wrong.map(found);
        }
        let mut outside = (0..self.start).chain(end..memory.len());
        let byte = outside.find(|&byte| memory[byte] != POISON)?;
        Some(Wrong::Outside {
            byte: byte as i64 - self.start as i64,
        })
    }
}

/// The bits of an element, as memory holds it.
pub(crate) fn number_of(element: &[u8]) -> u64 {
    let bytes = element.iter().rev();
    bytes.fold(0, |bits, byte| bits << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GUARD_BYTES;

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
        assert_eq!(slot.compare(&memory, &expected, 2), None);
        assert_eq!(
            slot.compare(&memory, &[1, 2, 3, 0xFF, 5, 7], 2),
            Some(Wrong::Element {
                index: 1,
                expected: 0xFF03,
                actual: 0x0403
            })
        );
        memory[slot.start + 6] = 0;
        let outside = |byte| Some(Wrong::Outside { byte });
        assert_eq!(slot.compare(&memory, &expected, 2), outside(6));
        memory[slot.start - 1] = 0;
        assert_eq!(slot.compare(&memory, &expected, 2), outside(-1));
    }
}
