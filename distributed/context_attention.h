// SPDX-License-Identifier: Apache-2.0
#pragma once
// Context parallelism of the score engine: a sequence of N tokens lies over a ring of R groups of
// U ranks (distributed/layout.h), and each rank computes its own tokens' outputs. What a rank holds
// is [B, H, n, D], n its tokens in the layout's order; the mask is that of the whole sequence, the
// same on every rank. Any layout is right for any mask, any N is taken (also N < ranks).
//
//   ring    K and V travel around the ring while each rank adds what it holds to its rows (f32
//   sums,
//           finished once). Backward: K and V travel again, and with them f32 sums of dK and dV,
//           which end at home. With a window of w ranks the ring is two (LoongTrain, 2406.18485): a
//           shard visits the w ranks of an inner ring, while the next window's is under way.
//   gather  all K and V of `heads_per_gather` key heads to every rank, in the sequence's order, the
//           next heads' while these are computed (Llama 3, 2407.21783); one pass of the plain
//           engine over the keys that a stretch of queries may see. Backward gathers again; f32 dK
//           and dV are reduce-scattered.
//   ulysses (2309.14509) inside each group, around either (USP, 2405.07719): one all-to-all to the
//           group's tokens with H/U heads, one back. A ring of 1 is Ulysses alone.
//
// Bytes sent by one rank forward, of elements of e bytes; n tokens a group, G key heads of a rank's
// (all of them where U = 1, else max(G, U)/U), f = 4 (8 for f64):
//
//   ring     B n G (D + Dv) e       backward the same and R B n G (D + Dv) f
//   w < R    the same                     backward the same and (R + R/w) B n G (D + Dv) f
//   gather   B n G (D + Dv) e       backward the same and B n G (D + Dv) f
//   ulysses  (U-1)/U (n/U) B (H D + H Dv + max(G, U) (D + Dv)) e, backward the same
//
// (the last with n/U tokens a rank and all key heads; where lengths differ, a gather sends the
// longest.) Tokens whose mask hides all of a shard's keys skip it, but it travels.
//
// Checked: with `block` > 0 (exchange gather, contiguous order, no ulysses, N a multiple of R
// block) each `block` queries are one call of the plain engine over all keys, the same whichever
// rank makes it, and dK and dV are sums over blocks in a balanced binary tree that the
// reduce-scatter goes on with: rings of 1, 2, 4, 8 ... ranks give the same bits.
//
// All ranks of a ring and of a group call in the same order with the same sizes, mask and options
// (checked at the first call), and all reach the backward, which is an exchange too.

#include "attention/score/score.h"
#include "autograd/variable.h"
#include "distributed/layout.h"
#include "distributed/mesh.h"

namespace fovea::distributed {

enum class Exchange : uint8_t { ring, gather };

struct ContextOptions {
  Exchange exchange = Exchange::ring;
  int64_t window = 0;            // ranks of an inner ring; 0: one ring of all
  int64_t heads_per_gather = 1;  // key heads
  int64_t block = 0;             // queries of a call in the checked mode; 0: not checked
};

class ContextAttention {
 public:
  // Rank `ring.rank()` of the layout's ring, `ulysses.rank()` of its group. Throws where ranks
  // disagree. Collective.
  ContextAttention(const Communicator& ring, const Communicator& ulysses, const Layout& layout,
                   const ContextOptions& options = {});
  ContextAttention(const Mesh& mesh, Order order, int64_t N, const ContextOptions& options = {})
      : ContextAttention(mesh.ring(), mesh.ulysses(),
                         Layout(order, N, mesh.sizes().ring, mesh.sizes().ulysses), options) {}

  const Layout& layout() const { return layout_; }

  // q [B, H, n, D], k [B, Hkv, n, D], v [B, Hkv, n, Dv] -> out [B, H, n, Dv]. sink [H] or absent:
  // its gradient is that of this rank's rows (with `block`: of all rows, on the ring's first rank),
  // to be summed over the ranks as any weight's. slopes [H] or absent. Differentiable. Refuses,
  // before a byte is sent: sizes that are not the layout's; H that U does not divide, Hkv that
  // neither divides nor is divided by U.
  Variable operator()(const ScoreRule& rule, const Variable& q, const Variable& k,
                      const Variable& v, const Variable& sink, const Tensor& slopes,
                      const attention::Mask& mask, const attention::ScoreOptions& options) const;

 private:
  void check(const Variable& q, const Variable& k, const Variable& v, const Variable& sink,
             const Tensor& slopes, const attention::Mask& mask) const;

  Communicator ring_, ulysses_;
  Layout layout_;
  ContextOptions options_;
  std::shared_ptr<bool> agreed_;  // of what a call is made
};

}  // namespace fovea::distributed
