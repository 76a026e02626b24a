// SPDX-License-Identifier: Apache-2.0
#pragma once
// Masks that are made of ranges of keys (Mask::ranges), as 2510.17896 names them: of one sequence
// of N tokens, queries and keys alike, shared by the batch. O(N) numbers.

#include <array>
#include <functional>

#include "attention/mask.h"

namespace fovea::attention {

struct KeyRange {
  int64_t first, last;
};
// i32 [1, N, 4] from the ranges of each query. Throws where more than two remain once those that
// meet are joined.
Tensor key_ranges(int64_t N, const std::function<std::vector<KeyRange>(int64_t i)>& of_query);

// i - j <= left and j - i <= right (-1: unbounded), or i < tokens, or j < tokens.
Mask global_window(int64_t N, int64_t left, int64_t right, int64_t tokens);

// Documents of these lengths one after the other; what is behind the last is padding, which sees
// nothing and is seen by nothing. d(t) is the document of t, s(t) its first token.
enum class Packed {
  full,        // d(i) = d(j)
  causal,      // and j <= i
  prefix,      // and (j <= i or j - s < size)
  blocks,      // and (j - s)/size <= (i - s)/size
  question,    // causal; or d(j) = 0 < d(i): the first document is seen by all
  last_reads,  // causal; or d(j) < d(i) = last: the last document sees all
};
Mask packed_documents(const std::vector<int64_t>& lengths, int64_t N, Packed kind,
                      int64_t size = 0);

// The union of slices {q0, q1, k0, k1, type} of queries [q0, q1) and keys [k0, k1). Types: 0 full,
// 1 causal with the last query at the last key, 2 inverse causal with the first query at the first
// key (keys from there on), 3 both.
Mask slices(const std::vector<std::array<int64_t, 5>>& list, int64_t N);

}  // namespace fovea::attention
