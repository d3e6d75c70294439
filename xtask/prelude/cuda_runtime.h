// Stands in for the `cuda_runtime.h` that nvcc includes ahead of every source file.
//
// The kernels use no CUDA header, but nvcc's own implicit one costs more than half of a module's
// compile time. This file is first on the include path. It defines the keywords that the kernels
// use, as the stock headers define them, and nothing else. The cubins are the same byte for byte:
// `cargo xtask ci` compares them. `cargo xtask precompile --stock-headers` does without this file.
#pragma once

#define __host__ __attribute__((host))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#define __global__ __attribute__((global))
#define __constant__ __attribute__((constant))
#define __grid_constant__ __attribute__((grid_constant))
#define __forceinline__ __inline__ __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...) __attribute__((launch_bounds(__VA_ARGS__)))
