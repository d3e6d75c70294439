// slots.cuh - the slots of the push family: their addresses, sending, polling, re-arming.
#pragma once

#include "headers.cuh"

namespace {

constexpr Unit EMPTY_UNIT{PEERSUM_SLOT_EMPTY, PEERSUM_SLOT_EMPTY, PEERSUM_SLOT_EMPTY,
                          PEERSUM_SLOT_EMPTY};

// A pair keeps its own unit in registers. Larger groups also send it to themselves: if all sources
// have slots, the unrolled loops need no choice between own and received units. At eight ranks that
// choice costs more than the slot.
constexpr bool KEEPS_OWN = WORLD_SIZE == 2;
constexpr int FIRST_STEP = KEEPS_OWN ? 1 : 0;
// Slots polled for one unit. A pair has one, its peer's.
constexpr int SOURCES = KEEPS_OWN ? 1 : WORLD_SIZE;

// Replaces a word that equals the empty mark with another NaN, in this register copy only.
PEERSUM_DEVICE peersum_u32 sendable(peersum_u32 word) {
    return word == PEERSUM_SLOT_EMPTY ? PEERSUM_SLOT_EMPTY_SUBSTITUTE : word;
}

PEERSUM_DEVICE Unit sendable(Unit v) {
    return Unit{sendable(v.x), sendable(v.y), sendable(v.z), sendable(v.w)};
}

PEERSUM_DEVICE peersum_u32 larger(peersum_u32 a, peersum_u32 b) { return a > b ? a : b; }

// The largest word of a unit. It is PEERSUM_SLOT_EMPTY, the largest value of all, if any word has
// not arrived. Every word is checked: a 16-byte store may arrive in parts.
PEERSUM_DEVICE peersum_u32 largest_word(Unit v) {
    return larger(larger(v.x, v.y),
                  PEERSUM_BREAK == PEERSUM_BREAK_LANE_UNCHECKED ? v.z : larger(v.z, v.w));
}

// The offset of a unit's first slot, within the first half of its group. The unit's slots, one for
// each source, are PEERSUM_SLOT_GROUP slots apart.
PEERSUM_DEVICE peersum_u64 slots_offset(peersum_u32 unit) {
    const peersum_u32 groups_before = unit & ~(PEERSUM_SLOT_GROUP - 1);
    return static_cast<peersum_u64>(unit) * PEERSUM_UNIT_BYTES +
           static_cast<peersum_u64>(groups_before) * ((2 * SOURCES - 1) * PEERSUM_UNIT_BYTES);
}

PEERSUM_DEVICE void* slot_address(peersum_u64 first_slot, peersum_u32 source) {
    return unit_address(first_slot, source * PEERSUM_SLOT_GROUP);
}

// The offset, within each group, of the half that a call with this push epoch uses.
PEERSUM_DEVICE peersum_u64 half_offset_of(peersum_u32 push_epoch) {
    return (push_epoch & 1) * (SOURCES * PEERSUM_SLOT_GROUP * PEERSUM_UNIT_BYTES);
}

PEERSUM_DEVICE peersum_u64 half_offset(const Call& call) { return half_offset_of(call.push_epoch); }

// The offset in every arena at which this rank stores a unit, given the offset of the unit's slots.
PEERSUM_DEVICE peersum_u64 send_offset(const PeersumParams& params, peersum_u64 slots) {
    return reinterpret_cast<peersum_u64>(slot_address(slots, KEEPS_OWN ? 0 : params.rank));
}

// Stores a unit at offset `slot` of the `step`-th peer's arena. Relaxed: each word is its own flag
// and orders nothing else.
PEERSUM_DEVICE void send(const PeersumParams& params, peersum_u64 slot, int step, Unit v) {
    st_relaxed_sys_v4(reinterpret_cast<void*>(params.arena[step] + slot), v);
}

PEERSUM_DEVICE void send_to_all(const PeersumParams& params, peersum_u64 slot, Unit v) {
#pragma unroll
    for (int step = FIRST_STEP; step < WORLD_SIZE; ++step) send(params, slot, step, v);
}

// Has a pair know where its first unit goes before the call waits for the kernel in front of it.
// More than that, or the same in a larger group, delays the first store: after a short kernel this
// one starts late, and the peers wait for all that it does.
PEERSUM_DEVICE void prepare_first_store(const PeersumParams& params, peersum_u64 slot) {
    if (KEEPS_OWN) compute_before_wait(params.arena[1] + slot);
}

// The address of the first of the SOURCES slots in which this rank receives a unit.
PEERSUM_DEVICE peersum_u64 receive_address(const PeersumParams& params, peersum_u64 slots) {
    return params.arena[0] + slots;
}

}  // namespace

// As peersum_look, for the slots of a unit: finds the rank that has not sent.
extern "C" __device__ __noinline__ peersum_u64 peersum_look_at_slots(const PeersumParams& params,
                                                                     peersum_u64 own_header,
                                                                     peersum_u64 first_slot,
                                                                     peersum_u64 start_ns) {
    peersum_u32 missing = WORLD_SIZE;
#pragma unroll 1
    for (peersum_u32 source = 0; source < SOURCES; ++source) {
        if (largest_word(ld_relaxed_sys_v4(slot_address(first_slot, source))) == PEERSUM_SLOT_EMPTY)
            missing = source;
    }
    // All units have arrived since the last poll: the next poll ends the wait.
    if (missing == WORLD_SIZE) return start_ns == 0 ? globaltimer() : start_ns;
    return peersum_look(params, CallDescription{own_header}, KEEPS_OWN ? params.rank ^ 1 : missing,
                        start_ns);
}

namespace {

// Polls a unit's slots once. True if all sources' data has arrived.
PEERSUM_DEVICE bool poll(peersum_u64 first_slot, Unit (&v)[SOURCES]) {
    // Issue all loads before any is used.
#pragma unroll
    for (int source = 0; source < SOURCES; ++source)
        v[source] = ld_relaxed_sys_v4(slot_address(first_slot, source));
    peersum_u32 largest = 0;
#pragma unroll
    for (int source = 0; source < SOURCES; ++source)
        largest = larger(largest, largest_word(v[source]));
    return largest != PEERSUM_SLOT_EMPTY;
}

// Re-arms a unit's slots: the thread that took the words empties exactly these words. The stores
// are performed before this kernel ends, and a peer stores here again only after it has seen data
// that this rank sent from a later kernel (README.md, "Re-arming").
PEERSUM_DEVICE void rearm(peersum_u64 first_slot) {
    if (PEERSUM_BREAK == PEERSUM_BREAK_NO_REARM) return;
#pragma unroll
    for (int source = 0; source < SOURCES; ++source)
        st_relaxed_sys_v4(slot_address(first_slot, source), EMPTY_UNIT);
}

// Polls a unit's slots until all have arrived, then re-arms them. False if the wait was given up.
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
