// sum.cuh - the sum of a unit over all ranks.
//
// The numeric contract: float32 accumulation in rank order, one rounding to nearest even, canonical
// NaN.
#pragma once

#include "call.cuh"

// The running float32 sum of one unit.
struct Sum {
    float value[PER_UNIT];
};

PEERSUM_DEVICE Sum unpack(Unit v) {
    Sum sum;
    Element::unpack(v.x, sum.value);
    Element::unpack(v.y, sum.value + Element::PER_WORD);
    Element::unpack(v.z, sum.value + 2 * Element::PER_WORD);
    Element::unpack(v.w, sum.value + 3 * Element::PER_WORD);
    return sum;
}

// Adds a unit to the sum. The sum starts from the first rank's unit, not from +0, which would turn
// -0 into +0.
PEERSUM_DEVICE void add(Sum& sum, Unit v) {
    const Sum term = unpack(v);
#pragma unroll
    for (int e = 0; e < PER_UNIT; ++e) sum.value[e] = add_rn_f32(sum.value[e], term.value[e]);
}

PEERSUM_DEVICE Unit round(const Sum& sum) {
    return Unit{Element::pack(sum.value), Element::pack(sum.value + Element::PER_WORD),
                Element::pack(sum.value + 2 * Element::PER_WORD),
                Element::pack(sum.value + 3 * Element::PER_WORD)};
}

// Sums the units of all ranks in rank order. (Two ranks may be added in either order: the sum of
// two is commutative, bit for bit.)
PEERSUM_DEVICE Unit reduce(const Unit (&v)[WORLD_SIZE]) {
    constexpr bool REVERSED = PEERSUM_BREAK == PEERSUM_BREAK_RANK_ORDER_REVERSED;
    Sum sum = unpack(v[REVERSED ? WORLD_SIZE - 1 : 0]);
#pragma unroll
    for (int rank = 1; rank < WORLD_SIZE; ++rank)
        add(sum, v[REVERSED ? WORLD_SIZE - 1 - rank : rank]);
    return round(sum);
}

// The sum of a unit, from the units of the sources that have slots and, in a pair, this rank's own.
template <int SLOTS>
PEERSUM_DEVICE Unit reduce_received(const Unit (&received)[SLOTS], Unit own) {
    Unit v[WORLD_SIZE];
#pragma unroll
    for (int source = 0; source < WORLD_SIZE; ++source)
        v[source] = source < SLOTS ? received[source % SLOTS] : own;
    return reduce(v);
}
