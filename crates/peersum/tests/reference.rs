//! Everything else is compared with the reference, so its rounding is proven here against exact
//! arithmetic.

use half::{bf16, f16};
use peersum::reference::{
    NormNumbers, ReferenceElement, add_residual, all_reduce, fp8_per_token, fp8_static, rms_norm,
};

/// A 16-bit format as its ordered non-negative finite values, exact in f64, and the value of the
/// next step above the largest: a number that rounds to it is infinity.
struct Format {
    values: Vec<f64>,
    infinity: u16,
}

impl Format {
    /// `fraction_bits` below an implied one, exponent bias `bias`, `infinity` the bits of +inf.
    fn new(fraction_bits: u32, bias: i32, infinity: u16) -> Self {
        let values = (0..=infinity)
            .map(|bits| {
                let exponent = i32::from(bits >> fraction_bits);
                let fraction = f64::from(bits & ((1 << fraction_bits) - 1));
                let one = f64::from(1_u32 << fraction_bits);
                if exponent == 0 {
                    fraction / one * 2.0_f64.powi(1 - bias)
                } else {
                    (1.0 + fraction / one) * 2.0_f64.powi(exponent - bias)
                }
            })
            .collect();
        Self { values, infinity }
    }

    fn f16() -> Self {
        Self::new(10, 15, 0x7C00)
    }

    fn bf16() -> Self {
        Self::new(7, 127, 0x7F80)
    }

    /// Its last value, 480, is the one above the largest.
    fn e4m3() -> Self {
        Self::new(3, 7, 0x7F)
    }

    /// Round to nearest, ties to even, by comparing with the exact midpoint of the two neighbours.
    fn round(&self, value: f32) -> u16 {
        if value.is_nan() {
            return 0x7FFF;
        }
        let sign = if value.is_sign_negative() { 0x8000 } else { 0 };
        let exact = f64::from(value.abs());
        let above = self.values.partition_point(|&candidate| candidate < exact);
        if above >= usize::from(self.infinity) && exact >= self.values[usize::from(self.infinity)] {
            return sign | self.infinity;
        }
        if self.values[above] == exact {
            return sign | above as u16;
        }
        let below = above - 1;
        let midpoint = (self.values[below] + self.values[above]) / 2.0;
        let nearest = if exact < midpoint {
            below
        } else if exact > midpoint {
            above
        } else {
            below + below % 2
        };
        sign | nearest as u16
    }

    /// Every value, every midpoint, and what lies `reach` float32 steps around each.
    fn critical_inputs(&self, reach: i64) -> impl Iterator<Item = f32> + '_ {
        let midpoints = self
            .values
            .windows(2)
            .map(|pair| ((pair[0] + pair[1]) / 2.0) as f32);
        self.values
            .iter()
            .map(|&value| value as f32)
            .chain(midpoints)
            .flat_map(move |value| {
                (-reach..=reach).filter_map(move |step| {
                    let bits = i64::from(value.to_bits()) + step;
                    u32::try_from(bits)
                        .ok()
                        .filter(|bits| bits >> 31 == 0)
                        .map(f32::from_bits)
                })
            })
            .flat_map(|value| [value, -value])
    }
}

fn assert_rounding_is_exact<T: ReferenceElement<Bits = u16>>(
    format: &Format,
    inputs: impl Iterator<Item = f32>,
) -> u64 {
    let mut checked = 0;
    for input in inputs {
        let rounded = T::round(input).raw();
        let exact = format.round(input);
        assert_eq!(
            rounded,
            exact,
            "{input:e} ({:#010x}) rounds to {rounded:#06x}, exactly to {exact:#06x}",
            input.to_bits()
        );
        checked += 1;
    }
    checked
}

fn random_floats(count: usize, seed: u64) -> impl Iterator<Item = f32> {
    println!("seed {seed:#x}");
    let mut random = fastrand::Rng::with_seed(seed);
    (0..count).map(move |_| f32::from_bits(random.u32(..)))
}

