// SPDX-License-Identifier: Apache-2.0
#pragma once
// The feed-forward half of a transformer block: x -> down(f(up(x))).

#include <string>

#include "nn/activation.h"
#include "nn/linear.h"

namespace fovea::nn {

// Which f: an Activation by name, or "swiglu" (up makes 2F channels: silu(first half) * second
// half, 2002.05202 eq. 6).
struct MlpOptions {
  std::string activation = "gelu_tanh";  // relu | gelu | gelu_tanh | silu | swiglu
  double ratio =
      4.0;  // hidden channels F = ratio * dim; swiglu: 2/3 of that, up to a multiple of 32
  bool bias = true;
};

// down(gelu(up(x))), gelu in its tanh form: x [..., in], up [F, in], up_bias [F], down [out, F],
// down_bias [out] or absent -> [..., out], as two linear layers and an activation give it, but one
// Function, whose products carry the GELU and the gradient of up_bias where the device's can
// (core/ops/matmul.h): a pass over [..., F] less each way. In bf16 that gradient is then rounded to
// bf16.
Variable gelu_mlp(const Variable& x, const Variable& up, const Variable& up_bias,
                  const Variable& down, const Variable& down_bias);

class Mlp : public Module {
 public:
  // `down_init` is the second weight's: models scale it by 1 / sqrt(2 layers).
  Mlp(int64_t dim, const MlpOptions& options, Init down_init);
  Variable forward(const Variable& x) const;  // [..., dim] -> [..., dim]
  double flops_per_token() const;             // forward, multiply-adds count two
  static int64_t hidden_channels(int64_t dim, const MlpOptions& options);

 private:
  std::string activation_;
  Linear up_, down_;
};

}  // namespace fovea::nn
