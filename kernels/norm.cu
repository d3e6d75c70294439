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
extern "C" __device__ __noinline__ void peersum_norm_signal_thread(const PeersumParams& params,
                                                                   peersum_u64 pull_epoch,
                                                                   peersum_u32 push_epoch,
                                                                   bool lost) {
    const Call call{position_of_thread(),
                    params,
                    reinterpret_cast<PeersumControl*>(params.arena[0]),
                    pull_epoch,
                    push_epoch,
                    0,
                    units_of(params.elements),
                    (pull_epoch + push_epoch) << PEERSUM_HEADER_SEQUENCE_SHIFT | params.header};
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

// The most units that a thread polls at once: as many as ptxas has registers for.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ > 900
constexpr int MOST_POLLED = KEEPS_OWN ? 2 : 1;
#else
constexpr int MOST_POLLED = KEEPS_OWN ? 4 : 1;
#endif

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
    const peersum_u32 epochs = epochs_of(call);
    peersum_u32 row = rows.begin();
    if (row < rows.count) {
#pragma unroll
        for (int k = 0; k < UNITS; ++k) {
            if (rows.has(k)) rows.send(rows.slots(row, k), sendable(loaded[k]));
        }
    }
    // Done while the peers' data is on its way.
    advance_unlaunched_epochs(call);
    bool is_odd = false;
#pragma unroll 1
    for (peersum_u32 next; row < rows.count; row = next) {
        next = row + rows.stride();
        // A row is on its way while the one before it is awaited.
        if (next < rows.count) send_row<UNITS>(rows, next);
        Unit r[UNITS], weight[UNITS];
        constexpr int AT_ONCE = UNITS < MOST_POLLED ? UNITS : MOST_POLLED;
#pragma unroll
        for (int begin = 0; begin < UNITS; begin += AT_ONCE) {
            // What r needs besides is on its way while the peers' units are awaited.
            Unit own[AT_ONCE], residual[AT_ONCE];
#pragma unroll
            for (int k = 0; k < AT_ONCE; ++k) {
                const int at = begin + k;
                own[k] = residual[k] = r[at] = weight[at] = Unit{0, 0, 0, 0};
                if (KEEPS_OWN && rows.has(at)) own[k] = rows.own_unit(row, at);
                if (buffers.has_residual() && rows.has(at))
                    residual[k] = ld_global_v4(rows.nth(buffers.residual(rows.unit(row)), at));
            }
            Unit received[AT_ONCE][SOURCES];
            const bool arrived = poll_units(rows, row, begin, received);
            // A warp goes together, because its threads exchange their sums.
            if (vote_any(!arrived)) {
#pragma unroll
                for (int k = 0; k < UNITS; ++k) {
                    if (k < begin && rows.has(k))
                        st_global_v4(rows.nth(buffers.kept(rows.unit(row)), k), r[k]);
                }
                return leave_rest<AnyRows>(
                    call.params, memory, epochs, row,
                    PROGRESS_SENT | PROGRESS_NEXT_SENT | begin | (is_odd ? PROGRESS_ODD : 0));
            }
            if (begin == 0 && row == rows.begin() && rows.has(0)) allow_next_kernel();
#pragma unroll
            for (int k = 0; k < AT_ONCE; ++k) {
                const int at = begin + k;
                if (!rows.has(at)) break;
                rearm(receive_address(call.params, rows.slots(row, at)));
                r[at] = reduce_received(received[k], own[k]);
                if (!buffers.has_residual()) continue;
                r[at] = add_residual(r[at], residual[k]);
                st_global_v4(rows.nth(buffers.residual(rows.unit(row)), at), r[at]);
            }
        }
        // On its way while the row is summed, if there are registers for it.
#pragma unroll
        for (int k = 0; k < UNITS; ++k) {
            if (UNITS <= 2 && rows.has(k)) weight[k] = buffers.weight(rows, k);
        }
        const float sum = sum_over_row(call, rows, memory, squares_of_warp(call, r), is_odd);
#pragma unroll
        for (int k = 0; k < UNITS; ++k) {
            if (UNITS > 2 && rows.has(k)) weight[k] = buffers.weight(rows, k);
        }
        store_row(call, buffers, rows, memory, row, r, weight, sum);
        is_odd = !is_odd;
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
    if (!position.is_signal_thread()) mark_epoch_read(call);
    const bool lost = is_lost_on_entry(call);
    if (position.is_signal_thread())
        return peersum_norm_signal_thread(params, call.pull_epoch, call.push_epoch, lost);
    // Before this thread stores to the memory of another block of its row.
    if (AnyRows::IN_CLUSTERS) barrier_cluster_wait();
    const bool warp_is_lost = vote_any(lost);
    if (warp_is_lost || rows.per_thread > MOST_UNITS) {
        advance_unlaunched_epochs(call);
        return leave_rest<AnyRows>(params, memory, epochs_of(call), rows.begin(),
                                   warp_is_lost ? PROGRESS_LOST : 0);
    }
    const auto pushed = pushed_rows(rows, params, call.push_epoch);
    if (rows.per_thread == 1) return normalise_pushed_rows<1>(call, buffers, memory, pushed, own);
    if (MOST_UNITS > 2 && rows.per_thread == 2)
        return normalise_pushed_rows<2>(call, buffers, memory, pushed, own);
    normalise_pushed_rows<MOST_UNITS>(call, buffers, memory, pushed, own);
}

}  // namespace

#endif

namespace {

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
    bool is_odd = false;
#pragma unroll 1
    for (peersum_u32 row = rows.begin(); row < rows.count; row += rows.stride()) {
        normalise_row<true>(position, buffers, rows, memory, row, is_odd, [&](peersum_u32 k) {
            const void* first = unit_address(params.input, rows.unit(row));
            return buffers.apply_residual(rows, row, k, ld_global_v4(rows.nth(first, k)));
        });
        is_odd = !is_odd;
    }
}

}  // namespace

// Two of the largest blocks fit a multiprocessor. So a seat has room for 512 threads, which keep
// the units of a row of 8192 elements in registers.
PEERSUM_ENTRY(norm_rows, PEERSUM_MAX_THREADS, 2) { norm_rows(params); }

#if PEERSUM_WORLD_SIZE > 1
// With eight ranks' units ptxas spills for the largest block from sm_100 on. So many registers
// leave no seat for one anyway.
#if PEERSUM_WORLD_SIZE == 8 && defined(__CUDA_ARCH__) && __CUDA_ARCH__ > 900
#define PEERSUM_ONE_SHOT_THREADS 384
#else
#define PEERSUM_ONE_SHOT_THREADS PEERSUM_MAX_THREADS
#endif

PEERSUM_ENTRY(norm_one_shot, PEERSUM_ONE_SHOT_THREADS, 1) { one_shot<BlockRows>(params); }

// With seven ranks' units ptxas spills if two of the largest blocks must fit, and with eight from
// sm_100 on.
#if PEERSUM_WORLD_SIZE == 7 || \
    (PEERSUM_WORLD_SIZE == 8 && defined(__CUDA_ARCH__) && __CUDA_ARCH__ > 900)
#define PEERSUM_CLUSTERED_BLOCKS 1
#else
#define PEERSUM_CLUSTERED_BLOCKS 2
#endif

// The same for a launch in which every row has a cluster. Below sm_90 it is never launched.
PEERSUM_ENTRY(norm_clustered, PEERSUM_MAX_CLUSTERED_THREADS, PEERSUM_CLUSTERED_BLOCKS) {
#ifdef PEERSUM_HAS_CLUSTERS
    one_shot<ClusterRows>(params);
#endif
}
#endif