const SPECIALS: [f32; 8] = [
    0.0,
    -0.0,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::MAX,
    f32::MIN,
    f32::NAN,
    f32::from_bits(0xFFFF_FFFF),
];

#[test]
fn f16_rounds_to_nearest_even_at_every_value_and_every_tie() {
    let format = Format::f16();
    let checked =
        assert_rounding_is_exact::<f16>(&format, format.critical_inputs(3).chain(SPECIALS));
    assert!(checked > 800_000, "only {checked} inputs were checked");
}

#[test]
fn bf16_rounds_to_nearest_even_at_every_value_and_every_tie() {
    let format = Format::bf16();
    let checked =
        assert_rounding_is_exact::<bf16>(&format, format.critical_inputs(3).chain(SPECIALS));
    assert!(checked > 800_000, "only {checked} inputs were checked");
}

#[test]
fn random_floats_round_exactly() {
    let seed = fastrand::u64(..);
    assert_rounding_is_exact::<f16>(&Format::f16(), random_floats(500_000, seed));
    assert_rounding_is_exact::<bf16>(&Format::bf16(), random_floats(500_000, seed));
}

#[test]
fn every_16_bit_element_widens_to_its_exact_value_and_back() {
    fn check<T: ReferenceElement<Bits = u16>>(format: &Format) {
        for bits in 0..=u16::MAX {
            let widened = T::from_raw(bits).widen();
            let magnitude = bits & 0x7FFF;
            if magnitude > format.infinity {
                assert!(widened.is_nan(), "{bits:#06x} is a NaN");
                assert_eq!(T::round(widened).raw(), 0x7FFF);
                continue;
            }
            if magnitude == format.infinity {
                assert!(widened.is_infinite());
            } else {
                assert_eq!(
                    f64::from(widened.abs()),
                    format.values[usize::from(magnitude)]
                );
            }
            assert_eq!(widened.is_sign_negative(), bits >> 15 == 1);
            assert_eq!(T::round(widened).raw(), bits);
        }
    }
    check::<f16>(&Format::f16());
    check::<bf16>(&Format::bf16());
}

fn reduced<T: ReferenceElement>(ranks: &[T::Bits]) -> T::Bits {
    let elements: Vec<[T; 1]> = ranks.iter().map(|&bits| [T::from_raw(bits)]).collect();
    let inputs: Vec<&[T]> = elements.iter().map(<[T; 1]>::as_slice).collect();
    all_reduce(&inputs)[0].raw()
}

#[test]
fn one_rank_gets_its_own_bits_back() {
    assert_eq!(reduced::<bf16>(&[0xFFFF]), 0xFFFF);
    assert_eq!(reduced::<f16>(&[0x7C01]), 0x7C01);
    assert_eq!(reduced::<f32>(&[0xFFC0_1234]), 0xFFC0_1234);
}

#[test]
fn zeros_keep_the_sign_that_the_sum_has() {
    assert_eq!(reduced::<f32>(&[0x8000_0000; 3]), 0x8000_0000);
    assert_eq!(reduced::<f32>(&[0x8000_0000, 0]), 0);
    assert_eq!(reduced::<f16>(&[0x8000; 8]), 0x8000);
    assert_eq!(reduced::<bf16>(&[0x8000, 0x8000, 0x0000]), 0x0000);
    // x - x is +0 when rounding to nearest.
    assert_eq!(reduced::<bf16>(&[0x3F80, 0xBF80]), 0);
}

