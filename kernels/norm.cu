// norm.cu - RMSNorm of the rows of an all-reduce: alone, behind a call of the other families, and
// in one kernel with a one-shot push.
//
// A block handles a row at a time; in the fused kernel a cluster of blocks can share a row. What a
// row gives depends on the row alone (rms.cuh), so both entry points give the same bits, whatever
// their grid.
#define PEERSUM_MODULE_FAMILY PEERSUM_FAMILY_PUSH
#define PEERSUM_MODULE_NORM
#include "fp8.cuh"
#if PEERSUM_WORLD_SIZE > 1
#include "push_call.cuh"
#endif

namespace {

// The most units of a row that a thread keeps in registers from the sum of squares to the result.
// With more it stores r where the call keeps it anyway, and loads it again.
constexpr peersum_u32 KEPT_UNITS = 2;

// The parameters of a call that concern rows, by unit.
struct RowBuffers {
    const PeersumParams& params;
#if PEERSUM_BREAK == PEERSUM_BREAK_WEIGHT_BEFORE_WAIT
    // Both entry points make this object before griddepcontrol.wait.
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

#if PEERSUM_WORLD_SIZE > 1

}  // namespace

// A signal thread's exchange of the norm words with its peer, within the call: the peer sends them
// from the same call, so this waits no longer than the data does. Removes the words once they are
// all compared. Relaxed: the words are compared as a whole and order nothing. Not inlined, so that
// the threads that handle units keep no registers for it.
extern "C" __device__ __noinline__ void peersum_exchange_norm_words(const PeersumParams& params,
                                                                    peersum_u64 header,
                                                                    peersum_u32 step) {
    PeersumControl* control = reinterpret_cast<PeersumControl*>(params.arena[0]);
    PeersumControl* receiver = reinterpret_cast<PeersumControl*>(params.arena[step]);
    const peersum_u32 ring = sequence_of(header) % PEERSUM_HEADER_RING;
    const peersum_u64 sequence = static_cast<peersum_u64>(sequence_of(header))
                                 << PEERSUM_HEADER_SEQUENCE_SHIFT;
    peersum_u64* sent =
        step == 0 ? control->own_norm_words[ring] : receiver->norm_words[ring][params.rank];
#pragma unroll 1
    for (peersum_u32 word = 0; word < PEERSUM_NORM_WORDS; ++word)
        st_relaxed_sys_u64(&sent[word], sequence | params.norm_words[word]);
    if (step == 0) return;
    const peersum_u32 peer = rank_of_step(params, step);
    peersum_u64 start_ns = 0;
#pragma unroll 1
    for (peersum_u32 word = 0; word < PEERSUM_NORM_WORDS; ++word) {
        const peersum_u64* awaited = &control->norm_words[ring][peer][word];
        for (peersum_u32 polls = 1;
             ld_relaxed_sys_u64(awaited) != (sequence | params.norm_words[word]); ++polls) {
            spin_pause();
            if (polls % POLLS_BETWEEN_LOOKS == 0) {
                start_ns = peersum_look(params, describe_call(params, header), peer, start_ns);
                // This rank has left the call.
                if (start_ns == 0) return;
            }
        }
    }
    // Only once all agree: if one differs, the host shows them all.
#pragma unroll 1
    for (peersum_u32 word = 0; word < PEERSUM_NORM_WORDS; ++word)
        st_relaxed_sys_u64(&control->norm_words[ring][peer][word], 0);
}

namespace {

// For signal threads. A lost call only keeps its words for the host, which then sees whether the
// ranks differ.
PEERSUM_DEVICE void exchange_norm_words(const Call& call, bool lost) {
    if (GUARDED && call.block == 0 && (!lost || call.step() == 0))
        peersum_exchange_norm_words(call.params, call.header, call.step());
}

// The distance between the slots of a thread's adjacent units, in bytes: the units that the lanes
// of a warp send together have neighbouring slots.
constexpr peersum_u64 NEXT_SLOTS = 2 * SOURCES * PEERSUM_SLOT_GROUP * PEERSUM_UNIT_BYTES;

// A thread's part of its rows in a one-shot push.
template <typename AnyRows>
struct PushedRows : AnyRows {
    using AnyRows::first;
    using AnyRows::per_thread;
    using AnyRows::units;

    const PeersumParams& params;
    // The offset of the call's half of the slots.
    peersum_u64 half;

