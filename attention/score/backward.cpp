// SPDX-License-Identifier: Apache-2.0
// Cost: 2.5 times a forward's FLOPs, five products a tile. A task is a (b, key head): keys and
// values in both layouts, dk and dv stay with it while its query heads pass. With fewer key heads
// than threads, tasks are key tiles for dk, dv and then query tiles for dq: seven products, the
// same sums in the same order, so the same bits.
#include <atomic>

#include "attention/score/engine.h"
#include "core/parallel.h"

namespace fovea::attention {

namespace {

// Queries and dout of one head: by channels [N, words(D)], and by rows [tiles 64 / pack, D] with
// neighbouring queries in one word.
template <typename F>
class QuerySide {
 public:
  using Acc = typename F::Acc;
  using Word = typename F::Word;
  static int64_t size(const Problem& p) {
    const int64_t tokens = p.query_tiles() * kQueryTile;
    return tokens * (Call<F>::words(p.D) + Call<F>::words(p.Dv)) +
           (F::kPack > 1 ? tokens / F::kPack * (p.D + p.Dv) : 0);
  }
  // delta [N]
  QuerySide(const Call<F>& call, Word* memory, Acc* delta) : call_(call), delta_(delta) {
    const Problem& p = call.p;
    const int64_t tokens = p.query_tiles() * kQueryTile;
    q_ = memory;
    d_ = q_ + tokens * call.words(p.D);
    q_rows_ = F::kPack > 1 ? d_ + tokens * call.words(p.Dv) : q_;
    d_rows_ = F::kPack > 1 ? q_rows_ + tokens / F::kPack * p.D : d_;
  }

  // Fills everything for head (b, h); false when a number is not finite. dsink (or null) receives
  // the sink's gradient.
  bool prepare(const Tensor& dout, const ScoreResult& result, int64_t b, int64_t h,
               Acc* dsink) const {
    const Problem& p = call_.p;
    const Scratch<Acc> numbers(kQueryTile * std::max(p.D, p.Dv));
    bool finite = true;
    for (int64_t i0 = 0; i0 < p.N; i0 += kQueryTile) {
      const int64_t rows = std::min(kQueryTile, p.N - i0);
      const TileRows query = rows_of(call_.in.q, b, h, i0, rows), d = rows_of(dout, b, h, i0, rows);
      call_.load(q_ + i0 * call_.words(p.D), numbers.data(), query, p.at.query_positions(), i0);
      F::load(d_ + i0 * call_.words(p.Dv), d);
      if constexpr (F::kPack > 1) {
        F::interleave(q_rows_ + i0 / F::kPack * p.D, q_ + i0 * call_.words(p.D), rows, p.D);
        F::interleave(d_rows_ + i0 / F::kPack * p.Dv, d_ + i0 * call_.words(p.Dv), rows, p.Dv);
      }
      if constexpr (F::kPack > 1) F::load_numbers(numbers.data(), d);
      F::dots(delta_ + i0,
              F::kPack > 1 ? numbers.data() : reinterpret_cast<const Acc*>(d_) + i0 * p.Dv,
              rows_of(result.out, b, h, i0, rows));
      finite = finite && F::finite(query) && F::finite(d);
    }
    if (dsink != nullptr) {
      const Acc* lse = result.lse.data<Acc>() + (b * p.H + h) * p.N;
      Acc gradient{0};
      for (int64_t i = 0; i < p.N; ++i)
        gradient -= std::exp(call_.in.sink.template data<Acc>()[h] - lse[i]) * delta_[i];
      *dsink = gradient;
    }
    return finite;
  }

  Operand<Word> q(int64_t i) const {
    return {q_ + i * call_.words(call_.p.D), call_.words(call_.p.D), 1};
  }
  Operand<Word> d(int64_t i) const {
    return {d_ + i * call_.words(call_.p.Dv), call_.words(call_.p.Dv), 1};
  }
  const Word* q_rows(int64_t i) const { return q_rows_ + i / F::kPack * call_.p.D; }
  const Word* d_rows(int64_t i) const { return d_rows_ + i / F::kPack * call_.p.Dv; }
  const Acc* delta(int64_t i) const { return delta_ + i; }

