// SPDX-License-Identifier: Apache-2.0
#pragma once
// What the exchanges of context-parallel attention share. Internal to distributed/.

#include "autograd/function.h"
#include "distributed/context_attention.h"

namespace fovea::distributed {

// A stretch of a shard: the shard's tokens [first, first + count).
struct Piece {
  attention::Place place;
  int64_t first, count;
  Tensor of(const Tensor& shard) const { return shard.slice(2, first, first + count); }
};

// Keys and values [B, G, n, D] and [B, G, n, Dv] in one message, or their gradients.
struct KeyValues {
  Tensor flat, k, v;
};
struct KeyValueSizes {
  int64_t B, G, D, Dv;
  Device device;
  int64_t numel(int64_t n) const { return B * G * n * (D + Dv); }
  KeyValues view(const Tensor& flat, int64_t n) const {
    const int64_t keys = B * G * n * D;
    return {flat, flat.slice(0, 0, keys).view({B, G, n, D}),
            flat.slice(0, keys, numel(n)).view({B, G, n, Dv})};
  }
  KeyValues empty(int64_t n, Dtype dtype) const {
    return view(Tensor::empty({numel(n)}, dtype, device), n);
  }
  KeyValues zeros(int64_t n, Dtype dtype) const {
    return view(Tensor::zeros({numel(n)}, dtype, device), n);
  }
};

// One call as the ranks of a ring see it: this rank's group has heads [first_head, first_head + h)
// of `heads`.
struct ContextCall {
  const ScoreRule& rule;
  Tensor slopes;              // [h] or absent
  attention::Mask mask;       // the sequence's, where q is
  attention::Mask host_mask;  // on the cpu
  attention::ScoreOptions options;
  Layout layout;
  ContextOptions context;
  Communicator ring;
  int64_t first_head, heads;

  // A group's shard, in its order.
  std::vector<Piece> pieces(int group) const;
  std::vector<Piece> own() const { return pieces(ring.rank()); }
  // Whether a query of one may see a key of the other; never wrong about no.
  bool sees(int64_t batch, int64_t heads, const Piece& query, const Piece& key) const;
  // Heads [h0, h0 + count) of this rank's; queries and keys at these places.
  attention::Places places(const attention::Place& query, const attention::Place& key,
                           int64_t h0 = 0) const {
    return {query, key, layout.tokens(), layout.tokens(), first_head + h0, heads};
  }
  attention::Mask part(const Piece& query, const Piece& key, int64_t count, int64_t h0 = 0) const {
    return mask.part(places(query.place, key.place, h0), count, query.count, key.count);
  }
};

inline Dtype sums_dtype(Dtype dtype) { return dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32; }
// [B, H, n, D], in memory [B, n, H, D]
inline Tensor heads_last(const Tensor& q, int64_t D) {
  return Tensor::empty({q.dim(0), q.dim(2), q.dim(1), D}, q.dtype(), q.device()).transpose(1, 2);
}

// q, k, v of this rank's group, with its heads -> out. Sink as in ContextAttention.
Variable ring_attention(const ContextCall& call, const Variable& q, const Variable& k,
                        const Variable& v, const Variable& sink);
Variable gather_attention(const ContextCall& call, const Variable& q, const Variable& k,
                          const Variable& v, const Variable& sink);

}  // namespace fovea::distributed
