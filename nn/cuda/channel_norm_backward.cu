// SPDX-License-Identifier: Apache-2.0
// Gradient of BatchNorm and GroupNorm. With s1 = sum dy and s2 = sum dy (x - mean) of a row, and M
// values in a set:
//   dx = rstd (gamma dy - A - xhat B),  A = sum gamma s1 / M,  B = sum gamma s2 rstd / M
// over the set's rows (both 0 where the statistics are fixed), and over a channel's rows
//   dbeta = sum s1,  dgamma = sum rstd s2.
// Shapes  dy, x, dx [B, C, S]; mean, rstd [sets], gamma, dgamma, dbeta [C] f32.
// Cost  dy, x read twice, dx written once; the sums in between are B C pairs.
// Determinism  bitwise: as forward.
#include "nn/cuda/channel_norm.h"
#include "nn/cuda/vectors.cuh"

namespace FOVEA_GPU {
namespace {

constexpr int64_t kWarpRow = 4096;

// sums[row] = {s1, s2}
template <typename T, int kWarps>
__global__ void __launch_bounds__(kThreads)
    row_gradient_sums_kernel(Global<float> sums, Global<const T> dy, Global<const T> x,
                             Global<const float> mean_in, ChannelRows shape, bool wide) {
  FOVEA_SHARED(float, room, 32);
  const int64_t row = team_row<kWarps>(), at = row * shape.size;
  if (row >= shape.rows()) return;
  const float mean = mean_in[shape.set_of(row)];
  float plain = 0.0f, centred = 0.0f;
  each_of_row<T, kWarps>(at, shape.size, wide, [&]<int N>(Width<N>, int64_t i) {
    float v[N], d[N];
    load_floats<N, T>(v, x + (at + i));
    load_floats<N, T>(d, dy + (at + i));
    FOVEA_UNROLL
    for (int e = 0; e < N; ++e) {
      plain += d[e];
      centred = fma(d[e], v[e] - mean, centred);
    }
  });
  plain = team_sum<kWarps>(plain, room);
  centred = team_sum<kWarps>(centred, room);
  if (team_thread<kWarps>() == 0) {
    sums[2 * row] = plain;
    sums[2 * row + 1] = centred;
  }
}

// A warp a set for means[set] = {A, B}, then a warp a channel for dgamma and dbeta.
__global__ void __launch_bounds__(kThreads, 2)
    gradient_sums_kernel(Global<float> means, Global<float> dgamma, Global<float> dbeta,
                         Global<const float> sums, Global<const float> rstd,
                         Global<const float> gamma, ChannelRows shape, bool fixed) {
  const int64_t sets = shape.sets(), job = team_row<1>();
  if (job >= sets + shape.channels) return;
  const int lane = team_thread<1>();
  float a = 0.0f, b = 0.0f;
  if (job < sets) {
    for (int64_t k = lane; k < shape.rows_of_set() && !fixed; k += 32) {
      const int64_t row = shape.row_of(job, k);
      const float weight = gamma[row % shape.channels];
      a += weight * sums[2 * row];
      b += weight * sums[2 * row + 1];
    }
    const float values = static_cast<float>(shape.rows_of_set() * shape.size);
    a = warp_sum(a) / values;
    b = warp_sum(b) * rstd[job] / values;
    if (lane > 0) return;
    means[2 * job] = a;
    means[2 * job + 1] = b;
  } else {
    const int64_t channel = job - sets;
    for (int64_t sample = lane; sample < shape.batch; sample += 32) {
      const int64_t row = sample * shape.channels + channel;
      a += sums[2 * row];
      b += sums[2 * row + 1] * rstd[shape.set_of(row)];
    }
    a = warp_sum(a);
    b = warp_sum(b);
    if (lane > 0) return;
    dbeta[channel] = a;
    dgamma[channel] = b;
  }
}

template <typename T, int kWarps>
__global__ void __launch_bounds__(kThreads)
    channel_norm_backward_kernel(Global<T> dx, Global<const T> dy, Global<const T> x,
                                 Global<const float> means, Global<const float> mean_in,
                                 Global<const float> rstd, Global<const float> gamma,
                                 ChannelRows shape, bool wide) {
  const int64_t row = team_row<kWarps>(), at = row * shape.size;
  if (row >= shape.rows()) return;
  const int64_t set = shape.set_of(row);
  const float mean = mean_in[set], r = rstd[set], of_dy = r * gamma[row % shape.channels],
              of_x = -r * r * means[2 * set + 1], shift = -r * means[2 * set];
  each_of_row<T, kWarps>(at, shape.size, wide, [&]<int N>(Width<N>, int64_t i) {
    float v[N], d[N];
    load_floats<N, T>(v, x + (at + i));
    load_floats<N, T>(d, dy + (at + i));
    FOVEA_UNROLL
    for (int e = 0; e < N; ++e) v[e] = fma(of_dy, d[e], fma(of_x, v[e] - mean, shift));
    store_floats<N, T>(dx + (at + i), v);
  });
}

}  // namespace

void channel_norm_backward(void* dx, float* dgamma, float* dbeta, float* sums, float* means,
                           const void* dy, const void* x, const float* mean, const float* rstd,
                           const float* gamma, const ChannelRows& shape, bool fixed,
                           Stream stream) {
  with_floating(shape.dtype, [&](auto type) {
    using T = decltype(type);
    const auto run = [&]<int kWarps>(Width<kWarps>) {
      const int64_t blocks = team_blocks<kWarps>(shape.rows());
      launch<row_gradient_sums_kernel<T, kWarps>>(
          blocks, kThreads, 0, stream, sums, static_cast<const T*>(dy), static_cast<const T*>(x),
          mean, shape, on_boundaries({dy, x}));
      launch<gradient_sums_kernel>(team_blocks<1>(shape.sets() + shape.channels), kThreads, 0,
                                   stream, means, dgamma, dbeta, sums, rstd, gamma, shape, fixed);
      if (dx == nullptr) return;
      launch<channel_norm_backward_kernel<T, kWarps>>(
          blocks, kThreads, 0, stream, static_cast<T*>(dx), static_cast<const T*>(dy),
          static_cast<const T*>(x), means, mean, rstd, gamma, shape, on_boundaries({dx, dy, x}));
    };
    shape.size <= kWarpRow ? run(Width<1>{}) : run(Width<kThreads / 32>{});
  });
}

}  // namespace FOVEA_GPU
