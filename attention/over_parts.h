// SPDX-License-Identifier: Apache-2.0
#pragma once
// How a layer sees the tokens of a sequence of which it holds a part: each engine's call with the
// part that its tokens are. Without a part (null) it is the engine's own call, so that a system
// written with these calls trains over ranks as it does on one. It says in Mixer::refuses which it
// needs:
//
//   std::string refuses(const nn::SequencePart& part) const override {
//     return refusal(part, {Sees::state, Sees::before}, heads_);
//   }
//
// Masks, document starts and documents are of the whole sequence. All are differentiable. This
// floor knows no ranks: whoever cut the sequence implements OverParts (distributed/context_part.h).

#include <functional>

#include "attention/delta/delta.h"
#include "attention/score/score.h"
#include "autograd/variable.h"
#include "nn/mixer.h"

namespace fovea::attention {

// What a layer wants to see of the tokens that others hold.
enum class Sees : uint8_t {
  scores,  // attend: keys anywhere, under a mask
  state,   // linear_attention, delta_rule: what all tokens before have left
  before,  // with_tokens_before: a few tokens before its own
  heads    // by_heads: everything, for a share of the heads
};

// What stands for tokens before the sequence.
enum class Edge : uint8_t {
  zeros,  // zeros
  absent  // nothing: as many as there are
};

// x: whole sequences [B, h, N, D] of heads from `first_head` on -> [B, h, N, Dv].
using OfHeads = std::function<Variable(const Variables& x, int64_t first_head)>;

class OverParts : public nn::SequencePart {
 public:
  using SequencePart::SequencePart;

  // The functions below, of this part.
  virtual Variable attend(const ScoreRule& rule, const Variable& q, const Variable& k,
                          const Variable& v, const Variable& sink, const Tensor& slopes,
                          const Mask& mask, const ScoreOptions& options) const = 0;
  virtual Variable linear_attention(const Variable& q, const Variable& k, const Variable& v,
                                    const Variable& g, const Variable& state,
                                    const Tensor& starts) const = 0;
  virtual Variable delta_rule(const Variable& q, const Variable& k, const Variable& v,
                              const Variable& beta, const Variable& g, const Variable& state,
                              const Tensor& starts) const = 0;
  virtual Variable with_tokens_before(const Variable& x, int axis, int64_t count,
                                      Edge edge) const = 0;
  virtual Variable by_heads(const Variables& x, const OfHeads& f) const = 0;

  // Why a layer of so many heads (0: it has none) cannot see so; empty: it can.
  virtual std::string refuses(Sees how, int64_t heads, int64_t kv_heads) const = 0;
};

// A mixer of the score engine that says what its queries may see of a batch of whole sequences:
// what layouts share out by (distributed/layout.h, dispatched).
class SaysMask {
 public:
  virtual ~SaysMask() = default;
  virtual Mask mask_of(int64_t batch, int64_t tokens, const nn::MixerContext& context) const = 0;
};

// The first reason against a layer that needs all of these; empty: there is none. kv_heads 0: as
// many as heads.
std::string refusal(const nn::SequencePart& part, const std::vector<Sees>& needs, int64_t heads = 0,
                    int64_t kv_heads = 0);

// q [B, H, n, D], k [B, Hkv, n, D], v [B, Hkv, n, Dv], the part's tokens -> out [B, H, n, Dv].
// sink [H], slopes [H] or absent.
Variable attend(const nn::SequencePart* part, const ScoreRule& rule, const Variable& q,
                const Variable& k, const Variable& v, const Variable& sink, const Tensor& slopes,
                const Mask& mask, const ScoreOptions& options);

// q, k [B, H, n, Dk], v [B, H, n, Dv], g [H], [B, H, n] or [B, H, n, Dk], beta [B, H, n] ->
// out [B, H, n, Dv]. state: before the sequence, [B, H, Dk, Dv] and the same for all parts. starts:
// u8 [B, N] of the whole (document_starts). All but q, k, v, beta may be absent.
Variable linear_attention(const nn::SequencePart* part, const Variable& q, const Variable& k,
                          const Variable& v, const Variable& g = {}, const Variable& state = {},
                          const Tensor& starts = {});
Variable delta_rule(const nn::SequencePart* part, const Variable& q, const Variable& k,
                    const Variable& v, const Variable& beta, const Variable& g = {},
                    const Variable& state = {}, const Tensor& starts = {});

// x [.., n, ..] with tokens along `axis` -> [.., count + n, ..], the `count` tokens before them
// first; with Edge::absent as many as there are (none before no tokens). Convolutions of width
// count + 1, token shifts; with Edge::absent keys and values of a causal window, since the score
// engine takes queries for the last of their keys.
Variable with_tokens_before(const nn::SequencePart* part, const Variable& x, int axis,
                            int64_t count, Edge edge = Edge::zeros);
// Which documents those tokens are of, from i32 [B, N] of the whole: [B, count + n], -1 before the
// sequence.
Tensor documents_before(const nn::SequencePart* part, const Tensor& documents, int64_t count,
                        Edge edge = Edge::zeros);

// x [B, H or Hkv, n, D] each -> f of whole sequences with a share of the heads -> [B, H, n, Dv].
// The first of x has H heads; where others have Hkv, head h sees theirs of h Hkv / H.
Variable by_heads(const nn::SequencePart* part, const Variables& x, const OfHeads& f);

}  // namespace fovea::attention
