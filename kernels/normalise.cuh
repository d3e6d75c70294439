// normalise.cuh - normalises and stores the units of a row.
#pragma once

#include "fp8.cuh"

namespace {

// The parameters of a call that concern rows, by unit.
struct RowBuffers {
    const PeersumParams& params;
#if PEERSUM_BREAK == PEERSUM_BREAK_WEIGHT_BEFORE_WAIT
    // Every entry point makes this object before griddepcontrol.wait.
    Unit early_weight = ld_global_v4(unit_address(params.weight, 0));
#endif

    __device__ __forceinline__ bool has_residual() const { return params.residual != 0; }
    __device__ __forceinline__ const void* input(peersum_u32 unit) const {
        return unit_address(params.input, unit);
    }
    __device__ __forceinline__ void* output(peersum_u32 unit) const {
        return unit_address(params.output, unit);
    }
    // Where a thread keeps r between the sum of squares and the result: the residual becomes r, and
    // without one r replaces s in the output.
    __device__ __forceinline__ void* kept(peersum_u32 unit) const {
        return unit_address(has_residual() ? params.residual : params.output, unit);
    }
    // The weight of a thread's k-th unit.
    __device__ __forceinline__ Unit weight(const Rows& rows, peersum_u32 k) const {
#if PEERSUM_BREAK == PEERSUM_BREAK_WEIGHT_BEFORE_WAIT
        if (rows.first == 0 && k == 0) return early_weight;
#endif
        return ld_global_v4(rows.nth(unit_address(params.weight, rows.first), k));
    }

    __device__ __forceinline__ void* residual(peersum_u32 unit) const {
        return unit_address(params.residual, unit);
    }
    // r of a thread's k-th unit of a row, given s. Stores it if there is a residual.
    __device__ __forceinline__ Unit apply_residual(const Rows& rows, peersum_u32 row, peersum_u32 k,
                                                   Unit s) const {
        if (!has_residual()) return s;
        void* address = rows.nth(residual(rows.unit(row)), k);
        const Unit r = add_residual(s, ld_global_v4(address));
        st_global_v4(address, r);
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
    Unit n[UNITS];
#pragma unroll
    for (int k = 0; k < UNITS; ++k) {
        n[k] = Unit{0, 0, 0, 0};
        if (!rows.has(k)) continue;
        n[k] = normalise(buffers.params, r[k], scale, weight[k]);
        st_global_v4(rows.nth(buffers.output(rows.unit(row)), k), n[k]);
    }
    if (fp8.is_wanted()) quantise_row(position, fp8, memory, rows, row, n);
}

// Normalises one row, of any number of units. `next_r(k)` gives r of the thread's k-th unit, in
// ascending order; it is stored where the call keeps it anyway, and loaded again.
template <typename AnyRows, typename NextR>
PEERSUM_DEVICE void normalise_row(const ThreadPosition& position, const RowBuffers& buffers,
                                  const AnyRows& rows, BlockMemory memory, peersum_u32 row,
                                  bool is_odd, NextR next_r) {
    UnitSums sums;
#pragma unroll 1
    for (peersum_u32 k = 0; k < rows.per_thread; ++k) {
        Unit r{0, 0, 0, 0};
        if (rows.has(k)) {
            r = next_r(k);
            st_global_v4(rows.nth(buffers.kept(rows.unit(row)), k), r);
        }
        sums.push(k, squares_of_warp(position, r));
    }
    const float sum = sum_over_row(position, rows, memory, sums.total(rows.per_thread), is_odd);
    const float scale = scale_of_row(buffers.params, sum);
#pragma unroll 1
    for (peersum_u32 k = 0; k < rows.own; ++k) {
        const Unit r = ld_global_v4(rows.nth(buffers.kept(rows.unit(row)), k));
        st_global_v4(rows.nth(buffers.output(rows.unit(row)), k),
                     normalise(buffers.params, r, scale, buffers.weight(rows, k)));
    }
    const Fp8 fp8 = fp8_of(buffers.params);
    if (fp8.is_wanted()) quantise_stored_row(position, fp8, memory, rows, row);
}

}  // namespace
