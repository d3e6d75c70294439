// pull.cu - the pull family: barriers between the ranks' blocks of the same index, and loads from every peer.
//
// After the custom all-reduces of vLLM, FlashInfer and TensorRT-LLM (one-shot and two-shot with per-block flags). Differences: the kernel
// stages its input itself and alternates two staging halves, which spares the closing barrier; one flag word a (block, peer),
// written by plain stores and compared in 64 bits.
//
// The block that handles a unit is a function of the unit's index within its chunk (two-shot) or in the array (one-shot), the same
// in every phase and on every rank: a flag of block b speaks for what block b alone wrote.
#include "protocol.cuh"

// The rest of a symmetric source: a tail, or all of it where a buffer is misaligned on some rank. Element by element in the same order; the sums of
// the units i, i + stride, ... in [begin, end) go to every rank's buffer, or to `output` if there is one.
extern "C" __device__ __noinline__ void peersum_sum_narrow(const PeersumParams& params, peersum_u64 output, peersum_u32 begin,
                                                           peersum_u32 end) {
    const peersum_u64 limit = static_cast<peersum_u64>(end) * PER_UNIT < params.elements ? static_cast<peersum_u64>(end) * PER_UNIT
                                                                                         : params.elements;
#pragma unroll 1
    for (peersum_u32 unit = begin; unit < end; unit += nctaid_x() * ntid_x()) {
        const peersum_u64 first = static_cast<peersum_u64>(unit) * PER_UNIT;
#pragma unroll 1
        for (peersum_u64 element = first; element < first + PER_UNIT && element < limit; ++element) {
            const peersum_u64 offset = element * Element::BYTES;
            float sum = 0;
#pragma unroll 1
            for (int term = 0; term < WORLD_SIZE; ++term) {
                const int rank = PEERSUM_BREAK == PEERSUM_BREAK_RANK_ORDER_REVERSED ? WORLD_SIZE - 1 - term : term;
                float value[Element::PER_WORD];
                Element::unpack(load_element(params.source[rank] + offset), value);
                sum = term == 0 ? value[0] : add_rn_f32(sum, value[0]);
            }
            const float rounded[2] = {sum, 0};
            const peersum_u32 result = Element::pack(rounded);
            if (output != 0) {
                store_element(output + offset, result);
                continue;
            }
#pragma unroll 1
            for (int rank = 0; rank < WORLD_SIZE; ++rank) store_element(params.source[rank] + offset, result);
        }
    }
}

