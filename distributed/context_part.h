// SPDX-License-Identifier: Apache-2.0
#pragma once
// This rank's part of a sequence that lies over the ring and the Ulysses group of a mesh, as layers
// take it (attention/over_parts.h). Over the ring keys travel (ContextAttention) or states are
// handed on (state.h), around which a Ulysses group shares heads; a few tokens before come from
// whoever has them (halo.h).

#include "attention/over_parts.h"
#include "distributed/context_attention.h"
#include "distributed/state.h"
#include "distributed/ulysses.h"

namespace fovea::distributed {

class ContextPart final : public attention::OverParts {
 public:
  // Collective.
  ContextPart(const Mesh& mesh, const Layout& layout, const ContextOptions& scores = {},
              const StateOptions& states = {});
  // Of sequences of N tokens.
  ContextPart(const Mesh& mesh, Order order, int64_t N, const ContextOptions& scores = {},
              const StateOptions& states = {})
      : ContextPart(mesh, Layout(order, N, mesh.sizes().ring, mesh.sizes().ulysses), scores,
                    states) {}

  const Layout& layout() const { return attention_.layout(); }
  Tensor take(const Tensor& whole, int axis) const override;
  Variable summed(const Variable& x) const override;

  Variable attend(const ScoreRule& rule, const Variable& q, const Variable& k, const Variable& v,
                  const Variable& sink, const Tensor& slopes, const attention::Mask& mask,
                  const attention::ScoreOptions& options) const override;
  Variable linear_attention(const Variable& q, const Variable& k, const Variable& v,
                            const Variable& g, const Variable& state,
                            const Tensor& starts) const override;
  Variable delta_rule(const Variable& q, const Variable& k, const Variable& v, const Variable& beta,
                      const Variable& g, const Variable& state,
                      const Tensor& starts) const override;
  Variable with_tokens_before(const Variable& x, int axis, int64_t count,
                              attention::Edge edge) const override;
  Variable by_heads(const Variables& x, const attention::OfHeads& f) const override;
  std::string refuses(attention::Sees how, int64_t heads, int64_t kv_heads) const override;

 private:
  // The group's tokens of this rank's heads: x [B, H, n, ..] -> [B, h, N/R, ..]; and back.
  Variable to_group(const Variable& x, Heads heads = Heads::divided) const;
  Variable from_group(const Variable& x) const;
  // This rank's of all heads along an axis.
  Variable heads_of(const Variable& x, int axis) const;
  // A gate of any form as the group sees it; absent stays absent.
  Variable gate_to_group(const Variable& g) const;
  Tensor starts_of_group(const Tensor& starts) const;

  MeshSizes place_;
  Communicator ring_, ulysses_, context_;
  ContextAttention attention_;
  StateOptions states_;
};

}  // namespace fovea::distributed
