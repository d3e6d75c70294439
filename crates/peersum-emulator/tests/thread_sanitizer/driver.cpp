// driver.cpp - ranks as threads of one process with one mapping of all memory, for ThreadSanitizer. Built by ../thread_sanitizer.rs with
// KERNEL (push.cu or pull.cu), FAMILY (push or pull), PEERSUM_SYMMETRIC (0 or 1), PEERSUM_DTYPE=f32 and PEERSUM_WORLD_SIZE.
//
// Ranks share nothing but what the kernels share: each is a thread that runs its launches one after the other, each launch a set of
// threads that it starts and joins. Exit status 0: all sums right.
#include "platform_emulator.hpp"
#include KERNEL

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FAMILY_ALGORITHM(family, algorithm) PEERSUM_PASTE(family, algorithm)
#define ENTRY(algorithm) PEERSUM_ENTRY_NAME(FAMILY_ALGORITHM(FAMILY, algorithm), PEERSUM_DTYPE, PEERSUM_WORLD_SIZE)

namespace {

constexpr int CALLS = 24;
// Only the pull family reads a symmetric source.
constexpr bool FROM_SYMMETRIC = PEERSUM_SYMMETRIC;
constexpr int THREADS = 8;
constexpr int ELEMENTS = 331;
constexpr int ELEMENT_CAPACITY = 352;
constexpr peersum_u64 HALF = 8192;
constexpr peersum_u64 PUSH_OFFSET = (sizeof(PeersumControl) + 127) / 128 * 128;
constexpr peersum_u64 STAGING_OFFSET = PUSH_OFFSET + 2 * HALF;
constexpr peersum_u64 ARENA_BYTES = STAGING_OFFSET + 2 * HALF;

peersum_u64 arenas[PEERSUM_MAX_WORLD_SIZE];
peersum_u64 symmetric[PEERSUM_MAX_WORLD_SIZE];
PeersumStatus statuses[PEERSUM_MAX_WORLD_SIZE];
bool failed[PEERSUM_MAX_WORLD_SIZE];

struct EmulatedThread {
    void (*entry)(PeersumParams);
    const PeersumParams* params;
    emulator::Thread identity;
};

void* run_thread(void* argument) {
    const EmulatedThread* thread = static_cast<const EmulatedThread*>(argument);
    peersum_emulator_run(thread->entry, thread->params, &thread->identity);
    return nullptr;
}

void launch(void (*entry)(PeersumParams), const PeersumParams& params, peersum_u32 blocks, peersum_u32 seed) {
    emulator::BlockBarrier barriers[2] = {};
    EmulatedThread threads[2 * THREADS];
    pthread_t handles[2 * THREADS];
    for (peersum_u32 t = 0; t < blocks * THREADS; ++t) {
        const emulator::Thread identity{t % THREADS, THREADS, t / THREADS, blocks, &barriers[t / THREADS], seed * 64 + t + 1};
        threads[t] = EmulatedThread{entry, &params, identity};
        if (pthread_create(&handles[t], nullptr, run_thread, &threads[t]) != 0) abort();
    }
    for (peersum_u32 t = 0; t < blocks * THREADS; ++t) pthread_join(handles[t], nullptr);
}

// Small integers, so that sums are exact in any order.
float value(peersum_u32 rank, int call, int index) { return static_cast<float>((index * 7 + call * 3 + static_cast<int>(rank)) % 64); }

void* run_rank(void* argument) {
    const peersum_u32 rank = static_cast<peersum_u32>(reinterpret_cast<peersum_u64>(argument));
    alignas(16) static thread_local float input[ELEMENT_CAPACITY], output[ELEMENT_CAPACITY];
    for (int call = 0; call < CALLS; ++call) {
        const bool two_shot = call / 2 % 2 != 0;
        const bool is_symmetric = FROM_SYMMETRIC && call % 3 == 2;
        // Every second buffer is misaligned, on other calls on each rank.
        const int offset = (call + static_cast<int>(rank)) % 2;
        float* source = is_symmetric ? reinterpret_cast<float*>(symmetric[rank]) : input + offset;
        for (int index = 0; index < ELEMENTS; ++index) source[index] = value(rank, call, index);

        PeersumParams params = {};
        for (peersum_u32 peer = 0; peer < WORLD_SIZE; ++peer) {
            params.arena[(peer + WORLD_SIZE - rank) % WORLD_SIZE] = arenas[peer];
            params.source[peer] = is_symmetric ? symmetric[peer] : arenas[peer];
        }
        params.is_source_aligned = 1;
        params.input = reinterpret_cast<peersum_u64>(input + offset);
        params.output = reinterpret_cast<peersum_u64>(output + offset);
        params.elements = ELEMENTS;
        params.push_offset = PUSH_OFFSET;
        params.push_half_bytes = HALF;
        params.staging_offset = STAGING_OFFSET;
        params.staging_half_bytes = HALF;
        params.status = reinterpret_cast<peersum_u64>(&statuses[rank]);
        params.timeout_ns = 20000000000;
        params.rank = rank;
        // Only the pull family is built with symmetric sources.
        params.header = static_cast<peersum_u64>(is_symmetric) << PEERSUM_HEADER_SOURCE_SHIFT |
                        static_cast<peersum_u64>(FROM_SYMMETRIC) << PEERSUM_HEADER_FAMILY_SHIFT |
                        static_cast<peersum_u64>(two_shot) << PEERSUM_HEADER_ALGORITHM_SHIFT |
                        static_cast<peersum_u64>(PEERSUM_DTYPE_F32) << PEERSUM_HEADER_DTYPE_SHIFT | ELEMENTS * sizeof(float);
        launch(two_shot ? ENTRY(_two_shot) : ENTRY(_one_shot), params, 1 + static_cast<peersum_u32>(call) % 2, rank * CALLS + call);

        const float* result = two_shot && is_symmetric ? source : output + offset;
        for (int index = 0; index < ELEMENTS; ++index) {
            float expected = 0;
            for (peersum_u32 peer = 0; peer < WORLD_SIZE; ++peer) expected += value(peer, call, index);
            if (result[index] != expected) failed[rank] = true;
        }
    }
    return nullptr;
}

void set_up(peersum_u32 rank) {
    char* arena = static_cast<char*>(aligned_alloc(128, ARENA_BYTES));
    memset(arena, 0, ARENA_BYTES);
    memset(arena + PUSH_OFFSET, 0xFF, 2 * HALF);
    PeersumControl* control = reinterpret_cast<PeersumControl*>(arena);
    for (PeersumBlockState& state : control->blocks) state.pull_epoch = 1;
    // The next call is number 1.
    for (peersum_u64 back = 1; back <= PEERSUM_HEADER_RING; ++back) {
        const peersum_u64 sequence = (1 - back) & 0xFFFF;
        control->own_headers[sequence % PEERSUM_HEADER_RING] = sequence << PEERSUM_HEADER_SEQUENCE_SHIFT;
        for (peersum_u64& word : control->headers[sequence % PEERSUM_HEADER_RING]) word = sequence << PEERSUM_HEADER_SEQUENCE_SHIFT;
    }
    arenas[rank] = reinterpret_cast<peersum_u64>(arena);
    symmetric[rank] = reinterpret_cast<peersum_u64>(aligned_alloc(128, ELEMENT_CAPACITY * sizeof(float) / 128 * 128));
}

}  // namespace

int main() {
    for (peersum_u32 rank = 0; rank < WORLD_SIZE; ++rank) set_up(rank);
    pthread_t ranks[WORLD_SIZE];
    for (peersum_u64 rank = 0; rank < WORLD_SIZE; ++rank) {
        if (pthread_create(&ranks[rank], nullptr, run_rank, reinterpret_cast<void*>(rank)) != 0) return 2;
    }
    for (pthread_t rank : ranks) pthread_join(rank, nullptr);
    for (peersum_u32 rank = 0; rank < WORLD_SIZE; ++rank) {
        if (failed[rank]) {
            fprintf(stderr, "rank %u has a wrong sum\n", rank);
            return 1;
        }
    }
    return 0;
}
