// SPDX-License-Identifier: Apache-2.0
#pragma once
// What the linear and the delta engine share about one call: sizes, checked and uniform inputs.
// Internal to the two.

#include "attention/linear/linear.h"

namespace fovea::attention {

inline constexpr int64_t kChunk = 64, kSubChunk = 16;

struct LinearProblem {
  int64_t B, H, N, Dk, Dv;
  int64_t G;  // gates a token: Dk, or 1 (also where there are none)
  int64_t heads() const { return B * H; }
  int64_t chunks() const { return (N + kChunk - 1) / kChunk; }
};

// Throws naming what does not fit; `op` begins the message.
LinearProblem check_linear(const char* op, const LinearInputs& in);

// The same inputs with unit last strides, g as a view [B, H, N, G], starts and state contiguous.
LinearInputs prepared_linear(const LinearProblem& p, const LinearInputs& in);

// f32, or f64 for f64: what gates and states are kept in.
inline Dtype state_dtype(const Tensor& q) {
  return q.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32;
}

// [B, H, N, D] in memory [B, N, H, D].
inline Tensor token_major(const LinearProblem& p, int64_t D, Dtype dtype, Device device) {
  return Tensor::empty({p.B, p.N, p.H, D}, dtype, device).transpose(1, 2);
}

// Absent results of a backward's shape; dg as [B, H, N, G].
LinearGrads make_grads(const LinearProblem& p, const LinearInputs& in);
// From gradients of [B, H, N, G] to those of g as it was given.
Tensor gate_gradient_of(const Tensor& dg, const Tensor& g);

// Throws unless dout and dstate (either may be absent) fit; returns them, zeros for an absent dout.
Tensor check_dout(const char* op, const LinearProblem& p, const LinearInputs& in,
                  const Tensor& dout, const Tensor& dstate);

}  // namespace fovea::attention
