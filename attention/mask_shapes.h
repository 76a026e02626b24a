// SPDX-License-Identifier: Apache-2.0
#pragma once
// Masks that are made of ranges of keys (Mask::ranges), as 2510.17896 names them: of N tokens,
// queries and keys alike; of one sequence for the whole batch, or of each. O(N) numbers a sequence.

#include <array>
#include <functional>

#include "attention/mask.h"

namespace fovea::attention {

struct KeyRange {
  int64_t first, last;
};
// i32 [B, N, 4] from the ranges of each query, asked for in order. Throws where more than two
// remain once those that meet are joined.
Tensor key_ranges(int64_t B, int64_t N,
                  const std::function<std::vector<KeyRange>(int64_t b, int64_t i)>& of_query);

// i - j <= left and j - i <= right (-1: unbounded), or i < tokens, or j < tokens.
Mask global_window(int64_t N, int64_t left, int64_t right, int64_t tokens);

// Documents one after the other. d(t) is the document of t, s(t) its first token.
enum class Packed {
  full,        // d(i) = d(j)
  causal,      // and j <= i
  prefix,      // and (j <= i or j - s < size)
  blocks,      // and (j - s)/size <= (i - s)/size
  question,    // causal; or d(j) = 0 < d(i): the first document is seen by all
  last_reads,  // causal; or d(j) < d(i) = last: the last document sees all
};
// ids i32 [B, N]: neighbours of one id are a document, -1 is padding that sees nothing and is seen
// by nothing.
Mask packed_documents(const Tensor& ids, Packed kind, int64_t size = 0);
// Of these lengths; what is behind the last is padding. -> i32 [1, N].
Tensor document_ids(const std::vector<int64_t>& lengths, int64_t N);

// The union of slices {q0, q1, k0, k1, type} of queries [q0, q1) and keys [k0, k1). Types: 0 full,
// 1 causal with the last query at the last key, 2 inverse causal with the first query at the first
// key (keys from there on), 3 both.
Mask slices(const std::vector<std::array<int64_t, 5>>& list, int64_t N);

}  // namespace fovea::attention
