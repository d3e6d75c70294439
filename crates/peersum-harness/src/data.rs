//! Test data: each element is a function of a key and its index, so that every rank, and the GPU,
//! can compute the data of all ranks (`grid/check.cu` is the counterpart of this file).

use std::ops::Range;

use peersum::{Element, Scalar, reference};
use peersum_artifact::Dtype;

/// Special values, as the low bits of an element of any type.
const SPECIAL_BITS: [u32; 24] = [
    0xFFFF_FFFF, // the word of an empty slot
    0x7FFF_FFFF, // its substitute
    0x0000_0000,
    0x8000_0000, // zeros of f32
    0x7F80_0000,
    0xFF80_0000, // infinities of f32
    0x0000_0001,
    0x8000_0001, // the least subnormals of f32
    0x007F_FFFF,
    0x7F7F_FFFF, // the greatest subnormal and finite f32
    0x7F80_0001,
    0xFFC0_1234, // NaN of f32: signalling, with a payload
    0x0000_8000,
    0x0000_7FFF, // negative zero and NaN of f16 and bf16
    0x0000_7C00,
    0x0000_FC00, // infinities of f16
    0x0000_7F80,
    0x0000_FF80, // infinities of bf16
    0x0000_03FF,
    0x0000_7BFF, // the greatest subnormal and finite f16
    0x0000_007F,
    0x0000_7F7F, // the same of bf16
    0x0000_7C01,
    0x0000_FFFF, // a signalling NaN of f16; half of an empty slot's word
];

/// What the elements are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// Finite values of similar size, as activations are.
    Ordinary,
    /// Every second element a special value, the others any bits.
    Special,
    /// Small whole numbers, of which every type holds the sums of eight exactly: any order of
    /// adding gives the same bits.
    Whole,
    /// Finite values, spread evenly from -4 to 4.
    Even,
}

/// An element that can be made from the bits of a `u32`.
pub(crate) trait TestElement: Element<Bits: TryFrom<u32>> {}

impl<T: Element<Bits: TryFrom<u32>>> TestElement for T {}

/// Evaluates an expression with the element type of a [`Dtype`].
macro_rules! with_element {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            peersum_artifact::Dtype::F16 => {
                type $T = half::f16;
                $body
            }
            peersum_artifact::Dtype::Bf16 => {
                type $T = half::bf16;
                $body
            }
            peersum_artifact::Dtype::F32 => {
                type $T = f32;
                $body
            }
            dtype => unreachable!("{dtype} is not reduced, so no case has it"),
        }
    };
}
pub(crate) use with_element;

/// Evaluates an expression with the type of a [`Dtype`], whether calls can sum it or only move it.
macro_rules! with_scalar {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            peersum_artifact::Dtype::U8 => {
                type $T = u8;
                $body
            }
            peersum_artifact::Dtype::I8 => {
                type $T = i8;
                $body
            }
            peersum_artifact::Dtype::U32 => {
                type $T = u32;
                $body
            }
            peersum_artifact::Dtype::I32 => {
                type $T = i32;
                $body
            }
            peersum_artifact::Dtype::U64 => {
                type $T = u64;
                $body
            }
            peersum_artifact::Dtype::I64 => {
                type $T = i64;
                $body
            }
            dtype => $crate::data::with_element!(dtype, $T => $body),
        }
    };
}
pub(crate) use with_scalar;

/// Names one rank's array in one call of one case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Key(pub(crate) u32);

/// The seed of a case. It depends on the run's seed and the name of the case alone.
pub(crate) fn case_seed(seed: u64, name: &str) -> u64 {
    name.bytes()
        .fold(seed ^ 0xCBF2_9CE4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
        })
}

