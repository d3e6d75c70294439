// platform_emulator.hpp - the functions of platform.cuh on the CPU, under the same names. Included
// ahead of a kernel file.
//
// Each rank is a host thread, and so can be each emulated thread: the memory model is C++'s. An
// access that PTX calls relaxed is a relaxed atomic, a plain one is an ordinary access, which
// ThreadSanitizer can see race.
#pragma once

#define PEERSUM_PLATFORM_PROVIDED
// abi.h and Unit; its functions are those below.
#include "platform.cuh"

#include "conversions.hpp"
#include "runtime.hpp"

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__

#define PEERSUM_DEVICE static __forceinline__

// A poll ends in a yield. A round of a thousand threads and a nap behind it (fibers.rs) take a few
// tenths of a millisecond, and a deadline or an abort must be seen within about ten.
constexpr peersum_u32 POLLS_BETWEEN_LOOKS = 16;

PEERSUM_DEVICE peersum_u32 tid_x() { return emulator::current->tid; }
PEERSUM_DEVICE peersum_u32 ntid_x() { return emulator::current->ntid; }
PEERSUM_DEVICE peersum_u32 ctaid_x() { return emulator::current->ctaid; }
PEERSUM_DEVICE peersum_u32 nctaid_x() { return emulator::current->nctaid; }
PEERSUM_DEVICE peersum_u64 globaltimer() { return emulator::clock_ns(); }
PEERSUM_DEVICE void bar_sync() { emulator::block_barrier(false); }
// Every thread arrives by itself, so that a grid may have fewer of them.
constexpr peersum_u32 WARP_THREADS = 1;
PEERSUM_DEVICE void barrier_cta_arrive(peersum_u32 threads) {
    emulator::arrive(emulator::current->memory->split, threads);
}
PEERSUM_DEVICE void barrier_cta_sync(peersum_u32 threads) {
    emulator::meet(emulator::current->memory->split, threads);
}
PEERSUM_DEVICE void barrier_cta_sync_data(peersum_u32 threads) {
    emulator::meet(emulator::current->memory->data, threads);
}
constexpr peersum_u32 LANES = emulator::WARP;
PEERSUM_DEVICE float shfl_bfly_f32(float value, peersum_u32 mask) {
    return emulator::exchange_with_lane(value, mask);
}
PEERSUM_DEVICE bool vote_any(bool value) {
    float votes = value ? 1.0f : 0.0f;
    for (peersum_u32 mask = 1; mask < LANES; mask *= 2) votes += shfl_bfly_f32(votes, mask);
    return votes != 0.0f;
}
struct BlockMemory {
    float* floats;
};
constexpr peersum_u32 MOST_ROW_WARPS = PEERSUM_MAX_CLUSTER_THREADS / LANES;
constexpr peersum_u32 CLUSTER_BARRIERS = emulator::CLUSTER_BARRIERS;
PEERSUM_DEVICE BlockMemory block_memory() { return BlockMemory{emulator::current->memory->floats}; }
PEERSUM_DEVICE void st_shared_f32(BlockMemory memory, peersum_u32 index, float value) {
    memory.floats[index] = value;
}
PEERSUM_DEVICE void ld_shared_v4_f32(BlockMemory memory, peersum_u32 index, float (&value)[4]) {
    for (int k = 0; k < 4; ++k) value[k] = memory.floats[index + k];
}
PEERSUM_DEVICE peersum_u32 cluster_nctarank() { return emulator::current->cluster_nctarank; }
PEERSUM_DEVICE peersum_u32 cluster_ctarank() { return ctaid_x() % cluster_nctarank(); }
PEERSUM_DEVICE peersum_u32 clusterid_x() { return ctaid_x() / cluster_nctarank(); }
PEERSUM_DEVICE peersum_u32 nclusterid_x() { return nctaid_x() / cluster_nctarank(); }
PEERSUM_DEVICE void barrier_cluster_arrive() {
    emulator::arrive(emulator::memory_in_cluster(0)->cluster, cluster_nctarank() * ntid_x());
}
PEERSUM_DEVICE void barrier_cluster_wait() {
    emulator::await_next(emulator::memory_in_cluster(0)->cluster, 0);
}
// A barrier's memory is zeroed at first, as it should be.
PEERSUM_DEVICE void mbarrier_init(BlockMemory, peersum_u32) {}
PEERSUM_DEVICE void mbarrier_arrive_expect_tx(BlockMemory, peersum_u32 barrier, peersum_u32 bytes) {
    emulator::add_to_phase(emulator::current->memory->mbarriers[barrier],
                           emulator::COMPLETE - bytes);
}
PEERSUM_DEVICE void mbarrier_wait(BlockMemory, peersum_u32 barrier) {
    emulator::await_next(emulator::current->memory->mbarriers[barrier], 0);
}
PEERSUM_DEVICE void st_async_f32(BlockMemory, peersum_u32 block, peersum_u32 index, float value,
                                 peersum_u32 barrier) {
    emulator::BlockMemory& memory = *emulator::memory_in_cluster(block);
    memory.floats[index] = value;
    emulator::add_to_phase(memory.mbarriers[barrier], sizeof value);
}
PEERSUM_DEVICE bool bar_red_or(bool value) { return emulator::block_barrier(value); }
// Launches of a stream never overlap here. Before its wait a thread loads nothing of use, and what
// it stores is lost (emulator::Thread::has_waited).
PEERSUM_DEVICE void griddepcontrol_wait() { emulator::current->has_waited = true; }
PEERSUM_DEVICE void griddepcontrol_launch_dependents() {}
PEERSUM_DEVICE void computed_here(peersum_u64&) {}
PEERSUM_DEVICE void compute_before_wait(peersum_u64) {}
PEERSUM_DEVICE void spin_pause() { emulator::yield(); }

