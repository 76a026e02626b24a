// SPDX-License-Identifier: Apache-2.0
#pragma once
// What forward, backward and decode of the score engine share about one call: sizes, rotary tables,
// packed keys and values, and which parts of a tile are computed. Internal to attention/score/.

#include <memory>
#include <vector>

#include "attention/score/format.h"
#include "attention/score/score.h"
#include "core/scratch.h"

namespace fovea::attention {

inline constexpr int64_t kTile = kScoreTile;  // keys of a tile
inline constexpr int64_t kQueryTile = 128;    // queries of a tile
inline constexpr int64_t kStrip = 16;         // queries of a strip along a mask's edge

struct Problem {
  int64_t B, H, Hkv, N, M, D, Dv;
  double scale;
  Places at;  // the mask's
  int64_t key_tiles() const { return (M + kTile - 1) / kTile; }
  int64_t query_tiles() const { return (N + kQueryTile - 1) / kQueryTile; }
  int64_t group() const { return H / Hkv; }
};

// Throws naming what does not fit.
Problem check_problem(const ScoreRule& rule, const ScoreInputs& in, const Mask& mask,
                      const ScoreOptions& options);

// Inputs with unit last strides; slopes in f32, sink and bias in the accumulators' dtype.
ScoreInputs prepared_inputs(const ScoreInputs& in);

// Queries [i, i + rows) and keys [j, j + columns), counted from a tile's corner.
struct Part {
  int64_t i, rows, j, columns;
};

// Rotary positions (2104.09864): [positions, D] cosines, and sines with the sign that a channel's
// partner is multiplied by. Tables outlive calls (a layer asks for the same one at every step); one
// is replaced by a longer one when positions grow. Null for Rope::none.
template <typename Acc>
struct RotaryTable {
  int64_t positions;
  std::vector<Acc> cosine, sine;
};
template <typename Acc>
std::shared_ptr<const RotaryTable<Acc>> rotary_table(Rope kind, double base, int64_t positions,
                                                     int64_t dim);

// Rows [i0, i0 + rows) of a [B, H, N, D] view at (b, h).
inline TileRows rows_of(const Tensor& t, int64_t b, int64_t h, int64_t i0, int64_t rows) {
  const int64_t first = b * t.stride(0) + h * t.stride(1) + i0 * t.stride(2);
  return {static_cast<std::byte*>(t.raw()) + first * size_of(t.dtype()), t.dtype(), t.stride(2),
          rows, t.dim(3)};
}

// One call in one format.
template <typename F>
struct Call {
  using Acc = typename F::Acc;
  using Word = typename F::Word;

  const ScoreRule& rule;
  const Problem p;
  const ScoreInputs& in;
  const Mask& mask;
  const ScoreOptions& options;
  // Hidden keys are not computed at all, instead of getting weight 0: inputs hold a NaN or an
  // infinity, and 0 NaN is NaN.
  const bool exact;
  const std::shared_ptr<const RotaryTable<Acc>> rotary;

  Call(const ScoreRule& r, const Problem& problem, const ScoreInputs& inputs, const Mask& m,
       const ScoreOptions& o, bool exact_parts)
      : rule(r),
        p(problem),
        in(inputs),
        mask(m),
        options(o),
        exact(exact_parts),
        rotary(rotary_table<Acc>(o.rope, o.rope_base, problem.at.M, problem.D)) {}

  static int64_t words(int64_t numbers) { return (numbers + F::kPack - 1) / F::kPack; }

  // Rows of the tokens from `first` on, turned to their positions (direction -1: back).
  void rotate(Acc* x, const Place& place, int64_t first, int64_t rows, Acc direction) const {
    if (!rotary) return;
    const int64_t together = place.stride == 1 ? rows : 1;
    for (int64_t r = 0; r < rows; r += together) {
      const int64_t at = place.of(first + r) * p.D;
      F::rotate(x + r * p.D, together, p.D, rotary->cosine.data() + at, rotary->sine.data() + at,
                options.rope == Rope::interleaved, direction);
    }
  }

