// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a kernel file (.cu) includes. It is compiled twice: by nvcc into fovea::cuda and, as C++,
// into fovea::interpreted. Kernels are CUDA C++ with these conventions, in which an interpreted
// kernel can be checked and a compiled one loses nothing:
//
//   - everything stands in namespace FOVEA_GPU
//   - pointer arguments are Global<T> (nvcc: T* __restrict__), or Overlapped<T> (nvcc: T*) where
//     another argument may point to the same memory; float v = x[i], never auto
//   - shared memory is FOVEA_SHARED(type, name, count); or dynamic_shared<T>(byte offset), a
//     Shared<T>
//   - barriers, warp operations, atomics, tensor cores: the functions of core/cuda/card.cuh, no
//   asm,
//     no __shfl, no <<<>>>
//   - a 16-byte access is Vec<T, N> with load<N>(p) and store<N>(p, v)
//   - a loop over an array in registers that nvcc must unroll begins with FOVEA_UNROLL
//   - launch<kernel>(grid, block, dynamic shared bytes, stream, arguments...)
//   - launch_together for a grid whose blocks wait for one another (grid_sync, core/cuda/group.cuh)

#include <cstdint>

#include "core/cuda/gpu.h"
#include "core/dtype.h"

#if defined(__CUDACC__)
#define FOVEA_GPU fovea::cuda
#define FOVEA_UNROLL _Pragma("unroll")
#define FOVEA_PRAGMA(words) _Pragma(#words)
#define FOVEA_UNROLL_BY(n) FOVEA_PRAGMA(unroll n)
#define FOVEA_NO_UNROLL _Pragma("unroll 1")
#include "core/cuda/card.cuh"
#else
#define FOVEA_GPU fovea::interpreted
#define FOVEA_UNROLL
#define FOVEA_UNROLL_BY(n)
#define FOVEA_NO_UNROLL
#include "core/interpreter/language.h"
#endif

#include "core/cuda/functions.cuh"
#include "core/cuda/group.cuh"
#include "core/cuda/reduce.cuh"
