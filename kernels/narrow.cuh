// narrow.cuh - units of the caller's arrays that need not be one aligned access: of an array of any
// alignment, and partial ones at its end.
#pragma once

#include "element.cuh"

// The widest access that every element of a narrow unit allows: 1, 2 or 4 bytes.
PEERSUM_DEVICE peersum_u32 access_bytes(peersum_u64 address, peersum_u32 bytes) {
    const peersum_u32 bits = static_cast<peersum_u32>(address) | bytes;
    return (bits & 1) != 0 ? 1 : (bits & 2) != 0 ? 2 : 4;
}

// Loads the first `bytes` bytes of a unit, at most all 16. The rest of it is 0. (The loops are not
// unrolled: that would be most of what a module takes to compile.)
extern "C" __device__ __noinline__ Unit peersum_load_narrow(peersum_u64 address,
                                                            peersum_u32 bytes) {
    peersum_u64 low = 0, high = 0;
    const peersum_u32 apart = access_bytes(address, bytes);
#pragma unroll 1
    for (peersum_u32 at = 0; at < bytes; at += apart) {
        const void* from = reinterpret_cast<const void*>(address + at);
        const peersum_u64 value = apart == 4   ? ld_global_u32(from)
                                  : apart == 2 ? ld_global_u16(from)
                                               : ld_global_u8(from);
        const peersum_u64 in_place = value << at % 8 * 8;
        if (at < 8) {
            low |= in_place;
        } else {
            high |= in_place;
        }
    }
    return Unit{static_cast<peersum_u32>(low), static_cast<peersum_u32>(low >> 32),
                static_cast<peersum_u32>(high), static_cast<peersum_u32>(high >> 32)};
}

// Stores the first `bytes` bytes of a unit, at most all 16.
extern "C" __device__ __noinline__ void peersum_store_narrow(peersum_u64 address, peersum_u32 bytes,
                                                             Unit v) {
    const peersum_u64 low = static_cast<peersum_u64>(v.y) << 32 | v.x;
    const peersum_u64 high = static_cast<peersum_u64>(v.w) << 32 | v.z;
    const peersum_u32 apart = access_bytes(address, bytes);
#pragma unroll 1
    for (peersum_u32 at = 0; at < bytes; at += apart) {
        void* to = reinterpret_cast<void*>(address + at);
        const peersum_u32 value = static_cast<peersum_u32>((at < 8 ? low : high) >> at % 8 * 8);
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
