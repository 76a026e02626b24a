// SPDX-License-Identifier: Apache-2.0
#pragma once
// Masks by name, as configs and golden files write them; the names are those of 2510.17896. With
// query i, key j, d(t) the document of t and s(t) its first token:
//
//   full, causal             true;  j <= i
//   sliding_window           i - j <= l and j - i <= r  (window [l, r], -1: unbounded)
//   global_sliding_window    the window, or i < g, or j < g  (global_tokens g)
//   prefix_lm_causal         j <= i or j < p  (prefix p)
//   full_document            d(i) = d(j)
//   causal_document          and j <= i
//   prefix_lm_document       d(i) = d(j) and (j <= i or j - s(j) < p)
//   share_question           causal_document, or d(j) = 0 < d(i)
//   causal_blockwise         causal_document, or d(j) < d(i) = last
//   block_causal_document    d(i) = d(j) and (j - s)/b <= (i - s)/b  (block b)
//   slices                   the union of [q0, q1, k0, k1, type] (attention/mask_shapes.h)
//   block_sparse             block_mask[h, block of i, block of j], blocks of given sizes

#include <array>

#include "attention/mask_shapes.h"
#include "core/config/config.h"

namespace fovea::attention {

// Those that sizes and documents alone give.
inline constexpr std::array kMaskKinds{"full",
                                       "causal",
                                       "sliding_window",
                                       "global_sliding_window",
                                       "prefix_lm_causal",
                                       "full_document",
                                       "causal_document",
                                       "prefix_lm_document",
                                       "share_question",
                                       "causal_blockwise",
                                       "block_causal_document"};

// Of a model: documents are the batch's.
struct MaskOptions {
  std::string kind = "causal";
  std::vector<int64_t> window = {-1, -1};
  int64_t global_tokens = 0, prefix = 0, block = 1;

  void describe(config::Fields& f);
  bool of_documents() const;
  // Of N tokens, documents i32 [B, N].
  Mask mask(int64_t N, const Tensor& documents) const;
};

// Of one sequence, which all of a batch share; slices and block_sparse too.
struct SequenceMaskOptions {
  MaskOptions plain;
  std::vector<int64_t> documents;  // lengths; none: one document
  config::Lists slices;            // [[q0, q1, k0, k1, type], ...]
  config::Lists rows, cols;        // block_sparse: sizes of blocks, of all heads or of each

  void describe(config::Fields& f);
  // block_mask [H, rows, cols] is block_sparse's.
  Mask mask(int64_t B, int64_t N, const Tensor& block_mask) const;
};

}  // namespace fovea::attention
