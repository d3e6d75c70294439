// protocol.cuh - what both families share: entering and leaving a call, the per-call header,
// bounded waiting, failure. The argument for each ordering stands in README.md beside this file;
// the comments here name the step.
#pragma once

#include "element.cuh"

// The family of this module: each names it before it includes this file.
constexpr peersum_u32 FAMILY = PEERSUM_MODULE_FAMILY;

// Build switches of the harness; a shipped module is built with none of them.
//
// PEERSUM_BREAK: a protocol broken on purpose, to prove that the tests see it.
#define PEERSUM_BREAK_NOTHING 0
#define PEERSUM_BREAK_NO_REARM 1
#define PEERSUM_BREAK_NO_CLOSING_BARRIER 2
#define PEERSUM_BREAK_LANE_UNCHECKED 3
#define PEERSUM_BREAK_EPOCH_NOT_ADVANCED 4
#define PEERSUM_BREAK_NO_OPENING_BARRIER 5
#define PEERSUM_BREAK_RANK_ORDER_REVERSED 6
#ifndef PEERSUM_BREAK
#define PEERSUM_BREAK PEERSUM_BREAK_NOTHING
#endif

// PEERSUM_UNSAFE_BASELINE: no header, no bound, no poison; what safety costs is measured against
// it.
#ifdef PEERSUM_UNSAFE_BASELINE
constexpr bool GUARDED = false;
#else
constexpr bool GUARDED = true;
#endif

// PEERSUM_STRICT_ORDER: the formal chain from a re-arm to the peer's next store into the slot
// (README.md, "Re-arming").
#ifdef PEERSUM_STRICT_ORDER
constexpr bool STRICT_ORDER = true;
#else
constexpr bool STRICT_ORDER = false;
#endif

// Where a thread stands in its launch. A block has `threads` threads that handle units and behind
// them WORLD_SIZE that carry signals: the one at WORLD_SIZE's `step` exchanges headers and flags
// with the `step`-th peer. They run beside the data, in a warp of their own where the others fill
// theirs, so that no unit waits for a signal's instructions.
struct Place {
    peersum_u32 thread, threads, block, blocks;

    __device__ __forceinline__ bool carries_signals() const { return thread >= threads; }
    // The peer that this thread meets, in the order of PeersumParams::arena. 0 is this rank itself.
    __device__ __forceinline__ peersum_u32 step() const { return thread - threads; }
    __device__ __forceinline__ peersum_u32 first_unit() const { return block * threads + thread; }
    __device__ __forceinline__ peersum_u32 unit_stride() const { return blocks * threads; }
};

PEERSUM_DEVICE Place place_of_thread() {
    return Place{tid_x(), ntid_x() - WORLD_SIZE, ctaid_x(), nctaid_x()};
}

// One call as one thread sees it.
struct Call : Place {
    const PeersumParams& params;
    PeersumControl* control;
    // Epochs before this call. The families count apart; all calls of the communicator are their
    // sum.
    peersum_u64 pull_epoch;
    peersum_u32 push_epoch;
    // The poison word as it was on entry.
    peersum_u32 poison;
    // Units of the array, the last one perhaps partial.
    peersum_u32 units;
    // This rank's header of this call.
    peersum_u64 header;

    // The control block of the `step`-th peer.
    __device__ __forceinline__ PeersumControl* control_of(peersum_u32 step) const {
        return reinterpret_cast<PeersumControl*>(params.arena[step]);
    }
    // The rank of the `step`-th peer.
    __device__ __forceinline__ peersum_u32 peer(peersum_u32 step) const {
        const peersum_u32 rank = params.rank + step;
        return rank >= WORLD_SIZE ? rank - WORLD_SIZE : rank;
    }
};

// The sequence of a header, or of a detail: both have it in the same place.
PEERSUM_DEVICE peersum_u32 sequence_of(peersum_u64 header) {
    return static_cast<peersum_u32>(header >> PEERSUM_HEADER_SEQUENCE_SHIFT);
}

// Whether the call of this header has a detail.
PEERSUM_DEVICE bool has_detail(peersum_u64 header) {
    return (header >> PEERSUM_HEADER_SOURCE_SHIFT & 1) == PEERSUM_SOURCE_SYMMETRIC;
}

