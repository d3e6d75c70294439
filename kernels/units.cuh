// units.cuh - a thread's share of the units, input and output as whole units.
#pragma once

#include "call.cuh"

// Relaxed at system scope, because the array may be a peer's.
PEERSUM_DEVICE peersum_u32 load_element(peersum_u64 address) {
    const void* at = reinterpret_cast<const void*>(address);
    if constexpr (Element::BYTES == 2) {
        return ld_relaxed_sys_u16(at);
    } else {
        return ld_relaxed_sys_u32(at);
    }
}

PEERSUM_DEVICE void store_element(peersum_u64 address, peersum_u32 value) {
    void* at = reinterpret_cast<void*>(address);
    if constexpr (Element::BYTES == 2) {
        st_relaxed_sys_u16(at, value);
    } else {
        st_relaxed_sys_u32(at, value);
    }
}

// The units that one thread handles from start to finish: for each i in first_unit, first_unit +
// unit_stride, ... below `end`, the units i, i + period, i + 2 * period, ... One-shot: end = period
// = all units. Two-shot: end = period = the chunk, so a thread has the same place in every chunk.
struct Share {
    peersum_u32 end;
    peersum_u32 period;
};

// The caller's input or output of an all-reduce as whole units. The protocols use 16-byte accesses
// only. A unit that is not one aligned access (all of a misaligned array; a partial tail) is
// narrow: the thread that handles it copies it element by element, through scratch memory of this
// rank.
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

// Copies this thread's units in [begin, end) element by element. The source has `readable` elements
// and reads as zeros after them. The destination has `writable` elements, and nothing after them is
// written. If `source` is 0, every element becomes NaN.
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

// Copies the narrow units of an input to its scratch. Call it before the first use of `at`.
PEERSUM_DEVICE void load_narrow_units(const Call& call, const Buffer& input, Share share) {
    if (input.wide == call.units) return;
    peersum_copy_narrow(input.scratch, static_cast<peersum_u64>(call.units) * PER_UNIT,
                        input.address, call.params.elements, input.wide, call.units, share);
}

// Copies the narrow units of an output from its scratch. Call it after the last store through `at`;
// only units below `end` were stored that way. If the call is lost, fills all of this thread's part
// with NaN.
PEERSUM_DEVICE void store_narrow_units(const Call& call, const Buffer& output, peersum_u32 end,
                                       Share share, bool lost) {
    if (output.wide >= end && !lost) return;
    peersum_copy_narrow(output.address, call.params.elements, lost ? 0 : output.scratch,
                        call.params.elements, lost ? 0 : output.wide, lost ? call.units : end,
                        share);
}
