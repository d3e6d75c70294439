// pushed_rows.cuh - the rows of a one-shot push: where they lie in the slots, and the long way for
// those that do not arrive soon.
#pragma once

#include "normalise.cuh"
#include "push_call.cuh"

namespace {

// A thread's part of its rows in a one-shot push. A row begins with a group of slots.
template <typename AnyRows>
struct PushedRows : AnyRows {
    const PeersumParams& params;
    // The offset of the call's half of the slots.
    peersum_u64 half;

    // The k-th unit of this thread in a row.
    __device__ __forceinline__ Unit own_unit(peersum_u32 row, peersum_u32 k) const {
        return sendable(ld_global_v4(this->nth(unit_address(params.input, this->unit(row)), k)));
    }
    // The offset of the slots of that unit.
    __device__ __forceinline__ peersum_u64 slots(peersum_u32 row, peersum_u32 k) const {
        const peersum_u32 row_slots =
            (this->units + PEERSUM_SLOT_GROUP - 1) & ~(PEERSUM_SLOT_GROUP - 1);
        const peersum_u32 first = row * row_slots + this->first;
        // Said apart, because the compiler does not see that whole groups have one distance.
        if (LANES == PEERSUM_SLOT_GROUP)
            return half + slots_offset(first) + k * slots_offset(PEERSUM_SLOT_GROUP);
        return half + slots_offset(first + k * LANES);
    }
    __device__ __forceinline__ void send(peersum_u64 slots, Unit own) const {
        send_to_all(params, send_offset(params, slots), own);
    }
};

template <typename AnyRows>
PEERSUM_DEVICE PushedRows<AnyRows> pushed_rows(const AnyRows& rows, const PeersumParams& params,
                                               peersum_u32 push_epoch) {
    return PushedRows<AnyRows>{rows, params, params.push_offset + half_offset_of(push_epoch)};
}

// How far a thread is when it calls peersum_norm_rest, as bits: of how many units of the row r is
// kept already;
constexpr peersum_u32 PROGRESS_TAKEN = 3;
// whether this thread's units of the row are sent;
constexpr peersum_u32 PROGRESS_SENT = 4;
// also those of the next one;
constexpr peersum_u32 PROGRESS_NEXT_SENT = 8;
// which half of the block's memory the row uses; and whether the call is lost.
constexpr peersum_u32 PROGRESS_ODD = 16;
constexpr peersum_u32 PROGRESS_LOST = 32;

// Waits for this thread's units of a row, from the `taken`-th on, and keeps r of each. Before,
// sends those of the rows that are not sent: up to the next one, which is then on its way while
// this one is awaited. False if the call is lost; the units are then NaN.
template <typename AnyRows>
PEERSUM_DEVICE bool await_row(const Call& call, const PushedRows<AnyRows>& rows,
                              const RowBuffers& buffers, peersum_u32 row, peersum_u32 progress) {
    bool lost = (progress & PROGRESS_LOST) != 0;
    peersum_u32 unsent = row;
    if ((progress & PROGRESS_SENT) != 0) unsent += rows.stride();
    if ((progress & PROGRESS_NEXT_SENT) != 0) unsent += rows.stride();
#pragma unroll 1
    for (; !lost && unsent <= row + rows.stride() && unsent < rows.count; unsent += rows.stride()) {
#pragma unroll 1
        for (peersum_u32 k = 0; k < rows.own; ++k)
            rows.send(rows.slots(unsent, k), rows.own_unit(unsent, k));
    }
#pragma unroll 1
    for (peersum_u32 k = progress & PROGRESS_TAKEN; k < rows.own; ++k) {
        const peersum_u64 slots = rows.slots(row, k);
        Unit received[SOURCES];
        if (!lost) lost = !collect(call, receive_address(call.params, slots), received);
        if (!lost && k == 0 && row == rows.begin()) allow_next_kernel();
        Unit r = nan_unit();
        if (!lost) {
            Unit own = EMPTY_UNIT;
            if (KEEPS_OWN) own = rows.own_unit(row, k);
            r = buffers.apply_residual(rows, row, k, reduce_received(received, own));
        }
        st_global_v4(rows.nth(buffers.kept(rows.unit(row)), k), r);
    }
    return !lost;
}

// Finishes a block's rows from `row` on.
template <typename AnyRows>
PEERSUM_DEVICE void finish_rows(const PeersumParams& params, BlockMemory memory, peersum_u32 epochs,
                                peersum_u32 row, peersum_u32 progress) {
    const ThreadPosition position = position_of_thread();
    const Call call = rebuild_call(params, position, epochs);
    const auto rows = pushed_rows(rows_of<AnyRows>(params, position), params, call.push_epoch);
    const RowBuffers buffers{params};
#pragma unroll 1
    for (; row < rows.count; row += rows.stride()) {
        // First r of all units: so the sum keeps no register while this thread waits.
        if (!await_row(call, rows, buffers, row, progress)) progress |= PROGRESS_LOST;
        normalise_row<false>(
            position, buffers, rows, memory, row, (progress & PROGRESS_ODD) != 0,
            [&](peersum_u32 k) { return ld_global_v4(rows.nth(buffers.kept(rows.unit(row)), k)); });
        progress = (progress & PROGRESS_LOST) | (~progress & PROGRESS_ODD) | PROGRESS_SENT;
    }
}

}  // namespace

// Both are for rows of many units, for lost calls, and for warps that have polled for long without
// success. Not inlined, and nothing follows a call of them: so a call in which no rank is late
// keeps no register for these cases.
extern "C" __device__ __noinline__ void peersum_norm_rest(const PeersumParams& params,
                                                          BlockMemory memory, peersum_u32 epochs,
                                                          peersum_u32 row, peersum_u32 progress) {
    finish_rows<BlockRows>(params, memory, epochs, row, progress);
}

#ifdef PEERSUM_HAS_CLUSTERS
extern "C" __device__ __noinline__ void peersum_norm_rest_of_cluster(const PeersumParams& params,
                                                                     BlockMemory memory,
                                                                     peersum_u32 epochs,
                                                                     peersum_u32 row,
                                                                     peersum_u32 progress) {
    finish_rows<ClusterRows>(params, memory, epochs, row, progress);
}
#endif

namespace {

template <typename AnyRows>
PEERSUM_DEVICE void leave_rest(const PeersumParams& params, BlockMemory memory, peersum_u32 epochs,
                               peersum_u32 row, peersum_u32 progress) {
#ifdef PEERSUM_HAS_CLUSTERS
    if constexpr (AnyRows::IN_CLUSTERS)
        return peersum_norm_rest_of_cluster(params, memory, epochs, row, progress);
#endif
    peersum_norm_rest(params, memory, epochs, row, progress);
}

}  // namespace
