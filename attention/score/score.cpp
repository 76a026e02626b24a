// SPDX-License-Identifier: Apache-2.0
// Cost, causal halves apart: forward 4 B H N M D FLOPs, backward 2.5 times that; bytes: q, k, v, out once, K and V packed
// once to f32. Saved for backward: q, k, v, out, lse. A tile cut by a causal or window edge is computed in strips of 16
// queries, each with the keys it sees.
#include "attention/score/score.h"

#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>

#include "attention/score/tile.h"
#include "core/parallel.h"
#include "core/scratch.h"

namespace fovea::attention {
namespace {

constexpr int64_t kTile = 64, kStrip = 16;

// ---- tile operations by accumulator type: f32 in SIMD, f64 as the plain definition ---------------------------------

void product(float* c, int64_t ldc, const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t ldb, int64_t m, int64_t n, int64_t k,
             bool accumulate) {
  const TileProduct p{c, ldc, a, a_row, a_column, b, ldb, m, n, k, accumulate};
  FOVEA_SIMD_CALL(tile_product, p);
}
void product(double* c, int64_t ldc, const double* a, int64_t a_row, int64_t a_column, const double* b, int64_t ldb, int64_t m, int64_t n, int64_t k,
             bool accumulate) {
  for (int64_t i = 0; i < m; ++i) {
    if (!accumulate) std::fill(c + i * ldc, c + i * ldc + n, 0.0);
    for (int64_t p = 0; p < k; ++p) {
      const double left = a[i * a_row + p * a_column];
      for (int64_t j = 0; j < n; ++j) c[i * ldc + j] += left * b[p * ldb + j];
    }
  }
}

void softmax_step(float* s, int64_t rows, int64_t n, float* m, float* l, float* acc, int64_t dv) { FOVEA_SIMD_CALL(softmax_rows, s, rows, n, m, l, acc, dv); }
void softmax_step(double* s, int64_t rows, int64_t n, double* m, double* l, double* acc, int64_t dv) {
  for (int64_t r = 0; r < rows; ++r, s += kTile, acc += dv) {
    double top = m[r];
    for (int64_t j = 0; j < n; ++j) top = std::max(top, s[j]);
    const double factor = m[r] == -INFINITY ? 0.0 : std::exp(m[r] - top);
    for (int64_t d = 0; d < dv; ++d) acc[d] *= factor;
    l[r] *= factor;
    m[r] = top;
    for (int64_t j = 0; j < n; ++j) l[r] += s[j] = top == -INFINITY ? 0.0 : std::exp(s[j] - top);
  }
}

void softmax_back(float* s, float* dp, int64_t rows, int64_t n, const float* lse, const float* delta) {
  FOVEA_SIMD_CALL(softmax_rows_backward, s, dp, rows, n, lse, delta);
}
void softmax_back(double* s, double* dp, int64_t rows, int64_t n, const double* lse, const double* delta) {
  for (int64_t r = 0; r < rows; ++r, s += kTile, dp += kTile) {
    for (int64_t j = 0; j < n; ++j) {
      s[j] = lse[r] == -INFINITY ? 0.0 : std::exp(s[j] - lse[r]);
      dp[j] = s[j] * (dp[j] - delta[r]);
    }
  }
}

void cap(float* s, float* slope, int64_t n, double c) { FOVEA_SIMD_CALL(softcap_row, s, slope, n, static_cast<float>(c)); }
void cap(double* s, double* slope, int64_t n, double c) {
  for (int64_t j = 0; j < n; ++j) {
    const double t = std::tanh(s[j] / c);
    s[j] = c * t;
    if (slope != nullptr) slope[j] = 1.0 - t * t;
  }
}

// Rows [rows, columns] of a [B, H, N, D] view at (b, h), from row i0 on.
TileRows rows_of(const Tensor& t, int64_t b, int64_t h, int64_t i0, int64_t rows) {
  const int64_t first = b * t.stride(0) + h * t.stride(1) + i0 * t.stride(2);
  return {static_cast<std::byte*>(t.raw()) + first * size_of(t.dtype()), t.dtype(), t.stride(2), rows, t.dim(3)};
}

void load(float* to, const TileRows& from, double factor) { FOVEA_SIMD_CALL(load_rows, to, from, static_cast<float>(factor)); }
void load(double* to, const TileRows& from, double factor) {
  for (int64_t i = 0; i < from.rows; ++i) {
    for (int64_t c = 0; c < from.columns; ++c) to[i * from.columns + c] = factor * static_cast<const double*>(from.data)[i * from.stride + c];
  }
}

void store(const TileRows& to, const float* from, double factor) { FOVEA_SIMD_CALL(store_rows, to, from, static_cast<float>(factor)); }
void store(const TileRows& to, const double* from, double factor) {
  for (int64_t i = 0; i < to.rows; ++i) {
    for (int64_t c = 0; c < to.columns; ++c) static_cast<double*>(to.data)[i * to.stride + c] = factor * from[i * to.columns + c];
  }
}

void dots(float* to, const float* a, const TileRows& b) { FOVEA_SIMD_CALL(row_dots, to, a, b); }
void dots(double* to, const double* a, const TileRows& b) {
  for (int64_t i = 0; i < b.rows; ++i) {
    to[i] = 0.0;
    for (int64_t c = 0; c < b.columns; ++c) to[i] += a[i * b.columns + c] * static_cast<const double*>(b.data)[i * b.stride + c];
  }
}

void transpose(float* to, const float* from, int64_t rows, int64_t columns) { FOVEA_SIMD_CALL(transpose_tile, to, from, rows, columns); }
void transpose(double* to, const double* from, int64_t rows, int64_t columns) {
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t i = 0; i < kTile; ++i) to[c * kTile + i] = i < rows ? from[i * columns + c] : 0.0;
  }
}