#[test]
fn every_nan_given_or_produced_is_canonical() {
    assert_eq!(reduced::<f16>(&[0xFFFF, 0x0000]), 0x7FFF);
    assert_eq!(reduced::<bf16>(&[0x0000, 0x7F81]), 0x7FFF);
    assert_eq!(reduced::<f32>(&[0xFFFF_FFFF, 0x3F80_0000]), 0x7FFF_FFFF);
    let (infinity, minus_infinity) = (0x7F80_0000, 0xFF80_0000);
    assert_eq!(reduced::<f32>(&[infinity, minus_infinity]), 0x7FFF_FFFF);
    assert_eq!(reduced::<f16>(&[0x7C00, 0xFC00]), 0x7FFF);
    assert_eq!(reduced::<bf16>(&[0x7F80, 0x0000, 0xFF80]), 0x7FFF);
    assert_eq!(reduced::<f32>(&[infinity, infinity]), infinity);
}

#[test]
fn subnormals_are_kept() {
    assert_eq!(reduced::<f16>(&[0x0001, 0x0001]), 0x0002);
    assert_eq!(reduced::<bf16>(&[0x0001, 0x0001, 0x8001]), 0x0001);
    assert_eq!(reduced::<f32>(&[0x0000_0001, 0x0000_0001]), 0x0000_0002);
    // The smallest normal number less one step is the largest subnormal.
    assert_eq!(reduced::<f16>(&[0x0400, 0x8001]), 0x03FF);
}

#[test]
fn the_sum_is_taken_in_rank_order_and_rounded_once() {
    // 2^24 absorbs a single 1, so the order decides.
    let (big, one, minus_big) = (16_777_216.0_f32, 1.0_f32, -16_777_216.0_f32);
    assert_eq!(all_reduce(&[&[big][..], &[one], &[minus_big]]), [0.0]);
    assert_eq!(all_reduce(&[&[big][..], &[minus_big], &[one]]), [1.0]);
    // 2048 + 1 + 1: rounding each step to f16 would give 2048, a single one gives 2050.
    let f16_inputs = [2048.0, 1.0, 1.0].map(|value| [f16::from_f32_const(value)]);
    let inputs: Vec<&[f16]> = f16_inputs.iter().map(<[f16; 1]>::as_slice).collect();
    assert_eq!(
        all_reduce(&inputs)[0].raw(),
        f16::from_f32_const(2050.0).raw()
    );
    // 65504 + 16 is the tie above the largest finite value: even is infinity.
    assert_eq!(reduced::<f16>(&[0x7BFF, 0x4C00]), 0x7C00);
    assert_eq!(reduced::<f16>(&[0x7BFF, 0x4BFF]), 0x7BFF);
}

#[test]
fn any_length_is_reduced_element_by_element() {
    let seed = fastrand::u64(..);
    println!("seed {seed:#x}");
    let mut random = fastrand::Rng::with_seed(seed);
    let format = Format::bf16();
    for length in [0, 1, 7, 2047, 2048, 2049, 10_001] {
        let ranks: Vec<Vec<bf16>> = (0..5)
            .map(|_| {
                (0..length)
                    .map(|_| bf16::from_bits(random.u16(..)))
                    .collect()
            })
            .collect();
        let inputs: Vec<&[bf16]> = ranks.iter().map(Vec::as_slice).collect();
        let output = all_reduce(&inputs);
        assert_eq!(output.len(), length);
        for (index, element) in output.into_iter().enumerate() {
            let bits: Vec<u16> = ranks.iter().map(|rank| rank[index].raw()).collect();
            let sum = ranks[1..]
                .iter()
                .fold(ranks[0][index].widen(), |sum, rank| {
                    sum + rank[index].widen()
                });
            assert_eq!(
                element.raw(),
                format.round(sum),
                "element {index} of {length}: {bits:04x?}"
            );
        }
    }
}

#[test]
#[should_panic(expected = "rank 1 has another element count")]
fn inputs_of_different_lengths_are_refused() {
    all_reduce(&[&[1.0_f32][..], &[1.0, 2.0]]);
}

