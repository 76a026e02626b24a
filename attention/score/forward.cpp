// SPDX-License-Identifier: Apache-2.0
// Cost, causal halves apart: 4 B H N M D FLOPs; bytes: q, k, v, out once. Keys and values are
// packed once, by the task that uses them where there are enough heads to go round, so that they
// stay in its cache; else for all tasks at once. A tile cut by a causal or window edge is computed
// in strips of 16 queries, each with the keys it sees.
#include <atomic>
#include <map>
#include <mutex>

#include "attention/score/engine.h"
#include "core/parallel.h"

namespace fovea::attention {

Problem check_problem(const ScoreRule& rule, const ScoreInputs& in, const Mask& mask,
                      const ScoreOptions& options) {
  const Tensor &q = in.q, &k = in.k, &v = in.v;
  FOVEA_CHECK(q.rank() == 4 && k.rank() == 4 && v.rank() == 4,
              "softmax: expected q, k, v [B, H, N, D], found ", q.shape(), ", ", k.shape(), ", ",
              v.shape());
  const Problem p{q.dim(0),
                  q.dim(1),
                  k.dim(1),
                  q.dim(2),
                  k.dim(2),
                  q.dim(3),
                  v.dim(3),
                  options.scale != 0.0
                      ? options.scale
                      : 1.0 / std::sqrt(static_cast<double>(std::max<int64_t>(1, q.dim(3)))),
                  mask.places(q.dim(1), q.dim(2), k.dim(2))};
  FOVEA_CHECK(k.dim(3) == p.D, "softmax: q ", q.shape(), " and k ", k.shape(), " differ in D (",
              p.D, " and ", k.dim(3), ")");
  FOVEA_CHECK(k.dim(0) == p.B && v.dim(0) == p.B && v.dim(1) == p.Hkv && v.dim(2) == p.M,
              "softmax: q ", q.shape(), ", k ", k.shape(), " and v ", v.shape(),
              " do not fit together");
  FOVEA_CHECK(p.Hkv >= 1 && p.H % p.Hkv == 0, "softmax: ", p.H, " query heads are no multiple of ",
              p.Hkv, " key heads");
  FOVEA_CHECK(q.dtype() == k.dtype() && q.dtype() == v.dtype(), "softmax: q, k, v are ", q.dtype(),
              ", ", k.dtype(), ", ", v.dtype(), "; expected one dtype");
  FOVEA_CHECK(options.softcap >= 0.0, "softmax: softcap must be 0 (none) or more, found ",
              options.softcap);
  FOVEA_CHECK(options.dropout >= 0.0 && options.dropout < 1.0,
              "softmax: dropout must be in [0, 1), found ", options.dropout);
  FOVEA_CHECK(options.rope == Rope::none || p.D % 2 == 0,
              "softmax: rotary positions need an even head dim, found ", p.D);
  FOVEA_CHECK(
      options.rope == Rope::none || p.at.N <= p.at.M,
      "softmax: rotary positions need N <= M (the queries are the last of the keys), found N ",
      p.at.N, ", M ", p.at.M);
  FOVEA_CHECK(!in.alibi_slopes.defined() || in.alibi_slopes.shape() == Shape{p.H},
              "softmax: ALiBi slopes are ", in.alibi_slopes.shape(), "; expected [", p.H, ']');
  FOVEA_CHECK(!in.sink.defined() || in.sink.shape() == Shape{p.H}, "softmax: sinks are ",
              in.sink.shape(), "; expected [", p.H, ']');
  FOVEA_CHECK(!in.sink.defined() || rule.online,
              "score: a sink needs a rule with a running maximum, such as softmax");
  if (in.bias.defined()) {
    const Tensor& bias = in.bias;
    FOVEA_CHECK(bias.rank() == 4 && (bias.dim(0) == 1 || bias.dim(0) == p.B) &&
                    (bias.dim(1) == 1 || bias.dim(1) == p.H) && bias.dim(2) == p.N &&
                    bias.dim(3) == p.M,
                "softmax: bias is ", bias.shape(), "; expected [", p.B, " or 1, ", p.H, " or 1, ",
                p.N, ", ", p.M, ']');
  }
  mask.validate(p.B, p.H, p.N, p.M);
  return p;
}

template <typename Acc>
std::shared_ptr<const RotaryTable<Acc>> rotary_table(Rope kind, double base, int64_t positions,
                                                     int64_t dim) {
  if (kind == Rope::none || positions == 0 || dim == 0) return nullptr;
  static std::mutex mutex;
  static std::map<std::tuple<Rope, double, int64_t>, std::shared_ptr<const RotaryTable<Acc>>>
      tables;
  const std::lock_guard lock(mutex);
  auto& table = tables[{kind, base, dim}];
  if (table && table->positions >= positions) return table;
  auto made = std::make_shared<RotaryTable<Acc>>();
  made->positions = std::max(positions, table ? 2 * table->positions : 0);
  made->cosine.resize(static_cast<size_t>(made->positions * dim));
  made->sine.resize(made->cosine.size());
  for (int64_t t = 0; t < dim / 2; ++t) {
    const double frequency =
        std::pow(base, -2.0 * static_cast<double>(t) / static_cast<double>(dim));
    const int64_t one = kind == Rope::interleaved ? 2 * t : t,
                  other = kind == Rope::interleaved ? 2 * t + 1 : t + dim / 2;
    for (int64_t p = 0; p < made->positions; ++p) {
      const double angle = static_cast<double>(p) * frequency;
      made->cosine[static_cast<size_t>(p * dim + one)] =
          made->cosine[static_cast<size_t>(p * dim + other)] = static_cast<Acc>(std::cos(angle));
      made->sine[static_cast<size_t>(p * dim + one)] = static_cast<Acc>(-std::sin(angle));
      made->sine[static_cast<size_t>(p * dim + other)] = static_cast<Acc>(std::sin(angle));
    }
  }
  return table = made;
}
template std::shared_ptr<const RotaryTable<float>> rotary_table(Rope, double, int64_t, int64_t);
template std::shared_ptr<const RotaryTable<double>> rotary_table(Rope, double, int64_t, int64_t);

namespace {

// Where rows go: finished, or as sums.
struct RowsTo {
  const ScoreResult* result;
  const ScoreSums* sums;

