// limits.cu - what the machine allows: kernels that launch, exchange or move bytes and do nothing
// else.
//
// Compiled ahead of time by `cargo xtask bench allreduce`.

#include "platform.cuh"

typedef peersum_u32 u32;
typedef peersum_u64 u64;

// The counterpart of `Parameters` in limits.rs.
struct Parameters {
    // Each rank's memory: the control page, then `data_bytes` that peers store to, then as many
    // again.
    char* memory[8];
    // Bytes to move, a multiple of 16.
    u64 bytes;
    u64 data_bytes;
    // How long a wait may take, in nanoseconds.
    u64 timeout_ns;
    u32 rank;
    u32 world_size;
    // Rounds of a ping-pong.
    u32 rounds;
    u32 reserved;
};

// Offsets in the control page.
constexpr u64 FLAGS = 0, EPOCH = 512, FAILED = 520, BALL = 1024, BALLS = 1536, DATA = 4096;

// Polls until the word is at least `awaited`; false for a wait that takes too long. The rank is
// then marked failed, and its later waits end at their first look.
PEERSUM_DEVICE bool await_word(const Parameters& p, const char* address, u64 awaited) {
    u64 start_ns = 0;
    for (u32 polls = 1; ld_relaxed_sys_u64(address) < awaited; ++polls) {
        if (polls % POLLS_BETWEEN_LOOKS != 0) continue;
        char* const own = p.memory[p.rank];
        const u64 now_ns = globaltimer();
        if (start_ns == 0) start_ns = now_ns;
        if (now_ns - start_ns > p.timeout_ns || ld_relaxed_sys_u64(own + FAILED) != 0) {
            st_relaxed_sys_u64(own + FAILED, 1);
            return false;
        }
    }
    return true;
}

#define ENTRY(name)                                      \
    extern "C" __global__ void __launch_bounds__(512, 1) \
        peersum_limit_##name(const __grid_constant__ Parameters p)

// A launch, one load, and the trigger for the next.
ENTRY(empty) {
    griddepcontrol_wait();
    ld_relaxed_sys_u64(p.memory[p.rank] + EPOCH);
    bar_sync();
    griddepcontrol_launch_dependents();
}

// The same with one word from each rank to each: what any all-reduce must do at least. One block.
ENTRY(exchange) {
    griddepcontrol_wait();
    char* const own = p.memory[p.rank];
    const u64 epoch = ld_relaxed_sys_u64(own + EPOCH) + 1;
    const u32 peer = tid_x();
    if (peer < p.world_size && peer != p.rank) {
        st_relaxed_sys_u64(p.memory[peer] + FLAGS + 8 * p.rank, epoch);
        await_word(p, own + FLAGS + 8 * peer, epoch);
    }
    bar_sync();
    griddepcontrol_launch_dependents();
    if (peer == 0) st_relaxed_sys_u64(own + EPOCH, epoch);
}

// The peer that this block stores to. Blocks of all ranks that meet one peer handle different
// units.
PEERSUM_DEVICE u32 peer_of_block(const Parameters& p) {
    const u32 peer = p.rank + 1 + ctaid_x() % (p.world_size - 1);
    return peer >= p.world_size ? peer - p.world_size : peer;
}

ENTRY(store) {
    griddepcontrol_wait();
    char* const to = p.memory[peer_of_block(p)] + DATA;
    const u64 stride = 16ull * nctaid_x() * ntid_x();
    const Unit v{p.rank, 1, 2, 3};
#pragma unroll 4
    for (u64 at = 16ull * (ctaid_x() * ntid_x() + tid_x()); at < p.bytes; at += stride)
        st_relaxed_sys_v4(to + at, v);
    bar_sync();
    griddepcontrol_launch_dependents();
}

// From the first data area of this rank's memory to the second.
ENTRY(copy) {
    griddepcontrol_wait();
    char* const from = p.memory[p.rank] + DATA;
    char* const to = from + p.data_bytes;
    const u64 stride = 16ull * nctaid_x() * ntid_x();
    u64 at = 16ull * (ctaid_x() * ntid_x() + tid_x());
    for (; at + 3 * stride < p.bytes; at += 4 * stride) {
        Unit v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = ld_global_v4(from + at + i * stride);
#pragma unroll
        for (int i = 0; i < 4; ++i) st_global_v4(to + at + i * stride, v[i]);
    }
    for (; at < p.bytes; at += stride) st_global_v4(to + at, ld_global_v4(from + at));
    bar_sync();
    griddepcontrol_launch_dependents();
}

// Ranks 0 and 1 send a word to and fro `rounds` times. One thread.
ENTRY(ping_pong) {
    griddepcontrol_wait();
    char* const own = p.memory[p.rank];
    char* const peer = p.memory[1 - p.rank];
    const u64 before = ld_relaxed_sys_u64(own + BALLS);
    for (u64 ball = before + 1; ball <= before + p.rounds; ++ball) {
        if (p.rank == 0) st_relaxed_sys_u64(peer + BALL, ball);
        if (!await_word(p, own + BALL, ball)) break;
        if (p.rank == 1) st_relaxed_sys_u64(peer + BALL, ball);
    }
    st_relaxed_sys_u64(own + BALLS, before + p.rounds);
}
