// SPDX-License-Identifier: Apache-2.0
#include "train/bench/kernels.h"

#include "core/cpu/simd.h"

namespace FOVEA_SIMD {

constexpr int kChains = 12;

float fma_rounds(int64_t rounds) {
  Vec acc[kChains];
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) acc[i] = splat(static_cast<float>(i));
  const Vec factor = splat(0.999f), term = splat(0.001f);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) acc[i] = fma(acc[i], factor, term);
  }
  Vec total = zero();
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) total = total + acc[i];
  return sum(total);
}

int64_t fma_flops_a_round() { return 2 * kChains * kLanes; }

void triad(float* a, const float* b, const float* c, int64_t n) {
  const Vec s = splat(3.0f);
  int64_t i = 0;
  for (; i < n && reinterpret_cast<uintptr_t>(a + i) % 64 != 0; ++i) a[i] = b[i] + 3.0f * c[i];
  for (; i + kLanes <= n; i += kLanes) stream(a + i, fma(s, load(c + i), load(b + i)));
  for (; i < n; ++i) a[i] = b[i] + 3.0f * c[i];
}

}  // namespace FOVEA_SIMD
