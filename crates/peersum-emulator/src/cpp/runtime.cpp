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

// Lets all go on that wait at the barrier. Fibers see it by themselves.
static void begin_next(Barrier& barrier, peersum_u32 next) {
    __atomic_store_n(&barrier.arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&barrier.generation, next, __ATOMIC_RELEASE);
    if (current->suspend == nullptr)
        syscall(SYS_futex, &barrier.generation, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

static peersum_u32 generation_of(const Barrier& barrier) {
    return __atomic_load_n(&barrier.generation, __ATOMIC_ACQUIRE);
}

void await_next(Barrier& barrier, peersum_u32 last) {
    for (int turn = 0; generation_of(barrier) == last; ++turn) {
        if (current->suspend != nullptr) {
            suspend(&barrier.generation, last);
        } else if (turn < YIELDS_BEFORE_SLEEP) {
            yield();
        } else {
            syscall(SYS_futex, &barrier.generation, FUTEX_WAIT_PRIVATE, last, nullptr, nullptr, 0);
        }
    }
}

bool arrive(Barrier& barrier, peersum_u32 threads) {
    const peersum_u32 last = generation_of(barrier);
    if (__atomic_add_fetch(&barrier.arrived, 1, __ATOMIC_ACQ_REL) != threads) return false;
    begin_next(barrier, last + 1);
    return true;
}

void meet(Barrier& barrier, peersum_u32 threads) {
    const peersum_u32 last = generation_of(barrier);
    if (!arrive(barrier, threads)) await_next(barrier, last);
}

bool block_barrier(bool value) {
    BlockMemory& memory = *current->memory;
    const peersum_u32 generation = generation_of(memory.whole);
    peersum_u32& any = memory.any[generation & 1];
    if (value) __atomic_store_n(&any, 1, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&memory.whole.arrived, 1, __ATOMIC_ACQ_REL) == current->ntid) {
        // All have arrived, so all have read the other word: it is free for the next use.
        __atomic_store_n(&memory.any[(generation + 1) & 1], 0, __ATOMIC_RELAXED);
        begin_next(memory.whole, generation + 1);
    } else {
        await_next(memory.whole, generation);
    }
    return __atomic_load_n(&any, __ATOMIC_RELAXED) != 0;
}

void add_to_phase(Barrier& barrier, peersum_u32 value) {
    if (__atomic_add_fetch(&barrier.arrived, value, __ATOMIC_ACQ_REL) == COMPLETE)
        begin_next(barrier, 1);
}

float exchange_with_lane(float value, peersum_u32 mask) {
    BlockMemory::Warp& warp = current->memory->warps[current->tid / WARP];
    const peersum_u32 lane = current->tid % WARP;
    // A thread that still reads these values has not arrived at the next exchange, which uses the
    // other half.
    float* values = warp.values[generation_of(warp.barrier) & 1];
    values[lane] = value;
    meet(warp.barrier, WARP);
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
