// SPDX-License-Identifier: Apache-2.0
// Means over elements of
//   squared error         (x - t)^2                                  d/dx = 2 (x - t)
//   binary cross-entropy  max(x, 0) - x t + log(1 + exp(-|x|))       d/dx = sigmoid(x) - t
// Shapes  x any, of f32 or bf16; t the same shape, f32.
// Cost  forward: x, t read once; backward: x, t read, dx written once.
// Determinism  bitwise: the number of blocks, and so of partial sums, depends on the count alone.
#include "nn/cuda/loss.h"
#include "nn/cuda/vectors.cuh"

namespace FOVEA_GPU {
namespace {

__device__ inline float value(float x, float t, PointLoss kind) {
  if (kind == PointLoss::squared_error) return (x - t) * (x - t);
  return (x > 0.0f ? x : 0.0f) - x * t + log1pf(expf(-fabsf(x)));
}
__device__ inline float slope(float x, float t, PointLoss kind) {
  if (kind == PointLoss::squared_error) return 2.0f * (x - t);
  return 1.0f / (1.0f + expf(-x)) - t;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    point_loss_forward_kernel(Global<float> partial, Global<const T> x, Global<const float> target,
                              int64_t count, PointLoss kind, bool wide) {
  FOVEA_SHARED(float, room, 32);
  constexpr int N = 8;
  const int64_t step = int64_t{gridDim.x} * kThreads * N;
  float total = 0.0f;
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * N; i < count; i += step) {
    const bool whole = wide && i + N <= count;
    float v[N], t[N];
    load_some<N, T>(v, x + i, count - i, whole);
    load_some<N, float>(t, target + i, count - i, whole);
    FOVEA_UNROLL
    for (int e = 0; e < N; ++e) {
      if (i + e < count) total += value(v[e], t[e], kind);
    }
  }
  total = block_sum(total, room);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    point_loss_backward_kernel(Global<T> dx, Global<const float> dloss, Global<const T> x,
                               Global<const float> target, int64_t count, PointLoss kind,
                               bool wide) {
  const float g = dloss[0] / static_cast<float>(count);
  each_chunk<T, 2>(
      count, wide,
      [&]<int N>(float(&v)[2][N], int64_t i) {
        load_floats<N, T>(v[0], x + i);
        load_floats<N, float>(v[1], target + i);
      },
      [&]<int N>(float(&v)[2][N], int64_t i) {
        FOVEA_UNROLL
        for (int e = 0; e < N; ++e) v[0][e] = g * slope(v[0][e], v[1][e], kind);
        store_floats<N, T>(dx + i, v[0]);
      });
}

}  // namespace

void point_loss_forward(float* loss, float* partial, const void* x, Dtype dtype,
                        const float* target, int64_t count, PointLoss kind, Stream stream) {
  const int64_t parts = point_loss_parts(count);
  with_floating(dtype, [&](auto type) {
    using T = decltype(type);
    launch<point_loss_forward_kernel<T>>(parts, kThreads, 0, stream, partial,
                                         static_cast<const T*>(x), target, count, kind,
                                         on_boundaries({x, target}));
  });
  mean_of(loss, partial, parts, nullptr, static_cast<float>(count), stream);
}

void point_loss_backward(void* dx, const float* dloss, const void* x, Dtype dtype,
                         const float* target, int64_t count, PointLoss kind, Stream stream) {
  with_floating(dtype, [&](auto type) {
    using T = decltype(type);
    launch<point_loss_backward_kernel<T>>(
        ceil_div(count, kBlockElements<T, 2>), kThreads, 0, stream, static_cast<T*>(dx), dloss,
        static_cast<const T*>(x), target, count, kind, on_boundaries({dx, x, target}));
  });
}

}  // namespace FOVEA_GPU
