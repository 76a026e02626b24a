// SPDX-License-Identifier: Apache-2.0
#pragma once
// The linear engine, on the CPU and on GPU devices: causal attention without softmax (2006.16236),
// with decay (scalar gates; per channel: GLA, 2312.06635), in chunks of 64 tokens. Per head, rows:
//
//   S_t = diag(e^g_t) S_{t-1} + k_t^T v_t,   o_t = q_t S_t,   S [Dk, Dv]
//
// Within a chunk, with b_i the sum of g from its start through i (of differences of b only those
// are made that are sums of gates, so nothing overflows where g <= 0):
//
//   o_i = (q_i e^b_i) S + sum_{j <= i} (q_i . k_j e^(b_i - b_j)) v_j
//   S'  = e^b_last S + sum_j (k_j e^(b_last - b_j))^T v_j
//
// Cost a token and head: 2 C (Dk + Dv) + 4 Dk Dv FLOP forward; memory: the inputs, and one state a
// chunk while a call runs. Never N x N. bf16 inputs are multiplied and summed in f32. The bits of a
// result do not depend on the number of threads.
//
// A normaliser is one more column of ones in v: its output is q_t . sum_j k_j, decays included.

#include "autograd/function.h"

namespace fovea::attention {

struct LinearInputs {
  // [B, H, N, Dk], [B, H, N, Dk], [B, H, N, Dv] in f32, bf16 or f64; any strides.
  Tensor q, k, v;
  // Logarithms of decays, <= 0, f32 (f64 for f64): [H] per head, [B, H, N] per token, or
  // [B, H, N, Dk] per token and channel; absent: no decay.
  Tensor g = {};
  // [B, N] u8: where it is not 0 a document starts: the state is 0 before that token, whatever its
  // gate. Absent: nowhere.
  Tensor starts = {};
  Tensor state = {};  // [B, H, Dk, Dv] f32 (f64 for f64) before the first token; absent: 0
};

struct LinearResult {
  Tensor out;    // [B, H, N, Dv] in q's dtype; in memory [B, N, H, Dv]
  Tensor state;  // [B, H, Dk, Dv] after the last token, f32 (f64 for f64)
};

struct LinearGrads {
  Tensor dq, dk, dv;  // in q's dtype; in memory [B, N, H, D]
  Tensor dg;          // g's shape; absent without g
  Tensor dstate;      // of the state before the first token, [B, H, Dk, Dv]
};

// Throws naming shapes or dtypes that do not fit. On a GPU device Dk is at most 256.
LinearResult linear_forward(const LinearInputs& in);

// dout [B, H, N, Dv] and dstate, the gradient of the last state; one of them may be absent. With dS
// the gradient of the state that leaves a chunk, and all in units of q and k:
//   dq_i = e^b_i (do_i S^T) + sum_{j <= i} (do_i . v_j) e^(b_i - b_j) k_j
//   dk_j = e^(b_last - b_j) (v_j dS^T) + sum_{i >= j} (do_i . v_j) e^(b_i - b_j) q_i
//   dg_t = sum_{i >= t} (q_i dq_i - k_i dk_i) + rowsum(S' dS)      (2312.06635, within the chunk)
LinearGrads linear_backward(const LinearInputs& in, const Tensor& dout, const Tensor& dstate = {});

// What a stretch of tokens does to the state before it: S_last = transition S_first + state, as
// [B, H, Dk, 1]. A sequence split over ranks: X_{r+1} = M_r X_r + S_r with S_r computed from a
// zero state, then each rank again from X_r; and back: G_r = dstate_r + M_r^T G_{r+1} with dstate_r
// computed with a zero gradient of the last state.
Tensor linear_transition(const LinearInputs& in);

// One token: q, k, v [B, H, 1, D]; in.state is replaced by the state after it. Returns out.
Tensor linear_step(const LinearInputs& in);

// u8 [B, N] from i32 or i64 document ids [B, N] on the cpu: 1 at the first token of each run of
// equal ids, the first token of the sequence included. Slices along N are what shards take.
Tensor document_starts(const Tensor& ids);

// Differentiable in q, k, v, g and state; returns {out, state}. g and state may be absent.
Variables linear_attention(const Variable& q, const Variable& k, const Variable& v,
                           const Variable& g = {}, const Variable& state = {},
                           const Tensor& starts = {});

}  // namespace fovea::attention
