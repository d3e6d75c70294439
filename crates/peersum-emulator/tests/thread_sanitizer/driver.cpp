// driver.cpp - ranks as threads of one process with one mapping of all memory, for ThreadSanitizer.
// Built by ../thread_sanitizer.rs with PEERSUM_DTYPE=f32 and PEERSUM_WORLD_SIZE, and linked with
// both families.
//
// Ranks share nothing but what the kernels share: each is a thread that runs its launches one after
// the other, each launch a set of threads that it starts and joins. Without an argument all kinds
// of call follow each other, and the exit status is 0 if all sums are right. With a kind as the
// argument the last rank stops before a call of that kind, and the exit status is 0 if every other
// rank loses it and says why.
#include "platform_emulator.hpp"
// Its constants and types; either family would do.
#define PEERSUM_MODULE_FAMILY PEERSUM_FAMILY_PULL
#include "call.cuh"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ENTRY(family_algorithm) \
    PEERSUM_ENTRY_NAME(family_algorithm, PEERSUM_DTYPE, PEERSUM_WORLD_SIZE)

extern "C" void ENTRY(push_one_shot)(PeersumParams);
extern "C" void ENTRY(push_two_shot)(PeersumParams);
extern "C" void ENTRY(pull_one_shot)(PeersumParams);
extern "C" void ENTRY(pull_two_shot)(PeersumParams);

