// norm.cu - RMSNorm of the rows of an all-reduce: alone, behind a call of the other families, and
// in one kernel with a one-shot push.
//
// A block handles a row at a time; in the fused kernel a cluster of blocks can share a row. What a
// row gives depends on the row alone (rms.cuh), so all entry points give the same bits, whatever
// their grid.
#define PEERSUM_MODULE_FAMILY PEERSUM_FAMILY_PUSH
#define PEERSUM_MODULE_NORM
#include "normalise.cuh"
#if PEERSUM_WORLD_SIZE > 1
#include "norm_words.cuh"
#include "pushed_rows.cuh"
#endif

#if PEERSUM_WORLD_SIZE > 1

// The whole call of a signal thread. Not inlined, so that the threads that handle units keep no
// registers for it.
extern "C" __device__ __noinline__ void peersum_norm_signal_thread(const PeersumParams& params) {
    const Call call = enter(params, position_of_thread());
    const bool lost = is_lost_on_entry(call);
    if (lost) exchange_norm_words(call, true);
    run_signal_thread(call, lost, [&] { exchange_norm_words(call, false); });
}

namespace {

// Polls a thread's units of a row from the `begin`-th on, as many as it has, for a while. True if
// all have arrived.
template <int COUNT, typename AnyRows>
PEERSUM_DEVICE bool poll_units(const PushedRows<AnyRows>& rows, peersum_u32 row, int begin,
                               Unit (&received)[COUNT][SOURCES]) {
    for (peersum_u32 polls = 0;; ++polls) {
        bool arrived = true;
#pragma unroll
        for (int k = 0; k < COUNT; ++k) {
            const peersum_u64 slots = receive_address(rows.params, rows.slots(row, begin + k));
            // Not `&&`: the loads of all polls are in flight together.
            if (rows.has(begin + k)) arrived &= poll(slots, received[k]);
        }
        if (arrived) return true;
        spin_pause();
        if (GUARDED && polls == POLLS_BETWEEN_LOOKS) return false;
    }
}

// The most units of a row that a thread keeps in registers: larger groups have fewer to spare.
constexpr int MOST_UNITS = KEEPS_OWN ? PEERSUM_KEPT_ROW_UNITS_OF_PAIR : PEERSUM_KEPT_ROW_UNITS;

// The most units that a thread polls at once.
constexpr int MOST_POLLED = KEEPS_OWN ? 2 : 1;

template <int UNITS, typename AnyRows>
PEERSUM_DEVICE void send_row(const PushedRows<AnyRows>& rows, peersum_u32 row) {
    Unit own[UNITS];
#pragma unroll
    for (int k = 0; k < UNITS; ++k) {
        if (KEEPS_OWN && rows.has(k)) own[k] = rows.own_unit(row, k);
    }
#pragma unroll
    for (int k = 0; k < UNITS; ++k) {
        // Larger groups have no registers for all units at once.
        if (rows.has(k)) rows.send(rows.slots(row, k), KEEPS_OWN ? own[k] : rows.own_unit(row, k));
    }
}

// Normalises a block's rows as they arrive, of which each thread has up to `UNITS` units: as many
// as `per_thread`. `loaded` are those of the first row.
template <int UNITS, typename AnyRows>
PEERSUM_DEVICE void normalise_pushed_rows(const Call& call, const RowBuffers& buffers,
                                          BlockMemory memory, PushedRows<AnyRows> rows,
                                          const Unit (&loaded)[MOST_UNITS]) {
    peersum_u32 progress = first_progress(call, AnyRows::IN_CLUSTERS);
    peersum_u32 row = rows.begin();
    if (row < rows.count) {
#pragma unroll
        for (int k = 0; k < UNITS; ++k) {
            if (rows.has(k)) rows.send(rows.slots(row, k), loaded[k]);
        }
    }
    // Done while the peers' data is on its way.
    advance_unlaunched_epochs(call);
#pragma unroll 1
    for (; row < rows.count; row += rows.stride()) {
        // A row is on its way while the one before it is awaited.
        if (row + rows.stride() < rows.count) send_row<UNITS>(rows, row + rows.stride());
        Unit r[UNITS], own[UNITS], residual[UNITS], weight[UNITS];
        // What else the row needs is on its way while the peers' units are awaited; not the weight
        // of many units, for which there are no registers.
#pragma unroll
        for (int k = 0; k < UNITS; ++k) {
            own[k] = residual[k] = r[k] = weight[k] = Unit{0, 0, 0, 0};
            if (KEEPS_OWN && rows.has(k)) own[k] = rows.own_unit(row, k);
            if (buffers.has_residual() && rows.has(k))
                residual[k] = ld_global_v4(rows.nth(buffers.residual(rows.unit(row)), k));
            if (UNITS <= 2 && rows.has(k)) weight[k] = buffers.weight(rows, k);
        }
        constexpr int AT_ONCE = UNITS < MOST_POLLED ? UNITS : MOST_POLLED;
#pragma unroll
        for (int begin = 0; begin < UNITS; begin += AT_ONCE) {
            Unit received[AT_ONCE][SOURCES];
            const bool arrived = poll_units(rows, row, begin, received);
            // A warp goes together, because its threads exchange their sums.
            if (vote_any(!arrived)) {
#pragma unroll
                for (int k = 0; k < UNITS; ++k) {
                    if (k < begin && rows.has(k))
                        st_global_v4(rows.nth(buffers.kept(rows.unit(row)), k), r[k]);
                }
                return leave_rest<AnyRows>(call.params, memory, row,
                                           progress | PROGRESS_SENT | PROGRESS_NEXT_SENT | begin);
            }
            if (begin == 0 && row == rows.begin() && rows.has(0)) allow_next_kernel();
#pragma unroll
            for (int k = 0; k < AT_ONCE; ++k) {
                const int at = begin + k;
                if (!rows.has(at)) break;
                rearm(receive_address(call.params, rows.slots(row, at)));
                r[at] = reduce_received(received[k], own[at]);
                if (!buffers.has_residual()) continue;
                r[at] = add_residual(r[at], residual[at]);
                st_global_v4(rows.nth(buffers.residual(rows.unit(row)), at), r[at]);
            }
        }
        const bool is_odd = (progress & PROGRESS_ODD) != 0;
        const float sum = sum_over_row(call, rows, memory, squares_of_warp(call, r), is_odd);
#pragma unroll
        for (int k = 0; k < UNITS; ++k) {
            if (UNITS > 2 && rows.has(k)) weight[k] = buffers.weight(rows, k);
        }
        store_row(call, buffers, rows, memory, row, r, weight, sum);
        progress ^= PROGRESS_ODD;
    }
}

template <typename AnyRows>
PEERSUM_DEVICE void one_shot(const PeersumParams& params) {
    const ThreadPosition position = position_of_thread();
    const auto rows = rows_of<AnyRows>(params, position);
    const RowBuffers buffers{params};
    const BlockMemory memory = block_memory();
    if (AnyRows::IN_CLUSTERS) arrive_in_cluster(position, memory);
    // So that each line of parameters is loaded before the wait.
    compute_before_wait(params.arena[1] + params.push_offset);
    compute_before_wait(params.input);
    compute_before_wait(params.residual);
    if (position.is_signal_thread()) return peersum_norm_signal_thread(params);
    const Call call = enter(params, position);
    // Loaded together with the block's state. A poisoned call may read its own input; it must not
    // store.
    Unit own[MOST_UNITS];
    if (rows.begin() < rows.count) {
#pragma unroll
        for (peersum_u32 k = 0; k < MOST_UNITS; ++k) {
            const void* first = unit_address(params.input, rows.unit(rows.begin()));
            if (rows.has(k)) own[k] = ld_global_v4(rows.nth(first, k));
        }
    }
    mark_epoch_read(call);
    const bool lost = is_lost(call);
    // Before this thread stores to the memory of another block of its row.
    if (AnyRows::IN_CLUSTERS) barrier_cluster_wait();
    const bool warp_is_lost = vote_any(lost);
    if (warp_is_lost || rows.per_thread > MOST_UNITS) {
        leave_if_poisoned(call);
        advance_unlaunched_epochs(call);
        return leave_rest<AnyRows>(
            params, memory, rows.begin(),
            first_progress(call, AnyRows::IN_CLUSTERS) | (warp_is_lost ? PROGRESS_LOST : 0));
    }
    const auto pushed = pushed_rows(rows, params, call.push_epoch);
    if (MOST_UNITS > 2 && rows.per_thread > 2)
        return normalise_pushed_rows<MOST_UNITS>(call, buffers, memory, pushed, own);
    if (rows.per_thread == 2) return normalise_pushed_rows<2>(call, buffers, memory, pushed, own);
    normalise_pushed_rows<1>(call, buffers, memory, pushed, own);
}

}  // namespace

