// push_rest.cuh - the slow way through a one-shot push and a reduce-scatter: for arrays with narrow
// units, and for threads that have polled for long without success.
//
// An all-reduce is a reduce-scatter in which every peer's chunk is the whole input: its
// `chunk_stride` is 0.
#pragma once

#include "narrow.cuh"
#include "push_call.cuh"
#include "sum.cuh"

namespace {

// This rank's input for the `step`-th peer.
PEERSUM_DEVICE Units chunk_for(const PeersumParams& params, int step) {
    return Units{params.input + rank_of_step(params, step) * params.chunk_stride,
                 params.elements * Element::BYTES};
}

PEERSUM_DEVICE Units output_of_push(const PeersumParams& params) {
    return Units{params.output, params.elements * Element::BYTES};
}

PEERSUM_DEVICE peersum_u64 push_slots(const Call& call, peersum_u32 unit) {
    return call.params.push_offset + half_offset(call) + slots_offset(unit);
}

}  // namespace

// Finishes this thread's part of a call, from unit `awaited` on; the units below `unsent` are
// already sent. Not inlined, and little code follows a call of it: so a call in which no rank is
// late keeps no register for this case. False if a wait was given up.
extern "C" __device__ __noinline__ bool peersum_push_rest(const PeersumParams& params,
                                                          peersum_u32 epochs, peersum_u32 awaited,
                                                          peersum_u32 unsent) {
    const Call call = rebuild_call(params, position_of_thread(), epochs);
    const peersum_u32 stride = call.unit_stride();
#pragma unroll 1
    for (; awaited < call.units; awaited += stride) {
        // While this thread waits for one unit, the next is on its way to the peers.
#pragma unroll 1
        for (; unsent <= awaited + stride && unsent < call.units; unsent += stride) {
            const peersum_u64 slot = send_offset(params, push_slots(call, unsent));
#pragma unroll 1
            for (int step = FIRST_STEP; step < WORLD_SIZE; ++step)
                send(params, slot, step, sendable(chunk_for(params, step).load(unsent)));
        }
        Unit received[SOURCES];
        if (!collect(call, receive_address(params, push_slots(call, awaited)), received))
            return false;
        if (awaited == call.first_unit()) allow_next_kernel();
        Unit own = EMPTY_UNIT;
        if (KEEPS_OWN) own = chunk_for(params, 0).load(awaited);
        output_of_push(params).store(awaited, reduce_received(received, own));
    }
    return true;
}

// Fills this thread's part of the output with NaN.
extern "C" __device__ __noinline__ void peersum_fill_output(const PeersumParams& params,
                                                            peersum_u32 epochs) {
    const Call call = rebuild_call(params, position_of_thread(), epochs);
#pragma unroll 1
    for (peersum_u32 unit = call.first_unit(); unit < call.units; unit += call.unit_stride())
        output_of_push(params).store(unit, nan_unit());
}
