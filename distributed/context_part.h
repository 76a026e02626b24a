// SPDX-License-Identifier: Apache-2.0
#pragma once
// This rank's part of a sequence that lies over the ring and the Ulysses group of a mesh, as models
// take it (nn/sequence_part.h): its layers attend by ContextAttention.

#include "attention/over_parts.h"
#include "distributed/context_attention.h"

namespace fovea::distributed {

class ContextPart final : public attention::ScoresOverParts {
 public:
  // Of sequences of N tokens. Collective.
  ContextPart(const Mesh& mesh, Order order, int64_t N, const ContextOptions& options = {});

  // This rank's tokens along an axis of the whole sequence, contiguous.
  Tensor take(const Tensor& whole, int axis) const;

  Variable attend(const ScoreRule& rule, const Variable& q, const Variable& k, const Variable& v,
                  const Variable& sink, const Tensor& slopes, const attention::Mask& mask,
                  const attention::ScoreOptions& options) const override;
  std::string refuses(int64_t heads, int64_t kv_heads) const override;

 private:
  MeshSizes place_;
  ContextAttention attention_;
};

}  // namespace fovea::distributed
