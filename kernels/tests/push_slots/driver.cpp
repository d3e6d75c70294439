// driver.cpp - runs the kernels of push.cu, with RECORD_NORM the fused one of norm.cu, or with
// RECORD_MOVE those of move.cu, without memory: it records each access to a slot, and each poll
// finds data.
//
// Each line of standard input is one call: "algorithm push_half_bytes elements parity blocks
// cluster threads hidden root marked". Of the units of an input every `marked`-th holds empty
// marks, or none if it is 0. Each line of output is its answer: the slots that the call uses at any
// rank, as ranges of unit indices counted from the first slot, or an error.
#define PEERSUM_PLATFORM_PROVIDED
#include "platform.cuh"

#include <stdio.h>
#include <string.h>

#include <vector>

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

    bool is_any() const { return sent != 0 || polled != 0 || rearmed != 0; }
};

// A value for each slot that was asked for, and some more.
template <typename T> struct PerSlot {
    std::vector<T> values;

    T& operator[](peersum_u64 slot) {
        if (slot >= values.size()) values.resize(slot + slot / 2 + 1, T{});
        return values[slot];
    }
};

peersum_u32 tid, ntid, ctaid, nctaid, cluster, parity, marked;
// Indexed by rank, then by slot.
PerSlot<Uses> slots[PEERSUM_MAX_WORLD_SIZE];
// What was last sent to each slot; zeros if nothing was.
PerSlot<Unit> sent[PEERSUM_MAX_WORLD_SIZE];

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
    // Either a block's state or a slot.
    if (!is_slot(address, &rank, &slot)) return Unit{2, 0, parity, 0};
    ++slots[rank][slot].polled;
    return sent[rank][slot];
}

// A unit of the input, which begins at address 0.
Unit load_input(const void* address) {
    const peersum_u64 unit = reinterpret_cast<peersum_u64>(address) / PEERSUM_UNIT_BYTES;
    const bool is_marked = marked != 0 && unit % marked == 0;
    const peersum_u32 word = is_marked ? PEERSUM_SLOT_EMPTY : 0;
    return Unit{word, word, word, word};
}