  // Rows as words [rows, words(columns)], turned to their positions; numbers [rows, columns] is
  // working memory.
  void load(Word* to, Acc* numbers, const TileRows& from, const Place& place, int64_t first) const {
    if (!rotary) return F::load(to, from);
    if constexpr (F::kPack == 1) {
      F::load(to, from);
      rotate(to, place, first, from.rows, Acc{1});
    } else {
      F::load_numbers(numbers, from);
      rotate(numbers, place, first, from.rows, Acc{1});
      F::round(to, numbers, from.rows, from.columns);
    }
  }

  // Whether raw products need more than a factor before they are scores.
  bool adjusts() const {
    return options.softcap > 0.0 || in.alibi_slopes.defined() || in.bias.defined() || p.scale < 0.0;
  }
  Acc rule_scale() const { return adjusts() ? Acc{1} : static_cast<Acc>(p.scale); }

  const Acc* bias_row(int64_t b, int64_t h, int64_t i) const {
    const Tensor& t = in.bias;
    return t.data<Acc>() +
           ((t.dim(0) == 1 ? 0 : b) * t.dim(1) + (t.dim(1) == 1 ? 0 : h)) * p.N * p.M + i * p.M;
  }

  // Raw products of query i with keys [j, j + columns) -> scores, as far as `rule_scale` leaves
  // them; hidden ones -inf unless the part is known to be whole. capped (or null): derivatives of
  // the soft-cap.
  void finish_scores(Acc* s, Acc* capped, int64_t b, int64_t h, int64_t i, int64_t j,
                     int64_t columns, bool whole) const {
    if (adjusts()) {
      const double slope = in.alibi_slopes.defined()
                               ? static_cast<double>(in.alibi_slopes.template data<float>()[h])
                               : 0.0;
      F::adjust(s, columns, p.scale, options.softcap, slope,
                p.at.query_positions().of(i) - p.at.keys.of(j), p.at.keys.stride,
                in.bias.defined() ? bias_row(b, h, i) + j : nullptr, capped);
    }
    if (whole) return;
    if (mask.is_interval()) {
      int64_t first, last;
      mask.limits(i, p.N, p.M, first, last);
      for (int64_t c = 0; c < std::clamp<int64_t>(first - j, 0, columns); ++c) s[c] = -INFINITY;
      for (int64_t c = std::clamp<int64_t>(last - j, 0, columns); c < columns; ++c)
        s[c] = -INFINITY;
    } else {
      for (int64_t c = 0; c < columns; ++c) {
        if (!mask.allowed(b, h, i, j + c, p.N, p.M)) s[c] = -INFINITY;
      }
    }
  }

  // Multiplies each element of a part by keep / (1 - rate).
  void drop(Acc* x, int64_t b, int64_t h, int64_t i, int64_t rows, int64_t j,
            int64_t columns) const {
    const uint32_t threshold = dropout_threshold(options.dropout);
    const int64_t head = (options.first_sample + b) * p.at.heads + p.at.first_head + h,
                  together = p.at.keys.stride == 1 ? columns : 1;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = (head * p.at.N + p.at.queries.of(i + r)) * p.at.M;
      for (int64_t c = 0; c < columns; c += together) {
        F::drop(x + r * kTile + c, together, options.rng,
                static_cast<uint64_t>(row + p.at.keys.of(j + c)), threshold,
                1.0 / (1.0 - options.dropout));
      }
    }
  }