#[test]
fn fp8_rounds_to_nearest_even_at_every_value_and_every_tie_and_saturates() {
    let format = Format::e4m3();
    let mut checked = 0;
    let critical = format.critical_inputs(1000).chain(SPECIALS);
    for input in critical.chain(random_floats(100_000, fastrand::u64(..))) {
        let exact = match format.round(input) {
            0x7FFF => 0x7F,
            rounded => (rounded >> 8) as u8 & 0x80 | (rounded & 0x7F).min(0x7E) as u8,
        };
        assert_eq!(fp8_static(&[input], 1.0), [exact], "{input:e}");
        checked += 1;
    }
    assert!(checked > 800_000, "only {checked} inputs were checked");
}

#[test]
fn the_scale_of_a_row_makes_its_largest_magnitude_the_largest_fp8_value() {
    let rows = [1.0, -896.0, 0.0, 448.0_f32, 0.0, -0.0, 0.0, 0.0];
    let (values, scales) = fp8_per_token(&rows, 4);
    assert_eq!(scales, [2.0, 1.0 / (512.0 * 448.0)]);
    assert_eq!(values, [0x30, 0xFE, 0, 0x76, 0, 0x80, 0, 0]);
    let (values, scales) = fp8_per_token(&[f32::INFINITY, 1.0, f32::NAN, 1.0], 2);
    assert_eq!(scales[0], f32::INFINITY);
    assert!(scales[1].is_nan());
    assert_eq!(values, [0x7F, 0, 0x7F, 0x7F]);
    assert_eq!(fp8_per_token::<f32>(&[], 0), (Vec::new(), Vec::new()));
}

const fn numbers(epsilon: f32, weight_offset: f32) -> NormNumbers {
    NormNumbers {
        epsilon,
        weight_offset,
    }
}

#[test]
fn rows_are_divided_by_their_root_mean_square_and_multiplied_by_weight_and_offset() {
    fn check<T: ReferenceElement>(values: &[f32], numbers: NormNumbers, expected: &[f32]) {
        let of = |values: &[f32]| -> Vec<T> { values.iter().map(|n| T::round(*n)).collect() };
        let found = rms_norm(&of(values), &of(&[1.0, -3.0, 0.5]), numbers);
        let bits = |values: &[T]| values.iter().map(|n| n.raw()).collect::<Vec<_>>();
        assert_eq!(bits(&found), bits(&of(expected)), "{values:?}, {numbers:?}");
    }
    fn check_all<T: ReferenceElement>() {
        // The mean of the squares is 25 in both rows; with epsilon 64, whose root is 8.
        let rows = [1.0, 5.0, -7.0, 5.0, 5.0, -5.0];
        let expected = [0.25, -1.25, -1.3125, 1.25, -1.25, -0.9375];
        check::<T>(&rows, numbers(39.0, 1.0), &expected);
        check::<T>(&[2.0, -2.0, 2.0], numbers(0.0, 0.0), &[1.0, 3.0, 0.5]);
        // Zeros keep the sign of the product; without an epsilon they are divided by zero.
        check::<T>(&[0.0, 0.0, -0.0], numbers(1e-6, 0.0), &[0.0, -0.0, -0.0]);
        check::<T>(&[0.0; 3], numbers(0.0, 1.0), &[f32::NAN; 3]);
    }
    check_all::<f16>();
    check_all::<bf16>();
    check_all::<f32>();
    assert_eq!(rms_norm::<f32>(&[], &[1.0], numbers(0.0, 0.0)), [0.0; 0]);
}

#[test]
fn squares_are_added_in_adjacent_pairs_level_by_level() {
    let row = [4096.0_f32, 1.0, 1.0, 1.0, 1.0];
    let found = rms_norm(&row, &[1.0; 5], numbers(0.0, 0.0));
    // (2^24 + 1) + (1 + 1) is 2^24 + 2, and 1 more a tie whose even side is above. One after the
    // other, each 1 would be lost.
    let scale = |sum: f32| 1.0 / (sum / 5.0).sqrt();
    assert_eq!(found[1], scale(16_777_220.0));
    assert_ne!(found[1], scale(16_777_216.0));
}

