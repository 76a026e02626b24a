// SPDX-License-Identifier: Apache-2.0
// A few queries over many keys, as in decoding: limited by reading k and v, once. All query heads
// of a key head share one pass over it. Keys are split into spans of 1024, so that one sequence
// occupies every core; spans are merged in order, by the rule's own rescaling. No format but f32
// (f64): sums of few rows gain nothing from wider products.
#include "attention/score/engine.h"
#include "core/parallel.h"

namespace fovea::attention {
namespace {

constexpr int64_t kSpan = 16 * kTile;  // keys

// Weights of keys [first, last) for all queries of one key head: rows r = (h in the group, i).
template <typename F>
void decode_span(const Call<F>& call, const typename F::Acc* q, int64_t b, int64_t hk,
                 int64_t first, int64_t last, typename F::Acc* m, typename F::Acc* l,
                 typename F::Acc* acc) {
  using Acc = typename F::Acc;
  const Problem& p = call.p;
  const int64_t rows = p.group() * p.N;
  const Scratch<Acc> k(kTile * p.D), s(rows * kTile);
  for (int64_t j = first; j < last; j += kTile) {
    const int64_t columns = std::min(kTile, last - j);
    bool skip = true;
    for (int64_t g = 0; g < p.group() && skip; ++g)
      skip = call.mask.classify(b, hk * p.group() + g, 0, p.N, j, j + columns, p.N, p.M) ==
             TileClass::skip;
    if (skip) continue;
    F::load_numbers(k.data(), rows_of(call.in.k, b, hk, j, columns));
    call.rotate(k.data(), p.at.keys, j, columns, Acc{1});
    F::few_dots(s.data(), q, rows, k.data(), columns, p.D);
    for (int64_t r = 0; r < rows; ++r)
      call.finish_scores(s.data() + r * kTile, nullptr, b, hk * p.group() + r / p.N, r % p.N, j,
                         columns, false);
    F::forward_rows(call.rule,
                    {call.rule.rule, s.data(), rows, columns, call.rule_scale(), m, l, acc, p.Dv});
    if (call.options.dropout > 0.0) {
      for (int64_t r = 0; r < rows; ++r)
        call.drop(s.data() + r * kTile, b, hk * p.group() + r / p.N, r % p.N, 1, j, columns);
    }
    F::few_sums(acc, s.data(), rows, rows_of(call.in.v, b, hk, j, columns));
  }
}

template <typename F>
void decode(const Call<F>& call, const ScoreResult& result) {
  using Acc = typename F::Acc;
  const Problem& p = call.p;
  const int64_t rows = p.group() * p.N, heads = p.B * p.Hkv,
                spans = std::max<int64_t>(1, (p.M + kSpan - 1) / kSpan), state = rows * (p.Dv + 2);
  const Scratch<Acc> partial(heads * spans * state,
                             Acc{0});  // of each span: acc [rows, Dv], m [rows], l [rows]
  parallel_for_each(0, heads * spans, [&](int64_t task) {
    const int64_t b = task / spans / p.Hkv, hk = task / spans % p.Hkv, span = task % spans;
    Acc *acc = partial.data() + task * state, *m = acc + rows * p.Dv, *l = m + rows;
    const Scratch<Acc> q(rows * p.D);
    for (int64_t g = 0; g < p.group(); ++g) {
      const int64_t h = hk * p.group() + g;
      F::load_numbers(q.data() + g * p.N * p.D, rows_of(call.in.q, b, h, 0, p.N));
      call.rotate(q.data() + g * p.N * p.D, p.at.query_positions(), 0, p.N, Acc{1});
      // A sink is one key more, which the first span sees.
      const bool sink = call.in.sink.defined() && span == 0;
      std::fill_n(m + g * p.N, p.N,
                  sink ? call.in.sink.template data<Acc>()[h] : static_cast<Acc>(-INFINITY));
      std::fill_n(l + g * p.N, p.N, sink ? Acc{1} : Acc{0});
    }
    decode_span(call, q.data(), b, hk, span * kSpan, std::min(p.M, (span + 1) * kSpan), m, l, acc);
  });
  parallel_for(0, heads, 64, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head) {
      Acc *acc = partial.data() + head * spans * state, *m = acc + rows * p.Dv, *l = m + rows;
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t span = 1; span < spans; ++span) {
          const Acc* other = acc + span * state;
          add_row(call.rule, m[r], l[r], acc + r * p.Dv, other[rows * p.Dv + r],
                  other[rows * (p.Dv + 1) + r], other + r * p.Dv, p.Dv);
        }
        const RowEnd<Acc> finished = finish_row(call.rule, m[r], l[r]);
        for (int64_t d = 0; d < p.Dv; ++d) acc[r * p.Dv + d] *= finished.factor;
        const int64_t b = head / p.Hkv, h = head % p.Hkv * p.group() + r / p.N, i = r % p.N;
        result.lse.data<Acc>()[(b * p.H + h) * p.N + i] = finished.statistic;
        F::store(rows_of(result.out, b, h, i, 1), acc + r * p.Dv, 1.0);
      }
    }
  });
}

}  // namespace

bool is_decode(const Problem& p) { return p.N <= 4; }

void decode_forward(const ScoreRule& rule, const Problem& p, const ScoreInputs& in,
                    const Mask& mask, const ScoreOptions& options, const ScoreResult& result) {
  if (in.q.dtype() == Dtype::f64)
    decode(Call<F64>(rule, p, in, mask, options, false), result);
  else
    decode(Call<F32>(rule, p, in, mask, options, false), result);
}

}  // namespace fovea::attention
