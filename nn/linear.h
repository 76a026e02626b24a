// SPDX-License-Identifier: Apache-2.0
#pragma once
// y = x W^T + b. The weight is [out, in], as in the papers' pages and in PyTorch.

#include "nn/module.h"

namespace fovea::nn {

// x [..., in], weight [out, in], bias [out] or absent -> [..., out] in x's dtype. Weight and bias
// are f32 masters: for a bf16 x the weight is rounded to bf16 for the products, which accumulate in
// f32, and its gradient comes back in f32. Backward: dx = dy W,  dW = dy^T x,  db = sum over rows
// of dy.
Variable linear(const Variable& x, const Variable& weight, const Variable& bias);

class Linear : public Module {
 public:
  // `init` is the weight's; a bias starts at zero.
  Linear(int64_t in, int64_t out, bool bias = true, Init init = Init::normal(0.02));
  Variable forward(const Variable& x) const { return linear(x, weight, bias); }

  Variable weight;  // [out, in]
  Variable bias;    // [out], or absent
};

}  // namespace fovea::nn
