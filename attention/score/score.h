// SPDX-License-Identifier: Apache-2.0
#pragma once
// The score engine on the CPU: softmax attention in tiles of 64 queries x 64 keys, never N x M in memory, forward and
// backward (1706.03762 section 3.2.1; tiled as in 2205.14135). Tiles that a mask excludes are never computed.

#include "attention/mask.h"
#include "core/rng.h"
#include "core/tensor.h"

namespace fovea::attention {

enum class Rope { none, interleaved, half };  // pairs (2t, 2t+1), or (t, t + D/2) (2104.09864)

struct ScoreInputs {
  // [B, H, N, D], [B, Hkv, M, D], [B, Hkv, M, Dv]; H a multiple of Hkv, query head h reads key head h / (H / Hkv). f32,
  // bf16 or f64; any strides with a unit last one (views into a packed qkv are the usual case).
  Tensor q, k, v;
  Tensor alibi_slopes;  // [H] f32: score -= slope |i' - j| (2108.12409); or absent
  Tensor sink;          // [H] f32 (f64): one more key with this score and no value; or absent
};

struct ScoreOptions {
  double scale = 0.0;    // of q.k; 0: D^-1/2
  double softcap = 0.0;  // c tanh(score / c) before ALiBi; 0: none
  Rope rope = Rope::none;
  double rope_base = 10000.0;
  double dropout = 0.0;  // of probabilities, drawn at (b, h, i, j)
  RngKey rng;
  int64_t first_sample = 0;  // index of b = 0 in the global batch
};

struct ScoreResult {
  Tensor out;  // [B, H, N, Dv] in q's dtype; in memory [B, N, H, Dv], so that [B, N, H Dv] is a view
  Tensor lse;  // [B, H, N] f32 (f64 for f64): log of the normaliser, -inf for a row that sees nothing
};

struct ScoreGrads {
  Tensor dq, dk, dv;  // given: these views are written (slices of one packed dqkv); absent: made
  Tensor dsink;       // [H], with a sink
};

// A row that sees nothing gives 0. Throws naming shapes that do not fit.
ScoreResult softmax_forward(const ScoreInputs& in, const Mask& mask, const ScoreOptions& options);

// With P the probabilities, dP = dout v^T (dropped like P), Delta = rowsum(dout out):
//   dS = P (dP - Delta),  dq = scale dS k,  dk = scale dS^T q,  dv = P^T dout,  dsink = -sum exp(sink - lse) Delta.
// Five products a tile. One task is a (b, key head), so the order of every sum is fixed by the shapes.
ScoreGrads softmax_backward(const Tensor& dout, const ScoreResult& result, const ScoreInputs& in, const Mask& mask, const ScoreOptions& options,
                            ScoreGrads into = {});

// ALiBi's slopes for H heads: 2^(-8 (h+1) / H) for a power of two; else those of the next lower one, then every second of
// the next higher.
Tensor alibi_slopes(int64_t heads);

}  // namespace fovea::attention
