// SPDX-License-Identifier: Apache-2.0
// Activations and their derivatives, elementwise in f32:
//   relu       max(x, 0)
//   gelu       x Phi(x),  Phi = (1 + erf(x / sqrt 2)) / 2                              (1606.08415)
//   gelu_tanh  x (1 + tanh u) / 2,  u = sqrt(2 / pi) (x + 0.044715 x^3)
//   silu       x sigmoid(x)
//   swiglu     silu(a) b with a, b the halves of a row                       (2002.05202 eq. 6)
// Shapes  any; swiglu x [R, 2F] -> y [R, F].   Saved  x: backward recomputes the rest.
// Cost  forward: x read, y written once; backward: dy, x read, dx written once. The limit is
// memory.
#include "nn/cuda/elementwise.h"
#include "nn/cuda/vectors.cuh"

namespace FOVEA_GPU {
namespace {

__device__ inline float sigmoid(float x) { return reciprocal_fast(1.0f + exp_fast(-x)); }

template <ActivationKernel kKind>
__device__ inline float value(float x) {
  if constexpr (kKind == ActivationKernel::relu) {
    return x < 0.0f ? 0.0f : x;
  } else if constexpr (kKind == ActivationKernel::gelu) {
    return x * 0.5f * (1.0f + erff(x * 0.70710678f));
  } else if constexpr (kKind == ActivationKernel::gelu_tanh) {
    return 0.5f * x * (1.0f + tanh_fast(0.79788456f * (x + 0.044715f * x * x * x)));
  } else {
    return x * sigmoid(x);
  }
}

template <ActivationKernel kKind>
__device__ inline float slope(float x) {
  if constexpr (kKind == ActivationKernel::relu) {
    return x > 0.0f ? 1.0f : 0.0f;
  } else if constexpr (kKind == ActivationKernel::gelu) {
    // Phi + x phi
    return 0.5f * (1.0f + erff(x * 0.70710678f)) + x * 0.39894228f * exp_fast(-0.5f * x * x);
  } else if constexpr (kKind == ActivationKernel::gelu_tanh) {
    const float t = tanh_fast(0.79788456f * (x + 0.044715f * x * x * x));
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * 0.79788456f * (1.0f + 0.134145f * x * x);
  } else {
    const float s = sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
  }
}

// f(kind as a constant)
template <typename F>
__device__ inline void with_kind(ActivationKernel kind, F&& f) {
  using enum ActivationKernel;
  if (kind == relu) return f(std::integral_constant<ActivationKernel, relu>{});
  if (kind == gelu) return f(std::integral_constant<ActivationKernel, gelu>{});
  if (kind == gelu_tanh) return f(std::integral_constant<ActivationKernel, gelu_tanh>{});
  f(std::integral_constant<ActivationKernel, silu>{});
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    activation_forward_kernel(Global<T> y, Global<const T> x, int64_t count, ActivationKernel kind,
                              bool wide) {
  with_kind(kind, [&](auto constant) {
    constexpr ActivationKernel kKind = decltype(constant)::value;
    each_chunk<T, 1>(
        count, wide, [&]<int N>(float(&v)[1][N], int64_t i) { load_floats<N, T>(v[0], x + i); },
        [&]<int N>(float(&v)[1][N], int64_t i) {
          FOVEA_UNROLL
          for (int e = 0; e < N; ++e) v[0][e] = value<kKind>(v[0][e]);
          store_floats<N, T>(y + i, v[0]);
        });
  });
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    activation_backward_kernel(Global<T> dx, Global<const T> dy, Global<const T> x, int64_t count,
                               ActivationKernel kind, bool wide) {
  with_kind(kind, [&](auto constant) {
    constexpr ActivationKernel kKind = decltype(constant)::value;
    each_chunk<T, 2>(
        count, wide,
        [&]<int N>(float(&v)[2][N], int64_t i) {
          load_floats<N, T>(v[0], x + i);
          load_floats<N, T>(v[1], dy + i);
        },
        [&]<int N>(float(&v)[2][N], int64_t i) {
          FOVEA_UNROLL
          for (int e = 0; e < N; ++e) v[0][e] = v[1][e] * slope<kKind>(v[0][e]);
          store_floats<N, T>(dx + i, v[0]);
        });
  });
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    swiglu_forward_kernel(Global<T> y, Global<const T> x, int64_t count, int64_t channels,
                          bool wide) {
  each_chunk<T, 2>(
      count, wide,
      [&]<int N>(float(&v)[2][N], int64_t i) {
        const int64_t at = i + i / channels * channels;  // in the first half
        load_floats<N, T>(v[0], x + at);
        load_floats<N, T>(v[1], x + (at + channels));
      },
      [&]<int N>(float(&v)[2][N], int64_t i) {
        FOVEA_UNROLL
        for (int e = 0; e < N; ++e) v[0][e] = value<ActivationKernel::silu>(v[0][e]) * v[1][e];
        store_floats<N, T>(y + i, v[0]);
      });
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    swiglu_backward_kernel(Global<T> da, Global<T> db, Global<const T> dy, Global<const T> x,
                           int64_t count, int64_t channels, bool wide) {
  each_chunk<T, 3>(
      count, wide,
      [&]<int N>(float(&v)[3][N], int64_t i) {
        const int64_t at = i + i / channels * channels;
        load_floats<N, T>(v[0], x + at);
        load_floats<N, T>(v[1], x + (at + channels));
        load_floats<N, T>(v[2], dy + i);
      },
      [&]<int N>(float(&v)[3][N], int64_t i) {
        FOVEA_UNROLL
        for (int e = 0; e < N; ++e) {
          const float a = v[0][e], d = v[2][e];
          v[0][e] = d * v[1][e] * slope<ActivationKernel::silu>(a);
          v[1][e] = d * value<ActivationKernel::silu>(a);
        }
        const int64_t at = i + i / channels * channels;
        store_floats<N, T>(da + at, v[0]);
        store_floats<N, T>(db + at, v[1]);
      });
}

}  // namespace

void activation_forward(void* y, const void* x, Dtype dtype, int64_t count, ActivationKernel kind,
                        Stream stream) {
  if (count == 0) return;
  with_floating(dtype, [&](auto type) {
    using T = decltype(type);
    launch<activation_forward_kernel<T>>(ceil_div(count, kBlockElements<T, 1>), kThreads, 0, stream,
                                         static_cast<T*>(y), static_cast<const T*>(x), count, kind,
                                         on_boundaries({y, x}));
  });
}

void activation_backward(void* dx, const void* dy, const void* x, Dtype dtype, int64_t count,
                         ActivationKernel kind, Stream stream) {
  if (count == 0) return;
  with_floating(dtype, [&](auto type) {
    using T = decltype(type);
    launch<activation_backward_kernel<T>>(ceil_div(count, kBlockElements<T, 2>), kThreads, 0,
                                          stream, static_cast<T*>(dx), static_cast<const T*>(dy),
                                          static_cast<const T*>(x), count, kind,
                                          on_boundaries({dx, dy, x}));
  });
}

void swiglu_forward(void* y, const void* x, Dtype dtype, int64_t rows, int64_t channels,
                    Stream stream) {
  const int64_t count = rows * channels;
  if (count == 0) return;
  with_floating(dtype, [&](auto type) {
    using T = decltype(type);
    launch<swiglu_forward_kernel<T>>(ceil_div(count, kBlockElements<T, 2>), kThreads, 0, stream,
                                     static_cast<T*>(y), static_cast<const T*>(x), count, channels,
                                     channels % kWide<T> == 0 && on_boundaries({y, x}));
  });
}

void swiglu_backward(void* dx, const void* dy, const void* x, Dtype dtype, int64_t rows,
                     int64_t channels, Stream stream) {
  const int64_t count = rows * channels;
  if (count == 0) return;
  with_floating(dtype, [&](auto type) {
    using T = decltype(type);
    launch<swiglu_backward_kernel<T>>(
        ceil_div(count, kBlockElements<T, 3>), kThreads, 0, stream, static_cast<T*>(dx),
        static_cast<T*>(dx) + channels, static_cast<const T*>(dy), static_cast<const T*>(x), count,
        channels, channels % kWide<T> == 0 && on_boundaries({dx, dy, x}));
  });
}

}  // namespace FOVEA_GPU
