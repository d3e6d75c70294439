//! The numeric contract as plain Rust: the bits that every call of this crate must return.
//!
//! `out = round(((x[0] + x[1]) + x[2]) + ... + x[W-1])`: float32 accumulation in rank order and one
//! rounding to nearest, ties to even. Signed zeros, infinities and subnormals come out as that
//! expression says. A NaN, given or produced (`inf - inf`), is the canonical NaN of the hardware:
//! `0x7FFF` for f16 and bf16, `0x7FFF_FFFF` for f32.
//!
//! A group of one rank does not add: its output is its input, bit for bit, NaN payloads included.

use half::{bf16, f16};

/// Elements summed at a time: a float32 accumulator of this length stays in the first-level cache.
const CHUNK: usize = 2048;

mod sealed {
    /// Keeps [`super::ReferenceElement`] to the types whose rounding is proven here.
    pub trait Sealed {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
    impl Sealed for f32 {}
}

/// An element type of the numeric contract: [`struct@f16`], [`bf16`] or `f32`. Sealed.
pub trait ReferenceElement: sealed::Sealed + Copy + Send + Sync + 'static {
    /// The unsigned integer that holds the element's bits; results are compared as such.
    type Bits: Copy + Eq + std::fmt::Debug + std::fmt::LowerHex + Send + Sync + 'static;

    /// The NaN that every NaN result has.
    const CANONICAL_NAN: Self;

    /// The element with these bits.
    fn from_raw(bits: Self::Bits) -> Self;

    /// The element's bits.
    fn raw(self) -> Self::Bits;

    /// The element's exact value.
    fn widen(self) -> f32;

    /// The element nearest to `value`, ties to even; [`Self::CANONICAL_NAN`] for any NaN.
    fn round(value: f32) -> Self;
}

impl ReferenceElement for f32 {
    type Bits = u32;
    const CANONICAL_NAN: f32 = f32::from_bits(0x7FFF_FFFF);

    #[inline]
    fn from_raw(bits: u32) -> f32 {
        f32::from_bits(bits)
    }

    #[inline]
    fn raw(self) -> u32 {
        self.to_bits()
    }

    #[inline]
    fn widen(self) -> f32 {
        self
    }

    #[inline]
    fn round(value: f32) -> f32 {
        // x86 keeps payloads and sets the sign of a produced NaN; GPUs return this one.
        if value.is_nan() {
            Self::CANONICAL_NAN
        } else {
            value
        }
    }
}

impl ReferenceElement for bf16 {
    type Bits = u16;
    const CANONICAL_NAN: bf16 = bf16::from_bits(0x7FFF);

    #[inline]
    fn from_raw(bits: u16) -> bf16 {
        bf16::from_bits(bits)
    }

    #[inline]
    fn raw(self) -> u16 {
        self.to_bits()
    }

    #[inline]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline]
    fn round(value: f32) -> bf16 {
        bf16::from_bits(f32_to_bf16_bits(value))
    }
}

impl ReferenceElement for f16 {
    type Bits = u16;
    const CANONICAL_NAN: f16 = f16::from_bits(0x7FFF);

    #[inline]
    fn from_raw(bits: u16) -> f16 {
        f16::from_bits(bits)
    }

    #[inline]
    fn raw(self) -> u16 {
        self.to_bits()
    }

    #[inline]
    fn widen(self) -> f32 {
        f16_bits_to_f32(self.to_bits())
    }

    #[inline]
    fn round(value: f32) -> f16 {
        f16::from_bits(f32_to_f16_bits(value))
    }
}

/// The all-reduce of `inputs`, one slice a rank in rank order, as every rank must receive it.
///
/// A single input is copied unchanged, since a group of one rank computes nothing. No inputs give
/// an empty result.
///
/// # Panics
///
/// If the inputs differ in length: there is no such call to be a reference for.
pub fn all_reduce<T: ReferenceElement>(inputs: &[&[T]]) -> Vec<T> {
    let Some((first, rest)) = inputs.split_first() else {
        return Vec::new();
    };
    for (rank, input) in inputs.iter().enumerate() {
        assert_eq!(
            input.len(),
            first.len(),
            "rank {rank} has another element count than rank 0"
        );
    }
    if rest.is_empty() {
        return first.to_vec();
    }
    let mut output = Vec::with_capacity(first.len());
    let mut sums = [0.0_f32; CHUNK];
    for (index, chunk) in first.chunks(CHUNK).enumerate() {
        let start = index * CHUNK;
        let sums = &mut sums[..chunk.len()];
        for (sum, element) in sums.iter_mut().zip(chunk) {
            *sum = element.widen();
        }
        for input in rest {
            for (sum, element) in sums.iter_mut().zip(&input[start..]) {
                *sum += element.widen();
            }
        }
        output.extend(sums.iter().map(|&sum| T::round(sum)));
    }
    output
}