impl Key {
    pub(crate) fn new(case_seed: u64, round: u32, layer: u32, rank: u32) -> Key {
        let place = u64::from(round) << 32 | u64::from(layer) << 8 | u64::from(rank);
        // splitmix64's output function.
        let mut word = case_seed.wrapping_add(place.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Key((word >> 32) as u32)
    }

    /// A key by which [`moved`] has any words and runs of marks.
    pub(crate) fn with_runs_of_marks(self) -> Key {
        Key(self.0 & !3 | 2)
    }

    /// The array of `rank` if there is only one call.
    pub(crate) fn of(seed: u64, rank: u32) -> Key {
        Key::new(seed, 0, 0, rank)
    }

    /// Those of all ranks.
    pub(crate) fn of_all(seed: u64, world_size: u32) -> Vec<Key> {
        Key::of_call(seed, 0, 0, world_size)
    }

    /// Those of all ranks in one of several calls.
    pub(crate) fn of_call(seed: u64, round: u32, layer: u32, world_size: u32) -> Vec<Key> {
        let ranks = 0..world_size;
        ranks
            .map(|rank| Key::new(seed, round, layer, rank))
            .collect()
    }
}

/// A bijective hash of 32 bits.
#[inline]
fn mix(mut word: u32) -> u32 {
    word = (word ^ (word >> 16)).wrapping_mul(0x7FEB_352D);
    word = (word ^ (word >> 15)).wrapping_mul(0x846C_A68B);
    word ^ (word >> 16)
}

/// One element.
#[inline]
fn element<T: TestElement>(content: Content, key: Key, index: u32) -> T {
    let word = mix(index.wrapping_mul(0x9E37_79B1) ^ key.0);
    let half = word >> 16;
    let bits = match (content, T::DTYPE) {
        // Sign and fraction as they come, one of sixteen exponents around 1: wide enough that
        // float32 sums round, and their order shows.
        (Content::Ordinary, Dtype::Bf16) => (half & 0x807F) | ((119 + ((half >> 7) & 15)) << 7),
        (Content::Ordinary, Dtype::F16) => (half & 0x83FF) | ((8 + ((half >> 10) & 15)) << 10),
        (Content::Ordinary, _) => (word & 0x807F_FFFF) | ((119 + ((word >> 23) & 15)) << 23),
        (Content::Special, dtype) => {
            let any = if word & 1 == 0 {
                mix(word)
            } else {
                SPECIAL_BITS[((word >> 1) % SPECIAL_BITS.len() as u32) as usize]
            };
            match dtype {
                Dtype::F16 | Dtype::Bf16 => any & 0xFFFF,
                _ => any,
            }
        }
        (Content::Whole, _) => return T::round((word % 33) as f32 - 16.0),
        (Content::Even, _) => return T::round((word as f32 / u32::MAX as f32 - 0.5) * 8.0),
    };
    T::Bits::try_from(bits).map_or(T::CANONICAL_NAN, T::from_raw)
}

/// One rank's array.
pub(crate) fn input<T: TestElement>(content: Content, key: Key, len: usize) -> Vec<T> {
    part(content, key, 0..len)
}

/// A part of one rank's array.
pub(crate) fn part<T: TestElement>(content: Content, key: Key, range: Range<usize>) -> Vec<T> {
    (range.start as u32..range.end as u32)
        .map(|index| element(content, key, index))
        .collect()
}

/// The words that mark a slot without data, and a unit that takes two slots.
const MARKS: [u32; 2] = [0xFFFF_FFFF, 0x7FB5_FFA3];

/// The array of one rank in a call that only moves it, whatever its type. By the key it has any
/// words, special values such as NaN with a payload, runs of marks, or nothing but marks.
pub(crate) fn moved(key: Key, bytes: usize) -> Vec<u8> {
    let run_length = 1 + (key.0 >> 8) % 19;
    let word = |index: u32| {
        let any = mix(index.wrapping_mul(0x9E37_79B1) ^ key.0);
        let run = mix((index / run_length).wrapping_mul(0x85EB_CA6B) ^ key.0);
        let mark = MARKS[(run >> 8) as usize % MARKS.len()];
        match key.0 % 4 {
            1 if any & 1 == 0 => SPECIAL_BITS[(any >> 1) as usize % SPECIAL_BITS.len()],
            2 if run & 1 == 0 => mark,
            3 => mark,
            _ => mix(any),
        }
    };
    let words: Vec<u32> = (0..bytes.div_ceil(4) as u32).map(word).collect();
    bytes_of(&words)[..bytes].to_vec()
}

/// What every rank must receive.
pub(crate) fn expected<T: TestElement>(content: Content, keys: &[Key], len: usize) -> Vec<T> {
    let inputs: Vec<Vec<T>> = keys.iter().map(|&key| input(content, key, len)).collect();
    let slices: Vec<&[T]> = inputs.iter().map(Vec::as_slice).collect();
    reference::all_reduce(&slices)
}

/// One element of [`expected`].
pub(crate) fn expected_at<T: TestElement>(content: Content, keys: &[Key], index: u32) -> T {
    let inputs: Vec<[T; 1]> = keys
        .iter()
        .map(|&key| [element(content, key, index)])
        .collect();
    let slices: Vec<&[T]> = inputs.iter().map(<[T; 1]>::as_slice).collect();
    reference::all_reduce(&slices)[0]
}

/// The bytes of elements, as memory holds them.
pub(crate) fn bytes_of<T: Scalar>(elements: &[T]) -> &[u8] {
    // SAFETY: an element is a number without padding, so each of its bytes is initialised; the
    // length is theirs.
    unsafe { std::slice::from_raw_parts(elements.as_ptr().cast(), size_of_val(elements)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn ordinary_elements_are_finite_and_never_zero() {
        let key = Key::new(1, 2, 3, 4);
        for value in input::<f16>(Content::Ordinary, key, 4096) {
            assert!(value.is_normal());
        }
        for value in input::<bf16>(Content::Ordinary, key, 4096) {
            assert!(value.is_normal());
        }
        for value in input::<f32>(Content::Ordinary, key, 4096) {
            assert!(value.is_normal());
        }
    }

    #[test]
    fn special_content_has_every_special_value_of_its_type() {
        let values = input::<f32>(Content::Special, Key::new(1, 2, 3, 4), 4096);
        for special in SPECIAL_BITS {
            assert!(
                values.iter().any(|value| value.to_bits() == special),
                "{special:x}"
            );
        }
        let values = input::<bf16>(Content::Special, Key::new(1, 2, 3, 4), 4096);
        assert!(values.iter().any(|value| value.to_bits() == 0xFFFF));
        assert!(values.iter().any(|value| value.to_bits() == 0x8000));
    }

    #[test]
    fn moved_arrays_have_no_marks_few_or_nothing_else() {
        let units_with = |key, mark: u32| {
            let bytes = moved(Key(key), 16 * 4000);
            let has_it = |unit: &[u8]| unit.chunks(4).any(|word| word == mark.to_ne_bytes());
            bytes.chunks(16).filter(|unit| has_it(unit)).count()
        };
        for mark in MARKS {
            assert_eq!(units_with(0x100, mark), 0);
            assert!((1000..3500).contains(&units_with(0x102, mark)));
        }
        assert!((200..3000).contains(&units_with(0x101, MARKS[0])));
        let marks = MARKS.map(u32::to_ne_bytes);
        let mut words = moved(Key(0x403), 4000)
            .chunks(4)
            .map(<[u8]>::to_vec)
            .collect::<Vec<_>>();
        assert!(
            words
                .iter()
                .all(|word| marks.iter().any(|mark| word == mark))
        );
        words.dedup();
        assert!(words.len() > 50, "runs of both marks");
        assert_eq!(moved(Key(7), 5), moved(Key(7), 9)[..5]);
    }

    #[test]
    fn calls_rounds_and_ranks_have_data_of_their_own() {
        let mut keys: Vec<u32> = (0..16)
            .flat_map(|round| {
                (0..4).flat_map(move |layer| (0..8).map(move |rank| (round, layer, rank)))
            })
            .map(|(round, layer, rank)| Key::new(case_seed(7, "a case"), round, layer, rank).0)
            .collect();
        let all = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), all);
        assert_ne!(case_seed(7, "a case"), case_seed(7, "another"));
    }

    #[test]
    fn whole_numbers_have_exact_sums_in_every_type_and_any_order() {
        let keys = Key::of_all(5, 8);
        let exact = |index| -> f32 {
            let elements = keys
                .iter()
                .map(|&key| element::<f32>(Content::Whole, key, index));
            elements.sum()
        };
        for (index, sum) in (0..).zip(expected::<bf16>(Content::Whole, &keys, 4096)) {
            assert_eq!(sum.to_f32(), exact(index));
        }
    }

    #[test]
    fn one_expected_element_is_that_of_all() {
        let keys = [Key(1), Key(2), Key(3)];
        let all = expected::<f16>(Content::Special, &keys, 300);
        for (index, value) in all.iter().enumerate() {
            let one = expected_at::<f16>(Content::Special, &keys, index as u32);
            assert_eq!(one.to_bits(), value.to_bits());
        }
    }
}
