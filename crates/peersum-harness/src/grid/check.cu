// check.cu - the grid's data and comparison on the card: the counterpart of data.rs and of
// peersum::reference, in which both are plain integer and float32 arithmetic. Every rank proves it
// against them before it relies on it.
//
// Compiled ahead of time by `cargo xtask test-allreduce`.

#include "platform.cuh"

typedef unsigned char u8;
typedef unsigned short u16;
typedef peersum_u32 u32;
typedef peersum_u64 u64;

// 0 is f16.
constexpr u32 DTYPE_BF16 = 1, DTYPE_F32 = 2;
constexpr u32 POISON = 0xA5;
// In place of an index: a byte beside the array was written.
constexpr u32 OUTSIDE = 0xFFFFFFFEu;

// One key a rank.
struct Keys {
    u32 key[8];
};

PEERSUM_DEVICE void red_max_global_u64(u64 address, u64 value) {
    asm volatile("red.global.max.u64 [%0], %1;" ::"l"(address), "l"(value) : "memory");
}

__device__ const u32 SPECIAL_BITS[24] = {
    0xFFFFFFFFu, 0x7FFFFFFFu, 0x00000000u, 0x80000000u, 0x7F800000u, 0xFF800000u,
    0x00000001u, 0x80000001u, 0x007FFFFFu, 0x7F7FFFFFu, 0x7F800001u, 0xFFC01234u,
    0x00008000u, 0x00007FFFu, 0x00007C00u, 0x0000FC00u, 0x00007F80u, 0x0000FF80u,
    0x000003FFu, 0x00007BFFu, 0x0000007Fu, 0x00007F7Fu, 0x00007C01u, 0x0000FFFFu,
};

PEERSUM_DEVICE u32 mix(u32 word) {
    word = (word ^ (word >> 16)) * 0x7FEB352Du;
    word = (word ^ (word >> 15)) * 0x846CA68Bu;
    return word ^ (word >> 16);
}

PEERSUM_DEVICE u32 element(u32 dtype, u32 special, u32 key, u32 index) {
    u32 word = mix(index * 0x9E3779B1u ^ key);
    u32 half = word >> 16;
    if (special) {
        u32 any = (word & 1) == 0 ? mix(word) : SPECIAL_BITS[(word >> 1) % 24];
        return dtype == DTYPE_F32 ? any : any & 0xFFFFu;
    }
    if (dtype == DTYPE_F32) return (word & 0x807FFFFFu) | ((119 + ((word >> 23) & 15)) << 23);
    if (dtype == DTYPE_BF16) return (half & 0x807Fu) | ((119 + ((half >> 7) & 15)) << 7);
    return (half & 0x83FFu) | ((8 + ((half >> 10) & 15)) << 10);
}

PEERSUM_DEVICE float widen(u32 dtype, u32 bits) {
    if (dtype == DTYPE_F32) return mov_b32_f32(bits);
    if (dtype == DTYPE_BF16) return mov_b32_f32(bits << 16);
    u32 sign = (bits & 0x8000u) << 16;
    u32 magnitude = (bits & 0x7FFFu) << 13;
    u32 exponent = magnitude & 0x0F800000u;
    if (exponent == 0x0F800000u) return mov_b32_f32(sign | (magnitude + ((255u - 31u) << 23)));
    if (exponent == 0)
        return mov_b32_f32(sign | mov_b32_u32(mov_b32_f32(magnitude + (113u << 23)) -
                                              mov_b32_f32(113u << 23)));
    return mov_b32_f32(sign | (magnitude + ((127u - 15u) << 23)));
}

PEERSUM_DEVICE u32 round_to(u32 dtype, float value) {
    u32 bits = mov_b32_u32(value);
    u32 magnitude = bits & 0x7FFFFFFFu;
    bool nan = magnitude > 0x7F800000u;
    if (dtype == DTYPE_F32) return nan ? 0x7FFFFFFFu : bits;
    if (nan) return 0x7FFFu;
    if (dtype == DTYPE_BF16) return (bits + 0x7FFFu + ((bits >> 16) & 1)) >> 16;
    u32 sign = (bits >> 16) & 0x8000u;
    if (magnitude >= 0x47800000u) return sign | 0x7C00u;
    if (magnitude < 0x38800000u)
        return sign | ((mov_b32_u32(mov_b32_f32(magnitude) + 0.5f) - mov_b32_u32(0.5f)) & 0xFFFFu);
    return sign | ((magnitude - ((127u - 15u) << 23) + 0xFFFu + ((magnitude >> 13) & 1)) >> 13);
}

// Writes one rank's array.
extern "C" __global__ void peersum_grid_generate(u64 array, u64 elements, u32 dtype, u32 special,
                                                 u32 key) {
    u64 step = (u64)nctaid_x() * ntid_x();
    for (u64 i = (u64)ctaid_x() * ntid_x() + tid_x(); i < elements; i += step) {
        u32 bits = element(dtype, special, key, (u32)i);
        if (dtype == DTYPE_F32)
            ((u32*)array)[i] = bits;
        else
            ((u16*)array)[i] = (u16)bits;
    }
}

// The least wrong index of all threads, with its bits, complemented so that 0 means none.
PEERSUM_DEVICE void found(u64 result, u32 index, u32 bits) {
    red_max_global_u64(result, ~((u64)index << 32 | bits));
}

// Compares a slot: `start` bytes of guard, the array, guard up to `guarded_bytes`.
extern "C" __global__ void peersum_grid_check(u64 slot, u64 start, u64 guarded_bytes, u64 elements,
                                              u32 dtype, u32 special, Keys keys, u32 world_size,
                                              u64 result) {
    u64 first = (u64)ctaid_x() * ntid_x() + tid_x();
    u64 step = (u64)nctaid_x() * ntid_x();
    u64 end = start + elements * (dtype == DTYPE_F32 ? 4 : 2);
    for (u64 i = first; i < elements; i += step) {
        u32 expected = element(dtype, special, keys.key[0], (u32)i);
        // The array of one rank has its own bits, also of NaN.
        if (world_size > 1) {
            float sum = widen(dtype, expected);
            for (u32 rank = 1; rank < world_size; rank++)
                sum += widen(dtype, element(dtype, special, keys.key[rank], (u32)i));
            expected = round_to(dtype, sum);
        }
        u32 actual =
            dtype == DTYPE_F32 ? ((const u32*)(slot + start))[i] : ((const u16*)(slot + start))[i];
        if (actual != expected) found(result, (u32)i, actual);
    }
    for (u64 i = first; i < start; i += step)
        if (((const u8*)slot)[i] != POISON) found(result, OUTSIDE, (u32)i);
    for (u64 i = end + first; i < guarded_bytes; i += step)
        if (((const u8*)slot)[i] != POISON) found(result, OUTSIDE, (u32)i);
}
