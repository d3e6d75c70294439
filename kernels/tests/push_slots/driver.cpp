// driver.cpp - runs the kernels of push.cu, or with RECORD_NORM the fused one of norm.cu, without
// memory: it records each access to a slot, and each poll finds data.
//
// Each line of standard input is one call: "one_shot|two_shot push_half_bytes elements parity
// blocks threads hidden". Each line of output is its answer: the slots that the call uses at every
// rank, as ranges of unit indices counted from the first slot, or an error.
#define PEERSUM_PLATFORM_PROVIDED
#include "platform.cuh"

#include <stdio.h>
#include <string.h>

#include <map>

#define __global__
#define __device__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __grid_constant__
#define PEERSUM_DEVICE static inline

namespace recorder {

constexpr peersum_u64 PUSH_OFFSET = (sizeof(PeersumControl) + 127) / 128 * 128;

struct Uses {
    int sent, polled, rearmed;
};

peersum_u32 tid, ntid, ctaid, nctaid, cluster, parity;
// Indexed by rank, then by slot.
std::map<peersum_u64, Uses> slots[PEERSUM_MAX_WORLD_SIZE];

// The arena of a rank begins at (1 + rank) << 40. Nothing is stored there.
peersum_u64 arena_of(peersum_u32 rank) { return static_cast<peersum_u64>(rank + 1) << 40; }

bool is_slot(const void* address, peersum_u32* rank, peersum_u64* slot) {
    const peersum_u64 value = reinterpret_cast<peersum_u64>(address);
    *rank = static_cast<peersum_u32>(value >> 40) - 1;
    const peersum_u64 offset = value & ((1ull << 40) - 1);
    if (value >> 40 == 0 || *rank >= PEERSUM_WORLD_SIZE || offset < PUSH_OFFSET) return false;
    *slot = (offset - PUSH_OFFSET) / PEERSUM_UNIT_BYTES;
    return true;
}

Unit load(const void* address) {
    peersum_u32 rank;
    peersum_u64 slot;
    // Either a block's state, or a slot that holds zeros.
    if (!is_slot(address, &rank, &slot)) return Unit{2, 0, parity, 0};
    ++slots[rank][slot].polled;
    return Unit{0, 0, 0, 0};
}

void store(void* address, Unit v) {
    peersum_u32 rank;
    peersum_u64 slot;
    if (!is_slot(address, &rank, &slot)) return;
    Uses& uses = slots[rank][slot];
    ++(v.x == PEERSUM_SLOT_EMPTY ? uses.rearmed : uses.sent);
}

}  // namespace recorder

constexpr peersum_u32 POLLS_BETWEEN_LOOKS = 1024;
constexpr peersum_u32 WARP_THREADS = 1;

PEERSUM_DEVICE peersum_u32 tid_x() { return recorder::tid; }
PEERSUM_DEVICE peersum_u32 ntid_x() { return recorder::ntid; }
PEERSUM_DEVICE peersum_u32 ctaid_x() { return recorder::ctaid; }
PEERSUM_DEVICE peersum_u32 nctaid_x() { return recorder::nctaid; }
PEERSUM_DEVICE peersum_u64 globaltimer() { return 0; }
PEERSUM_DEVICE void bar_sync() {}
PEERSUM_DEVICE void barrier_cta_arrive(peersum_u32) {}
PEERSUM_DEVICE void barrier_cta_sync(peersum_u32) {}
PEERSUM_DEVICE bool bar_red_or(bool value) { return value; }
PEERSUM_DEVICE void griddepcontrol_wait() {}
PEERSUM_DEVICE void griddepcontrol_launch_dependents() {}
PEERSUM_DEVICE void computed_here(peersum_u64&) {}
PEERSUM_DEVICE void spin_pause() {}

