// platform.cuh - every PTX instruction that the kernels use, each wrapped once in a function named
// after its mnemonic.
//
// No CUDA header is included: a module compiles under nvcc or NVRTC without an include path. A
// build that defines PEERSUM_PLATFORM_PROVIDED declares the same functions before it includes this
// file. The CPU emulator does so.
//
// The scope is .sys wherever a peer may write or read: a peer is another GPU, possibly in another
// process. On NVLink .sys costs nothing over a plain access.
#pragma once

#include "abi.h"

// One unit: 16 bytes as four words. The PTX model guarantees nothing about the four together.
struct alignas(16) Unit {
    peersum_u32 x, y, z, w;
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define PEERSUM_HAS_CLUSTERS
#endif

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
#define PEERSUM_HAS_E4M3
#endif

#ifndef PEERSUM_PLATFORM_PROVIDED

#define PEERSUM_DEVICE static __device__ __forceinline__

// Failed polls between two looks at the clock, the abort word and the poison word. A poll takes
// about a microsecond, so a thread notices a deadline or an abort within about a millisecond.
constexpr peersum_u32 POLLS_BETWEEN_LOOKS = 1024;

PEERSUM_DEVICE peersum_u32 tid_x() {
    peersum_u32 value;
    asm("mov.u32 %0, %%tid.x;" : "=r"(value));
    return value;
}

PEERSUM_DEVICE peersum_u32 ntid_x() {
    peersum_u32 value;
    asm("mov.u32 %0, %%ntid.x;" : "=r"(value));
    return value;
}

PEERSUM_DEVICE peersum_u32 ctaid_x() {
    peersum_u32 value;
    asm("mov.u32 %0, %%ctaid.x;" : "=r"(value));
    return value;
}

PEERSUM_DEVICE peersum_u32 ctaid_y() {
    peersum_u32 value;
    asm("mov.u32 %0, %%ctaid.y;" : "=r"(value));
    return value;
}

PEERSUM_DEVICE peersum_u32 nctaid_x() {
    peersum_u32 value;
    asm("mov.u32 %0, %%nctaid.x;" : "=r"(value));
    return value;
}

// Nanoseconds. One clock for the whole device.
PEERSUM_DEVICE peersum_u64 globaltimer() {
    peersum_u64 value;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(value));
    return value;
}

// Orders all accesses before it, by all threads of the block, ahead of all accesses after it.
PEERSUM_DEVICE void bar_sync() { asm volatile("bar.sync 0;" ::: "memory"); }

// Barriers count threads in whole warps: a warp arrives as a whole, and a partial warp counts as
// full.
constexpr peersum_u32 WARP_THREADS = PEERSUM_WARP_THREADS;

// A second barrier, split in two. A thread that arrives continues at once. A thread that syncs
// waits until `threads` threads have arrived or synced; it is then ordered after all that they did
// before. All threads of a warp make the same call; `threads` counts whole warps.
PEERSUM_DEVICE void barrier_cta_arrive(peersum_u32 threads) {
    asm volatile("barrier.cta.arrive 1, %0;" ::"r"(threads) : "memory");
}

PEERSUM_DEVICE void barrier_cta_sync(peersum_u32 threads) {
    asm volatile("barrier.cta.sync 1, %0;" ::"r"(threads) : "memory");
}

// A third barrier, for the `threads` threads that handle units: a multiple of a warp.
PEERSUM_DEVICE void barrier_cta_sync_data(peersum_u32 threads) {
    asm volatile("barrier.cta.sync 2, %0;" ::"r"(threads) : "memory");
}

// Threads of a warp that exchange registers.
constexpr peersum_u32 LANES = PEERSUM_WARP_THREADS;

// The value of the thread whose lane differs in the bits of `mask`. All threads of the warp call
// it.
PEERSUM_DEVICE float shfl_bfly_f32(float value, peersum_u32 mask) {
    float other;
    asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 0x1f, 0xffffffff;"
                 : "=f"(other)
                 : "f"(value), "r"(mask));
    return other;
}

