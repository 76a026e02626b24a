// SPDX-License-Identifier: Apache-2.0
#include "nn/cpu/kernels.h"

#include "core/cpu/philox.h"
#include "core/cpu/simd.h"

namespace FOVEA_SIMD {
namespace {

// f(i, mask, tail): full vectors first, then what is left.
template <typename F>
FOVEA_INLINE void over(int64_t count, F&& f) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) f(i, first_lanes(kLanes), false);
  if (i < count) f(i, first_lanes(count - i), true);
}

template <typename T>
FOVEA_INLINE Vec get(const T* p, Mask k, bool tail) { return tail ? load(p, k) : load(p); }
template <typename T>
FOVEA_INLINE void put(T* p, Vec x, Mask k, bool tail) {
  if (tail) store(p, x, k);
  else store(p, x);
}

// Full vectors past the caches when `streams` (then p is aligned to a cache line).
template <typename T>
FOVEA_INLINE void put(T* p, Vec x, Mask k, bool tail, bool streams) {
  if (tail) store(p, x, k);
  else if (streams) stream(p, x);
  else store(p, x);
}
FOVEA_INLINE bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 64 == 0; }

// ---- norms -------------------------------------------------------------------------------------------------------

template <typename S, typename D, typename Y>
void norm_forward_rows(const NormForward& c, int64_t begin, int64_t end) {
  const int64_t n = c.channels;
  for (int64_t r = begin; r < end; ++r) {
    const S* s = static_cast<const S*>(c.x) + r * n;
    Vec total = zero();
    if (c.delta != nullptr) {
      const D* delta = static_cast<const D*>(c.delta) + r * n;
      S* sum_row = static_cast<S*>(c.sum) + r * n;  // read again below: through the caches
      over(n, [&](int64_t i, Mask k, bool tail) { put(sum_row + i, get(s + i, k, tail) + get(delta + i, k, tail), k, tail); });
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
FOVEA_INLINE void norm_backward_panel(const NormBackward& c, int64_t begin, int64_t end, int64_t i, float* dgamma, float* dbeta, Mask k, bool tail) {
  Vec to_gamma[kVectors], to_beta[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) to_gamma[v] = get(dgamma + i + v * kLanes, k, tail), to_beta[v] = get(dbeta + i + v * kLanes, k, tail);
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
  for (int v = 0; v < kVectors; ++v) put(dgamma + i + v * kLanes, to_gamma[v], k, tail), put(dbeta + i + v * kLanes, to_beta[v], k, tail);
}

// Some rows' ds, then what they add to dgamma and dbeta, from the second cache. (Adding row by row would put a store of dgamma
// between any two of ds; stores leave in order, and those past the caches are slow to.)
template <typename S, typename Y>
void norm_backward_rows(const NormBackward& c, int64_t begin, int64_t end, float* dgamma, float* dbeta) {
  constexpr int kVectors = kLanes == 16 ? 8 : 4;
  const int64_t n = c.channels, fit = (int64_t{256} << 10) / (n * static_cast<int64_t>(sizeof(S) + sizeof(Y)) + 1);
  const int64_t rows = fit < 4 ? 4 : fit > 32 ? 32 : fit;
  for (int64_t first = begin; first < end; first += rows) {
    const int64_t last = first + rows < end ? first + rows : end;
    for (int64_t r = first; r < last; ++r) norm_backward_row<S, Y>(c, r);
    int64_t i = 0;
    for (; i + kVectors * kLanes <= n; i += kVectors * kLanes) norm_backward_panel<kVectors, S, Y>(c, first, last, i, dgamma, dbeta, first_lanes(kLanes), false);
    over(n - i, [&](int64_t j, Mask k, bool tail) { norm_backward_panel<1, S, Y>(c, first, last, i + j, dgamma, dbeta, k, tail); });
  }
  if (c.stream) end_streaming();
}

// ---- activations -------------------------------------------------------------------------------------------------

FOVEA_INLINE Vec sigmoid(Vec x) { return splat(1.0f) / (splat(1.0f) + exp(zero() - x)); }

// Abramowitz and Stegun 7.1.26: absolute error below 1.5e-7; `gauss` receives exp(-x^2).
FOVEA_INLINE Vec erf(Vec x, Vec& gauss) {
  const Vec a = abs(x);
  const Vec t = splat(1.0f) / fma(splat(0.3275911f), a, splat(1.0f));
  Vec p = splat(1.061405429f);
  p = fma(p, t, splat(-1.453152027f));
  p = fma(p, t, splat(1.421413741f));
  p = fma(p, t, splat(-0.284496736f));
  p = fma(p, t, splat(0.254829592f));
  gauss = exp(zero() - a * a);
  return copysign(fnma(p * t, gauss, splat(1.0f)), x);
}

constexpr float kGeluScale = 0.79788456080286536f;  // sqrt(2 / pi)
constexpr float kGeluCubic = 0.044715f;
constexpr float kInvSqrt2 = 0.70710678118654752f;
constexpr float kInvSqrt2Pi = 0.39894228040143268f;

template <ActivationKernel kKind>
FOVEA_INLINE Vec value(Vec x) {
  if constexpr (kKind == ActivationKernel::relu) return max(x, zero());
  if constexpr (kKind == ActivationKernel::silu) return x * sigmoid(x);
  if constexpr (kKind == ActivationKernel::gelu) {
    Vec gauss;
    return splat(0.5f) * x * (splat(1.0f) + erf(x * splat(kInvSqrt2), gauss));
  }
  // (1 + tanh u) / 2 = sigmoid(2 u)
  return x * sigmoid(splat(2.0f * kGeluScale) * fma(splat(kGeluCubic) * x * x, x, x));
}

template <ActivationKernel kKind>
FOVEA_INLINE Vec derivative(Vec x) {
  if constexpr (kKind == ActivationKernel::relu) return select(zero() < x, splat(1.0f), zero());
  if constexpr (kKind == ActivationKernel::silu) {
    const Vec s = sigmoid(x);
    return s * fma(x, splat(1.0f) - s, splat(1.0f));
  }
  if constexpr (kKind == ActivationKernel::gelu) {
    Vec gauss;  // exp(-x^2 / 2)
    const Vec phi = splat(0.5f) * (splat(1.0f) + erf(x * splat(kInvSqrt2), gauss));
    return fma(x * splat(kInvSqrt2Pi), gauss, phi);
  }
  const Vec square = x * x;
  const Vec s = sigmoid(splat(2.0f * kGeluScale) * fma(splat(kGeluCubic) * square, x, x));
  const Vec du = splat(2.0f * kGeluScale) * fma(splat(3.0f * kGeluCubic), square, splat(1.0f));
  return fma(x * du, s * (splat(1.0f) - s), s);
}

template <ActivationKernel kKind, typename T>
void forward_of(T* y, const T* x, int64_t count) {
  over(count, [&](int64_t i, Mask k, bool tail) { put(y + i, value<kKind>(get(x + i, k, tail)), k, tail); });
}
template <ActivationKernel kKind, typename T>
void backward_of(T* dx, const T* dy, const T* x, int64_t count) {
  over(count, [&](int64_t i, Mask k, bool tail) { put(dx + i, get(dy + i, k, tail) * derivative<kKind>(get(x + i, k, tail)), k, tail); });
}

template <typename T>
void forward_kind(T* y, const T* x, int64_t count, ActivationKernel kind) {
  switch (kind) {
    case ActivationKernel::relu: return forward_of<ActivationKernel::relu>(y, x, count);
    case ActivationKernel::gelu: return forward_of<ActivationKernel::gelu>(y, x, count);
    case ActivationKernel::gelu_tanh: return forward_of<ActivationKernel::gelu_tanh>(y, x, count);
    case ActivationKernel::silu: return forward_of<ActivationKernel::silu>(y, x, count);
  }
}
template <typename T>
void backward_kind(T* dx, const T* dy, const T* x, int64_t count, ActivationKernel kind) {
  switch (kind) {
    case ActivationKernel::relu: return backward_of<ActivationKernel::relu>(dx, dy, x, count);
    case ActivationKernel::gelu: return backward_of<ActivationKernel::gelu>(dx, dy, x, count);
    case ActivationKernel::gelu_tanh: return backward_of<ActivationKernel::gelu_tanh>(dx, dy, x, count);
    case ActivationKernel::silu: return backward_of<ActivationKernel::silu>(dx, dy, x, count);
  }
}

template <typename T>
void swiglu_row(T* y, const T* x, int64_t channels) {
  over(channels, [&](int64_t i, Mask k, bool tail) {
    const Vec gate = get(x + i, k, tail);
    put(y + i, gate * sigmoid(gate) * get(x + channels + i, k, tail), k, tail);
  });
}
template <typename T>
void swiglu_row_backward(T* dx, const T* dy, const T* x, int64_t channels) {
  over(channels, [&](int64_t i, Mask k, bool tail) {
    const Vec gate = get(x + i, k, tail), up = get(x + channels + i, k, tail), d = get(dy + i, k, tail), s = sigmoid(gate);
    put(dx + i, d * up * s * fma(gate, splat(1.0f) - s, splat(1.0f)), k, tail);
    put(dx + channels + i, d * gate * s, k, tail);
  });
}

// ---- dropout -----------------------------------------------------------------------------------------------------

template <typename T>
void dropout_of(T* y, const T* x, int64_t count, uint64_t key, uint64_t high, uint64_t first, uint32_t threshold, float factor) {
  alignas(64) uint32_t words[4 * kPhiloxBlocks];
  const Words limit = all(threshold);
  const Vec kept = splat(factor);
  for (int64_t i = 0; i < count;) {
    const uint64_t index = first + static_cast<uint64_t>(i);
    philox_blocks(words, key, high, index >> 2);
    const auto skip = static_cast<int64_t>(index & 3);
    const int64_t n = count - i < 4 * kPhiloxBlocks - skip ? count - i : 4 * kPhiloxBlocks - skip;
    over(n, [&](int64_t j, Mask k, bool tail) {
      const Mask dropped = (tail ? load(words + skip + j, k) : load(words + skip + j)) < limit;
      put(y + i + j, select(dropped, zero(), kept * get(x + i + j, k, tail)), k, tail);
    });
    i += n;
  }
}

// ---- softmax rows ------------------------------------------------------------------------------------------------

template <typename T>
float largest_of(const T* l, int64_t count) {
  Vec top = splat(-__builtin_inff());
  over(count, [&](int64_t i, Mask k, bool tail) {
    const Vec x = get(l + i, k, tail);
    top = max(tail ? select(k, x, top) : x, top);
  });
  return max_lane(top);
}

// sum_j exp(l_j - shift); total, with kTotal, receives sum_j l_j. Four sums, so that none waits for the one before.
template <bool kTotal, typename T>
float shifted_mass(const T* l, int64_t count, float shift, float* total) {
  const Vec shifted = splat(-shift * kLog2e);
  Vec masses[4] = {zero(), zero(), zero(), zero()}, sums[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      prefetch(l + i + v * kLanes + 4096);
      const Vec x = load(l + i + v * kLanes);
      masses[v] = masses[v] + exp_shifted(x, shifted);
      if constexpr (kTotal) sums[v] = sums[v] + x;
    }
  }
  over(count - i, [&](int64_t j, Mask k, bool tail) {
    const Vec x = get(l + i + j, k, tail), e = exp_shifted(x, shifted);
    masses[0] = masses[0] + (tail ? select(k, e, zero()) : e);
    if constexpr (kTotal) sums[0] = sums[0] + x;
  });
  if constexpr (kTotal) *total = sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  return sum((masses[0] + masses[1]) + (masses[2] + masses[3]));
}

// One pass, relative to the largest of the first logits: any nearby reference will do. Where a later one is so much larger that
// the mass overflows, a second pass relative to the largest of all.
template <bool kTotal, typename T>
float log_sum_exp(const T* l, int64_t count, float* total) {
  float shift = largest_of(l, count < 512 ? count : 512);
  float mass = __builtin_isfinite(shift) ? shifted_mass<kTotal>(l, count, shift, total) : __builtin_inff();
  if (!__builtin_isfinite(mass)) {
    shift = largest_of(l, count);
    mass = shifted_mass<kTotal>(l, count, __builtin_isfinite(shift) ? shift : 0.0f, total);
  }
  return shift + __builtin_logf(mass);
}

template <typename T>
void softmax_gradient(T* d, const T* l, int64_t count, float lse, float scale, float shift, bool stream) {
  const Vec shifted = splat(-lse * kLog2e), a = splat(scale), b = splat(shift);
  const bool streams = stream && is_aligned(d);
  over(count, [&](int64_t i, Mask k, bool tail) { put(d + i, fma(a, exp_shifted(get(l + i, k, tail), shifted), b), k, tail, streams); });
  if (stream) end_streaming();
}

// ---- rows of channels --------------------------------------------------------------------------------------------

// Sum of f(i, mask, tail) over the row; two sums overlap. f gives 0 in the lanes of a tail that are not there.
template <typename F>
FOVEA_INLINE float sum_over(int64_t count, F&& f) {
  Vec even = zero(), odd = zero();
  int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    even = even + f(i, first_lanes(kLanes), false);
    odd = odd + f(i + kLanes, first_lanes(kLanes), false);
  }
  over(count - i, [&](int64_t j, Mask k, bool tail) { even = even + f(i + j, k, tail); });
  return sum(even + odd);
}

template <typename T>
float sum_of(const T* x, int64_t count) {
  return sum_over(count, [&](int64_t i, Mask k, bool tail) { return get(x + i, k, tail); });
}
template <typename T>
float squares_of(const T* x, int64_t count, float mean) {
  const Vec m = splat(mean);
  return sum_over(count, [&](int64_t i, Mask k, bool tail) {
    const Vec d = get(x + i, k, tail) - m;
    return tail ? select(k, d * d, zero()) : d * d;
  });
}
template <typename T>
void affine_of(T* y, const T* x, int64_t count, float mean, float scale, float shift) {
  const Vec m = splat(mean), a = splat(scale), b = splat(shift);
  over(count, [&](int64_t i, Mask k, bool tail) { put(y + i, fma(a, get(x + i, k, tail) - m, b), k, tail); });
}
template <typename T>
void gradient_sums_of(const T* dy, const T* x, int64_t count, float mean, float* sums) {
  const Vec m = splat(mean);
  Vec plain = zero();
  sums[1] = sum_over(count, [&](int64_t i, Mask k, bool tail) {
    const Vec d = get(dy + i, k, tail);
    plain = plain + d;
    return d * (get(x + i, k, tail) - m);
  });
  sums[0] = sum(plain);
}
template <typename T>
void norm_gradient_of(T* dx, const T* dy, const T* x, int64_t count, float mean, float a, float b, float c) {
  const Vec m = splat(mean), va = splat(a), vb = splat(b), vc = splat(c);
  over(count, [&](int64_t i, Mask k, bool tail) { put(dx + i, fma(va, get(dy + i, k, tail), fma(vb, get(x + i, k, tail) - m, vc)), k, tail); });
}

}  // namespace

