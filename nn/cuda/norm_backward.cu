// SPDX-License-Identifier: Apache-2.0
// Gradient of LayerNorm and RMSNorm. With xhat = (s - mean) rstd and g = dy gamma, over a row:
//   ds = rstd (g - mean(g) - xhat mean(g xhat)) (+ dsum)        (RMSNorm: no mean(g))
// and over the rows  dgamma = sum dy xhat,  dbeta = sum dy.
// Shapes  dy, s, dsum, ds [R, C]; gamma [C], mean, rstd [R] f32.
// Cost  dy, s (and dsum) read once, ds written once: the limit. A thread has the same 8 channels of
// every row of its block, so that dgamma, dbeta and gamma of them stay in registers; rows wait
// there for their two sums, with many small blocks on an SM to read meanwhile (norm.h). What lies
// past 6144 channels is read again, and added in memory. Each block writes one row of partial sums,
// which a second kernel adds: about 17 MB at most. Determinism  bitwise: which rows a block adds
// and their order depend on the shape alone.
#include "nn/cuda/norm.h"
#include "nn/cuda/vectors.cuh"

namespace FOVEA_GPU {
namespace {

constexpr int kSpan = 8;       // neighbouring channels of a thread
constexpr int kColumns = 256;  // largest row of a warp
constexpr int kMostThreads = 768, kPastThreads = 512;

// Whose a row is: a warp's, a block's, or a block's that reads more than its threads hold.
enum class Team { warp, block, past };

template <typename S, typename Y, Team kTeam>
__global__ void __launch_bounds__(kTeam == Team::past ? kPastThreads : kMostThreads)
    norm_backward_kernel(Global<S> ds, Global<float> partial, Global<const Y> dy, Global<const S> s,
                         Global<const S> dsum, Global<const float> gamma, Global<const float> mean,
                         Global<const float> rstd, int64_t rows, int channels, bool rms,
                         bool wide) {
  constexpr bool kBlock = kTeam != Team::warp, kPast = kTeam == Team::past;
  FOVEA_SHARED(float, room, kBlock ? 128 : 1);
  FOVEA_SHARED(float, columns, kBlock ? 1 : 2 * kColumns);
  const int team_threads = kBlock ? static_cast<int>(blockDim.x) : 32,
            teams = kBlock ? 1 : kThreads / 32, team = static_cast<int>(threadIdx.x) / team_threads;
  const int first = static_cast<int>(threadIdx.x) % team_threads * kSpan,
            step = kPast ? team_threads * kSpan : 1 << 30;
  const int64_t begin = rows * blockIdx.x / gridDim.x, end = rows * (blockIdx.x + 1) / gridDim.x;
  const Global<float> to_gamma = partial + int64_t{blockIdx.x} * 2 * channels,
                      to_beta = to_gamma + channels;

  float weight[kSpan], sum_gamma[kSpan], sum_beta[kSpan];
  FOVEA_UNROLL
  for (int e = 0; e < kSpan; ++e) weight[e] = sum_gamma[e] = sum_beta[e] = 0.0f;
  if (first < channels) load_some<kSpan, float>(weight, gamma + first, channels - first, wide);
  for (int i = first + step; kPast && i < channels; i += step) {
    for (int e = 0; e < kSpan && i + e < channels; ++e) to_gamma[i + e] = to_beta[i + e] = 0.0f;
  }

  int turn = 0;  // of the rooms
  for (int64_t row = begin + team; row < end; row += teams) {
    const int64_t at = row * channels;
    const float m = rms ? 0.0f : mean[row], r = rstd[row];
    const auto read = [&](float(&d)[kSpan], float(&xhat)[kSpan], int i) {
      load_some<kSpan, Y>(d, dy + (at + i), channels - i, wide);
      load_some<kSpan, S>(xhat, s + (at + i), channels - i, wide);
      FOVEA_UNROLL
      for (int e = 0; e < kSpan; ++e) xhat[e] = (xhat[e] - m) * r;
    };
    float d[kSpan], xhat[kSpan], sums[2] = {0.0f, 0.0f};  // of g and of g xhat
    const auto add = [&](const float(&dy_i)[kSpan], const float(&x)[kSpan],
                         const float(&gamma_i)[kSpan]) {
      FOVEA_UNROLL
      for (int e = 0; e < kSpan; ++e) {  // dy and gamma are 0 past the row's end
        const float g = dy_i[e] * gamma_i[e];
        sums[0] += g;
        sums[1] = fma(g, x[e], sums[1]);
      }
    };
    if (first < channels) {
      read(d, xhat, first);
      add(d, xhat, weight);
      FOVEA_UNROLL
      for (int e = 0; e < kSpan; ++e) {
        sum_gamma[e] = fma(d[e], xhat[e], sum_gamma[e]);
        sum_beta[e] += d[e];
      }
    }
    for (int i = first + step; kPast && i < channels; i += step) {
      float d_here[kSpan], xhat_here[kSpan], weight_here[kSpan];
      read(d_here, xhat_here, i);
      load_some<kSpan, float>(weight_here, gamma + i, channels - i, wide);
      add(d_here, xhat_here, weight_here);
      for (int e = 0; e < kSpan && i + e < channels; ++e) {
        to_gamma[i + e] += d_here[e] * xhat_here[e];
        to_beta[i + e] += d_here[e];
      }
    }
    if constexpr (kBlock) {
      block_sums(sums, room + 64 * turn);
      turn ^= 1;
    } else {
      sums[0] = warp_sum(sums[0]);
      sums[1] = warp_sum(sums[1]);
    }
    const float n = static_cast<float>(channels);
    const float a = rms ? 0.0f : sums[0] / n, b = sums[1] / n;
    const auto write = [&](const float(&dy_i)[kSpan], const float(&x)[kSpan],
                           const float(&gamma_i)[kSpan], int i) {
      float result[kSpan];
      FOVEA_UNROLL
      for (int e = 0; e < kSpan; ++e) result[e] = r * (dy_i[e] * gamma_i[e] - a - x[e] * b);
      if (dsum != nullptr) {
        float more[kSpan];
        load_some<kSpan, S>(more, dsum + (at + i), channels - i, wide);
        FOVEA_UNROLL
        for (int e = 0; e < kSpan; ++e) result[e] += more[e];
      }
      store_some<kSpan, S>(ds + (at + i), result, channels - i, wide);
    };
    if (first < channels) write(d, xhat, weight, first);
    for (int i = first + step; kPast && i < channels; i += step) {
      float d_here[kSpan], xhat_here[kSpan], weight_here[kSpan];
      read(d_here, xhat_here, i);
      load_some<kSpan, float>(weight_here, gamma + i, channels - i, wide);
      write(d_here, xhat_here, weight_here, i);
    }
  }

  if constexpr (kBlock) {
    for (int e = 0; e < kSpan; ++e) {
      if (first + e >= channels) break;
      to_gamma[first + e] = sum_gamma[e];
      to_beta[first + e] = sum_beta[e];
    }
  } else {  // the block's warps one after another
    for (int w = 0; w < teams; ++w) {
      if (team == w) {
        FOVEA_UNROLL
        for (int e = 0; e < kSpan; ++e) {
          const int i = first + e;
          if (i >= channels) continue;
          columns[i] = w == 0 ? sum_gamma[e] : columns[i] + sum_gamma[e];
          columns[kColumns + i] = w == 0 ? sum_beta[e] : columns[kColumns + i] + sum_beta[e];
        }
      }
      sync_block();
    }
    for (int i = static_cast<int>(threadIdx.x); i < channels; i += kThreads) {
      to_gamma[i] = columns[i];
      to_beta[i] = columns[kColumns + i];
    }
  }
}

constexpr int kSumThreads = 1024;

// out [n] = sums over the rows of x [rows, n]: 32 columns a block, warps share the rows.
__global__ void __launch_bounds__(kSumThreads)
    sum_rows_kernel(Global<float> out, Global<const float> x, int64_t rows, int64_t n) {
  FOVEA_SHARED(float, parts, kSumThreads);
  constexpr int kWarps = kSumThreads / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t column = int64_t{blockIdx.x} * 32 + lane;
  float total = 0.0f;
  if (column < n) {
    FOVEA_UNROLL_BY(4)
    for (int64_t row = warp; row < rows; row += kWarps) total += x[row * n + column];
  }
  parts[threadIdx.x] = total;
  sync_block();
  if (warp > 0 || column >= n) return;
  for (int w = 1; w < kWarps; ++w) total += parts[w * 32 + lane];
  out[column] = total;
}

}  // namespace

void norm_backward(const NormBackward& c, float* sums, float* partial, int64_t rows,
                   Stream stream) {
  const int64_t parts = norm_parts(rows, c.channels);
  if (parts > 0) {
    const bool wide = c.channels % kSpan == 0 && on_boundaries({c.dy, c.s, c.dsum, c.ds, c.gamma});
    const auto run = [&]<Team kTeam>(std::integral_constant<Team, kTeam>) {
      with_floating(c.s_dtype, [&](auto s) {
        with_floating(c.dy_dtype, [&](auto dy) {
          using S = decltype(s);
          using Y = decltype(dy);
          launch<norm_backward_kernel<S, Y, kTeam>>(
              parts, norm_threads(c.channels), 0, stream, static_cast<S*>(c.ds), partial,
              static_cast<const Y*>(c.dy), static_cast<const S*>(c.s),
              static_cast<const S*>(c.dsum), c.gamma, c.mean, c.rstd, rows,
              static_cast<int>(c.channels), c.rms, wide);
        });
      });
    };
    if (c.channels <= kColumns)
      run(std::integral_constant<Team, Team::warp>{});
    else if (c.channels <= kMostThreads * kSpan)
      run(std::integral_constant<Team, Team::block>{});
    else
      run(std::integral_constant<Team, Team::past>{});
  }
  if (c.channels == 0) return;
  launch<sum_rows_kernel>(ceil_div(2 * c.channels, 32), kSumThreads, 0, stream, sums, partial,
                          parts, 2 * c.channels);
}

}  // namespace FOVEA_GPU
