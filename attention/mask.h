// SPDX-License-Identifier: Apache-2.0
#pragma once
// Which keys a query may see. A mask is the intersection of its parts; tiles of the score matrix
// are skipped, taken whole or tested element by element. Positions: with N queries and M keys,
// query i sits at i' = i + (M - N) (the queries are the last N positions). A problem may be part of
// a larger one (Places): its masks, and what else knows positions, then count in the whole.

#include <optional>
#include <vector>

#include "attention/places.h"
#include "core/tensor.h"

namespace fovea::attention {

enum class TileClass { skip, partial, full };

class Mask {
 public:
  // Everything is allowed until a part is added. Each call returns *this.
  Mask& causal();  // j <= i'
  // i' - j <= left and j - i' <= right; -1 = unbounded. Throws below -1.
  Mask& window(int64_t left, int64_t right);
  Mask& prefix(int64_t tokens);  // lets every query see j < tokens despite causal
  // i32 [B, N] and [B, M]: equal ids see each other; -1 is padding that sees nothing and is seen by
  // nothing.
  Mask& documents(const Tensor& queries, const Tensor& keys);
  // allowed u8 [H or 1, rows, cols]: query block i / query_block sees key block j / key_block where
  // it is not 0.
  Mask& block_sparse(const Tensor& allowed, int64_t query_block, int64_t key_block);

  // i32 [B or 1, N, 4] on rows {first, last, first', last'}: a query sees keys [first, last) and
  // [first', last') and no others; what no other part says in O(N) (attention/mask_shapes.h).
  Mask& ranges(const Tensor& ranges);

  // The same mask as a part of its problem sees it: of `heads` heads.
  // Document ids and ranges are those of the part's tokens; blocks, and the keys that ranges name,
  // stay the whole's.
  Mask part(const Places& places, int64_t heads, int64_t queries, int64_t keys) const;
  // Where a problem of this mask is: where part() said, else it is the whole.
  Places places(int64_t heads, int64_t queries, int64_t keys) const {
    return places_.value_or(Places{{}, {}, queries, keys, 0, heads});
  }

  bool is_causal() const { return causal_; }
  // Throws naming what does not fit problems of B x H x N x M.
  void validate(int64_t batch, int64_t heads, int64_t queries, int64_t keys) const;

  // The definition.
  bool allowed(int64_t b, int64_t h, int64_t i, int64_t j, int64_t queries, int64_t keys) const;
  // Of queries [i0, i1) and keys [j0, j1), neither empty. Never wrong; `partial` may be said of a
  // tile that is whole.
  TileClass classify(int64_t b, int64_t h, int64_t i0, int64_t i1, int64_t j0, int64_t j1,
                     int64_t queries, int64_t keys) const;
  // Keys [first, last) that positions alone (causal, window, prefix) leave to query i.
  void limits(int64_t i, int64_t queries, int64_t keys, int64_t& first, int64_t& last) const;
  // The same mask with its tensors on another device. allowed() and classify() are the cpu's.
  Mask to(Device device) const;
  // What it is made of, for kernels.
  struct Parts {
    bool causal;
    int64_t left, right, prefix;
    Tensor query_documents, key_documents, blocks;
    int64_t query_block, key_block;
    Tensor ranges;
  };
  Parts parts() const {
    return {causal_,        left_,   right_,       prefix_,    query_documents_,
            key_documents_, blocks_, query_block_, key_block_, ranges_};
  }
  // Whether allowed() is limits() and nothing else.
  bool is_interval() const {
    return !query_documents_.defined() && !blocks_.defined() && !ranges_.defined();
  }

 private:
  const int32_t* ranges_of(int64_t b, int64_t i, int64_t queries) const {
    return ranges_.data<int32_t>() + ((ranges_.dim(0) == 1 ? 0 : b) * queries + i) * 4;
  }

  bool causal_ = false;
  int64_t left_ = -1, right_ = -1, prefix_ = 0;
  Tensor query_documents_, key_documents_;  // contiguous
  Tensor blocks_;
  int64_t query_block_ = 1, key_block_ = 1;
  Tensor ranges_;
  std::optional<Places> places_;
};

}  // namespace fovea::attention