 private:
  const Call<F>& call_;
  Acc* delta_;
  Word *q_, *d_, *q_rows_, *d_rows_;
};

// Where one tile adds its gradients: rows [64, D] or [64, Dv], or null where they are not asked
// for. dbias: the table's row of query i0 at key 0, rows M apart.
template <typename Acc>
struct TileGrads {
  Acc *dk, *dv, *dq, *dbias;
};

template <typename F>
struct TileScratch {
  using Acc = typename F::Acc;
  explicit TileScratch(const Call<F>& call)
      : s(kQueryTile * kTile),
        dp(kQueryTile * kTile),
        capped(call.options.softcap > 0.0 ? kQueryTile * kTile : 0),
        dropped(call.options.dropout > 0.0 ? kQueryTile * kTile : 0),
        buffer(F::kPack > 1 ? kQueryTile * kTile / F::kPack : 0) {}
  const Scratch<Acc> s, dp, capped, dropped;
  const Scratch<typename F::Word> buffer;
  std::vector<Part> parts;
};

template <typename F>
void backward_tile(const Call<F>& call, const KeySide<F>& keys, const QuerySide<F>& queries,
                   const ScoreResult& result, int64_t b, int64_t h, int64_t i0, int64_t tile,
                   const TileGrads<typename F::Acc>& to, TileScratch<F>& scratch) {
  using Acc = typename F::Acc;
  const Problem& p = call.p;
  const int64_t rows = std::min(kQueryTile, p.N - i0), j0 = tile * kTile,
                columns = std::min(kTile, p.M - j0);
  const bool capped = call.options.softcap > 0.0, dropout = call.options.dropout > 0.0;
  const Acc* statistic = result.lse.data<Acc>() + (b * p.H + h) * p.N;
  const TileClass cls = call.mask.classify(b, h, i0, i0 + rows, j0, j0 + columns, p.N, p.M);
  if (cls == TileClass::skip) return;
  Acc *s = scratch.s.data(), *dp = scratch.dp.data();
  call.parts(scratch.parts, cls, b, h, i0, rows, j0, columns);
  for (const Part& part : scratch.parts) {
    const int64_t i = i0 + part.i, j = j0 + part.j;
    const bool whole = cls == TileClass::full || call.exact;
    F::product(s, kTile, queries.q(i), keys.key_lanes(tile) + part.j, kTile, part.rows,
               part.columns, call.words(p.D), false);
    F::product(dp, kTile, queries.d(i), keys.value_lanes(tile) + part.j, kTile, part.rows,
               part.columns, call.words(p.Dv), false);
    if (!whole || call.adjusts()) {
      for (int64_t r = 0; r < part.rows; ++r) {
        call.finish_scores(s + r * kTile, capped ? scratch.capped.data() + r * kTile : nullptr, b,
                           h, i + r, j, part.columns, whole);
      }
    }
    if (dropout) call.drop(dp, b, h, i, part.rows, j, part.columns);
    F::backward_rows(call.rule, {call.rule.rule, s, dp, part.rows, part.columns, call.rule_scale(),
                                 statistic + i, queries.delta(i)});
    if (to.dbias != nullptr) {
      for (int64_t r = 0; r < part.rows; ++r) {
        Acc* row = to.dbias + (part.i + r) * p.M + j;
        for (int64_t c = 0; c < part.columns; ++c) row[c] += dp[r * kTile + c];
      }
    }
    if (capped) {
      for (int64_t r = 0; r < part.rows; ++r) {
        for (int64_t c = 0; c < part.columns; ++c)
          dp[r * kTile + c] *= scratch.capped[r * kTile + c];
      }
    }
    if (to.dv != nullptr) {
      Acc* weights = s;
      if (dropout) {
        weights = scratch.dropped.data();
        std::copy_n(s, kQueryTile * kTile, weights);
        call.drop(weights, b, h, i, part.rows, j, part.columns);
      }
      F::product(to.dv + part.j * p.Dv, p.Dv,
                 F::over_queries(scratch.buffer.data(), weights, part.rows, part.columns),
                 queries.d_rows(i), p.Dv, part.columns, p.Dv, call.words(part.rows), true);
      F::product(to.dk + part.j * p.D, p.D,
                 F::over_queries(scratch.buffer.data(), dp, part.rows, part.columns),
                 queries.q_rows(i), p.D, part.columns, p.D, call.words(part.rows), true);
    }
    if (to.dq != nullptr) {
      F::product(to.dq + part.i * p.D, p.D,
                 F::over_keys(scratch.buffer.data(), dp, part.rows, part.columns), keys.key_rows(j),
                 p.D, part.rows, p.D, call.words(part.columns), true);
    }
  }
}

// What one backward writes; dbias and dsink hold one slice a batch and head where these are summed
// over.
struct Destination {
  ScoreGrads grads;
  Tensor dsink;  // [B, H]
  Tensor dbias;  // [Bb, H, N, M]
};

template <typename F>
class Backward {
 public:
  using Acc = typename F::Acc;
  using Word = typename F::Word;
  Backward(const Call<F>& call, const Tensor& dout, const ScoreResult& result,
           const Destination& to)
      : call_(call), p_(call.p), dout_(dout), result_(result), to_(to) {}

