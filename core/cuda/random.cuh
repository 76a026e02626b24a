// SPDX-License-Identifier: Apache-2.0
#pragma once
// core/rng.h in kernels.

#include "core/cuda/kernel.cuh"
#include "core/rng.h"

namespace FOVEA_GPU {

// The stream at its step, which may lie in device memory.
__device__ inline RngKey at_step(RngKey rng) {
  if (rng.step_at != nullptr) {
    const Global<const uint64_t> at = rng.step_at;
    const uint64_t step = at[0];
    rng.high = mix64(rng.name ^ step);
  }
  return rng;
}

}  // namespace FOVEA_GPU
