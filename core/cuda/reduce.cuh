// SPDX-License-Identifier: Apache-2.0
#pragma once
// Sums and maxima over a warp and over a block, for kernels; and the shape of a grid.

#include "core/cuda/kernel.cuh"

namespace FOVEA_GPU {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Every lane gets the result; the order of the additions is the same in each.
__device__ inline float warp_sum(float x) { return Lanes<32>::sum(x); }
__device__ inline float warp_max(float x) { return Lanes<32>::max(x); }

// Over all threads of the block (a multiple of 32 of them); every thread gets the result.
// `room` holds 32 floats, and may be used again after the next barrier.
__device__ inline float block_sum(float x, Shared<float> room) {
  x = warp_sum(x);
  const int warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32,
            lane = static_cast<int>(threadIdx.x) % 32;
  if (lane == 0) room[warp] = x;
  sync_block();
  float part = 0.0f;
  if (lane < warps) part = room[lane];
  sync_block();
  return warp_sum(part);
}
__device__ inline float block_max(float x, Shared<float> room) {
  x = warp_max(x);
  const int warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32,
            lane = static_cast<int>(threadIdx.x) % 32;
  if (lane == 0) room[warp] = x;
  sync_block();
  float part = -INFINITY;
  if (lane < warps) part = room[lane];
  sync_block();
  return warp_max(part);
}

// Sums of several numbers at once, as block_sum. `room` holds 32 N floats, and may be used again
// after the next barrier but one: two rooms in turns need no barrier of their own.
template <int N>
__device__ inline void block_sums(float (&x)[N], Shared<float> room) {
  const int warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32,
            lane = static_cast<int>(threadIdx.x) % 32;
  FOVEA_UNROLL
  for (int i = 0; i < N; ++i) {
    x[i] = warp_sum(x[i]);
    if (lane == 0) room[i * 32 + warp] = x[i];
  }
  sync_block();
  FOVEA_UNROLL
  for (int i = 0; i < N; ++i) {
    if (warps <= 4) {
      float total = 0.0f;
      for (int w = 0; w < warps; ++w) total += room[i * 32 + w];
      x[i] = total;
    } else {
      float part = 0.0f;
      if (lane < warps) part = room[i * 32 + lane];
      x[i] = warp_sum(part);
    }
  }
}

}  // namespace FOVEA_GPU
