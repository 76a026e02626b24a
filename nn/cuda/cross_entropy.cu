// SPDX-License-Identifier: Apache-2.0
// Softmax cross-entropy, with its gradient in the same pass. With lse = log sum_j exp(l_j), targets
// t of mass m = sum_j t_j (a label: 1), smoothing e and z-loss z, a row costs
//   (1 - e) (m lse - sum_j t_j l_j) + e (lse - mean_j l_j) + z lse^2   (+ sum_j t_j log t_j:
//   divergence)
// and, g being the loss's gradient over the rows that count,
//   dl_j = g (w exp(l_j - lse) - e / V - (1 - e) t_j),   w = (1 - e) m + e + 2 z lse.
// Shapes  l [R, V], labels [R] or t [R, V] f32, dl [R, V] (may be l itself).   Saved  nothing: dl
// is what backward gives. Probabilities are never stored. Cost  l (and t) read once into shared
// memory, by copies that are all under way at once; dl written from there: 2 s R V bytes for
// elements of s bytes (GPT-2 124M, batch 32 x 1024, bf16: 6.6 GB a step, where a second reading of
// l makes it 9.9), s R V without a gradient. What of a row passes a block's shared memory (bf16 on
// Hopper: 115,000 elements) is read where it is wanted. Two exponentials an element. A warp a row
// up to 1024 classes, else a block a row. Rows of any V: their first and last elements go one by
// one, the rest 16 bytes an access. Determinism  bitwise: a thread's elements depend on V and the
// row, sums have a fixed order.
#include "nn/cuda/loss.h"
#include "nn/cuda/vectors.cuh"