  // False when an input is not finite.
  bool run() {
    const int64_t heads = p_.B * p_.Hkv;
    if (to_.dbias.defined() && to_.dbias.dim(0) == 1) {  // the batch adds to one table, in order
      parallel_for_each(0, p_.Hkv, [&](int64_t hk) {
        for (int64_t b = 0; b < p_.B; ++b) key_head(b, hk);
      });
    } else if (heads >= num_threads() || to_.dbias.defined()) {
      parallel_for_each(0, heads, [&](int64_t task) { key_head(task / p_.Hkv, task % p_.Hkv); });
    } else {
      by_tiles();
    }
    return finite_;
  }

 private:
  void note(bool finite) {
    if (!finite) finite_ = false;
  }
  Acc* dsink(int64_t b, int64_t h) const {
    return to_.dsink.defined() ? to_.dsink.data<Acc>() + b * p_.H + h : nullptr;
  }
  Acc* dbias(int64_t b, int64_t h, int64_t i0) const {
    return to_.dbias.defined()
               ? to_.dbias.data<Acc>() +
                     (((to_.dbias.dim(0) == 1 ? 0 : b) * p_.H + h) * p_.N + i0) * p_.M
               : nullptr;
  }
  // Rows of a gradient, turned back where positions turned them.
  void finish_queries(int64_t b, int64_t h, int64_t first, int64_t rows, Acc* dq) const {
    call_.rotate(dq, p_.at.query_positions(), first, rows, Acc{-1});
    F::store(rows_of(to_.grads.dq, b, h, first, rows), dq, p_.scale);
  }
  void finish_keys(int64_t b, int64_t hk, int64_t first, int64_t rows, Acc* dk, Acc* dv) const {
    call_.rotate(dk, p_.at.keys, first, rows, Acc{-1});
    F::store(rows_of(to_.grads.dk, b, hk, first, rows), dk, p_.scale);
    F::store(rows_of(to_.grads.dv, b, hk, first, rows), dv, 1.0);
  }