// ---- the problem ---------------------------------------------------------------------------------------------------

struct Problem {
  int64_t B, H, Hkv, N, M, D, Dv;
  double scale;
};

Problem check(const ScoreInputs& in, const Mask& mask, const ScoreOptions& options) {
  const Tensor &q = in.q, &k = in.k, &v = in.v;
  FOVEA_CHECK(q.rank() == 4 && k.rank() == 4 && v.rank() == 4, "softmax: expected q, k, v [B, H, N, D], found ", q.shape(), ", ", k.shape(), ", ", v.shape());
  const Problem p{q.dim(0), q.dim(1), k.dim(1), q.dim(2), k.dim(2), q.dim(3), v.dim(3),
                  options.scale != 0.0 ? options.scale : 1.0 / std::sqrt(static_cast<double>(std::max<int64_t>(1, q.dim(3))))};
  FOVEA_CHECK(k.dim(3) == p.D, "softmax: q ", q.shape(), " and k ", k.shape(), " differ in D (", p.D, " and ", k.dim(3), ")");
  FOVEA_CHECK(k.dim(0) == p.B && v.dim(0) == p.B && v.dim(1) == p.Hkv && v.dim(2) == p.M, "softmax: q ", q.shape(), ", k ", k.shape(), " and v ", v.shape(),
              " do not fit together");
  FOVEA_CHECK(p.Hkv >= 1 && p.H % p.Hkv == 0, "softmax: ", p.H, " query heads are no multiple of ", p.Hkv, " key heads");
  FOVEA_CHECK(q.dtype() == k.dtype() && q.dtype() == v.dtype(), "softmax: q, k, v are ", q.dtype(), ", ", k.dtype(), ", ", v.dtype(), "; expected one dtype");
  FOVEA_CHECK(options.softcap >= 0.0, "softmax: softcap must be 0 (none) or more, found ", options.softcap);
  FOVEA_CHECK(options.dropout >= 0.0 && options.dropout < 1.0, "softmax: dropout must be in [0, 1), found ", options.dropout);
  FOVEA_CHECK(options.rope == Rope::none || p.D % 2 == 0, "softmax: rotary positions need an even head dim, found ", p.D);
  FOVEA_CHECK(!in.alibi_slopes.defined() || in.alibi_slopes.shape() == Shape{p.H}, "softmax: ALiBi slopes are ", in.alibi_slopes.shape(), "; expected [", p.H, ']');
  FOVEA_CHECK(!in.sink.defined() || in.sink.shape() == Shape{p.H}, "softmax: sinks are ", in.sink.shape(), "; expected [", p.H, ']');
  mask.validate(p.B, p.H, p.N, p.M);
  return p;
}

