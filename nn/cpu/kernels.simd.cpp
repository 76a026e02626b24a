// SPDX-License-Identifier: Apache-2.0
#include "nn/cpu/kernels.h"

#include "core/cpu/philox.h"
#include "nn/cpu/vectors.h"

namespace FOVEA_SIMD {
namespace {

// ---- activations --------------------------------------------------------------------------------

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
  over(count, [&](int64_t i, Mask k, bool tail) {
    put(y + i, value<kKind>(get(x + i, k, tail)), k, tail);
  });
}
template <ActivationKernel kKind, typename T>
void backward_of(T* dx, const T* dy, const T* x, int64_t count) {
  over(count, [&](int64_t i, Mask k, bool tail) {
    put(dx + i, get(dy + i, k, tail) * derivative<kKind>(get(x + i, k, tail)), k, tail);
  });
}

template <typename T>
void forward_kind(T* y, const T* x, int64_t count, ActivationKernel kind) {
  switch (kind) {
    case ActivationKernel::relu:
      return forward_of<ActivationKernel::relu>(y, x, count);
    case ActivationKernel::gelu:
      return forward_of<ActivationKernel::gelu>(y, x, count);
    case ActivationKernel::gelu_tanh:
      return forward_of<ActivationKernel::gelu_tanh>(y, x, count);
    case ActivationKernel::silu:
      return forward_of<ActivationKernel::silu>(y, x, count);
  }
}
template <typename T>
void backward_kind(T* dx, const T* dy, const T* x, int64_t count, ActivationKernel kind) {
  switch (kind) {
    case ActivationKernel::relu:
      return backward_of<ActivationKernel::relu>(dx, dy, x, count);
    case ActivationKernel::gelu:
      return backward_of<ActivationKernel::gelu>(dx, dy, x, count);
    case ActivationKernel::gelu_tanh:
      return backward_of<ActivationKernel::gelu_tanh>(dx, dy, x, count);
    case ActivationKernel::silu:
      return backward_of<ActivationKernel::silu>(dx, dy, x, count);
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
    const Vec gate = get(x + i, k, tail), up = get(x + channels + i, k, tail),
              d = get(dy + i, k, tail), s = sigmoid(gate);
    put(dx + i, d * up * s * fma(gate, splat(1.0f) - s, splat(1.0f)), k, tail);
    put(dx + channels + i, d * gate * s, k, tail);
  });
}

// ---- dropout ------------------------------------------------------------------------------------

template <typename T>
void dropout_of(T* y, const T* x, int64_t count, uint64_t key, uint64_t high, uint64_t first,
                uint32_t threshold, float factor) {
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

// ---- softmax rows -------------------------------------------------------------------------------

template <typename T>
float largest_of(const T* l, int64_t count) {
  Vec top = splat(-__builtin_inff());
  over(count, [&](int64_t i, Mask k, bool tail) {
    const Vec x = get(l + i, k, tail);
    top = max(tail ? select(k, x, top) : x, top);
  });
  return max_lane(top);
}

// sum_j exp(l_j - shift); total, with kTotal, receives sum_j l_j. Four sums, so that none waits for
// the one before.
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

// One pass, relative to the largest of the first logits: any nearby reference will do. Where a
// later one is so much larger that the mass overflows, a second pass relative to the largest of
// all.
template <bool kTotal, typename T>
float log_sum_exp(const T* l, int64_t count, float* total) {
  float shift = largest_of(l, count < 512 ? count : 512);
  float mass =
      __builtin_isfinite(shift) ? shifted_mass<kTotal>(l, count, shift, total) : __builtin_inff();
  if (!__builtin_isfinite(mass)) {
    shift = largest_of(l, count);
    mass = shifted_mass<kTotal>(l, count, __builtin_isfinite(shift) ? shift : 0.0f, total);
  }
  return shift + __builtin_logf(mass);
}

template <typename T>
void softmax_gradient(T* d, const T* l, int64_t count, float lse, float scale, float shift,
                      bool stream) {
  const Vec shifted = splat(-lse * kLog2e), a = splat(scale), b = splat(shift);
  const bool streams = stream && is_aligned(d);
  over(count, [&](int64_t i, Mask k, bool tail) {
    put(d + i, fma(a, exp_shifted(get(l + i, k, tail), shifted), b), k, tail, streams);
  });
  if (stream) end_streaming();
}

// ---- rows of channels ---------------------------------------------------------------------------

// Sum of f(i, mask, tail) over the row; two sums overlap. f gives 0 in the lanes of a tail that are
// not there.
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
  over(count, [&](int64_t i, Mask k, bool tail) {
    put(y + i, fma(a, get(x + i, k, tail) - m, b), k, tail);
  });
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
void norm_gradient_of(T* dx, const T* dy, const T* x, int64_t count, float mean, float a, float b,
                      float c) {
  const Vec m = splat(mean), va = splat(a), vb = splat(b), vc = splat(c);
  over(count, [&](int64_t i, Mask k, bool tail) {
    put(dx + i, fma(va, get(dy + i, k, tail), fma(vb, get(x + i, k, tail) - m, vc)), k, tail);
  });
}

}  // namespace

