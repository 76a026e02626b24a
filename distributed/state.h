// SPDX-License-Identifier: Apache-2.0
#pragma once
// Context parallelism of the engines that carry a state (attention/linear, attention/delta): rank r
// of P holds a stretch of the tokens, the ranks in order hold the sequence. A stretch is a linear
// map of the state before it, with S_r its last state from zero and M_r its transition:
//
//   X_{r+1} = M_r X_r + S_r,    G_r = M_r^T G_{r+1} + D_r,   D_r = sum_t q~_t^T do_t
//
// X_r is the state that enters rank r, G_r its gradient, q~_t = q_t times the transition up to t.
// Each rank finds S_r and M_r in one pass over [v | 0] from the state [0 | I], and D_r from the
// outputs of a pass over zeros from I; X_r or G_r comes from the others; then the engine itself
// runs from X_r and G_{r+1}, so that every result is rounded once. The first rank of a direction
// needs no pass before its run, the last one neither.
//
// Strategies. Bytes sent by one rank forward, and the same backward; state [B, H, Dk, Dv], f = 4
// (8 for f64), m = 0 without gates and documents, else 1 for gates per token or head, Dk per
// channel, Dk^2 for the delta rule:
//
//   gather     all (S, M) to all, every rank folds those before it in order  (LASP-2, 2502.07563)
//              (P-1) B H (Dk Dv + m) f;  one exchange
//   chain      X from rank to rank (LASP, 2404.02882):  B H Dk Dv f;  P - 1 hops
//   pipeline   X in `pieces` parts along Dv, of which M needs one at a time (ZeCO, 2507.01004):
//              B H Dk Dv f;  P - 2 + pieces hops of a part
//
// Receiving begins before the pass for S and M; sending ends after the run. The last rank of a
// direction sends nothing in a chain.
//
// Documents: `starts` are this rank's tokens of the sequence's (document_starts of the whole, then
// sliced: the first token of a shard starts a document only where the sequence does). A start makes
// M 0, so that nothing passes it in either direction.

#include "attention/delta/delta.h"
#include "distributed/communicator.h"

namespace fovea::distributed {

enum class StateStrategy : uint8_t { gather, chain, pipeline };

struct StateOptions {
  StateStrategy strategy = StateStrategy::gather;
  int64_t pieces = 8;  // of pipeline; at most Dv are made
};

// attention::linear_attention and attention::delta_rule of the whole sequence, from and to shards:
// any number of tokens a rank, also none. Differentiable in the same inputs. `state`, that before
// the whole sequence, is rank 0's to give and absent elsewhere; of the results {out, state} the
// state is the one after this rank's last token (of the whole sequence on the last rank). A gate
// per head has the gradient of this rank's tokens: sum it over the ranks, as any weight's.
//
// All ranks call with one dtype, one B, H, Dk, Dv and the same optional inputs, and all reach the
// backward, which is an exchange too.
Variables linear_attention(const Variable& q, const Variable& k, const Variable& v,
                           const Variable& g, const Variable& state, const Tensor& starts,
                           const Communicator& context, const StateOptions& options = {});
Variables delta_rule(const Variable& q, const Variable& k, const Variable& v, const Variable& beta,
                     const Variable& g, const Variable& state, const Tensor& starts,
                     const Communicator& context, const StateOptions& options = {});

}  // namespace fovea::distributed