// cos and sin of positions [0, count) for D channels: [count, D/2] each
template <typename Acc>
struct RopeTable {
  std::vector<Acc> cosine, sine;

  RopeTable(double base, int64_t positions, int64_t dim) {
    std::vector<double> frequency(static_cast<size_t>(dim / 2));
    for (size_t t = 0; t < frequency.size(); ++t) frequency[t] = std::pow(base, -2.0 * static_cast<double>(t) / static_cast<double>(dim));
    for (int64_t p = 0; p < positions; ++p) {
      for (const double f : frequency) {
        cosine.push_back(static_cast<Acc>(std::cos(static_cast<double>(p) * f)));
        sine.push_back(static_cast<Acc>(std::sin(static_cast<double>(p) * f)));
      }
    }
  }
};

// Tables outlive calls (a layer asks for the same one at every step); one is replaced by a longer one when positions grow.
template <typename Acc>
std::shared_ptr<const RopeTable<Acc>> rope_table(double base, int64_t positions, int64_t dim) {
  static std::mutex mutex;
  static std::map<std::pair<double, int64_t>, std::shared_ptr<const RopeTable<Acc>>> tables;
  const std::lock_guard lock(mutex);
  auto& table = tables[{base, dim}];
  if (!table || static_cast<int64_t>(table->cosine.size()) < positions * (dim / 2)) {
    const int64_t held = table ? static_cast<int64_t>(table->cosine.size()) / (dim / 2) : 0;
    table = std::make_shared<RopeTable<Acc>>(base, std::max(positions, 2 * held), dim);
  }
  return table;
}

// Rotates rows by their positions' angles.
template <typename Acc>
class Rotation {
 public:
  Rotation(const ScoreOptions& options, int64_t positions, int64_t dim) : half_(dim / 2), interleaved_(options.rope == Rope::interleaved) {
    if (options.rope != Rope::none && positions > 0 && dim > 0) table_ = rope_table<Acc>(options.rope_base, positions, dim);
  }
  // x [rows, D] in place, the first row at `position`; direction -1 undoes it (the gradient).
  void apply(Acc* x, int64_t position, int64_t rows, Acc direction) const {
    if (!table_) return;
    for (int64_t i = 0; i < rows; ++i, x += 2 * half_) {
      const Acc *cosine = table_->cosine.data() + (position + i) * half_, *sine = table_->sine.data() + (position + i) * half_;
      for (int64_t t = 0; t < half_; ++t) {
        const Acc c = cosine[t], s = direction * sine[t];
        Acc& first = x[interleaved_ ? 2 * t : t];
        Acc& second = x[interleaved_ ? 2 * t + 1 : t + half_];
        const Acc rotated = first * c - second * s;
        second = first * s + second * c;
        first = rotated;
      }
    }
  }

 private:
  std::shared_ptr<const RopeTable<Acc>> table_;
  int64_t half_;
  bool interleaved_;
};

// What is computed of one tile: queries [i, i + rows) and keys [j, j + columns), counted from the tile's corner.
struct Part {
  int64_t i, rows, j, columns;
};
struct Parts {
  std::array<Part, kTile / kStrip> list;
  int count = 0;
  const Part* begin() const { return list.data(); }
  const Part* end() const { return list.data() + count; }
};

// Everything that forward and backward share about one call.
template <typename T>
struct Engine {
  using Acc = accumulator_t<T>;
  const Problem p;
  const ScoreInputs& in;
  const Mask& mask;
  const ScoreOptions& options;
  const Rotation<Acc> rotation;
  const int64_t key_tiles;
  Tensor keys_t;    // [B, Hkv, tiles, D, 64]: rotated keys, transposed within each tile; columns past M are 0
  Tensor values;    // [B, Hkv, M, Dv]
  Tensor keys;      // [B, Hkv, M, D], rotated; backward only
  Tensor values_t;  // [B, Hkv, tiles, Dv, 64], backward only

