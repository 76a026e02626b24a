// SPDX-License-Identifier: Apache-2.0
#pragma once
// Convolution layers: dense, grouped, depthwise, dilated, strided (core/ops/conv.h has the
// definition). Weight and bias are f32 masters, as in Linear: a bf16 input is computed in bf16 with
// f32 accumulation.

#include "core/ops/conv.h"
#include "nn/module.h"

namespace fovea::nn {

// x [B, C, H, W], weight [out, C / groups, kh, kw], bias [out] or absent -> [B, out, H', W'] in x's
// dtype
Variable conv2d(const Variable& x, const Variable& weight, const Variable& bias,
                const ConvGeometry& geometry = {});

struct ConvOptions {
  int64_t stride = 1;
  int64_t padding = 0;  // zeros on both sides
  int64_t dilation = 1;
  int64_t groups = 1;
  bool bias = true;
};

// A square kernel. The weight starts uniform in +-1 / sqrt(fan-in), the bias at zero.
class Conv2d : public Module {
 public:
  Conv2d(int64_t in, int64_t out, int64_t kernel, const ConvOptions& options = {});
  Variable forward(const Variable& x) const { return conv2d(x, weight, bias, geometry_); }

  Variable weight;  // [out, in / groups, kernel, kernel]
  Variable bias;    // [out], or absent

 private:
  ConvGeometry geometry_;
};

// Over [B, C, N]. causal: pads (kernel - 1) dilation zeros before and none after, so that position
// n sees nothing later.
class Conv1d : public Module {
 public:
  Conv1d(int64_t in, int64_t out, int64_t kernel, const ConvOptions& options = {},
         bool causal = false);
  Variable forward(const Variable& x) const;

  Variable weight;  // [out, in / groups, kernel]
  Variable bias;    // [out], or absent

 private:
  ConvGeometry geometry_;
};

}  // namespace fovea::nn
