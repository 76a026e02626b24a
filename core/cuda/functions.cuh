// SPDX-License-Identifier: Apache-2.0
#pragma once
// Functions that cost one instruction of the special unit and a few others. Comes with
// core/cuda/kernel.cuh.

namespace FOVEA_GPU {

constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// exp(x) within 2^-22 (1 + |x|) of its value.
__device__ inline float exp_fast(float x) { return exp2_fast(kLog2e * x); }
// 1 - 2 / (1 + exp(2x)): within 2e-7 of tanh.
__device__ inline float tanh_fast(float x) {
  return 1.0f - 2.0f * reciprocal_fast(1.0f + exp2_fast(2.0f * kLog2e * x));
}

}  // namespace FOVEA_GPU
