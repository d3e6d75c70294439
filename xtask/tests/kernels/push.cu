#include "names.cuh"

extern "C" __global__ void __launch_bounds__(512) PEERSUM_ENTRY(push, one_shot)(float *out) {
    wait_for_predecessor();
    out[0] += PEERSUM_WORLD_SIZE;
}

extern "C" __global__ void __launch_bounds__(128) PEERSUM_ENTRY(push, reduce_scatter)(float *out) {
    out[2] += PEERSUM_WORLD_SIZE;
}

extern "C" __global__ void __launch_bounds__(256) PEERSUM_ENTRY(push, two_shot)(float *out) {
    out[1] += PEERSUM_WORLD_SIZE;
}