// Whether `value` is true on any thread of the warp, so that all of them go the same way before
// they exchange registers. All threads of the warp call it.
PEERSUM_DEVICE bool vote_any(bool value) {
    peersum_u32 any;
    asm volatile(
        "{\n\t.reg .pred in, out;\n\tsetp.ne.u32 in, %1, 0;\n\t"
        "vote.sync.any.pred out, in, 0xffffffff;\n\tselp.u32 %0, 1, 0, out;\n\t}"
        : "=r"(any)
        : "r"(static_cast<peersum_u32>(value)));
    return any != 0;
}

// Memory of the block: float32 values and the barriers of the cluster (rms.cuh). Every call makes
// memory of its own, so an entry point calls this once. Declared in PTX, because nvcc and NVRTC
// make different code for pointers to shared memory, and name a local variable after the path of
// its file.
struct BlockMemory {
    peersum_u32 address;
};

// The warps of the largest row: see PEERSUM_MAX_CLUSTER_THREADS.
constexpr peersum_u32 MOST_ROW_WARPS = PEERSUM_MAX_CLUSTER_THREADS / LANES;
constexpr peersum_u32 BLOCK_FLOATS = 3 * MOST_ROW_WARPS;
constexpr peersum_u32 CLUSTER_BARRIERS = 2;

PEERSUM_DEVICE BlockMemory block_memory() {
    static_assert(BLOCK_FLOATS * 4 + CLUSTER_BARRIERS * 8 == 400, "the size below");
    BlockMemory memory;
    asm volatile("{\n\t.shared .align 16 .b8 block_memory[400];\n\tmov.u32 %0, block_memory;\n\t}"
                 : "=r"(memory.address));
    return memory;
}

// `index` counts float32 values.
PEERSUM_DEVICE void st_shared_f32(BlockMemory memory, peersum_u32 index, float value) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(memory.address + index * 4), "f"(value)
                 : "memory");
}

// Four values from `index` on, a multiple of four.
PEERSUM_DEVICE void ld_shared_v4_f32(BlockMemory memory, peersum_u32 index, float (&value)[4]) {
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(value[0]), "=f"(value[1]), "=f"(value[2]), "=f"(value[3])
                 : "r"(memory.address + index * 4)
                 : "memory");
}

// --- Clusters: blocks that run at once and write to each other's memory. From sm_90 on.

// Blocks of this cluster.
PEERSUM_DEVICE peersum_u32 cluster_nctarank() {
    peersum_u32 value;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(value));
    return value;
}

// The place of this block among them.
PEERSUM_DEVICE peersum_u32 cluster_ctarank() {
    peersum_u32 value;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(value));
    return value;
}

PEERSUM_DEVICE peersum_u32 clusterid_x() {
    peersum_u32 value;
    asm("mov.u32 %0, %%clusterid.x;" : "=r"(value));
    return value;
}

PEERSUM_DEVICE peersum_u32 nclusterid_x() {
    peersum_u32 value;
    asm("mov.u32 %0, %%nclusterid.x;" : "=r"(value));
    return value;
}

// Every thread of the cluster has arrived when the wait of any of them ends. Relaxed: before they
// arrive, threads only make barriers, which mbarrier_init orders.
PEERSUM_DEVICE void barrier_cluster_arrive() {
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}

PEERSUM_DEVICE void barrier_cluster_wait() {
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

PEERSUM_DEVICE peersum_u32 mbarrier_address(BlockMemory memory, peersum_u32 barrier) {
    return memory.address + BLOCK_FLOATS * 4 + barrier * 8;
}

// A barrier whose phase ends when one thread has arrived and all bytes that it expects are there.
PEERSUM_DEVICE void mbarrier_init(BlockMemory memory, peersum_u32 barrier) {
    asm volatile(
        "mbarrier.init.shared::cta.b64 [%0], 1;\n\t"
        "fence.mbarrier_init.release.cluster;" ::"r"(mbarrier_address(memory, barrier))
        : "memory");
}

PEERSUM_DEVICE void mbarrier_arrive_expect_tx(BlockMemory memory, peersum_u32 barrier,
                                              peersum_u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                     mbarrier_address(memory, barrier)),
                 "r"(bytes)
                 : "memory");
}

