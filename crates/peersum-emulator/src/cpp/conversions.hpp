// conversions.hpp - the arithmetic of the kernels' PTX instructions in integer and float32
// operations.
//
// Hardware half-precision support is not relied on: its NaN differs from a GPU's. float32 addition
// is the host's, which rounds to nearest even and keeps subnormals unless the program asked
// otherwise; only its NaN must be made canonical.
#pragma once

#include "abi.h"

static_assert(__FLT_EVAL_METHOD__ == 0, "float32 sums must be rounded to float32");

namespace emulator {

constexpr peersum_u32 F32_INFINITY = 0x7F800000u;
constexpr peersum_u32 F32_CANONICAL_NAN = 0x7FFFFFFFu;
constexpr peersum_u32 HALF_CANONICAL_NAN = 0x7FFFu;

static inline float from_bits(peersum_u32 bits) {
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

static inline peersum_u32 to_bits(float value) {
    peersum_u32 bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline bool is_nan(peersum_u32 bits) { return (bits & 0x7FFFFFFFu) > F32_INFINITY; }

static inline float canonical(float value) {
    return is_nan(to_bits(value)) ? from_bits(F32_CANONICAL_NAN) : value;
}

// Each is correctly rounded, as IEEE 754 demands of these operations.
static inline float add(float a, float b) { return canonical(a + b); }
static inline float mul(float a, float b) { return canonical(a * b); }
static inline float fma(float a, float b, float c) { return canonical(__builtin_fmaf(a, b, c)); }
static inline float div(float a, float b) { return canonical(a / b); }
static inline float sqrt(float value) { return canonical(__builtin_sqrtf(value)); }

// Exact. A NaN keeps its payload.
static inline float f32_from_f16(peersum_u32 half) {
    const peersum_u32 sign = (half & 0x8000u) << 16;
    const peersum_u32 exponent = half >> 10 & 0x1Fu;
    const peersum_u32 mantissa = half & 0x3FFu;
    if (exponent == 0) {
        // A multiple of 2^-24, which float32 holds as a normal number.
        return from_bits(sign | to_bits(static_cast<float>(mantissa) * 0x1p-24f));
    }
    const peersum_u32 rebiased = exponent == 0x1F ? 0xFFu : exponent + (127 - 15);
    return from_bits(sign | rebiased << 23 | mantissa << 13);
}

static inline peersum_u32 f16_from_f32(float value) {
    const peersum_u32 bits = to_bits(value);
    const peersum_u32 sign = bits >> 16 & 0x8000u;
    const peersum_u32 magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > F32_INFINITY) return HALF_CANONICAL_NAN;
    // From 65520 on, halfway between the largest finite f16 and 65536, all rounds to infinity.
    if (magnitude >= 0x477FF000u) return sign | 0x7C00u;
    if (magnitude < 0x38800000u) {
        // Below 2^-14 an f16 is a multiple of 2^-24, the distance of float32 values in [0.5, 1):
        // the addition rounds.
        return sign | (to_bits(from_bits(magnitude) + 0.5f) - to_bits(0.5f));
    }
    const peersum_u32 even = magnitude >> 13 & 1;
    return sign | (magnitude - (peersum_u32{127 - 15} << 23) + 0xFFFu + even) >> 13;
}

static inline peersum_u32 bf16_from_f32(float value) {
    const peersum_u32 bits = to_bits(value);
    if (is_nan(bits)) return HALF_CANONICAL_NAN;
    return (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16;
}

}  // namespace emulator