/// The all-gather of `inputs`, one slice a rank in rank order, as every rank must receive it.
pub fn all_gather<T: Copy>(inputs: &[&[T]]) -> Vec<T> {
    inputs.concat()
}

/// What `rank` must receive of the reduce-scatter of `inputs`, one slice a rank in rank order: its
/// chunk of [`all_reduce`].
///
/// # Panics
///
/// If the inputs differ in length, if that is no multiple of their number, or if there is no such
/// rank.
pub fn reduce_scatter<T: ReferenceElement>(inputs: &[&[T]], rank: usize) -> Vec<T> {
    let ranks = inputs.len();
    let chunk = inputs[rank].len() / ranks;
    for input in inputs {
        assert_eq!(chunk * ranks, input.len(), "not {ranks} chunks of {chunk}");
    }
    let own: Vec<&[T]> = inputs
        .iter()
        .map(|input| &input[rank * chunk..(rank + 1) * chunk])
        .collect();
    all_reduce(&own)
}

/// What every rank must hold after a broadcast from `root` of `buffers`, one slice a rank in rank
/// order.
///
/// # Panics
///
/// If there is no such rank.
pub fn broadcast<T: Copy>(buffers: &[&[T]], root: usize) -> Vec<T> {
    buffers[root].to_vec()
}

/// The numbers of an RMSNorm, beside its weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormNumbers {
    /// Added to the mean of the squares.
    pub epsilon: f32,
    /// Added to each weight.
    pub weight_offset: f32,
}

/// `round(sum + residual)` for each element, in float32: what takes the place of the residual.
///
/// # Panics
///
/// If the two differ in length.
pub fn add_residual<T: ReferenceElement>(sum: &[T], residual: &[T]) -> Vec<T> {
    assert_eq!(
        sum.len(),
        residual.len(),
        "sum and residual differ in length"
    );
    let pairs = sum.iter().zip(residual);
    pairs
        .map(|(s, r)| T::round(s.widen() + r.widen()))
        .collect()
}

/// RMSNorm of each row of `values`; a row is as long as `weight`.
///
/// For a row `r`, in float32, each operation rounded to nearest:
///
/// 1. `q[i] = r[i] * r[i]`. The sum adds adjacent pairs, level by level, in index order, padded
///    with +0 to a power of two.
/// 2. `k = 1 / sqrt(sum / hidden + epsilon)`, four operations.
/// 3. `n[i] = round((r[i] * k) * (weight_offset + weight[i]))`.
///
/// A row's result depends on that row and on the weight alone. An engine that normalises the sum
/// before it is rounded to `T`, or uses an approximate root, can differ in the last bit.
///
/// # Panics
///
/// If `values` is not whole rows.
pub fn rms_norm<T: ReferenceElement>(values: &[T], weight: &[T], numbers: NormNumbers) -> Vec<T> {
    let hidden = weight.len();
    if values.is_empty() {
        return Vec::new();
    }
    assert!(
        hidden != 0 && values.len().is_multiple_of(hidden),
        "{} elements are not whole rows of {hidden}",
        values.len()
    );
    let factors: Vec<f32> = weight
        .iter()
        .map(|weight| numbers.weight_offset + weight.widen())
        .collect();
    let normalise = |row: &[T]| {
        let mut squares: Vec<f32> = row.iter().map(|r| r.widen() * r.widen()).collect();
        squares.resize(hidden.next_power_of_two(), 0.0);
        while squares.len() > 1 {
            squares = squares.chunks(2).map(|pair| pair[0] + pair[1]).collect();
        }
        let mean = squares[0] / hidden as f32;
        let scale = 1.0 / (mean + numbers.epsilon).sqrt();
        let elements = row.iter().zip(&factors);
        elements
            .map(|(r, factor)| T::round((r.widen() * scale) * factor))
            .collect::<Vec<T>>()
    };
    values.chunks(hidden).flat_map(normalise).collect()
}

/// FP8 (E4M3) of `rows` with a given scale: `e4m3(rows[i] * inverse_scale)`, rounded to nearest
/// even and saturated at 448. NaN gives 0x7F.
pub fn fp8_static<T: ReferenceElement>(rows: &[T], inverse_scale: f32) -> Vec<u8> {
    let elements = rows.iter();
    elements
        .map(|n| f32_to_e4m3_bits(n.widen() * inverse_scale))
        .collect()
}

