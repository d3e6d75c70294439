// push.cu - the push family: every rank stores its units into its peers' slots and polls its own. The data is the flag.
//
// After NCCL's LL protocols and Lamport-style all-reduces, in which a value that is not data marks an empty slot. What differs: integer
// compares of every word, no finite value ever touched, exactly the received words re-armed, an epoch a block that any grid may follow.
#include "protocol.cuh"

namespace {

constexpr Unit EMPTY_UNIT{PEERSUM_SLOT_EMPTY, PEERSUM_SLOT_EMPTY, PEERSUM_SLOT_EMPTY, PEERSUM_SLOT_EMPTY};

// A word that is exactly the empty mark becomes another NaN, on this register copy only.
PEERSUM_DEVICE peersum_u32 sendable(peersum_u32 word) {
    return word == PEERSUM_SLOT_EMPTY ? PEERSUM_SLOT_EMPTY_SUBSTITUTE : word;
}

PEERSUM_DEVICE Unit sendable(Unit v) { return Unit{sendable(v.x), sendable(v.y), sendable(v.z), sendable(v.w)}; }

// Every lane is looked at: a 16-byte store may arrive in parts.
PEERSUM_DEVICE bool is_missing(Unit v) {
    const bool last = PEERSUM_BREAK != PEERSUM_BREAK_LANE_UNCHECKED && v.w == PEERSUM_SLOT_EMPTY;
    return (v.x == PEERSUM_SLOT_EMPTY) | (v.y == PEERSUM_SLOT_EMPTY) | (v.z == PEERSUM_SLOT_EMPTY) | last;
}

// The slots of one step of a call: where rank 0's begin within an arena, and how far apart two ranks' slots of the same unit lie.
struct Slots {
    peersum_u64 base;
    peersum_u64 rank_stride;

