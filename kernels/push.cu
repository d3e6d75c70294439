// push.cu - the push family: every rank stores its units into slots at every rank and polls its own. The data is the flag.
//
// After NCCL's LL protocols and Lamport-style all-reduces, in which a value that is not data marks an empty slot. What differs: integer
// compares of every word, no finite value ever touched, exactly the received words re-armed, an epoch a block that any grid may follow.
#include "protocol.cuh"

namespace {

constexpr Unit EMPTY_UNIT{PEERSUM_SLOT_EMPTY, PEERSUM_SLOT_EMPTY, PEERSUM_SLOT_EMPTY, PEERSUM_SLOT_EMPTY};

// A pair keeps its own unit in registers. Larger groups send it to themselves as well: slots that are all alike need no choice between "mine" and
// "theirs" in the unrolled loops, which at eight ranks costs more than the slot.
constexpr bool KEEPS_OWN = WORLD_SIZE == 2;
constexpr int FIRST_STEP = KEEPS_OWN ? 1 : 0;
// The slots that one unit is awaited in.
constexpr int SOURCES = KEEPS_OWN ? 1 : WORLD_SIZE;

// A word that is exactly the empty mark becomes another NaN, on this register copy only.
PEERSUM_DEVICE peersum_u32 sendable(peersum_u32 word) {
    return word == PEERSUM_SLOT_EMPTY ? PEERSUM_SLOT_EMPTY_SUBSTITUTE : word;
}

PEERSUM_DEVICE Unit sendable(Unit v) { return Unit{sendable(v.x), sendable(v.y), sendable(v.z), sendable(v.w)}; }

PEERSUM_DEVICE peersum_u32 larger(peersum_u32 a, peersum_u32 b) { return a > b ? a : b; }

// The largest word: PEERSUM_SLOT_EMPTY, the largest there is, if any lane is missing. Every lane is looked at: a 16-byte store may arrive in parts.
PEERSUM_DEVICE peersum_u32 largest_word(Unit v) {
    return larger(larger(v.x, v.y), PEERSUM_BREAK == PEERSUM_BREAK_LANE_UNCHECKED ? v.z : larger(v.z, v.w));
}

// The slots of one step of a call: the offset of unit 0's first slot within an arena.
struct Slots {
    peersum_u64 offset;

    // Where the slots of `unit` begin, one for each source, PEERSUM_SLOT_GROUP apart.
    __device__ __forceinline__ peersum_u64 of(peersum_u32 unit) const {
        const peersum_u32 groups_before = unit & ~(PEERSUM_SLOT_GROUP - 1);
        return offset + static_cast<peersum_u64>(unit) * PEERSUM_UNIT_BYTES +
               static_cast<peersum_u64>(groups_before) * ((WORLD_SIZE - 1) * PEERSUM_UNIT_BYTES);
    }
};

PEERSUM_DEVICE void* slot_of(peersum_u64 first_slot, peersum_u32 source) {
    return unit_address(first_slot, source * PEERSUM_SLOT_GROUP);
}

// The half of this call; for the second step of a two-shot call the second half of it.
PEERSUM_DEVICE Slots slots_of(const Call& call) {
    return Slots{call.params.push_offset + (call.push_epoch & 1) * call.params.push_half_bytes};
}

PEERSUM_DEVICE Slots behind(const Call& call, Slots slots) {
    return Slots{slots.offset + call.params.push_half_bytes / (2 * PEERSUM_UNIT_BYTES) * PEERSUM_UNIT_BYTES};
}

// Stores a unit into this rank's slot at the `step`-th peer.
PEERSUM_DEVICE void send(const Call& call, Slots slots, int step, peersum_u32 unit, Unit v) {
    // Relaxed: the words are their own flags, nothing else is ordered by them.
    st_relaxed_sys_v4(slot_of(call.params.arena[step] + slots.of(unit), call.params.rank), v);
}

PEERSUM_DEVICE void send_to_all(const Call& call, Slots slots, peersum_u32 unit, Unit v) {
#pragma unroll
    for (int step = FIRST_STEP; step < WORLD_SIZE; ++step) send(call, slots, step, unit, v);
}

// Where this rank awaits `unit`: the first of SOURCES slots.
PEERSUM_DEVICE peersum_u64 awaited_at(const Call& call, Slots slots, peersum_u32 unit) {
    const peersum_u64 first_slot = call.params.arena[0] + slots.of(unit);
    return KEEPS_OWN ? reinterpret_cast<peersum_u64>(slot_of(first_slot, call.params.rank ^ 1)) : first_slot;
}

}  // namespace

