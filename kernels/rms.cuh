// rms.cuh - the arithmetic of one row: residual, the sum of squares, the normalised unit.
//
// The sum of squares adds adjacent pairs, level by level, in the order of the elements. A row's
// result depends on its own elements alone: not on the other rows, the block, the grid or the
// algorithm. The levels are, from the lowest: the elements of a unit, the lanes of a warp, the
// units of a thread, the warps of the block or of the cluster. Missing elements count as +0, which
// changes no sum of squares, so they are left out where that is simpler.
#pragma once

#include "sum.cuh"

namespace {

// A call's rows as one thread sees them. A warp handles adjacent units of a row, `per_thread` for
// each lane, a power of two. A thread's units are LANES apart, so that what the lanes access
// together is adjacent.
struct Rows {
    // Units of a row.
    peersum_u32 units;
    peersum_u32 count;
    peersum_u32 per_thread;
    // The first unit of this thread in every row.
    peersum_u32 first;
    // Units of this thread in a row; 0 for a thread behind the end of the row.
    peersum_u32 own;

    // The address of this thread's k-th unit, given that of its first.
    static __device__ __forceinline__ void* nth(const void* first, peersum_u32 k) {
        return unit_address(reinterpret_cast<peersum_u64>(first), k * LANES);
    }
    __device__ __forceinline__ bool has(peersum_u32 k) const { return k < own; }
    // This thread's first unit of a row in input, output and residual.
    __device__ __forceinline__ peersum_u32 unit(peersum_u32 row) const {
        return row * units + first;
    }
};

// Those of a launch in which a block handles one row after another.
struct BlockRows : Rows {
    static constexpr bool IN_CLUSTERS = false;
    // The blocks that share a row, and which of them this one is.
    static __device__ __forceinline__ peersum_u32 blocks() { return 1; }
    static __device__ __forceinline__ peersum_u32 block() { return 0; }
    // The first row of this block, and how far apart its rows are.
    static __device__ __forceinline__ peersum_u32 begin() { return ctaid_x(); }
    static __device__ __forceinline__ peersum_u32 stride() { return nctaid_x(); }
};

// Those of a launch in which every row has a cluster of blocks. A type of its own, because reading
// the registers of a cluster makes calls without one slower.
struct ClusterRows : Rows {
    static constexpr bool IN_CLUSTERS = true;
    static __device__ __forceinline__ peersum_u32 blocks() { return cluster_nctarank(); }
    static __device__ __forceinline__ peersum_u32 block() { return cluster_ctarank(); }
    static __device__ __forceinline__ peersum_u32 begin() { return clusterid_x(); }
    static __device__ __forceinline__ peersum_u32 stride() { return nclusterid_x(); }
};

// The fewest units a thread, a power of two, with which so many data threads cover a row.
PEERSUM_DEVICE peersum_u32 units_per_thread(peersum_u32 units, peersum_u32 threads) {
    peersum_u32 per_thread = 1;
#pragma unroll 1
    while (per_thread * threads < units) per_thread *= 2;
    return per_thread;
}

template <typename AnyRows>
PEERSUM_DEVICE AnyRows rows_of(const PeersumParams& params, const ThreadPosition& position) {
    AnyRows rows;
    rows.units = params.hidden / PER_UNIT;
    rows.count = params.rows;
    rows.per_thread = units_per_thread(rows.units, rows.blocks() * position.threads);
    const peersum_u32 lane = position.thread % LANES;
    rows.first =
        (rows.block() * position.threads + position.thread - lane) * rows.per_thread + lane;
    const peersum_u32 behind = rows.first < rows.units ? rows.units - rows.first : 0;
    const peersum_u32 of_lane = (behind + LANES - 1) / LANES;
    rows.own = of_lane < rows.per_thread ? of_lane : rows.per_thread;
    return rows;
}

// Adds the residual to a unit of the sum: r = round(s + residual).
PEERSUM_DEVICE Unit add_residual(Unit s, Unit residual) {
    Sum sum = unpack(s);
    add(sum, residual);
    return round(sum);
}

// The sum of the squares of a unit's elements.
PEERSUM_DEVICE float squares_of_unit(Unit unit) {
    Sum square = unpack(unit);
#pragma unroll
    for (int e = 0; e < PER_UNIT; ++e)
        square.value[e] = mul_rn_f32(square.value[e], square.value[e]);
#pragma unroll
    for (int width = PER_UNIT / 2; width > 0; width /= 2) {
#pragma unroll
        for (int e = 0; e < width; ++e)
            square.value[e] = add_rn_f32(square.value[2 * e], square.value[2 * e + 1]);
    }
    return square.value[0];
}

// The sum of the squares of a warp's units, `UNITS` of each lane; every lane gets it.
template <int UNITS>
PEERSUM_DEVICE float squares_of_warp(const ThreadPosition& position, const Unit (&units)[UNITS]) {
    static_assert(UNITS <= LANES, "each of a thread's units has a lane that sums it");
    float sum[UNITS];
#pragma unroll
    for (int k = 0; k < UNITS; ++k) sum[k] = squares_of_unit(units[k]);
    // Two lanes that add a pair share the work: each sums half of the units that are left.
    int left = UNITS;
#pragma unroll
    for (peersum_u32 mask = 1; mask < LANES; mask *= 2) {
        if (left == 1) {
            sum[0] = add_rn_f32(sum[0], shfl_bfly_f32(sum[0], mask));
            continue;
        }
        left /= 2;
        const bool has_upper = (position.thread & mask) != 0;
#pragma unroll
        for (int k = 0; k < left; ++k) {
            const float given = has_upper ? sum[k] : sum[k + left];
            const float kept = has_upper ? sum[k + left] : sum[k];
            sum[k] = add_rn_f32(kept, shfl_bfly_f32(given, mask));
        }
    }
    // The lowest bit of a unit's number is the last that the lanes were divided by.
#pragma unroll
    for (peersum_u32 mask = UNITS / 2; mask > 0; mask /= 2)
        sum[0] = add_rn_f32(sum[0], shfl_bfly_f32(sum[0], mask));
    return sum[0];
}

PEERSUM_DEVICE float squares_of_warp(const ThreadPosition& position, Unit unit) {
    const Unit units[1] = {unit};
    return squares_of_warp(position, units);
}

// The sums of a warp's units, added in pairs as they come.
class UnitSums {
public:
    // Adds the sum of the next unit. The bits of `index` say which pairs are complete.
    __device__ __forceinline__ void push(peersum_u32 index, float sum) {
        bool is_open = true;
#pragma unroll
        for (int level = 0; level < LEVELS; ++level) {
            const bool is_pair = is_open && (index >> level & 1) != 0;
            if (is_pair) sum = add_rn_f32(pending[level], sum);
            if (is_open && !is_pair) pending[level] = sum;
            is_open = is_pair;
        }
        // All levels are complete after the last unit of the most that a thread has.
        if (is_open) pending[LEVELS] = sum;
    }

