// narrow.cuh - units of the caller's arrays that need not be one aligned access: of an array of any
// alignment, and partial ones at its end.
#pragma once

#include "element.cuh"

// The widest access that every element of a narrow unit allows: 1, 2 or 4 bytes.
PEERSUM_DEVICE peersum_u32 access_bytes(peersum_u64 address, peersum_u32 bytes) {
    const peersum_u32 bits = static_cast<peersum_u32>(address) | bytes;
    return (bits & 1) != 0 ? 1 : (bits & 2) != 0 ? 2 : 4;
}

// Loads the first `bytes` bytes of a unit, at most all 16. The rest of it is 0.
extern "C" __device__ __noinline__ Unit peersum_load_narrow(peersum_u64 address,
                                                            peersum_u32 bytes) {
    peersum_u32 word[4] = {0, 0, 0, 0};
    const peersum_u32 apart = access_bytes(address, bytes);
#pragma unroll
    for (peersum_u32 at = 0; at < PEERSUM_UNIT_BYTES; ++at) {
        if (at >= bytes || at % apart != 0) continue;
        const void* from = reinterpret_cast<const void*>(address + at);
        const peersum_u32 value = apart == 4   ? ld_global_u32(from)
                                  : apart == 2 ? ld_global_u16(from)
                                               : ld_global_u8(from);
        word[at / 4] |= value << at % 4 * 8;
    }
    return Unit{word[0], word[1], word[2], word[3]};
}

// Stores the first `bytes` bytes of a unit, at most all 16.
extern "C" __device__ __noinline__ void peersum_store_narrow(peersum_u64 address, peersum_u32 bytes,
                                                             Unit v) {
    const peersum_u32 word[4] = {v.x, v.y, v.z, v.w};
    const peersum_u32 apart = access_bytes(address, bytes);
#pragma unroll
    for (peersum_u32 at = 0; at < PEERSUM_UNIT_BYTES; ++at) {
        if (at >= bytes || at % apart != 0) continue;
        void* to = reinterpret_cast<void*>(address + at);
        const peersum_u32 value = word[at / 4] >> at % 4 * 8;
        if (apart == 4) {
            st_global_u32(to, value);
        } else if (apart == 2) {
            st_global_u16(to, value);
        } else {
            st_global_u8(to, value);
        }
    }
}

// An array in the caller's memory as whole units: reads as zeros behind its end, where nothing is
// stored.
struct Units {
    peersum_u64 address;
    peersum_u64 bytes;

    __device__ __forceinline__ bool is_whole_access(peersum_u64 at) const {
        return is_wide(address) && at + PEERSUM_UNIT_BYTES <= bytes;
    }
    __device__ __forceinline__ peersum_u32 bytes_at(peersum_u64 at) const {
        return at + PEERSUM_UNIT_BYTES <= bytes ? PEERSUM_UNIT_BYTES
                                                : static_cast<peersum_u32>(bytes - at);
    }
    __device__ __forceinline__ Unit load(peersum_u32 unit) const {
        const peersum_u64 at = static_cast<peersum_u64>(unit) * PEERSUM_UNIT_BYTES;
        if (is_whole_access(at)) return ld_global_v4(reinterpret_cast<const void*>(address + at));
        return peersum_load_narrow(address + at, bytes_at(at));
    }
    __device__ __forceinline__ void store(peersum_u32 unit, Unit v) const {
        const peersum_u64 at = static_cast<peersum_u64>(unit) * PEERSUM_UNIT_BYTES;
        if (is_whole_access(at)) {
            st_global_v4(reinterpret_cast<void*>(address + at), v);
        } else {
            peersum_store_narrow(address + at, bytes_at(at), v);
        }
    }
};