// Waits for the end of the first phase. What the bytes of the phase stored is visible then.
PEERSUM_DEVICE void mbarrier_wait(BlockMemory memory, peersum_u32 barrier) {
    asm volatile(
        "{\n\t.reg .pred done;\n\t"
        "again: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], 0;\n\t"
        "@!done bra again;\n\t}" ::"r"(mbarrier_address(memory, barrier))
        : "memory");
}

// Stores a value at `index` in the memory of the `block`-th block of the cluster, and its four
// bytes count for the phase of that block's barrier.
PEERSUM_DEVICE void st_async_f32(BlockMemory memory, peersum_u32 block, peersum_u32 index,
                                 float value, peersum_u32 barrier) {
    asm volatile(
        "{\n\t.reg .u32 place, counter;\n\t"
        "mapa.shared::cluster.u32 place, %0, %3;\n\t"
        "mapa.shared::cluster.u32 counter, %1, %3;\n\t"
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [place], %2, [counter];"
        "\n\t}" ::"r"(memory.address + index * 4),
        "r"(mbarrier_address(memory, barrier)), "f"(value), "r"(block)
        : "memory");
}

// As bar_sync; also returns true on every thread if `value` is true on any.
PEERSUM_DEVICE bool bar_red_or(bool value) {
    peersum_u32 any;
    asm volatile(
        "{\n\t.reg .pred in, out;\n\tsetp.ne.u32 in, %1, 0;\n\tbar.red.or.pred out, 0, in;\n\t"
        "selp.u32 %0, 1, 0, out;\n\t}"
        : "=r"(any)
        : "r"(static_cast<peersum_u32>(value))
        : "memory");
    return any != 0;
}

// A kernel must not store, nor read what an earlier kernel wrote, before this. A no-op below sm_90,
// where the launch attribute is never set.
PEERSUM_DEVICE void griddepcontrol_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The first thread of a block that issues this counts for the whole block. Where it may be called:
// README.md, "Programmatic dependent launch".
PEERSUM_DEVICE void griddepcontrol_launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Forces `value` to be computed before the code that follows, unless ptxas moves it.
PEERSUM_DEVICE void computed_here(peersum_u64& value) { asm volatile("" : "+l"(value)); }

// Computes `value`, which is never all ones, before the wait that follows. Without a branch, ptxas
// moves the computation behind the wait, and with it the first load of a line of parameters.
PEERSUM_DEVICE void compute_before_wait([[maybe_unused]] peersum_u64 value) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n\t.reg .pred never;\n\tsetp.eq.u64 never, %0, -1;\n\t@never exit;\n\t}" ::"l"(value));
#endif
}

// Nothing to do on a GPU: a spinning thread polls again at once.
PEERSUM_DEVICE void spin_pause() {}

// --- Plain accesses: the caller's own buffers, which no peer touches during the call.

PEERSUM_DEVICE Unit ld_global_v4(const void* address) {
    Unit v;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(address));
    return v;
}

PEERSUM_DEVICE void st_global_v4(void* address, Unit v) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(v.x), "r"(v.y),
                 "r"(v.z), "r"(v.w));
}

PEERSUM_DEVICE peersum_u32 ld_global_u8(const void* address) {
    peersum_u32 value;
    asm volatile("ld.global.u8 %0, [%1];" : "=r"(value) : "l"(address));
    return value;
}

// The low 8 bits of `value`.
PEERSUM_DEVICE void st_global_u8(void* address, peersum_u32 value) {
    asm volatile("st.global.u8 [%0], %1;" ::"l"(address), "r"(value));
}

PEERSUM_DEVICE peersum_u32 ld_global_u16(const void* address) {
    peersum_u32 value;
    asm volatile("{\n\t.reg .u16 half;\n\tld.global.u16 half, [%1];\n\tcvt.u32.u16 %0, half;\n\t}"
                 : "=r"(value)
                 : "l"(address));
    return value;
}

