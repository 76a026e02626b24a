// SPDX-License-Identifier: Apache-2.0
#pragma once
// Attention of the score engine as differentiable operations.

#include "attention/score/score.h"
#include "autograd/variable.h"

namespace fovea::attention {

// q [B, H, N, D], k [B, Hkv, M, D], v [B, Hkv, M, Dv] -> out [B, H, N, Dv]. sink [H], bias [B or 1,
// H or 1, N, M] or absent; slopes as in ScoreInputs. Shapes, mask and errors:
// attention/score/score.h. Saves q, k, v, sink, bias, out, lse.
Variable score_attention(const ScoreRule& rule, const Variable& q, const Variable& k,
                         const Variable& v, const Variable& sink, const Tensor& alibi_slopes,
                         const Mask& mask, const ScoreOptions& options,
                         const Variable& bias = Variable());
inline Variable softmax_attention(const Variable& q, const Variable& k, const Variable& v,
                                  const Variable& sink, const Tensor& alibi_slopes,
                                  const Mask& mask, const ScoreOptions& options,
                                  const Variable& bias = Variable()) {
  return score_attention(softmax_rule(), q, k, v, sink, alibi_slopes, mask, options, bias);
}

// Softmax attention from one packed projection qkv [B, N, (H + 2 Hkv) D] (queries, keys, values,
// each head after head) to [B, N, H D]: no transposition is ever made, forward or backward.
Variable softmax_attention_packed(const Variable& qkv, int64_t heads, int64_t kv_heads,
                                  const Variable& sink, const Tensor& alibi_slopes,
                                  const Mask& mask, const ScoreOptions& options);

// The views q, k, v [B, H or Hkv, N, D] of a packed qkv.
struct QkvViews {
  Tensor q, k, v;
};
QkvViews unpack_qkv(const Tensor& qkv, int64_t heads, int64_t kv_heads);

}  // namespace fovea::attention
