// SPDX-License-Identifier: Apache-2.0
#include "core/cpu/reduce.h"

#include "core/cpu/simd.h"

namespace FOVEA_SIMD {
namespace {

template <int kVectors, typename T>
FOVEA_INLINE void panel(float* to, const T* x, int64_t stride, int64_t rows, Mask k, bool tail) {
  Vec total[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) total[v] = zero();
  for (int64_t r = 0; r < rows; ++r, x += stride) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v)
      total[v] = total[v] + (tail ? load(x + v * kLanes, k) : load(x + v * kLanes));
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    if (tail)
      store(to + v * kLanes, total[v], k);
    else
      store(to + v * kLanes, total[v]);
  }
}

template <typename T>
void sums_of(float* to, const T* x, int64_t stride, int64_t rows, int64_t columns) {
  int64_t c = 0;
  for (; c + 8 * kLanes <= columns; c += 8 * kLanes)
    panel<8>(to + c, x + c, stride, rows, first_lanes(kLanes), false);
  for (; c < columns; c += kLanes)
    panel<1>(to + c, x + c, stride, rows, first_lanes(columns - c), columns - c < kLanes);
}

}  // namespace

void column_sums(float* to, const void* x, Dtype dtype, int64_t stride, int64_t rows,
                 int64_t columns) {
  if (dtype == Dtype::bf16)
    sums_of(to, static_cast<const bf16*>(x), stride, rows, columns);
  else
    sums_of(to, static_cast<const float*>(x), stride, rows, columns);
}

}  // namespace FOVEA_SIMD