namespace emulator {

// What a load finds before the wait: not what the kernel before has stored.
template <typename Word>
static inline Word too_early() {
    Word word;
    __builtin_memset(&word, 0xA5, sizeof word);
    return word;
}

template <typename Word>
static inline Word load(const void* address, int order) {
    if (!current->has_waited) return too_early<Word>();
    return __atomic_load_n(static_cast<const Word*>(address), order);
}

template <typename Word>
static inline void store(void* address, Word value, int order) {
    if (current->has_waited) __atomic_store_n(static_cast<Word*>(address), value, order);
}

template <typename Word>
static inline Word load_plain(const void* address) {
    if (!current->has_waited) return too_early<Word>();
    return *static_cast<const Word*>(address);
}

template <typename Word>
static inline void store_plain(void* address, Word value) {
    if (current->has_waited) *static_cast<Word*>(address) = value;
}

// One access of a unit to memory that a peer uses too, in four parts of pseudo-random order.
class Shuffle {
public:
    Shuffle() : random(next_random()) {}

    // The word that is accessed as the `turn`-th of four: a rotation, forwards or backwards, of
    // which two neighbours may be exchanged.
    peersum_u32 word(peersum_u32 turn) const {
        const peersum_u32 exchanged = turn < 2 ? turn ^ (random >> 3 & 1) : turn;
        const peersum_u32 directed = random & 4 ? 3 - exchanged : exchanged;
        return (directed + random) & 3;
    }

    // Between two words of a store: now and then another thread gets a turn, so that torn units are
    // seen and not only possible.
    void interrupt() const {
        if ((random >> 8 & 0xFF) == 0) yield();
    }

private:
    peersum_u32 random;
};

}  // namespace emulator

// --- Plain accesses.

