// SPDX-License-Identifier: Apache-2.0
// Attention over gathered keys and values, a few key heads at a time. Memory beside the shards: B N
// (D + Dv) of two groups of key heads; in backward their f32 gradients.
#include "core/ops/elementwise.h"
#include "distributed/context_call.h"

namespace fovea::distributed {
namespace {

using attention::ScoreGrads;
using attention::ScoreInputs;
using attention::ScoreResult;

// Key heads [first, last), and the query heads that read them.
struct HeadGroup {
  int64_t first, last, group;
  Tensor keys(const Tensor& x) const { return x.slice(1, first, last); }
  Tensor queries(const Tensor& x) const { return x.slice(1, first * group, last * group); }
  Tensor of_heads(const Tensor& x) const {
    return x.defined() ? x.slice(0, first * group, last * group) : x;
  }
};

class GatherFn final : public Function {
 public:
  explicit GatherFn(const ContextCall& call) : call_(call) {}
  const char* name() const override { return "gather_attention"; }

  Tensor forward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& sink) {
    const std::vector<Piece> own = call_.own();
    const Tensor out = heads_last(q, v.dim(3));
    std::vector<Tensor> lse(2);
    for (size_t i = 0; i < own.size(); ++i)
      lse[i] = Tensor::empty({q.dim(0), q.dim(1), own[i].count}, sums_dtype(q.dtype()), q.device());
    for_each_group(q, k, v, [&](const HeadGroup& heads, const KeyValues& whole) {
      for (size_t i = 0; i < own.size(); ++i) {
        const Piece keys = keys_of(own[i]);
        const ScoreResult result =
            attention::score_forward(call_.rule, inputs(heads, own[i], q, keys, whole, sink),
                                     mask(heads, own[i], keys), call_.options);
        heads.queries(own[i].of(out)).copy_(result.out);
        heads.queries(lse[i]).copy_(result.lse);
      }
    });
    save(q, k, v, sink, out, lse[0], lse[1]);
    return out;
  }

  Tensors backward(const Tensors& dout) override {
    const auto [q, k, v, sink, out, lse0, lse1] = saved<7>();
    const std::vector<Piece> own = call_.own();
    const Dtype wide = sums_dtype(q.dtype());
    const Tensor dq = heads_last(q, q.dim(3)), dk = Tensor::empty_like(k),
                 dv = Tensor::empty_like(v);
    const Tensor dsink =
        sink.defined() ? Tensor::zeros(sink.shape(), wide, sink.device()) : Tensor();
    const int64_t N = call_.layout.tokens(), n = call_.layout.most_tokens();
    // The sums of the heads before, under way.
    struct {
      HeadGroup heads;
      KeyValues sums;
      Tensor all;
      Work work;
    } last{};
    const auto land = [&] {
      if (!last.all.defined()) return;
      last.work.wait();
      last.heads.keys(dk).copy_(last.sums.k.slice(2, 0, dk.dim(2)));
      last.heads.keys(dv).copy_(last.sums.v.slice(2, 0, dv.dim(2)));
    };
    for_each_group(q, k, v, [&](const HeadGroup& heads, const KeyValues& whole) {
      const KeyValueSizes sizes = sizes_of(heads, k, v);
      const KeyValues sums = sizes.zeros(N, wide);
      for (size_t i = 0; i < own.size(); ++i) {
        const Piece keys = keys_of(own[i]);
        const ScoreInputs in = inputs(heads, own[i], q, keys, whole, sink);
        const ScoreGrads grads = attention::score_backward(
            call_.rule, heads.queries(own[i].of(dout[0])),
            {heads.queries(own[i].of(out)), heads.queries(i == 0 ? lse0 : lse1).contiguous()}, in,
            mask(heads, own[i], keys), call_.options,
            {heads.queries(own[i].of(dq)), Tensor::empty(in.k.shape(), wide, k.device()),
             Tensor::empty(in.v.shape(), wide, k.device()), Tensor(), Tensor()});
        axpy_(keys.of(sums.k), 1.0, grads.dk);
        axpy_(keys.of(sums.v), 1.0, grads.dv);
        if (sink.defined()) axpy_(heads.of_heads(dsink), 1.0, grads.dsink);
      }
      land();
      const Tensor all = Tensor::zeros({call_.ring.size() * sizes.numel(n)}, wide, k.device());
      for_each_piece(sizes, all, [&](const Piece& piece, const KeyValues& shard) {
        piece.of(shard.k).copy_(attention::take(sums.k, 2, piece.place, piece.count));
        piece.of(shard.v).copy_(attention::take(sums.v, 2, piece.place, piece.count));
      });
      const KeyValues mine = sizes.empty(n, wide);
      last = {heads, mine, all,
              call_.ring.reduce_scatter(mine.flat, all, Reduce::sum, Mode::async)};
    });
    land();
    return {dq, dk, dv, sink.defined() ? dsink.to(sink.dtype()) : Tensor()};
  }

