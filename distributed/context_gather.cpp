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
    const std::vector<Piece> own = queries();
    const Tensor out = heads_last(q, v.dim(3)),
                 lse = Tensor::empty({q.dim(0), q.dim(1), q.dim(2)}, sums_dtype(q.dtype()),
                                     q.device());
    for_each_group(q, k, v, [&](const HeadGroup& heads, const KeyValues& whole) {
      for (const Piece& query : own) {
        const Piece keys = keys_of(query);
        const ScoreResult result =
            attention::score_forward(call_.rule, inputs(heads, query, q, keys, whole, sink),
                                     mask(heads, query, keys), call_.options);
        heads.queries(query.of(out)).copy_(result.out);
        heads.queries(query.of(lse)).copy_(result.lse);
      }
    });
    save(q, k, v, sink, out, lse);
    return out;
  }

  Tensors backward(const Tensors& dout) override {
    const auto [q, k, v, sink, out, lse] = saved<6>();
    const std::vector<Piece> own = queries();
    const Dtype wide = sums_dtype(q.dtype());
    const Tensor dq = heads_last(q, q.dim(3)), dk = Tensor::empty_like(k),
                 dv = Tensor::empty_like(v);
    const Tensor dsink = sink.defined() ? Tensor::zeros_like(sink) : Tensor();
    const int64_t n = call_.layout.most_tokens();
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
      // What one stretch of queries gives: dk and dv of the keys it may see, and dsink.
      const auto gradients = [&](const Piece& query, const Piece& keys) {
        const ScoreInputs in = inputs(heads, query, q, keys, whole, sink);
        return attention::score_backward(
            call_.rule, heads.queries(query.of(dout[0])),
            {heads.queries(query.of(out)), heads.queries(query.of(lse)).contiguous()}, in,
            mask(heads, query, keys), call_.options,
            {heads.queries(query.of(dq)), Tensor::empty(in.k.shape(), wide, k.device()),
             Tensor::empty(in.v.shape(), wide, k.device()), Tensor(), Tensor()});
      };
      ScoreGrads sums;
      if (call_.context.block > 0 && !own.empty()) {
        sums = tree(own.data(), own.data() + own.size(),
                    [&](const Piece& query) { return gradients(query, keys_of(query)); });
      } else {
        const KeyValues zeros = sizes.zeros(call_.layout.tokens(), wide);
        sums.dk = zeros.k;
        sums.dv = zeros.v;
        for (const Piece& query : own) {
          const Piece keys = keys_of(query);
          const ScoreGrads part = gradients(query, keys);
          axpy_(keys.of(sums.dk), 1.0, part.dk);
          axpy_(keys.of(sums.dv), 1.0, part.dv);
          add_to(sums.dsink, part.dsink);
        }
      }
      if (sums.dsink.defined()) heads.of_heads(dsink).copy_(sums.dsink);
      land();
      const Tensor all = Tensor::zeros({call_.ring.size() * sizes.numel(n)}, wide, k.device());
      for_each_piece(sizes, all, [&](const Piece& piece, const KeyValues& shard) {
        piece.of(shard.k).copy_(attention::take(sums.dk, 2, piece.place, piece.count));
        piece.of(shard.v).copy_(attention::take(sums.dv, 2, piece.place, piece.count));
      });
      const KeyValues mine = sizes.empty(n, wide);
      last = {heads, mine, all,
              call_.ring.reduce_scatter(mine.flat, all, Reduce::sum, Mode::async)};
    });
    land();
    if (call_.context.block > 0 && dsink.defined()) {
      // One sum of the whole ring's, on its first rank: of parts, those of a step are others.
      call_.ring.all_reduce(dsink).wait();
      if (call_.ring.rank() > 0) dsink.zero_();
    }
    return {dq, dk, dv, dsink};
  }

 private:
  static void add_to(Tensor& sum, const Tensor& x) {
    if (!sum.defined()) {
      sum = x;
    } else if (x.defined()) {
      axpy_(sum, 1.0, x);
    }
  }
  // dk, dv and dsink of blocks [begin, end) as a balanced tree of sums.
  template <typename Gradients>
  static ScoreGrads tree(const Piece* begin, const Piece* end, const Gradients& gradients) {
    if (end - begin == 1) return gradients(*begin);
    const Piece* middle = begin + (end - begin) / 2;
    ScoreGrads sums = tree(begin, middle, gradients);
    const ScoreGrads other = tree(middle, end, gradients);
    axpy_(sums.dk, 1.0, other.dk);
    axpy_(sums.dv, 1.0, other.dv);
    add_to(sums.dsink, other.dsink);
    return sums;
  }

  // Stretches of queries, a call each.
  std::vector<Piece> queries() const {
    const int64_t block = call_.context.block;
    if (block == 0) return call_.own();
    std::vector<Piece> blocks;
    for (const Piece& piece : call_.own()) {  // contiguous, in whole blocks
      for (int64_t t = 0; t < piece.count; t += block)
        blocks.push_back({{piece.place.of(t), 1}, piece.first + t, block});
    }
    return blocks;
  }
  static KeyValueSizes sizes_of(const HeadGroup& heads, const Tensor& k, const Tensor& v) {
    return {k.dim(0), heads.last - heads.first, k.dim(3), v.dim(3), k.device()};
  }
  // The keys that positions leave to a stretch of queries; all, where calls must be alike.
  Piece keys_of(const Piece& query) const {
    const int64_t N = call_.layout.tokens();
    if (call_.context.block > 0) return {{}, 0, N};
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