/// FP8 (E4M3) of rows of `hidden` elements, each with a scale of its own, and the scales:
/// `scale = max(largest magnitude / 448, 1 / (512 * 448))` and `e4m3(n / scale)`.
///
/// NaN in a row makes its scale NaN.
///
/// # Panics
///
/// If `rows` is not whole rows.
pub fn fp8_per_token<T: ReferenceElement>(rows: &[T], hidden: usize) -> (Vec<u8>, Vec<f32>) {
    /// A row of zeros has this one.
    const LEAST_SCALE: f32 = 1.0 / (512.0 * 448.0);
    let (mut values, mut scales) = (Vec::with_capacity(rows.len()), Vec::new());
    if rows.is_empty() {
        return (values, scales);
    }
    assert!(
        hidden != 0 && rows.len().is_multiple_of(hidden),
        "{} elements are not whole rows of {hidden}",
        rows.len()
    );
    for row in rows.chunks(hidden) {
        let magnitudes = row.iter().map(|n| n.widen().abs());
        // Not `f32::max`, which drops a NaN.
        let largest = magnitudes.fold(0.0, |largest: f32, n| {
            if n > largest || n.is_nan() {
                n
            } else {
                largest
            }
        });
        let scale = if largest.is_nan() {
            f32::CANONICAL_NAN
        } else {
            (largest / 448.0).max(LEAST_SCALE)
        };
        scales.push(scale);
        values.extend(row.iter().map(|n| f32_to_e4m3_bits(n.widen() / scale)));
    }
    (values, scales)
}

/// Rounds to FP8 E4M3, ties to even, subnormals kept, saturated at 448; NaN becomes `0x7F`.
#[inline]
fn f32_to_e4m3_bits(value: f32) -> u8 {
    /// 2^-6, the smallest normal E4M3 value.
    const SMALLEST_NORMAL: u32 = 0x3C80_0000;
    /// The difference of the exponent biases (127 and 7), in place.
    const REBIAS: u32 = (127 - 7) << 23;
    /// 448.
    const LARGEST: u32 = 0x7E;
    /// From 2^14 to 2^15 a float32 has steps of 2^-9, the step of E4M3's subnormals: the addition
    /// rounds.
    const SUBNORMAL_STEPS: f32 = 16384.0;

    let sign = (value.to_bits() >> 24) as u8 & 0x80;
    let magnitude = value.to_bits() & 0x7FFF_FFFF;
    let rounded = if magnitude < SMALLEST_NORMAL {
        (f32::from_bits(magnitude) + SUBNORMAL_STEPS).to_bits() - SUBNORMAL_STEPS.to_bits()
    } else {
        (magnitude - REBIAS + 0x7_FFFF + ((magnitude >> 20) & 1)) >> 20
    };
    if value.is_nan() {
        0x7F
    } else {
        sign | rounded.min(LARGEST) as u8
    }
}

/// Rounds to bfloat16, ties to even; NaN becomes `0x7FFF`.
#[inline]
fn f32_to_bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    // The kept half grows by one when the dropped half is above the tie, or at it and the kept half
    // is odd. The carry may run into the exponent: that is the next binade, and above the largest
    // finite value infinity, as it should be.
    let rounded = (bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16) as u16;
    if value.is_nan() { 0x7FFF } else { rounded }
}

/// Rounds to binary16, ties to even, subnormals kept; NaN becomes `0x7FFF`.
#[inline]
fn f32_to_f16_bits(value: f32) -> u16 {
    /// 2^-14, the smallest normal binary16 value.
    const SMALLEST_NORMAL: u32 = 0x3880_0000;
    /// 2^16, from which on everything is infinity; the values just below round to it by their
    /// carry.
    const OVERFLOW: u32 = 0x4780_0000;
    /// The difference of the exponent biases (127 and 15), in place.
    const REBIAS: u32 = (127 - 15) << 23;

    let bits = value.to_bits();
    let sign = ((bits >> 16) & 0x8000) as u16;
    let magnitude = bits & 0x7FFF_FFFF;
    let normal = magnitude
        .wrapping_sub(REBIAS)
        .wrapping_add(0xFFF + ((magnitude >> 13) & 1))
        >> 13;
    // Between 0.5 and 1 a float32 has steps of 2^-24, the step of binary16's subnormals: the
    // addition rounds.
    let subnormal = (f32::from_bits(magnitude) + 0.5)
        .to_bits()
        .wrapping_sub(0.5_f32.to_bits());
    let finite = if magnitude < SMALLEST_NORMAL {
        subnormal
    } else {
        normal
    };
    let finite = if magnitude >= OVERFLOW {
        0x7C00
    } else {
        finite
    };
    if value.is_nan() {
        0x7FFF
    } else {
        sign | finite as u16
    }
}

/// The exact value of a binary16 number.
#[inline]
fn f16_bits_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7FFF) << 13;
    let exponent = magnitude & 0x0F80_0000;
    let widened = if exponent == 0x0F80_0000 {
        // Infinity and NaN: the largest exponent of either format.
        magnitude + ((255 - 31) << 23)
    } else if exponent == 0 {
        // 2^-14 with the fraction of the subnormal, less 2^-14: exact, and no float32 subnormal is
        // touched on the way.
        (f32::from_bits(magnitude + (113 << 23)) - f32::from_bits(113 << 23)).to_bits()
    } else {
        magnitude + ((127 - 15) << 23)
    };
    f32::from_bits(sign | widened)
}
