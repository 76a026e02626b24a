// SPDX-License-Identifier: Apache-2.0
// Bytes an element: 36 to add (both parts in and out, x in), 20 for the total; the limit is DRAM.
// Determinism: integers, each element by one thread.
#include "core/cuda/exact_sum.h"
#include "core/cuda/kernel.cuh"

namespace FOVEA_GPU {
namespace {

using fovea::FixedPoint;

constexpr int kThreads = 256;
constexpr int kEach = 4;  // elements of a thread

__global__ void __launch_bounds__(kThreads)
    exact_add_kernel(Global<int64_t> parts, Global<int32_t> bad, Global<const float> x, int64_t n) {
  const int64_t first = int64_t{blockIdx.x} * kThreads * kEach + threadIdx.x;
  FOVEA_UNROLL
  for (int k = 0; k < kEach; ++k) {
    const int64_t i = first + k * kThreads;
    if (i >= n) continue;
    const float value = x[i];
    if (FixedPoint::holds(value)) {
      const FixedPoint addend = FixedPoint::of(value);
      parts[i] += addend.high;
      parts[n + i] += addend.low;
    } else {
      atomic_max(bad + 0, 1);
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    exact_total_kernel(Global<float> out, Global<const int64_t> parts, int64_t n) {
  const int64_t first = int64_t{blockIdx.x} * kThreads * kEach + threadIdx.x;
  FOVEA_UNROLL
  for (int k = 0; k < kEach; ++k) {
    const int64_t i = first + k * kThreads;
    if (i >= n) continue;
    const FixedPoint sum{parts[i], parts[n + i]};
    out[i] = sum.value();
  }
}

}  // namespace

void exact_add(int64_t* parts, int32_t* bad, const float* x, int64_t n, Stream stream) {
  if (n == 0) return;
  launch<exact_add_kernel>(ceil_div(n, kThreads * kEach), kThreads, 0, stream, parts, bad, x, n);
}

void exact_total(float* out, const int64_t* parts, int64_t n, Stream stream) {
  if (n == 0) return;
  launch<exact_total_kernel>(ceil_div(n, kThreads * kEach), kThreads, 0, stream, out, parts, n);
}

}  // namespace FOVEA_GPU