PEERSUM_DEVICE Unit ld_global_v4(const void*) { return Unit{0, 0, 0, 0}; }
PEERSUM_DEVICE void st_global_v4(void*, Unit) {}
PEERSUM_DEVICE peersum_u32 ld_global_u16(const void*) { return 0; }
PEERSUM_DEVICE void st_global_u16(void*, peersum_u32) {}
PEERSUM_DEVICE peersum_u32 ld_global_u32(const void*) { return 0; }
PEERSUM_DEVICE void st_global_u32(void*, peersum_u32) {}
PEERSUM_DEVICE peersum_u64 ld_global_u64(const void*) { return 0; }
PEERSUM_DEVICE void st_global_u64(void*, peersum_u64) {}
PEERSUM_DEVICE Unit ld_relaxed_sys_v4(const void* address) { return recorder::load(address); }
PEERSUM_DEVICE void st_relaxed_sys_v4(void* address, Unit v) { recorder::store(address, v); }
PEERSUM_DEVICE peersum_u32 ld_relaxed_sys_u16(const void*) { return 0; }
PEERSUM_DEVICE void st_relaxed_sys_u16(void*, peersum_u32) {}
PEERSUM_DEVICE peersum_u32 ld_relaxed_sys_u32(const void*) { return 0; }
PEERSUM_DEVICE void st_relaxed_sys_u32(void*, peersum_u32) {}
PEERSUM_DEVICE peersum_u64 ld_relaxed_sys_u64(const void*) { return 0; }
PEERSUM_DEVICE void st_relaxed_sys_u64(void*, peersum_u64) {}
PEERSUM_DEVICE peersum_u32 ld_acquire_sys_u32(const void*) { return 0; }
PEERSUM_DEVICE peersum_u64 ld_acquire_sys_u64(const void*) { return 0; }
PEERSUM_DEVICE void st_release_sys_u32(void*, peersum_u32) {}
PEERSUM_DEVICE void st_release_sys_u64(void*, peersum_u64) {}
PEERSUM_DEVICE void fence_acq_rel_sys() {}
PEERSUM_DEVICE peersum_u32 atom_cas_relaxed_gpu_u32(void*, peersum_u32, peersum_u32) { return 0; }
PEERSUM_DEVICE float add_rn_f32(float a, float) { return a; }
PEERSUM_DEVICE float mov_b32_f32(peersum_u32) { return 0; }
PEERSUM_DEVICE peersum_u32 mov_b32_u32(float) { return 0; }
PEERSUM_DEVICE float cvt_f32_f16_low(peersum_u32) { return 0; }
PEERSUM_DEVICE float cvt_f32_f16_high(peersum_u32) { return 0; }
PEERSUM_DEVICE peersum_u32 cvt_rn_f16x2_f32(float, float) { return 0; }
PEERSUM_DEVICE peersum_u32 cvt_rn_bf16x2_f32(float, float) { return 0; }

#ifdef RECORD_NORM

constexpr peersum_u32 LANES = 32;
struct BlockMemory {};
PEERSUM_DEVICE BlockMemory block_memory() { return BlockMemory{}; }
PEERSUM_DEVICE void st_shared_f32(BlockMemory, peersum_u32, float) {}
PEERSUM_DEVICE void ld_shared_v4_f32(BlockMemory, peersum_u32, float (&)[4]) {}
PEERSUM_DEVICE void barrier_cta_sync_data(peersum_u32) {}
constexpr peersum_u32 MOST_ROW_WARPS = PEERSUM_MAX_CLUSTER_THREADS / LANES, CLUSTER_BARRIERS = 2;
PEERSUM_DEVICE peersum_u32 cluster_nctarank() { return recorder::cluster; }
PEERSUM_DEVICE peersum_u32 cluster_ctarank() { return recorder::ctaid % recorder::cluster; }
PEERSUM_DEVICE peersum_u32 clusterid_x() { return recorder::ctaid / recorder::cluster; }
PEERSUM_DEVICE peersum_u32 nclusterid_x() { return recorder::nctaid / recorder::cluster; }
PEERSUM_DEVICE void barrier_cluster_arrive() {}
PEERSUM_DEVICE void barrier_cluster_wait() {}
PEERSUM_DEVICE void mbarrier_init(BlockMemory, peersum_u32) {}
PEERSUM_DEVICE void mbarrier_arrive_expect_tx(BlockMemory, peersum_u32, peersum_u32) {}
PEERSUM_DEVICE void mbarrier_wait(BlockMemory, peersum_u32) {}
PEERSUM_DEVICE void st_async_f32(BlockMemory, peersum_u32, peersum_u32, float, peersum_u32) {}
PEERSUM_DEVICE float shfl_bfly_f32(float value, peersum_u32) { return value; }
PEERSUM_DEVICE bool vote_any(bool value) { return value; }
PEERSUM_DEVICE float mul_rn_f32(float a, float) { return a; }
PEERSUM_DEVICE float div_rn_f32(float a, float) { return a; }
PEERSUM_DEVICE float sqrt_rn_f32(float a) { return a; }
PEERSUM_DEVICE float rcp_rn_f32(float a) { return a; }
PEERSUM_DEVICE float cvt_rn_f32_u32(peersum_u32) { return 0; }

