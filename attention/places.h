// SPDX-License-Identifier: Apache-2.0
#pragma once
// Where the tokens of a part lie in a whole sequence.

#include "core/tensor.h"

namespace fovea::attention {

// Tokens base, base + stride, ... of a sequence.
struct Place {
  int64_t base = 0, stride = 1;
  int64_t of(int64_t t) const { return base + t * stride; }
};

// Where a problem's queries, keys and heads are in the whole that it is part of: one of N queries,
// M keys and `heads` heads. Query i is the whole's query queries.of(i), head h its head first_head
// + h.
struct Places {
  Place queries, keys;
  int64_t N, M;
  int64_t first_head = 0, heads = 0;
  // Positions as the keys count them: the whole's queries are the last of its keys.
  Place query_positions() const { return {queries.base + M - N, queries.stride}; }
};

// The `count` tokens at `place` along an axis of the whole: a view where their stride is 1, else a
// copy.
Tensor take(const Tensor& whole, int axis, const Place& place, int64_t count);
// Writes them.
void put(const Tensor& whole, int axis, const Place& place, const Tensor& part);

}  // namespace fovea::attention