  void key_head(int64_t b, int64_t hk) {
    const Scratch<Word> key_memory(KeySide<F>::size(p_, true)),
        query_memory(QuerySide<F>::size(p_));
    const Scratch<Acc> dk(p_.M * p_.D, Acc{0}), dv(p_.M * p_.Dv, Acc{0}), dq(p_.N * p_.D),
        delta(p_.N);
    const KeySide<F> keys(call_, key_memory.data(), true);
    const QuerySide<F> queries(call_, query_memory.data(), delta.data());
    TileScratch<F> scratch(call_);
    for (int64_t tile = 0; tile < p_.key_tiles(); ++tile) note(keys.pack(b, hk, tile));
    for (int64_t h = hk * p_.group(); h < (hk + 1) * p_.group(); ++h) {
      note(queries.prepare(dout_, result_, b, h, dsink(b, h)));
      std::fill_n(dq.data(), p_.N * p_.D, Acc{0});
      for (int64_t tile = 0; tile < p_.key_tiles(); ++tile) {
        for (int64_t i0 = 0; i0 < p_.N; i0 += kQueryTile) {
          backward_tile(call_, keys, queries, result_, b, h, i0, tile,
                        {&dk[tile * kTile * p_.D], &dv[tile * kTile * p_.Dv], &dq[i0 * p_.D],
                         dbias(b, h, i0)},
                        scratch);
        }
      }
      finish_queries(b, h, 0, p_.N, dq.data());
    }
    finish_keys(b, hk, 0, p_.M, dk.data(), dv.data());
  }

  void by_tiles() {
    const int64_t key_size = KeySide<F>::size(p_, true), query_size = QuerySide<F>::size(p_);
    const Scratch<Word> key_memory(p_.B * p_.Hkv * key_size),
        query_memory(p_.B * p_.H * query_size);
    const Scratch<Acc> delta(p_.B * p_.H * p_.N);
    const auto keys = [&](int64_t bh) {
      return KeySide<F>(call_, key_memory.data() + bh * key_size, true);
    };
    const auto queries = [&](int64_t bh) {
      return QuerySide<F>(call_, query_memory.data() + bh * query_size, delta.data() + bh * p_.N);
    };
    const int64_t key_tasks = p_.B * p_.Hkv * p_.key_tiles(),
                  query_tasks = p_.B * p_.H * p_.query_tiles();
    parallel_for_each(0, key_tasks, [&](int64_t task) {
      const int64_t bh = task / p_.key_tiles();
      note(keys(bh).pack(bh / p_.Hkv, bh % p_.Hkv, task % p_.key_tiles()));
    });
    parallel_for_each(0, p_.B * p_.H, [&](int64_t bh) {
      note(queries(bh).prepare(dout_, result_, bh / p_.H, bh % p_.H, dsink(bh / p_.H, bh % p_.H)));
    });
    parallel_for_each(
        0, key_tasks,
        [&](int64_t task) {  // early key tiles are seen by more queries under a causal mask
          const int64_t tile = task / (p_.B * p_.Hkv), bh = task % (p_.B * p_.Hkv), b = bh / p_.Hkv,
                        hk = bh % p_.Hkv, j0 = tile * kTile;
          const int64_t columns = std::min(kTile, p_.M - j0);
          const Scratch<Acc> dk(kTile * p_.D, Acc{0}), dv(kTile * p_.Dv, Acc{0});
          TileScratch<F> scratch(call_);
          for (int64_t h = hk * p_.group(); h < (hk + 1) * p_.group(); ++h) {
            for (int64_t i0 = 0; i0 < p_.N; i0 += kQueryTile) {
              backward_tile(call_, keys(bh), queries(b * p_.H + h), result_, b, h, i0, tile,
                            {dk.data(), dv.data(), nullptr, nullptr}, scratch);
            }
          }
          finish_keys(b, hk, j0, columns, dk.data(), dv.data());
        });
    parallel_for_each(0, query_tasks, [&](int64_t task) {
      const int64_t i0 = (p_.query_tiles() - 1 - task / (p_.B * p_.H)) * kQueryTile,
                    bh = task % (p_.B * p_.H), b = bh / p_.H, h = bh % p_.H;
      const int64_t rows = std::min(kQueryTile, p_.N - i0);
      const Scratch<Acc> dq(kQueryTile * p_.D, Acc{0});
      TileScratch<F> scratch(call_);
      for (int64_t tile = 0; tile < p_.key_tiles(); ++tile) {
        backward_tile(call_, keys(b * p_.Hkv + h / p_.group()), queries(bh), result_, b, h, i0,
                      tile, {nullptr, nullptr, dq.data(), nullptr}, scratch);
      }
      finish_queries(b, h, i0, rows, dq.data());
    });
  }