// The low 16 bits of `value`.
PEERSUM_DEVICE void st_global_u16(void* address, peersum_u32 value) {
    asm volatile(
        "{\n\t.reg .u16 half;\n\tcvt.u16.u32 half, %1;\n\tst.global.u16 [%0], half;\n\t}" ::"l"(
            address),
        "r"(value));
}

PEERSUM_DEVICE peersum_u32 ld_global_u32(const void* address) {
    peersum_u32 value;
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(value) : "l"(address));
    return value;
}

PEERSUM_DEVICE void st_global_u32(void* address, peersum_u32 value) {
    asm volatile("st.global.u32 [%0], %1;" ::"l"(address), "r"(value));
}

PEERSUM_DEVICE peersum_u64 ld_global_u64(const void* address) {
    peersum_u64 value;
    asm volatile("ld.global.u64 %0, [%1];" : "=l"(value) : "l"(address));
    return value;
}

PEERSUM_DEVICE void st_global_u64(void* address, peersum_u64 value) {
    asm volatile("st.global.u64 [%0], %1;" ::"l"(address), "l"(value));
}

// --- Relaxed accesses at system scope: memory that a peer reads or writes during the call. They
// are never served from L1 and never stay there. Each word is single-copy atomic; a scalar 64-bit
// access is single-copy atomic as a whole.

PEERSUM_DEVICE Unit ld_relaxed_sys_v4(const void* address) {
    Unit v;
    asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(address));
    return v;
}

// Loads into `v` if `condition`, else leaves it unchanged. Predicated rather than branched, so that
// the loads of a batch stay together.
PEERSUM_DEVICE void ld_relaxed_sys_v4_if(bool condition, const void* address, Unit& v) {
    asm volatile(
        "{\n\t.reg .pred p;\n\tsetp.ne.u32 p, %5, 0;\n\t"
        "@p ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];\n\t}"
        : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
        : "l"(address), "r"(static_cast<peersum_u32>(condition)));
}

PEERSUM_DEVICE void st_relaxed_sys_v4(void* address, Unit v) {
    asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(v.x),
                 "r"(v.y), "r"(v.z), "r"(v.w));
}

PEERSUM_DEVICE peersum_u32 ld_relaxed_sys_u16(const void* address) {
    peersum_u32 value;
    asm volatile(
        "{\n\t.reg .u16 half;\n\tld.relaxed.sys.global.u16 half, [%1];\n\tcvt.u32.u16 %0, "
        "half;\n\t}"
        : "=r"(value)
        : "l"(address));
    return value;
}

PEERSUM_DEVICE void st_relaxed_sys_u16(void* address, peersum_u32 value) {
    asm volatile(
        "{\n\t.reg .u16 half;\n\tcvt.u16.u32 half, %1;\n\tst.relaxed.sys.global.u16 [%0], "
        "half;\n\t}" ::"l"(address),
        "r"(value));
}

PEERSUM_DEVICE peersum_u32 ld_relaxed_sys_u32(const void* address) {
    peersum_u32 value;
    asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(address));
    return value;
}

PEERSUM_DEVICE void st_relaxed_sys_u32(void* address, peersum_u32 value) {
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(address), "r"(value));
}

PEERSUM_DEVICE peersum_u64 ld_relaxed_sys_u64(const void* address) {
    peersum_u64 value;
    asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(address));
    return value;
}

PEERSUM_DEVICE void st_relaxed_sys_u64(void* address, peersum_u64 value) {
    asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(address), "l"(value));
}

// --- Ordering accesses at system scope.

PEERSUM_DEVICE peersum_u32 ld_acquire_sys_u32(const void* address) {
    peersum_u32 value;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
    return value;
}

PEERSUM_DEVICE peersum_u64 ld_acquire_sys_u64(const void* address) {
    peersum_u64 value;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(address) : "memory");
    return value;
}

PEERSUM_DEVICE void st_release_sys_u64(void* address, peersum_u64 value) {
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(address), "l"(value) : "memory");
}

PEERSUM_DEVICE void st_release_sys_u32(void* address, peersum_u32 value) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

// A relaxed store that follows a fence: the two together are a release. (On the CPU this store is a
// release by itself, because ThreadSanitizer does not model fences.)
PEERSUM_DEVICE void st_relaxed_sys_u64_behind_fence(void* address, peersum_u64 value) {
    st_relaxed_sys_u64(address, value);
}