// As peersum_look, for the slots of a unit: finds whom the wait is for.
extern "C" __device__ __noinline__ peersum_u64 peersum_look_at_slots(const PeersumParams& params, peersum_u64 own_header,
                                                                     peersum_u64 first_slot, peersum_u64 start_ns) {
    peersum_u32 missing = WORLD_SIZE;
#pragma unroll 1
    for (peersum_u32 source = 0; source < SOURCES; ++source) {
        if (largest_word(ld_relaxed_sys_v4(slot_of(first_slot, source))) == PEERSUM_SLOT_EMPTY) missing = source;
    }
    // All have come since the last poll: the wait ends at the next.
    if (missing == WORLD_SIZE) return start_ns == 0 ? globaltimer() : start_ns;
    return peersum_look(params, own_header, KEEPS_OWN ? params.rank ^ 1 : missing, start_ns);
}

namespace {

// Polls a unit's slots until all are there, and empties them again: exactly the words that were taken, by the thread that took them. That is performed
// before this kernel ends, and a peer stores here again only after it saw data that this rank sent from a later kernel (README.md, "Re-arming").
// False if the wait was given up.
PEERSUM_DEVICE bool collect(const Call& call, peersum_u64 first_slot, Unit (&v)[SOURCES]) {
    Wait wait;
    for (;;) {
        // All loads of a poll are on their way at once.
#pragma unroll
        for (int source = 0; source < SOURCES; ++source) v[source] = ld_relaxed_sys_v4(slot_of(first_slot, source));
        peersum_u32 largest = 0;
#pragma unroll
        for (int source = 0; source < SOURCES; ++source) largest = larger(largest, largest_word(v[source]));
        if (largest != PEERSUM_SLOT_EMPTY) break;
        spin_pause();
        if (is_time_to_look(wait)) {
            wait.start_ns = peersum_look_at_slots(call.params, call.header, first_slot, wait.start_ns);
            if (wait.start_ns == 0) return false;
        }
    }
    if (PEERSUM_BREAK == PEERSUM_BREAK_NO_REARM) return true;
#pragma unroll
    for (int source = 0; source < SOURCES; ++source) st_relaxed_sys_v4(slot_of(first_slot, source), EMPTY_UNIT);
    return true;
}

// The sum of a unit over all ranks; `own` is this rank's, if it keeps it. False if the wait was given up.
PEERSUM_DEVICE bool collect_and_reduce(const Call& call, Slots slots, peersum_u32 unit, Unit own, Unit& result) {
    Unit received[SOURCES];
    if (!collect(call, awaited_at(call, slots, unit), received)) return false;
    Unit v[WORLD_SIZE];
#pragma unroll
    for (int source = 0; source < WORLD_SIZE; ++source) v[source] = source < SOURCES ? received[source % SOURCES] : own;
    result = reduce(v);
    return true;
}

// Memory of this rank alone for units that are not one aligned access: the staging half that the next pull call will write. No peer reads it any
// more: this rank has passed the opening barrier of the last pull call, and so every peer has ended the one before.
PEERSUM_DEVICE peersum_u64 scratch(const Call& call) {
    return call.params.arena[0] + call.params.staging_offset + (call.pull_epoch & 1) * call.params.staging_half_bytes;
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
    const Slots slots = slots_of(call);
    const Buffer input = buffer_at(params.input, scratch(call), params.elements);
    const Buffer output = buffer_at(params.output, scratch(call), params.elements);
    const peersum_u32 first = call.first_unit();

    // A thread's first unit is loaded together with the block's state: at small sizes it is the only one. A poisoned call may read its own
    // input, it may only not store.
    Unit first_own = EMPTY_UNIT;
    if (first < input.wide) first_own = ld_global_v4(unit_address(input.address, first));
    bool lost = begin(call);
    if (!lost) {
        load_narrow_units(call, input, share);
        if (first >= input.wide && first < units) first_own = ld_global_v4(input.at(first));
        first_own = sendable(first_own);
        Unit own = first_own;
#pragma unroll 1
        for (peersum_u32 unit = first; unit < units;) {
            send_to_all(call, slots, unit, own);
            unit += call.unit_stride();
            if (unit < units) own = sendable(ld_global_v4(input.at(unit)));
        }
        send_header(call);
        lost = !previous_headers_agree(call);
    }
    Unit own = first_own;
#pragma unroll 1
    for (peersum_u32 unit = first; unit < units && !lost;) {
        Unit result;
        lost = !collect_and_reduce(call, slots, unit, own, result);
        if (!lost) st_global_v4(output.at(unit), result);
        unit += call.unit_stride();
        if (KEEPS_OWN && unit < units) own = sendable(ld_global_v4(input.at(unit)));
    }
    finish(call, lost, output, share);
}

// Chunk c of the array belongs to rank c, who reduces it and sends the result to all. A thread handles the same place of every chunk from end
// to end (sends it, reduces it where this rank owns it, stores the result), so no barrier is needed between the steps. All chunks are equally
// long: what lies behind the array is sent as zeros and not stored, so that every wait is for the same slots.
PEERSUM_DEVICE void two_shot(const PeersumParams& params) {
    const Call call = enter(params);
    const peersum_u32 units = call.units;
    const peersum_u32 chunk = (units + WORLD_SIZE - 1) / WORLD_SIZE;
    const Share share{chunk, chunk};
    const Slots scatter = slots_of(call);
    const Slots gather = behind(call, scatter);
    const Buffer input = buffer_at(params.input, scratch(call), params.elements);
    const Buffer output = buffer_at(params.output, scratch(call), params.elements);

    bool lost = begin(call);
    if (!lost) {
        load_narrow_units(call, input, share);
#pragma unroll 1
        for (peersum_u32 i = call.first_unit(); i < chunk; i += call.unit_stride()) {
            Unit v[WORLD_SIZE];
#pragma unroll
            for (int step = FIRST_STEP; step < WORLD_SIZE; ++step) {
                const peersum_u32 unit = call.peer(step) * chunk + i;
                v[step] = Unit{0, 0, 0, 0};
                if (unit < units) v[step] = ld_global_v4(input.at(unit));
            }
#pragma unroll
            for (int step = FIRST_STEP; step < WORLD_SIZE; ++step) send(call, scatter, step, i, sendable(v[step]));
        }
        send_header(call);
        lost = !previous_headers_agree(call);
    }
#pragma unroll 1
    for (peersum_u32 i = call.first_unit(); i < chunk && !lost; i += call.unit_stride()) {
        const peersum_u32 unit = params.rank * chunk + i;
        Unit own{0, 0, 0, 0};
        if (KEEPS_OWN && unit < units) own = sendable(ld_global_v4(input.at(unit)));
        Unit result;
        lost = !collect_and_reduce(call, scatter, i, own, result);
        if (lost) break;
        // A reduced word is never the empty mark: a NaN in it is canonical.
        send_to_all(call, gather, i, result);
        if (KEEPS_OWN && unit < units) st_global_v4(output.at(unit), result);
    }
#pragma unroll 1
    for (peersum_u32 i = call.first_unit(); i < chunk && !lost; i += call.unit_stride()) {
        Unit v[SOURCES];
        lost = !collect(call, awaited_at(call, gather, i), v);
#pragma unroll
        for (int source = 0; source < SOURCES; ++source) {
            const peersum_u32 owner = KEEPS_OWN ? params.rank ^ 1 : source;
            const peersum_u32 unit = owner * chunk + i;
            if (unit < units && !lost) st_global_v4(output.at(unit), v[source]);
        }
    }
    finish(call, lost, output, share);
}

}  // namespace

PEERSUM_ENTRY(push_one_shot) { one_shot(params); }

PEERSUM_ENTRY(push_two_shot) { two_shot(params); }
