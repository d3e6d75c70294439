// element.cuh - the element types of modules, and the units of an array of them.
#pragma once

#include "platform.cuh"

struct element_f16 {
    static constexpr peersum_u32 DTYPE = PEERSUM_DTYPE_F16;
    static constexpr int BYTES = 2;
    static constexpr int PER_WORD = 2;
    static constexpr peersum_u32 NAN_WORD = 0x7FFF7FFFu;

    PEERSUM_DEVICE void unpack(peersum_u32 word, float* value) {
        value[0] = cvt_f32_f16_low(word);
        value[1] = cvt_f32_f16_high(word);
    }
    PEERSUM_DEVICE peersum_u32 pack(const float* value) {
        return cvt_rn_f16x2_f32(value[1], value[0]);
    }
};

struct element_bf16 {
    static constexpr peersum_u32 DTYPE = PEERSUM_DTYPE_BF16;
    static constexpr int BYTES = 2;
    static constexpr int PER_WORD = 2;
    static constexpr peersum_u32 NAN_WORD = 0x7FFF7FFFu;

    // A bf16 is the upper half of the float32 with the same value.
    PEERSUM_DEVICE void unpack(peersum_u32 word, float* value) {
        value[0] = mov_b32_f32(word << 16);
        value[1] = mov_b32_f32(word & 0xFFFF0000u);
    }
    PEERSUM_DEVICE peersum_u32 pack(const float* value) {
        return cvt_rn_bf16x2_f32(value[1], value[0]);
    }
};

struct element_f32 {
    static constexpr peersum_u32 DTYPE = PEERSUM_DTYPE_F32;
    static constexpr int BYTES = 4;
    static constexpr int PER_WORD = 1;
    static constexpr peersum_u32 NAN_WORD = 0x7FFFFFFFu;

    PEERSUM_DEVICE void unpack(peersum_u32 word, float* value) { value[0] = mov_b32_f32(word); }
    PEERSUM_DEVICE peersum_u32 pack(const float* value) { return mov_b32_u32(value[0]); }
};

// What is moved without a look at its type. There is nothing to unpack.
struct element_u8 {
    static constexpr peersum_u32 DTYPE = PEERSUM_DTYPE_U8;
    static constexpr int BYTES = 1;
    static constexpr peersum_u32 NAN_WORD = 0xFFFFFFFFu;
};

#define PEERSUM_PASTE_2(a, b) a##b
#define PEERSUM_PASTE(a, b) PEERSUM_PASTE_2(a, b)

// The element type and world size of this module.
using Element = PEERSUM_PASTE(element_, PEERSUM_DTYPE);
constexpr int WORLD_SIZE = PEERSUM_WORLD_SIZE;
static_assert(WORLD_SIZE >= 1 && WORLD_SIZE <= PEERSUM_MAX_WORLD_SIZE,
              "a module serves world sizes 1 to 8");

// Elements in a unit.
constexpr int PER_UNIT = PEERSUM_UNIT_BYTES / Element::BYTES;

PEERSUM_DEVICE Unit nan_unit() {
    return Unit{Element::NAN_WORD, Element::NAN_WORD, Element::NAN_WORD, Element::NAN_WORD};
}

// The number of units of an array, counting a partial last one. A call has fewer than 2^31 units
// (PeersumParams::elements), so indices fit in 32 bits.
PEERSUM_DEVICE peersum_u32 units_of(peersum_u64 elements) {
    return static_cast<peersum_u32>((elements + PER_UNIT - 1) / PER_UNIT);
}

PEERSUM_DEVICE bool is_wide(peersum_u64 address) { return address % PEERSUM_UNIT_BYTES == 0; }

// The number of leading units of an array at `address` that are one aligned 16-byte access each:
// all but a partial tail, or none.
PEERSUM_DEVICE peersum_u32 wide_units(peersum_u64 address, peersum_u64 elements) {
    return is_wide(address) ? static_cast<peersum_u32>(elements / PER_UNIT) : 0;
}

PEERSUM_DEVICE void* unit_address(peersum_u64 base, peersum_u32 unit) {
    return reinterpret_cast<void*>(base + static_cast<peersum_u64>(unit) * PEERSUM_UNIT_BYTES);
}