  // What to compute of the tile of queries [i0, i0 + rows) and keys [j0, j0 + columns), which is
  // not TileClass::skip.
  void parts(std::vector<Part>& list, TileClass cls, int64_t b, int64_t h, int64_t i0, int64_t rows,
             int64_t j0, int64_t columns) const {
    list.clear();
    if (cls == TileClass::full || (!exact && !mask.is_interval())) {
      list.push_back({0, rows, 0, columns});
    } else if (exact) {  // runs of keys that one query sees
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0, end; j < columns; j = end + 1) {
          end = j;
          while (end < columns && mask.allowed(b, h, i0 + i, j0 + end, p.N, p.M)) ++end;
          if (end > j) list.push_back({i, 1, j, end - j});
        }
      }
    } else {
      for (int64_t i = 0; i < rows; i += kStrip) {
        Part part{i, std::min(kStrip, rows - i), columns, 0};
        int64_t end = 0;
        for (int64_t r = i; r < i + part.rows; ++r) {
          int64_t first, last;
          mask.limits(i0 + r, p.N, p.M, first, last);
          if (first >= last) continue;
          part.j = std::min(part.j, std::clamp<int64_t>(first - j0, 0, columns));
          end = std::max(end, std::clamp<int64_t>(last - j0, 0, columns));
        }
        part.j -= part.j % 16;  // whole vectors
        part.columns = end - part.j;
        if (part.columns > 0) list.push_back(part);
      }
    }
  }
};

// Keys and values of one (b, key head) in the layouts that products read: keys by lanes, values by
// rows (forward) or both by lanes and keys by rows (backward). By lanes: [tiles, words(D), 64], a
// tile transposed, columns past M are 0. By rows: [tiles 64 / pack, D], neighbouring keys in one
// word.
template <typename F>
class KeySide {
 public:
  using Word = typename F::Word;
  static int64_t size(const Problem& p, bool backward) {
    const int64_t lanes = p.key_tiles() * kTile, rows = lanes / F::kPack;
    return lanes * Call<F>::words(p.D) +
           (backward ? lanes * Call<F>::words(p.Dv) + rows * p.D : rows * p.Dv);
  }

  KeySide(const Call<F>& call, Word* memory, bool backward) : call_(call), backward_(backward) {
    const Problem& p = call.p;
    const int64_t lanes = p.key_tiles() * kTile;
    key_lanes_ = memory;
    value_rows_ = value_lanes_ = key_lanes_ + lanes * call.words(p.D);  // one or the other
    key_rows_ = value_lanes_ + lanes * call.words(p.Dv);
  }

  // Fills one tile; false when a number of it is not finite.
  bool pack(int64_t b, int64_t hk, int64_t tile) const {
    const Problem& p = call_.p;
    const int64_t j0 = tile * kTile, count = std::min(kTile, p.M - j0);
    const TileRows k = rows_of(call_.in.k, b, hk, j0, count),
                   v = rows_of(call_.in.v, b, hk, j0, count);
    pack_one(k, true, j0, key_lanes_ + tile * kTile * call_.words(p.D),
             backward_ ? key_rows_ + tile * kTile / F::kPack * p.D : nullptr);
    pack_one(v, false, j0, backward_ ? value_lanes_ + tile * kTile * call_.words(p.Dv) : nullptr,
             backward_ ? nullptr : value_rows_ + tile * kTile / F::kPack * p.Dv);
    return F::finite(k) && F::finite(v);
  }

  const Word* key_lanes(int64_t tile) const {
    return key_lanes_ + tile * kTile * call_.words(call_.p.D);
  }
  const Word* value_lanes(int64_t tile) const {
    return value_lanes_ + tile * kTile * call_.words(call_.p.Dv);
  }
  // From key j on, a multiple of the pack.
  const Word* key_rows(int64_t j) const { return key_rows_ + j / F::kPack * call_.p.D; }
  const Word* value_rows(int64_t j) const { return value_rows_ + j / F::kPack * call_.p.Dv; }