PEERSUM_DEVICE Unit ld_global_v4(const void* address) {
    return emulator::load_plain<Unit>(address);
}
PEERSUM_DEVICE void st_global_v4(void* address, Unit v) { emulator::store_plain(address, v); }
PEERSUM_DEVICE peersum_u32 ld_global_u8(const void* address) {
    return emulator::load_plain<unsigned char>(address);
}
PEERSUM_DEVICE void st_global_u8(void* address, peersum_u32 value) {
    emulator::store_plain(address, static_cast<unsigned char>(value));
}
PEERSUM_DEVICE peersum_u32 ld_global_u16(const void* address) {
    return emulator::load_plain<unsigned short>(address);
}
PEERSUM_DEVICE void st_global_u16(void* address, peersum_u32 value) {
    emulator::store_plain(address, static_cast<unsigned short>(value));
}
PEERSUM_DEVICE peersum_u32 ld_global_u32(const void* address) {
    return emulator::load_plain<peersum_u32>(address);
}
PEERSUM_DEVICE void st_global_u32(void* address, peersum_u32 value) {
    emulator::store_plain(address, value);
}
PEERSUM_DEVICE peersum_u64 ld_global_u64(const void* address) {
    return emulator::load_plain<peersum_u64>(address);
}
PEERSUM_DEVICE void st_global_u64(void* address, peersum_u64 value) {
    emulator::store_plain(address, value);
}

// --- Relaxed accesses. With PEERSUM_EMULATOR_PLAIN_DATA those that carry elements are ordinary
// ones: relaxed atomics never race for ThreadSanitizer, and in the pull family it is the barriers
// alone that keep these apart.

#ifdef PEERSUM_EMULATOR_PLAIN_DATA

PEERSUM_DEVICE Unit ld_relaxed_sys_v4(const void* address) {
    return emulator::load_plain<Unit>(address);
}
PEERSUM_DEVICE void st_relaxed_sys_v4(void* address, Unit v) { emulator::store_plain(address, v); }
PEERSUM_DEVICE peersum_u32 ld_relaxed_sys_u16(const void* address) {
    return emulator::load_plain<unsigned short>(address);
}
PEERSUM_DEVICE void st_relaxed_sys_u16(void* address, peersum_u32 value) {
    emulator::store_plain(address, static_cast<unsigned short>(value));
}
PEERSUM_DEVICE peersum_u32 ld_relaxed_sys_u32(const void* address) {
    return emulator::load_plain<peersum_u32>(address);
}
PEERSUM_DEVICE void st_relaxed_sys_u32(void* address, peersum_u32 value) {
    emulator::store_plain(address, value);
}

#else

PEERSUM_DEVICE Unit ld_relaxed_sys_v4(const void* address) {
    const peersum_u32* words = static_cast<const peersum_u32*>(address);
    const emulator::Shuffle shuffle;
    peersum_u32 value[4];
    for (peersum_u32 turn = 0; turn < 4; ++turn) {
        const peersum_u32 word = shuffle.word(turn);
        value[word] = emulator::load<peersum_u32>(words + word, __ATOMIC_RELAXED);
    }
    return Unit{value[0], value[1], value[2], value[3]};
}

PEERSUM_DEVICE void st_relaxed_sys_v4(void* address, Unit v) {
    peersum_u32* words = static_cast<peersum_u32*>(address);
    const emulator::Shuffle shuffle;
    const peersum_u32 value[4] = {v.x, v.y, v.z, v.w};
    for (peersum_u32 turn = 0; turn < 4; ++turn) {
        const peersum_u32 word = shuffle.word(turn);
        emulator::store(words + word, value[word], __ATOMIC_RELAXED);
        shuffle.interrupt();
    }
}

PEERSUM_DEVICE peersum_u32 ld_relaxed_sys_u16(const void* address) {
    return emulator::load<unsigned short>(address, __ATOMIC_RELAXED);
}
PEERSUM_DEVICE void st_relaxed_sys_u16(void* address, peersum_u32 value) {
    emulator::store(address, static_cast<unsigned short>(value), __ATOMIC_RELAXED);
}
PEERSUM_DEVICE peersum_u32 ld_relaxed_sys_u32(const void* address) {
    return emulator::load<peersum_u32>(address, __ATOMIC_RELAXED);
}
PEERSUM_DEVICE void st_relaxed_sys_u32(void* address, peersum_u32 value) {
    emulator::store(address, value, __ATOMIC_RELAXED);
}

#endif

