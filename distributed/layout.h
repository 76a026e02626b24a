// SPDX-License-Identifier: Apache-2.0
#pragma once
// Which tokens of a sequence a rank of a context-parallel group holds. A layout is a permutation
// and no more: masks, rotary positions and whatever else counts tokens count them in the whole
// sequence (attention/places.h), so that any layout is right for any mask. They differ in balance.
//
//   contiguous   shard r is the r-th of R stretches           causal: (2R - 1)/R of the mean
//   striped      shard r is tokens r, r + R, r + 2R, ...      R (n + 1)/(N + 1), n = N/R
//   zigzag       chunks r and 2R - 1 - r of 2R                1
//   dispatched   chunks given out by a mask's area            any mask: near 1
//
// No length is refused and nothing is padded: stretches of one sequence differ by one token at most
// (the first are the longer ones), and where there are fewer tokens than shards some are empty.
//
// The sequence is cut over a ring of R groups; inside a group of U ranks (Ulysses) its shard is cut
// contiguously, in its own order. Rank = ring U + ulysses, as in Mesh.

#include "attention/mask.h"
#include "distributed/shards.h"

namespace fovea::distributed {

enum class Order : uint8_t { contiguous, striped, zigzag, dispatched };
std::string_view name(Order order);

// `count` tokens of the sequence, in order.
struct Stretch {
  attention::Place place;
  int64_t count;
};

class Layout {
 public:
  // N tokens over a ring of R groups of U ranks, in an order that the mask does not matter to.
  Layout(Order order, int64_t N, int ring, int ulysses = 1);
  // Chunks of `chunk` tokens, those with the most allowed pairs first, each to the group with the
  // fewest pairs so far (of those the one with the fewest chunks) among those with fewer than their
  // share of chunks (MagiAttention). O(N) for masks of positions alone, else O(N^2).
  static Layout dispatched(const attention::Mask& mask, int64_t batch, int64_t N, int64_t chunk,
                           int ring, int ulysses = 1);

  Order order() const { return order_; }
  int64_t tokens() const { return N_; }
  int ring() const { return ring_; }
  int ulysses() const { return ulysses_; }

  // What a group, or a rank of it, holds: stretches one after the other, none of them empty; two at
  // most unless dispatched.
  const std::vector<Stretch>& group(int ring) const { return groups_[static_cast<size_t>(ring)]; }
  std::vector<Stretch> rank(int ring, int ulysses) const;
  // How many tokens.
  int64_t group_tokens(int ring) const {
    int64_t n = 0;
    for (const Stretch& s : group(ring)) n += s.count;
    return n;
  }
  int64_t most_tokens() const;  // of any group
  // A group's tokens over its ranks.
  Shards shards(int ring) const { return Shards::even(group_tokens(ring), ulysses_); }

  // A rank's tokens along an axis of the whole sequence, contiguous; and written to it.
  Tensor take(const Tensor& whole, int axis, int ring, int ulysses = 0) const;
  void put(const Tensor& whole, int axis, const Tensor& part, int ring, int ulysses = 0) const;

 private:
  Layout(Order order, int64_t N, int ulysses, std::vector<std::vector<Stretch>> groups);

  Order order_;
  int64_t N_;
  int ring_, ulysses_;
  std::vector<std::vector<Stretch>> groups_;
};

// Pairs of query and key that a mask of the whole sequence allows, of one sample and head.
int64_t pairs_of(const attention::Mask& mask, int64_t N, int64_t b = 0, int64_t h = 0);

// How well a layout's ring shares out the allowed pairs of query and key under a mask of the whole
// sequence: the most of any group over the mean; and, step by step, the same for a ring in which
// all wait for the slowest at each of R steps.
struct Balance {
  double total, stepwise;
};
// Of one sample and head; O(N) for masks of positions alone, else by tiles.
Balance balance(const Layout& layout, const attention::Mask& mask, int64_t b = 0, int64_t h = 0);

}  // namespace fovea::distributed
