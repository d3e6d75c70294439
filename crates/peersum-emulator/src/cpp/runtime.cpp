#include "runtime.hpp"

#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "conversions.hpp"

namespace emulator {

__thread Thread* current;

// Turns before a waiting host thread sleeps: most barriers are met within a few, and a sleep costs
// two system calls.
constexpr int YIELDS_BEFORE_SLEEP = 4;

// Suspends a fiber. Others of the same host thread run meanwhile.
static void suspend(const peersum_u32* word, peersum_u32 last) {
    Thread* const self = current;
    self->suspend(self->fiber, word, last);
    current = self;
}

// Lets all go on that wait for the generation. Fibers see it by themselves.
static void begin_next(peersum_u32& arrived, peersum_u32& generation, peersum_u32 next) {
    __atomic_store_n(&arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&generation, next, __ATOMIC_RELEASE);
    if (current->suspend == nullptr)
        syscall(SYS_futex, &generation, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

// Waits until the generation is another than `last`.
static void await_next(peersum_u32& generation, peersum_u32 last) {
    for (int turn = 0; __atomic_load_n(&generation, __ATOMIC_ACQUIRE) == last; ++turn) {
        if (current->suspend != nullptr) {
            suspend(&generation, last);
        } else if (turn < YIELDS_BEFORE_SLEEP) {
            yield();
        } else {
            syscall(SYS_futex, &generation, FUTEX_WAIT_PRIVATE, last, nullptr, nullptr, 0);
        }
    }
}

bool block_barrier(bool value) {
    BlockBarriers& barrier = *current->barriers;
    const peersum_u32 generation = __atomic_load_n(&barrier.generation, __ATOMIC_ACQUIRE);
    peersum_u32& any = barrier.any[generation & 1];
    if (value) __atomic_store_n(&any, 1, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&barrier.arrived, 1, __ATOMIC_ACQ_REL) == current->ntid) {
        // All have arrived, so all have read the other word: it is free for the next use.
        __atomic_store_n(&barrier.any[(generation + 1) & 1], 0, __ATOMIC_RELAXED);
        begin_next(barrier.arrived, barrier.generation, generation + 1);
    } else {
        await_next(barrier.generation, generation);
    }
    return __atomic_load_n(&any, __ATOMIC_RELAXED) != 0;
}

// Whether this thread was the last.
static bool arrives_last(BlockBarriers& barriers, peersum_u32 generation, peersum_u32 threads) {
    if (__atomic_add_fetch(&barriers.split_arrived, 1, __ATOMIC_ACQ_REL) != threads) return false;
    begin_next(barriers.split_arrived, barriers.split_generation, generation + 1);
    return true;
}

void split_barrier_arrive(peersum_u32 threads) {
    BlockBarriers& barriers = *current->barriers;
    arrives_last(barriers, __atomic_load_n(&barriers.split_generation, __ATOMIC_ACQUIRE), threads);
}

void split_barrier_sync(peersum_u32 threads) {
    BlockBarriers& barriers = *current->barriers;
    const peersum_u32 generation = __atomic_load_n(&barriers.split_generation, __ATOMIC_ACQUIRE);
    if (!arrives_last(barriers, generation, threads))
        await_next(barriers.split_generation, generation);
}

static void meet(peersum_u32& arrived, peersum_u32& generation, peersum_u32 threads) {
    const peersum_u32 last = __atomic_load_n(&generation, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL) == threads) {
        begin_next(arrived, generation, last + 1);
    } else {
        await_next(generation, last);
    }
}

void data_barrier(peersum_u32 threads) {
    meet(current->memory->data_arrived, current->memory->data_generation, threads);
}

void cluster_barrier_arrive() {
    BlockMemory& memory = *memory_in_cluster(0);
    if (__atomic_add_fetch(&memory.cluster_arrived, 1, __ATOMIC_ACQ_REL) ==
        current->cluster_nctarank * current->ntid)
        begin_next(memory.cluster_arrived, memory.cluster_generation, 1);
}

void cluster_barrier_wait() { await_next(memory_in_cluster(0)->cluster_generation, 0); }

// A phase has ended at this state: the arrival adds it, less the bytes that it expects, and each
// byte adds 1.
constexpr peersum_u32 COMPLETE = 1u << 31;

static void add_to_phase(BlockMemory::Mbarrier& barrier, peersum_u32 value) {
    if (__atomic_add_fetch(&barrier.state, value, __ATOMIC_ACQ_REL) == COMPLETE)
        begin_next(barrier.state, barrier.generation, 1);
}

void mbarrier_arrive(BlockMemory::Mbarrier& barrier, peersum_u32 expected_bytes) {
    add_to_phase(barrier, COMPLETE - expected_bytes);
}

void mbarrier_complete(BlockMemory::Mbarrier& barrier, peersum_u32 bytes) {
    add_to_phase(barrier, bytes);
}

void mbarrier_wait(BlockMemory::Mbarrier& barrier) { await_next(barrier.generation, 0); }

float exchange_with_lane(float value, peersum_u32 mask) {
    BlockMemory::Warp& warp = current->memory->warps[current->tid / WARP];
    const peersum_u32 lane = current->tid % WARP;
    // A thread that still reads these values has not arrived at the next exchange, which uses the
    // other half.
    float* values = warp.values[__atomic_load_n(&warp.generation, __ATOMIC_ACQUIRE) & 1];
    values[lane] = value;
    meet(warp.arrived, warp.generation, WARP);
    return values[lane ^ mask];
}

peersum_u64 clock_ns() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<peersum_u64>(now.tv_sec) * 1000000000u +
           static_cast<peersum_u64>(now.tv_nsec);
}

void yield() {
    if (current->suspend != nullptr) {
        suspend(nullptr, 0);
    } else {
        sched_yield();
    }
}

}  // namespace emulator

extern "C" void peersum_emulator_run(void (*entry)(PeersumParams), const PeersumParams* params,
                                     const emulator::Thread* thread) {
    emulator::Thread self = *thread;
    emulator::current = &self;
    entry(*params);
}

// For the tests of the conversions.
extern "C" peersum_u32 peersum_emulator_f32_from_f16(peersum_u32 half) {
    return emulator::to_bits(emulator::f32_from_f16(half));
}

extern "C" peersum_u32 peersum_emulator_f16_from_f32(peersum_u32 bits) {
    return emulator::f16_from_f32(emulator::from_bits(bits));
}

extern "C" peersum_u32 peersum_emulator_bf16_from_f32(peersum_u32 bits) {
    return emulator::bf16_from_f32(emulator::from_bits(bits));
}

extern "C" peersum_u32 peersum_emulator_add_f32(peersum_u32 a, peersum_u32 b) {
    return emulator::to_bits(emulator::add(emulator::from_bits(a), emulator::from_bits(b)));
}
