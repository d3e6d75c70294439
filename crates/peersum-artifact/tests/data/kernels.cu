// What the test cubins are compiled from: the entry points of one module, with next to nothing in
// them.
#define JOIN_(a, b, c) a##b##c
#define JOIN(a, b, c) JOIN_(a, b, c)

#if defined(USE_FAMILY_FEATURE)
#define FEATURE asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory")
#else
#define FEATURE
#endif

extern "C" __device__ __noinline__ float triple(float x) { return x * 3.0f; }

extern "C" __global__ void JOIN(peersum_, FAMILY, _one_shot_bf16_ws8)(float* out) {
    FEATURE;
    out[0] = triple(out[1]);
}
#if defined(PUSH)
extern "C" __global__ void JOIN(peersum_, FAMILY, _reduce_scatter_bf16_ws8)(float* out) {
    FEATURE;
    out[0] = out[2];
}
#endif
extern "C" __global__ void JOIN(peersum_, FAMILY, _two_shot_bf16_ws8)(float* out) {
    FEATURE;
    out[0] = out[1];
}
