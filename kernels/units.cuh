// units.cuh - a thread's share of the units, input and output as whole units, and the sum of a
// unit.
#pragma once

#include "call.cuh"

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
    const ThreadPosition position = position_of_thread();
#pragma unroll 1
    for (peersum_u32 i = position.first_unit(); i < share.end; i += position.unit_stride()) {
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