  template <typename F>
  void put(const Call<F>& call, int64_t b, int64_t h, int64_t i0, int64_t rows,
           typename F::Acc* acc, const typename F::Acc* m, const typename F::Acc* l) const {
    using Acc = typename F::Acc;
    const Problem& p = call.p;
    const int64_t at = (b * p.H + h) * p.N + i0;
    if (sums != nullptr) {
      std::copy_n(acc, rows * p.Dv, sums->acc.data<Acc>() + at * p.Dv);
      std::copy_n(m, rows, sums->m.data<Acc>() + at);
      std::copy_n(l, rows, sums->l.data<Acc>() + at);
      return;
    }
    for (int64_t i = 0; i < rows; ++i) {
      const RowEnd<Acc> end = finish_row(call.rule, m[i], l[i]);
      result->lse.data<Acc>()[at + i] = end.statistic;
      for (int64_t d = 0; d < p.Dv; ++d) acc[i * p.Dv + d] *= end.factor;
    }
    F::store(rows_of(result->out, b, h, i0, rows), acc, 1.0);
  }
};

// One tile of queries of one head; false when a query's number is not finite.
template <typename F>
bool forward_tile(const Call<F>& call, const KeySide<F>& keys, const RowsTo& to, int64_t b,
                  int64_t h, int64_t i0) {
  using Acc = typename F::Acc;
  using Word = typename F::Word;
  const Problem& p = call.p;
  const int64_t rows = std::min(kQueryTile, p.N - i0), words = call.words(p.D);
  const bool sink = call.in.sink.defined();
  const Scratch<Word> q(kQueryTile * words),
      buffer(F::kPack > 1 ? kQueryTile * kTile / F::kPack : 0);
  const Scratch<Acc> acc(rows * p.Dv, Acc{0}),
      numbers(F::kPack > 1 && call.rotary ? kQueryTile * p.D : 0);
  Acc m[kQueryTile], l[kQueryTile];
  alignas(64) Acc s[kQueryTile * kTile];
  std::fill(m, m + rows, sink ? call.in.sink.template data<Acc>()[h] : static_cast<Acc>(-INFINITY));
  std::fill(l, l + rows, sink ? Acc{1} : Acc{0});
  const TileRows query_rows = rows_of(call.in.q, b, h, i0, rows);
  call.load(q.data(), numbers.data(), query_rows, p.at.query_positions(), i0);
  std::vector<Part> parts;
  for (int64_t tile = 0; tile < p.key_tiles(); ++tile) {
    const int64_t j0 = tile * kTile, columns = std::min(kTile, p.M - j0);
    const TileClass cls = call.mask.classify(b, h, i0, i0 + rows, j0, j0 + columns, p.N, p.M);
    if (cls == TileClass::skip) continue;
    call.parts(parts, cls, b, h, i0, rows, j0, columns);
    for (const Part& part : parts) {
      const int64_t i = i0 + part.i, j = j0 + part.j;
      F::product(s, kTile, Operand<Word>{q.data() + part.i * words, words, 1},
                 keys.key_lanes(tile) + part.j, kTile, part.rows, part.columns, words, false);
      const bool whole = cls == TileClass::full || call.exact;
      if (!whole || call.adjusts()) {
        for (int64_t r = 0; r < part.rows; ++r)
          call.finish_scores(s + r * kTile, nullptr, b, h, i + r, j, part.columns, whole);
      }
      F::forward_rows(call.rule, {call.rule.rule, s, part.rows, part.columns, call.rule_scale(),
                                  m + part.i, l + part.i, acc.data() + part.i * p.Dv, p.Dv});
      if (call.options.dropout > 0.0) call.drop(s, b, h, i, part.rows, j, part.columns);
      F::product(acc.data() + part.i * p.Dv, p.Dv,
                 F::over_keys(buffer.data(), s, part.rows, part.columns), keys.value_rows(j), p.Dv,
                 part.rows, p.Dv, call.words(part.columns), true);
    }
  }
  to.put(call, b, h, i0, rows, acc.data(), m, l);
  return F::finite(query_rows);
}

// False when an input is not finite.
template <typename F>
bool forward(const Call<F>& call, const RowsTo& to) {
  using Word = typename F::Word;
  const Problem& p = call.p;
  const int64_t heads = p.B * p.Hkv, size = KeySide<F>::size(p, false);
  std::atomic<bool> finite = true;
  const auto note = [&](bool is_finite) {
    if (!is_finite) finite = false;
  };
  if (heads >= 4 * num_threads()) {
    parallel_for_each(0, heads, [&](int64_t task) {
      const int64_t b = task / p.Hkv, hk = task % p.Hkv;
      const Scratch<Word> memory(size);
      const KeySide<F> keys(call, memory.data(), false);
      for (int64_t tile = 0; tile < p.key_tiles(); ++tile) note(keys.pack(b, hk, tile));
      for (int64_t h = hk * p.group(); h < (hk + 1) * p.group(); ++h) {
        for (int64_t tile = 0; tile < p.query_tiles(); ++tile)
          note(forward_tile(call, keys, to, b, h, tile * kQueryTile));
      }
    });
    return finite;
  }
  const Scratch<Word> memory(heads * size);
  const auto keys = [&](int64_t bh) { return KeySide<F>(call, memory.data() + bh * size, false); };
  parallel_for(0, heads * p.key_tiles(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t bh = piece / p.key_tiles();
      note(keys(bh).pack(bh / p.Hkv, bh % p.Hkv, piece % p.key_tiles()));
    }
  });
  // Later tiles see more keys under a causal mask: longest first.
  parallel_for_each(0, p.B * p.H * p.query_tiles(), [&](int64_t task) {
    const int64_t tile = p.query_tiles() - 1 - task / (p.B * p.H), b = task % (p.B * p.H) / p.H,
                  h = task % p.H;
    note(forward_tile(call, keys(b * p.Hkv + h / p.group()), to, b, h, tile * kQueryTile));
  });
  return finite;
}

void forward(const ScoreRule& rule, const Problem& p, const ScoreInputs& in, const Mask& mask,
             const ScoreOptions& options, const RowsTo& to) {
  for (const bool exact : {false, true}) {
    bool done = true;
    dispatch_format(in.q.dtype(), exact, [&]<typename F>() {
      done = forward(Call<F>(rule, p, in, mask, options, exact), to);
    });
    if (done) break;
  }
}

}  // namespace