  Engine(const Problem& problem, const ScoreInputs& inputs, const Mask& m, const ScoreOptions& o, bool backward)
      : p(problem), in(inputs), mask(m), options(o), rotation(o, problem.M, problem.D), key_tiles((problem.M + kTile - 1) / kTile) {
    keys_t = Tensor::empty({p.B, p.Hkv, key_tiles, p.D, kTile}, dtype_of<Acc>);
    values = Tensor::empty({p.B, p.Hkv, p.M, p.Dv}, dtype_of<Acc>);
    if (backward) {
      keys = Tensor::empty({p.B, p.Hkv, p.M, p.D}, dtype_of<Acc>);
      values_t = Tensor::empty({p.B, p.Hkv, key_tiles, p.Dv, kTile}, dtype_of<Acc>);
    }
    parallel_for(0, p.B * p.Hkv * key_tiles, 1, [&](int64_t begin, int64_t end) {
      const Scratch<Acc> tile_keys(backward ? 0 : kTile * p.D);
      for (int64_t piece = begin; piece < end; ++piece) {
        const int64_t tile = piece % key_tiles, bh = piece / key_tiles, b = bh / p.Hkv, h = bh % p.Hkv;
        const int64_t first = tile * kTile, count = std::min(kTile, p.M - first);
        Acc* k = backward ? key_row(bh, first) : tile_keys.data();
        load(k, rows_of(in.k, b, h, first, count), 1.0);
        rotation.apply(k, first, count, Acc{1});
        transpose(keys_t.data<Acc>() + piece * p.D * kTile, k, count, p.D);
        load(value_row(bh, first), rows_of(in.v, b, h, first, count), 1.0);
        if (backward) transpose(values_t.data<Acc>() + piece * p.Dv * kTile, value_row(bh, first), count, p.Dv);
      }
    });
  }

  Acc* key_row(int64_t bh, int64_t j) const { return keys.data<Acc>() + (bh * p.M + j) * p.D; }
  Acc* value_row(int64_t bh, int64_t j) const { return values.data<Acc>() + (bh * p.M + j) * p.Dv; }
  const Acc* key_tile(int64_t bh, int64_t tile) const { return keys_t.data<Acc>() + (bh * key_tiles + tile) * p.D * kTile; }
  const Acc* value_tile(int64_t bh, int64_t tile) const { return values_t.data<Acc>() + (bh * key_tiles + tile) * p.Dv * kTile; }

  // Rows [i0, i0 + rows) of q, scaled and rotated: [rows, D]
  void load_queries(Acc* to, int64_t b, int64_t h, int64_t i0, int64_t rows) const {
    load(to, rows_of(in.q, b, h, i0, rows), p.scale);
    rotation.apply(to, i0 + p.M - p.N, rows, Acc{1});
  }

  // What to compute of the tile of queries [i0, i0 + rows) and keys [j0, j0 + columns).
  Parts parts(TileClass cls, int64_t i0, int64_t rows, int64_t j0, int64_t columns) const {
    Parts parts;
    if (cls == TileClass::full || !mask.is_interval()) {
      parts.list[static_cast<size_t>(parts.count++)] = {0, rows, 0, columns};
      return parts;
    }
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
      part.j -= part.j % kStrip;  // whole vectors
      part.columns = end - part.j;
      if (part.columns > 0) parts.list[static_cast<size_t>(parts.count++)] = part;
    }
    return parts;
  }

  // s (the tile's part) = masked, capped, biased scores; slope (or null): d capped / d raw. q is the part's first row.
  void scores(Acc* s, Acc* slope, const Acc* q, int64_t b, int64_t h, int64_t i0, const Part& part, int64_t tile, TileClass cls) const {
    const int64_t j0 = tile * kTile + part.j;
    product(s, kTile, q, p.D, 1, key_tile(b * p.Hkv + h / (p.H / p.Hkv), tile) + part.j, kTile, part.rows, part.columns, p.D, false);
    for (int64_t r = 0; r < part.rows; ++r) {
      Acc* row = s + r * kTile;
      const int64_t i = i0 + part.i + r;
      if (options.softcap > 0.0) cap(row, slope != nullptr ? slope + r * kTile : nullptr, part.columns, options.softcap);
      if (in.alibi_slopes.defined()) {
        const auto a = static_cast<Acc>(in.alibi_slopes.data<float>()[h]);
        for (int64_t j = 0; j < part.columns; ++j) row[j] -= a * static_cast<Acc>(std::abs(i + p.M - p.N - (j0 + j)));
      }
      if (cls == TileClass::full) continue;
      if (mask.is_interval()) {
        int64_t first, last;
        mask.limits(i, p.N, p.M, first, last);
        for (int64_t j = 0; j < std::clamp<int64_t>(first - j0, 0, part.columns); ++j) row[j] = -INFINITY;
        for (int64_t j = std::clamp<int64_t>(last - j0, 0, part.columns); j < part.columns; ++j) row[j] = -INFINITY;
      } else {
        for (int64_t j = 0; j < part.columns; ++j) {
          if (!mask.allowed(b, h, i, j0 + j, p.N, p.M)) row[j] = -INFINITY;
        }
      }
    }
  }

  // Multiplies each element of a part by keep / (1 - rate); i and j count from the start of the sequence.
  void drop(Acc* x, int64_t b, int64_t h, int64_t i, int64_t rows, int64_t j, int64_t columns) const {
    const uint32_t threshold = dropout_threshold(options.dropout);
    const auto factor = static_cast<Acc>(1.0 / (1.0 - options.dropout));
    for (int64_t r = 0; r < rows; ++r) {
      const auto row = static_cast<uint64_t>((((options.first_sample + b) * p.H + h) * p.N + i + r) * p.M + j);
      for (int64_t c = 0; c < columns; ++c) x[r * kTile + c] *= random_word(options.rng, row + static_cast<uint64_t>(c)) < threshold ? Acc{0} : factor;
    }
  }

  Acc sink(int64_t h) const { return in.sink.data<Acc>()[h]; }
};

