// slots.cuh - the memory of the push family: where a unit's slots are, sending, polling, re-arming.
#pragma once

#include "headers.cuh"
#include "units.cuh"

namespace {

constexpr Unit EMPTY_UNIT{PEERSUM_SLOT_EMPTY, PEERSUM_SLOT_EMPTY, PEERSUM_SLOT_EMPTY,
                          PEERSUM_SLOT_EMPTY};

// A pair keeps its own unit in registers. Larger groups send it to themselves as well: slots that
// are all alike need no choice between "mine" and "theirs" in the unrolled loops, which at eight
// ranks costs more than the slot.
constexpr bool KEEPS_OWN = WORLD_SIZE == 2;
constexpr int FIRST_STEP = KEEPS_OWN ? 1 : 0;
// The slots that one unit is awaited in: those that there are for it. A pair has one, its peer's.
constexpr int SOURCES = KEEPS_OWN ? 1 : WORLD_SIZE;

// A word that is exactly the empty mark becomes another NaN, on this register copy only.
PEERSUM_DEVICE peersum_u32 sendable(peersum_u32 word) {
    return word == PEERSUM_SLOT_EMPTY ? PEERSUM_SLOT_EMPTY_SUBSTITUTE : word;
}

PEERSUM_DEVICE Unit sendable(Unit v) {
    return Unit{sendable(v.x), sendable(v.y), sendable(v.z), sendable(v.w)};
}

PEERSUM_DEVICE peersum_u32 larger(peersum_u32 a, peersum_u32 b) { return a > b ? a : b; }

// The largest word: PEERSUM_SLOT_EMPTY, the largest there is, if any lane is missing. Every lane is
// looked at: a 16-byte store may arrive in parts.
PEERSUM_DEVICE peersum_u32 largest_word(Unit v) {
    return larger(larger(v.x, v.y),
                  PEERSUM_BREAK == PEERSUM_BREAK_LANE_UNCHECKED ? v.z : larger(v.z, v.w));
}

// Where the slots of `unit` begin in the first half of their group, one for each source,
// PEERSUM_SLOT_GROUP apart.
PEERSUM_DEVICE peersum_u64 slots_offset(peersum_u32 unit) {
    const peersum_u32 groups_before = unit & ~(PEERSUM_SLOT_GROUP - 1);
    return static_cast<peersum_u64>(unit) * PEERSUM_UNIT_BYTES +
           static_cast<peersum_u64>(groups_before) * ((2 * SOURCES - 1) * PEERSUM_UNIT_BYTES);
}

PEERSUM_DEVICE void* slot_of(peersum_u64 first_slot, peersum_u32 source) {
    return unit_address(first_slot, source * PEERSUM_SLOT_GROUP);
}

// Where a call's half of each group begins.
PEERSUM_DEVICE peersum_u64 half_offset(const Call& call) {
    return (call.push_epoch & 1) * (SOURCES * PEERSUM_SLOT_GROUP * PEERSUM_UNIT_BYTES);
}

// Where this rank stores a unit within every arena, given the offset of the unit's slots.
PEERSUM_DEVICE peersum_u64 sent_to(const PeersumParams& params, peersum_u64 slots) {
    return reinterpret_cast<peersum_u64>(slot_of(slots, KEEPS_OWN ? 0 : params.rank));
}

// Stores a unit at offset `slot` of the `step`-th peer's arena. Relaxed: the words are their own
// flags, nothing else is ordered by them.
PEERSUM_DEVICE void send(const PeersumParams& params, peersum_u64 slot, int step, Unit v) {
    st_relaxed_sys_v4(reinterpret_cast<void*>(params.arena[step] + slot), v);
}

PEERSUM_DEVICE void send_to_all(const PeersumParams& params, peersum_u64 slot, Unit v) {
#pragma unroll
    for (int step = FIRST_STEP; step < WORLD_SIZE; ++step) send(params, slot, step, v);
}

// Where this rank awaits a unit: the first of SOURCES slots.
PEERSUM_DEVICE peersum_u64 awaited_at(const PeersumParams& params, peersum_u64 slots) {
    return params.arena[0] + slots;
}

}  // namespace

// As peersum_look, for the slots of a unit: finds whom the wait is for.
extern "C" __device__ __noinline__ peersum_u64 peersum_look_at_slots(const PeersumParams& params,
                                                                     peersum_u64 own_header,
                                                                     peersum_u64 first_slot,
                                                                     peersum_u64 start_ns) {
    peersum_u32 missing = WORLD_SIZE;
#pragma unroll 1
    for (peersum_u32 source = 0; source < SOURCES; ++source) {
        if (largest_word(ld_relaxed_sys_v4(slot_of(first_slot, source))) == PEERSUM_SLOT_EMPTY)
            missing = source;
    }
    // All have come since the last poll: the wait ends at the next.
    if (missing == WORLD_SIZE) return start_ns == 0 ? globaltimer() : start_ns;
    return peersum_look(params, Announcement{own_header}, KEEPS_OWN ? params.rank ^ 1 : missing,
                        start_ns);
}

namespace {

// One poll of a unit's slots: whether all are there.
PEERSUM_DEVICE bool poll(peersum_u64 first_slot, Unit (&v)[SOURCES]) {
    // All loads are on their way at once.
#pragma unroll
    for (int source = 0; source < SOURCES; ++source)
        v[source] = ld_relaxed_sys_v4(slot_of(first_slot, source));
    peersum_u32 largest = 0;
#pragma unroll
    for (int source = 0; source < SOURCES; ++source)
        largest = larger(largest, largest_word(v[source]));
    return largest != PEERSUM_SLOT_EMPTY;
}

// Empties a unit's slots again: exactly the words that were taken, by the thread that took them.
// That is performed before this kernel ends, and a peer stores here again only after it saw data
// that this rank sent from a later kernel (README.md, "Re-arming").
PEERSUM_DEVICE void rearm(peersum_u64 first_slot) {
    if (PEERSUM_BREAK == PEERSUM_BREAK_NO_REARM) return;
#pragma unroll
    for (int source = 0; source < SOURCES; ++source)
        st_relaxed_sys_v4(slot_of(first_slot, source), EMPTY_UNIT);
}

// Polls a unit's slots until all are there, and empties them again. False if the wait was given up.
PEERSUM_DEVICE bool collect(const Call& call, peersum_u64 first_slot, Unit (&v)[SOURCES]) {
    Wait wait;
    while (!poll(first_slot, v)) {
        spin_pause();
        if (is_time_to_look(wait)) {
            wait.start_ns =
                peersum_look_at_slots(call.params, call.header, first_slot, wait.start_ns);
            if (wait.start_ns == 0) return false;
        }
    }
    rearm(first_slot);
    return true;
}

}  // namespace