void tiles_forward_sums(const ScoreRule& rule, const Problem& p, const ScoreInputs& in,
                        const Mask& mask, const ScoreOptions& options, const ScoreSums& sums) {
  forward(rule, p, in, mask, options, {nullptr, &sums});
}

ScoreInputs prepared_inputs(const ScoreInputs& in) {
  const Dtype stats = in.q.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32;
  const auto unit_stride = [](const Tensor& t) {
    return t.rank() == 4 && (t.dim(3) <= 1 || t.stride(3) == 1) ? t : t.contiguous();
  };
  const auto plain = [](const Tensor& t, Dtype dtype) {
    return t.defined() ? t.to(dtype).contiguous() : t;
  };
  return {unit_stride(in.q),     unit_stride(in.k),
          unit_stride(in.v),     plain(in.alibi_slopes, Dtype::f32).to(in.q.device()),
          plain(in.sink, stats), plain(in.bias, stats)};
}

ScoreResult score_forward(const ScoreRule& rule, const ScoreInputs& given, const Mask& mask,
                          const ScoreOptions& options) {
  const Problem p = check_problem(rule, given, mask, options);
  const Dtype dtype = given.q.dtype();
  FOVEA_CHECK(is_floating(dtype), "softmax: expected f32, bf16 or f64, found ", dtype);
  const Device device = given.q.device();
  const ScoreResult result{
      Tensor::empty({p.B, p.N, p.H, p.Dv}, dtype, device).transpose(1, 2),
      Tensor::empty({p.B, p.H, p.N}, dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32, device)};
  const ScoreInputs in = prepared_inputs(given);
  if (!device.is_cpu()) {
    device_forward(rule, p, in, mask, options, result);
    return result;
  }
  if (is_decode(p)) {
    decode_forward(rule, p, in, mask, options, result);
    return result;
  }
  forward(rule, p, in, mask, options, {&result, nullptr});
  return result;
}

Tensor alibi_slopes(int64_t heads) {
  std::vector<float> slopes;
  int64_t power = 1;
  while (power * 2 <= heads) power *= 2;
  for (int64_t h = 0; h < power; ++h)
    slopes.push_back(static_cast<float>(
        std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(power))));
  for (int64_t h = 0; static_cast<int64_t>(slopes.size()) < heads; h += 2) {
    slopes.push_back(static_cast<float>(
        std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(2 * power))));
  }
  return Tensor::from(slopes, {heads});
}

}  // namespace fovea::attention