PEERSUM_DEVICE void fence_acq_rel_gpu() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

PEERSUM_DEVICE void fence_acq_rel_sys() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }

// Returns the old value. Only threads of this device compete for the word.
PEERSUM_DEVICE peersum_u32 atom_cas_relaxed_gpu_u32(void* address, peersum_u32 expected,
                                                    peersum_u32 desired) {
    peersum_u32 old;
    asm volatile("atom.relaxed.gpu.global.cas.b32 %0, [%1], %2, %3;"
                 : "=r"(old)
                 : "l"(address), "r"(expected), "r"(desired)
                 : "memory");
    return old;
}

// --- Arithmetic. No .ftz, so subnormals are kept. A NaN result is the canonical NaN whatever the
// inputs.

PEERSUM_DEVICE float add_rn_f32(float a, float b) {
    float sum;
    asm("add.rn.f32 %0, %1, %2;" : "=f"(sum) : "f"(a), "f"(b));
    return sum;
}

PEERSUM_DEVICE float mul_rn_f32(float a, float b) {
    float product;
    asm("mul.rn.f32 %0, %1, %2;" : "=f"(product) : "f"(a), "f"(b));
    return product;
}

// a * b + c, rounded once.
PEERSUM_DEVICE float fma_rn_f32(float a, float b, float c) {
    float sum;
    asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(sum) : "f"(a), "f"(b), "f"(c));
    return sum;
}

PEERSUM_DEVICE float div_rn_f32(float a, float b) {
    float quotient;
    asm("div.rn.f32 %0, %1, %2;" : "=f"(quotient) : "f"(a), "f"(b));
    return quotient;
}

PEERSUM_DEVICE float sqrt_rn_f32(float value) {
    float root;
    asm("sqrt.rn.f32 %0, %1;" : "=f"(root) : "f"(value));
    return root;
}

PEERSUM_DEVICE float rcp_rn_f32(float value) {
    float reciprocal;
    asm("rcp.rn.f32 %0, %1;" : "=f"(reciprocal) : "f"(value));
    return reciprocal;
}

// Exact below 2^24.
PEERSUM_DEVICE float cvt_rn_f32_u32(peersum_u32 value) {
    float converted;
    asm("cvt.rn.f32.u32 %0, %1;" : "=f"(converted) : "r"(value));
    return converted;
}

PEERSUM_DEVICE float mov_b32_f32(peersum_u32 bits) {
    float value;
    asm("mov.b32 %0, %1;" : "=f"(value) : "r"(bits));
    return value;
}

PEERSUM_DEVICE peersum_u32 mov_b32_u32(float value) {
    peersum_u32 bits;
    asm("mov.b32 %0, %1;" : "=r"(bits) : "f"(value));
    return bits;
}

// The low half of `pair`, read as f16; the next function reads the high half.
PEERSUM_DEVICE float cvt_f32_f16_low(peersum_u32 pair) {
    float value;
    asm("{\n\t.reg .f16 low, high;\n\tmov.b32 {low, high}, %1;\n\tcvt.f32.f16 %0, low;\n\t}"
        : "=f"(value)
        : "r"(pair));
    return value;
}

PEERSUM_DEVICE float cvt_f32_f16_high(peersum_u32 pair) {
    float value;
    asm("{\n\t.reg .f16 low, high;\n\tmov.b32 {low, high}, %1;\n\tcvt.f32.f16 %0, high;\n\t}"
        : "=f"(value)
        : "r"(pair));
    return value;
}

PEERSUM_DEVICE peersum_u32 cvt_rn_f16x2_f32(float high, float low) {
    peersum_u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

PEERSUM_DEVICE peersum_u32 cvt_rn_bf16x2_f32(float high, float low) {
    peersum_u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

#ifdef PEERSUM_HAS_E4M3
PEERSUM_DEVICE peersum_u32 cvt_rn_satfinite_e4m3x2_f32(float high, float low) {
    unsigned short pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    return pair;
}
#endif

#endif