// ---- forward -------------------------------------------------------------------------------------------------------

template <typename T>
void forward_block(const Engine<T>& e, const ScoreResult& result, int64_t b, int64_t h, int64_t i0) {
  using Acc = accumulator_t<T>;
  const Problem& p = e.p;
  const int64_t rows = std::min(kTile, p.N - i0), bh = b * p.Hkv + h / (p.H / p.Hkv);
  const bool sink = e.in.sink.defined();
  const Scratch<Acc> q(rows * p.D), acc(rows * p.Dv, Acc{0}), m(rows, sink ? e.sink(h) : static_cast<Acc>(-INFINITY)), l(rows, Acc{sink ? 1.0f : 0.0f});
  alignas(64) Acc s[kTile * kTile];
  e.load_queries(q.data(), b, h, i0, rows);
  for (int64_t tile = 0; tile < e.key_tiles; ++tile) {
    const int64_t j0 = tile * kTile, columns = std::min(kTile, p.M - j0);
    const TileClass cls = e.mask.classify(b, h, i0, i0 + rows, j0, j0 + columns, p.N, p.M);
    if (cls == TileClass::skip) continue;
    for (const Part& part : e.parts(cls, i0, rows, j0, columns)) {
      e.scores(s, nullptr, q.data() + part.i * p.D, b, h, i0, part, tile, cls);
      softmax_step(s, part.rows, part.columns, &m[part.i], &l[part.i], &acc[part.i * p.Dv], p.Dv);
      if (e.options.dropout > 0.0) e.drop(s, b, h, i0 + part.i, part.rows, j0 + part.j, part.columns);
      product(&acc[part.i * p.Dv], p.Dv, s, kTile, 1, e.value_row(bh, j0 + part.j), p.Dv, part.rows, p.Dv, part.columns, true);
    }
  }
  Acc* lse = result.lse.data<Acc>() + (b * p.H + h) * p.N + i0;
  for (int64_t i = 0; i < rows; ++i) {
    const bool empty = l[i] == Acc{0};
    lse[i] = empty ? static_cast<Acc>(-INFINITY) : m[i] + std::log(l[i]);
    const Acc factor = empty ? Acc{0} : Acc{1} / l[i];
    for (int64_t d = 0; d < p.Dv; ++d) acc[i * p.Dv + d] *= factor;
  }
  store(rows_of(result.out, b, h, i0, rows), acc.data(), 1.0);
}

template <typename T>
void forward(const Problem& p, const ScoreInputs& in, const Mask& mask, const ScoreOptions& options, const ScoreResult& result) {
  const Engine<T> engine(p, in, mask, options, false);
  const int64_t blocks = (p.N + kTile - 1) / kTile;
  // Later blocks see more keys under a causal mask: longest first.
  parallel_for_each(0, p.B * p.H * blocks, [&](int64_t task) {
    const int64_t block = blocks - 1 - task / (p.B * p.H), bh = task % (p.B * p.H);
    forward_block(engine, result, bh / p.H, bh % p.H, block * kTile);
  });
}