PEERSUM_DEVICE void ld_relaxed_sys_v4_if(bool condition, const void* address, Unit& v) {
    if (condition) v = ld_relaxed_sys_v4(address);
}

PEERSUM_DEVICE peersum_u64 ld_relaxed_sys_u64(const void* address) {
    return emulator::load<peersum_u64>(address, __ATOMIC_RELAXED);
}
PEERSUM_DEVICE void st_relaxed_sys_u64(void* address, peersum_u64 value) {
#ifdef PEERSUM_EMULATOR_RELEASED_FLAGS
    // A relaxed flag announces what an earlier kernel stored, or loads that have returned. That
    // both are performed by then is a fact of the GPU (kernels/README.md, "Pull") that C++ cannot
    // express, so ThreadSanitizer is told of a release. It does not see, therefore, a relaxed flag
    // that should have been a release.
    emulator::store(address, value, __ATOMIC_RELEASE);
#else
    emulator::store(address, value, __ATOMIC_RELAXED);
#endif
}

// --- Ordering accesses.

PEERSUM_DEVICE peersum_u32 ld_acquire_sys_u32(const void* address) {
    return emulator::load<peersum_u32>(address, __ATOMIC_ACQUIRE);
}
PEERSUM_DEVICE peersum_u64 ld_acquire_sys_u64(const void* address) {
    return emulator::load<peersum_u64>(address, __ATOMIC_ACQUIRE);
}
PEERSUM_DEVICE void st_release_sys_u64(void* address, peersum_u64 value) {
    emulator::store(address, value, __ATOMIC_RELEASE);
}
PEERSUM_DEVICE void st_release_sys_u32(void* address, peersum_u32 value) {
    emulator::store(address, value, __ATOMIC_RELEASE);
}
PEERSUM_DEVICE void st_relaxed_sys_u64_behind_fence(void* address, peersum_u64 value) {
    st_release_sys_u64(address, value);
}
PEERSUM_DEVICE void fence_acq_rel_gpu() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
PEERSUM_DEVICE void fence_acq_rel_sys() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

PEERSUM_DEVICE peersum_u32 atom_cas_relaxed_gpu_u32(void* address, peersum_u32 expected,
                                                    peersum_u32 desired) {
    __atomic_compare_exchange_n(static_cast<peersum_u32*>(address), &expected, desired, false,
                                __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}

// --- Arithmetic.

PEERSUM_DEVICE float add_rn_f32(float a, float b) { return emulator::add(a, b); }
PEERSUM_DEVICE float mul_rn_f32(float a, float b) { return emulator::mul(a, b); }
PEERSUM_DEVICE float fma_rn_f32(float a, float b, float c) { return emulator::fma(a, b, c); }
PEERSUM_DEVICE float div_rn_f32(float a, float b) { return emulator::div(a, b); }
PEERSUM_DEVICE float sqrt_rn_f32(float value) { return emulator::sqrt(value); }
PEERSUM_DEVICE float rcp_rn_f32(float value) { return emulator::div(1.0f, value); }
PEERSUM_DEVICE float cvt_rn_f32_u32(peersum_u32 value) { return static_cast<float>(value); }
PEERSUM_DEVICE float mov_b32_f32(peersum_u32 bits) { return emulator::from_bits(bits); }
PEERSUM_DEVICE peersum_u32 mov_b32_u32(float value) { return emulator::to_bits(value); }
PEERSUM_DEVICE float cvt_f32_f16_low(peersum_u32 pair) {
    return emulator::f32_from_f16(pair & 0xFFFFu);
}
PEERSUM_DEVICE float cvt_f32_f16_high(peersum_u32 pair) {
    return emulator::f32_from_f16(pair >> 16);
}
PEERSUM_DEVICE peersum_u32 cvt_rn_f16x2_f32(float high, float low) {
    return emulator::f16_from_f32(high) << 16 | emulator::f16_from_f32(low);
}
PEERSUM_DEVICE peersum_u32 cvt_rn_bf16x2_f32(float high, float low) {
    return emulator::bf16_from_f32(high) << 16 | emulator::bf16_from_f32(low);
}