    // The sum of `units` units, a power of two of which were pushed.
    __device__ __forceinline__ float total(peersum_u32 units) const {
        float total = pending[0];
#pragma unroll
        for (int level = 1; level <= LEVELS; ++level) {
            if (units >> level != 0) total = pending[level];
        }
        return total;
    }

private:
    static constexpr int LEVELS = 6;
    static_assert(1 << LEVELS == PEERSUM_MAX_ROW_UNITS_PER_THREAD, "one level a bit");
    float pending[LEVELS + 1] = {};
};

// What block memory holds, in float32 values: the sum of squares of each warp that has a part of
// the row, for odd and for even rows, and its largest magnitude (fp8.cuh).
constexpr peersum_u32 FIRST_MAXIMUM = 2 * MOST_ROW_WARPS;
// The barriers that count what the blocks of a cluster send: sums, and largest magnitudes.
constexpr peersum_u32 SUM_BARRIER = 0;
constexpr peersum_u32 MAXIMUM_BARRIER = 1;

// Arrives at the cluster's start: call before griddepcontrol.wait, on every thread.
PEERSUM_DEVICE void arrive_in_cluster(const ThreadPosition& position, BlockMemory memory) {
    if (position.thread == 0) {
#pragma unroll
        for (peersum_u32 barrier = 0; barrier < CLUSTER_BARRIERS; ++barrier)
            mbarrier_init(memory, barrier);
    }
    barrier_cluster_arrive();
}

// Makes one value of every warp known to all threads that share the row: from `first` on in the
// memory of each block. A cluster has one row, so it uses `barrier` once.
template <typename AnyRows>
PEERSUM_DEVICE void exchange_over_row(const ThreadPosition& position, const AnyRows& rows,
                                      BlockMemory memory, peersum_u32 first, float value,
                                      peersum_u32 barrier) {
    const peersum_u32 lane = position.thread % LANES, warps = position.threads / LANES;
    const peersum_u32 index = first + rows.block() * warps + position.thread / LANES;
    if constexpr (AnyRows::IN_CLUSTERS) {
#pragma unroll 1
        for (peersum_u32 block = lane; block < rows.blocks(); block += LANES)
            st_async_f32(memory, block, index, value, barrier);
        if (position.thread == 0)
            mbarrier_arrive_expect_tx(memory, barrier, rows.blocks() * warps * 4);
        if (PEERSUM_BREAK != PEERSUM_BREAK_NO_ROW_BARRIER) mbarrier_wait(memory, barrier);
    } else {
        if (lane == 0) st_shared_f32(memory, index, value);
        if (PEERSUM_BREAK != PEERSUM_BREAK_NO_ROW_BARRIER) barrier_cta_sync_data(position.threads);
    }
}

// The sum of `count` values in block memory, by the tree of the row.
template <peersum_u32 MOST>
PEERSUM_DEVICE float sum_of_warps(BlockMemory memory, peersum_u32 first, peersum_u32 count) {
    float warp[MOST];
#pragma unroll
    for (peersum_u32 w = 0; w < MOST; w += 4) {
        // Four warps at a time; those that are not there have no sum.
        float four[4] = {0, 0, 0, 0};
        if (w < count) ld_shared_v4_f32(memory, first + w, four);
#pragma unroll
        for (peersum_u32 k = 0; k < 4; ++k) warp[w + k] = w + k < count ? four[k] : 0.0f;
    }
    if (PEERSUM_BREAK == PEERSUM_BREAK_TREE_OF_BLOCK) {
        // One after the other: another tree for each number of warps.
        for (peersum_u32 w = 1; w < MOST; ++w) warp[0] = add_rn_f32(warp[0], warp[w]);
        return warp[0];
    }
#pragma unroll
    for (peersum_u32 apart = 1; apart < MOST; apart *= 2) {
#pragma unroll
        for (peersum_u32 w = 0; w + apart < MOST; w += 2 * apart)
            warp[w] = add_rn_f32(warp[w], warp[w + apart]);
    }
    return warp[0];
}

// Adds the sums of all warps that share a row; every thread gets the total. Warps exchange
// through block memory, in the half that `is_odd` selects: a thread that is still reading the sums
// of one row has not arrived at the barrier of the next, so nobody stores into the same half.
template <typename AnyRows>
PEERSUM_DEVICE float sum_over_row(const ThreadPosition& position, const AnyRows& rows,
                                  BlockMemory memory, float sum, bool is_odd) {
    const peersum_u32 warps = rows.blocks() * position.threads / LANES;
    if (warps <= 1) return sum;
    const peersum_u32 first = is_odd ? MOST_ROW_WARPS : 0;
    exchange_over_row(position, rows, memory, first, sum, SUM_BARRIER);
    // Two halves of the tree, one after the other: fewer registers.
    constexpr peersum_u32 HALF_TREE = MOST_ROW_WARPS / 2;
    float total = sum_of_warps<HALF_TREE>(memory, first, warps);
    if (AnyRows::IN_CLUSTERS && warps > HALF_TREE)
        total = add_rn_f32(total,
                           sum_of_warps<HALF_TREE>(memory, first + HALF_TREE, warps - HALF_TREE));
    return total;
}

// k = 1 / sqrt(sum / hidden + epsilon).
PEERSUM_DEVICE float scale_of_row(const PeersumParams& params, float sum) {
    const float mean = div_rn_f32(sum, cvt_rn_f32_u32(params.hidden));
    return rcp_rn_f32(sqrt_rn_f32(add_rn_f32(mean, params.epsilon)));
}

// n = round((r * scale) * (weight_offset + weight)).
PEERSUM_DEVICE Unit normalise(const PeersumParams& params, Unit r, float scale, Unit weight) {
    Sum value = unpack(r);
    const Sum factor = unpack(weight);
#pragma unroll
    for (int e = 0; e < PER_UNIT; ++e)
        value.value[e] = mul_rn_f32(mul_rn_f32(value.value[e], scale),
                                    add_rn_f32(params.weight_offset, factor.value[e]));
    return round(value);
}

}  // namespace
