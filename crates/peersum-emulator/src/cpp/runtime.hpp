// runtime.hpp - what runs below the emulated instructions: a thread's identity, barriers, the
// clock.
#pragma once

#include "abi.h"

namespace emulator {

// A barrier; zeroed at first.
struct Barrier {
    peersum_u32 arrived;
    // Counts the barrier's uses; waiting threads look at it.
    peersum_u32 generation;
};

// Threads of a warp. More than one, so that every level of a sum over a block is there; fewer than
// a GPU's, so that small blocks have several warps.
constexpr peersum_u32 WARP = 4;

// As in platform.cuh.
constexpr peersum_u32 BLOCK_FLOATS = 3 * PEERSUM_MAX_CLUSTER_THREADS / WARP;
constexpr peersum_u32 CLUSTER_BARRIERS = 2;

// What the threads of one block exchange outside the ranks' memory; zeroed at first.
struct BlockMemory {
    // Of all threads of the block.
    Barrier whole;
    // The disjunction of the values given there, by the lowest bit of the generation.
    peersum_u32 any[2];
    // The one whose arrivals do not wait.
    Barrier split;
    // Of the threads that handle units.
    Barrier data;
    // Of the cluster, which is met once; that of its first block counts.
    Barrier cluster;
    // Those that wait for bytes too.
    Barrier mbarriers[CLUSTER_BARRIERS];
    peersum_u32 padding[2];
    // The kernel's own memory: platform_emulator.hpp.
    float floats[BLOCK_FLOATS];
    struct Warp {
        Barrier barrier;
        // The lanes' values, by the lowest bit of the generation.
        float values[2][WARP];
    } warps[PEERSUM_MAX_THREADS / WARP];
};
// BLOCK_MEMORY_WORDS of entry_points.rs.
static_assert(sizeof(BlockMemory) == 1032 * 8, "the host allocates as much");

// An emulated thread: who it is, its source of disorder, and how it waits.
struct Thread {
    peersum_u32 tid, ntid, ctaid, nctaid;
    // Blocks of a cluster; their memory is adjacent.
    peersum_u32 cluster_nctarank;
    BlockMemory* memory;
    peersum_u32 random;
    // Whether it has executed griddepcontrol.wait. Until then the kernel before may still run on a
    // GPU, so accesses to memory find and leave nothing of use.
    bool has_waited;
    // Lets other fibers run until the word is another than `last`, or for a turn if there is no
    // word. Null: this thread is a host thread of its own, not a fiber.
    void (*suspend)(const void* fiber, const peersum_u32* word, peersum_u32 last);
    const void* fiber;
};

// The emulated thread that this host thread runs now. `__thread`: no initialisation, so no wrapper
// function a module.
extern __thread Thread* current;

// A pseudo-random number (xorshift).
static inline peersum_u32 next_random() {
    peersum_u32 x = current->random;
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    return current->random = x;
}

// Waits for all threads of the block; true on each if `value` is true on any.
bool block_barrier(bool value);

// One arrival of `threads`. Whether it was the last.
bool arrive(Barrier& barrier, peersum_u32 threads);
// Waits until the generation is another than `last`.
void await_next(Barrier& barrier, peersum_u32 last);
// Both.
void meet(Barrier& barrier, peersum_u32 threads);

// The memory of the `block`-th block of this block's cluster.
static inline BlockMemory* memory_in_cluster(peersum_u32 block) {
    return current->memory - current->ctaid % current->cluster_nctarank + block;
}

// A phase of a barrier that waits for bytes too has ended when as much has arrived: the arrival
// adds it, less the bytes that it expects, and each byte adds 1.
constexpr peersum_u32 COMPLETE = 1u << 31;
void add_to_phase(Barrier& barrier, peersum_u32 value);

// The value of the thread of this warp whose lane differs in the bits of `mask`.
float exchange_with_lane(float value, peersum_u32 mask);

peersum_u64 clock_ns();

void yield();

}  // namespace emulator

// One emulated thread from entry to exit.
extern "C" void peersum_emulator_run(void (*entry)(PeersumParams), const PeersumParams* params,
                                     const emulator::Thread* thread);
