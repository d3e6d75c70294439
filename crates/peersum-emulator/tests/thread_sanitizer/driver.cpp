// driver.cpp - ranks as threads of one process with one mapping of all memory, for ThreadSanitizer.
// Built by ../thread_sanitizer.rs with PEERSUM_DTYPE=f32 and PEERSUM_WORLD_SIZE, and linked with
// all families.
//
// Ranks share nothing but what the kernels share: each is a thread that runs its launches one after
// the other, each launch a set of threads that it starts and joins. Without an argument all kinds
// of call follow each other, and the exit status is 0 if all sums are right. With a kind as the
// argument the last rank stops before a call of that kind, and the exit status is 0 if every other
// rank loses it and says why.
#include "platform_emulator.hpp"
// Its constants and types; any family would do.
#define PEERSUM_MODULE_FAMILY PEERSUM_FAMILY_PULL
#include "call.cuh"

#include "conversions.hpp"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ENTRY(family_algorithm) \
    PEERSUM_ENTRY_NAME(family_algorithm, PEERSUM_DTYPE, PEERSUM_WORLD_SIZE)
#define MOVE_ENTRY(family_algorithm) PEERSUM_ENTRY_NAME(family_algorithm, u8, PEERSUM_WORLD_SIZE)

extern "C" void ENTRY(push_one_shot)(PeersumParams);
extern "C" void ENTRY(push_two_shot)(PeersumParams);
extern "C" void ENTRY(pull_one_shot)(PeersumParams);
extern "C" void ENTRY(pull_two_shot)(PeersumParams);
extern "C" void ENTRY(norm_one_shot)(PeersumParams);
extern "C" void ENTRY(norm_clustered)(PeersumParams);
extern "C" void ENTRY(norm_rows)(PeersumParams);
extern "C" void ENTRY(push_reduce_scatter)(PeersumParams);
extern "C" void MOVE_ENTRY(move_all_gather)(PeersumParams);
extern "C" void MOVE_ENTRY(move_broadcast)(PeersumParams);

