// SPDX-License-Identifier: Apache-2.0
#pragma once
// Row kernels of the fused layers, for f32 and bf16 (f64 runs the plain loops beside their
// callers). Pointers are rows of contiguous tensors; statistics are f32. Callers split rows over
// threads.

#include <cstdint>

#include "core/cpu/isa.h"
#include "core/dtype.h"

namespace fovea {

// Results larger than this are written past the caches: nothing of them would still be there for
// the reader.
inline constexpr int64_t kCacheBytes = int64_t{32} << 20;

// y = norm(s) gamma + beta with s = x (+ delta). LayerNorm (1607.06450): (s - mean) rstd; RMSNorm
// (1910.07467): s rstd. Bytes a row: x, delta read once; s, y written once; the row stays in L1
// between the passes.
struct NormForward {
  const void* x;
  Dtype x_dtype;
  const void* delta;  // or null
  Dtype delta_dtype;
  void* sum;  // s in x's dtype, when delta is given
  void* y;
  Dtype y_dtype;
  const float* gamma;
  const float* beta;  // or null
  float* mean;        // [rows], LayerNorm only
  float* rstd;        // [rows]
  int64_t channels;
  float eps;
  bool rms;
  bool stream;  // results are larger than the caches: write past them
};

// With xhat = (s - mean) rstd and g = dy gamma:  ds = rstd (g - mean(g) - xhat mean(g xhat)) (+
// dsum);  RMSNorm has no mean(g) term. Adds dy xhat to dgamma [channels] and dy to dbeta.
struct NormBackward {
  const void* dy;
  Dtype dy_dtype;
  const void* s;
  Dtype s_dtype;
  const void* dsum;  // gradient that reached s itself, s's dtype; or null
  void* ds;
  const float* gamma;
  const float* mean;
  const float* rstd;
  int64_t channels;
  bool rms;
  bool stream;  // ds is larger than the caches: write past them
};

enum class ActivationKernel { relu, gelu, gelu_tanh, silu };

}  // namespace fovea

FOVEA_SIMD_DECLARE(
    void norm_forward(const NormForward& call, int64_t begin, int64_t end);
    void norm_backward(const NormBackward& call, int64_t begin, int64_t end, float* dgamma,
                       float* dbeta);

    // y = f(x);  dx = dy f'(x)
    void activation_forward(void* y, const void* x, Dtype dtype, int64_t count,
                            ActivationKernel kind);
    void activation_backward(void* dx, const void* dy, const void* x, Dtype dtype, int64_t count,
                             ActivationKernel kind);
    // y [F] = silu(x[0:F]) x[F:2F];  dx [2F]
    void swiglu_forward(void* y, const void* x, Dtype dtype, int64_t channels);
    void swiglu_backward(void* dx, const void* dy, const void* x, Dtype dtype, int64_t channels);

    // y = x times 0 or factor; element i is dropped where word first + i of the stream (key, high)
    // of core/rng.h is below the threshold
    void dropout(void* y, const void* x, Dtype dtype, int64_t count, uint64_t key, uint64_t high,
                 uint64_t first, uint32_t threshold, float factor);

    // log sum_j exp(l_j) of one row, read once; *total, where given, receives sum_j l_j.
    float row_log_sum_exp(const void* logits, Dtype dtype, int64_t count, float* total);
    // d_j = scale exp(l_j - lse) + shift; `stream`: d is part of something larger than the caches,
    // write past them.
    void row_softmax_gradient(void* d, const void* logits, Dtype dtype, int64_t count, float lse,
                              float scale, float shift, bool stream);

    // One channel of one image, for the norms over channels: sum x;  sum (x - mean)^2;  y = scale
    // (x - mean) + shift
    float row_sum(const void* x, Dtype dtype, int64_t count);
    float row_squares(const void* x, Dtype dtype, int64_t count, float mean);
    void row_affine(void* y, const void* x, Dtype dtype, int64_t count, float mean, float scale,
                    float shift);
    // sums = {sum dy, sum dy (x - mean)};  dx = a dy + b (x - mean) + c
    void row_gradient_sums(const void* dy, const void* x, Dtype dtype, int64_t count, float mean,
                           float* sums);
    void row_norm_gradient(void* dx, const void* dy, const void* x, Dtype dtype, int64_t count,
                           float mean, float a, float b, float c);)