    __device__ __forceinline__ void* at(peersum_u64 arena, peersum_u32 rank, peersum_u32 unit) const {
        return unit_address(arena + base + rank * rank_stride, unit);
    }
};

// The half of this call, cut into `parts` of whole units.
PEERSUM_DEVICE Slots slots_of(const Call& call, peersum_u32 parts) {
    return Slots{call.params.push_offset + (call.push_epoch & 1) * call.params.push_half_bytes,
                 call.params.push_half_bytes / (parts * PEERSUM_UNIT_BYTES) * PEERSUM_UNIT_BYTES};
}

PEERSUM_DEVICE void store_to_slot(const Call& call, const Slots& slots, peersum_u32 peer, peersum_u32 unit, Unit v) {
    // Relaxed: the words are their own flags, nothing else is ordered by them.
    st_relaxed_sys_v4(slots.at(call.params.arena[peer], call.params.rank, unit), v);
}

// Polls this rank's slots of `unit` for each rank that is `wanted`, until all are there, and empties them again: exactly the words that were
// taken, by the thread that took them. That is performed before this kernel ends, and a peer stores here again only after it saw data
// that this rank sent from a later kernel (README.md, "Re-arming"). False if the wait was given up.
PEERSUM_DEVICE bool collect(const Call& call, const Slots& slots, peersum_u32 unit, const bool (&wanted)[WORLD_SIZE],
                            Unit (&v)[WORLD_SIZE]) {
    const peersum_u64 arena = call.params.arena[call.params.rank];
    bool missing[WORLD_SIZE];
#pragma unroll
    for (int rank = 0; rank < WORLD_SIZE; ++rank) missing[rank] = wanted[rank];
    Wait wait;
    for (;;) {
        // All loads of a poll are on their way at once; what has come is not loaded again.
        bool any_missing = false;
#pragma unroll
        for (int rank = 0; rank < WORLD_SIZE; ++rank) ld_relaxed_sys_v4_if(missing[rank], slots.at(arena, rank, unit), v[rank]);
#pragma unroll
        for (int rank = 0; rank < WORLD_SIZE; ++rank) {
            missing[rank] = is_missing(v[rank]);
            any_missing |= missing[rank];
        }
        if (!any_missing) break;
        spin_pause();
        if (is_time_to_look(wait)) {
            peersum_u32 peer = 0;
#pragma unroll
            for (int rank = 0; rank < WORLD_SIZE; ++rank) peer = missing[rank] ? rank : peer;
            if (gives_up(call, wait, peer, call.header)) return false;
        }
    }
    if (PEERSUM_BREAK == PEERSUM_BREAK_NO_REARM) return true;
#pragma unroll
    for (int rank = 0; rank < WORLD_SIZE; ++rank) {
        if (wanted[rank]) st_relaxed_sys_v4(slots.at(arena, rank, unit), EMPTY_UNIT);
    }
    return true;
}

// The sum of this rank's own unit and all peers' slots of it. False if the wait was given up.
PEERSUM_DEVICE bool collect_and_reduce(const Call& call, const Slots& slots, peersum_u32 unit, Unit own, Unit& result) {
    Unit v[WORLD_SIZE];
    bool wanted[WORLD_SIZE];
#pragma unroll
    for (int rank = 0; rank < WORLD_SIZE; ++rank) {
        wanted[rank] = rank != call.params.rank;
        v[rank] = own;
    }
    if (!collect(call, slots, unit, wanted, v)) return false;
    result = reduce(v);
    return true;
}

// Memory of this rank alone for units that are not one aligned access: the staging half that the next pull call will write. No peer reads it any
// more: this rank has passed the opening barrier of the last pull call, and so every peer has ended the one before.
PEERSUM_DEVICE peersum_u64 scratch(const Call& call) {
    return call.params.arena[call.params.rank] + call.params.staging_offset +
           (call.pull_epoch & 1) * call.params.staging_half_bytes;
}

// What every push call does before its first store to a peer. True if the call is lost.
PEERSUM_DEVICE bool begin(const Call& call) {
    leave_if_poisoned(call);
    const bool lost = call.poison != 0;
    return STRICT_ORDER ? bar_red_or(lost) || !acquire_previous_call(call) : lost;
}

// The end of every push call. The barrier serves two ends: all threads have read the epoch, and the block's last wait is over.
PEERSUM_DEVICE void finish(const Call& call, bool lost, const Buffer& output, Share share) {
    store_narrow_units(call, output, call.units, share, lost);
    bar_sync();
    griddepcontrol_launch_dependents();
    advance_epoch<PEERSUM_FAMILY_PUSH>(call);
}

PEERSUM_DEVICE void one_shot(const PeersumParams& params) {
    const Call call = enter(params);
    const peersum_u32 units = call.units;
    const Share share{units, units};
    const Slots slots = slots_of(call, WORLD_SIZE);
    const Buffer input = buffer_at(params.input, scratch(call), params.elements);
    const Buffer output = buffer_at(params.output, scratch(call), params.elements);
    const peersum_u32 first = call.first_unit();

    // A thread's first unit stays in registers: at small sizes it is the only one. Its load is on its way together with that of the block's state;
    // a poisoned call may read its own input, it may only not store.
    Unit first_own = EMPTY_UNIT;
    if (first < input.wide) first_own = sendable(ld_global_v4(unit_address(input.address, first)));
    bool lost = begin(call);
    if (!lost) {
        load_narrow_units(call, input, share);
        if (first >= input.wide && first < units) first_own = sendable(ld_global_v4(input.at(first)));
#pragma unroll 1
        for (peersum_u32 unit = first; unit < units; unit += call.unit_stride()) {
            const Unit own = unit == first ? first_own : sendable(ld_global_v4(input.at(unit)));
#pragma unroll
            for (int step = 1; step < WORLD_SIZE; ++step) store_to_slot(call, slots, call.peer(step), unit, own);
        }
        send_header(call);
        lost = !previous_headers_agree(call);
    }
#pragma unroll 1
    for (peersum_u32 unit = first; unit < units && !lost; unit += call.unit_stride()) {
        const Unit own = unit == first ? first_own : sendable(ld_global_v4(input.at(unit)));
        Unit result;
        lost = !collect_and_reduce(call, slots, unit, own, result);
        if (!lost) st_global_v4(output.at(unit), result);
    }
    finish(call, lost, output, share);
}

// Chunk c of the array belongs to rank c, who reduces it and sends the result to all. A thread handles the same place of every chunk from end
// to end (sends it, reduces it where this rank owns it, stores the result), so no barrier is needed between the steps.
PEERSUM_DEVICE void two_shot(const PeersumParams& params) {
    const Call call = enter(params);
    const peersum_u32 units = call.units;
    const peersum_u32 chunk = (units + WORLD_SIZE - 1) / WORLD_SIZE;
    const Share share{chunk, chunk};
    const Slots scatter = slots_of(call, 2 * WORLD_SIZE);
    const Slots gather{scatter.base + WORLD_SIZE * scatter.rank_stride, scatter.rank_stride};
    const Buffer input = buffer_at(params.input, scratch(call), params.elements);
    const Buffer output = buffer_at(params.output, scratch(call), params.elements);

    bool lost = begin(call);
    if (!lost) {
        load_narrow_units(call, input, share);
#pragma unroll 1
        for (peersum_u32 i = call.first_unit(); i < chunk; i += call.unit_stride()) {
#pragma unroll
            for (int step = 1; step < WORLD_SIZE; ++step) {
                const peersum_u32 owner = call.peer(step);
                const peersum_u32 unit = owner * chunk + i;
                if (unit < units) store_to_slot(call, scatter, owner, i, sendable(ld_global_v4(input.at(unit))));
            }
        }
        send_header(call);
        lost = !previous_headers_agree(call);
    }
#pragma unroll 1
    for (peersum_u32 i = call.first_unit(); i < chunk && !lost; i += call.unit_stride()) {
        const peersum_u32 unit = params.rank * chunk + i;
        if (unit >= units) break;
        Unit result;
        lost = !collect_and_reduce(call, scatter, i, sendable(ld_global_v4(input.at(unit))), result);
        if (lost) break;
        // A reduced word is never the empty mark: a NaN in it is canonical.
#pragma unroll
        for (int step = 1; step < WORLD_SIZE; ++step) store_to_slot(call, gather, call.peer(step), i, result);
        st_global_v4(output.at(unit), result);
    }
#pragma unroll 1
    for (peersum_u32 i = call.first_unit(); i < chunk && !lost; i += call.unit_stride()) {
        Unit v[WORLD_SIZE];
        bool wanted[WORLD_SIZE];
#pragma unroll
        for (int owner = 0; owner < WORLD_SIZE; ++owner) {
            wanted[owner] = owner != params.rank && owner * chunk + i < units;
            v[owner] = nan_unit();
        }
        lost = !collect(call, gather, i, wanted, v);
#pragma unroll
        for (int owner = 0; owner < WORLD_SIZE; ++owner) {
            if (wanted[owner] && !lost) st_global_v4(output.at(owner * chunk + i), v[owner]);
        }
    }
    finish(call, lost, output, share);
}

}  // namespace

PEERSUM_ENTRY(push_one_shot) { one_shot(params); }

PEERSUM_ENTRY(push_two_shot) { two_shot(params); }