 private:
  void pack_one(const TileRows& from, bool turned, int64_t first, Word* lanes, Word* rows) const {
    const int64_t words = call_.words(from.columns);
    const Scratch<typename F::Acc> numbers(turned && F::kPack > 1 ? kTile * from.columns : 0);
    const Scratch<Word> own(F::kPack > 1 || rows == nullptr ? kTile * words : 0);
    Word* loaded = F::kPack > 1 || rows == nullptr ? own.data() : rows;
    if (turned) {
      call_.load(loaded, numbers.data(), from, call_.p.at.keys, first);
    } else {
      F::load(loaded, from);
    }
    if (lanes != nullptr) F::transpose(lanes, loaded, from.rows, words);
    if constexpr (F::kPack > 1) {
      if (rows != nullptr) F::interleave(rows, loaded, from.rows, from.columns);
    }
  }

  const Call<F>& call_;
  bool backward_;
  Word *key_lanes_, *value_rows_, *value_lanes_, *key_rows_;
};

// The format for these inputs: f.template operator()<F>().
template <typename Fn>
void dispatch_format(Dtype dtype, bool exact, Fn&& f) {
  if (dtype == Dtype::f64) return f.template operator()<F64>();
  if (dtype == Dtype::bf16 && !exact && cpu_isa() == Isa::avx512_bf16)
    return f.template operator()<Pairs>();
  f.template operator()<F32>();
}

// A few queries over many keys (decoding): no packing, keys split into spans that are merged in
// order.
bool is_decode(const Problem& p);
void decode_forward(const ScoreRule& rule, const Problem& p, const ScoreInputs& in,
                    const Mask& mask, const ScoreOptions& options, const ScoreResult& result);

// Rows unnormalised, in place of out and lse; not by decode_forward.
void tiles_forward_sums(const ScoreRule& rule, const Problem& p, const ScoreInputs& in,
                        const Mask& mask, const ScoreOptions& options, const ScoreSums& sums);

// On a GPU device (device.cpp); result's tensors, and gradients, are there.
void device_forward(const ScoreRule& rule, const Problem& p, const ScoreInputs& in,
                    const Mask& mask, const ScoreOptions& options, const ScoreResult& result);
void device_forward_sums(const ScoreRule& rule, const Problem& p, const ScoreInputs& in,
                         const Mask& mask, const ScoreOptions& options, const ScoreSums& sums);
void device_finish(const ScoreRule& rule, const ScoreSums& sums, const ScoreResult& result);
ScoreGrads device_backward(const ScoreRule& rule, const Problem& p, const Tensor& dout,
                           const ScoreResult& result, const ScoreInputs& in, const Mask& mask,
                           const ScoreOptions& options, ScoreGrads grads);

// A row m, l, acc [dv] and another over other keys: both rescaled to the larger m, and added.
template <typename Acc>
void add_row(const ScoreRule& rule, Acc& m, Acc& l, Acc* acc, Acc other_m, Acc other_l,
             const Acc* other, int64_t dv) {
  Acc ours{1}, theirs{1};
  if (rule.online) {
    if (other_m == static_cast<Acc>(-INFINITY) && other_l == Acc{0}) return;  // it saw nothing
    const Acc top = std::max(m, other_m);
    ours = m == top ? Acc{1} : std::exp(m - top);
    theirs = other_m == top ? Acc{1} : std::exp(other_m - top);
    m = top;
  }
  l = ours * l + theirs * other_l;
  for (int64_t d = 0; d < dv; ++d) acc[d] = ours * acc[d] + theirs * other[d];
}

// Row statistic and factor of a finished row.
template <typename Acc>
struct RowEnd {
  Acc statistic, factor;
};
template <typename Acc>
RowEnd<Acc> finish_row(const ScoreRule& rule, Acc m, Acc l) {
  if (!rule.normalised) return {Acc{0}, Acc{1}};
  const bool empty = l == Acc{0};
  if (!rule.online) return {l, empty ? Acc{0} : Acc{1} / l};
  return {empty ? static_cast<Acc>(-INFINITY) : m + std::log(l), empty ? Acc{0} : Acc{1} / l};
}

}  // namespace fovea::attention
