//! The elements that calls are made with: random ones, among them every pattern that has a meaning
//! somewhere.

use peersum::Element;

/// Random elements: any bit pattern, numbers of like magnitude, and the patterns that break such
/// protocols.
pub(crate) fn random<T: Element>(generator: &mut fastrand::Rng, len: usize) -> Vec<T> {
    let special: [u32; 16] = [
        0xFFFF_FFFF,
        0x7FFF_FFFF,
        0x7FFF_7FFF,
        0,
        0x8000_8000,
        0x8000_0000,
        0x0001_0001,
        0x8001_8001,
        0x7F80_7F80,
        0xFF80_FF80,
        0x7C00_7C00,
        0xFC00_FC00,
        0x7BFF_7BFF,
        0x0000_FFFF,
        0x7F7F_7F7F,
        0x0080_0080,
    ];
    (0..len)
        .map(|_| match generator.u32(0..4) {
            0 => from_bits(generator.u32(..)),
            1 => from_bits(special[generator.usize(..special.len())]),
            _ => T::round((generator.f32() - 0.5) * 8.0),
        })
        .collect()
}

/// One random input a rank.
pub(crate) fn random_inputs<T: Element>(
    generator: &mut fastrand::Rng,
    ranks: usize,
    len: usize,
) -> Vec<Vec<T>> {
    (0..ranks).map(|_| random(generator, len)).collect()
}

/// A generator whose seed is printed: `PEERSUM_TEST_SEED` repeats a run.
pub(crate) fn seeded() -> fastrand::Rng {
    let seed = std::env::var("PEERSUM_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("PEERSUM_TEST_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// The element whose bits are the low bits of `word`.
pub(crate) fn from_bits<T: Element>(word: u32) -> T {
    let bytes = word.to_le_bytes();
    // SAFETY: an element is 2 or 4 bytes of any pattern.
    unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
}

pub(crate) fn bits<T: Element>(elements: &[T]) -> Vec<u32> {
    elements
        .iter()
        .map(|element| {
            let mut bytes = [0; 4];
            // SAFETY: an element is at most 4 bytes.
            unsafe { bytes.as_mut_ptr().cast::<T>().write_unaligned(*element) };
            u32::from_le_bytes(bytes)
        })
        .collect()
}
