// SPDX-License-Identifier: Apache-2.0
#pragma once
// Context parallelism of what looks a few tokens back (causal convolution of width W: W - 1 tokens;
// attention in a window of l: l; token shift: 1): each rank borrows the tokens before its shard,
// and its gradients of them go home, where they are added in the order of the ranks.
//
// Bytes sent by one rank, tokens of C elements of e bytes: left C e forward (the last rank: none)
// and the same backward (the first rank: none), in one exchange each. A shard shorter than `left`
// sends all it has to each rank within `left` of it; no rank receives more than left C e.

#include "attention/over_parts.h"
#include "autograd/function.h"
#include "distributed/shards.h"

namespace fovea::distributed {

// What stands for tokens before the sequence: with zeros every rank has left + n tokens.
using attention::Edge;

// x [..., n, ...] with this rank's tokens along `axis` -> [..., left + n, ...], the tokens before
// its shard first. A shard without tokens borrows none: it has zeros, or nothing. Differentiable.
//
// Behind it, a query at local place i is at place i + (result's tokens - n) among the keys. What
// must not look across documents masks it there: pass the document ids the same way.
Variable halo(const Variable& x, int axis, int64_t left, const Shards& shards,
              const Communicator& comm, Edge edge = Edge::zeros);
// The same for any dtype, without gradients.
Tensor halo(const Tensor& x, int axis, int64_t left, const Shards& shards, const Communicator& comm,
            Edge edge = Edge::zeros);

}  // namespace fovea::distributed
