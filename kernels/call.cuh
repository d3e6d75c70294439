// call.cuh - one call as one thread sees it: its position in the launch, the epochs, entering and
// counting the call, and the declaration of an entry point.
#pragma once

#include "element.cuh"

// The family as which the calls of this module count. The file of each module defines it before it
// includes this one: norm.cu and move.cu count as push.
constexpr peersum_u32 FAMILY = PEERSUM_MODULE_FAMILY;

// Build switches of the harness. A shipped module sets none of them.
//
// PEERSUM_BREAK: breaks the protocol on purpose, to prove that the tests notice.
#define PEERSUM_BREAK_NOTHING 0
#define PEERSUM_BREAK_NO_REARM 1
#define PEERSUM_BREAK_NO_CLOSING_BARRIER 2
#define PEERSUM_BREAK_LANE_UNCHECKED 3
#define PEERSUM_BREAK_EPOCH_NOT_ADVANCED 4
#define PEERSUM_BREAK_NO_OPENING_BARRIER 5
#define PEERSUM_BREAK_RANK_ORDER_REVERSED 6
#define PEERSUM_BREAK_NO_ROW_BARRIER 7
#define PEERSUM_BREAK_TREE_OF_BLOCK 8
#define PEERSUM_BREAK_WEIGHT_BEFORE_WAIT 9
#ifndef PEERSUM_BREAK
#define PEERSUM_BREAK PEERSUM_BREAK_NOTHING
#endif

// PEERSUM_UNSAFE_BASELINE: no headers, no bounded waits, no poison. It shows what safety costs.
#ifdef PEERSUM_UNSAFE_BASELINE
constexpr bool GUARDED = false;
#else
constexpr bool GUARDED = true;
#endif

// PEERSUM_STRICT_ORDER: a formal happens-before chain from a re-arm to the peer's next store into
// the slot (README.md, "Re-arming").
#ifdef PEERSUM_STRICT_ORDER
constexpr bool STRICT_ORDER = true;
#else
constexpr bool STRICT_ORDER = false;
#endif

// A thread's position in its launch. A block has `threads` data threads, which handle units,
// followed by WORLD_SIZE signal threads: the one with index `step` exchanges headers and flags with
// the `step`-th peer. Signal threads work beside the data, in a warp of their own if the data
// threads fill theirs, so that no unit waits for the instructions of a signal.
struct ThreadPosition {
    peersum_u32 thread, threads, block, blocks;

    __device__ __forceinline__ bool is_signal_thread() const { return thread >= threads; }
    // The index of this signal thread's peer, in the order of PeersumParams::arena. 0 is this rank
    // itself.
    __device__ __forceinline__ peersum_u32 step() const { return thread - threads; }
    __device__ __forceinline__ peersum_u32 first_unit() const { return block * threads + thread; }
    __device__ __forceinline__ peersum_u32 unit_stride() const { return blocks * threads; }
};

PEERSUM_DEVICE ThreadPosition position_of_thread() {
    return ThreadPosition{tid_x(), ntid_x() - WORLD_SIZE, ctaid_x(), nctaid_x()};
}

// The rank of the `step`-th peer.
PEERSUM_DEVICE peersum_u32 rank_of_step(const PeersumParams& params, peersum_u32 step) {
    const peersum_u32 rank = params.rank + step;
    return rank >= WORLD_SIZE ? rank - WORLD_SIZE : rank;
}

// One call as one thread sees it.
struct Call : ThreadPosition {
    const PeersumParams& params;
    PeersumControl* control;
    // Epochs before this call. Each family counts its own calls; their sum counts all calls of the
    // communicator.
    peersum_u64 pull_epoch;
    peersum_u32 push_epoch;
    // The poison word, as read on entry.
    peersum_u32 poison;
    // Units of the array, counting a partial last one.
    peersum_u32 units;
    // This rank's header for this call.
    peersum_u64 header;

    // The control block of the `step`-th peer.
    __device__ __forceinline__ PeersumControl* control_of(peersum_u32 step) const {
        return reinterpret_cast<PeersumControl*>(params.arena[step]);
    }
    __device__ __forceinline__ peersum_u32 peer(peersum_u32 step) const {
        return rank_of_step(params, step);
    }
};

// The sequence in a header or a detail: both have it in the same position.
PEERSUM_DEVICE peersum_u32 sequence_of(peersum_u64 header) {
    return static_cast<peersum_u32>(header >> PEERSUM_HEADER_SEQUENCE_SHIFT);
}

// Whether the call with this header has a detail.
PEERSUM_DEVICE bool has_detail(peersum_u64 header) {
    return (header >> PEERSUM_HEADER_SOURCE_SHIFT & 1) == PEERSUM_SOURCE_SYMMETRIC;
}

