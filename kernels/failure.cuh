// failure.cuh - bounded waits, and how a rank leaves a call: it records the cause and poisons every
// rank. README.md beside this file argues each ordering; the comments here name the step.
#pragma once

#include "call.cuh"

// How this rank describes one of its calls to its peers: the header and the detail.
struct CallDescription {
    peersum_u64 header;
#if PEERSUM_MODULE_FAMILY == PEERSUM_FAMILY_PULL
    // 0 if the call has no detail. Modules of the push family launch no call with a detail and have
    // no register for one: the detail of an earlier call is read from memory.
    peersum_u64 own_detail;
#endif

    __device__ __forceinline__ peersum_u64
    detail([[maybe_unused]] const PeersumParams& params) const {
#if PEERSUM_MODULE_FAMILY == PEERSUM_FAMILY_PULL
        return own_detail;
#else
        if (!has_detail(header)) return 0;
        const PeersumControl* control = reinterpret_cast<const PeersumControl*>(params.arena[0]);
        return ld_global_u64(&control->own_details[sequence_of(header) % PEERSUM_HEADER_RING]);
#endif
    }
};

// Describes the call with these parameters.
PEERSUM_DEVICE CallDescription describe_call([[maybe_unused]] const PeersumParams& params,
                                             peersum_u64 header) {
#if PEERSUM_MODULE_FAMILY == PEERSUM_FAMILY_PULL
    if (!has_detail(header)) return CallDescription{header, 0};
    return CallDescription{header, static_cast<peersum_u64>(sequence_of(header))
                                           << PEERSUM_HEADER_SEQUENCE_SHIFT |
                                       params.detail};
#else
    return CallDescription{header};
#endif
}

#ifdef PEERSUM_MODULE_NORM
// A norm word that this rank has sent for its call with this header; 0 if it sent none, or none
// yet.
PEERSUM_DEVICE peersum_u64 own_norm_word(const PeersumControl* control, peersum_u64 header,
                                         peersum_u32 word) {
    if (!is_normalised(header)) return 0;
    const peersum_u32 ring = sequence_of(header) % PEERSUM_HEADER_RING;
    const peersum_u64 own = ld_relaxed_sys_u64(&control->own_norm_words[ring][word]);
    return sequence_of(own) == sequence_of(header) ? own : 0;
}
#endif

// Values of PeersumControl::leave_claim.
constexpr peersum_u32 LEAVE_UNCLAIMED = 0;
constexpr peersum_u32 LEAVE_CLAIMED = 1;
constexpr peersum_u32 LEAVE_DONE = 2;

// The epoch of the call whose header is `own_header`: the number of calls of its family before it.
// That call is this one or the one before. The block may already have counted this call.
PEERSUM_DEVICE peersum_u64 epoch_of(const PeersumBlockState* block, peersum_u64 own_header) {
    const Unit state = ld_relaxed_sys_v4(block);
    const peersum_u64 pull_epoch = static_cast<peersum_u64>(state.y) << 32 | state.x;
    const peersum_u32 family =
        static_cast<peersum_u32>(own_header >> PEERSUM_HEADER_FAMILY_SHIFT & 1);
    const peersum_u64 epoch = family == PEERSUM_FAMILY_PULL ? pull_epoch : state.z;
    // How many calls the block has counted since then, that call included. 1: that call, in its own
    // family's epoch. 2: that call and this one.
    const peersum_u32 counted =
        (static_cast<peersum_u32>(pull_epoch + state.z) - sequence_of(own_header)) & 0xFFFF;
    if (counted == 0) return epoch;
    return epoch - (counted == 2 && family == FAMILY ? 2 : 1);
}