namespace {

// Whether a call normalises its rows: in its own kernel, or in one behind it.
enum class Rows { NONE, FUSED, BEHIND };

struct Kind {
    void (*entry)(PeersumParams);
    peersum_u64 family, algorithm;
    bool is_symmetric;
    Rows rows;
    peersum_u64 operation = PEERSUM_OPERATION_ALL_REDUCE;
};

constexpr peersum_u64 PUSH = PEERSUM_FAMILY_PUSH, PULL = PEERSUM_FAMILY_PULL;
constexpr peersum_u64 ONE_SHOT = PEERSUM_ALGORITHM_ONE_SHOT, TWO_SHOT = PEERSUM_ALGORITHM_TWO_SHOT;
constexpr peersum_u64 SCATTER = PEERSUM_OPERATION_REDUCE_SCATTER,
                      GATHER = PEERSUM_OPERATION_ALL_GATHER,
                      BROADCAST = PEERSUM_OPERATION_BROADCAST;
constexpr Kind KINDS[] = {
    {ENTRY(push_one_shot), PUSH, ONE_SHOT, false, Rows::NONE},
    {ENTRY(push_two_shot), PUSH, TWO_SHOT, false, Rows::NONE},
    {ENTRY(pull_one_shot), PULL, ONE_SHOT, false, Rows::NONE},
    {ENTRY(pull_two_shot), PULL, TWO_SHOT, false, Rows::NONE},
    {ENTRY(pull_one_shot), PULL, ONE_SHOT, true, Rows::NONE},
    {ENTRY(pull_two_shot), PULL, TWO_SHOT, true, Rows::NONE},
    {ENTRY(norm_one_shot), PUSH, ONE_SHOT, false, Rows::FUSED},
    {ENTRY(push_two_shot), PUSH, TWO_SHOT, false, Rows::BEHIND},
    {ENTRY(pull_one_shot), PULL, ONE_SHOT, false, Rows::BEHIND},
    {ENTRY(pull_two_shot), PULL, TWO_SHOT, true, Rows::BEHIND},
    {ENTRY(push_reduce_scatter), PUSH, ONE_SHOT, false, Rows::NONE, SCATTER},
    {MOVE_ENTRY(move_all_gather), PUSH, ONE_SHOT, false, Rows::NONE, GATHER},
    {MOVE_ENTRY(move_broadcast), PUSH, ONE_SHOT, false, Rows::NONE, BROADCAST},
};
constexpr int KIND_COUNT = sizeof KINDS / sizeof KINDS[0];
// Every kind behind every other: modulo a prime, the multiples of each number follow each other at
// that distance.
constexpr int CALLS = KIND_COUNT * (KIND_COUNT - 1);
static_assert(KIND_COUNT == 13, "a prime");
constexpr Kind kind_of(int call) {
    return KINDS[call % KIND_COUNT * (call / KIND_COUNT + 1) % KIND_COUNT];
}

constexpr peersum_u64 PATIENCE_NS = 60000000000;
constexpr peersum_u64 PATIENCE_WITH_STOPPED_NS = 100000000;
// Of a block: those that handle units, and behind them one for each rank's signals.
constexpr int UNIT_THREADS = 8;
constexpr int THREADS = UNIT_THREADS + static_cast<int>(WORLD_SIZE);
constexpr int ELEMENTS = 331;
constexpr int ELEMENT_CAPACITY = 352;
// Of calls with RMSNorm, by turns: rows with fewer units than a block has threads, rows with more,
// and one row that a cluster shares if the call is fused.
constexpr int HIDDEN[] = {24, 48, 48}, ROWS[] = {5, 3, 1};
constexpr int IN_CLUSTER = 2;
// Of each rank in an all-gather and a reduce-scatter, by turns: whole units, and a partial one.
constexpr int CHUNK[] = {108, 110};
constexpr float EPSILON = 0.5f, WEIGHT_OFFSET = 1.0f;
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
            peersum_u32 cluster, peersum_u32 seed) {
    emulator::BlockMemory memory[2] = {};
    EmulatedThread threads[2 * THREADS];
    pthread_t handles[2 * THREADS];
    for (peersum_u32 t = 0; t < blocks * THREADS; ++t) {
        const peersum_u32 block = t / THREADS;
        const emulator::Thread identity{t % THREADS,    THREADS,          block, blocks, cluster,
                                        &memory[block], seed * 64 + t + 1};
        threads[t] = EmulatedThread{entry, &params, identity};
        if (pthread_create(&handles[t], nullptr, run_thread, &threads[t]) != 0) abort();
    }
    for (peersum_u32 t = 0; t < blocks * THREADS; ++t) pthread_join(handles[t], nullptr);
}

// Small integers, so that sums are exact in any order.
float value(peersum_u32 rank, int call, int index) {
    return static_cast<float>((index * 7 + call * 3 + static_cast<int>(rank)) % 64);
}

// Each rank has a residual and a weight of its own.
float residual_value(peersum_u32 rank, int index) {
    return static_cast<float>((index * 5 + static_cast<int>(rank)) % 16);
}
float weight_value(peersum_u32 rank, int index) {
    return static_cast<float>((index + static_cast<int>(rank)) % 3);
}

// A value that is moved. Some are the empty mark and the mark of an escaped unit.
peersum_u32 moved_bits(peersum_u32 rank, int call, int index) {
    const float number = value(rank, call, index);
    peersum_u32 bits;
    memcpy(&bits, &number, sizeof bits);
    const int place = (index + call) % 23;
    return place == 3 ? 0xFFFFFFFFu : place == 8 ? 0x7FB5FFA3u : bits;
}

peersum_u32 root_of_call(int call) { return static_cast<peersum_u32>(call) % WORLD_SIZE; }
// Whether a root sends another buffer than it writes.
bool copies(peersum_u32 rank, int call) { return rank == root_of_call(call) && call % 2 == 1; }
int chunk_of_call(int call) { return CHUNK[call / 2 % 2]; }
bool has_chunks(const Kind& kind) { return kind.operation == SCATTER || kind.operation == GATHER; }
bool moves(const Kind& kind) { return kind.operation == GATHER || kind.operation == BROADCAST; }

// Of the result.
int elements_of(const Kind& kind, int call) {
    if (kind.operation == SCATTER) return chunk_of_call(call);
    if (kind.operation == GATHER) return chunk_of_call(call) * static_cast<int>(WORLD_SIZE);
    return kind.rows == Rows::NONE ? ELEMENTS : HIDDEN[call % 3] * ROWS[call % 3];
}

