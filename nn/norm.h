// SPDX-License-Identifier: Apache-2.0
#pragma once
// LayerNorm (1607.06450) and RMSNorm (1910.07467) over the last axis, and the same fused with the
// residual sum before it. gamma and beta stay f32 when x is bf16 (f64 with f64). Statistics are
// f32.

#include "nn/module.h"

namespace fovea::nn {

enum class NormKind { layer, rms };

struct NormOptions {
  NormKind kind = NormKind::layer;
  double eps = 1e-5;
  Dtype out_dtype = Dtype::f32;  // of the normalised result
};

// x [..., C], gamma [C], beta [C] or absent -> [..., C] in out_dtype
Variable norm(const Variable& x, const Variable& gamma, const Variable& beta,
              const NormOptions& options);
// {s, norm(s)} with s = x + delta in x's dtype; delta has x's shape, f32 or bf16. One pass forward,
// one backward.
Variables add_norm(const Variable& x, const Variable& delta, const Variable& gamma,
                   const Variable& beta, const NormOptions& options);

class Norm : public Module {
 public:
  // bias: LayerNorm's beta; RMSNorm has none.
  Norm(NormKind kind, int64_t channels, double eps, bool bias);
  Variable forward(const Variable& x, Dtype out_dtype) const {
    return norm(x, weight, bias, {kind_, eps_, out_dtype});
  }
  Variables add_forward(const Variable& x, const Variable& delta, Dtype out_dtype) const {
    return add_norm(x, delta, weight, bias, {kind_, eps_, out_dtype});
  }

  Variable weight, bias;

 private:
  NormKind kind_;
  double eps_;
};

}  // namespace fovea::nn
