// pull.cu - the pull family: barriers between the blocks of the same index on all ranks, and loads
// from every peer's memory.
//
// After the custom all-reduces of vLLM, FlashInfer and TensorRT-LLM (one-shot and two-shot with
// per-block flags). Differences: the kernel stages its input itself and alternates between two
// staging halves, which saves the closing barrier; each (block, peer) has one flag word, written by
// plain stores and compared in 64 bits.
//
// The block that handles a unit is a function of the unit's index within its chunk (two-shot) or
// within the array (one-shot), the same in every phase and on every rank. So the flag of block b
// covers what block b alone wrote.
#define PEERSUM_MODULE_FAMILY PEERSUM_FAMILY_PULL
#include "headers.cuh"
#include "sum.cuh"
#include "units.cuh"

// Sums the narrow units of a symmetric source, element by element and in the same rank order: its
// tail, or all of it if a buffer is misaligned on some rank. Handles the units first_unit,
// first_unit + unit_stride, ... in [begin, end). Stores the sums to `output`, or to every rank's
// buffer if `output` is 0.
extern "C" __device__ __noinline__ void peersum_sum_narrow(const PeersumParams& params,
                                                           peersum_u64 output,
                                                           peersum_u32 first_unit,
                                                           peersum_u32 begin, peersum_u32 end) {
    const peersum_u64 limit = static_cast<peersum_u64>(end) * PER_UNIT < params.elements
                                  ? static_cast<peersum_u64>(end) * PER_UNIT
                                  : params.elements;
#pragma unroll 1
    for (peersum_u32 unit = first_unit; unit < end; unit += position_of_thread().unit_stride()) {
        if (unit < begin) continue;
        const peersum_u64 first = static_cast<peersum_u64>(unit) * PER_UNIT;
#pragma unroll 1
        for (peersum_u64 element = first; element < first + PER_UNIT && element < limit;
             ++element) {
            const peersum_u64 offset = element * Element::BYTES;
            float sum = 0;
#pragma unroll 1
            for (int term = 0; term < WORLD_SIZE; ++term) {
                const int rank = PEERSUM_BREAK == PEERSUM_BREAK_RANK_ORDER_REVERSED
                                     ? WORLD_SIZE - 1 - term
                                     : term;
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
            for (int rank = 0; rank < WORLD_SIZE; ++rank)
                store_element(params.source[rank] + offset, result);
        }
    }
}

namespace {

// The accesses that a block's flag has to order.
enum class Announce {
    // Stores of this kernel, which the peer loads after it sees the flag: the flag is a release.
    Stores,
    // Stores of an earlier kernel. They were performed before this kernel began, so no thread waits
    // for the rest of its block. A release would add nothing.
    EarlierStores,
    // Loads of this kernel that have returned: they are performed before the flag's store is
    // issued. A release would add nothing but a wait for stores that no peer reads (README.md,
    // "Pull").
    Loads,
};

// A signal thread's part in a meeting: tells one peer that this block has arrived, and waits for
// the peer's block of the same index. False if this block is lost.
template <peersum_u32 PHASE>
PEERSUM_DEVICE bool exchange_flags(const Call& call, Announce announce) {
    constexpr bool IS_OPENING = PHASE == PEERSUM_PULL_PHASE_OPEN;
    constexpr bool BROKEN = IS_OPENING ? PEERSUM_BREAK == PEERSUM_BREAK_NO_OPENING_BARRIER
                                       : PEERSUM_BREAK == PEERSUM_BREAK_NO_CLOSING_BARRIER;
    const peersum_u32 step = call.step();
    const bool meets_peer = !BROKEN && step != 0;
    const peersum_u64 flag = call.pull_epoch * PEERSUM_PULL_PHASES + PHASE;
    peersum_u64* theirs =
        &call.control_of(meets_peer ? step : 0)->pull_flags[call.block][call.params.rank];
    // Look at poison after this block's last load of a peer's memory: a peer that left may have
    // overwritten what was read. The load runs together with the loads that the meeting waits for
    // anyway.
    peersum_u32 poison = 0;
    if (!IS_OPENING && GUARDED)
        poison = ld_relaxed_sys_u32(&call.control->blocks[call.block].poison);
    if (announce == Announce::Stores) {
        // A block with poison announces nothing: what it reduced may come from overwritten data,
        // and a peer that takes it may not know of any failure. A system fence takes 0.8 to 2.3 us
        // on a GPU that ranks share, a device fence 0.3 us.
        if ((call.params.flags & PEERSUM_FLAG_ONE_DEVICE) != 0) {
            fence_acq_rel_gpu();
        } else {
            fence_acq_rel_sys();
        }
        if (meets_peer && poison == 0) st_relaxed_sys_u64_behind_fence(theirs, flag);
    } else if (meets_peer) {
        st_relaxed_sys_u64(theirs, flag);
    }
    Headers headers{};
    if (IS_OPENING) headers = send_header(call);
    bool lost = false;
    if (meets_peer && poison == 0) {
        // Acquire: what the peer's block stored before its release is visible after this load and,
        // through the block barrier, to every thread here.
        const peersum_u32 peer = call.peer(step);
        const peersum_u64* awaited = &call.control->pull_flags[call.block][peer];
        lost = !await_word(
            call, peer, describe_call(call.params, call.header), ld_acquire_sys_u64(awaited),
            [&] { return ld_acquire_sys_u64(awaited); },
            [&](peersum_u64 word) { return word >= flag; });
    }
    if (IS_OPENING && !lost) lost = !previous_headers_agree(call, headers);
    if (poison != 0) {
        // Leave, as on entry: the poison words of a rank's blocks arrive one by one, and the one
        // that the host looks at may be the last.
        peersum_leave(call.params, PEERSUM_CAUSE_POISON, call.params.rank, poison, 0,
                      describe_call(call.params, call.header), 0);
        lost = true;
    }
    return !lost;
}

// Meets the same block of every rank. False if this block is lost: if `lost` is true on any thread,
// the whole block loses the call. A block announces only what is true of all its threads.
template <peersum_u32 PHASE>
PEERSUM_DEVICE bool meet(const Call& call, Announce announce, bool lost) {
    // After the block barrier the accesses of all threads happen before the flag's store; a release
    // is cumulative over it.
    if (announce != Announce::EarlierStores) lost = bar_red_or(lost);
    if (call.is_signal_thread() && !lost) lost = !exchange_flags<PHASE>(call, announce);
    return !bar_red_or(lost);
}

// Units that a thread loads at once. With few ranks a unit needs few loads; several units together
// fill the memory latency.
constexpr int BATCH = WORLD_SIZE == 2 ? 4 : WORLD_SIZE <= 4 ? 2 : 1;

// Every rank's copy of the array, as this rank maps it: its staging half or its symmetric buffer.
struct Copies {
    bool staged;
    // The number of leading units that are one aligned access in every copy. A staged copy holds
    // whole units.
    peersum_u32 wide;
    // This rank's staging half for this call.
    peersum_u64 own;
    // This rank's other staging half: scratch memory for narrow units of the output. After the
    // opening barrier no peer reads it any more.
    peersum_u64 scratch;
    peersum_u64 base[WORLD_SIZE];
};

PEERSUM_DEVICE Copies copies_of(const Call& call) {
    const PeersumParams& params = call.params;
    const bool is_odd = (call.pull_epoch & 1) != 0;
    const peersum_u64 even_half = params.staging_offset;
    const peersum_u64 odd_half = even_half + params.staging_half_bytes;
    Copies copies;
    copies.staged = !has_detail(params.header);
    copies.own = params.arena[0] + (is_odd ? odd_half : even_half);
    copies.scratch = params.arena[0] + (is_odd ? even_half : odd_half);
    const peersum_u64 offset = !copies.staged ? 0 : is_odd ? odd_half : even_half;
#pragma unroll
    for (int rank = 0; rank < WORLD_SIZE; ++rank) copies.base[rank] = params.source[rank] + offset;
    copies.wide = copies.staged ? call.units
                  : (params.flags & PEERSUM_FLAG_SOURCE_ALIGNED) != 0
                      ? static_cast<peersum_u32>(params.elements / PER_UNIT)
                      : 0;
    return copies;
}

// Sums units that are wide in every copy: `unit`, `unit + stride`, ... below `end`, at most BATCH.
// The loads are relaxed at system scope: the barrier's acquire orders them, and they are never
// served from a stale L1 line.
PEERSUM_DEVICE void sum_wide_units(const Copies& copies, peersum_u32 unit, peersum_u32 stride,
                                   peersum_u32 end, Unit (&sum)[BATCH]) {
    Unit v[BATCH][WORLD_SIZE];
#pragma unroll
    for (int k = 0; k < BATCH; ++k) {
        const peersum_u64 offset = static_cast<peersum_u64>(unit + k * stride) * PEERSUM_UNIT_BYTES;
#pragma unroll
        for (int rank = 0; rank < WORLD_SIZE; ++rank) {
            const void* address = reinterpret_cast<const void*>(copies.base[rank] + offset);
            if (k == 0) {
                v[k][rank] = ld_relaxed_sys_v4(address);
            } else {
                v[k][rank] = Unit{0, 0, 0, 0};
                ld_relaxed_sys_v4_if(unit + k * stride < end, address, v[k][rank]);
            }
        }
    }
#pragma unroll
    for (int k = 0; k < BATCH; ++k) sum[k] = reduce(v[k]);
}

// Sums this thread's share of the narrow units in [begin, end).
PEERSUM_DEVICE void sum_narrow_units(const Call& call, const Copies& copies, peersum_u64 output,
                                     peersum_u32 begin, peersum_u32 end) {
    if (copies.wide >= end) return;
    peersum_sum_narrow(call.params, output, begin + call.first_unit(), copies.wide, end);
}

// Copies this thread's units of the input into this rank's staging half. For narrow units the half
// is also the scratch.
template <bool TWO_SHOT>
PEERSUM_DEVICE void stage(const Call& call, const Copies& copies, Share share) {
    // The number of loads in flight. A thread's units are a chunk apart in a two-shot call and a
    // stride apart in a one-shot call.
    constexpr int LOADS = TWO_SHOT ? WORLD_SIZE : 4;
    const Buffer input = buffer_at(call.params.input, copies.own, call.params.elements);
    const peersum_u32 apart = TWO_SHOT ? share.period : call.unit_stride();
#pragma unroll 1
    for (peersum_u32 i = call.first_unit(); i < share.end;
         i += (TWO_SHOT ? 1 : LOADS) * call.unit_stride()) {
        Unit v[LOADS];
#pragma unroll
        for (int k = 0; k < LOADS; ++k) {
            if (i + k * apart < input.wide)
                v[k] = ld_global_v4(unit_address(input.address, i + k * apart));
        }
#pragma unroll
        for (int k = 0; k < LOADS; ++k) {
            if (i + k * apart < input.wide)
                st_relaxed_sys_v4(unit_address(copies.own, i + k * apart), v[k]);
        }
    }
    load_narrow_units(call, input, share);
}

// The opening meeting. A thread that finds poison on entry makes its whole block lose the call.
template <bool TWO_SHOT>
PEERSUM_DEVICE bool open(const Call& call, const Copies& copies, Share share) {
    const bool lost = call.poison != 0;
    leave_if_poisoned(call);
    if (!lost && copies.staged && !call.is_signal_thread()) stage<TWO_SHOT>(call, copies, share);
    const bool met = meet<PEERSUM_PULL_PHASE_OPEN>(
        call, copies.staged ? Announce::Stores : Announce::EarlierStores, lost);
    // This block has met its peers, so it runs on every rank. What they still wait for is on its
    // way, so the next kernel may take the free seats (README.md, "Programmatic dependent launch").
    if (met) griddepcontrol_launch_dependents();
    return met;
}

// The end of every pull call. All threads of the block read its epoch before the opening barrier.
PEERSUM_DEVICE void end_call(const Call& call) {
    if (call.is_signal_thread()) {
        advance_own_epoch(call);
    } else {
        advance_unlaunched_epochs(call);
    }
}

// Staged: a half is written again two pull calls later, after the opening barrier of the pull call
// between. A peer's block enters that barrier only in a later kernel than the one in which it reads
// here. So a staged call needs no closing barrier.
// Symmetric: the closing barrier keeps the owner from overwriting a buffer that a peer still reads.
PEERSUM_DEVICE void one_shot(const PeersumParams& params) {
    const ThreadPosition position = position_of_thread();
    const Call call = enter(params, position);
    const Share share{call.units, call.units};
    const Copies copies = copies_of(call);
    const Buffer output = buffer_at(params.output, copies.scratch, params.elements);

    bool lost = !open<false>(call, copies, share);
    if (!lost && !call.is_signal_thread()) {
        const peersum_u32 stride = call.unit_stride();
        peersum_u32 unit = call.first_unit();
#pragma unroll 1
        for (; unit < copies.wide; unit += BATCH * stride) {
            Unit sum[BATCH];
            sum_wide_units(copies, unit, stride, copies.wide, sum);
#pragma unroll
            for (int k = 0; k < BATCH; ++k) {
                if (k == 0 || unit + k * stride < copies.wide)
                    st_global_v4(output.at(unit + k * stride), sum[k]);
            }
        }
        // Narrow sums go to the output itself, so the output's scratch holds only units below
        // copies.wide.
        sum_narrow_units(call, copies, params.output, 0, call.units);
    }
    if (!copies.staged) lost = !meet<PEERSUM_PULL_PHASE_SECOND>(call, Announce::Loads, lost);
    if (!call.is_signal_thread()) store_narrow_units(call, output, copies.wide, share, lost);
    end_call(call);
}

// Loads unit `i` of every other owner's reduced chunk into the output. This rank's own chunk was
// stored when it was reduced.
PEERSUM_DEVICE void gather(const Call& call, const Copies& copies, const Buffer& output,
                           peersum_u32 chunk, peersum_u32 i) {
    // Issue all loads before the first store.
    Unit v[WORLD_SIZE];
    bool wanted[WORLD_SIZE];
#pragma unroll
    for (int owner = 0; owner < WORLD_SIZE; ++owner) {
        wanted[owner] = owner != call.params.rank && owner * chunk + i < call.units;
        v[owner] = nan_unit();
        ld_relaxed_sys_v4_if(wanted[owner], unit_address(copies.base[owner], owner * chunk + i),
                             v[owner]);
    }
#pragma unroll
    for (int owner = 0; owner < WORLD_SIZE; ++owner) {
        if (wanted[owner]) st_global_v4(output.at(owner * chunk + i), v[owner]);
    }
}

// Chunk c of the array is reduced by rank c.
// Staged: the result replaces the owner's staged chunk, which no peer reads in that phase. The
// peers read it after the second barrier.
// Symmetric: the owner writes the result into every rank's buffer. Only its owner reads and writes
// a chunk, so no barrier is needed between the two.
PEERSUM_DEVICE void two_shot(const PeersumParams& params) {
    const ThreadPosition position = position_of_thread();
    const Call call = enter(params, position);
    const peersum_u32 chunk = (call.units + WORLD_SIZE - 1) / WORLD_SIZE;
    const Share share{chunk, chunk};
    const Copies copies = copies_of(call);
    const Buffer output = buffer_at(copies.staged ? params.output : params.source[params.rank],
                                    copies.scratch, params.elements);

    bool lost = !open<true>(call, copies, share);
    if (!lost && !call.is_signal_thread()) {
        const peersum_u32 begin = params.rank * chunk;
        const peersum_u32 end = begin + chunk < call.units ? begin + chunk : call.units;
        const peersum_u32 wide = end < copies.wide ? end : copies.wide;
        const peersum_u32 stride = call.unit_stride();
#pragma unroll 1
        for (peersum_u32 unit = begin + call.first_unit(); unit < wide; unit += BATCH * stride) {
            Unit sum[BATCH];
            sum_wide_units(copies, unit, stride, wide, sum);
#pragma unroll
            for (int k = 0; k < BATCH; ++k) {
                const peersum_u32 at = unit + k * stride;
                if (k != 0 && at >= wide) break;
                if (copies.staged) {
                    st_relaxed_sys_v4(unit_address(copies.own, at), sum[k]);
                    st_global_v4(output.at(at), sum[k]);
                } else {
#pragma unroll
                    for (int rank = 0; rank < WORLD_SIZE; ++rank)
                        st_relaxed_sys_v4(unit_address(copies.base[rank], at), sum[k]);
                }
            }
        }
        sum_narrow_units(call, copies, 0, begin, end);
    }
    lost = !meet<PEERSUM_PULL_PHASE_SECOND>(call, Announce::Stores, lost);
    if (!call.is_signal_thread()) {
        if (copies.staged && !lost) {
#pragma unroll 1
            for (peersum_u32 i = call.first_unit(); i < chunk; i += call.unit_stride())
                gather(call, copies, output, chunk, i);
        }
        // A symmetric result is already in place.
        if (copies.staged || lost) store_narrow_units(call, output, copies.wide, share, lost);
    }
    end_call(call);
}

}  // namespace

PEERSUM_ENTRY(pull_one_shot, PEERSUM_MAX_THREADS, 1) { one_shot(params); }

PEERSUM_ENTRY(pull_two_shot, PEERSUM_MAX_THREADS, 1) { two_shot(params); }