namespace {

struct Kind {
    void (*entry)(PeersumParams);
    peersum_u64 family, algorithm;
    bool is_symmetric;
};

constexpr Kind KINDS[] = {
    {ENTRY(push_one_shot), PEERSUM_FAMILY_PUSH, PEERSUM_ALGORITHM_ONE_SHOT, false},
    {ENTRY(push_two_shot), PEERSUM_FAMILY_PUSH, PEERSUM_ALGORITHM_TWO_SHOT, false},
    {ENTRY(pull_one_shot), PEERSUM_FAMILY_PULL, PEERSUM_ALGORITHM_ONE_SHOT, false},
    {ENTRY(pull_two_shot), PEERSUM_FAMILY_PULL, PEERSUM_ALGORITHM_TWO_SHOT, false},
    {ENTRY(pull_one_shot), PEERSUM_FAMILY_PULL, PEERSUM_ALGORITHM_ONE_SHOT, true},
    {ENTRY(pull_two_shot), PEERSUM_FAMILY_PULL, PEERSUM_ALGORITHM_TWO_SHOT, true},
};
constexpr int KIND_COUNT = sizeof KINDS / sizeof KINDS[0];
// Every kind behind every other: modulo 7 the six numbers from 1 on follow each other at every
// distance.
constexpr int CALLS = KIND_COUNT * KIND_COUNT;
constexpr Kind kind_of(int call) {
    return KINDS[(call % KIND_COUNT + 1) * (call / KIND_COUNT + 1) % 7 - 1];
}

constexpr peersum_u64 PATIENCE_NS = 60000000000;
constexpr peersum_u64 PATIENCE_WITH_STOPPED_NS = 100000000;
// Of a block: those that handle units, and behind them one for each rank's signals.
constexpr int UNIT_THREADS = 8;
constexpr int THREADS = UNIT_THREADS + static_cast<int>(WORLD_SIZE);
constexpr int ELEMENTS = 331;
constexpr int ELEMENT_CAPACITY = 352;
// Whole slot groups of both halves (abi.h).
constexpr peersum_u64 HALF = 3 * 2 * WORLD_SIZE * PEERSUM_SLOT_GROUP * PEERSUM_UNIT_BYTES;
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

void launch(void (*entry)(PeersumParams), const PeersumParams& params, peersum_u32 blocks,
            peersum_u32 seed) {
    emulator::BlockBarriers barriers[2] = {};
    EmulatedThread threads[2 * THREADS];
    pthread_t handles[2 * THREADS];
    for (peersum_u32 t = 0; t < blocks * THREADS; ++t) {
        const emulator::Thread identity{
            t % THREADS, THREADS,          t / THREADS, blocks, &barriers[t / THREADS],
            nullptr,     seed * 64 + t + 1};
        threads[t] = EmulatedThread{entry, &params, identity};
        if (pthread_create(&handles[t], nullptr, run_thread, &threads[t]) != 0) abort();
    }
    for (peersum_u32 t = 0; t < blocks * THREADS; ++t) pthread_join(handles[t], nullptr);
}

// Small integers, so that sums are exact in any order.
float value(peersum_u32 rank, int call, int index) {
    return static_cast<float>((index * 7 + call * 3 + static_cast<int>(rank)) % 64);
}

// One call of a rank, on other grids and alignments from call to call. Returns the output.
const float* run_call(peersum_u32 rank, int call, const Kind& kind, peersum_u64 timeout_ns) {
    alignas(16) static thread_local float input[ELEMENT_CAPACITY], output[ELEMENT_CAPACITY];
    // Every second buffer is misaligned, on other calls on each rank.
    const int offset = (call + static_cast<int>(rank)) % 2;
    float* source = kind.is_symmetric ? reinterpret_cast<float*>(symmetric[rank]) : input + offset;
    for (int index = 0; index < ELEMENTS; ++index) source[index] = value(rank, call, index);

    PeersumParams params = {};
    for (peersum_u32 peer = 0; peer < WORLD_SIZE; ++peer) {
        params.arena[(peer + WORLD_SIZE - rank) % WORLD_SIZE] = arenas[peer];
        params.source[peer] = kind.is_symmetric ? symmetric[peer] : arenas[peer];
    }
    params.flags = PEERSUM_FLAG_SOURCE_ALIGNED;
    params.input = reinterpret_cast<peersum_u64>(input + offset);
    params.output = reinterpret_cast<peersum_u64>(output + offset);
    params.elements = ELEMENTS;
    params.push_offset = PUSH_OFFSET;
    params.push_half_bytes = HALF;
    params.staging_offset = STAGING_OFFSET;
    params.staging_half_bytes = HALF;
    params.status = reinterpret_cast<peersum_u64>(&statuses[rank]);
    params.timeout_ns = timeout_ns;
    params.rank = rank;
    params.detail = static_cast<peersum_u64>(kind.is_symmetric) << PEERSUM_DETAIL_BUFFER_SHIFT;
    params.header = static_cast<peersum_u64>(kind.is_symmetric) << PEERSUM_HEADER_SOURCE_SHIFT |
                    kind.family << PEERSUM_HEADER_FAMILY_SHIFT |
                    kind.algorithm << PEERSUM_HEADER_ALGORITHM_SHIFT |
                    static_cast<peersum_u64>(PEERSUM_DTYPE_F32) << PEERSUM_HEADER_DTYPE_SHIFT |
                    ELEMENTS * sizeof(float);
    launch(kind.entry, params, 1 + static_cast<peersum_u32>(call) % 2, rank * CALLS + call);
    return kind.algorithm == PEERSUM_ALGORITHM_TWO_SHOT && kind.is_symmetric ? source
                                                                             : output + offset;
}

void expect(peersum_u32 rank, int call, bool is_right, const char* what) {
    if (is_right || failed[rank]) return;
    fprintf(stderr, "rank %u, call %d: %s\n", rank, call, what);
    failed[rank] = true;
}

void* run_all_calls(void* argument) {
    const peersum_u32 rank = static_cast<peersum_u32>(reinterpret_cast<peersum_u64>(argument));
    for (int call = 0; call < CALLS; ++call) {
        const float* result = run_call(rank, call, kind_of(call), PATIENCE_NS);
        for (int index = 0; index < ELEMENTS; ++index) {
            float expected = 0;
            for (peersum_u32 peer = 0; peer < WORLD_SIZE; ++peer)
                expected += value(peer, call, index);
            expect(rank, call, result[index] == expected, "a wrong sum");
        }
    }
    return nullptr;
}

Kind lost_kind;

void* run_until_last_rank_stops(void* argument) {
    const peersum_u32 rank = static_cast<peersum_u32>(reinterpret_cast<peersum_u64>(argument));
    constexpr int CALLS_BEFORE = 2;
    for (int call = 0; call < CALLS_BEFORE; ++call) run_call(rank, call, lost_kind, PATIENCE_NS);
    if (rank == WORLD_SIZE - 1) return nullptr;
    // The first is lost for want of a peer, the second because the rank is poisoned.
    for (int call = CALLS_BEFORE; call < CALLS_BEFORE + 2; ++call) {
        const float* result = run_call(rank, call, lost_kind, PATIENCE_WITH_STOPPED_NS);
        for (int index = 0; index < ELEMENTS; ++index)
            expect(rank, call, result[index] != result[index], "an output that is not NaN");
        const bool has_status = __atomic_load_n(&statuses[rank].valid, __ATOMIC_ACQUIRE) == 1;
        expect(rank, call, has_status, "no status");
        const peersum_u32 cause = statuses[rank].cause;
        expect(rank, call, cause == PEERSUM_CAUSE_TIMEOUT || cause == PEERSUM_CAUSE_POISON,
               "another cause");
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
        control->own_headers[sequence % PEERSUM_HEADER_RING] = sequence
                                                               << PEERSUM_HEADER_SEQUENCE_SHIFT;
        for (peersum_u64& word : control->headers[sequence % PEERSUM_HEADER_RING])
            word = sequence << PEERSUM_HEADER_SEQUENCE_SHIFT;
    }
    arenas[rank] = reinterpret_cast<peersum_u64>(arena);
    symmetric[rank] = reinterpret_cast<peersum_u64>(
        aligned_alloc(128, ELEMENT_CAPACITY * sizeof(float) / 128 * 128));
}

}  // namespace

int main(int count, char** arguments) {
    void* (*run)(void*) = run_all_calls;
    if (count > 1) {
        lost_kind = KINDS[atoi(arguments[1])];
        run = run_until_last_rank_stops;
    }
    for (peersum_u32 rank = 0; rank < WORLD_SIZE; ++rank) set_up(rank);
    pthread_t ranks[WORLD_SIZE];
    for (peersum_u64 rank = 0; rank < WORLD_SIZE; ++rank) {
        if (pthread_create(&ranks[rank], nullptr, run, reinterpret_cast<void*>(rank)) != 0)
            return 2;
    }
    for (pthread_t rank : ranks) pthread_join(rank, nullptr);
    for (peersum_u32 rank = 0; rank < WORLD_SIZE; ++rank) {
        if (failed[rank]) return 1;
    }
    return 0;
}