 private:
  static KeyValueSizes sizes_of(const HeadGroup& heads, const Tensor& k, const Tensor& v) {
    return {k.dim(0), heads.last - heads.first, k.dim(3), v.dim(3), k.device()};
  }
  // The keys that positions leave to a stretch of queries.
  Piece keys_of(const Piece& query) const {
    const int64_t N = call_.layout.tokens();
    const attention::Mask rows =
        call_.host_mask.part({query.place, {}, N, N, 0, call_.heads}, call_.heads, query.count, N);
    int64_t first, last, ignored;
    rows.limits(0, query.count, N, first, ignored);
    rows.limits(query.count - 1, query.count, N, ignored, last);
    last = std::max(first, last);
    return {{first, 1}, first, last - first};
  }
  attention::Mask mask(const HeadGroup& heads, const Piece& query, const Piece& keys) const {
    return call_.part(query, keys, (heads.last - heads.first) * heads.group,
                      heads.first * heads.group);
  }
  ScoreInputs inputs(const HeadGroup& heads, const Piece& query, const Tensor& q, const Piece& keys,
                     const KeyValues& whole, const Tensor& sink) const {
    return {heads.queries(query.of(q)), keys.of(whole.k), keys.of(whole.v),
            heads.of_heads(call_.slopes), heads.of_heads(sink)};
  }

  // visit(a piece, its shard's part of `all`), which has most_tokens() a shard.
  template <typename Visit>
  void for_each_piece(const KeyValueSizes& sizes, const Tensor& all, const Visit& visit) const {
    const int64_t n = call_.layout.most_tokens();
    for (int r = 0; r < call_.ring.size(); ++r) {
      const KeyValues shard =
          sizes.view(all.slice(0, r * sizes.numel(n), (r + 1) * sizes.numel(n)), n);
      for (const Piece& piece : call_.pieces(r)) visit(piece, shard);
    }
  }

  // visit(heads, their keys and values of the sequence in order); the next are under way meanwhile.
  template <typename Visit>
  void for_each_group(const Tensor& q, const Tensor& k, const Tensor& v, const Visit& visit) const {
    const int64_t G = k.dim(1), n = call_.layout.most_tokens();
    struct Gather {
      HeadGroup heads;
      Tensor mine, all;
      Work work;
    };
    const auto start = [&](int64_t first) {
      Gather gather{
          {first, std::min(G, first + call_.context.heads_per_gather), q.dim(1) / G}, {}, {}, {}};
      const KeyValueSizes sizes = sizes_of(gather.heads, k, v);
      const KeyValues mine = k.dim(2) == n ? sizes.empty(n, k.dtype()) : sizes.zeros(n, k.dtype());
      mine.k.slice(2, 0, k.dim(2)).copy_(gather.heads.keys(k));
      mine.v.slice(2, 0, v.dim(2)).copy_(gather.heads.keys(v));
      gather.mine = mine.flat;
      gather.all = Tensor::empty({call_.ring.size() * sizes.numel(n)}, k.dtype(), k.device());
      gather.work = call_.ring.all_gather(gather.all, gather.mine, Mode::async);
      return gather;
    };
    for (Gather here = start(0), next{}; here.heads.first < G; here = std::move(next)) {
      if (here.heads.last < G) {
        next = start(here.heads.last);
      } else {
        next = {{G, G, 1}, {}, {}, {}};
      }
      here.work.wait();
      const KeyValueSizes sizes = sizes_of(here.heads, k, v);
      const KeyValues whole = sizes.empty(call_.layout.tokens(), k.dtype());
      for_each_piece(sizes, here.all, [&](const Piece& piece, const KeyValues& shard) {
        attention::put(whole.k, 2, piece.place, piece.of(shard.k));
        attention::put(whole.v, 2, piece.place, piece.of(shard.v));
      });
      visit(here.heads, whole);
    }
  }

  const ContextCall call_;
};

}  // namespace

Variable gather_attention(const ContextCall& call, const Variable& q, const Variable& k,
                          const Variable& v, const Variable& sink) {
  return record(make<GatherFn>(call), q, k, v, sink);
}

}  // namespace fovea::distributed
