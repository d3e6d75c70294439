// runtime.hpp - what runs below the emulated instructions: a thread's identity, the block barrier,
// the clock.
#pragma once

#include "abi.h"

namespace emulator {

// The barriers of one block; zeroed at first. One cache line, so that blocks do not slow each other
// down.
struct alignas(64) BlockBarriers {
    peersum_u32 arrived;
    // Counts the barrier's uses; waiting threads look at it.
    peersum_u32 generation;
    // The disjunction of the values given, by the lowest bit of the generation.
    peersum_u32 any[2];
    // The same two of the barrier whose arrivals do not wait.
    peersum_u32 split_arrived;
    peersum_u32 split_generation;
};

// Threads of a warp. More than one, so that every level of a sum over a block is there; fewer than
// a GPU's, so that small blocks have several warps.
constexpr peersum_u32 WARP = 4;

// As in platform.cuh.
constexpr peersum_u32 BLOCK_FLOATS = 3 * PEERSUM_MAX_CLUSTER_THREADS / WARP;
constexpr peersum_u32 CLUSTER_BARRIERS = 2;

// What the threads of one block exchange outside the ranks' memory; zeroed at first. Only kernels
// that use it touch its pages.
struct BlockMemory {
    // The barrier of the threads that handle units.
    peersum_u32 data_arrived;
    peersum_u32 data_generation;
    // Threads of the cluster that have arrived; counted in the memory of its first block.
    peersum_u32 cluster_arrived;
    peersum_u32 cluster_generation;
    // What a barrier has of its arrival and its bytes, and whether all are there.
    struct Mbarrier {
        peersum_u32 state;
        peersum_u32 generation;
    } mbarriers[CLUSTER_BARRIERS];
    peersum_u32 padding[8];
    // The kernel's own memory: platform_emulator.hpp.
    float floats[BLOCK_FLOATS];
    struct Warp {
        peersum_u32 arrived;
        peersum_u32 generation;
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
    BlockBarriers* barriers;
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

// The other barrier, which `threads` threads meet: arriving does not wait for the others.
void split_barrier_arrive(peersum_u32 threads);
void split_barrier_sync(peersum_u32 threads);

// The barrier of the first `threads` threads of the block.
void data_barrier(peersum_u32 threads);

// The memory of the `block`-th block of this block's cluster.
static inline BlockMemory* memory_in_cluster(peersum_u32 block) {
    return current->memory - current->ctaid % current->cluster_nctarank + block;
}

// The barrier of the cluster, which is met once.
void cluster_barrier_arrive();
void cluster_barrier_wait();

// One arrival at a barrier that waits for bytes too, and some of the bytes.
void mbarrier_arrive(BlockMemory::Mbarrier& barrier, peersum_u32 expected_bytes);
void mbarrier_complete(BlockMemory::Mbarrier& barrier, peersum_u32 bytes);
void mbarrier_wait(BlockMemory::Mbarrier& barrier);

// The value of the thread of this warp whose lane differs in the bits of `mask`.
float exchange_with_lane(float value, peersum_u32 mask);

peersum_u64 clock_ns();

void yield();

}  // namespace emulator

// One emulated thread from entry to exit.
extern "C" void peersum_emulator_run(void (*entry)(PeersumParams), const PeersumParams* params,
                                     const emulator::Thread* thread);
