// fp8.cuh - FP8 (E4M3) values of normalised rows, with one given scale or one scale a row.
//
// Before sm_89 there is no instruction for it, so integer code does the same. The bits are those of
// the reference.
#pragma once

#include "rms.cuh"

namespace {

constexpr peersum_u32 F32_MAGNITUDE = 0x7FFFFFFFu;
constexpr peersum_u32 F32_INFINITY = 0x7F800000u;
constexpr float FP8_LARGEST = 448.0f;
// The least scale, which a row of zeros has too.
constexpr float FP8_LEAST_SCALE = 1.0f / (512.0f * 448.0f);

// Two values, each rounded to nearest even, subnormals included, and saturated at 448, infinity
// too. NaN gives 0x7F.
#ifdef PEERSUM_HAS_E4M3
PEERSUM_DEVICE peersum_u32 e4m3x2(float high, float low) {
    return cvt_rn_satfinite_e4m3x2_f32(high, low);
}
#else
PEERSUM_DEVICE peersum_u32 e4m3(float value) {
    constexpr peersum_u32 SMALLEST_NORMAL = 0x3C800000u;  // 2^-6
    constexpr peersum_u32 REBIAS = (127 - 7) << 23;
    constexpr peersum_u32 LARGEST = 0x7E;
    const peersum_u32 magnitude = mov_b32_u32(value) & F32_MAGNITUDE;
    const peersum_u32 sign = (mov_b32_u32(value) >> 24) & 0x80;
    // From 2^14 on a float32 has steps of 2^-9, the step of the subnormals: the addition rounds.
    const peersum_u32 subnormal =
        mov_b32_u32(add_rn_f32(mov_b32_f32(magnitude), 16384.0f)) - mov_b32_u32(16384.0f);
    const peersum_u32 normal = (magnitude - REBIAS + 0x7FFFF + (magnitude >> 20 & 1)) >> 20;
    const peersum_u32 rounded = magnitude < SMALLEST_NORMAL ? subnormal : normal;
    const peersum_u32 finite = rounded < LARGEST ? rounded : LARGEST;
    return magnitude > F32_INFINITY ? 0x7F : sign | finite;
}
PEERSUM_DEVICE peersum_u32 e4m3x2(float high, float low) { return e4m3(high) << 8 | e4m3(low); }
#endif

// The bits of the largest magnitude in a unit. As integers, NaN is the largest of all.
PEERSUM_DEVICE peersum_u32 largest_of_unit(Unit n) {
    const Sum value = unpack(n);
    peersum_u32 largest = 0;
#pragma unroll
    for (int e = 0; e < PER_UNIT; ++e) {
        const peersum_u32 magnitude = mov_b32_u32(value.value[e]) & F32_MAGNITUDE;
        largest = largest < magnitude ? magnitude : largest;
    }
    return largest;
}

// The largest value of the threads that share a row; every thread gets it. The warps' values have
// one place in block memory for all rows: each thread that reads them passes the barrier of the
// next row's sum before any thread stores again.
template <typename AnyRows>
PEERSUM_DEVICE peersum_u32 largest_of_row(const ThreadPosition& position, const AnyRows& rows,
                                          BlockMemory memory, peersum_u32 largest) {
#pragma unroll
    for (peersum_u32 mask = 1; mask < LANES; mask *= 2) {
        const peersum_u32 other = mov_b32_u32(shfl_bfly_f32(mov_b32_f32(largest), mask));
        largest = largest < other ? other : largest;
    }
    const peersum_u32 warps = rows.blocks() * position.threads / LANES;
    if (warps <= 1) return largest;
    exchange_over_row(position, rows, memory, FIRST_MAXIMUM, mov_b32_f32(largest), MAXIMUM_BARRIER);
#pragma unroll 1
    for (peersum_u32 w = 0; w < warps; w += 4) {
        float four[4];
        ld_shared_v4_f32(memory, FIRST_MAXIMUM + w, four);
#pragma unroll
        for (peersum_u32 k = 0; k < 4; ++k) {
            const peersum_u32 other = w + k < warps ? mov_b32_u32(four[k]) : 0;
            largest = largest < other ? other : largest;
        }
    }
    return largest;
}

// scale = max(largest / 448, 1 / (512 * 448)), or the canonical NaN.
PEERSUM_DEVICE float fp8_scale(peersum_u32 largest) {
    if (largest > F32_INFINITY) return mov_b32_f32(F32_MAGNITUDE);
    const float scale = div_rn_f32(mov_b32_f32(largest), FP8_LARGEST);
    return scale < FP8_LEAST_SCALE ? FP8_LEAST_SCALE : scale;
}

// What the values of a row are divided by.
struct Divisor {
    // 0 if the caller gives the inverse alone, or if the scale is infinite or NaN: then n *
    // inverse, which is 0 or NaN, is already the quotient.
    float scale;
    float inverse;

