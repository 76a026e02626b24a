// SPDX-License-Identifier: Apache-2.0
#include "attention/mask_options.h"

namespace fovea::attention {
namespace {

// `heads`: sizes of blocks, of all heads or of each of H, which sum to N.
void check_blocks(const config::Lists& heads, const char* key, int64_t H, int64_t N,
                  int64_t blocks) {
  FOVEA_CHECK(heads.size() == 1 || static_cast<int64_t>(heads.size()) == H, "mask: ", key,
              " are block sizes of ", heads.size(), " heads; expected 1 or ", H);
  for (const auto& sizes : heads) {
    int64_t sum = 0;
    for (const int64_t size : sizes) {
      FOVEA_CHECK(size >= 1, "mask: ", key, " has a block of ", size, " tokens");
      sum += size;
    }
    FOVEA_CHECK(sum == N && static_cast<int64_t>(sizes.size()) == blocks, "mask: ", key, " are ",
                sizes.size(), " blocks of ", sum, " tokens; expected ", blocks, " blocks of ", N);
  }
}
// Whether all are of one size but the last, which may be smaller.
bool regular(const config::Lists& heads) {
  const auto& sizes = heads[0];
  bool same = heads.size() == 1 && sizes.back() <= sizes[0];
  for (size_t b = 0; b + 1 < sizes.size(); ++b) same = same && sizes[b] == sizes[0];
  return same;
}

// Blocks of one size keep their table; others become one of single tokens.
Mask block_mask_of(const config::Lists& rows, const config::Lists& columns, int64_t N,
                   const Tensor& on) {
  FOVEA_CHECK(on.defined() && on.rank() == 3, "mask: block_sparse needs block_mask ",
              "[H, rows, cols]");
  const int64_t H = on.dim(0), R = on.dim(1), C = on.dim(2);
  check_blocks(rows, "rows", H, N, R);
  check_blocks(columns, "cols", H, N, C);
  std::vector<uint8_t> blocks;
  for (const double x : on.to_vector<double>()) blocks.push_back(x != 0.0 ? 1 : 0);
  if (regular(rows) && regular(columns))
    return Mask().block_sparse(Tensor::from(blocks, {H, R, C}), rows[0][0], columns[0][0]);
  const auto of_head = [](const auto& heads, int64_t h) -> const std::vector<int64_t>& {
    return heads[heads.size() == 1 ? 0 : static_cast<size_t>(h)];
  };
  std::vector<uint8_t> tokens;
  for (int64_t h = 0; h < H; ++h) {
    for (int64_t r = 0; r < R; ++r) {
      std::vector<uint8_t> row;
      for (int64_t c = 0; c < C; ++c)
        row.insert(row.end(), static_cast<size_t>(of_head(columns, h)[static_cast<size_t>(c)]),
                   blocks[static_cast<size_t>((h * R + r) * C + c)]);
      for (int64_t i = 0; i < of_head(rows, h)[static_cast<size_t>(r)]; ++i)
        tokens.insert(tokens.end(), row.begin(), row.end());
    }
  }
  return Mask().block_sparse(Tensor::from(tokens, {H, N, N}), 1, 1);
}

void describe_masks(MaskOptions& o, const std::vector<std::string>& more, config::Fields& f) {
  std::vector<std::string> kinds(kMaskKinds.begin(), kMaskKinds.end());
  kinds.insert(kinds.end(), more.begin(), more.end());
  f.add("mask", o.kind, "which keys a query sees", config::one_of(kinds));
  f.add("window", o.window, "keys before and behind a query, in tokens; -1: all");
  f.add("global_tokens", o.global_tokens, "first tokens, which see all and are seen by all",
        config::at_least(0), "tokens");
  f.add("prefix", o.prefix, "first tokens (of each document), seen by all of it",
        config::at_least(0), "tokens");
  f.add("block", o.block, "of block_causal_document", config::at_least(1), "tokens");
}

}  // namespace

void MaskOptions::describe(config::Fields& f) { describe_masks(*this, {}, f); }

bool MaskOptions::of_documents() const {
  return kind.find("document") != std::string::npos || kind == "share_question" ||
         kind == "causal_blockwise";
}

Mask MaskOptions::mask(int64_t N, const Tensor& documents) const {
  FOVEA_CHECK(window.size() == 2, "mask: window has ", window.size(),
              " numbers; expected [left, right]");
  const bool windowed = window[0] >= 0 || window[1] >= 0;
  FOVEA_CHECK(!windowed || kind.ends_with("sliding_window"), "mask: mask ", kind,
              " has no window; sliding_window does");
  if (kind == "causal") return Mask().causal();
  if (kind == "sliding_window") return Mask().window(window[0], window[1]);
  if (kind == "global_sliding_window") return global_window(N, window[0], window[1], global_tokens);
  if (kind == "prefix_lm_causal") return Mask().causal().prefix(prefix);
  if (kind == "full_document") return Mask().documents(documents, documents);
  if (kind == "causal_document") return Mask().causal().documents(documents, documents);
  if (kind == "prefix_lm_document") return packed_documents(documents, Packed::prefix, prefix);
  if (kind == "share_question") return packed_documents(documents, Packed::question);
  if (kind == "causal_blockwise") return packed_documents(documents, Packed::last_reads);
  if (kind == "block_causal_document") return packed_documents(documents, Packed::blocks, block);
  return Mask();
}

void SequenceMaskOptions::describe(config::Fields& f) {
  describe_masks(plain, {"slices", "block_sparse"}, f);
  f.add("documents", documents, "lengths, one behind the other; the rest is padding");
  f.add("slices", slices, "[[q0, q1, k0, k1, type], ...]: 0 full, 1 causal, 2 inverse, 3 both");
  f.add("rows", rows, "sizes of blocks of queries, or a list of them for each head");
  f.add("cols", cols, "sizes of blocks of keys, likewise");
}

Mask SequenceMaskOptions::mask(int64_t B, int64_t N, const Tensor& block_mask) const {
  if (plain.kind == "block_sparse") return block_mask_of(rows, cols, N, block_mask);
  FOVEA_CHECK(!block_mask.defined(), "mask: mask ", plain.kind, " has no block_mask");
  if (plain.kind == "slices") {
    std::vector<std::array<int64_t, 5>> list;
    for (const auto& slice : slices) {
      FOVEA_CHECK(slice.size() == 5, "mask: a slice of ", slice.size(),
                  " numbers; expected [q0, q1, k0, k1, type]");
      list.push_back({slice[0], slice[1], slice[2], slice[3], slice[4]});
    }
    return attention::slices(list, N);
  }
  const std::vector<int64_t> lengths = documents.empty() ? std::vector<int64_t>{N} : documents;
  return plain.mask(N, plain.of_documents() ? document_ids(lengths, N).expand({B, N}) : Tensor());
}

}  // namespace fovea::attention
