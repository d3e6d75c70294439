// norm_words.cuh - the exchange of a call's norm words: what the ranks' norms must agree on and a
// header has no room for.
#pragma once

#include "push_call.cuh"

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

}  // namespace
