// SPDX-License-Identifier: Apache-2.0
#pragma once
// The score engine, on the CPU and on GPU devices: attention under a Rule (attention/score/rule.h;
// softmax is the first) in tiles, never N x M in memory, forward and backward (tiled as in
// 2205.14135, 2307.08691). Tiles that a mask excludes are never computed; a key that a mask hides
// changes nothing, not even when it is NaN. The bits of a result depend on shapes and values alone,
// never on the number of threads (but see ScoreOptions::deterministic); with few queries on a card
// also on its number of SMs, over which keys are split.

#include "attention/mask.h"
#include "attention/score/rule.h"
#include "core/rng.h"
#include "core/tensor.h"

namespace fovea::attention {

enum class Rope { none, interleaved, half };  // pairs (2t, 2t+1), or (t, t + D/2) (2104.09864)

struct ScoreInputs {
  // [B, H, N, D], [B, Hkv, M, D], [B, Hkv, M, Dv]; H a multiple of Hkv, query head h reads key head
  // h / (H / Hkv). f32, bf16 or f64; any strides with a unit last one (views into a packed qkv are
  // the usual case).
  Tensor q, k, v;
  Tensor alibi_slopes;  // [H] f32: score -= slope |i' - j| (2108.12409); or absent
  Tensor sink;  // [H] f32 (f64): one more key with this score and no value; online rules only; or
                // absent
  Tensor bias = {};  // [B or 1, H or 1, N, M] f32 (f64), added to scores; or absent
};

struct ScoreOptions {
  double scale = 0.0;    // of q.k; 0: D^-1/2
  double softcap = 0.0;  // c tanh(score / c) before ALiBi and bias; 0: none
  Rope rope = Rope::none;
  double rope_base = 10000.0;
  double dropout = 0.0;  // of probabilities, drawn at (b, h, i, j)
  RngKey rng;
  int64_t first_sample = 0;  // index of b = 0 in the global batch
  // Backward in bf16 on a GPU device: blocks add to dq in a fixed order, at the price of waits.
  // false: as they come, and the last bits of dq differ from run to run.
  bool deterministic = true;
};

struct ScoreResult {
  Tensor
      out;  // [B, H, N, Dv] in q's dtype; in memory [B, N, H, Dv], so that [B, N, H Dv] is a view
  // [B, H, N] f32 (f64 for f64), what backward knows of a row: the log of the normaliser (online
  // rules; -inf for a row that sees nothing), the normaliser, or 0 where the rule has none.
  Tensor lse;
};

struct ScoreGrads {
  Tensor dq, dk, dv;  // given: these views are written (slices of one packed dqkv); absent: made
  Tensor dsink;       // [H], with a sink
  Tensor dbias = {};  // bias's shape, with a bias
};

// Where the mask is a part of another (Mask::part), queries, keys and heads are that part, and
// ALiBi, rotary positions and dropout are those of the whole. With its keys in several parts a
// problem is summed up by score_forward_sums and score_finish, and score_backward_sums.
//
// A row that sees nothing gives 0. Throws naming shapes that do not fit. bf16 inputs are multiplied
// in bf16 and summed in f32. On a GPU device all tensors are there (ALiBi's slopes may come from
// the cpu), f32 or bf16; head dims past 256 go by a slow kernel, which is said once.
ScoreResult score_forward(const ScoreRule& rule, const ScoreInputs& in, const Mask& mask,
                          const ScoreOptions& options);

// With P the weights, dP = dout v^T (dropped like P), Delta = rowsum(dout out), for softmax:
//   dS = P (dP - Delta),  dbias = dS,  dq = scale dS k,  dk = scale dS^T q,  dv = P^T dout,  dsink
//   = -sum exp(sink - lse) Delta
// (through a soft-cap, dS is multiplied by its derivative after dbias).
ScoreGrads score_backward(const ScoreRule& rule, const Tensor& dout, const ScoreResult& result,
                          const ScoreInputs& in, const Mask& mask, const ScoreOptions& options,
                          ScoreGrads into = {});

// Rows under way, f32 (f64 for f64), contiguous: [B, H, N, Dv], and [B, H, N] the reference and the
// sum of weights (attention/score/rule.h), whose unit is the device's.
struct ScoreSums {
  Tensor acc, m, l;
};
// Of rows that have seen no key.
ScoreSums score_sums(const ScoreInputs& in);
// Adds the keys of `in` to the rows. A sink is one key: give it with one part of the keys.
void score_forward_sums(const ScoreRule& rule, const ScoreInputs& in, const Mask& mask,
                        const ScoreOptions& options, const ScoreSums& sums);
// Writes out and lse, or makes them where they are absent: `dtype` is out's.
ScoreResult score_finish(const ScoreRule& rule, const ScoreSums& sums, Dtype dtype,
                         ScoreResult into = {});
// Adds to dq, dk, dv (f32, f64 for f64; all given), and to dsink where there is a sink. `result` is
// that of all keys.
void score_backward_sums(const ScoreRule& rule, const Tensor& dout, const ScoreResult& result,
                         const ScoreInputs& in, const Mask& mask, const ScoreOptions& options,
                         ScoreGrads& sums);

inline ScoreResult softmax_forward(const ScoreInputs& in, const Mask& mask,
                                   const ScoreOptions& options) {
  return score_forward(softmax_rule(), in, mask, options);
}
inline ScoreGrads softmax_backward(const Tensor& dout, const ScoreResult& result,
                                   const ScoreInputs& in, const Mask& mask,
                                   const ScoreOptions& options, ScoreGrads into = {}) {
  return score_backward(softmax_rule(), dout, result, in, mask, options, std::move(into));
}

// ALiBi's slopes for H heads: 2^(-8 (h+1) / H) for a power of two; else those of the next lower
// one, then every second of the next higher.
Tensor alibi_slopes(int64_t heads);

}  // namespace fovea::attention