// Of what a rank passes in.
int inputs_of(const Kind& kind, int call) {
    if (kind.operation == SCATTER) return chunk_of_call(call) * static_cast<int>(WORLD_SIZE);
    return kind.operation == GATHER ? chunk_of_call(call) : elements_of(kind, call);
}

void write_input(peersum_u32 rank, int call, const Kind& kind, float* to) {
    for (int index = 0; index < inputs_of(kind, call); ++index) {
        const float number = value(rank, call, index);
        const peersum_u32 bits = moved_bits(rank, call, index);
        memcpy(to + index, moves(kind) ? static_cast<const void*>(&bits) : &number, sizeof bits);
    }
}

// What an all-gather or a broadcast must give.
void expected_move(int call, const Kind& kind, float* result) {
    for (int index = 0; index < elements_of(kind, call); ++index) {
        const int chunk = chunk_of_call(call);
        const peersum_u32 bits =
            kind.operation == BROADCAST
                ? moved_bits(root_of_call(call), call, index)
                : moved_bits(static_cast<peersum_u32>(index / chunk), call, index % chunk);
        memcpy(result + index, &bits, sizeof bits);
    }
}

// What a call must give: the sums, with RMSNorm the normalised rows of sums and residual, or what
// was moved.
void expected_of(peersum_u32 rank, int call, const Kind& kind, float* result) {
    if (moves(kind)) return expected_move(call, kind, result);
    const int elements = elements_of(kind, call), hidden = HIDDEN[call % 3];
    const int first_index = kind.operation == SCATTER ? static_cast<int>(rank) * elements : 0;
    for (int index = 0; index < elements; ++index) {
        result[index] = 0;
        for (peersum_u32 peer = 0; peer < WORLD_SIZE; ++peer)
            result[index] += value(peer, call, first_index + index);
    }
    for (int first = 0; kind.rows != Rows::NONE && first < elements; first += hidden) {
        float squares = 0;
        for (int index = first; index < first + hidden; ++index) {
            result[index] += residual_value(rank, index);
            squares += result[index] * result[index];
        }
        const float root = emulator::sqrt(squares / static_cast<float>(hidden) + EPSILON);
        const float scale = 1.0f / root;
        for (int index = first; index < first + hidden; ++index)
            result[index] =
                result[index] * scale * (WEIGHT_OFFSET + weight_value(rank, index - first));
    }
}

// The addresses and numbers of a call's rows.
void add_rows(PeersumParams& params, int call, float* residual, float* weight) {
    for (int index = 0; index < ELEMENT_CAPACITY; ++index) {
        residual[index] = residual_value(params.rank, index);
        weight[index] = weight_value(params.rank, index);
    }
    params.residual = reinterpret_cast<peersum_u64>(residual);
    params.weight = reinterpret_cast<peersum_u64>(weight);
    params.hidden = HIDDEN[call % 3];
    params.rows = static_cast<peersum_u32>(params.elements / params.hidden);
    params.epsilon = EPSILON;
    params.weight_offset = WEIGHT_OFFSET;
    for (peersum_u64& word : params.norm_words) word = 1ull << PEERSUM_NORM_MARK_SHIFT;
    params.header |= static_cast<peersum_u64>(PEERSUM_OPERATION_RMS_NORM)
                     << PEERSUM_HEADER_OPERATION_SHIFT;
}

