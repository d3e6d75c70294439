//! FP8 with a scale for each row, where a slightly wrong quotient changes the result: next to the
//! midpoints between adjacent FP8 values.

use peersum::reference;
use peersum::{Fp8PerToken, RmsNorm};
use peersum_emulator::EmulatorBuffer;

use crate::stage::{Comm, assert_bits, on_ranks, settings};

/// Elements of a row.
const HIDDEN: usize = 2048;

/// The finite value with this code.
fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (code >> 3, f32::from(code & 7));
    match exponent {
        0 => mantissa / 512.0,
        _ => (8.0 + mantissa) * f32::from(exponent).exp2() / 1024.0,
    }
}

/// A row whose largest magnitude is `largest`: the products of its scale with the midpoints between
/// adjacent FP8 values, and their neighbours, of either sign.
fn row(largest: f32) -> Vec<f32> {
    let scale = (largest / 448.0).max(1.0 / (512.0 * 448.0));
    let mut row = vec![largest];
    for code in 0..0x7E {
        let middle = (e4m3(code) + e4m3(code + 1)) / 2.0;
        let product = (f64::from(middle) * f64::from(scale)) as f32;
        for ulps in -2..=2 {
            let near = f32::from_bits(product.to_bits().wrapping_add_signed(ulps));
            row.extend([near, -near]);
        }
    }
    row.resize(HIDDEN, -0.0);
    let is_in_row = |value: &f32| value.abs() <= largest || largest.is_nan();
    row.into_iter()
        .map(|value| if is_in_row(&value) { value } else { largest })
        .collect()
}

/// Makes a call whose normalised row is exactly `row`, and compares its FP8.
fn check(comm: &mut Comm, row: &[f32]) {
    // The sum of two ranks is 1 everywhere, and so is its root mean square.
    let mut buffer = EmulatorBuffer::from_slice(&[0.5_f32; HIDDEN]);
    let norm = RmsNorm {
        weight: &EmulatorBuffer::from_slice(row),
        epsilon: 1e-30,
        // Adding it changes no weight, not even -0.
        weight_offset: -0.0,
    };
    let mut values = EmulatorBuffer::from_slice(&[0x55_u8; HIDDEN]);
    let mut scales = EmulatorBuffer::from_slice(&[7.0_f32]);
    let fp8 = Fp8PerToken {
        values: &mut values,
        scales: &mut scales,
    };
    comm.all_reduce_rms_norm_fp8(&mut buffer, &norm, fp8)
        .unwrap();
    comm.synchronize().unwrap();
    let largest = row[0];
    let (expected, scale) = reference::fp8_per_token(&buffer.to_vec(), HIDDEN);
    if !largest.is_nan() {
        assert_bits(&buffer.to_vec(), row, &("the row", largest));
    }
    assert_bits(&scales.to_vec(), &scale, &("the scale", largest));
    assert_eq!(values.to_vec(), expected, "{largest}");
}

#[test]
fn a_quotient_next_to_any_midpoint_between_fp8_values_rounds_as_the_reference_does() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    on_ranks(2, settings, |comm| {
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..40 {
            // Any exponent, and any mantissa.
            let largest = f32::from_bits(random.u32(1..f32::INFINITY.to_bits()));
            check(comm, &row(largest));
        }
        for largest in [
            0.0,
            f32::MIN_POSITIVE,
            1e-3,
            1.0,
            448.0,
            f32::MAX,
            f32::INFINITY,
            f32::NAN,
        ] {
            check(comm, &row(largest));
        }
    });
}