// ---- backward ------------------------------------------------------------------------------------------------------

// All query heads of one key head: dk and dv accumulate per key tile, dq over key tiles, each in a fixed order.
template <typename T>
void backward_head(const Engine<T>& e, const Tensor& dout, const ScoreResult& result, const ScoreGrads& grads, int64_t b, int64_t hk) {
  using Acc = accumulator_t<T>;
  const Problem& p = e.p;
  const int64_t group = p.H / p.Hkv, bh = b * p.Hkv + hk;
  const bool dropout = e.options.dropout > 0.0, capped = e.options.softcap > 0.0;
  const Scratch<Acc> dk(p.M * p.D, Acc{0}), dv(p.M * p.Dv, Acc{0}), dq(p.N * p.D), q(p.N * p.D), d(p.N * p.Dv), delta(p.N);
  const Scratch<Acc> slope(capped ? kTile * kTile : 0), dropped(dropout ? kTile * kTile : 0);
  alignas(64) Acc s[kTile * kTile];
  alignas(64) Acc dp[kTile * kTile];
  for (int64_t h = hk * group; h < (hk + 1) * group; ++h) {
    const Acc* lse = result.lse.data<Acc>() + (b * p.H + h) * p.N;
    e.load_queries(q.data(), b, h, 0, p.N);
    load(d.data(), rows_of(dout, b, h, 0, p.N), 1.0);
    dots(delta.data(), d.data(), rows_of(result.out, b, h, 0, p.N));
    if (e.in.sink.defined()) {
      Acc gradient{0};
      for (int64_t i = 0; i < p.N; ++i) gradient -= std::exp(e.sink(h) - lse[i]) * delta[i];
      grads.dsink.data<Acc>()[b * p.H + h] = gradient;
    }
    std::fill(dq.data(), dq.data() + p.N * p.D, Acc{0});
    for (int64_t tile = 0; tile < e.key_tiles; ++tile) {
      const int64_t j0 = tile * kTile, columns = std::min(kTile, p.M - j0);
      for (int64_t i0 = 0; i0 < p.N; i0 += kTile) {
        const int64_t rows = std::min(kTile, p.N - i0);
        const TileClass cls = e.mask.classify(b, h, i0, i0 + rows, j0, j0 + columns, p.N, p.M);
        if (cls == TileClass::skip) continue;
        for (const Part& part : e.parts(cls, i0, rows, j0, columns)) {
          const int64_t i = i0 + part.i, j = j0 + part.j;
          e.scores(s, capped ? slope.data() : nullptr, &q[i * p.D], b, h, i0, part, tile, cls);
          product(dp, kTile, &d[i * p.Dv], p.Dv, 1, e.value_tile(bh, tile) + part.j, kTile, part.rows, part.columns, p.Dv, false);
          if (dropout) e.drop(dp, b, h, i, part.rows, j, part.columns);
          softmax_back(s, dp, part.rows, part.columns, lse + i, &delta[i]);
          const Acc* weights = s;
          if (dropout) {
            std::memcpy(dropped.data(), s, sizeof s);
            e.drop(dropped.data(), b, h, i, part.rows, j, part.columns);
            weights = dropped.data();
          }
          for (int64_t r = 0; capped && r < part.rows; ++r) {
            for (int64_t c = 0; c < part.columns; ++c) dp[r * kTile + c] *= slope[r * kTile + c];
          }
          product(&dv[j * p.Dv], p.Dv, weights, 1, kTile, &d[i * p.Dv], p.Dv, part.columns, p.Dv, part.rows, true);
          product(&dk[j * p.D], p.D, dp, 1, kTile, &q[i * p.D], p.D, part.columns, p.D, part.rows, true);
          product(&dq[i * p.D], p.D, dp, kTile, 1, e.key_row(bh, j), p.D, part.rows, p.D, part.columns, true);
        }
      }
    }
    e.rotation.apply(dq.data(), p.M - p.N, p.N, Acc{-1});
    store(rows_of(grads.dq, b, h, 0, p.N), dq.data(), p.scale);
  }
  e.rotation.apply(dk.data(), 0, p.M, Acc{-1});
  store(rows_of(grads.dk, b, hk, 0, p.M), dk.data(), 1.0);
  store(rows_of(grads.dv, b, hk, 0, p.M), dv.data(), 1.0);
}