    // This thread's first unit of a row in input, output and residual.
    __device__ __forceinline__ peersum_u32 unit(peersum_u32 row) const {
        return row * units + first;
    }
    __device__ __forceinline__ Unit own_unit(peersum_u32 unit) const {
        return sendable(ld_global_v4(unit_address(params.input, unit)));
    }
    // The offset of the slots of this thread's first unit of a row.
    __device__ __forceinline__ peersum_u64 slots(peersum_u32 row) const {
        peersum_u32 thread = tid_x();
        // A block of whole groups need not count the threads of the blocks before it.
        if (LANES % PEERSUM_SLOT_GROUP != 0) thread += this->block() * (ntid_x() - WORLD_SIZE);
        const peersum_u32 lane = thread % PEERSUM_SLOT_GROUP;
        const peersum_u32 group = PEERSUM_SLOT_GROUP * per_thread;
        const peersum_u32 row_slots = (units + group - 1) / group * group;
        return half + slots_offset(row * row_slots + first - lane * (per_thread - 1));
    }
    __device__ __forceinline__ void send(peersum_u64 slots, peersum_u32 k, Unit own) const {
        send_to_all(params, send_offset(params, slots) + k * NEXT_SLOTS, own);
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
            rows.send(rows.slots(unsent), k, rows.own_unit(rows.unit(unsent) + k));
    }
#pragma unroll 1
    for (peersum_u32 k = progress & PROGRESS_TAKEN; k < rows.own; ++k) {
        const peersum_u64 slots = rows.slots(row) + k * NEXT_SLOTS;
        Unit received[SOURCES];
        if (!lost) lost = !collect(call, receive_address(call.params, slots), received);
        if (!lost && k == 0 && row == rows.begin()) allow_next_kernel();
        const peersum_u32 unit = rows.unit(row) + k;
        Unit r = nan_unit();
        if (!lost) {
            Unit own = EMPTY_UNIT;
            if (KEEPS_OWN) own = rows.own_unit(unit);
            r = buffers.apply_residual(unit, reduce_received(received, own));
        }
        st_global_v4(buffers.kept(unit), r);
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
            [&](peersum_u32 k) { return ld_global_v4(buffers.kept(rows.unit(row) + k)); });
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

// Polls adjacent units from `first_slot` on, those that `has` names, for a while. True if all have
// arrived.
template <int COUNT, typename Has>
PEERSUM_DEVICE bool poll_units(peersum_u64 first_slot, Unit (&received)[COUNT][SOURCES], Has has) {
    for (peersum_u32 polls = 0;; ++polls) {
        bool arrived = true;
#pragma unroll
        for (int k = 0; k < COUNT; ++k) {
            // Not `&&`: the loads of all polls are in flight together.
            if (has(k)) arrived &= poll(first_slot + k * NEXT_SLOTS, received[k]);
        }
        if (arrived) return true;
        spin_pause();
        if (GUARDED && polls == POLLS_BETWEEN_LOOKS) return false;
    }
}

template <typename AnyRows>
PEERSUM_DEVICE void leave_rest(const PeersumParams& params, BlockMemory memory, peersum_u32 epochs,
                               peersum_u32 row, peersum_u32 progress) {
#ifdef PEERSUM_HAS_CLUSTERS
    if constexpr (AnyRows::IN_CLUSTERS)
        return peersum_norm_rest_of_cluster(params, memory, epochs, row, progress);
#endif
    peersum_norm_rest(params, memory, epochs, row, progress);
}

template <int UNITS, typename AnyRows>
PEERSUM_DEVICE void send_row(const PushedRows<AnyRows>& rows, peersum_u32 row) {
    const peersum_u64 slots = rows.slots(row);
#pragma unroll
    for (int k = 0; k < UNITS; ++k) {
        if (static_cast<peersum_u32>(k) < rows.own)
            rows.send(slots, k, rows.own_unit(rows.unit(row) + k));
    }
}

// Units of a thread's first row that are loaded together with the block's state.
constexpr int LOADED_AT_ONCE = 2;

// The most units of a row that a thread keeps in registers: larger groups have fewer to spare.
constexpr int MOST_UNITS = KEEPS_OWN ? PEERSUM_KEPT_ROW_UNITS_OF_PAIR : PEERSUM_KEPT_ROW_UNITS;

// The most units that a thread polls at once: as many as ptxas has registers for.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ > 900
constexpr int MOST_POLLED = KEEPS_OWN ? 2 : 1;
#else
constexpr int MOST_POLLED = KEEPS_OWN ? 4 : 1;
#endif

// Normalises a block's rows as they arrive, of which each thread has up to `UNITS` units: as many
// as `per_thread`. `loaded` are those of the first row.
template <int UNITS, typename AnyRows>
PEERSUM_DEVICE void normalise_pushed_rows(const Call& call, const RowBuffers& buffers,
                                          BlockMemory memory, PushedRows<AnyRows> rows,
                                          const Unit (&loaded)[LOADED_AT_ONCE]) {
    const peersum_u32 epochs = epochs_of(call);
    rows.per_thread = UNITS;
    const auto has = [&](int k) { return static_cast<peersum_u32>(k) < rows.own; };
    peersum_u32 row = rows.begin();
    if (row < rows.count) {
        const peersum_u64 slots = rows.slots(row);
#pragma unroll
        for (int k = 0; k < UNITS; ++k) {
            if (!has(k)) break;
            const bool is_loaded = k < LOADED_AT_ONCE;
            rows.send(slots, k,
                      is_loaded ? sendable(loaded[k % LOADED_AT_ONCE])
                                : rows.own_unit(rows.unit(row) + k));
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
        const peersum_u32 unit = rows.unit(row);
        const peersum_u64 from = receive_address(call.params, rows.slots(row));
        Unit r[UNITS], weight[UNITS];
        constexpr int AT_ONCE = UNITS < MOST_POLLED ? UNITS : MOST_POLLED;
#pragma unroll
        for (int begin = 0; begin < UNITS; begin += AT_ONCE) {
            // What r needs besides is on its way while the peers' units are awaited.
            Unit own[AT_ONCE], residual[AT_ONCE];
#pragma unroll
            for (int k = 0; k < AT_ONCE; ++k) {
                own[k] = residual[k] = r[begin + k] = weight[begin + k] = Unit{0, 0, 0, 0};
                if (KEEPS_OWN && has(begin + k)) own[k] = rows.own_unit(unit + begin + k);
                if (buffers.has_residual() && has(begin + k))
                    residual[k] = ld_global_v4(buffers.residual(unit + begin + k));
            }
            Unit received[AT_ONCE][SOURCES];
            const bool arrived = poll_units(from + begin * NEXT_SLOTS, received,
                                            [&](int k) { return has(begin + k); });
            // A warp goes together, because its threads exchange their sums.
            if (vote_any(!arrived)) {
#pragma unroll
                for (int k = 0; k < UNITS; ++k) {
                    if (k < begin && has(k)) st_global_v4(buffers.kept(unit + k), r[k]);
                }
                return leave_rest<AnyRows>(
                    call.params, memory, epochs, row,
                    PROGRESS_SENT | PROGRESS_NEXT_SENT | begin | (is_odd ? PROGRESS_ODD : 0));
            }
            if (begin == 0 && row == rows.begin() && has(0)) allow_next_kernel();
#pragma unroll
            for (int k = 0; k < AT_ONCE; ++k) {
                const int at = begin + k;
                if (!has(at)) break;
                rearm(from + at * NEXT_SLOTS);
                r[at] = reduce_received(received[k], own[k]);
                if (!buffers.has_residual()) continue;
                r[at] = add_residual(r[at], residual[k]);
                st_global_v4(buffers.residual(unit + at), r[at]);
            }
        }
        // On its way while the row is summed, if there are registers for it.
#pragma unroll
        for (int k = 0; k < UNITS; ++k) {
            if (UNITS <= 2 && has(k)) weight[k] = buffers.weight(rows.first + k);
        }
        const float sum = sum_over_row(call, rows, memory, squares_of_units(r), is_odd);
#pragma unroll
        for (int k = 0; k < UNITS; ++k) {
            if (UNITS > 2 && has(k)) weight[k] = buffers.weight(rows.first + k);
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
    const Call call = enter(params, position);
    // Loaded together with the block's state. A poisoned call may read its own input; it must not
    // store.
    Unit own[LOADED_AT_ONCE];
    if (rows.begin() < rows.count) {
        const peersum_u32 first = rows.begin() * rows.units + rows.first;
#pragma unroll
        for (peersum_u32 k = 0; k < LOADED_AT_ONCE; ++k) {
            if (k < rows.own) own[k] = ld_global_v4(unit_address(params.input, first + k));
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
    if (rows.per_thread == 2) return normalise_pushed_rows<2>(call, buffers, memory, pushed, own);
    normalise_pushed_rows<MOST_UNITS>(call, buffers, memory, pushed, own);
}

#endif

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
            const peersum_u32 unit = row * rows.units + rows.first + k;
            return buffers.apply_residual(unit, ld_global_v4(unit_address(params.input, unit)));
        });
        is_odd = !is_odd;
    }
}

}  // namespace

PEERSUM_ENTRY(norm_rows, PEERSUM_MAX_THREADS, 1) { norm_rows(params); }

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