void store(void* address, Unit v) {
    peersum_u32 rank;
    peersum_u64 slot;
    if (!is_slot(address, &rank, &slot)) return;
    Uses& uses = slots[rank][slot];
    if (v.x == PEERSUM_SLOT_EMPTY) {
        ++uses.rearmed;
    } else {
        ++uses.sent;
        sent[rank][slot] = v;
    }
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
PEERSUM_DEVICE void compute_before_wait(peersum_u64) {}
PEERSUM_DEVICE void spin_pause() {}

PEERSUM_DEVICE Unit ld_global_v4(const void* address) { return recorder::load_input(address); }
PEERSUM_DEVICE void st_global_v4(void*, Unit) {}
PEERSUM_DEVICE peersum_u32 ld_global_u8(const void*) { return 0; }
PEERSUM_DEVICE void st_global_u8(void*, peersum_u32) {}
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
PEERSUM_DEVICE float fma_rn_f32(float a, float, float) { return a; }
PEERSUM_DEVICE float div_rn_f32(float a, float) { return a; }
PEERSUM_DEVICE float sqrt_rn_f32(float a) { return a; }
PEERSUM_DEVICE float rcp_rn_f32(float a) { return a; }
PEERSUM_DEVICE float cvt_rn_f32_u32(peersum_u32) { return 0; }

#include "norm.cu"
#elif defined(RECORD_MOVE)
#include "move.cu"
#else
#include "push.cu"
#endif

namespace {

#define ENTRY(family_algorithm) \
    PEERSUM_ENTRY_NAME(family_algorithm, PEERSUM_DTYPE, PEERSUM_WORLD_SIZE)

bool is(const char* algorithm, const char* name) { return strcmp(algorithm, name) == 0; }

void enter_kernel([[maybe_unused]] const char* algorithm, const PeersumParams& params) {
#ifdef RECORD_NORM
    recorder::cluster > 1 ? ENTRY(norm_clustered)(params) : ENTRY(norm_one_shot)(params);
#elif defined(RECORD_MOVE)
    is(algorithm, "broadcast") ? ENTRY(move_broadcast)(params) : ENTRY(move_all_gather)(params);
#else
    if (is(algorithm, "reduce_scatter")) return ENTRY(push_reduce_scatter)(params);
    is(algorithm, "two_shot") ? ENTRY(push_two_shot)(params) : ENTRY(push_one_shot)(params);
#endif
}

// Makes the call on every rank. Runs the threads one after another.
void run(const char* algorithm, peersum_u64 push_half_bytes, peersum_u64 elements,
         peersum_u32 threads, peersum_u32 hidden, peersum_u64 root) {
    for (peersum_u32 rank = 0; rank < PEERSUM_WORLD_SIZE; ++rank) {
        PeersumParams params = {};
        for (peersum_u32 step = 0; step < PEERSUM_WORLD_SIZE; ++step) {
            params.arena[step] = recorder::arena_of((rank + step) % PEERSUM_WORLD_SIZE);
        }
        params.elements = elements;
        if (!is(algorithm, "one_shot")) params.chunk_stride = elements * Element::BYTES;
        params.header = root << PEERSUM_HEADER_ROOT_SHIFT;
        params.push_offset = recorder::PUSH_OFFSET;
        params.push_half_bytes = push_half_bytes;
        params.hidden = hidden;
        if (hidden != 0) params.rows = static_cast<peersum_u32>(elements / hidden);
        params.rank = rank;
        for (recorder::ctaid = 0; recorder::ctaid < recorder::nctaid; ++recorder::ctaid) {
            for (recorder::tid = 0; recorder::tid < threads; ++recorder::tid) {
                enter_kernel(algorithm, params);
            }
        }
    }
}

peersum_u64 slot_count() {
    peersum_u64 count = 0;
    for (const auto& slots : recorder::slots)
        count = slots.values.size() > count ? slots.values.size() : count;
    return count;
}

// The ranks at which a slot is used.
peersum_u32 users_of(peersum_u64 slot) {
    peersum_u32 users = 0;
    for (peersum_u32 rank = 0; rank < PEERSUM_WORLD_SIZE; ++rank)
        users += recorder::slots[rank][slot].is_any();
    return users;
}

// Whether each slot was sent to, polled and emptied exactly once, and every rank uses the same
// slots. In a broadcast a rank uses those that it needs. A first slot may be polled again once it
// shows that there is a second one, and the slots of a row when all of its unit has arrived.
bool is_sound(bool is_broadcast, peersum_u32 hidden) {
    for (peersum_u64 slot = 0, count = slot_count(); slot < count; ++slot) {
        const peersum_u32 users = users_of(slot);
        if (users == 0) continue;
        if (users != PEERSUM_WORLD_SIZE && !is_broadcast) return false;
        for (peersum_u32 rank = 0; rank < PEERSUM_WORLD_SIZE; ++rank) {
            const recorder::Uses uses = recorder::slots[rank][slot];
            const bool may_poll_again = recorder::marked != 0 || hidden != 0;
            const bool is_polled = uses.polled == 1 || (uses.polled != 0 && may_poll_again);
            const bool is_taken = is_polled && uses.rearmed == 1;
            if (uses.is_any() && (uses.sent != 1 || !is_taken)) return false;
        }
    }
    return true;
}

void print_ranges() {
    peersum_u64 begin = 0, end = 0;
    for (peersum_u64 slot = 0, count = slot_count(); slot < count; ++slot) {
        if (users_of(slot) == 0) continue;
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
    unsigned int threads, hidden, root;
    while (scanf("%15s %llu %llu %u %u %u %u %u %u %u", algorithm, &push_half_bytes, &elements,
                 &recorder::parity, &recorder::nctaid, &recorder::cluster, &threads, &hidden, &root,
                 &recorder::marked) == 10) {
        recorder::ntid = threads + PEERSUM_WORLD_SIZE;
        for (auto& sent : recorder::sent) sent.values.clear();
        // Whether a unit has a second slot depends on what arrives in its first. So the call is
        // made once to learn what is sent.
        for (int pass = recorder::marked == 0; pass < 2; ++pass) {
            for (auto& slots : recorder::slots) slots.values.clear();
            run(algorithm, push_half_bytes, elements, threads, hidden, root);
        }
        if (is_sound(is(algorithm, "broadcast"), hidden)) {
            print_ranges();
        } else {
            printf("a slot is not sent to, polled and emptied exactly once\n");
        }
    }
    return 0;
}
