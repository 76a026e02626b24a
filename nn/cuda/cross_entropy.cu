// SPDX-License-Identifier: Apache-2.0
// Softmax cross-entropy. With lse = log sum_j exp(l_j), targets t of mass m = sum_j t_j (a label:
// 1), smoothing e and z-loss z, a row costs
//   (1 - e) (m lse - sum_j t_j l_j) + e (lse - mean_j l_j) + z lse^2   (+ sum_j t_j log t_j:
//   divergence)
// and, g being the loss's gradient over the rows that count,
//   dl_j = g (w exp(l_j - lse) - e / V - (1 - e) t_j),   w = (1 - e) m + e + 2 z lse.
// Shapes  l [R, V], labels [R] or t [R, V] f32.   Saved  lse, w [R] f32; never probabilities.
// Cost  forward: l (and t) read once, with a running maximum; backward: l (and t) read, dl written
// once. A warp a row up to 1024 classes, else a block a row. Rows of any V: their first and last
// elements go one by one, the rest 16 bytes an access.
// Determinism  bitwise: a thread's elements depend on V and the row, sums have a fixed order.
#include "nn/cuda/loss.h"
#include "nn/cuda/vectors.cuh"

namespace FOVEA_GPU {
namespace {

constexpr int64_t kWarpRow = 1024;

template <typename T, int kWarps>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_forward_kernel(Global<float> lse_out, Global<float> weight_out,
                                 Global<float> row_loss, Global<const T> logits,
                                 Global<const int64_t> labels, Global<const float> soft,
                                 int64_t rows, int64_t classes, int64_t ignore, float smoothing,
                                 float z_loss, bool divergence, bool wide) {
  FOVEA_SHARED(float, room, 32);
  const int64_t row = team_row<kWarps>(), at = row * classes;
  if (row >= rows) return;
  const bool first = team_thread<kWarps>() == 0;
  const Global<const T> l = logits + at;
  int64_t label = 0;
  if (labels != nullptr) {
    label = labels[row];
    if (label == ignore) {  // for the whole team
      if (first) lse_out[row] = weight_out[row] = row_loss[row] = 0.0f;
      return;
    }
  }
  // Of this thread's elements: the largest, sum exp(l - largest), and the sums the loss needs.
  float top = -INFINITY, mass = 0.0f, total = 0.0f, hit = 0.0f, t_mass = 0.0f, t_log = 0.0f;
  each_of_row<T, kWarps>(at, classes, wide, [&]<int N>(Width<N>, int64_t i) {
    float v[N];
    load_floats<N, T>(v, l + i);
    float high = top;
    FOVEA_UNROLL
    for (int e = 0; e < N; ++e) high = max(high, v[e]);
    const float base = high == -INFINITY ? 0.0f : high;
    mass *= exp_fast(top - base);
    FOVEA_UNROLL
    for (int e = 0; e < N; ++e) mass += exp_fast(v[e] - base);
    top = high;
    if (smoothing > 0.0f) {
      FOVEA_UNROLL
      for (int e = 0; e < N; ++e) total += v[e];
    }
    if (soft != nullptr) {
      float t[N];
      load_floats<N, float>(t, soft + (at + i));
      FOVEA_UNROLL
      for (int e = 0; e < N; ++e) {
        t_mass += t[e];
        hit = fma(t[e], v[e], hit);
        if (divergence && t[e] > 0.0f) t_log += t[e] * logf(t[e]);
      }
    }
  });
  const float high = team_max<kWarps>(top, room), base = high == -INFINITY ? 0.0f : high;
  const float lse = base + logf(team_sum<kWarps>(mass * exp_fast(top - base), room));
  if (smoothing > 0.0f) total = team_sum<kWarps>(total, room);
  if (soft != nullptr) {
    t_mass = team_sum<kWarps>(t_mass, room);
    hit = team_sum<kWarps>(hit, room);
    t_log = team_sum<kWarps>(t_log, room);
  }
  if (!first) return;
  if (labels != nullptr) {
    t_mass = 1.0f;
    hit = static_cast<float>(static_cast<T>(l[label]));
  }
  float loss = (1.0f - smoothing) * (lse * t_mass - hit) + z_loss * lse * lse + t_log;
  if (smoothing > 0.0f) loss += smoothing * (lse - total / static_cast<float>(classes));
  lse_out[row] = lse;
  weight_out[row] = (1.0f - smoothing) * t_mass + smoothing + 2.0f * z_loss * lse;
  row_loss[row] = loss;
}

template <typename T, int kWarps>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_backward_kernel(Global<T> dlogits, Global<const float> dloss,
                                  Global<const float> lse_in, Global<const float> weight_in,
                                  Global<const T> logits, Global<const int64_t> labels,
                                  Global<const float> soft, int64_t rows, int64_t classes,
                                  int64_t ignore, float smoothing, Global<const float> scored,
                                  bool wide) {
  const int64_t row = team_row<kWarps>(), at = row * classes;
  if (row >= rows) return;
  int64_t label = -1;
  const float count = scored[0];
  float g = dloss[0] / count;
  if (labels != nullptr) {
    label = labels[row];
    if (label == ignore) g = 0.0f;
  }
  const bool counts = labels == nullptr || label != ignore;
  const float lse = lse_in[row], scale = g * weight_in[row],
              shift = -g * smoothing / static_cast<float>(classes), share = g * (1.0f - smoothing);
  each_of_row<T, kWarps>(at, classes, wide, [&]<int N>(Width<N>, int64_t i) {
    float v[N], t[N];
    load_floats<N, T>(v, logits + (at + i));
    if (soft != nullptr) {
      load_floats<N, float>(t, soft + (at + i));
    } else {
      const auto hit = static_cast<int>(label - i);  // where in this vector, if it is here
      FOVEA_UNROLL
      for (int e = 0; e < N; ++e) t[e] = e == hit ? 1.0f : 0.0f;
    }
    FOVEA_UNROLL
    for (int e = 0; e < N; ++e)
      v[e] = counts ? scale * exp_fast(v[e] - lse) + shift - share * t[e] : 0.0f;
    store_floats<N, T>(dlogits + (at + i), v);
  });
}

constexpr int kMeanThreads = 1024;

__global__ void __launch_bounds__(kMeanThreads)
    mean_kernel(Global<float> mean, Global<const float> x, int64_t n, Global<const float> scored,
                float divisor) {
  FOVEA_SHARED(float, room, 32);
  if (scored != nullptr) divisor = scored[0];
  float total = 0.0f;
  for (int64_t i = threadIdx.x; i < n; i += kMeanThreads) total += x[i];
  total = block_sum(total, room);
  if (threadIdx.x == 0) mean[0] = divisor > 0.0f ? total / divisor : 0.0f;
}

bool in_warps(const CrossEntropyCall& c) { return c.classes <= kWarpRow; }

}  // namespace

void mean_of(float* mean, const float* x, int64_t n, const float* scored, float divisor,
             Stream stream) {
  launch<mean_kernel>(1, kMeanThreads, 0, stream, mean, x, n, scored, divisor);
}

void cross_entropy_forward(float* loss, float* lse, float* weight, float* row_loss,
                           const CrossEntropyCall& c, Stream stream) {
  const bool wide = on_boundaries({c.logits, c.soft});
  const auto run = [&]<int kWarps>(Width<kWarps>) {
    with_floating(c.dtype, [&](auto type) {
      using T = decltype(type);
      launch<cross_entropy_forward_kernel<T, kWarps>>(
          team_blocks<kWarps>(c.rows), kThreads, 0, stream, lse, weight, row_loss,
          static_cast<const T*>(c.logits), c.labels, c.soft, c.rows, c.classes, c.ignore,
          c.smoothing, c.z_loss, c.divergence, wide);
    });
  };
  if (c.rows > 0) in_warps(c) ? run(Width<1>{}) : run(Width<kThreads / 32>{});
  mean_of(loss, row_loss, c.rows, c.scored, 0.0f, stream);
}

void cross_entropy_backward(void* dlogits, const float* dloss, const float* lse,
                            const float* weight, const CrossEntropyCall& c, Stream stream) {
  if (c.rows == 0) return;
  const bool wide = on_boundaries({c.logits, c.soft, dlogits});
  const auto run = [&]<int kWarps>(Width<kWarps>) {
    with_floating(c.dtype, [&](auto type) {
      using T = decltype(type);
      launch<cross_entropy_backward_kernel<T, kWarps>>(
          team_blocks<kWarps>(c.rows), kThreads, 0, stream, static_cast<T*>(dlogits), dloss, lse,
          weight, static_cast<const T*>(c.logits), c.labels, c.soft, c.rows, c.classes, c.ignore,
          c.smoothing, c.scored, wide);
    });
  };
  in_warps(c) ? run(Width<1>{}) : run(Width<kThreads / 32>{});
}

}  // namespace FOVEA_GPU
