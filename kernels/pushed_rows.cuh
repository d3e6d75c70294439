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
        return ld_global_v4(this->nth(unit_address(params.input, this->unit(row)), k));
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
        send_to_all(params, send_offset(params, slots), sendable(own));
    }
};

template <typename AnyRows>
PEERSUM_DEVICE PushedRows<AnyRows> pushed_rows(const AnyRows& rows, const PeersumParams& params,
                                               peersum_u32 push_epoch) {
    return PushedRows<AnyRows>{rows, params, params.push_offset + half_offset_of(push_epoch)};
}

// How far a thread is when it calls peersum_norm_rest, in one register: of how many units of the
// row r is kept already;
constexpr peersum_u32 PROGRESS_TAKEN = 3;
// whether this thread's units of the row are sent;
constexpr peersum_u32 PROGRESS_SENT = 4;
// also those of the next one;
constexpr peersum_u32 PROGRESS_NEXT_SENT = 8;
// which half of the block's memory the row uses; and whether the call is lost.
constexpr peersum_u32 PROGRESS_ODD = 16;
constexpr peersum_u32 PROGRESS_LOST = 32;
// Besides, of the launch, whether each row has a cluster; and of the call, which half of the slots
// it uses, and its sequence.
constexpr peersum_u32 PROGRESS_IN_CLUSTERS = 64;
constexpr peersum_u32 PROGRESS_ODD_PUSH = 128;
constexpr peersum_u32 PROGRESS_SEQUENCE_SHIFT = 16;

// The progress of a thread that has not begun.
PEERSUM_DEVICE peersum_u32 first_progress(const Call& call, bool in_clusters) {
    const peersum_u32 sequence = static_cast<peersum_u32>(call.pull_epoch) + call.push_epoch;
    return sequence << PROGRESS_SEQUENCE_SHIFT |
           ((call.push_epoch & 1) != 0 ? PROGRESS_ODD_PUSH : 0) |
           (in_clusters ? PROGRESS_IN_CLUSTERS : 0);
}

// Epochs of which rebuild_call makes the call.
PEERSUM_DEVICE peersum_u32 epochs_of_progress(peersum_u32 progress) {
    const peersum_u32 push_epoch = (progress & PROGRESS_ODD_PUSH) != 0 ? 1 : 0;
    return ((progress >> PROGRESS_SEQUENCE_SHIFT) - push_epoch) << 16 | push_epoch;
}

// The rows of a launch that has a cluster for each row, or does not, with their distance.
struct GivenRows : Rows {
    peersum_u32 rows_apart;

    __device__ __forceinline__ peersum_u32 stride() const { return rows_apart; }
};

PEERSUM_DEVICE PushedRows<GivenRows> given_rows(const PeersumParams& params, peersum_u32 progress) {
    const ThreadPosition position = position_of_thread();
    const peersum_u32 push_epoch = epochs_of_progress(progress) & 0xFFFF;
#ifdef PEERSUM_HAS_CLUSTERS
    if ((progress & PROGRESS_IN_CLUSTERS) != 0) {
        const auto rows = rows_of<ClusterRows>(params, position);
        return pushed_rows(GivenRows{rows, rows.stride()}, params, push_epoch);
    }
#endif
    const auto rows = rows_of<BlockRows>(params, position);
    return pushed_rows(GivenRows{rows, rows.stride()}, params, push_epoch);
}

}  // namespace

// The steps of peersum_norm_rest. Not inlined, so that none of them keeps registers of the others.

// Sends this thread's units of the rows that are not sent: up to the one behind `row`, which is
// then on its way while `row` is awaited. Returns that one.
extern "C" __device__ __noinline__ peersum_u32 peersum_send_rows(const PeersumParams& params,
                                                                 peersum_u32 row,
                                                                 peersum_u32 progress) {
    const auto rows = given_rows(params, progress);
    const peersum_u32 next = row + rows.stride();
    peersum_u32 unsent = row;
    if ((progress & PROGRESS_SENT) != 0) unsent += rows.stride();
    if ((progress & PROGRESS_NEXT_SENT) != 0) unsent += rows.stride();
    if ((progress & PROGRESS_LOST) != 0) return next;
#pragma unroll 1
    for (; unsent <= next && unsent < rows.count; unsent += rows.stride()) {
#pragma unroll 1
        for (peersum_u32 k = 0; k < rows.own; ++k)
            rows.send(rows.slots(unsent, k), rows.own_unit(unsent, k));
    }
    return next;
}

// Waits until a unit has arrived from every source. False if the wait was given up.
extern "C" __device__ __noinline__ bool peersum_await_unit(const PeersumParams& params,
                                                           peersum_u64 first_slot,
                                                           peersum_u32 progress) {
    const Call call = rebuild_call(params, position_of_thread(), epochs_of_progress(progress));
    Wait wait;
#pragma unroll 1
    for (peersum_u32 source = 0; source < SOURCES; ++source) {
        const void* slot = slot_address(first_slot, source);
#pragma unroll 1
        while (largest_word(ld_relaxed_sys_v4(slot)) == PEERSUM_SLOT_EMPTY) {
            spin_pause();
            if (!is_time_to_look(wait)) continue;
            wait.start_ns = peersum_look_at_slots(params, call.header, first_slot, wait.start_ns);
            if (wait.start_ns == 0) return false;
        }
    }
    return true;
}

