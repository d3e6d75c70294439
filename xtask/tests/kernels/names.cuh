// Small kernels with the names and the form of the real ones, which compile 20 times as fast.
#pragma once

#define PEERSUM_JOIN(family, algorithm, dtype, world_size) \
    peersum_##family##_##algorithm##_##dtype##_ws##world_size
#define PEERSUM_EXPAND(family, algorithm, dtype, world_size) \
    PEERSUM_JOIN(family, algorithm, dtype, world_size)
#define PEERSUM_ENTRY(family, algorithm) \
    PEERSUM_EXPAND(family, algorithm, PEERSUM_DTYPE, PEERSUM_WORLD_SIZE)

static __device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
