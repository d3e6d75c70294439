// normalise.cuh - normalises and stores the units of a row.
#pragma once

#include "fp8.cuh"

namespace {

// The most units of a row that a thread keeps in registers from the sum of squares to the result.
// With more it stores r where the call keeps it anyway, and loads it again.
constexpr peersum_u32 KEPT_UNITS = 2;

// The parameters of a call that concern rows, by unit.
struct RowBuffers {
    const PeersumParams& params;
#if PEERSUM_BREAK == PEERSUM_BREAK_WEIGHT_BEFORE_WAIT
    // Every entry point makes this object before griddepcontrol.wait.
    Unit early_weight = ld_global_v4(unit_address(params.weight, 0));
#endif

    __device__ __forceinline__ bool has_residual() const { return params.residual != 0; }
    __device__ __forceinline__ void* output(peersum_u32 unit) const {
        return unit_address(params.output, unit);
    }
    // Where a thread keeps r between the sum of squares and the result: the residual becomes r, and
    // without one r replaces s in the output.
    __device__ __forceinline__ void* kept(peersum_u32 unit) const {
        return unit_address(has_residual() ? params.residual : params.output, unit);
    }
    __device__ __forceinline__ Unit weight(peersum_u32 unit_of_row) const {
#if PEERSUM_BREAK == PEERSUM_BREAK_WEIGHT_BEFORE_WAIT
        if (unit_of_row == 0) return early_weight;
#endif
        return ld_global_v4(unit_address(params.weight, unit_of_row));
    }

    __device__ __forceinline__ void* residual(peersum_u32 unit) const {
        return unit_address(params.residual, unit);
    }
    // r of a unit, given s. Stores it if there is a residual.
    __device__ __forceinline__ Unit apply_residual(peersum_u32 unit, Unit s) const {
        if (!has_residual()) return s;
        const Unit r = add_residual(s, ld_global_v4(residual(unit)));
        st_global_v4(residual(unit), r);
        return r;
    }
};

// Normalises and stores a thread's units of a row, also as FP8.
template <int UNITS, typename AnyRows>
PEERSUM_DEVICE void store_row(const ThreadPosition& position, const RowBuffers& buffers,
                              const AnyRows& rows, BlockMemory memory, peersum_u32 row,
                              const Unit (&r)[UNITS], const Unit (&weight)[UNITS], float sum) {
    const Fp8 fp8 = fp8_of(buffers.params);
    const float scale = scale_of_row(buffers.params, sum);
    const peersum_u32 first = row * rows.units + rows.first;
    Unit n[UNITS];
#pragma unroll
    for (int k = 0; k < UNITS; ++k) {
        n[k] = Unit{0, 0, 0, 0};
        if (static_cast<peersum_u32>(k) >= rows.own) continue;
        n[k] = normalise(buffers.params, r[k], scale, weight[k]);
        st_global_v4(buffers.output(first + k), n[k]);
    }
    if (!fp8.is_wanted()) return;
    // Of many units, FP8 is made one by one: ptxas has no registers for them at once.
    if constexpr (UNITS <= 2) {
        quantise_row(position, fp8, memory, rows, row, n);
    } else {
        quantise_stored_row(position, fp8, memory, rows, row);
    }
}

// Normalises one row. `next_r(k)` gives r of the thread's k-th unit, in ascending order. With
// MAY_KEEP, few units stay in registers meanwhile.
template <bool MAY_KEEP, typename AnyRows, typename NextR>
PEERSUM_DEVICE void normalise_row(const ThreadPosition& position, const RowBuffers& buffers,
                                  const AnyRows& rows, BlockMemory memory, peersum_u32 row,
                                  bool is_odd, NextR next_r) {
    const peersum_u32 first = row * rows.units + rows.first;
    const bool is_kept = MAY_KEEP && rows.per_thread <= KEPT_UNITS;
    Unit kept[KEPT_UNITS];
    Unit weight[KEPT_UNITS];
    UnitSums sums;
    if (is_kept) {
#pragma unroll
        for (peersum_u32 k = 0; k < KEPT_UNITS; ++k) {
            kept[k] = Unit{0, 0, 0, 0};
            weight[k] = Unit{0, 0, 0, 0};
            if (k < rows.own) weight[k] = buffers.weight(rows.first + k);
        }
#pragma unroll
        for (peersum_u32 k = 0; k < KEPT_UNITS; ++k) {
            if (k < rows.own) kept[k] = next_r(k);
            if (k < rows.per_thread) sums.push(k, squares_of_unit(kept[k]));
        }
    } else {
#pragma unroll 1
        for (peersum_u32 k = 0; k < rows.per_thread; ++k) {
            Unit r{0, 0, 0, 0};
            if (k < rows.own) {
                r = next_r(k);
                st_global_v4(buffers.kept(first + k), r);
            }
            sums.push(k, squares_of_unit(r));
        }
    }
    const float sum = sum_over_row(position, rows, memory, sums.total(rows.per_thread), is_odd);
    if (is_kept) return store_row(position, buffers, rows, memory, row, kept, weight, sum);
    const float scale = scale_of_row(buffers.params, sum);
#pragma unroll 1
    for (peersum_u32 k = 0; k < rows.own; ++k) {
        const Unit r = ld_global_v4(buffers.kept(first + k));
        st_global_v4(buffers.output(first + k),
                     normalise(buffers.params, r, scale, buffers.weight(rows.first + k)));
    }
    const Fp8 fp8 = fp8_of(buffers.params);
    if (fp8.is_wanted()) quantise_stored_row(position, fp8, memory, rows, row);
}

}  // namespace
