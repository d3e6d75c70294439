// norm.cu - RMSNorm of the rows of an all-reduce: alone, behind a call of the other families, and
// in one kernel with a one-shot push.
//
// One block handles a row at a time. What a row gives depends on the row alone (rms.cuh), so both
// entry points give the same bits, whatever their grid.
#define PEERSUM_MODULE_FAMILY PEERSUM_FAMILY_PUSH
#define PEERSUM_MODULE_NORM
#include "rms.cuh"
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

    // r of a unit, given s. Stores it if there is a residual.
    __device__ __forceinline__ Unit apply_residual(peersum_u32 unit, Unit s) const {
        if (!has_residual()) return s;
        void* residual = unit_address(params.residual, unit);
        const Unit r = add_residual(s, ld_global_v4(residual));
        st_global_v4(residual, r);
        return r;
    }
};

// Normalises one row. `next_sum(unit, s)` gives the sum over all ranks of the row's units, in
// ascending order; false if the call is lost for this thread, which then has NaN for them, and so
// has the whole row.
template <typename NextSum>
PEERSUM_DEVICE bool normalise_row(const ThreadPosition& position, const RowBuffers& buffers,
                                  const Rows& rows, peersum_u32 row, bool is_odd, bool lost,
                                  NextSum next_sum) {
    const peersum_u32 first = row * rows.units + rows.first;
    const bool is_kept = rows.per_thread <= KEPT_UNITS;
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
            if (k < rows.own) {
                Unit s = nan_unit();
                if (!lost) lost = !next_sum(first + k, s);
                kept[k] = lost ? nan_unit() : buffers.apply_residual(first + k, s);
            }
            if (k < rows.per_thread) sums.push(k, squares_of_unit(kept[k]));
        }
    } else {
#pragma unroll 1
        for (peersum_u32 k = 0; k < rows.per_thread; ++k) {
            Unit r{0, 0, 0, 0};
            if (k < rows.own) {
                Unit s = nan_unit();
                if (!lost) lost = !next_sum(first + k, s);
                r = lost ? nan_unit() : buffers.apply_residual(first + k, s);
                if (!buffers.has_residual()) st_global_v4(buffers.kept(first + k), r);
            }
            sums.push(k, squares_of_unit(r));
        }
    }
    const float sum = sum_over_block(position, rows.memory, sums.total(rows.per_thread), is_odd);
    const float scale = scale_of_row(buffers.params, sum);
    if (is_kept) {
#pragma unroll
        for (peersum_u32 k = 0; k < KEPT_UNITS; ++k) {
            if (k < rows.own)
                st_global_v4(buffers.output(first + k),
                             normalise(buffers.params, kept[k], scale, weight[k]));
        }
    } else {
#pragma unroll 1
        for (peersum_u32 k = 0; k < rows.own; ++k) {
            const Unit r = ld_global_v4(buffers.kept(first + k));
            st_global_v4(buffers.output(first + k),
                         normalise(buffers.params, r, scale, buffers.weight(rows.first + k)));
        }
    }
    return !lost;
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

// The slot of a unit: the units that the lanes of a warp send together have neighbouring slots.
PEERSUM_DEVICE peersum_u32 slot_unit(const Rows& rows, const ThreadPosition& position,
                                     peersum_u32 row, peersum_u32 k) {
    const peersum_u32 lane = position.thread % PEERSUM_SLOT_GROUP;
    const peersum_u32 warp_first = (position.thread - lane) * rows.per_thread;
    const peersum_u32 group = PEERSUM_SLOT_GROUP * rows.per_thread;
    const peersum_u32 row_slots = (rows.units + group - 1) / group * group;
    return row * row_slots + warp_first + k * PEERSUM_SLOT_GROUP + lane;
}

PEERSUM_DEVICE void one_shot(const PeersumParams& params) {
    const ThreadPosition position = position_of_thread();
    const Rows rows = rows_of(params, position);
    const RowBuffers buffers{params};
    const Call call = enter(params, position);
    if (!position.is_signal_thread()) mark_epoch_read(call);
    bool lost = is_lost_on_entry(call);
    if (position.is_signal_thread()) {
        if (lost) exchange_norm_words(call, true);
        return run_signal_thread(call, lost, [&] { exchange_norm_words(call, false); });
    }
    advance_unlaunched_epochs(call);
    const peersum_u64 slots = params.push_offset + half_offset(call);
    const auto send_row = [&](peersum_u32 row) {
        const peersum_u32 first = row * rows.units + rows.first;
#pragma unroll 1
        for (peersum_u32 k = 0; k < rows.own; ++k) {
            const Unit own = ld_global_v4(unit_address(params.input, first + k));
            send_to_all(
                params,
                send_offset(params, slots + slots_offset(slot_unit(rows, position, row, k))),
                sendable(own));
        }
    };
    // A row is on its way while the one before it is awaited.
    if (!lost && position.block < rows.count) send_row(position.block);
    bool is_odd = false;
#pragma unroll 1
    for (peersum_u32 row = position.block; row < rows.count; row += position.blocks) {
        if (!lost && row + position.blocks < rows.count) send_row(row + position.blocks);
        const peersum_u32 first = row * rows.units + rows.first;
        const bool kept = normalise_row(
            position, buffers, rows, row, is_odd, lost, [&](peersum_u32 unit, Unit& s) {
                const peersum_u64 slot =
                    slots + slots_offset(slot_unit(rows, position, row, unit - first));
                Unit received[SOURCES];
                if (!collect(call, receive_address(params, slot), received)) return false;
                if (unit == position.block * rows.units + rows.first) allow_next_kernel();
                Unit own = EMPTY_UNIT;
                if (KEEPS_OWN) own = sendable(ld_global_v4(unit_address(params.input, unit)));
                s = reduce_received(received, own);
                return true;
            });
        lost = !kept;
        is_odd = !is_odd;
    }
}

#endif

// Normalises rows of `input`, which an earlier kernel has reduced. Behind a call of several ranks
// it also exchanges that call's norm words, so it allows no next kernel before it ends: until then
// a peer's part of it may need the seats.
PEERSUM_DEVICE void norm_rows(const PeersumParams& params) {
    const ThreadPosition position = position_of_thread();
    const Rows rows = rows_of(params, position);
    const RowBuffers buffers{params};
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
    for (peersum_u32 row = position.block; row < rows.count; row += position.blocks) {
        normalise_row(position, buffers, rows, row, is_odd, false, [&](peersum_u32 unit, Unit& s) {
            s = ld_global_v4(unit_address(params.input, unit));
            return true;
        });
        is_odd = !is_odd;
    }
}

}  // namespace

PEERSUM_ENTRY(norm_rows, 1) { norm_rows(params); }

#if PEERSUM_WORLD_SIZE > 1
PEERSUM_ENTRY(norm_one_shot, 1) { one_shot(params); }
#endif