#endif

namespace {

// The most units of a row that a thread keeps in registers from the sum of squares to the result.
constexpr int MOST_KEPT = 4;

// Normalises a block's rows of `input`, of which each thread has no more units than that.
PEERSUM_DEVICE void normalise_kept_rows(const ThreadPosition& position, const RowBuffers& buffers,
                                        const BlockRows& rows, BlockMemory memory) {
    bool is_odd = false;
#pragma unroll 1
    for (peersum_u32 row = rows.begin(); row < rows.count; row += rows.stride()) {
        Unit r[MOST_KEPT], residual[MOST_KEPT], weight[MOST_KEPT];
        // All loads are in flight together.
#pragma unroll
        for (int k = 0; k < MOST_KEPT; ++k) {
            r[k] = residual[k] = weight[k] = Unit{0, 0, 0, 0};
            if (rows.has(k)) r[k] = ld_global_v4(rows.nth(buffers.input(rows.unit(row)), k));
            if (rows.has(k) && buffers.has_residual())
                residual[k] = ld_global_v4(rows.nth(buffers.residual(rows.unit(row)), k));
            if (rows.has(k)) weight[k] = buffers.weight(rows, k);
        }
#pragma unroll
        for (int k = 0; k < MOST_KEPT; ++k) {
            if (!rows.has(k) || !buffers.has_residual()) continue;
            r[k] = add_residual(r[k], residual[k]);
            st_global_v4(rows.nth(buffers.residual(rows.unit(row)), k), r[k]);
        }
        const float squares =
            rows.per_thread == 1 ? squares_of_warp(position, r[0]) : squares_of_warp(position, r);
        const float sum = sum_over_row(position, rows, memory, squares, is_odd);
        store_row(position, buffers, rows, memory, row, r, weight, sum);
        is_odd = !is_odd;
    }
}

// Normalises rows of `input`, which an earlier kernel has reduced. Behind a call of several ranks
// it also exchanges that call's norm words, so it allows no next kernel before it ends: until then
// a peer's part of it may need the seats.
PEERSUM_DEVICE void norm_rows(const PeersumParams& params) {
    const ThreadPosition position = position_of_thread();
    const auto rows = rows_of<BlockRows>(params, position);
    const RowBuffers buffers{params};
    const BlockMemory memory = block_memory();
#if PEERSUM_WORLD_SIZE > 1
    // The epochs count the call already.
    Call call = enter(params, position);
    call.header -= static_cast<peersum_u64>(1) << PEERSUM_HEADER_SEQUENCE_SHIFT;
    if (position.is_signal_thread()) {
        // Without words the sum comes from elsewhere.
        if (params.norm_words[0] != 0) exchange_norm_words(call, call.poison != 0);
        return;
    }
#else
    griddepcontrol_wait();
    if (position.is_signal_thread()) return;
#endif
    if (rows.per_thread <= MOST_KEPT) return normalise_kept_rows(position, buffers, rows, memory);
    bool is_odd = false;
#pragma unroll 1
    for (peersum_u32 row = rows.begin(); row < rows.count; row += rows.stride()) {
        normalise_row(position, buffers, rows, memory, row, is_odd, [&](peersum_u32 k) {
            const Unit s = ld_global_v4(rows.nth(buffers.input(rows.unit(row)), k));
            return buffers.apply_residual(rows, row, k, s);
        });
        is_odd = !is_odd;
    }
}

}  // namespace