// Waits for this thread's units of a row, from the first that is not taken on, and keeps r of each.
// False if the call is lost; the units are then NaN.
extern "C" __device__ __noinline__ bool peersum_await_row(const PeersumParams& params,
                                                          peersum_u32 row, peersum_u32 progress) {
    const auto rows = given_rows(params, progress);
    const RowBuffers buffers{params};
    bool lost = (progress & PROGRESS_LOST) != 0;
#pragma unroll 1
    for (peersum_u32 k = progress & PROGRESS_TAKEN; k < rows.own; ++k) {
        const peersum_u64 slots = receive_address(params, rows.slots(row, k));
        if (!lost) lost = !peersum_await_unit(params, slots, progress);
        Unit r = nan_unit();
        if (!lost) {
            allow_next_kernel();
            // All words are there: a later load of a word never sees an earlier value.
            Unit received[SOURCES];
            poll(slots, received);
            rearm(slots);
            Unit own = EMPTY_UNIT;
            if (KEEPS_OWN) own = rows.own_unit(row, k);
            r = buffers.apply_residual(rows, row, k, reduce_received(received, own));
        }
        st_global_v4(rows.nth(buffers.kept(rows.unit(row)), k), r);
    }
    return !lost;
}

namespace {

// Normalises a row of which every unit's r is kept.
template <typename AnyRows>
PEERSUM_DEVICE void normalise_kept_row(const PeersumParams& params, BlockMemory memory,
                                       peersum_u32 row, bool is_odd) {
    const ThreadPosition position = position_of_thread();
    const auto rows = rows_of<AnyRows>(params, position);
    const RowBuffers buffers{params};
    normalise_row(position, buffers, rows, memory, row, is_odd, [&](peersum_u32 k) {
        return ld_global_v4(rows.nth(buffers.kept(rows.unit(row)), k));
    });
}

}  // namespace

extern "C" __device__ __noinline__ void peersum_normalise_kept_row(const PeersumParams& params,
                                                                   BlockMemory memory,
                                                                   peersum_u32 row, bool is_odd) {
    normalise_kept_row<BlockRows>(params, memory, row, is_odd);
}

#ifdef PEERSUM_HAS_CLUSTERS
extern "C" __device__ __noinline__ void peersum_normalise_kept_row_of_cluster(
    const PeersumParams& params, BlockMemory memory, peersum_u32 row, bool is_odd) {
    normalise_kept_row<ClusterRows>(params, memory, row, is_odd);
}
#endif

namespace {

// Finishes a block's rows from `row` on.
template <typename AnyRows>
PEERSUM_DEVICE void finish_rows(const PeersumParams& params, BlockMemory memory, peersum_u32 row,
                                peersum_u32 progress) {
#pragma unroll 1
    while (row < params.rows) {
        const peersum_u32 next = peersum_send_rows(params, row, progress);
        if (!peersum_await_row(params, row, progress)) progress |= PROGRESS_LOST;
        const bool is_odd = (progress & PROGRESS_ODD) != 0;
        if constexpr (AnyRows::IN_CLUSTERS) {
#ifdef PEERSUM_HAS_CLUSTERS
            peersum_normalise_kept_row_of_cluster(params, memory, row, is_odd);
#endif
        } else {
            peersum_normalise_kept_row(params, memory, row, is_odd);
        }
        progress = ((progress & ~(PROGRESS_ODD - 1)) ^ PROGRESS_ODD) | PROGRESS_SENT;
        row = next;
    }
}

}  // namespace

// Both are for rows of many units, for lost calls, and for warps that have polled for long without
// success. Not inlined, and nothing follows a call of them: so a call in which no rank is late
// keeps no register for these cases.
extern "C" __device__ __noinline__ void peersum_norm_rest(const PeersumParams& params,
                                                          BlockMemory memory, peersum_u32 row,
                                                          peersum_u32 progress) {
    finish_rows<BlockRows>(params, memory, row, progress);
}

#ifdef PEERSUM_HAS_CLUSTERS
extern "C" __device__ __noinline__ void peersum_norm_rest_of_cluster(const PeersumParams& params,
                                                                     BlockMemory memory,
                                                                     peersum_u32 row,
                                                                     peersum_u32 progress) {
    finish_rows<ClusterRows>(params, memory, row, progress);
}
#endif

namespace {

template <typename AnyRows>
PEERSUM_DEVICE void leave_rest(const PeersumParams& params, BlockMemory memory, peersum_u32 row,
                               peersum_u32 progress) {
#ifdef PEERSUM_HAS_CLUSTERS
    if constexpr (AnyRows::IN_CLUSTERS)
        return peersum_norm_rest_of_cluster(params, memory, row, progress);
#endif
    peersum_norm_rest(params, memory, row, progress);
}

}  // namespace
