// SPDX-License-Identifier: Apache-2.0
#pragma once
// How a layer of the score engine attends over a sequence of which it holds a part. This floor
// knows no ranks: whoever cut the sequence implements it (distributed/context_part.h) and hands it
// to the model as its part.

#include "attention/score/score.h"
#include "autograd/variable.h"
#include "nn/sequence_part.h"

namespace fovea::attention {

class ScoresOverParts : public nn::SequencePart {
 public:
  using SequencePart::SequencePart;

  // q [B, H, n, D], k [B, Hkv, n, D], v [B, Hkv, n, Dv], the part's tokens -> out [B, H, n, Dv],
  // what they see of the whole sequence. mask: of the whole. sink [H], slopes [H] or absent.
  // Differentiable.
  virtual Variable attend(const ScoreRule& rule, const Variable& q, const Variable& k,
                          const Variable& v, const Variable& sink, const Tensor& slopes,
                          const Mask& mask, const ScoreOptions& options) const = 0;
  // Why so many heads cannot; empty: they can.
  virtual std::string refuses(int64_t heads, int64_t kv_heads) const = 0;
};

}  // namespace fovea::attention
