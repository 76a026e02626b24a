// SPDX-License-Identifier: Apache-2.0
#include "nn/cpu/kernels.h"
#include "nn/cpu/vectors.h"

namespace FOVEA_SIMD {
namespace {

template <typename S, typename D, typename Y>
void norm_forward_rows(const NormForward& c, int64_t begin, int64_t end) {
  const int64_t n = c.channels;
  for (int64_t r = begin; r < end; ++r) {
    const S* s = static_cast<const S*>(c.x) + r * n;
    Vec total = zero();
    if (c.delta != nullptr) {
      const D* delta = static_cast<const D*>(c.delta) + r * n;
      S* sum_row = static_cast<S*>(c.sum) + r * n;  // read again below: through the caches
      over(n, [&](int64_t i, Mask k, bool tail) {
        put(sum_row + i, get(s + i, k, tail) + get(delta + i, k, tail), k, tail);
      });
      s = sum_row;
    }
    float mean = 0.0f;
    if (!c.rms) {
      over(n, [&](int64_t i, Mask k, bool tail) { total = total + get(s + i, k, tail); });
      mean = sum(total) / static_cast<float>(n);
      c.mean[r] = mean;
    }
    const Vec m = splat(mean);
    Vec squares = zero();
    over(n, [&](int64_t i, Mask k, bool tail) {
      Vec d = get(s + i, k, tail) - m;
      if (tail) d = select(k, d, zero());
      squares = fma(d, d, squares);
    });
    const float rstd = 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(n) + c.eps);
    c.rstd[r] = rstd;
    const Vec scale = splat(rstd);
    Y* y = static_cast<Y*>(c.y) + r * n;
    const bool streams = c.stream && is_aligned(y);
    over(n, [&](int64_t i, Mask k, bool tail) {
      const Vec scaled = (get(s + i, k, tail) - m) * scale * get(c.gamma + i, k, tail);
      put(y + i, c.beta != nullptr ? scaled + get(c.beta + i, k, tail) : scaled, k, tail, streams);
    });
  }
  if (c.stream) end_streaming();
}

// ds of one row.
template <typename S, typename Y>
FOVEA_INLINE void norm_backward_row(const NormBackward& c, int64_t r) {
  const int64_t n = c.channels;
  const S* s = static_cast<const S*>(c.s) + r * n;
  const Y* dy = static_cast<const Y*>(c.dy) + r * n;
  const Vec mean = splat(c.rms ? 0.0f : c.mean[r]), rstd = splat(c.rstd[r]);
  Vec sum_g = zero(), sum_gx = zero();
  over(n, [&](int64_t i, Mask k, bool tail) {
    Vec xhat = (get(s + i, k, tail) - mean) * rstd;
    if (tail) xhat = select(k, xhat, zero());
    const Vec g = get(dy + i, k, tail) * get(c.gamma + i, k, tail);
    sum_g = sum_g + g;
    sum_gx = fma(g, xhat, sum_gx);
  });
  const Vec a = splat(c.rms ? 0.0f : sum(sum_g) / static_cast<float>(n));
  const Vec b = splat(sum(sum_gx) / static_cast<float>(n));
  S* ds = static_cast<S*>(c.ds) + r * n;
  const S* dsum = c.dsum != nullptr ? static_cast<const S*>(c.dsum) + r * n : nullptr;
  const bool streams = c.stream && is_aligned(ds);
  over(n, [&](int64_t i, Mask k, bool tail) {
    const Vec xhat = (get(s + i, k, tail) - mean) * rstd;
    const Vec g = get(dy + i, k, tail) * get(c.gamma + i, k, tail);
    Vec d = rstd * fnma(xhat, b, g - a);
    if (dsum != nullptr) d = d + get(dsum + i, k, tail);
    put(ds + i, d, k, tail, streams);
  });
}

// dgamma and dbeta of kVectors vectors of channels from channel i on, over rows [begin, end).
template <int kVectors, typename S, typename Y>
FOVEA_INLINE void norm_backward_panel(const NormBackward& c, int64_t begin, int64_t end, int64_t i,
                                      float* dgamma, float* dbeta, Mask k, bool tail) {
  Vec to_gamma[kVectors], to_beta[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v)
    to_gamma[v] = get(dgamma + i + v * kLanes, k, tail),
    to_beta[v] = get(dbeta + i + v * kLanes, k, tail);
  for (int64_t r = begin; r < end; ++r) {
    const S* s = static_cast<const S*>(c.s) + r * c.channels + i;
    const Y* dy = static_cast<const Y*>(c.dy) + r * c.channels + i;
    const Vec mean = splat(c.rms ? 0.0f : c.mean[r]), rstd = splat(c.rstd[r]);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const Vec d = get(dy + v * kLanes, k, tail);
      to_gamma[v] = fma(d, (get(s + v * kLanes, k, tail) - mean) * rstd, to_gamma[v]);
      to_beta[v] = to_beta[v] + d;
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v)
    put(dgamma + i + v * kLanes, to_gamma[v], k, tail),
        put(dbeta + i + v * kLanes, to_beta[v], k, tail);
}

// Some rows' ds, then what they add to dgamma and dbeta, from the second cache. (Adding row by row
// would put a store of dgamma between any two of ds; stores leave in order, and those past the
// caches are slow to.)
template <typename S, typename Y>
void norm_backward_rows(const NormBackward& c, int64_t begin, int64_t end, float* dgamma,
                        float* dbeta) {
  constexpr int kVectors = kLanes == 16 ? 8 : 4;
  const int64_t n = c.channels,
                fit = (int64_t{256} << 10) / (n * static_cast<int64_t>(sizeof(S) + sizeof(Y)) + 1);
  const int64_t rows = fit < 4 ? 4 : fit > 32 ? 32 : fit;
  for (int64_t first = begin; first < end; first += rows) {
    const int64_t last = first + rows < end ? first + rows : end;
    for (int64_t r = first; r < last; ++r) norm_backward_row<S, Y>(c, r);
    int64_t i = 0;
    for (; i + kVectors * kLanes <= n; i += kVectors * kLanes)
      norm_backward_panel<kVectors, S, Y>(c, first, last, i, dgamma, dbeta, first_lanes(kLanes),
                                          false);
    over(n - i, [&](int64_t j, Mask k, bool tail) {
      norm_backward_panel<1, S, Y>(c, first, last, i + j, dgamma, dbeta, k, tail);
    });
  }
  if (c.stream) end_streaming();
}

}  // namespace

