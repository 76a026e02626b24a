// SPDX-License-Identifier: Apache-2.0
// Attention while keys and values travel.
#include "core/ops/elementwise.h"
#include "distributed/context_call.h"

namespace fovea::distributed {
namespace {

using attention::ScoreGrads;
using attention::ScoreInputs;
using attention::ScoreResult;
using attention::ScoreSums;

// What is under way between two ranks at once, each its own tag.
enum Tag : int { kKeys, kNextKeys, kGradients, kNextGradients };

// The way of shards: rank r = a w + b of R = W w visits, in window o = 0 .. W-1 and step s = 0 ..
// w-1, the shard ((a - o) mod W) w + (b - s) mod w.
class Route {
 public:
  Route(const Communicator& ring, int64_t window)
      : w_(static_cast<int>(window)),
        W_(ring.size() / w_),
        a_(ring.rank() / w_),
        b_(ring.rank() % w_) {}
  int windows() const { return W_; }
  int steps() const { return w_; }
  // o <= W and s <= w: where they end they begin again.
  int shard(int o, int s) const { return at(a_ - o, b_ - s); }
  // Neighbours in the inner ring, and in the ring of windows.
  int inner(int hop) const { return at(a_, b_ + hop); }
  int outer(int hop) const { return at(a_ + hop, b_); }

 private:
  int at(int a, int b) const { return (a + W_) % W_ * w_ + (b + w_) % w_; }
  int w_, W_, a_, b_;
};

class RingFn final : public Function {
 public:
  explicit RingFn(const ContextCall& call)
      : call_(call),
        route_(call.ring, call.context.window > 0 ? call.context.window : call.ring.size()) {}
  const char* name() const override { return "ring_attention"; }

  Tensor forward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& sink) {
    const std::vector<Piece> own = call_.own();
    if (call_.ring.size() == 1 && !own.empty()) {  // one stretch
      const ScoreResult result =
          attention::score_forward(call_.rule, {q, k, v, call_.slopes, sink},
                                   call_.part(own[0], own[0], q.dim(1)), call_.options);
      save(q, k, v, sink, result.out, result.lse);
      return result.out;
    }
    const Tensor out = heads_last(q, v.dim(3)),
                 lse = Tensor::empty({q.dim(0), q.dim(1), q.dim(2)}, sums_dtype(q.dtype()),
                                     q.device());
    std::vector<ScoreSums> sums;
    for (const Piece& query : own)
      sums.push_back(attention::score_sums({query.of(q), k, v, Tensor(), Tensor()}));
    travel(k, v, [&](int, int, int shard, const KeyValues& kv) {
      for_each_pair(q, sink, own, shard,
                    [&](size_t i, const Piece& query, const Piece& key, const Tensor& own_sink) {
                      attention::score_forward_sums(
                          call_.rule,
                          {query.of(q), key.of(kv.k), key.of(kv.v), call_.slopes, own_sink},
                          call_.part(query, key, q.dim(1)), call_.options, sums[i]);
                    });
    });
    for (size_t i = 0; i < own.size(); ++i) {
      const ScoreResult result =
          attention::score_finish(call_.rule, sums[i], q.dtype(), {own[i].of(out), Tensor()});
      own[i].of(lse).copy_(result.lse);
    }
    save(q, k, v, sink, out, lse);
    return out;
  }

