// SPDX-License-Identifier: Apache-2.0
#pragma once
// Convolution over two axes (one axis: height 1), dense, grouped or depthwise, with strides,
// dilation and padding that may differ on the two sides (a causal one pads only before). f32 and
// bf16 through oneDNN, on a card cuDNN (bf16 accumulates in f32); f64 is the plain definition, for
// checks. Operands are on one device. In symbols:
//   y[b, o, i, j] = bias[o] + sum over c, u, v of x[b, c, i s - p + u d, j s - p + v d] w[o, c, u,
//   v],
// where o sees the input channels of its own group and x is zero outside.

#include <array>
#include <optional>

#include "core/tensor.h"

namespace fovea {

struct ConvGeometry {
  std::array<int64_t, 2> stride{1, 1};
  std::array<int64_t, 2> dilation{1, 1};             // 1: neighbours
  std::array<int64_t, 2> before{0, 0}, after{0, 0};  // zeros above/left, below/right
  int64_t groups = 1;  // divides input and output channels; depthwise: as many as channels
};

// [B, out, H', W'] of x [B, in, H, W] and w [out, in / groups, kh, kw]: H' = (H + pads - (kh - 1) d
// - 1) / s + 1. Throws naming both shapes when they do not fit or nothing is left.
Shape conv_shape(const Shape& x, const Shape& w, const ConvGeometry& geometry);

// x and w of one dtype; bias [out] of any floating dtype, or absent. The result has x's dtype.
Tensor conv(const Tensor& x, const Tensor& w, const Tensor& bias, const ConvGeometry& geometry);
// Gradient by x (of shape `x`) of a result whose gradient is dy, in dy's dtype.
Tensor conv_input_gradient(const Tensor& dy, const Tensor& w, const Shape& x,
                           const ConvGeometry& geometry);
// Gradient by w (of shape `w`): f32 for f32 and bf16 (a card rounds the latter's to bf16 on the
// way), f64 for f64. On the cpu the batch is summed in an order that depends on the number of
// threads in its last bits.
Tensor conv_weight_gradient(const Tensor& dy, const Tensor& x, const Shape& w,
                            const ConvGeometry& geometry);

}  // namespace fovea