// Leaves the call: records the cause, then poisons this rank and every peer. The first thread of
// the rank to get here does this for all; the others wait until it is done. So everything is
// performed before any leaving thread continues: no block fills a buffer with NaN that a peer may
// still read without finding poison, and no later call of this rank stores data that a late peer
// would take for its own.
// Not inlined, like all code that only a waiting or failing call runs: one copy instead of one for
// each wait. (extern "C", because the compiler puts a hash of the path into the names of local
// functions, and two builds must give the same bytes.)
extern "C" __device__ __noinline__ void peersum_leave(const PeersumParams& params,
                                                      peersum_u32 cause, peersum_u32 peer,
                                                      peersum_u32 poison, peersum_u64 waited_ns,
                                                      CallDescription own,
                                                      peersum_u64 peer_header) {
    PeersumControl* control = reinterpret_cast<PeersumControl*>(params.arena[0]);
    if (atom_cas_relaxed_gpu_u32(&control->leave_claim, LEAVE_UNCLAIMED, LEAVE_CLAIMED) !=
        LEAVE_UNCLAIMED) {
        // Acquire: this thread's later stores come after the claimant's fence. The claimant is
        // running and waits for no other thread.
        while (ld_acquire_sys_u32(&control->leave_claim) != LEAVE_DONE) spin_pause();
        return;
    }
#pragma unroll 1
    for (peersum_u32 b = 0; b < PEERSUM_MAX_BLOCKS; ++b)
        st_relaxed_sys_u32(&control->blocks[b].poison, poison);

    PeersumStatus* status = reinterpret_cast<PeersumStatus*>(params.status);
    const peersum_u32 family =
        static_cast<peersum_u32>(own.header >> PEERSUM_HEADER_FAMILY_SHIFT & 1);
    st_relaxed_sys_u32(&status->cause, cause);
    st_relaxed_sys_u32(&status->rank, params.rank);
    st_relaxed_sys_u32(&status->peer, peer);
    st_relaxed_sys_u32(&status->origin, poison - 1);
    st_relaxed_sys_u32(&status->family, family);
    st_relaxed_sys_u32(&status->algorithm,
                       static_cast<peersum_u32>(own.header >> PEERSUM_HEADER_ALGORITHM_SHIFT & 1));
    st_relaxed_sys_u32(&status->block, ctaid_x());
    st_relaxed_sys_u64(&status->epoch, epoch_of(&control->blocks[ctaid_x()], own.header));
    st_relaxed_sys_u64(&status->waited_ns, waited_ns);
    st_relaxed_sys_u64(&status->own_header, own.header);
    st_relaxed_sys_u64(&status->peer_header, peer_header);
    const peersum_u32 ring = sequence_of(own.header) % PEERSUM_HEADER_RING;
    const peersum_u64 own_detail = own.detail(params);
    st_relaxed_sys_u64(&status->own_detail, own_detail);
    st_relaxed_sys_u64(&status->peer_detail,
                       own_detail != 0 ? ld_relaxed_sys_u64(&control->details[ring][peer]) : 0);
#ifdef PEERSUM_MODULE_NORM
#pragma unroll 1
    for (peersum_u32 word = 0; word < PEERSUM_NORM_WORDS; ++word) {
        st_relaxed_sys_u64(&status->own_norm_words[word], own_norm_word(control, own.header, word));
        st_relaxed_sys_u64(&status->peer_norm_words[word],
                           ld_relaxed_sys_u64(&control->norm_words[ring][peer][word]));
    }
#endif
    // Release: a host that sees `valid` must see the fields above.
    st_release_sys_u32(&status->valid, 1);

#pragma unroll 1
    for (peersum_u32 step = 0; step < WORLD_SIZE; ++step) {
        PeersumControl* peer_control = reinterpret_cast<PeersumControl*>(params.arena[step]);
        // The threads that send this call's headers may find the poison on entry and not send them.
        // Without them a peer could not tell a disagreement from another failure. So send the same
        // words here.
        if (own_detail != 0)
            st_relaxed_sys_u64(&peer_control->details[ring][params.rank], own_detail);
        st_relaxed_sys_u64(&peer_control->headers[ring][params.rank], own.header);
#pragma unroll 1
        for (peersum_u32 b = 0; b < PEERSUM_MAX_BLOCKS; ++b)
            st_relaxed_sys_u32(&peer_control->blocks[b].poison, poison);
    }
    // The stores to the peers are performed before anything that this thread does later and,
    // through the release, before anything that the waiting threads do later.
    fence_acq_rel_sys();
    st_release_sys_u32(&control->leave_claim, LEAVE_DONE);
}

// A rank that finds itself poisoned on entry leaves too: it records its own status and relays the
// poison. Every thread that sees the poison calls this, because the word may be written between the
// loads of two threads. In the pull family one such thread makes its whole block lose the call.
PEERSUM_DEVICE void leave_if_poisoned(const Call& call) {
    if (call.poison != 0) {
        peersum_leave(call.params, PEERSUM_CAUSE_POISON, call.params.rank, call.poison, 0,
                      describe_call(call.params, call.header), 0);
    }
}

