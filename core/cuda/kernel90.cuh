// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a kernel file for Hopper (*_sm90.cu) includes: core/cuda/kernel.cuh, and barriers of
// transactions, copies of tiles (TMA) and products of warpgroups (wgmma). nvcc compiles such files
// for sm_90a alone. What each function means is said in core/interpreter/hopper.h;
// core/cuda/gemm_sm90_test.cu is the living example.
//
//   - tiles with a swizzle lie in dynamic_shared, whose base alone is aligned to 1024 bytes
//   - a block is made of warpgroups: 128 threads, the first a multiple of 128
//   - shared memory that threads wrote and load_tile, store_tile or a product touches next:
//     fence_async() by each writer, then a barrier

#include "core/cuda/kernel.cuh"
#include "core/cuda/sm90.h"

namespace FOVEA_GPU {

// A barrier of transactions (mbarrier): 8 bytes of shared memory, FOVEA_SHARED(Barrier, full, 4).
struct Barrier {
  uint64_t word;
};

// Which index of an operand of a product lies contiguous in shared memory.
enum class Major { k, mn };

// How far an operand moves for the next 16 of k: along the rows of a K-major tile, or to the next
// two groups of 8 rows of an MN-major one.
constexpr int k16_bytes(Major major, Swizzle swizzle = Swizzle::b128) {
  return major == Major::k ? 32 : 16 * span_bytes(swizzle);
}

}  // namespace FOVEA_GPU

#if defined(__CUDACC__)
#include "core/cuda/hopper.cuh"
#else
#include "core/interpreter/hopper.h"
#endif

namespace FOVEA_GPU {

// A place in a ring of stages, each with a barrier `full` and one `empty`: a consumer waits for
// full[stage] with `phase`, the producer for empty[stage] with phase ^ 1, which passes at once
// while the ring is fresh.
struct RingPlace {
  int stage = 0;
  unsigned phase = 0;
  __device__ void next(int stages) {
    if (++stage == stages) {
      stage = 0;
      phase ^= 1u;
    }
  }
};

}  // namespace FOVEA_GPU
