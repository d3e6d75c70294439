// reduce_scatter.cuh - the first half of a two-shot push: every rank sends each chunk of its input
// to the chunk's owner alone, which reduces it.
//
// The input is WORLD_SIZE chunks of `elements` elements, which may begin at any element. Units are
// counted from the first element of each chunk, so all ranks cut a chunk into the same units.
#pragma once

#include "push_rest.cuh"

namespace {

// Loads a whole unit of every chunk, by step.
PEERSUM_DEVICE void load_wide(const PeersumParams& params, peersum_u32 unit,
                              Unit (&v)[WORLD_SIZE]) {
#pragma unroll
    for (int step = FIRST_STEP; step < WORLD_SIZE; ++step)
        v[step] = ld_global_v4(unit_address(chunk_for(params, step).address, unit));
}

// Sends such units, given the offset of this rank's slot for them.
PEERSUM_DEVICE void send_wide(const PeersumParams& params, peersum_u64 slot,
                              const Unit (&v)[WORLD_SIZE]) {
#pragma unroll
    for (int step = FIRST_STEP; step < WORLD_SIZE; ++step)
        send(params, slot, step, sendable(v[step]));
}

// Reduces a thread's units in a reduce-scatter without narrow units, the first of which is already
// sent. False if a wait was given up.
PEERSUM_DEVICE bool reduce_scattered(const Call& call) {
    const PeersumParams& params = call.params;
    const peersum_u32 first = call.first_unit(), stride = call.unit_stride();
#pragma unroll 1
    for (peersum_u32 unit = first; unit < call.units; unit += stride) {
        const peersum_u32 next = unit + stride;
        Unit own = EMPTY_UNIT;
        if (KEEPS_OWN) own = ld_global_v4(unit_address(chunk_for(params, 0).address, unit));
        if (next < call.units) {
            Unit following[WORLD_SIZE];
            load_wide(params, next, following);
            send_wide(params, send_offset(params, push_slots(call, next)), following);
        }
        const peersum_u64 slots = receive_address(params, push_slots(call, unit));
        Unit received[SOURCES];
        peersum_u32 polls = 0;
        while (!poll(slots, received)) {
            spin_pause();
            if (GUARDED && ++polls == POLLS_BETWEEN_LOOKS)
                return peersum_push_rest(params, epochs_of(call), unit, next + stride);
        }
        // Where a thread has many units, larger groups lose by the order of a pair.
        if (!KEEPS_OWN) rearm(slots);
        if (unit == first) allow_next_kernel();
        st_global_v4(unit_address(params.output, unit), reduce_received(received, own));
        if (KEEPS_OWN) rearm(slots);
    }
    return true;
}

PEERSUM_DEVICE void reduce_scatter(const PeersumParams& params) {
    const ThreadPosition position = position_of_thread();
    const peersum_u32 units = units_of(params.elements);
    const peersum_u32 first = position.first_unit();
    const bool is_wide =
        (params.input | params.output | params.chunk_stride | params.elements * Element::BYTES) %
            PEERSUM_UNIT_BYTES ==
        0;
    // At small sizes a thread's first unit is its only one. Compute all that is already known about
    // it while the block's state is being loaded.
    peersum_u64 from[WORLD_SIZE];
    peersum_u64 slot = send_offset(params, params.push_offset + slots_offset(first));
#pragma unroll
    for (int step = FIRST_STEP; step < WORLD_SIZE; ++step) {
        const peersum_u64 chunk = chunk_for(params, step).address;
        from[step] = reinterpret_cast<peersum_u64>(unit_address(chunk, first));
        computed_here(from[step]);
    }
    computed_here(slot);
    prepare_first_store(params, slot);

    const Call call = enter(params, position);
    // Loaded together with the block's state. A poisoned call may read its own input; it must not
    // store.
    const bool sends = is_wide && first < units && !position.is_signal_thread();
    Unit v[WORLD_SIZE];
    if (sends) {
#pragma unroll
        for (int step = FIRST_STEP; step < WORLD_SIZE; ++step)
            v[step] = ld_global_v4(reinterpret_cast<const void*>(from[step]));
    }
    // In front of all else, because the peers wait for it.
    if (!STRICT_ORDER && sends && call.poison == 0) send_wide(params, slot + half_offset(call), v);
    if (!position.is_signal_thread()) mark_epoch_read(call);
    const bool lost = is_lost_on_entry(call);
    if (position.is_signal_thread()) return run_signal_thread(call, lost, [] {});
    if (STRICT_ORDER && sends && !lost) send_wide(params, slot + half_offset(call), v);
    // Done while the peers' data is on its way.
    advance_unlaunched_epochs(call);
    bool is_whole = false;
    if (!lost) {
        is_whole = is_wide ? reduce_scattered(call)
                           : peersum_push_rest(params, epochs_of(call), first, first);
    }
    if (!is_whole) peersum_fill_output(params, epochs_of(call));
}

}  // namespace