void norm_forward(const NormForward& c, int64_t begin, int64_t end) {
  const bool x16 = c.x_dtype == Dtype::bf16, d16 = c.delta != nullptr && c.delta_dtype == Dtype::bf16, y16 = c.y_dtype == Dtype::bf16;
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

void activation_forward(void* y, const void* x, Dtype dtype, int64_t count, ActivationKernel kind) {
  if (dtype == Dtype::bf16) forward_kind(static_cast<bf16*>(y), static_cast<const bf16*>(x), count, kind);
  else forward_kind(static_cast<float*>(y), static_cast<const float*>(x), count, kind);
}
void activation_backward(void* dx, const void* dy, const void* x, Dtype dtype, int64_t count, ActivationKernel kind) {
  if (dtype == Dtype::bf16) backward_kind(static_cast<bf16*>(dx), static_cast<const bf16*>(dy), static_cast<const bf16*>(x), count, kind);
  else backward_kind(static_cast<float*>(dx), static_cast<const float*>(dy), static_cast<const float*>(x), count, kind);
}
void swiglu_forward(void* y, const void* x, Dtype dtype, int64_t channels) {
  if (dtype == Dtype::bf16) swiglu_row(static_cast<bf16*>(y), static_cast<const bf16*>(x), channels);
  else swiglu_row(static_cast<float*>(y), static_cast<const float*>(x), channels);
}
void swiglu_backward(void* dx, const void* dy, const void* x, Dtype dtype, int64_t channels) {
  if (dtype == Dtype::bf16) swiglu_row_backward(static_cast<bf16*>(dx), static_cast<const bf16*>(dy), static_cast<const bf16*>(x), channels);
  else swiglu_row_backward(static_cast<float*>(dx), static_cast<const float*>(dy), static_cast<const float*>(x), channels);
}
void dropout(void* y, const void* x, Dtype dtype, int64_t count, uint64_t key, uint64_t high, uint64_t first, uint32_t threshold, float factor) {
  if (dtype == Dtype::bf16) dropout_of(static_cast<bf16*>(y), static_cast<const bf16*>(x), count, key, high, first, threshold, factor);
  else dropout_of(static_cast<float*>(y), static_cast<const float*>(x), count, key, high, first, threshold, factor);
}
float row_log_sum_exp(const void* logits, Dtype dtype, int64_t count, float* total) {
  if (dtype == Dtype::bf16) {
    const auto* l = static_cast<const bf16*>(logits);
    return total != nullptr ? log_sum_exp<true>(l, count, total) : log_sum_exp<false>(l, count, total);
  }
  const auto* l = static_cast<const float*>(logits);
  return total != nullptr ? log_sum_exp<true>(l, count, total) : log_sum_exp<false>(l, count, total);
}
void row_softmax_gradient(void* d, const void* logits, Dtype dtype, int64_t count, float lse, float scale, float shift, bool stream) {
  if (dtype == Dtype::bf16) softmax_gradient(static_cast<bf16*>(d), static_cast<const bf16*>(logits), count, lse, scale, shift, stream);
  else softmax_gradient(static_cast<float*>(d), static_cast<const float*>(logits), count, lse, scale, shift, stream);
}

float row_sum(const void* x, Dtype dtype, int64_t count) {
  return dtype == Dtype::bf16 ? sum_of(static_cast<const bf16*>(x), count) : sum_of(static_cast<const float*>(x), count);
}
float row_squares(const void* x, Dtype dtype, int64_t count, float mean) {
  return dtype == Dtype::bf16 ? squares_of(static_cast<const bf16*>(x), count, mean) : squares_of(static_cast<const float*>(x), count, mean);
}
void row_affine(void* y, const void* x, Dtype dtype, int64_t count, float mean, float scale, float shift) {
  if (dtype == Dtype::bf16) affine_of(static_cast<bf16*>(y), static_cast<const bf16*>(x), count, mean, scale, shift);
  else affine_of(static_cast<float*>(y), static_cast<const float*>(x), count, mean, scale, shift);
}
void row_gradient_sums(const void* dy, const void* x, Dtype dtype, int64_t count, float mean, float* sums) {
  if (dtype == Dtype::bf16) gradient_sums_of(static_cast<const bf16*>(dy), static_cast<const bf16*>(x), count, mean, sums);
  else gradient_sums_of(static_cast<const float*>(dy), static_cast<const float*>(x), count, mean, sums);
}
void row_norm_gradient(void* dx, const void* dy, const void* x, Dtype dtype, int64_t count, float mean, float a, float b, float c) {
  if (dtype == Dtype::bf16) norm_gradient_of(static_cast<bf16*>(dx), static_cast<const bf16*>(dy), static_cast<const bf16*>(x), count, mean, a, b, c);
  else norm_gradient_of(static_cast<float*>(dx), static_cast<const float*>(dy), static_cast<const float*>(x), count, mean, a, b, c);
}

}  // namespace FOVEA_SIMD
