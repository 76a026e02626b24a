// SPDX-License-Identifier: Apache-2.0
#pragma once
// The door to cuDNN's convolutions, loaded with the first of them. Sums are f32: of f32 in full
// precision (no tf32), of bf16 in the tensor cores. Only algorithms that give the same bits every
// time are used.

#include "core/ops/conv.h"
#include "core/ops/conv_pass.h"

namespace fovea::cudnn {

// x [B, in, H, W], w [out, in / groups, kh, kw], y [B, out, H', W']: contiguous, of one dtype (f32
// or bf16), on one card, none empty. Where padding differs on the two sides, x is copied into its
// padding.
void convolve(ConvPass pass, const Tensor& x, const Tensor& w, const Tensor& y,
              const ConvGeometry& geometry);

}  // namespace fovea::cudnn
