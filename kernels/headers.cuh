// headers.cuh - the exchange of headers and details, through which ranks detect that their calls
// differ.
#pragma once

#include "failure.cuh"

// A signal thread's part in the exchange: it tells its peer what this rank calls, and compares what
// both called before. Only the signal threads of block 0 take part.
struct Headers {
    bool is_exchanged;
    // The peer's header for the previous call, if it has arrived, and this rank's own.
    peersum_u64 previous;
    peersum_u64 own_previous;
    const peersum_u64* awaited;
    // The details of the previous call; 0 if they were not loaded.
    peersum_u64 previous_detail;
    peersum_u64 own_previous_detail;
};

// Sends this call's header and detail, and starts the loads of the previous ones without waiting
// for their values. Relaxed: the words are compared as a whole and order nothing.
PEERSUM_DEVICE Headers send_header(const Call& call) {
    Headers headers{GUARDED && call.block == 0, 0, 0, nullptr, 0, 0};
    if (!headers.is_exchanged) return headers;
    const peersum_u32 step = call.step();
    const peersum_u32 sequence = sequence_of(call.header);
    const peersum_u32 ring = sequence % PEERSUM_HEADER_RING;
    const bool sends_detail = FAMILY == PEERSUM_FAMILY_PULL && has_detail(call.header);
    const peersum_u64 detail =
        sends_detail ? describe_call(call.params, call.header).detail(call.params) : 0;
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
        // Calls with a detail often follow each other, so load the previous details together with
        // the headers.
        headers.previous_detail =
            ld_relaxed_sys_u64(&call.control->details[previous_ring][call.peer(step)]);
        headers.own_previous_detail = ld_global_u64(&call.control->own_details[previous_ring]);
    }
    return headers;
}

// Describes an earlier call of this rank, given its header and its detail.
PEERSUM_DEVICE CallDescription describe_earlier_call(peersum_u64 header,
                                                     [[maybe_unused]] peersum_u64 detail) {
#if PEERSUM_MODULE_FAMILY == PEERSUM_FAMILY_PULL
    return CallDescription{header, detail};
#else
    return CallDescription{header};
#endif
}

// Waits for the peer's detail of the previous call, for which both ranks sent `header`. Removes the
// detail once it is compared, so that no old detail is there when the sequence comes round again.
// The peer's next store there comes four calls later, after it has seen data that this rank sent
// from a later kernel (README.md, "Headers and details"). `detail` and `own_detail` are 0 if they
// were not loaded. Not inlined, because most calls have no detail.
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
            start_ns =
                peersum_look(params, describe_earlier_call(header, own_detail), peer, start_ns);
            if (start_ns == 0) return false;
        }
        detail = ld_relaxed_sys_u64(awaited);
    }
    st_relaxed_sys_u64(awaited, 0);
    return true;
}

// Waits for the peer's header and detail of the previous call, and compares them. A difference in
// anything but the sequence ends the wait at its next look.
PEERSUM_DEVICE bool previous_headers_agree(const Call& call, const Headers& headers) {
    if (!headers.is_exchanged || call.step() == 0) return true;
    const peersum_u64 own = headers.own_previous;
    const peersum_u32 peer = call.peer(call.step());
    // A detail that was not loaded is compared after the header, not together with it.
    const bool agree = await_word(
        call, peer, describe_earlier_call(own, headers.own_previous_detail), headers.previous,
        [&] { return ld_relaxed_sys_u64(headers.awaited); },
        [&](peersum_u64 word) { return word == own; });
    if (!agree || !has_detail(own)) return agree;
    return peersum_details_agree(call.params, own, peer, headers.previous_detail,
                                 headers.own_previous_detail);
}

// PEERSUM_STRICT_ORDER only: acquires every peer's header of the previous call, before this block's
// first store to a slot.
PEERSUM_DEVICE bool acquire_previous_call(const Call& call) {
    bool arrived = true;
    if (call.is_signal_thread() && call.step() != 0) {
        const peersum_u32 ring = (sequence_of(call.header) - 1) % PEERSUM_HEADER_RING;
        const peersum_u64 own = ld_global_u64(&call.control->own_headers[ring]);
        const peersum_u32 peer = call.peer(call.step());
        const peersum_u64* awaited = &call.control->headers[ring][peer];
        arrived = await_word(
            call, peer, describe_call(call.params, own), ld_acquire_sys_u64(awaited),
            [&] { return ld_acquire_sys_u64(awaited); },
            [&](peersum_u64 word) { return word == own; });
    }
    return !bar_red_or(!arrived);
}