namespace {

// What a block's flag has to order.
enum class Announce {
    // Stores of this kernel, which the peer loads behind the flag: a release.
    Stores,
    // What an earlier kernel stored, or loads of this one that have returned: performed before the flag's store is issued. A release would add
    // nothing but the wait for stores that no peer reads (README.md, "Pull").
    Nothing,
};

// Meets the same block of every rank. False if this block is lost; then it has announced nothing that it did not do, and `lost` of any thread
// becomes the whole block's.
template <peersum_u32 PHASE>
PEERSUM_DEVICE bool meet(const Call& call, Announce announce, bool lost) {
    constexpr bool BROKEN =
        (PHASE == PEERSUM_PULL_PHASE_OPEN && PEERSUM_BREAK == PEERSUM_BREAK_NO_OPENING_BARRIER) ||
        (PHASE == PEERSUM_PULL_PHASE_SECOND && PEERSUM_BREAK == PEERSUM_BREAK_NO_CLOSING_BARRIER);
    const peersum_u64 flag = call.pull_epoch * PEERSUM_PULL_PHASES + PHASE;
    const bool carries_flag = !BROKEN && call.has_peer();
    // The block barrier makes the accesses of all threads happen before the flag's store; a release is cumulative over it.
    lost = bar_red_or(lost);
    if (carries_flag && !lost) {
        peersum_u64* flags = &call.control_of(call.thread)->pull_flags[call.block][call.params.rank];
        if (announce == Announce::Stores) {
            st_release_sys_u64(flags, flag);
        } else {
            st_relaxed_sys_u64(flags, flag);
        }
    }
    if (PHASE == PEERSUM_PULL_PHASE_OPEN && !lost) {
        send_header(call);
        lost = !previous_headers_agree(call);
    }
    if (carries_flag && !lost) {
        // Acquire: what the peer's block stored before its release is visible after it, and through the block barrier to every thread here.
        const peersum_u32 peer = call.peer(call.thread);
        const peersum_u64* awaited = &call.control->pull_flags[call.block][peer];
        lost = !await_word(
            call, peer, call.header, [&] { return ld_acquire_sys_u64(awaited); },
            [&](peersum_u64 word) { return word >= flag; });
        // A symmetric call's last look at poison, behind its last wait: a peer that left may have gone on to overwrite its buffer while this rank
        // read it. (A staged call needs none: a rank that left stores nothing to its staging halves any more.) Whoever sees it leaves, as on entry:
        // the words of a rank's blocks come one by one, and the one that the host looks at may be the last.
        if (PHASE == PEERSUM_PULL_PHASE_SECOND && GUARDED && call.is_symmetric()) {
            const peersum_u32 poison = ld_relaxed_sys_u32(&call.control->blocks[call.block].poison);
            if (poison != 0) {
                peersum_leave(call.params, PEERSUM_CAUSE_POISON, call.params.rank, poison, 0, call.header, 0);
                lost = true;
            }
        }
    }
    return !bar_red_or(lost);
}

// Every rank's copy of the array as this rank maps it: its staging half, or its symmetric buffer.
struct Copies {
    bool staged;
    // The leading units that are one aligned access in every copy. A staged copy holds whole units.
    peersum_u32 wide;
    // This rank's staging half of this call.
    peersum_u64 own;
    // This rank's other half, for narrow units of the output: behind the opening barrier no peer reads it any more.
    peersum_u64 scratch;
    peersum_u64 base[WORLD_SIZE];
};

PEERSUM_DEVICE Copies copies_of(const Call& call) {
    const PeersumParams& params = call.params;
    const peersum_u32 parity = call.pull_epoch & 1;
    const peersum_u64 half = params.staging_offset + parity * params.staging_half_bytes;
    const peersum_u64 other = params.staging_offset + (parity ^ 1) * params.staging_half_bytes;
    Copies copies;
    copies.staged = !call.is_symmetric();
    copies.own = params.arena[0] + half;
    copies.scratch = params.arena[0] + other;
    const peersum_u64 offset = copies.staged ? half : 0;
#pragma unroll
    for (int rank = 0; rank < WORLD_SIZE; ++rank) copies.base[rank] = params.source[rank] + offset;
    copies.wide = copies.staged               ? call.units
                  : params.is_source_aligned ? static_cast<peersum_u32>(params.elements / PER_UNIT)
                                             : 0;
    return copies;
}

// Sums a unit that is one aligned access in every copy. Relaxed loads at system scope: ordered behind the barrier's acquire, and never served
// from a stale L1 line.
PEERSUM_DEVICE Unit sum_of_all(const Copies& copies, peersum_u32 unit) {
    Unit v[WORLD_SIZE];
#pragma unroll
    for (int rank = 0; rank < WORLD_SIZE; ++rank) v[rank] = ld_relaxed_sys_v4(unit_address(copies.base[rank], unit));
    return reduce(v);
}

// Copies this thread's units of the input into this rank's staging half, which serves its narrow ones as scratch as well.
PEERSUM_DEVICE void stage(const Call& call, const Copies& copies, Share share) {
    const PeersumParams& params = call.params;
    const Buffer input = buffer_at(params.input, copies.own, params.elements);
#pragma unroll 1
    for (peersum_u32 i = call.first_unit(); i < share.end; i += call.unit_stride()) {
#pragma unroll 1
        for (peersum_u32 unit = i; unit < input.wide; unit += share.period) {
            st_relaxed_sys_v4(unit_address(copies.own, unit), ld_global_v4(unit_address(input.address, unit)));
        }
    }
    load_narrow_units(call, input, share);
}

// Once all waits of a block are over and a block barrier has passed: let the next kernel come, count the call.
PEERSUM_DEVICE void finish(const Call& call) {
    griddepcontrol_launch_dependents();
    advance_epoch<PEERSUM_FAMILY_PULL>(call);
}

// Staged: a half is written again two calls of this family later, behind the opening barrier of the call between, which a peer's block
// enters only in a later kernel than its reads here. So a staged call needs no closing barrier.
// Symmetric: the closing barrier keeps a buffer from being overwritten by its owner while a peer still reads it.
PEERSUM_DEVICE void one_shot(const PeersumParams& params) {
    const Call call = enter(params);
    const Share share{call.units, call.units};
    const Copies copies = copies_of(call);
    const Buffer output = buffer_at(params.output, copies.scratch, params.elements);
    leave_if_poisoned(call);

    bool lost = call.poison != 0;
    if (!lost && copies.staged) stage(call, copies, share);
    lost = !meet<PEERSUM_PULL_PHASE_OPEN>(call, copies.staged ? Announce::Stores : Announce::Nothing, lost);
    if (!lost) {
        peersum_u32 unit = call.first_unit();
#pragma unroll 1
        for (; unit < copies.wide; unit += call.unit_stride()) st_global_v4(output.at(unit), sum_of_all(copies, unit));
        // These go to the output itself, so the output's scratch holds units below copies.wide only.
        if (unit < call.units) peersum_sum_narrow(params, params.output, unit, call.units);
    }
    if (!copies.staged) lost = !meet<PEERSUM_PULL_PHASE_SECOND>(call, Announce::Nothing, lost);
    store_narrow_units(call, output, copies.wide, share, lost);
    finish(call);
}

// Takes unit `i` of every other owner's reduced chunk into the output. The own chunk was stored when it was reduced.
PEERSUM_DEVICE void gather(const Call& call, const Copies& copies, const Buffer& output, peersum_u32 chunk, peersum_u32 i) {
    // All loads are on their way before the first store.
    Unit v[WORLD_SIZE];
    bool wanted[WORLD_SIZE];
#pragma unroll
    for (int owner = 0; owner < WORLD_SIZE; ++owner) {
        wanted[owner] = owner != call.params.rank && owner * chunk + i < call.units;
        v[owner] = nan_unit();
        ld_relaxed_sys_v4_if(wanted[owner], unit_address(copies.base[owner], owner * chunk + i), v[owner]);
    }
#pragma unroll
    for (int owner = 0; owner < WORLD_SIZE; ++owner) {
        if (wanted[owner]) st_global_v4(output.at(owner * chunk + i), v[owner]);
    }
}

// Chunk c of the array is reduced by rank c.
// Staged: the result replaces the owner's staged chunk, which no peer reads in that phase, and is gathered by reading behind the second barrier.
// Symmetric: the owner writes the result into every rank's buffer; a chunk is read and written by its owner alone, so that no barrier is needed
// between the two.
PEERSUM_DEVICE void two_shot(const PeersumParams& params) {
    const Call call = enter(params);
    const peersum_u32 chunk = (call.units + WORLD_SIZE - 1) / WORLD_SIZE;
    const Share share{chunk, chunk};
    const Copies copies = copies_of(call);
    const Buffer output = buffer_at(copies.staged ? params.output : params.source[params.rank], copies.scratch, params.elements);
    leave_if_poisoned(call);

    bool lost = call.poison != 0;
    if (!lost && copies.staged) stage(call, copies, share);
    lost = !meet<PEERSUM_PULL_PHASE_OPEN>(call, copies.staged ? Announce::Stores : Announce::Nothing, lost);
    if (!lost) {
        const peersum_u32 begin = params.rank * chunk;
        const peersum_u32 end = begin + chunk < call.units ? begin + chunk : call.units;
        peersum_u32 unit = begin + call.first_unit();
#pragma unroll 1
        for (; unit < end && unit < copies.wide; unit += call.unit_stride()) {
            const Unit result = sum_of_all(copies, unit);
            if (copies.staged) {
                st_relaxed_sys_v4(unit_address(copies.own, unit), result);
                st_global_v4(output.at(unit), result);
            } else {
#pragma unroll 1
                for (int step = 0; step < WORLD_SIZE; ++step) {
                    st_relaxed_sys_v4(unit_address(params.source[call.peer(step)], unit), result);
                }
            }
        }
        if (unit < end) peersum_sum_narrow(params, 0, unit, end);
    }
    lost = !meet<PEERSUM_PULL_PHASE_SECOND>(call, Announce::Stores, lost);
    if (copies.staged && !lost) {
#pragma unroll 1
        for (peersum_u32 i = call.first_unit(); i < chunk; i += call.unit_stride()) gather(call, copies, output, chunk, i);
    }
    // A symmetric result is in place already.
    if (copies.staged || lost) store_narrow_units(call, output, copies.wide, share, lost);
    finish(call);
}

}  // namespace

PEERSUM_ENTRY(pull_one_shot) { one_shot(params); }

PEERSUM_ENTRY(pull_two_shot) { two_shot(params); }