// What this rank says of one of its calls.
struct Said {
    peersum_u64 header;
#if PEERSUM_MODULE_FAMILY == PEERSUM_FAMILY_PULL
    // 0 if the call has none. Modules of the push family launch no call with a detail and have no
    // register for one: that of an earlier call lies in memory.
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

// What this rank says of a call with these parameters.
PEERSUM_DEVICE Said said_of([[maybe_unused]] const PeersumParams& params, peersum_u64 header) {
#if PEERSUM_MODULE_FAMILY == PEERSUM_FAMILY_PULL
    if (!has_detail(header)) return Said{header, 0};
    return Said{header, static_cast<peersum_u64>(sequence_of(header))
                                << PEERSUM_HEADER_SEQUENCE_SHIFT |
                            params.detail};
#else
    return Said{header};
#endif
}

// The first act of every call: wait for the kernels before it, then read this block's epochs and
// poison in one access. Relaxed suffices: the epochs were stored by an earlier kernel of this
// stream; the poison word carries no data.
PEERSUM_DEVICE Call enter(const PeersumParams& params, const Place& place) {
    griddepcontrol_wait();
    PeersumControl* control = reinterpret_cast<PeersumControl*>(params.arena[0]);
    const Unit state = ld_relaxed_sys_v4(&control->blocks[place.block]);
    const peersum_u64 pull_epoch = static_cast<peersum_u64>(state.y) << 32 | state.x;
    return Call{place, params, control, pull_epoch, state.z, GUARDED ? state.w : 0,
                units_of(params.elements),
                // The sequence modulo 2^16: the shift drops the rest.
                (pull_epoch + state.z) << PEERSUM_HEADER_SEQUENCE_SHIFT | params.header};
}

// Values of PeersumControl::leave_claim.
constexpr peersum_u32 LEAVE_UNCLAIMED = 0;
constexpr peersum_u32 LEAVE_CLAIMED = 1;
constexpr peersum_u32 LEAVE_DONE = 2;

// The calls of its family before the call that `own_header` is of: this one or the one before, and
// the block may have counted this one already.
PEERSUM_DEVICE peersum_u64 epoch_of(const PeersumBlockState* block, peersum_u64 own_header) {
    const Unit state = ld_relaxed_sys_v4(block);
    const peersum_u64 pull_epoch = static_cast<peersum_u64>(state.y) << 32 | state.x;
    const peersum_u32 family =
        static_cast<peersum_u32>(own_header >> PEERSUM_HEADER_FAMILY_SHIFT & 1);
    const peersum_u64 epoch = family == PEERSUM_FAMILY_PULL ? pull_epoch : state.z;
    // How many calls were counted from that one on. One: that one, of its own family. Two: it and
    // this one.
    const peersum_u32 counted =
        (static_cast<peersum_u32>(pull_epoch + state.z) - sequence_of(own_header)) & 0xFFFF;
    if (counted == 0) return epoch;
    return epoch - (counted == 2 && family == FAMILY ? 2 : 1);
}

// Records why this rank leaves and poisons itself and every peer; the rank's first thread to come
// does it for all, and the others wait until it has. So all of it is performed before any thread
// that leaves goes on: no block fills a buffer with NaN that a peer may still read without finding
// poison, and no later call of this rank stores data that a late peer would take for its own. Not
// inlined, like everything that only a waiting or failing call runs: one copy of it instead of one
// a wait. (extern "C", because the compiler puts a hash of the path into the names of local
// functions, and two builds must give the same bytes.)
extern "C" __device__ __noinline__ void peersum_leave(const PeersumParams& params,
                                                      peersum_u32 cause, peersum_u32 peer,
                                                      peersum_u32 poison, peersum_u64 waited_ns,
                                                      Said own, peersum_u64 peer_header) {
    PeersumControl* control = reinterpret_cast<PeersumControl*>(params.arena[0]);
    if (atom_cas_relaxed_gpu_u32(&control->leave_claim, LEAVE_UNCLAIMED, LEAVE_CLAIMED) !=
        LEAVE_UNCLAIMED) {
        // Acquire: what this thread stores from here on comes behind the claimant's fence. The
        // claimant runs, and waits for nobody.
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
    // Release: the host that sees `valid` must see the fields above.
    st_release_sys_u32(&status->valid, 1);

#pragma unroll 1
    for (peersum_u32 step = 0; step < WORLD_SIZE; ++step) {
        PeersumControl* peer_control = reinterpret_cast<PeersumControl*>(params.arena[step]);
        // The threads that send this call's headers may find the poison on entry and not send them;
        // without them a peer could not tell a disagreement from another failure. The very words
        // that they would send.
        if (own_detail != 0)
            st_relaxed_sys_u64(&peer_control->details[ring][params.rank], own_detail);
        st_relaxed_sys_u64(&peer_control->headers[ring][params.rank], own.header);
#pragma unroll 1
        for (peersum_u32 b = 0; b < PEERSUM_MAX_BLOCKS; ++b)
            st_relaxed_sys_u32(&peer_control->blocks[b].poison, poison);
    }
    // The peers' words are performed before anything that this thread does, and, by the release,
    // before anything that those do who wait for it.
    fence_acq_rel_sys();
    st_release_sys_u32(&control->leave_claim, LEAVE_DONE);
}

// A rank that finds itself poisoned on entry leaves too: it records a status of its own and relays.
// Every thread that sees it does, because the word may be written between two threads' loads, and
// one that saw it makes its whole block lose the call in the pull family.
PEERSUM_DEVICE void leave_if_poisoned(const Call& call) {
    if (call.poison != 0) {
        peersum_leave(call.params, PEERSUM_CAUSE_POISON, call.params.rank, call.poison, 0,
                      said_of(call.params, call.header), 0);
    }
}

// One look at whether the wait for `peer` is over: 0 if so, and then the rank has left; else when
// the wait began, by the device's clock. `own` is what this rank says of the call whose arrival is
// awaited; `start_ns` is 0 at the first look.
extern "C" __device__ __noinline__ peersum_u64 peersum_look(const PeersumParams& params, Said own,
                                                            peersum_u32 peer,
                                                            peersum_u64 start_ns) {
    const peersum_u64 now_ns = globaltimer();
    if (start_ns == 0) start_ns = now_ns;
    const peersum_u64 waited_ns = now_ns - start_ns;
    const PeersumControl* control = reinterpret_cast<const PeersumControl*>(params.arena[0]);
    const PeersumStatus* status = reinterpret_cast<const PeersumStatus*>(params.status);
    const peersum_u32 poison = ld_relaxed_sys_u32(&control->blocks[ctaid_x()].poison);
    // What the peer says of the same call, as far as it has come: a disagreement explains the wait,
    // and no more waiting helps.
    const peersum_u32 ring = sequence_of(own.header) % PEERSUM_HEADER_RING;
    const peersum_u64 peer_header = ld_relaxed_sys_u64(&control->headers[ring][peer]);
    bool differs = sequence_of(peer_header) == sequence_of(own.header) && peer_header != own.header;
    const peersum_u64 own_detail = own.detail(params);
    if (peer_header == own.header && own_detail != 0) {
        // 0 until it comes: the thread that has compared a detail removes it.
        const peersum_u64 peer_detail = ld_relaxed_sys_u64(&control->details[ring][peer]);
        differs = peer_detail != 0 && peer_detail != own_detail;
    }

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

// The bound of one wait. The clock starts at the first look, POLLS_BETWEEN_LOOKS fruitless polls
// after the wait began.
struct Wait {
    peersum_u32 polls = 0;
    peersum_u64 start_ns = 0;
};

// Counts a fruitless poll.
PEERSUM_DEVICE bool is_time_to_look(Wait& wait) {
    return GUARDED && ++wait.polls % POLLS_BETWEEN_LOOKS == 0;
}

// At a look: whether to stop waiting for `peer`.
PEERSUM_DEVICE bool gives_up(const Call& call, Wait& wait, peersum_u32 peer, Said own) {
    wait.start_ns = peersum_look(call.params, own, peer, wait.start_ns);
    return wait.start_ns == 0;
}

// Waits until a word that was loaded as `word` has `arrived`. False if the wait for `peer` was
// given up.
template <typename Load, typename Arrived>
PEERSUM_DEVICE bool await_word(const Call& call, peersum_u32 peer, Said own, peersum_u64 word,
                               Load load, Arrived arrived) {
    Wait wait;
    while (!arrived(word)) {
        spin_pause();
        if (is_time_to_look(wait) && gives_up(call, wait, peer, own)) return false;
        word = load();
    }
    return true;
}

// A signal thread's part in telling every peer what this rank calls, and in comparing what was
// called before. All of it lies in block 0.
struct Headers {
    bool is_exchanged;
    // The peer's header of the call before this one, as far as it has come, and what this rank
    // called then.
    peersum_u64 previous;
    peersum_u64 own_previous;
    const peersum_u64* awaited;
    // The details of the same call; 0 if they were not loaded.
    peersum_u64 previous_detail;
    peersum_u64 own_previous_detail;
};

// Sends this call's header and detail, and has the previous ones loaded, whose values nothing waits
// for yet. Relaxed: words that are compared as a whole and order nothing.
PEERSUM_DEVICE Headers send_header(const Call& call) {
    Headers headers{GUARDED && call.block == 0, 0, 0, nullptr, 0, 0};
    if (!headers.is_exchanged) return headers;
    const peersum_u32 step = call.step();
    const peersum_u32 sequence = sequence_of(call.header);
    const peersum_u32 ring = sequence % PEERSUM_HEADER_RING;
    const bool sends_detail = FAMILY == PEERSUM_FAMILY_PULL && has_detail(call.header);
    const peersum_u64 detail =
        sends_detail ? said_of(call.params, call.header).detail(call.params) : 0;
    if (step == 0) {
        st_global_u64(&call.control->own_headers[ring], call.header);
        if (sends_detail) st_global_u64(&call.control->own_details[ring], detail);
        return headers;
    }
    if (sends_detail)
        st_relaxed_sys_u64(&call.control_of(step)->details[ring][call.params.rank], detail);
    peersum_u64* header = &call.control_of(step)->headers[ring][call.params.rank];
    if (STRICT_ORDER) {
        st_release_sys_u64(header, call.header);
    } else {
        st_relaxed_sys_u64(header, call.header);
    }
    const peersum_u32 previous_ring = (sequence - 1) % PEERSUM_HEADER_RING;
    headers.awaited = &call.control->headers[previous_ring][call.peer(step)];
    headers.previous = ld_relaxed_sys_u64(headers.awaited);
    headers.own_previous = ld_global_u64(&call.control->own_headers[previous_ring]);
    if (sends_detail) {
        // Calls with a detail follow each other: the previous ones are loaded together with the
        // headers.
        headers.previous_detail =
            ld_relaxed_sys_u64(&call.control->details[previous_ring][call.peer(step)]);
        headers.own_previous_detail = ld_global_u64(&call.control->own_details[previous_ring]);
    }
    return headers;
}

// What this rank said of an earlier call, given its header and its detail.
PEERSUM_DEVICE Said said_before(peersum_u64 header, [[maybe_unused]] peersum_u64 detail) {
#if PEERSUM_MODULE_FAMILY == PEERSUM_FAMILY_PULL
    return Said{header, detail};
#else
    return Said{header};
#endif
}

// Waits for the peer's detail of the call before this one, which both ranks made with `header`, and
// removes it once it is compared: when the sequence comes round again, no old detail stands there.
// The peer stores here again four calls later, after it has seen data of this rank from a kernel
// that follows this one (README.md, "Headers and details"). `detail` and `own_detail` are 0 if they
// were not loaded. Not inlined: most calls have no detail.
extern "C" __device__ __noinline__ bool peersum_details_agree(const PeersumParams& params,
                                                              peersum_u64 header, peersum_u32 peer,
                                                              peersum_u64 detail,
                                                              peersum_u64 own_detail) {
    PeersumControl* control = reinterpret_cast<PeersumControl*>(params.arena[0]);
    const peersum_u32 ring = sequence_of(header) % PEERSUM_HEADER_RING;
    peersum_u64* awaited = &control->details[ring][peer];
    if (own_detail == 0) own_detail = ld_global_u64(&control->own_details[ring]);
    peersum_u64 start_ns = 0;
    for (peersum_u32 polls = 1; detail != own_detail; ++polls) {
        spin_pause();
        if (polls % POLLS_BETWEEN_LOOKS == 0) {
            start_ns = peersum_look(params, said_before(header, own_detail), peer, start_ns);
            if (start_ns == 0) return false;
        }
        detail = ld_relaxed_sys_u64(awaited);
    }
    st_relaxed_sys_u64(awaited, 0);
    return true;
}

// Waits for what the peer says of the call before this one. A difference in anything but the
// sequence ends the wait at its next look.
PEERSUM_DEVICE bool previous_headers_agree(const Call& call, const Headers& headers) {
    if (!headers.is_exchanged || call.step() == 0) return true;
    const peersum_u64 own = headers.own_previous;
    const peersum_u32 peer = call.peer(call.step());
    // A detail that was not loaded is compared behind the header, not beside it.
    const bool agree = await_word(
        call, peer, said_before(own, headers.own_previous_detail), headers.previous,
        [&] { return ld_relaxed_sys_u64(headers.awaited); },
        [&](peersum_u64 word) { return word == own; });
    if (!agree || !has_detail(own)) return agree;
    return peersum_details_agree(call.params, own, peer, headers.previous_detail,
                                 headers.own_previous_detail);
}

// PEERSUM_STRICT_ORDER only: acquires every peer's end of the call before this one, before this
// block's first store to a slot.
PEERSUM_DEVICE bool acquire_previous_call(const Call& call) {
    bool arrived = true;
    if (call.carries_signals() && call.step() != 0) {
        const peersum_u32 ring = (sequence_of(call.header) - 1) % PEERSUM_HEADER_RING;
        const peersum_u64 own = ld_global_u64(&call.control->own_headers[ring]);
        const peersum_u32 peer = call.peer(call.step());
        const peersum_u64* awaited = &call.control->headers[ring][peer];
        arrived = await_word(
            call, peer, said_of(call.params, own), ld_acquire_sys_u64(awaited),
            [&] { return ld_acquire_sys_u64(awaited); },
            [&](peersum_u64 word) { return word == own; });
    }
    return !bar_red_or(!arrived);
}

// Counts this call in a block's state. Relaxed: a thread of the block that leaves may read it
// meanwhile; else a later kernel of this stream does.
PEERSUM_DEVICE void advance_epoch_of(const Call& call, peersum_u32 block) {
    if (PEERSUM_BREAK == PEERSUM_BREAK_EPOCH_NOT_ADVANCED) return;
    PeersumBlockState* state = &call.control->blocks[block];
    if constexpr (FAMILY == PEERSUM_FAMILY_PUSH) {
        st_relaxed_sys_u32(&state->push_epoch, call.push_epoch + 1);
    } else {
        st_relaxed_sys_u64(&state->pull_epoch, call.pull_epoch + 1);
    }
}

// For a thread that carries signals: counts this call in the block's own state, which all threads
// of the block have read.
PEERSUM_DEVICE void advance_own_epoch(const Call& call) {
    if (call.step() == 0) advance_epoch_of(call, call.block);
}

// For a thread that handles units: counts this call in the states of the blocks that it did not
// launch (block b has b + blocks, b + 2 blocks, ...). Nobody reads these in this call, so that it
// may be done at any time.
PEERSUM_DEVICE void advance_unlaunched_epochs(const Call& call) {
#pragma unroll 1
    for (peersum_u32 b = call.block + call.blocks * (1 + call.thread); b < PEERSUM_MAX_BLOCKS;
         b += call.blocks * call.threads) {
        advance_epoch_of(call, b);
    }
}

// Adds up the units of all ranks in rank order. (Two may come in either order: an addition of two
// is commutative, bit for bit.)
PEERSUM_DEVICE Unit reduce(const Unit (&v)[WORLD_SIZE]) {
    constexpr bool REVERSED = PEERSUM_BREAK == PEERSUM_BREAK_RANK_ORDER_REVERSED;
    Sum sum = unpack(v[REVERSED ? WORLD_SIZE - 1 : 0]);
#pragma unroll
    for (int rank = 1; rank < WORLD_SIZE; ++rank)
        add(sum, v[REVERSED ? WORLD_SIZE - 1 - rank : rank]);
    return round(sum);
}

// The units of a call that one thread handles from end to end: first, first + stride, ... below
// `end`, and of each of these every `period`-th. One-shot: end = period = all units. Two-shot: end
// = period = the chunk, so that a thread has the same place in every chunk.
struct Share {
    peersum_u32 end;
    peersum_u32 period;
};

// The caller's input or output as whole units. Units that are not one aligned access (all of a
// misaligned array; a partial tail) are copied element by element from or to scratch memory of this
// rank, by the thread that handles them: the protocols know 16-byte accesses only.
struct Buffer {
    peersum_u64 address;
    peersum_u64 scratch;
    peersum_u32 wide;

    __device__ __forceinline__ void* at(peersum_u32 unit) const {
        return unit_address(unit < wide ? address : scratch, unit);
    }
};

PEERSUM_DEVICE Buffer buffer_at(peersum_u64 address, peersum_u64 scratch, peersum_u64 elements) {
    return Buffer{address, scratch, wide_units(address, elements)};
}

// Copies this thread's units in [begin, end) element by element: `readable` elements of the source
// exist, behind them are zeros; `writable` elements of the destination exist, nothing behind them
// is touched. Without a source (0) every element becomes NaN.
extern "C" __device__ __noinline__ void peersum_copy_narrow(peersum_u64 destination,
                                                            peersum_u64 writable,
                                                            peersum_u64 source,
                                                            peersum_u64 readable, peersum_u32 begin,
                                                            peersum_u32 end, Share share) {
    const Place place = place_of_thread();
#pragma unroll 1
    for (peersum_u32 i = place.first_unit(); i < share.end; i += place.unit_stride()) {
#pragma unroll 1
        for (peersum_u32 unit = i; unit < end; unit += share.period) {
            if (unit < begin) continue;
            const peersum_u64 first = static_cast<peersum_u64>(unit) * PER_UNIT;
#pragma unroll 1
            for (peersum_u64 element = first; element < first + PER_UNIT && element < writable;
                 ++element) {
                const peersum_u64 offset = element * Element::BYTES;
                peersum_u32 value = 0;
                if (source == 0) {
                    value = Element::NAN_WORD;
                } else if (element < readable) {
                    value = load_element(source + offset);
                }
                store_element(destination + offset, value);
            }
        }
    }
}

// Before the first `at` of an input.
PEERSUM_DEVICE void load_narrow_units(const Call& call, const Buffer& input, Share share) {
    if (input.wide == call.units) return;
    peersum_copy_narrow(input.scratch, static_cast<peersum_u64>(call.units) * PER_UNIT,
                        input.address, call.params.elements, input.wide, call.units, share);
}

// After the last store through `at` of an output, of which units below `end` were stored so. A call
// that is lost leaves NaN in all of this thread's part of it.
PEERSUM_DEVICE void store_narrow_units(const Call& call, const Buffer& output, peersum_u32 end,
                                       Share share, bool lost) {
    if (output.wide >= end && !lost) return;
    peersum_copy_narrow(output.address, call.params.elements, lost ? 0 : output.scratch,
                        call.params.elements, lost ? 0 : output.wide, lost ? call.units : end,
                        share);
}

// peersum_push_one_shot_bf16_ws8 and the like.
#define PEERSUM_PASTE_6(a, b, c, d, e, f) a##b##c##d##e##f
#define PEERSUM_ENTRY_NAME(family_algorithm, dtype, world_size) \
    PEERSUM_PASTE_6(peersum_, family_algorithm, _, dtype, _ws, world_size)
// `blocks`: how many of the largest blocks must fit a multiprocessor. With 1 a block may take all
// registers; without a number ptxas aims for two on some architectures, and spills.
#define PEERSUM_KERNEL(family_algorithm, blocks)                                                   \
    extern "C" __global__ void __launch_bounds__(PEERSUM_MAX_THREADS + PEERSUM_WORLD_SIZE, blocks) \
        PEERSUM_ENTRY_NAME(family_algorithm, PEERSUM_DTYPE, PEERSUM_WORLD_SIZE)

// PEERSUM_ONE_LAUNCH: the ranks of a group are the rows of one grid, for tools that let only one
// kernel run at a time.
#ifdef PEERSUM_ONE_LAUNCH
struct AllParams {
    PeersumParams of_rank[WORLD_SIZE];
};
#define PEERSUM_ENTRY(family_algorithm, blocks)                                       \
    PEERSUM_DEVICE void run_##family_algorithm(const PeersumParams& params);          \
    PEERSUM_KERNEL(family_algorithm, blocks)(const __grid_constant__ AllParams all) { \
        run_##family_algorithm(all.of_rank[ctaid_y()]);                               \
    }                                                                                 \
    PEERSUM_DEVICE void run_##family_algorithm(const PeersumParams& params)
#else
#define PEERSUM_ENTRY(family_algorithm, blocks) \
    PEERSUM_KERNEL(family_algorithm, blocks)(const __grid_constant__ PeersumParams params)
#endif