void activation_forward(void* y, const void* x, Dtype dtype, int64_t count, ActivationKernel kind) {
  if (dtype == Dtype::bf16)
    forward_kind(static_cast<bf16*>(y), static_cast<const bf16*>(x), count, kind);
  else
    forward_kind(static_cast<float*>(y), static_cast<const float*>(x), count, kind);
}
void activation_backward(void* dx, const void* dy, const void* x, Dtype dtype, int64_t count,
                         ActivationKernel kind) {
  if (dtype == Dtype::bf16)
    backward_kind(static_cast<bf16*>(dx), static_cast<const bf16*>(dy), static_cast<const bf16*>(x),
                  count, kind);
  else
    backward_kind(static_cast<float*>(dx), static_cast<const float*>(dy),
                  static_cast<const float*>(x), count, kind);
}
void swiglu_forward(void* y, const void* x, Dtype dtype, int64_t channels) {
  if (dtype == Dtype::bf16)
    swiglu_row(static_cast<bf16*>(y), static_cast<const bf16*>(x), channels);
  else
    swiglu_row(static_cast<float*>(y), static_cast<const float*>(x), channels);
}
void swiglu_backward(void* dx, const void* dy, const void* x, Dtype dtype, int64_t channels) {
  if (dtype == Dtype::bf16)
    swiglu_row_backward(static_cast<bf16*>(dx), static_cast<const bf16*>(dy),
                        static_cast<const bf16*>(x), channels);
  else
    swiglu_row_backward(static_cast<float*>(dx), static_cast<const float*>(dy),
                        static_cast<const float*>(x), channels);
}
void dropout(void* y, const void* x, Dtype dtype, int64_t count, uint64_t key, uint64_t high,
             uint64_t first, uint32_t threshold, float factor) {
  if (dtype == Dtype::bf16)
    dropout_of(static_cast<bf16*>(y), static_cast<const bf16*>(x), count, key, high, first,
               threshold, factor);
  else
    dropout_of(static_cast<float*>(y), static_cast<const float*>(x), count, key, high, first,
               threshold, factor);
}
float row_log_sum_exp(const void* logits, Dtype dtype, int64_t count, float* total) {
  if (dtype == Dtype::bf16) {
    const auto* l = static_cast<const bf16*>(logits);
    return total != nullptr ? log_sum_exp<true>(l, count, total)
                            : log_sum_exp<false>(l, count, total);
  }
  const auto* l = static_cast<const float*>(logits);
  return total != nullptr ? log_sum_exp<true>(l, count, total)
                          : log_sum_exp<false>(l, count, total);
}
void row_softmax_gradient(void* d, const void* logits, Dtype dtype, int64_t count, float lse,
                          float scale, float shift, bool stream) {
  if (dtype == Dtype::bf16)
    softmax_gradient(static_cast<bf16*>(d), static_cast<const bf16*>(logits), count, lse, scale,
                     shift, stream);
  else
    softmax_gradient(static_cast<float*>(d), static_cast<const float*>(logits), count, lse, scale,
                     shift, stream);
}

float row_sum(const void* x, Dtype dtype, int64_t count) {
  return dtype == Dtype::bf16 ? sum_of(static_cast<const bf16*>(x), count)
                              : sum_of(static_cast<const float*>(x), count);
}
float row_squares(const void* x, Dtype dtype, int64_t count, float mean) {
  return dtype == Dtype::bf16 ? squares_of(static_cast<const bf16*>(x), count, mean)
                              : squares_of(static_cast<const float*>(x), count, mean);
}
void row_affine(void* y, const void* x, Dtype dtype, int64_t count, float mean, float scale,
                float shift) {
  if (dtype == Dtype::bf16)
    affine_of(static_cast<bf16*>(y), static_cast<const bf16*>(x), count, mean, scale, shift);
  else
    affine_of(static_cast<float*>(y), static_cast<const float*>(x), count, mean, scale, shift);
}
void row_gradient_sums(const void* dy, const void* x, Dtype dtype, int64_t count, float mean,
                       float* sums) {
  if (dtype == Dtype::bf16)
    gradient_sums_of(static_cast<const bf16*>(dy), static_cast<const bf16*>(x), count, mean, sums);
  else
    gradient_sums_of(static_cast<const float*>(dy), static_cast<const float*>(x), count, mean,
                     sums);
}
void row_norm_gradient(void* dx, const void* dy, const void* x, Dtype dtype, int64_t count,
                       float mean, float a, float b, float c) {
  if (dtype == Dtype::bf16)
    norm_gradient_of(static_cast<bf16*>(dx), static_cast<const bf16*>(dy),
                     static_cast<const bf16*>(x), count, mean, a, b, c);
  else
    norm_gradient_of(static_cast<float*>(dx), static_cast<const float*>(dy),
                     static_cast<const float*>(x), count, mean, a, b, c);
}

}  // namespace FOVEA_SIMD
