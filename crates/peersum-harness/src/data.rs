//! Random inputs, the same for every rank that asks with the same seed.

use fastrand::Rng;
use peersum::Element;

/// What the elements are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// Finite values of similar size, as activations are.
    Ordinary,
    /// Random bits with many special values: NaN (the slot mark among them), infinities, zeros of both signs, subnormals.
    Special,
    /// Small whole numbers, of which every type holds the sums of eight exactly: any order of adding gives the same bits.
    Whole,
}

/// Words that a protocol is most likely to get wrong, as the low bits of an element.
const SPECIAL_BITS: [u32; 20] = [
    0xFFFF_FFFF,
    0x7FFF_FFFF,
    0,
    0x8000_0000,
    0x7F80_0000,
    0xFF80_0000,
    0x0000_0001,
    0x8000_0001,
    0x007F_FFFF,
    0x7F7F_FFFF,
    0x0000_FFFF,
    0x0000_7FFF,
    0x0000_8000,
    0x0000_7C00,
    0x0000_FC00,
    0x0000_7F80,
    0x0000_FF80,
    0x0000_03FF,
    0x0000_7BFF,
    0x0000_7F7F,
];

/// The elements of one rank.
pub(crate) fn input<T: Element>(seed: u64, rank: u32, len: usize, content: Content) -> Vec<T>
where
    T::Bits: TryFrom<u32>,
{
    let mut rng = Rng::with_seed(seed ^ u64::from(rank).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let bits = |bits: u32| {
        let width = 8 * size_of::<T>() as u32;
        let bits = if width == 32 { bits } else { bits & 0xFFFF };
        T::Bits::try_from(bits)
            .ok()
            .map_or(T::CANONICAL_NAN, T::from_raw)
    };
    (0..len)
        .map(|_| match content {
            Content::Ordinary => T::round((rng.f32() - 0.5) * 8.0),
            Content::Whole => T::round(rng.i32(-16..=16) as f32),
            Content::Special if rng.bool() => bits(SPECIAL_BITS[rng.usize(..SPECIAL_BITS.len())]),
            Content::Special => bits(rng.u32(..)),
        })
        .collect()
}