// One call of a rank, on other grids and alignments from call to call. Returns the output.
const float* run_call(peersum_u32 rank, int call, const Kind& kind, peersum_u64 timeout_ns) {
    alignas(16) static thread_local float input[ELEMENT_CAPACITY], output[ELEMENT_CAPACITY],
        residual[ELEMENT_CAPACITY], weight[ELEMENT_CAPACITY];
    // Every second buffer is misaligned, on other calls on each rank, unless it holds rows.
    const int offset = kind.rows == Rows::NONE ? (call + static_cast<int>(rank)) % 2 : 0;
    const int elements = has_chunks(kind) ? chunk_of_call(call) : elements_of(kind, call);
    const peersum_u64 bytes = elements * sizeof(float);
    float* source = kind.is_symmetric ? reinterpret_cast<float*>(symmetric[rank]) : input + offset;
    const bool is_in_place = (kind.algorithm == TWO_SHOT && kind.is_symmetric) ||
                             (kind.operation == BROADCAST && !copies(rank, call));
    float* target = is_in_place ? source : output + offset;
    write_input(rank, call, kind, source);

    PeersumParams params = {};
    for (peersum_u32 peer = 0; peer < WORLD_SIZE; ++peer) {
        params.arena[(peer + WORLD_SIZE - rank) % WORLD_SIZE] = arenas[peer];
        params.source[peer] = kind.is_symmetric ? symmetric[peer] : arenas[peer];
    }
    params.flags = PEERSUM_FLAG_SOURCE_ALIGNED;
    params.input = reinterpret_cast<peersum_u64>(input + offset);
    params.output = reinterpret_cast<peersum_u64>(target);
    params.elements = moves(kind) ? bytes : elements;
    params.chunk_stride = has_chunks(kind) ? bytes : 0;
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
                    kind.operation << PEERSUM_HEADER_OPERATION_SHIFT | bytes;
    if (kind.operation == BROADCAST)
        params.header |= static_cast<peersum_u64>(root_of_call(call)) << PEERSUM_HEADER_ROOT_SHIFT;
    if (kind.rows != Rows::NONE) add_rows(params, call, residual, weight);
    const peersum_u32 blocks = 1 + static_cast<peersum_u32>(call) % 2;
    const peersum_u32 seed = rank * CALLS + call;
    if (kind.rows == Rows::FUSED && call % 3 == IN_CLUSTER) {
        launch(ENTRY(norm_clustered), params, 2, 2, seed);
    } else {
        launch(kind.entry, params, blocks, 1, seed);
    }
    if (kind.rows == Rows::BEHIND) {
        params.input = params.output;
        launch(ENTRY(norm_rows), params, 3 - blocks, 1, seed);
    }
    return target;
}

void expect(peersum_u32 rank, int call, bool is_right, const char* what) {
    if (is_right || failed[rank]) return;
    fprintf(stderr, "rank %u, call %d: %s\n", rank, call, what);
    failed[rank] = true;
}

void* run_all_calls(void* argument) {
    const peersum_u32 rank = static_cast<peersum_u32>(reinterpret_cast<peersum_u64>(argument));
    for (int call = 0; call < CALLS; ++call) {
        const Kind kind = kind_of(call);
        const float* result = run_call(rank, call, kind, PATIENCE_NS);
        float expected[ELEMENT_CAPACITY];
        expected_of(rank, call, kind, expected);
        for (int index = 0; index < elements_of(kind, call); ++index)
            expect(rank, call, memcmp(result + index, expected + index, sizeof(float)) == 0,
                   "a wrong result");
    }
    return nullptr;
}

Kind lost_kind;

// Whether an element of a lost call is what it must be: NaN, but a root keeps what it has, and what
// it has sent may have arrived.
bool is_lost(peersum_u32 rank, int call, float element, float expected) {
    const bool is_broadcast = lost_kind.operation == BROADCAST;
    const bool has_arrived = memcmp(&element, &expected, sizeof element) == 0;
    const bool keeps = is_broadcast && rank == root_of_call(call) && !copies(rank, call);
    return (is_broadcast && has_arrived) || (!keeps && element != element);
}

void* run_until_last_rank_stops(void* argument) {
    const peersum_u32 rank = static_cast<peersum_u32>(reinterpret_cast<peersum_u64>(argument));
    constexpr int CALLS_BEFORE = 2;
    for (int call = 0; call < CALLS_BEFORE; ++call) run_call(rank, call, lost_kind, PATIENCE_NS);
    if (rank == WORLD_SIZE - 1) return nullptr;
    // The first is lost for want of a peer, the second because the rank is poisoned.
    for (int call = CALLS_BEFORE; call < CALLS_BEFORE + 2; ++call) {
        const float* result = run_call(rank, call, lost_kind, PATIENCE_WITH_STOPPED_NS);
        float expected[ELEMENT_CAPACITY];
        expected_of(rank, call, lost_kind, expected);
        for (int index = 0; index < elements_of(lost_kind, call); ++index)
            expect(rank, call, is_lost(rank, call, result[index], expected[index]),
                   "an output that is not NaN");
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
