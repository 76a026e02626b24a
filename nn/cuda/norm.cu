// SPDX-License-Identifier: Apache-2.0
// LayerNorm (1607.06450):  y = (s - mean) rstd gamma + beta,  rstd = (mean((s - mean)^2) +
// eps)^-1/2 RMSNorm (1910.07467):    y = s rstd gamma + beta, with mean = 0;  s = x, or x + delta
// rounded to x's type. Shapes  x, delta, s, y [R, C]; gamma, beta [C] f32.   Saved  s; mean, rstd
// [R] f32. Cost  x (and delta) read once, y (and s) written once: the limit. A row waits in
// registers between the passes over it: a warp a row up to 1024 channels, else a block a row; what
// lies past the block's 8192 is read again. Determinism  bitwise: a thread's channels and the order
// of all sums depend on C alone.
#include "nn/cuda/norm.h"
#include "nn/cuda/vectors.cuh"

namespace FOVEA_GPU {
namespace {

constexpr int kSpan = 8;   // neighbouring channels of a thread
constexpr int kSpans = 4;  // of them in its registers

template <typename X, typename Y, int kWarps>
__global__ void __launch_bounds__(kThreads, 3)
    norm_forward_kernel(Global<X> sum, Global<Y> y, Global<float> mean_out, Global<float> rstd_out,
                        Global<const X> x, Global<const float> delta32, Global<const bf16> delta16,
                        Global<const float> gamma, Global<const float> beta, int64_t rows,
                        int channels, float eps, bool rms, bool wide) {
  FOVEA_SHARED(float, room, 32);
  constexpr int kStep = kWarps * 32 * kSpan;
  const int64_t row = team_row<kWarps>(), at = row * channels;
  if (row >= rows) return;
  const int first = team_thread<kWarps>() * kSpan;

  // s of the kSpan channels from i on; written where it is a sum
  const auto read = [&](float(&s)[kSpan], int i) {
    load_some<kSpan, X>(s, x + (at + i), channels - i, wide);
    if (delta32 == nullptr && delta16 == nullptr) return;
    float delta[kSpan];
    if (delta16 == nullptr)
      load_some<kSpan, float>(delta, delta32 + (at + i), channels - i, wide);
    else
      load_some<kSpan, bf16>(delta, delta16 + (at + i), channels - i, wide);
    FOVEA_UNROLL
    for (int e = 0; e < kSpan; ++e) s[e] = static_cast<float>(X(s[e] + delta[e]));
  };
  float held[kSpans][kSpan];
  FOVEA_UNROLL
  for (int k = 0; k < kSpans; ++k) {
    if (first + k * kStep < channels) read(held[k], first + k * kStep);
  }
  const auto each = [&](auto&& f) {
    FOVEA_UNROLL
    for (int k = 0; k < kSpans; ++k) {
      if (first + k * kStep < channels) f(held[k], first + k * kStep);
    }
    for (int i = first + kSpans * kStep; i < channels; i += kStep) {
      float s[kSpan];
      read(s, i);
      f(s, i);
    }
  };

  float mean = 0.0f;
  if (!rms) {
    float total = 0.0f;
    each([&](const float(&s)[kSpan], int) {
      FOVEA_UNROLL
      for (int e = 0; e < kSpan; ++e) total += s[e];  // past the row's end: 0
    });
    mean = team_sum<kWarps>(total, room) / static_cast<float>(channels);
  }
  float squares = 0.0f;
  each([&](const float(&s)[kSpan], int i) {
    FOVEA_UNROLL
    for (int e = 0; e < kSpan; ++e) {
      const float d = i + e < channels ? s[e] - mean : 0.0f;
      squares = fma(d, d, squares);
    }
  });
  const float rstd =
      1.0f / sqrtf(team_sum<kWarps>(squares, room) / static_cast<float>(channels) + eps);
  if (first == 0) {
    mean_out[row] = mean;
    rstd_out[row] = rstd;
  }
  each([&](const float(&s)[kSpan], int i) {
    float weight[kSpan], result[kSpan];
    load_some<kSpan, float>(weight, gamma + i, channels - i, wide);
    FOVEA_UNROLL
    for (int e = 0; e < kSpan; ++e) result[e] = (s[e] - mean) * rstd * weight[e];
    if (beta != nullptr) {
      load_some<kSpan, float>(weight, beta + i, channels - i, wide);
      FOVEA_UNROLL
      for (int e = 0; e < kSpan; ++e) result[e] += weight[e];
    }
    if (sum != nullptr) store_some<kSpan, X>(sum + (at + i), s, channels - i, wide);
    store_some<kSpan, Y>(y + (at + i), result, channels - i, wide);
  });
}

}  // namespace

void norm_forward(const NormForward& c, int64_t rows, Stream stream) {
  if (rows == 0) return;
  const bool wide =
      c.channels % kSpan == 0 && on_boundaries({c.x, c.delta, c.sum, c.y, c.gamma, c.beta});
  const bool narrow_delta = c.delta != nullptr && c.delta_dtype == Dtype::bf16;
  const auto run = [&]<int kWarps>(Width<kWarps>) {
    with_floating(c.x_dtype, [&](auto x) {
      with_floating(c.y_dtype, [&](auto y) {
        using X = decltype(x);
        using Y = decltype(y);
        launch<norm_forward_kernel<X, Y, kWarps>>(
            team_blocks<kWarps>(rows), kThreads, 0, stream,
            c.delta != nullptr ? static_cast<X*>(c.sum) : nullptr, static_cast<Y*>(c.y), c.mean,
            c.rstd, static_cast<const X*>(c.x),
            narrow_delta ? nullptr : static_cast<const float*>(c.delta),
            narrow_delta ? static_cast<const bf16*>(c.delta) : nullptr, c.gamma, c.beta, rows,
            static_cast<int>(c.channels), c.eps, c.rms, wide);
      });
    });
  };
  if (c.channels <= 32 * kSpan * kSpans)
    run(Width<1>{});
  else
    run(Width<kThreads / 32>{});
}

}  // namespace FOVEA_GPU