// Twelve warps, one of which carries signals: so a thread may have 80 registers, and a row of 8192
// elements of two bytes stays in those of 256 threads.
#define PEERSUM_MAX_ROW_THREADS 352

PEERSUM_ENTRY(norm_rows, PEERSUM_MAX_ROW_THREADS, 2) { norm_rows(params); }

#if PEERSUM_WORLD_SIZE > 1
// From sm_100 on ptxas spills for these sizes if the largest blocks must have seats.
#if (PEERSUM_WORLD_SIZE == 2 || PEERSUM_WORLD_SIZE >= 7) && defined(__CUDA_ARCH__) && \
    __CUDA_ARCH__ > 900
#define PEERSUM_PUSHED_ROWS_BLOCKS 1
#else
#define PEERSUM_PUSHED_ROWS_BLOCKS 2
#endif

PEERSUM_ENTRY(norm_one_shot, PEERSUM_MAX_ROW_THREADS, PEERSUM_PUSHED_ROWS_BLOCKS) {
    one_shot<BlockRows>(params);
}

// The same for a launch in which every row has a cluster. Below sm_90 it is never launched.
PEERSUM_ENTRY(norm_clustered, PEERSUM_MAX_CLUSTERED_THREADS, PEERSUM_PUSHED_ROWS_BLOCKS) {
#ifdef PEERSUM_HAS_CLUSTERS
    one_shot<ClusterRows>(params);
#endif
}
#endif