// One look at whether the wait for `peer` must end. Returns 0 if so; this rank has then left the
// call. Otherwise returns the start of the wait by the device's clock. `own` describes the call
// that the peer has to arrive in. `start_ns` is 0 at the first look.
extern "C" __device__ __noinline__ peersum_u64 peersum_look(const PeersumParams& params,
                                                            CallDescription own, peersum_u32 peer,
                                                            peersum_u64 start_ns) {
    const peersum_u64 now_ns = globaltimer();
    if (start_ns == 0) start_ns = now_ns;
    const peersum_u64 waited_ns = now_ns - start_ns;
    const PeersumControl* control = reinterpret_cast<const PeersumControl*>(params.arena[0]);
    const PeersumStatus* status = reinterpret_cast<const PeersumStatus*>(params.status);
    const peersum_u32 poison = ld_relaxed_sys_u32(&control->blocks[ctaid_x()].poison);
    // What the peer has sent about the same call so far. A disagreement explains the wait, and more
    // waiting does not help.
    const peersum_u32 ring = sequence_of(own.header) % PEERSUM_HEADER_RING;
    const peersum_u64 peer_header = ld_relaxed_sys_u64(&control->headers[ring][peer]);
    bool differs = sequence_of(peer_header) == sequence_of(own.header) && peer_header != own.header;
    const peersum_u64 own_detail = own.detail(params);
    if (peer_header == own.header && own_detail != 0) {
        // 0 until it arrives, and again once it has been compared: the comparing thread removes it.
        const peersum_u64 peer_detail = ld_relaxed_sys_u64(&control->details[ring][peer]);
        differs = peer_detail != 0 && peer_detail != own_detail;
    }
#ifdef PEERSUM_MODULE_NORM
#pragma unroll 1
    for (peersum_u32 word = 0; word < PEERSUM_NORM_WORDS && peer_header == own.header; ++word) {
        const peersum_u64 own_word = own_norm_word(control, own.header, word);
        const peersum_u64 peer_word = ld_relaxed_sys_u64(&control->norm_words[ring][peer][word]);
        differs |= own_word != 0 && peer_word != 0 && peer_word != own_word;
    }
#endif

    peersum_u32 cause = PEERSUM_CAUSE_NONE;
    if (differs) {
        cause = PEERSUM_CAUSE_DISAGREEMENT;
    } else if (poison != 0) {
        cause = PEERSUM_CAUSE_POISON;
    } else if (ld_relaxed_sys_u32(&status->abort) != 0) {
        cause = PEERSUM_CAUSE_ABORT;
    } else if (waited_ns > params.timeout_ns) {
        cause = PEERSUM_CAUSE_TIMEOUT;
    }
    if (cause == PEERSUM_CAUSE_NONE) return start_ns;
    peersum_leave(params, cause, peer, poison != 0 ? poison : params.rank + 1, waited_ns, own,
                  peer_header);
    return 0;
}

// The state of one bounded wait. The clock starts at the first look, after POLLS_BETWEEN_LOOKS
// failed polls.
struct Wait {
    peersum_u32 polls = 0;
    peersum_u64 start_ns = 0;
};

// Counts a failed poll. True if a look is due.
PEERSUM_DEVICE bool is_time_to_look(Wait& wait) {
    return GUARDED && ++wait.polls % POLLS_BETWEEN_LOOKS == 0;
}

// Makes one look. True if the wait for `peer` is given up.
PEERSUM_DEVICE bool gives_up(const Call& call, Wait& wait, peersum_u32 peer, CallDescription own) {
    wait.start_ns = peersum_look(call.params, own, peer, wait.start_ns);
    return wait.start_ns == 0;
}

// Polls a word, first loaded as `word`, until `arrived(word)`. False if the wait for `peer` was
// given up.
template <typename Load, typename Arrived>
PEERSUM_DEVICE bool await_word(const Call& call, peersum_u32 peer, CallDescription own,
                               peersum_u64 word, Load load, Arrived arrived) {
    Wait wait;
    while (!arrived(word)) {
        spin_pause();
        if (is_time_to_look(wait) && gives_up(call, wait, peer, own)) return false;
        word = load();
    }
    return true;
}
