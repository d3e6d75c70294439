//! The emulated arithmetic against the reference, exhaustively where that is possible.

use half::{bf16, f16};
use peersum::reference::ReferenceElement;

unsafe extern "C" {
    fn peersum_emulator_f32_from_f16(half: u32) -> u32;
    fn peersum_emulator_f16_from_f32(bits: u32) -> u32;
    fn peersum_emulator_bf16_from_f32(bits: u32) -> u32;
    fn peersum_emulator_add_f32(a: u32, b: u32) -> u32;
}

fn assert_rounds_as_reference(bits: u32) {
    let value = f32::from_bits(bits);
    // SAFETY: pure functions of integers.
    let (half, brain) = unsafe {
        (
            peersum_emulator_f16_from_f32(bits),
            peersum_emulator_bf16_from_f32(bits),
        )
    };
    assert_eq!(
        half,
        u32::from(<f16 as ReferenceElement>::round(value).raw()),
        "f16 of {bits:#010x}"
    );
    assert_eq!(
        brain,
        u32::from(<bf16 as ReferenceElement>::round(value).raw()),
        "bf16 of {bits:#010x}"
    );
}

#[test]
fn every_f16_decodes_as_the_reference_does() {
    for bits in 0..=u16::MAX {
        let expected = f16::from_bits(bits).widen();
        // SAFETY: a pure function of an integer.
        let decoded = unsafe { peersum_emulator_f32_from_f16(u32::from(bits)) };
        if expected.is_nan() {
            assert!(f32::from_bits(decoded).is_nan(), "{bits:#06x}");
        } else {
            assert_eq!(decoded, expected.to_bits(), "{bits:#06x}");
        }
    }
}

#[test]
fn rounding_is_the_references_at_every_representable_value_every_halfway_point_and_beside_them() {
    let halves = (0..=u16::MAX).map(|bits| f16::from_bits(bits).widen().to_bits());
    // The bits of float32 between a finite f16 and the next one up: halfway is their mean, exact in
    // float32.
    let f16_halfway = (0..0x7C00_u16).flat_map(|bits| {
        let (low, high) = (
            f16::from_bits(bits).widen(),
            if bits == 0x7BFF {
                65536.0
            } else {
                f16::from_bits(bits + 1).widen()
            },
        );
        let middle = f32::midpoint(low, high).to_bits();
        [middle, middle | 0x8000_0000]
    });
    let bf16_grid =
        (0..=u16::MAX).flat_map(|high| [u32::from(high) << 16, u32::from(high) << 16 | 0x8000]);
    for bits in halves.chain(f16_halfway).chain(bf16_grid) {
        for neighbour in [bits.wrapping_sub(1), bits, bits.wrapping_add(1)] {
            assert_rounds_as_reference(neighbour);
        }
    }
}

#[test]
fn rounding_is_the_references_on_random_floats() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..2_000_000 {
        assert_rounds_as_reference(random.u32(..));
    }
}

#[test]
fn sums_are_the_hosts_with_canonical_nan() {
    let special = [
        0,
        0x8000_0000,
        1,
        0x8000_0001,
        0x007F_FFFF,
        0x0080_0000,
        0x3F80_0000,
        0xBF80_0000,
        0x7F7F_FFFF,
        0xFF7F_FFFF,
        0x7F80_0000,
        0xFF80_0000,
        0x7F80_0001,
        0x7FC0_0000,
        0xFFC0_0001,
        0x7FFF_FFFF,
        0xFFFF_FFFF,
    ];
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let pairs = special
        .iter()
        .flat_map(|&a| special.map(|b| (a, b)))
        .chain((0..1_000_000).map(|_| (random.u32(..), random.u32(..))));
    for (a, b) in pairs {
        let expected =
            <f32 as ReferenceElement>::round(f32::from_bits(a) + f32::from_bits(b)).to_bits();
        // SAFETY: a pure function of integers.
        let sum = unsafe { peersum_emulator_add_f32(a, b) };
        assert_eq!(sum, expected, "{a:#010x} + {b:#010x}");
    }
}