  const Call<F>& call_;
  const Problem& p_;
  const Tensor& dout_;
  const ScoreResult& result_;
  const Destination& to_;
  std::atomic<bool> finite_ = true;
};

// to += from, in order
template <typename Acc>
void add_slice(const Tensor& to, int64_t to_at, const Tensor& from, int64_t from_at,
               int64_t count) {
  Acc* sum = to.data<Acc>() + to_at * count;
  const Acc* x = from.data<Acc>() + from_at * count;
  parallel_for(0, count, 1 << 14, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) sum[i] += x[i];
  });
}

}  // namespace

ScoreGrads score_backward(const ScoreRule& rule, const Tensor& dout_given,
                          const ScoreResult& result, const ScoreInputs& given, const Mask& mask,
                          const ScoreOptions& options, ScoreGrads grads) {
  const Problem p = check_problem(rule, given, mask, options);
  FOVEA_CHECK(dout_given.shape() == result.out.shape(), "softmax: dout is ", dout_given.shape(),
              " but out is ", result.out.shape());
  const Dtype dtype = given.q.dtype(), stats = dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32;
  const auto heads_last = [&](int64_t heads, int64_t tokens, int64_t dim) {
    return Tensor::empty({p.B, tokens, heads, dim}, dtype, given.q.device()).transpose(1, 2);
  };
  if (!grads.dq.defined()) grads.dq = heads_last(p.H, p.N, p.D);
  if (!grads.dk.defined()) grads.dk = heads_last(p.Hkv, p.M, p.D);
  if (!grads.dv.defined()) grads.dv = heads_last(p.Hkv, p.M, p.Dv);
  const ScoreInputs in = prepared_inputs(given);
  Tensor dout = dout_given.to(dtype);
  if (dout.dim(3) > 1 && dout.stride(3) != 1) dout = dout.contiguous();
  if (!in.q.device().is_cpu())
    return device_backward(rule, p, dout, result, in, mask, options, std::move(grads));
  Destination to{grads, Tensor(), Tensor()};
  if (in.sink.defined()) to.dsink = Tensor::zeros({p.B, p.H}, stats);
  for (const bool exact : {false, true}) {
    if (in.bias.defined()) to.dbias = Tensor::zeros({in.bias.dim(0), p.H, p.N, p.M}, stats);
    bool done = true;
    dispatch_format(dtype, exact, [&]<typename F>() {
      done = Backward<F>(Call<F>(rule, p, in, mask, options, exact), dout, result, to).run();
    });
    if (done) break;
  }
  dispatch_floating(stats, "softmax", [&]<typename S>() {  // over what was shared, in order
    if constexpr (std::is_same_v<S, accumulator_t<S>>) {
      if (in.sink.defined()) {
        grads.dsink = Tensor::zeros({p.H}, stats);
        for (int64_t b = 0; b < p.B; ++b) add_slice<S>(grads.dsink, 0, to.dsink, b, p.H);
      }
      if (in.bias.defined()) {
        grads.dbias = to.dbias;
        if (in.bias.dim(1) == 1 && p.H > 1) {
          grads.dbias = Tensor::zeros(in.bias.shape(), stats);
          for (int64_t b = 0; b < in.bias.dim(0); ++b) {
            for (int64_t h = 0; h < p.H; ++h)
              add_slice<S>(grads.dbias, b, to.dbias, b * p.H + h, p.N * p.M);
          }
        }
      }
    }
  });
  return grads;
}

}  // namespace fovea::attention
