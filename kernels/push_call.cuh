// push_call.cuh - the steps that every call by push slots has, whatever it computes: entering,
// counting, the signal threads.
#pragma once

#include "slots.cuh"

namespace {

// The low halves of the call's epochs in one register, pull above push.
PEERSUM_DEVICE peersum_u32 epochs_of(const Call& call) {
    return static_cast<peersum_u32>(call.pull_epoch) << 16 | (call.push_epoch & 0xFFFF);
}

// Rebuilds the call from these epochs. Its halves and its header depend on no higher bits.
PEERSUM_DEVICE Call rebuild_call(const PeersumParams& params, const ThreadPosition& position,
                                 peersum_u32 epochs) {
    const peersum_u32 pull_epoch = epochs >> 16, push_epoch = epochs & 0xFFFF;
    const peersum_u64 sequence = pull_epoch + push_epoch;
    return Call{position,
                params,
                reinterpret_cast<PeersumControl*>(params.arena[0]),
                pull_epoch,
                push_epoch,
                0,
                units_of(params.elements),
                sequence << PEERSUM_HEADER_SEQUENCE_SHIFT | params.header};
}

// Checks, before the call's first store to a peer, whether the call is lost. A poisoned rank must
// then leave.
PEERSUM_DEVICE bool is_lost(const Call& call) {
    const bool lost = call.poison != 0;
    return STRICT_ORDER ? bar_red_or(lost) || !acquire_previous_call(call) : lost;
}

// The same, and leaves.
PEERSUM_DEVICE bool is_lost_on_entry(const Call& call) {
    leave_if_poisoned(call);
    return is_lost(call);
}

// Call once this thread's first unit has arrived from every rank. Every peer's block with this
// index is then running, and what a peer still waits for is on its way, so the next kernel may take
// the free seats. The first thread of a block counts for it (README.md, "Programmatic dependent
// launch").
PEERSUM_DEVICE void allow_next_kernel() { griddepcontrol_launch_dependents(); }

// The thread count of the barrier that shows that all threads have read the block's epoch. Data
// threads arrive and continue; signal threads wait there, beside the data, and then advance the
// epoch. So no thread that has stored its results waits for another.
PEERSUM_DEVICE peersum_u32 epoch_barrier_threads(const ThreadPosition& position) {
    return position.threads + (WORLD_SIZE + WARP_THREADS - 1) / WARP_THREADS * WARP_THREADS;
}

// For data threads, once they have read the block's state.
PEERSUM_DEVICE void mark_epoch_read(const Call& call) {
    barrier_cta_arrive(epoch_barrier_threads(call));
}

// The whole call of a signal thread. `exchange` is what it exchanges besides: behind this call's
// header, by which a look recognises the call.
template <typename Exchange>
PEERSUM_DEVICE void run_signal_thread(const Call& call, bool lost, Exchange exchange) {
    if (!lost) {
        const Headers headers = send_header(call);
        exchange();
        // The result is not needed: a thread that gave up has already left the call.
        previous_headers_agree(call, headers);
    }
    barrier_cta_sync(epoch_barrier_threads(call));
    advance_own_epoch(call);
}

}  // namespace
