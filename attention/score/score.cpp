// SPDX-License-Identifier: Apache-2.0
// Cost, causal halves apart: forward 4 B H N M D FLOPs, backward 2.5 times that; bytes: q, k, v, out once, K and V packed
// once to f32. Saved for backward: q, k, v, out, lse.
#include "attention/score/score.h"

#include <cmath>
#include <cstring>

#include "attention/score/tile.h"
#include "core/parallel.h"

namespace fovea::attention {
namespace {

constexpr int64_t kTile = 64;

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

void softmax_step(float* s, int64_t n, float* m, float* l, float* acc, int64_t dv) { FOVEA_SIMD_CALL(softmax_row, s, n, m, l, acc, dv); }
void softmax_step(double* s, int64_t n, double* m, double* l, double* acc, int64_t dv) {
  double top = *m;
  for (int64_t j = 0; j < n; ++j) top = std::max(top, s[j]);
  const double factor = *m == -INFINITY ? 0.0 : std::exp(*m - top);
  for (int64_t d = 0; d < dv; ++d) acc[d] *= factor;
  *l *= factor;
  *m = top;
  for (int64_t j = 0; j < n; ++j) *l += s[j] = top == -INFINITY ? 0.0 : std::exp(s[j] - top);
}

void softmax_back(float* s, float* dp, int64_t n, float lse, float delta) { FOVEA_SIMD_CALL(softmax_row_backward, s, dp, n, lse, delta); }
void softmax_back(double* s, double* dp, int64_t n, double lse, double delta) {
  for (int64_t j = 0; j < n; ++j) {
    s[j] = lse == -INFINITY ? 0.0 : std::exp(s[j] - lse);
    dp[j] = s[j] * (dp[j] - delta);
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

template <typename T>
const T* head(const Tensor& t, int64_t b, int64_t h) { return t.data<T>() + b * t.stride(0) + h * t.stride(1); }
template <typename T>
T* head_mutable(const Tensor& t, int64_t b, int64_t h) { return t.data<T>() + b * t.stride(0) + h * t.stride(1); }

// cos and sin of positions [0, M): [M, D/2] each
template <typename Acc>
struct RopeTable {
  std::vector<Acc> cosine, sine;
  int64_t half = 0;
  bool interleaved = false;

  RopeTable(const ScoreOptions& options, int64_t positions, int64_t dim) {
    if (options.rope == Rope::none) return;
    interleaved = options.rope == Rope::interleaved;
    half = dim / 2;
    cosine.resize(static_cast<size_t>(positions * half));
    sine.resize(cosine.size());
    for (int64_t p = 0; p < positions; ++p) {
      for (int64_t t = 0; t < half; ++t) {
        const double angle = static_cast<double>(p) * std::pow(options.rope_base, -2.0 * static_cast<double>(t) / static_cast<double>(dim));
        cosine[static_cast<size_t>(p * half + t)] = static_cast<Acc>(std::cos(angle));
        sine[static_cast<size_t>(p * half + t)] = static_cast<Acc>(std::sin(angle));
      }
    }
  }
  // Rotates row [D] in place by its position's angles; direction -1 undoes it (the gradient).
  void rotate(Acc* row, int64_t position, Acc direction) const {
    for (int64_t t = 0; t < half; ++t) {
      const Acc c = cosine[static_cast<size_t>(position * half + t)], s = direction * sine[static_cast<size_t>(position * half + t)];
      Acc& x = row[interleaved ? 2 * t : t];
      Acc& y = row[interleaved ? 2 * t + 1 : t + half];
      const Acc rotated = x * c - y * s;
      y = x * s + y * c;
      x = rotated;
    }
  }
};

// Everything that forward and backward share about one call.
template <typename T>
struct Engine {
  using Acc = accumulator_t<T>;
  const Problem p;
  const ScoreInputs& in;
  const Mask& mask;
  const ScoreOptions& options;
  const RopeTable<Acc> rope;
  const int64_t key_tiles;
  Tensor keys;            // [B, Hkv, tiles, D, 64]: k transposed within each tile, rotated; columns past M are 0
  Tensor values;          // [B, Hkv, M, Dv]
  Tensor values_t;        // [B, Hkv, tiles, Dv, 64], backward only

  Engine(const Problem& problem, const ScoreInputs& inputs, const Mask& m, const ScoreOptions& o, bool backward)
      : p(problem), in(inputs), mask(m), options(o), rope(o, problem.M, problem.D), key_tiles((problem.M + kTile - 1) / kTile) {
    keys = Tensor::empty({p.B, p.Hkv, key_tiles, p.D, kTile}, dtype_of<Acc>);
    values = Tensor::empty({p.B, p.Hkv, p.M, p.Dv}, dtype_of<Acc>);
    if (backward) values_t = Tensor::empty({p.B, p.Hkv, key_tiles, p.Dv, kTile}, dtype_of<Acc>);
    parallel_for(0, p.B * p.Hkv * key_tiles, 1, [&](int64_t begin, int64_t end) {
      std::vector<Acc> row(static_cast<size_t>(p.D));
      for (int64_t piece = begin; piece < end; ++piece) {
        const int64_t tile = piece % key_tiles, bh = piece / key_tiles, b = bh / p.Hkv, h = bh % p.Hkv;
        const int64_t first = tile * kTile, count = std::min(kTile, p.M - first);
        Acc* kt = keys.data<Acc>() + piece * p.D * kTile;
        for (int64_t j = 0; j < kTile; ++j) {
          if (j < count) load_row(row.data(), in.k, b, h, first + j, p.D);
          if (j < count) rope.rotate(row.data(), first + j, Acc{1});
          for (int64_t d = 0; d < p.D; ++d) kt[d * kTile + j] = j < count ? row[static_cast<size_t>(d)] : Acc{0};
        }
        for (int64_t j = 0; j < count; ++j) load_row(value_row(bh, first + j), in.v, b, h, first + j, p.Dv);
        if (!backward) continue;
        Acc* vt = values_t.data<Acc>() + piece * p.Dv * kTile;
        for (int64_t d = 0; d < p.Dv; ++d) {
          for (int64_t j = 0; j < kTile; ++j) vt[d * kTile + j] = j < count ? value_row(bh, first + j)[d] : Acc{0};
        }
      }
    });
  }

  Acc* value_row(int64_t bh, int64_t j) const { return values.data<Acc>() + (bh * p.M + j) * p.Dv; }
  const Acc* key_tile(int64_t bh, int64_t tile) const { return keys.data<Acc>() + (bh * key_tiles + tile) * p.D * kTile; }

  void load_row(Acc* to, const Tensor& t, int64_t b, int64_t h, int64_t i, int64_t count) const {
    const T* from = head<T>(t, b, h) + i * t.stride(2);
    for (int64_t d = 0; d < count; ++d) to[d] = static_cast<Acc>(from[d]);
  }

  // Rows [i0, i0 + rows) of q, rotated and scaled: [rows, D]
  void load_queries(Acc* to, int64_t b, int64_t h, int64_t i0, int64_t rows) const {
    for (int64_t i = 0; i < rows; ++i) {
      Acc* row = to + i * p.D;
      load_row(row, in.q, b, h, i0 + i, p.D);
      rope.rotate(row, i0 + i + p.M - p.N, Acc{1});
      for (int64_t d = 0; d < p.D; ++d) row[d] *= static_cast<Acc>(p.scale);
    }
  }

  // s [rows, 64] = masked, capped, biased scores of a tile; slope (or null): d capped / d raw
  void scores(Acc* s, Acc* slope, const Acc* q, int64_t b, int64_t h, int64_t i0, int64_t rows, int64_t tile, TileClass cls) const {
    const int64_t j0 = tile * kTile, columns = std::min(kTile, p.M - j0);
    product(s, kTile, q, p.D, 1, key_tile(b * p.Hkv + h / (p.H / p.Hkv), tile), kTile, rows, columns, p.D, false);
    for (int64_t i = 0; i < rows; ++i) {
      Acc* row = s + i * kTile;
      if (options.softcap > 0.0) cap(row, slope != nullptr ? slope + i * kTile : nullptr, columns, options.softcap);
      if (in.alibi_slopes.defined()) {
        const auto a = static_cast<Acc>(in.alibi_slopes.data<float>()[h]);
        const int64_t at = i0 + i + p.M - p.N;
        for (int64_t j = 0; j < columns; ++j) row[j] -= a * static_cast<Acc>(std::abs(at - (j0 + j)));
      }
      if (cls == TileClass::full) continue;
      if (mask.is_interval()) {
        int64_t first, last;
        mask.limits(i0 + i, p.N, p.M, first, last);
        for (int64_t j = 0; j < std::clamp<int64_t>(first - j0, 0, columns); ++j) row[j] = -INFINITY;
        for (int64_t j = std::clamp<int64_t>(last - j0, 0, columns); j < columns; ++j) row[j] = -INFINITY;
      } else {
        for (int64_t j = 0; j < columns; ++j) {
          if (!mask.allowed(b, h, i0 + i, j0 + j, p.N, p.M)) row[j] = -INFINITY;
        }
      }
    }
  }

  // Multiplies each element by keep / (1 - rate).
  void drop(Acc* x, int64_t b, int64_t h, int64_t i0, int64_t rows, int64_t j0, int64_t columns) const {
    const uint32_t threshold = dropout_threshold(options.dropout);
    const auto factor = static_cast<Acc>(1.0 / (1.0 - options.dropout));
    for (int64_t i = 0; i < rows; ++i) {
      const auto row = static_cast<uint64_t>((((options.first_sample + b) * p.H + h) * p.N + i0 + i) * p.M + j0);
      for (int64_t j = 0; j < columns; ++j) x[i * kTile + j] *= random_word(options.rng, row + static_cast<uint64_t>(j)) < threshold ? Acc{0} : factor;
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
  std::vector<Acc> q(static_cast<size_t>(rows * p.D)), acc(static_cast<size_t>(rows * p.Dv), Acc{0}), m(static_cast<size_t>(rows), -INFINITY),
      l(static_cast<size_t>(rows), Acc{0});
  alignas(64) Acc s[kTile * kTile];
  e.load_queries(q.data(), b, h, i0, rows);
  if (e.in.sink.defined()) {
    std::fill(m.begin(), m.end(), e.sink(h));
    std::fill(l.begin(), l.end(), Acc{1});
  }
  for (int64_t tile = 0; tile < e.key_tiles; ++tile) {
    const int64_t j0 = tile * kTile, columns = std::min(kTile, p.M - j0);
    const TileClass cls = e.mask.classify(b, h, i0, i0 + rows, j0, j0 + columns, p.N, p.M);
    if (cls == TileClass::skip) continue;
    e.scores(s, nullptr, q.data(), b, h, i0, rows, tile, cls);
    for (int64_t i = 0; i < rows; ++i) {
      softmax_step(s + i * kTile, columns, &m[static_cast<size_t>(i)], &l[static_cast<size_t>(i)], acc.data() + i * p.Dv, p.Dv);
    }
    if (e.options.dropout > 0.0) e.drop(s, b, h, i0, rows, j0, columns);
    product(acc.data(), p.Dv, s, kTile, 1, e.value_row(bh, j0), p.Dv, rows, p.Dv, columns, true);
  }
  T* out = head_mutable<T>(result.out, b, h);
  Acc* lse = result.lse.data<Acc>() + (b * p.H + h) * p.N;
  for (int64_t i = 0; i < rows; ++i) {
    const Acc total = l[static_cast<size_t>(i)];
    const bool empty = total == Acc{0};
    lse[i0 + i] = empty ? static_cast<Acc>(-INFINITY) : m[static_cast<size_t>(i)] + std::log(total);
    for (int64_t d = 0; d < p.Dv; ++d) out[(i0 + i) * result.out.stride(2) + d] = T(empty ? Acc{0} : acc[static_cast<size_t>(i * p.Dv + d)] / total);
  }
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
  const auto size = [](int64_t n) { return static_cast<size_t>(n); };
  std::vector<Acc> dk(size(p.M * p.D), Acc{0}), dv(size(p.M * p.Dv), Acc{0}), dq(size(p.N * p.D)), q(size(p.N * p.D)), d(size(p.N * p.Dv)),
      delta(size(p.N)), k(size(kTile * p.D));
  alignas(64) Acc s[kTile * kTile];
  alignas(64) Acc dp[kTile * kTile];
  alignas(64) Acc dropped[kTile * kTile];
  std::vector<Acc> slope(e.options.softcap > 0.0 ? size(kTile * kTile) : 0);
  for (int64_t h = hk * group; h < (hk + 1) * group; ++h) {
    const T* out = head<T>(result.out, b, h);
    const Acc* lse = result.lse.data<Acc>() + (b * p.H + h) * p.N;
    e.load_queries(q.data(), b, h, 0, p.N);
    Acc sink_gradient{0};
    for (int64_t i = 0; i < p.N; ++i) {
      e.load_row(d.data() + i * p.Dv, dout, b, h, i, p.Dv);
      Acc total{0};
      for (int64_t c = 0; c < p.Dv; ++c) total += d[size(i * p.Dv + c)] * static_cast<Acc>(out[i * result.out.stride(2) + c]);
      delta[size(i)] = total;
      if (e.in.sink.defined()) sink_gradient -= std::exp(e.sink(h) - lse[i]) * total;
    }
    if (e.in.sink.defined()) grads.dsink.data<Acc>()[b * p.H + h] = sink_gradient;
    std::fill(dq.begin(), dq.end(), Acc{0});
    for (int64_t tile = 0; tile < e.key_tiles; ++tile) {
      const int64_t j0 = tile * kTile, columns = std::min(kTile, p.M - j0);
      const Acc* kt = e.key_tile(bh, tile);
      for (int64_t j = 0; j < columns; ++j) {
        for (int64_t c = 0; c < p.D; ++c) k[size(j * p.D + c)] = kt[c * kTile + j];
      }
      for (int64_t i0 = 0; i0 < p.N; i0 += kTile) {
        const int64_t rows = std::min(kTile, p.N - i0);
        const TileClass cls = e.mask.classify(b, h, i0, i0 + rows, j0, j0 + columns, p.N, p.M);
        if (cls == TileClass::skip) continue;
        e.scores(s, slope.empty() ? nullptr : slope.data(), q.data() + i0 * p.D, b, h, i0, rows, tile, cls);
        product(dp, kTile, d.data() + i0 * p.Dv, p.Dv, 1, e.values_t.template data<Acc>() + (bh * e.key_tiles + tile) * p.Dv * kTile, kTile, rows, columns, p.Dv, false);
        if (e.options.dropout > 0.0) e.drop(dp, b, h, i0, rows, j0, columns);
        for (int64_t i = 0; i < rows; ++i) softmax_back(s + i * kTile, dp + i * kTile, columns, lse[i0 + i], delta[size(i0 + i)]);
        const Acc* weights = s;
        if (e.options.dropout > 0.0) {
          std::memcpy(dropped, s, sizeof(Acc) * size(rows * kTile));
          e.drop(dropped, b, h, i0, rows, j0, columns);
          weights = dropped;
        }
        if (!slope.empty()) {
          for (int64_t x = 0; x < rows * kTile; ++x) dp[x] *= slope[size(x)];
        }
        product(dv.data() + j0 * p.Dv, p.Dv, weights, 1, kTile, d.data() + i0 * p.Dv, p.Dv, columns, p.Dv, rows, true);
        product(dk.data() + j0 * p.D, p.D, dp, 1, kTile, q.data() + i0 * p.D, p.D, columns, p.D, rows, true);
        product(dq.data() + i0 * p.D, p.D, dp, kTile, 1, k.data(), p.D, rows, p.D, columns, true);
      }
    }
    T* to = head_mutable<T>(grads.dq, b, h);
    for (int64_t i = 0; i < p.N; ++i) {
      e.rope.rotate(dq.data() + i * p.D, i + p.M - p.N, Acc{-1});
      for (int64_t c = 0; c < p.D; ++c) to[i * grads.dq.stride(2) + c] = T(static_cast<Acc>(p.scale) * dq[size(i * p.D + c)]);
    }
  }
  T* to_k = head_mutable<T>(grads.dk, b, hk);
  T* to_v = head_mutable<T>(grads.dv, b, hk);
  for (int64_t j = 0; j < p.M; ++j) {
    e.rope.rotate(dk.data() + j * p.D, j, Acc{-1});
    for (int64_t c = 0; c < p.D; ++c) to_k[j * grads.dk.stride(2) + c] = T(dk[size(j * p.D + c)]);
    for (int64_t c = 0; c < p.Dv; ++c) to_v[j * grads.dv.stride(2) + c] = T(dv[size(j * p.Dv + c)]);
  }
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