/// Compares with f64, whose own error is far below the bound. `unit` is half of the distance
/// between two elements near 1, 0 if float32 needs no rounding, and `least` that near 0.
fn assert_rms_norm_is_near<T: ReferenceElement>(random: &mut fastrand::Rng, unit: f64, least: f64) {
    let mut drawn = |count| -> Vec<T> {
        // Never 0, which is no number without an epsilon.
        let mut one = || {
            let sign = if random.bool() { 1.0 } else { -1.0 };
            sign * (random.f32() + 0.01) * 2.0_f32.powi(random.i32(-4..4))
        };
        (0..count).map(|_| T::round(one())).collect()
    };
    for hidden in [1_usize, 3, 7, 8, 100, 1000, 2880] {
        for epsilon in [0.0, 1e-6, 0.5] {
            for weight_offset in [0.0, 1.0, -0.3] {
                let (values, weight) = (drawn(3 * hidden), drawn(hidden));
                let found = rms_norm(&values, &weight, numbers(epsilon, weight_offset));
                assert_eq!(found.len(), values.len());
                // Of the square and each level, halved by the root, and of seven operations.
                let roundings = f64::from(hidden.next_power_of_two().ilog2()) / 2.0 + 8.0;
                let bound = roundings * 2.0_f64.powi(-24) + unit;
                let exact = |n: &T| f64::from(n.widen());
                let roots = values.chunks(hidden).map(|row| {
                    let squares: f64 = row.iter().map(|n| exact(n) * exact(n)).sum();
                    (squares / hidden as f64 + f64::from(epsilon)).sqrt()
                });
                let roots: Vec<f64> = roots.collect();
                for (index, found) in found.iter().enumerate() {
                    let (row, column) = (index / hidden, index % hidden);
                    let factor = f64::from(weight_offset) + exact(&weight[column]);
                    let expected = exact(&values[index]) / roots[row] * factor;
                    let wrong = (exact(found) - expected).abs();
                    assert!(
                        wrong <= expected.abs() * bound + least,
                        "{} of hidden {hidden}, epsilon {epsilon}, offset {weight_offset}, \
                         element {index}: {:e}, not {expected:e}",
                        std::any::type_name::<T>(),
                        found.widen()
                    );
                }
            }
        }
    }
}

#[test]
fn random_rows_of_any_length_are_normalised_as_f64_does_it_but_for_rounding() {
    let seed = fastrand::u64(..);
    println!("seed {seed:#x}");
    let mut random = fastrand::Rng::with_seed(seed);
    let power = |exponent| 2.0_f64.powi(exponent);
    assert_rms_norm_is_near::<f16>(&mut random, power(-11), power(-25));
    assert_rms_norm_is_near::<bf16>(&mut random, power(-8), 0.0);
    assert_rms_norm_is_near::<f32>(&mut random, 0.0, 0.0);
}

#[test]
fn a_residual_is_added_in_float32_and_the_sum_rounded_once() {
    assert_eq!(add_residual(&[1.5_f32, -2.0], &[0.25, 2.0]), [1.75, 0.0]);
    let seed = fastrand::u64(..);
    println!("seed {seed:#x}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut drawn = || -> Vec<bf16> {
        let bits = (0..100_000).map(|_| random.u16(..));
        bits.map(bf16::from_bits).collect()
    };
    let (sum, residual, format) = (drawn(), drawn(), Format::bf16());
    let found = add_residual(&sum, &residual);
    assert_eq!(found.len(), sum.len());
    for ((found, one), other) in found.iter().zip(&sum).zip(&residual) {
        let exact = format.round(one.widen() + other.widen());
        assert_eq!(found.raw(), exact, "{one:?} + {other:?}");
    }
}

#[test]
#[should_panic(expected = "4 elements are not whole rows of 3")]
fn a_part_of_a_row_is_refused() {
    rms_norm(&[1.0_f32; 4], &[1.0; 3], numbers(0.0, 0.0));
}