  Tensors backward(const Tensors& dout) override {
    const auto [q, k, v, sink, out, lse] = saved<6>();
    const std::vector<Piece> own = call_.own();
    const Tensor d = dout[0].stride(3) == 1 || dout[0].dim(3) == 1 ? dout[0] : dout[0].contiguous();
    if (call_.ring.size() == 1) {
      if (own.empty())
        return {Tensor::zeros_like(q), Tensor::zeros_like(k), Tensor::zeros_like(v),
                sink.defined() ? Tensor::zeros_like(sink) : Tensor()};
      const ScoreGrads grads =
          attention::score_backward(call_.rule, d, {out, lse}, {q, k, v, call_.slopes, sink},
                                    call_.part(own[0], own[0], q.dim(1)), call_.options);
      return {grads.dq, grads.dk, grads.dv, of_sink(grads.dsink, sink)};
    }
    const Dtype wide = sums_dtype(q.dtype());
    const KeyValueSizes sizes = sizes_of(k, v);
    const Tensor dq = Tensor::zeros(q.shape(), wide, q.device());
    Tensor dsink;
    Tensors own_lse;
    for (const Piece& query : own) own_lse.push_back(query.of(lse).contiguous());
    // Sums of a shard's dk and dv: what this rank adds, what came with the shard, what it sends on.
    KeyValues arriving, leaving;
    Work under_way;
    travel(k, v, [&](int o, int s, int shard, const KeyValues& kv) {
      const KeyValues ours = sizes.zeros(call_.layout.group_tokens(shard), wide);
      bool any = false;
      for_each_pair(q, sink, own, shard,
                    [&](size_t i, const Piece& query, const Piece& key, const Tensor& own_sink) {
                      any = true;
                      ScoreGrads sums{query.of(dq), key.of(ours.k), key.of(ours.v), dsink, {}};
                      attention::score_backward_sums(
                          call_.rule, query.of(d), {query.of(out), own_lse[i]},
                          {query.of(q), key.of(kv.k), key.of(kv.v), call_.slopes, own_sink},
                          call_.part(query, key, q.dim(1)), call_.options, sums);
                      dsink = sums.dsink;
                    });
      under_way.wait();
      if (o == 0 && s == 0) {
        arriving = ours;
      } else if (any) {
        axpy_(arriving.flat, 1.0, ours.flat);
      }
      const auto pass_on = [&](int to_shard, int from, int to, Tag tag) {
        leaving = arriving;
        arriving = sizes.empty(call_.layout.group_tokens(to_shard), wide);
        under_way = call_.ring.send_recv(arriving.flat, from, leaving.flat, to, tag, Mode::async);
      };
      if (route_.steps() > 1)
        pass_on(route_.shard(o, s + 1), route_.inner(-1), route_.inner(1), kGradients);
      if (s + 1 == route_.steps() && route_.windows() > 1) {
        under_way.wait();
        pass_on(route_.shard(o + 1, 0), route_.outer(-1), route_.outer(1), kNextGradients);
      }
    });
    under_way.wait();
    return {dq.to(q.dtype()), arriving.k.to(k.dtype()), arriving.v.to(v.dtype()),
            of_sink(dsink, sink)};
  }

 private:
  static Tensor of_sink(const Tensor& dsink, const Tensor& sink) {
    if (!sink.defined()) return {};
    return dsink.defined() ? dsink.to(sink.dtype()) : Tensor::zeros_like(sink);
  }
  static KeyValueSizes sizes_of(const Tensor& k, const Tensor& v) {
    return {k.dim(0), k.dim(1), k.dim(3), v.dim(3), k.device()};
  }

  // visit(number of the own piece, it, piece of the shard, sink) for all that may see anything. The
  // sink is one key more, which goes with the first of the own.
  template <typename Visit>
  void for_each_pair(const Tensor& q, const Tensor& sink, const std::vector<Piece>& own, int shard,
                     const Visit& visit) const {
    const std::vector<Piece> keys = call_.pieces(shard);
    for (size_t i = 0; i < own.size(); ++i) {
      for (size_t j = 0; j < keys.size(); ++j) {
        const bool with_sink = sink.defined() && shard == call_.ring.rank() && j == 0;
        if (with_sink || call_.sees(q.dim(0), q.dim(1), own[i], keys[j]))
          visit(i, own[i], keys[j], with_sink ? sink : Tensor());
      }
    }
  }

  // visit(o, s, shard, its keys and values), all shards in this rank's order; the next are under
  // way meanwhile.
  template <typename Visit>
  void travel(const Tensor& k, const Tensor& v, const Visit& visit) const {
    const KeyValueSizes sizes = sizes_of(k, v);
    const auto tokens = [&](int shard) { return call_.layout.group_tokens(shard); };
    KeyValues window = sizes.empty(tokens(call_.ring.rank()), k.dtype());
    window.k.copy_(k);
    window.v.copy_(v);
    for (int o = 0; o < route_.windows(); ++o) {
      KeyValues next_window;
      Work window_arrives;
      if (o + 1 < route_.windows()) {
        next_window = sizes.empty(tokens(route_.shard(o + 1, 0)), k.dtype());
        window_arrives = call_.ring.send_recv(next_window.flat, route_.outer(-1), window.flat,
                                              route_.outer(1), kNextKeys, Mode::async);
      }
      KeyValues here = window;
      for (int s = 0; s < route_.steps(); ++s) {
        KeyValues next;
        Work next_arrives;
        if (s + 1 < route_.steps()) {
          next = sizes.empty(tokens(route_.shard(o, s + 1)), k.dtype());
          next_arrives = call_.ring.send_recv(next.flat, route_.inner(-1), here.flat,
                                              route_.inner(1), kKeys, Mode::async);
        }
        visit(o, s, route_.shard(o, s), here);
        next_arrives.wait();
        here = next;
      }
      window_arrives.wait();
      window = next_window;
    }
  }

  const ContextCall call_;
  const Route route_;
};

}  // namespace

Variable ring_attention(const ContextCall& call, const Variable& q, const Variable& k,
                        const Variable& v, const Variable& sink) {
  return record(make<RingFn>(call), q, k, v, sink);
}

}  // namespace fovea::distributed