void norm_forward(const NormForward& c, int64_t begin, int64_t end) {
  const bool x16 = c.x_dtype == Dtype::bf16,
             d16 = c.delta != nullptr && c.delta_dtype == Dtype::bf16,
             y16 = c.y_dtype == Dtype::bf16;
  if (!x16 && !d16 && !y16) return norm_forward_rows<float, float, float>(c, begin, end);
  if (!x16 && !d16 && y16) return norm_forward_rows<float, float, bf16>(c, begin, end);
  if (!x16 && d16 && !y16) return norm_forward_rows<float, bf16, float>(c, begin, end);
  if (!x16 && d16 && y16) return norm_forward_rows<float, bf16, bf16>(c, begin, end);
  if (x16 && !d16 && !y16) return norm_forward_rows<bf16, float, float>(c, begin, end);
  if (x16 && !d16 && y16) return norm_forward_rows<bf16, float, bf16>(c, begin, end);
  if (x16 && d16 && !y16) return norm_forward_rows<bf16, bf16, float>(c, begin, end);
  norm_forward_rows<bf16, bf16, bf16>(c, begin, end);
}

void norm_backward(const NormBackward& c, int64_t begin, int64_t end, float* dgamma, float* dbeta) {
  const bool s16 = c.s_dtype == Dtype::bf16, y16 = c.dy_dtype == Dtype::bf16;
  if (!s16 && !y16) return norm_backward_rows<float, float>(c, begin, end, dgamma, dbeta);
  if (!s16 && y16) return norm_backward_rows<float, bf16>(c, begin, end, dgamma, dbeta);
  if (s16 && !y16) return norm_backward_rows<bf16, float>(c, begin, end, dgamma, dbeta);
  norm_backward_rows<bf16, bf16>(c, begin, end, dgamma, dbeta);
}

}  // namespace FOVEA_SIMD