#include "norm.cu"
#else
#include "push.cu"
#endif

namespace {

#define ENTRY(family_algorithm) \
    PEERSUM_ENTRY_NAME(family_algorithm, PEERSUM_DTYPE, PEERSUM_WORLD_SIZE)

void enter_kernel([[maybe_unused]] bool is_two_shot, const PeersumParams& params) {
#ifdef RECORD_NORM
    recorder::cluster > 1 ? ENTRY(norm_clustered)(params) : ENTRY(norm_one_shot)(params);
#else
    is_two_shot ? ENTRY(push_two_shot)(params) : ENTRY(push_one_shot)(params);
#endif
}

// Makes the call on every rank. Runs the threads one after another.
void run(bool is_two_shot, peersum_u64 push_half_bytes, peersum_u64 elements, peersum_u32 threads,
         peersum_u32 hidden) {
    for (peersum_u32 rank = 0; rank < PEERSUM_WORLD_SIZE; ++rank) {
        PeersumParams params = {};
        for (peersum_u32 step = 0; step < PEERSUM_WORLD_SIZE; ++step) {
            params.arena[step] = recorder::arena_of((rank + step) % PEERSUM_WORLD_SIZE);
        }
        params.elements = elements;
        params.push_offset = recorder::PUSH_OFFSET;
        params.push_half_bytes = push_half_bytes;
        params.hidden = hidden;
        if (hidden != 0) params.rows = static_cast<peersum_u32>(elements / hidden);
        params.rank = rank;
        for (recorder::ctaid = 0; recorder::ctaid < recorder::nctaid; ++recorder::ctaid) {
            for (recorder::tid = 0; recorder::tid < threads; ++recorder::tid) {
                enter_kernel(is_two_shot, params);
            }
        }
    }
}

// Whether each slot was sent to, polled and emptied exactly once, and every rank uses the same
// slots.
bool is_sound() {
    for (peersum_u32 rank = 0; rank < PEERSUM_WORLD_SIZE; ++rank) {
        if (recorder::slots[rank].size() != recorder::slots[0].size()) return false;
        for (const auto& [slot, uses] : recorder::slots[rank]) {
            if (uses.sent != 1 || uses.polled != 1 || uses.rearmed != 1) return false;
            if (recorder::slots[0].count(slot) == 0) return false;
        }
    }
    return true;
}

void print_ranges() {
    peersum_u64 begin = 0, end = 0;
    for (const auto& [slot, uses] : recorder::slots[0]) {
        if (slot != end && end != begin) printf("%llu-%llu ", begin, end);
        if (slot != end) begin = slot;
        end = slot + 1;
    }
    printf("%llu-%llu\n", begin, end);
}

}  // namespace

int main() {
    char algorithm[16];
    unsigned long long push_half_bytes, elements;
    unsigned int threads, hidden;
    while (scanf("%15s %llu %llu %u %u %u %u %u", algorithm, &push_half_bytes, &elements,
                 &recorder::parity, &recorder::nctaid, &recorder::cluster, &threads,
                 &hidden) == 8) {
        for (auto& slots : recorder::slots) slots.clear();
        recorder::ntid = threads + PEERSUM_WORLD_SIZE;
        run(strcmp(algorithm, "two_shot") == 0, push_half_bytes, elements, threads, hidden);
        if (is_sound()) {
            print_ranges();
        } else {
            printf("a slot is not sent to, polled and emptied exactly once\n");
        }
    }
    return 0;
}