namespace FOVEA_GPU {
namespace {

constexpr int64_t kWarpRow = 1024;
// Of a long row: two blocks an SM, where their rows fit, leave 64 registers a thread.
constexpr int kRowWarps = 16;
constexpr int64_t kRoom = 1024;  // bytes for sums, up to where dynamic shared memory can begin

// Elements in shared memory from a row to the next.
template <typename T>
__host__ __device__ constexpr int64_t pitch(int64_t kept) {
  return (kept + 2 * kWide<T> - 1) / kWide<T> * kWide<T>;
}

// kWarps of a row, 1 for a warp of the block's kThreads / 32. Of each row the first `kept` elements
// stay in dynamic shared memory, as far from a 16-byte boundary as in device memory; a thread reads
// there only what it has brought. dlogits is null where no gradient is wanted.
template <typename T, int kWarps>
__global__ void __launch_bounds__(kWarps == 1 ? kThreads : kWarps * 32, 2)
    cross_entropy_kernel(Global<float> row_loss, Overlapped<T> dlogits, Overlapped<const T> logits,
                         Global<const int64_t> labels, Global<const float> soft,
                         Global<const float> dloss, Global<const float> scored, int64_t rows,
                         int64_t classes, int64_t kept, int64_t ignore, float smoothing,
                         float z_loss, bool divergence, bool wide) {
  FOVEA_SHARED(float, room, 32);
  const int64_t row = team_row<kWarps>(), at = row * classes;
  if (row >= rows) return;
  const bool first = team_thread<kWarps>() == 0;
  const Overlapped<const T> l = logits + at;
  int64_t label = -1;
  if (labels != nullptr) {
    label = labels[row];
    if (label == ignore) {  // for the whole team
      if (first) row_loss[row] = 0.0f;
      if (dlogits != nullptr) {
        each_of_row<T, kWarps>(at, classes, wide, [&]<int N>(Width<N>, int64_t i) {
          const float zero[N] = {};
          store_floats<N, T>(dlogits + (at + i), zero);
        });
      }
      return;
    }
  }
  const auto before = static_cast<int>(wide ? at % kWide<T> : 0);
  const auto team = static_cast<int64_t>(kWarps == 1 ? threadIdx.x / 32 : 0);
  const Shared<T> keep = dynamic_shared<T>() + (team * pitch<T>(kept) + before);
  each_of_row<T, kWarps>(at, kept, wide, [&]<int N>(Width<N>, int64_t i) {
    if constexpr (N == kWide<T>)
      copy_async(keep + i, l + i);
    else
      keep[i] = static_cast<T>(l[i]);
  });
  commit_copies();
  float hit = 0.0f;
  if (labels != nullptr && first) hit = static_cast<float>(static_cast<T>(l[label]));
  wait_copies<0>();
  // f(Width<N>, i, v [N]) with this thread's elements.
  const auto each = [&](auto f) {
    each_of_row<T, kWarps, 1>(at, kept, wide, [&]<int N>(Width<N> width, int64_t i) {
      float v[N];
      load_floats<N, T>(v, keep + i);
      f(width, i, v);
    });
    if (kept == classes) return;
    const auto there = [&]<int N>(Width<N> width, int64_t i) {
      float v[N];
      load_floats<N, T>(v, l + (kept + i));
      f(width, kept + i, v);
    };
    each_of_row<T, kWarps, 1>(at + kept, classes - kept, wide, there);
  };

  // The largest, sum exp(l - largest), and the sums the loss needs.
  float top = -INFINITY, mass = 0.0f, total = 0.0f, t_mass = 0.0f, t_log = 0.0f;
  each([&]<int N>(Width<N>, int64_t i, const float(&v)[N]) {
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
  if constexpr (kWarps == 1) sync_warp();  // the label's logit is read: the row may be overwritten
  const float high = team_max<kWarps>(top, room), base = high == -INFINITY ? 0.0f : high;
  const float lse = base + logf(team_sum<kWarps>(mass * exp_fast(top - base), room));
  if (smoothing > 0.0f) total = team_sum<kWarps>(total, room);
  if (soft != nullptr) {
    t_mass = team_sum<kWarps>(t_mass, room);
    hit = team_sum<kWarps>(hit, room);
    t_log = team_sum<kWarps>(t_log, room);
  } else {
    t_mass = 1.0f;
  }
  if (first) {
    float loss = (1.0f - smoothing) * (lse * t_mass - hit) + z_loss * lse * lse + t_log;
    if (smoothing > 0.0f) loss += smoothing * (lse - total / static_cast<float>(classes));
    row_loss[row] = loss;
  }
  if (dlogits == nullptr) return;
  float g = 1.0f;
  if (dloss != nullptr) g = dloss[0];
  const float count = scored[0];
  g /= count;
  const float scale = g * ((1.0f - smoothing) * t_mass + smoothing + 2.0f * z_loss * lse),
              shift = -g * smoothing / static_cast<float>(classes), share = g * (1.0f - smoothing);
  each([&]<int N>(Width<N>, int64_t i, float(&v)[N]) {
    float t[N];
    if (soft != nullptr) {
      load_floats<N, float>(t, soft + (at + i));
    } else {
      const auto which = static_cast<int>(label - i);  // in this vector, if it is here
      FOVEA_UNROLL
      for (int e = 0; e < N; ++e) t[e] = e == which ? 1.0f : 0.0f;
    }
    FOVEA_UNROLL
    for (int e = 0; e < N; ++e) v[e] = scale * exp_fast(v[e] - lse) + shift - share * t[e];
    store_floats<N, T>(dlogits + (at + i), v);
  });
}

constexpr int64_t kScaleBlocks = 1024;

// d [n] *= dloss / assumed (null: 1). Where they are equal, d is not even read.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    scale_gradient_kernel(Global<T> d, Global<const float> dloss, Global<const float> assumed,
                          int64_t n, bool wide) {
  constexpr int N = kWide<T>;
  float was = 1.0f;
  if (assumed != nullptr) was = assumed[0];
  const float is = dloss[0];
  if (is == was) return;
  const float factor = is / was;
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x,
                threads = int64_t{gridDim.x} * kThreads, body = wide ? n / N * N : 0;
  for (int64_t i = thread * N; i < body; i += threads * N) {
    float v[N];
    load_floats<N, T>(v, d + i);
    FOVEA_UNROLL
    for (int e = 0; e < N; ++e) v[e] *= factor;
    store_floats<N, T>(d + i, v);
  }
  for (int64_t i = body + thread; i < n; i += threads)
    d[i] = T(static_cast<float>(static_cast<T>(d[i])) * factor);
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

template <typename T, int kWarps>
void run(float* row_loss, const CrossEntropyCall& c, Stream stream) {
  constexpr int64_t kTeams = kWarps == 1 ? kThreads / 32 : 1,
                    kBytes = static_cast<int64_t>(sizeof(T));
  const int64_t fit = (c.shared_bytes - kRoom) / kBytes - 2 * kWide<T>,
                kept = c.classes < fit ? c.classes : fit;
  launch<cross_entropy_kernel<T, kWarps>>(
      team_blocks<kWarps>(c.rows), kTeams * kWarps * 32,
      static_cast<size_t>(kTeams * pitch<T>(kept) * kBytes), stream, row_loss,
      static_cast<T*>(c.dlogits), static_cast<const T*>(c.logits), c.labels, c.soft, c.dloss,
      c.scored, c.rows, c.classes, kept, c.ignore, c.smoothing, c.z_loss, c.divergence,
      on_boundaries({c.logits, c.soft, c.dlogits}));
}

}  // namespace

void mean_of(float* mean, const float* x, int64_t n, const float* scored, float divisor,
             Stream stream) {
  launch<mean_kernel>(1, kMeanThreads, 0, stream, mean, x, n, scored, divisor);
}

void cross_entropy(float* loss, float* row_loss, const CrossEntropyCall& c, Stream stream) {
  if (c.rows > 0) {
    with_floating(c.dtype, [&](auto type) {
      using T = decltype(type);
      if (c.classes <= kWarpRow)
        run<T, 1>(row_loss, c, stream);
      else
        run<T, kRowWarps>(row_loss, c, stream);
    });
  }
  mean_of(loss, row_loss, c.rows, c.scored, 0.0f, stream);
}

void scale_gradient(void* d, Dtype dtype, int64_t n, const float* dloss, const float* assumed,
                    Stream stream) {
  with_floating(dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t blocks = ceil_div(n, kThreads * kWide<T>);
    if (blocks > 0)
      launch<scale_gradient_kernel<T>>(blocks < kScaleBlocks ? blocks : kScaleBlocks, kThreads, 0,
                                       stream, static_cast<T*>(d), dloss, assumed, n,
                                       on_boundaries({d}));
  });
}

}  // namespace FOVEA_GPU
