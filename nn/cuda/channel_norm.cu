// SPDX-License-Identifier: Apache-2.0
// BatchNorm (1502.03167) and GroupNorm (1803.08494), forward:  y = gamma rstd (x - mean) + beta,
// with the mean and the variance of the set that x's row (one channel of one sample) belongs to.
// Shapes  x, y [B, C, S]; mean, variance, rstd [sets], gamma, beta [C] f32.   Saved  x, mean, rstd.
// Cost  x read twice (the second pass over a row finds it in the caches), y written once. A warp a
// row up to 4096 values, else a block a row.
// Determinism  bitwise: sums within a row have a fixed order, rows of a set are added by one warp.
// Rows have a mean and squares about it each; sets combine them (Chan et al. 1979), so that a large
// mean does not cost the variance its digits.
#include "nn/cuda/channel_norm.h"
#include "nn/cuda/vectors.cuh"

namespace FOVEA_GPU {
namespace {

constexpr int64_t kWarpRow = 4096;

// moments[row] = {mean, sum (x - mean)^2}
template <typename T, int kWarps>
__global__ void __launch_bounds__(kThreads)
    row_moments_kernel(Global<float> moments, Global<const T> x, int64_t rows, int64_t size,
                       bool wide) {
  FOVEA_SHARED(float, room, 32);
  const int64_t row = team_row<kWarps>(), at = row * size;
  if (row >= rows) return;
  float total = 0.0f, squares = 0.0f;
  each_of_row<T, kWarps>(at, size, wide, [&]<int N>(Width<N>, int64_t i) {
    float v[N];
    load_floats<N, T>(v, x + (at + i));
    FOVEA_UNROLL
    for (int e = 0; e < N; ++e) total += v[e];
  });
  const float mean = team_sum<kWarps>(total, room) / static_cast<float>(size);
  each_of_row<T, kWarps>(at, size, wide, [&]<int N>(Width<N>, int64_t i) {
    float v[N];
    load_floats<N, T>(v, x + (at + i));
    FOVEA_UNROLL
    for (int e = 0; e < N; ++e) squares = fma(v[e] - mean, v[e] - mean, squares);
  });
  squares = team_sum<kWarps>(squares, room);
  if (team_thread<kWarps>() == 0) {
    moments[2 * row] = mean;
    moments[2 * row + 1] = squares;
  }
}

// A warp a set.
__global__ void __launch_bounds__(kThreads)
    set_statistics_kernel(Global<float> mean_out, Global<float> variance_out,
                          Global<float> rstd_out, Global<const float> moments, ChannelRows shape,
                          float eps) {
  const int64_t set = team_row<1>(), rows = shape.rows_of_set();
  if (set >= shape.sets()) return;
  const int lane = team_thread<1>();
  float total = 0.0f, squares = 0.0f;
  for (int64_t k = lane; k < rows; k += 32) total += moments[2 * shape.row_of(set, k)];
  const float mean = warp_sum(total) / static_cast<float>(rows);
  const float size = static_cast<float>(shape.size);
  for (int64_t k = lane; k < rows; k += 32) {
    const int64_t row = shape.row_of(set, k);
    const float d = moments[2 * row] - mean;
    squares += moments[2 * row + 1] + size * d * d;
  }
  const float variance = warp_sum(squares) / (static_cast<float>(rows) * size);
  if (lane > 0) return;
  mean_out[set] = mean;
  variance_out[set] = variance;
  rstd_out[set] = 1.0f / sqrtf(variance + eps);
}

__global__ void __launch_bounds__(kThreads)
    inverse_deviation_kernel(Global<float> rstd, Global<const float> variance, int64_t n,
                             float eps) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < n) rstd[i] = 1.0f / sqrtf(variance[i] + eps);
}

template <typename T, int kWarps>
__global__ void __launch_bounds__(kThreads)
    channel_norm_forward_kernel(Global<T> y, Global<const T> x, Global<const float> mean_in,
                                Global<const float> rstd, Global<const float> gamma,
                                Global<const float> beta, ChannelRows shape, bool wide) {
  const int64_t row = team_row<kWarps>(), at = row * shape.size;
  if (row >= shape.rows()) return;
  const int64_t set = shape.set_of(row), channel = row % shape.channels;
  const float mean = mean_in[set], scale = gamma[channel] * rstd[set], shift = beta[channel];
  each_of_row<T, kWarps>(at, shape.size, wide, [&]<int N>(Width<N>, int64_t i) {
    float v[N];
    load_floats<N, T>(v, x + (at + i));
    FOVEA_UNROLL
    for (int e = 0; e < N; ++e) v[e] = fma(scale, v[e] - mean, shift);
    store_floats<N, T>(y + (at + i), v);
  });
}

__global__ void __launch_bounds__(kThreads)
    move_statistics_kernel(Global<float> running, Global<const float> found, int64_t n,
                           float momentum, float factor) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= n) return;
  const float before = running[i];
  running[i] = before + momentum * (found[i] * factor - before);
}

}  // namespace

void channel_statistics(float* mean, float* variance, float* rstd, float* moments, const void* x,
                        const ChannelRows& shape, float eps, Stream stream) {
  const int64_t rows = shape.rows();
  with_floating(shape.dtype, [&](auto type) {
    using T = decltype(type);
    const auto run = [&]<int kWarps>(Width<kWarps>) {
      launch<row_moments_kernel<T, kWarps>>(team_blocks<kWarps>(rows), kThreads, 0, stream, moments,
                                            static_cast<const T*>(x), rows, shape.size,
                                            on_boundaries({x}));
    };
    shape.size <= kWarpRow ? run(Width<1>{}) : run(Width<kThreads / 32>{});
  });
  launch<set_statistics_kernel>(team_blocks<1>(shape.sets()), kThreads, 0, stream, mean, variance,
                                rstd, moments, shape, eps);
}

void inverse_deviation(float* rstd, const float* variance, int64_t n, float eps, Stream stream) {
  launch<inverse_deviation_kernel>(ceil_div(n, kThreads), kThreads, 0, stream, rstd, variance, n,
                                   eps);
}

void channel_norm_forward(void* y, const void* x, const float* mean, const float* rstd,
                          const float* gamma, const float* beta, const ChannelRows& shape,
                          Stream stream) {
  with_floating(shape.dtype, [&](auto type) {
    using T = decltype(type);
    const auto run = [&]<int kWarps>(Width<kWarps>) {
      launch<channel_norm_forward_kernel<T, kWarps>>(
          team_blocks<kWarps>(shape.rows()), kThreads, 0, stream, static_cast<T*>(y),
          static_cast<const T*>(x), mean, rstd, gamma, beta, shape, on_boundaries({y, x}));
    };
    shape.size <= kWarpRow ? run(Width<1>{}) : run(Width<kThreads / 32>{});
  });
}

void move_statistics(float* running, const float* found, int64_t n, float momentum, float factor,
                     Stream stream) {
  launch<move_statistics_kernel>(ceil_div(n, kThreads), kThreads, 0, stream, running, found, n,
                                 momentum, factor);
}

}  // namespace FOVEA_GPU
