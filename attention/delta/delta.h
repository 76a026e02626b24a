// SPDX-License-Identifier: Apache-2.0
#pragma once
// The delta engine, on the CPU and on GPU devices: linear attention that first takes away what the
// state already answers to a key (DeltaNet, 2406.06484; with a gate, 2412.06464), in chunks of 64
// tokens. Per head, rows, a_t = e^g_t:
//
//   S_t = (I - beta_t k_t^T k_t) diag(a_t) S_{t-1} + beta_t k_t^T v_t,   o_t = q_t S_t
//
// (for a gate per token that is a_t (I - beta_t k_t^T k_t) S_{t-1} + ...). Within a chunk, with b_i
// the sum of g from its start through i, every step is S_i = diag(a_i) S_{i-1} + k_i^T u_i with
// u_i = beta_i e_i, and the errors e solve a unit triangular system:
//
//   (I + L diag(beta)) E = V - (K e^b) S,   L_ij = sum_c k_ic k_jc e^(b_ic - b_jc), j < i
//   O  = (Q e^b) S + A U,                   A_ij = sum_c q_ic k_jc e^(b_ic - b_jc), j <= i
//   S' = e^b_last S + (K e^(b_last - b))^T U
//
// Cost a token and head: that of the linear engine, and C Dk + C Dv / 2 + 2 Dk Dv more. Keys should
// have length 1 and beta should be in [0, 2], or the states grow without bound. Otherwise as the
// linear engine (attention/linear/linear.h).

#include "attention/linear/linear.h"

namespace fovea::attention {

struct DeltaInputs : LinearInputs {
  Tensor beta = {};  // [B, H, N] f32 (f64 for f64)
};

struct DeltaGrads : LinearGrads {
  Tensor dbeta;  // [B, H, N]
};

// Throws naming shapes or dtypes that do not fit. On a GPU device Dk is at most 256.
LinearResult delta_forward(const DeltaInputs& in);

// dout [B, H, N, Dv] and dstate, the gradient of the last state; one of them may be absent. With dS
// the gradient of the state that leaves a chunk:
//   (I + diag(beta) L)^T Y = A^T dO + (K e^(b_last - b)) dS,   dV = beta Y,   dbeta_i = y_i . e_i
//   dA = dO U^T,  dL = -dV U^T  (lower triangles), then through S, A and L to q, k and g
DeltaGrads delta_backward(const DeltaInputs& in, const Tensor& dout, const Tensor& dstate = {});

// What a stretch of tokens does to the state before it: S_last = transition S_first + state, as
// [B, H, Dk, Dk]; see linear_transition. Costs a forward pass with Dv = Dk.
Tensor delta_transition(const DeltaInputs& in);

// One token: q, k, v [B, H, 1, D]; in.state is replaced by the state after it. Returns out.
Tensor delta_step(const DeltaInputs& in);

// Differentiable in q, k, v, beta, g and state; returns {out, state}. g and state may be absent.
Variables delta_rule(const Variable& q, const Variable& k, const Variable& v, const Variable& beta,
                     const Variable& g = {}, const Variable& state = {}, const Tensor& starts = {});

}  // namespace fovea::attention