// Whether the call with this header has norm words.
PEERSUM_DEVICE bool is_normalised(peersum_u64 header) {
    return (header >> PEERSUM_HEADER_OPERATION_SHIFT &
            ((1u << PEERSUM_HEADER_OPERATION_BITS) - 1)) == PEERSUM_OPERATION_RMS_NORM;
}

// The first step of every call: waits for the earlier kernels, then reads this block's epochs and
// poison in one access. Relaxed is enough: an earlier kernel of this stream stored the epochs, and
// the poison word carries no data.
PEERSUM_DEVICE Call enter(const PeersumParams& params, const ThreadPosition& position) {
    griddepcontrol_wait();
    PeersumControl* control = reinterpret_cast<PeersumControl*>(params.arena[0]);
    const Unit state = ld_relaxed_sys_v4(&control->blocks[position.block]);
    const peersum_u64 pull_epoch = static_cast<peersum_u64>(state.y) << 32 | state.x;
    return Call{position, params, control, pull_epoch, state.z, GUARDED ? state.w : 0,
                units_of(params.elements),
                // The sequence modulo 2^16: the shift drops the higher bits.
                (pull_epoch + state.z) << PEERSUM_HEADER_SEQUENCE_SHIFT | params.header};
}

// Counts this call in a block's state. Relaxed is enough: the only readers are a thread of the
// block that leaves meanwhile, and later kernels of this stream.
PEERSUM_DEVICE void advance_epoch_of(const Call& call, peersum_u32 block) {
    if (PEERSUM_BREAK == PEERSUM_BREAK_EPOCH_NOT_ADVANCED) return;
    PeersumBlockState* state = &call.control->blocks[block];
    if constexpr (FAMILY == PEERSUM_FAMILY_PUSH) {
        st_relaxed_sys_u32(&state->push_epoch, call.push_epoch + 1);
    } else {
        st_relaxed_sys_u64(&state->pull_epoch, call.pull_epoch + 1);
    }
}

// For signal threads. Counts this call in the block's own state, once all threads of the block have
// read it.
PEERSUM_DEVICE void advance_own_epoch(const Call& call) {
    if (call.step() == 0) advance_epoch_of(call, call.block);
}

// For data threads. Counts this call in the states of the blocks that were not launched: block b
// updates b + blocks, b + 2 * blocks, ... No thread reads these in this call, so this may be done
// at any time.
PEERSUM_DEVICE void advance_unlaunched_epochs(const Call& call) {
#pragma unroll 1
    for (peersum_u32 b = call.block + call.blocks * (1 + call.thread); b < PEERSUM_MAX_BLOCKS;
         b += call.blocks * call.threads) {
        advance_epoch_of(call, b);
    }
}

// Entry point names, for example peersum_push_one_shot_bf16_ws8.
#define PEERSUM_PASTE_6(a, b, c, d, e, f) a##b##c##d##e##f
#define PEERSUM_ENTRY_NAME(family_algorithm, dtype, world_size) \
    PEERSUM_PASTE_6(peersum_, family_algorithm, _, dtype, _ws, world_size)
// `threads` is the most threads of a block that handle units. `blocks` is how many such blocks must
// find room on a multiprocessor: with 2 a block has a seat. With 1 it may use all registers.
// Without a number ptxas aims for two blocks on some architectures, and spills. A block counts as a
// multiple of four warps, because each warp has its registers in one of four parts of the
// multiprocessor.
#define PEERSUM_KERNEL(family_algorithm, threads, blocks)           \
    extern "C" __global__ void __launch_bounds__(                   \
        ((threads) + PEERSUM_WORLD_SIZE + 127) / 128 * 128, blocks) \
        PEERSUM_ENTRY_NAME(family_algorithm, PEERSUM_DTYPE, PEERSUM_WORLD_SIZE)

// PEERSUM_ONE_LAUNCH: the ranks of a group are the rows of one grid, for tools that allow only one
// kernel to run at a time.
#ifdef PEERSUM_ONE_LAUNCH
struct AllParams {
    PeersumParams of_rank[WORLD_SIZE];
};
#define PEERSUM_ENTRY(family_algorithm, threads, blocks)                                       \
    PEERSUM_DEVICE void run_##family_algorithm(const PeersumParams& params);                   \
    PEERSUM_KERNEL(family_algorithm, threads, blocks)(const __grid_constant__ AllParams all) { \
        run_##family_algorithm(all.of_rank[ctaid_y()]);                                        \
    }                                                                                          \
    PEERSUM_DEVICE void run_##family_algorithm(const PeersumParams& params)
#else
#define PEERSUM_ENTRY(family_algorithm, threads, blocks) \
    PEERSUM_KERNEL(family_algorithm, threads, blocks)(const __grid_constant__ PeersumParams params)
#endif