    // n * inverse; with a scale, n / scale rounded correctly, by two steps with the remainder
    // (Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor",
    // 1990). One reciprocal serves all of a thread's units of a row. Quotients so small that they
    // are 0 in FP8 may be less exact.
    __device__ __forceinline__ float quotient(float n) const {
        float q = mul_rn_f32(n, inverse);
        if (scale == 0) return q;
#pragma unroll
        for (int step = 0; step < 2; ++step) q = fma_rn_f32(fma_rn_f32(-scale, q, n), inverse, q);
        // The sign of zero is lost in the sums.
        return mov_b32_f32((mov_b32_u32(q) & F32_MAGNITUDE) | (mov_b32_u32(n) & ~F32_MAGNITUDE));
    }
};

// Stores a unit as FP8.
PEERSUM_DEVICE void store_fp8(peersum_u64 address, Unit n, const Divisor& divisor) {
    const Sum value = unpack(n);
    peersum_u32 word[PER_UNIT / 4] = {};
#pragma unroll
    for (int e = 0; e < PER_UNIT; e += 2) {
        const peersum_u32 pair =
            e4m3x2(divisor.quotient(value.value[e + 1]), divisor.quotient(value.value[e]));
        word[e / 4] |= pair << e % 4 * 8;
    }
    void* place = reinterpret_cast<void*>(address);
    if constexpr (PER_UNIT == 8) {
        st_global_u64(place, static_cast<peersum_u64>(word[PER_UNIT / 4 - 1]) << 32 | word[0]);
    } else {
        st_global_u32(place, word[0]);
    }
}

}  // namespace

// Not inlined: so a thread has registers for many units.
extern "C" __device__ __noinline__ void peersum_store_fp8(peersum_u64 address, Unit n,
                                                          Divisor divisor) {
    store_fp8(address, n, divisor);
}

namespace {

// The FP8 of a call.
struct Fp8 {
    const PeersumParams& params;
    // The factor of a static scale; not read if each row has a scale.
    float inverse_scale;

    __device__ __forceinline__ bool is_wanted() const { return params.fp8_values != 0; }
    __device__ __forceinline__ bool has_row_scales() const { return params.fp8_row_scales != 0; }

    // The divisor of a row, of which `largest` is the bits of this thread's largest magnitude. All
    // threads that share the row call it; one stores the scale.
    template <typename AnyRows>
    __device__ __forceinline__ Divisor divisor_of_row(const ThreadPosition& position,
                                                      const AnyRows& rows, BlockMemory memory,
                                                      peersum_u32 row, peersum_u32 largest) const {
        if (!has_row_scales()) return Divisor{0, inverse_scale};
        const float scale = fp8_scale(largest_of_row(position, rows, memory, largest));
        if (rows.first == 0)
            st_global_u32(reinterpret_cast<void*>(params.fp8_row_scales +
                                                  static_cast<peersum_u64>(row) * sizeof(float)),
                          mov_b32_u32(scale));
        const bool is_finite = mov_b32_u32(scale) < F32_INFINITY;
        return Divisor{is_finite ? scale : 0, rcp_rn_f32(scale)};
    }

    __device__ __forceinline__ peersum_u64 address(peersum_u32 unit) const {
        return params.fp8_values + static_cast<peersum_u64>(unit) * PER_UNIT;
    }
};

// For a call after griddepcontrol.wait.
PEERSUM_DEVICE Fp8 fp8_of(const PeersumParams& params) {
    float inverse_scale = 0;
    if (params.fp8_inverse_scale != 0)
        inverse_scale =
            mov_b32_f32(ld_global_u32(reinterpret_cast<const void*>(params.fp8_inverse_scale)));
    return Fp8{params, inverse_scale};
}

// Makes the FP8 values of a thread's units of a row, which are in registers; those that the thread
// has not are zeros.
template <int UNITS, typename AnyRows>
PEERSUM_DEVICE void quantise_row(const ThreadPosition& position, const Fp8& fp8, BlockMemory memory,
                                 const AnyRows& rows, peersum_u32 row, const Unit (&n)[UNITS]) {
    peersum_u32 largest = 0;
#pragma unroll
    for (int k = 0; k < UNITS; ++k) {
        const peersum_u32 other = largest_of_unit(n[k]);
        largest = largest < other ? other : largest;
    }
    const Divisor divisor = fp8.divisor_of_row(position, rows, memory, row, largest);
#pragma unroll
    for (int k = 0; k < UNITS; ++k) {
        if (!rows.has(k)) continue;
        const peersum_u64 address = fp8.address(rows.unit(row) + k * LANES);
        if constexpr (UNITS <= 2) {
            store_fp8(address, n[k], divisor);
        } else {
            peersum_store_fp8(address, n[k], divisor);
        }
    }
}

// Makes them of units that the thread has stored in the output.
template <typename AnyRows>
PEERSUM_DEVICE void quantise_stored_row(const ThreadPosition& position, const Fp8& fp8,
                                        BlockMemory memory, const AnyRows& rows, peersum_u32 row) {
    const peersum_u32 first = rows.unit(row);
    const peersum_u64 output = fp8.params.output;
    peersum_u32 largest = 0;
#pragma unroll 1
    for (peersum_u32 k = 0; fp8.has_row_scales() && k < rows.own; ++k) {
        const peersum_u32 other =
            largest_of_unit(ld_global_v4(unit_address(output, first + k * LANES)));
        largest = largest < other ? other : largest;
    }
    const Divisor divisor = fp8.divisor_of_row(position, rows, memory, row, largest);
#pragma unroll 1
    for (peersum_u32 k = 0; k < rows.own; ++k) {
        const peersum_u32 unit = first + k * LANES;
        peersum_store_fp8(fp8.address(unit), ld_global_v4(unit_address(output, unit)), divisor);
    }
}

}  // namespace