Tensor with_unit_stride(const Tensor& t) { return t.rank() == 4 && (t.dim(3) <= 1 || t.stride(3) == 1) ? t : t.contiguous(); }

ScoreInputs prepared(const ScoreInputs& in, Dtype stats) {
  ScoreInputs out{with_unit_stride(in.q), with_unit_stride(in.k), with_unit_stride(in.v), in.alibi_slopes, Tensor()};
  if (in.alibi_slopes.defined()) out.alibi_slopes = in.alibi_slopes.to(Dtype::f32).contiguous();
  if (in.sink.defined()) out.sink = in.sink.to(stats).contiguous();
  return out;
}

Tensor heads_last(const Problem& p, int64_t heads, int64_t tokens, int64_t dim, Dtype dtype) {
  return Tensor::empty({p.B, tokens, heads, dim}, dtype).transpose(1, 2);
}

}  // namespace

ScoreResult softmax_forward(const ScoreInputs& in, const Mask& mask, const ScoreOptions& options) {
  const Problem p = check(in, mask, options);
  const Dtype stats = in.q.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32;
  const ScoreResult result{heads_last(p, p.H, p.N, p.Dv, in.q.dtype()), Tensor::empty({p.B, p.H, p.N}, stats)};
  const ScoreInputs ready = prepared(in, stats);
  dispatch_floating(in.q.dtype(), "softmax", [&]<typename T>() { forward<T>(p, ready, mask, options, result); });
  return result;
}

ScoreGrads softmax_backward(const Tensor& dout_in, const ScoreResult& result, const ScoreInputs& in, const Mask& mask, const ScoreOptions& options, ScoreGrads grads) {
  const Problem p = check(in, mask, options);
  FOVEA_CHECK(dout_in.shape() == result.out.shape(), "softmax: dout is ", dout_in.shape(), " but out is ", result.out.shape());
  const Dtype dtype = in.q.dtype(), stats = dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32;
  const Tensor dout = with_unit_stride(dout_in.to(dtype));
  if (!grads.dq.defined()) grads.dq = heads_last(p, p.H, p.N, p.D, dtype);
  if (!grads.dk.defined()) grads.dk = heads_last(p, p.Hkv, p.M, p.D, dtype);
  if (!grads.dv.defined()) grads.dv = heads_last(p, p.Hkv, p.M, p.Dv, dtype);
  const ScoreInputs ready = prepared(in, stats);
  ScoreGrads partial = grads;
  if (in.sink.defined()) partial.dsink = Tensor::zeros({p.B, p.H}, stats);
  dispatch_floating(dtype, "softmax", [&]<typename T>() {
    const Engine<T> engine(p, ready, mask, options, true);
    parallel_for_each(0, p.B * p.Hkv, [&](int64_t task) { backward_head(engine, dout, result, partial, task / p.Hkv, task % p.Hkv); });
  });
  if (in.sink.defined()) {  // over the batch, in order
    grads.dsink = Tensor::zeros({p.H}, stats);
    dispatch_floating(stats, "softmax", [&]<typename S>() {
      for (int64_t b = 0; b < p.B; ++b) {
        for (int64_t h = 0; h < p.H; ++h) grads.dsink.data<S>()[h] = S(grads.dsink.data<S>()[h] + partial.dsink.data<S>()[b * p.H + h]);
      }
    });
  }
  return grads;
}

Tensor alibi_slopes(int64_t heads) {
  std::vector<float> slopes;
  int64_t power = 1;
  while (power * 2 <= heads) power *= 2;
  for (int64_t h = 0; h < power; ++h) slopes.push_back(static_cast<float>(std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(power))));
  for (int64_t h = 0; static_cast<int64_t>(slopes.size()) < heads; h += 2) {
    slopes.push_back(static_cast<float>(std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(2 * power))));
  }
  return Tensor::from(slopes, {heads});
}

}  // namespace fovea::attention
