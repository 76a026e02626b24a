// SPDX-License-Identifier: Apache-2.0
// Gradient of LayerNorm and RMSNorm. With xhat = (s - mean) rstd and g = dy gamma, over a row:
//   ds = rstd (g - mean(g) - xhat mean(g xhat)) (+ dsum)        (RMSNorm: no mean(g))
// and over the rows  dgamma = sum dy xhat,  dbeta = sum dy.
// Shapes  dy, s, dsum, ds [R, C]; gamma [C], mean, rstd [R] f32.
// Cost  dy, s (and dsum) read once, ds written once: the limit. A row of dy and s waits in
// registers for its two sums, dgamma and dbeta of a thread's channels stay in registers over its
// rows; a warp a row up to 1024 channels, else a block a row. Each block writes one row of partial
// sums, at most 264 in all, which a second kernel adds: 264 x 2 C x 4 bytes. Determinism  bitwise:
// which rows a block adds depends on R alone, their order on C.
#include "nn/cuda/norm.h"
#include "nn/cuda/vectors.cuh"

namespace FOVEA_GPU {
namespace {

constexpr int kSpan = 8;        // neighbouring channels of a thread
constexpr int kColumns = 1024;  // largest row of a warp
constexpr int kWarpsInBlock = kThreads / 32;

// kSpans: spans of a thread in its registers; what lies past them is read again, and added in
// `partial`.
template <typename S, typename Y, int kWarps, int kSpans>
__global__ void __launch_bounds__(kThreads, kSpans <= 2 ? 2 : 1)
    norm_backward_kernel(Global<S> ds, Global<float> partial, Global<const Y> dy, Global<const S> s,
                         Global<const S> dsum, Global<const float> gamma, Global<const float> mean,
                         Global<const float> rstd, int64_t rows, int64_t channels, bool rms,
                         bool wide) {
  FOVEA_SHARED(float, room, 32);
  FOVEA_SHARED(float, columns, kWarps == 1 ? 2 * kColumns : 1);
  constexpr int kStep = kWarps * 32 * kSpan, kTeams = kWarpsInBlock / kWarps;
  const int team = static_cast<int>(threadIdx.x) / (kWarps * 32);
  const int64_t first = int64_t{team_thread<kWarps>()} * kSpan;
  const int64_t begin = rows * blockIdx.x / gridDim.x, end = rows * (blockIdx.x + 1) / gridDim.x;
  const Global<float> to_gamma = partial + int64_t{blockIdx.x} * 2 * channels,
                      to_beta = to_gamma + channels;

  float sum_gamma[kSpans][kSpan], sum_beta[kSpans][kSpan];
  FOVEA_UNROLL
  for (int k = 0; k < kSpans; ++k) {
    FOVEA_UNROLL
    for (int e = 0; e < kSpan; ++e) sum_gamma[k][e] = sum_beta[k][e] = 0.0f;
  }
  for (int64_t i = first + kSpans * kStep; i < channels; i += kStep) {
    FOVEA_UNROLL
    for (int e = 0; e < kSpan && i + e < channels; ++e) to_gamma[i + e] = to_beta[i + e] = 0.0f;
  }

  for (int64_t row = begin + team; row < end; row += kTeams) {
    const int64_t at = row * channels;
    const float m = rms ? 0.0f : mean[row], r = rstd[row];
    const auto read = [&](float(&d)[kSpan], float(&xhat)[kSpan], int64_t i) {
      load_some<kSpan, Y>(d, dy + (at + i), channels - i, wide);
      load_some<kSpan, S>(xhat, s + (at + i), channels - i, wide);
      FOVEA_UNROLL
      for (int e = 0; e < kSpan; ++e) xhat[e] = (xhat[e] - m) * r;
    };
    float d[kSpans][kSpan], xhat[kSpans][kSpan];
    FOVEA_UNROLL
    for (int k = 0; k < kSpans; ++k) {
      if (first + k * kStep < channels) read(d[k], xhat[k], first + k * kStep);
    }
    // f(k or -1, dy, xhat, i)
    const auto each = [&](auto&& f) {
      FOVEA_UNROLL
      for (int k = 0; k < kSpans; ++k) {
        if (first + k * kStep < channels) f(k, d[k], xhat[k], first + k * kStep);
      }
      for (int64_t i = first + kSpans * kStep; i < channels; i += kStep) {
        float d_here[kSpan], xhat_here[kSpan];
        read(d_here, xhat_here, i);
        f(-1, d_here, xhat_here, i);
      }
    };

    float sum_g = 0.0f, sum_gx = 0.0f;
    each([&](int k, const float(&dy_i)[kSpan], const float(&x)[kSpan], int64_t i) {
      float weight[kSpan];
      load_some<kSpan, float>(weight, gamma + i, channels - i, wide);
      FOVEA_UNROLL
      for (int e = 0; e < kSpan; ++e) {  // dy and gamma are 0 past the row's end
        const float g = dy_i[e] * weight[e];
        sum_g += g;
        sum_gx = fma(g, x[e], sum_gx);
        if (k >= 0) {
          sum_gamma[k][e] = fma(dy_i[e], x[e], sum_gamma[k][e]);
          sum_beta[k][e] += dy_i[e];
        } else if (i + e < channels) {
          to_gamma[i + e] += dy_i[e] * x[e];
          to_beta[i + e] += dy_i[e];
        }
      }
    });
    const float n = static_cast<float>(channels);
    const float a = rms ? 0.0f : team_sum<kWarps>(sum_g, room) / n;
    const float b = team_sum<kWarps>(sum_gx, room) / n;
    each([&](int, const float(&dy_i)[kSpan], const float(&x)[kSpan], int64_t i) {
      float weight[kSpan], result[kSpan];
      load_some<kSpan, float>(weight, gamma + i, channels - i, wide);
      FOVEA_UNROLL
      for (int e = 0; e < kSpan; ++e) result[e] = r * (dy_i[e] * weight[e] - a - x[e] * b);
      if (dsum != nullptr) {
        load_some<kSpan, S>(weight, dsum + (at + i), channels - i, wide);
        FOVEA_UNROLL
        for (int e = 0; e < kSpan; ++e) result[e] += weight[e];
      }
      store_some<kSpan, S>(ds + (at + i), result, channels - i, wide);
    });
  }

  const auto each_held = [&](auto&& f) {
    FOVEA_UNROLL
    for (int k = 0; k < kSpans; ++k) {
      const int64_t i = first + k * kStep;
      FOVEA_UNROLL
      for (int e = 0; e < kSpan; ++e) {
        if (i + e < channels) f(i + e, sum_gamma[k][e], sum_beta[k][e]);
      }
    }
  };
  if constexpr (kWarps > 1) {
    each_held([&](int64_t i, float of_gamma, float of_beta) {
      to_gamma[i] = of_gamma;
      to_beta[i] = of_beta;
    });
  } else {  // the block's warps one after another
    for (int turn = 0; turn < kTeams; ++turn) {
      if (team == turn) {
        each_held([&](int64_t i, float of_gamma, float of_beta) {
          columns[i] = turn == 0 ? of_gamma : columns[i] + of_gamma;
          columns[kColumns + i] = turn == 0 ? of_beta : columns[kColumns + i] + of_beta;
        });
      }
      sync_block();
    }
    for (int64_t i = threadIdx.x; i < channels; i += kThreads) {
      to_gamma[i] = columns[i];
      to_beta[i] = columns[kColumns + i];
    }
  }
}

// out [n] = sums over the rows of x [rows, n]: 32 columns a block, warps share the rows.
__global__ void __launch_bounds__(kThreads)
    sum_rows_kernel(Global<float> out, Global<const float> x, int64_t rows, int64_t n) {
  FOVEA_SHARED(float, parts, kThreads);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t column = int64_t{blockIdx.x} * 32 + lane;
  float total = 0.0f;
  if (column < n) {
    for (int64_t row = warp; row < rows; row += kWarpsInBlock) total += x[row * n + column];
  }
  parts[threadIdx.x] = total;
  sync_block();
  if (warp > 0 || column >= n) return;
  for (int w = 1; w < kWarpsInBlock; ++w) total += parts[w * 32 + lane];
  out[column] = total;
}

}  // namespace

void norm_backward(const NormBackward& c, float* sums, float* partial, int64_t rows,
                   Stream stream) {
  const int64_t parts = norm_parts(rows);
  if (parts > 0) {
    const bool wide = c.channels % kSpan == 0 && on_boundaries({c.dy, c.s, c.dsum, c.ds, c.gamma});
    const auto run = [&]<int kWarps, int kSpans>(Width<kWarps>, Width<kSpans>) {
      with_floating(c.s_dtype, [&](auto s) {
        with_floating(c.dy_dtype, [&](auto dy) {
          using S = decltype(s);
          using Y = decltype(dy);
          launch<norm_backward_kernel<S, Y, kWarps, kSpans>>(
              parts, kThreads, 0, stream, static_cast<S*>(c.ds), partial,
              static_cast<const Y*>(c.dy), static_cast<const S*>(c.s),
              static_cast<const S*>(c.dsum), c.gamma, c.mean, c.rstd, rows, c.channels, c.rms,
              wide);
        });
      });
    };
    if (c.channels <= kColumns / 2)
      run(Width<1>{}, Width<2>{});
    else if (c.channels <= kColumns)
      run(Width<1>{}, Width<4>{});
    else
      run(Width<kWarpsInBlock>{}, Width<4>{});
  }
  if (c.channels == 0) return;
  launch<sum_rows_kernel>(ceil_div(2 * c.channels, 32), kThreads, 0, stream, sums, partial, parts,
                          2 * c.channels);
}

}  // namespace FOVEA_GPU
