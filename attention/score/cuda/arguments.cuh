// SPDX-License-Identifier: Apache-2.0
#pragma once
// What all kernels of the score engine share: their argument, masks by tile and by element, the way
// from products to scores, dropout, and a Rule's weights.
//
// Units. A product q.k times `factor` is a score as the Rule sees it: factor holds the scale
// (unless the score is adjusted: soft-cap, ALiBi, bias) and, for online rules, log2(e), so that an
// exponential is one multiply-add and one ex2.

#include "attention/score/cuda/kernels.h"
#include "attention/score/rule.h"
#include "core/cuda/kernel.cuh"
#include "core/cuda/random.cuh"

namespace FOVEA_GPU {

// A score in base 2, for online rules: exp(s) is exp2 of it.
struct Log2 {
  float v;
};
__device__ inline Log2 operator-(Log2 a, Log2 b) { return {a.v - b.v}; }
__device__ inline Log2 exp_nonpositive(Log2 x) { return {exp2_fast(x.v)}; }

// dw/ds is per unit of the true score, in either unit.
template <class Rule>
__device__ inline float weight_of(const Rule& rule, float s, float reference) {
  if constexpr (Rule::kOnline)
    return rule.weight(Log2{s}, Log2{reference}).v;
  else
    return rule.weight(s, 0.0f);
}
template <class Rule>
__device__ inline float derivative_of(const Rule& rule, float s, float w) {
  if constexpr (Rule::kOnline)
    return rule.derivative(Log2{s}, Log2{w}).v;
  else
    return rule.derivative(s, w);
}

template <typename T>
struct Rows {
  Global<T> data;
  int64_t batch, head, row;
  __device__ auto at(int b, int h) const { return data + (b * batch + h * head); }
};

// Where gradients go: in the inputs' type, or in f32 before they are turned back.
template <typename T>
struct Outputs {
  Global<T> data;
  Global<float> wide;
  int64_t batch, head, row;
  bool pairs;  // two neighbouring values from an even column on are one aligned access
  __device__ void put(int64_t at, float x) const {
    if (wide == nullptr)
      data[at] = static_cast<T>(x);
    else
      wide[at] = x;
  }
  // Columns column, an even one, and column + 1 of a row, where they are below d.
  __device__ void put_pair(int b, int h, int i, int column, int d, float x, float next) const {
    const int64_t at = b * batch + h * head + i * row + column;
    if (column >= d) return;
    if (!pairs) {
      put(at, x);
      if (column + 1 < d) put(at + 1, next);
    } else if (wide == nullptr) {
      store(data + at, Vec<T, 2>{{static_cast<T>(x), static_cast<T>(next)}});
    } else {
      store(wide + at, Vec<float, 2>{{x, next}});
    }
  }
};

template <typename T>
struct Arguments : attention::ScoreSizes {
  Global<const int32_t> query_documents, key_documents, ranges;
  Global<const uint8_t> blocks;
  Global<const float> slopes, sink, bias;
  Rows<const T> q, k, v, dout, result;  // result: out, read
  Rows<T> out;
  Global<float> lse, partial, delta, dbias, sum_acc, sum_m, sum_l;
  Global<uint8_t> suspect, suspect_keys;
  Global<int> turns;
  Global<float> sums, statistics;
  Outputs<T> dq, dk, dv;
  float factor;

  __device__ int group() const { return H / Hkv; }
  __device__ int64_t row(int b, int h, int i) const { return (int64_t{b} * H + h) * N + i; }
};

template <typename T, class Rule>
Arguments<T> arguments(const attention::ScoreCall& c) {
  Arguments<T> a;
  static_cast<attention::ScoreSizes&>(a) = c;
  const auto rows = [](const attention::ScoreRows& r) {
    return Rows<const T>{static_cast<const T*>(r.data), r.batch, r.head, r.row};
  };
  const auto outputs = [](const attention::ScoreRows& r, int d) {
    const bool wide = r.dtype != dtype_of<T>;
    const bool pairs = ((r.batch | r.head | r.row | d) & 1) == 0 &&
                       reinterpret_cast<uintptr_t>(r.data) % (2 * size_of(r.dtype)) == 0;
    return Outputs<T>{static_cast<T*>(wide ? nullptr : r.data),
                      static_cast<float*>(wide ? r.data : nullptr),
                      r.batch,
                      r.head,
                      r.row,
                      pairs};
  };
  a.query_documents = c.query_documents;
  a.key_documents = c.key_documents;
  a.ranges = c.ranges;
  a.blocks = c.blocks;
  a.slopes = c.slopes;
  a.sink = c.sink;
  a.bias = c.bias;
  a.q = rows(c.q);
  a.k = rows(c.k);
  a.v = rows(c.v);
  a.dout = rows(c.dout);
  a.result = rows(c.out);
  a.out = {static_cast<T*>(c.out.data), c.out.batch, c.out.head, c.out.row};
  a.lse = c.lse;
  a.partial = c.partial;
  a.sum_acc = c.sum_acc;
  a.sum_m = c.sum_m;
  a.sum_l = c.sum_l;
  a.delta = c.delta;
  a.dbias = c.dbias;
  a.suspect = c.suspect;
  a.suspect_keys = c.suspect_keys;
  a.turns = c.turns;
  a.sums = c.sums;
  a.statistics = c.statistics;
  a.dq = outputs(c.dq, c.D);
  a.dk = outputs(c.dk, c.D);
  a.dv = outputs(c.dv, c.Dv);
  a.factor = (c.adjusts ? 1.0f : c.scale) * (Rule::kOnline ? kLog2e : 1.0f);
  return a;
}

__device__ inline int smaller(int a, int b) { return a < b ? a : b; }
__device__ inline int larger(int a, int b) { return a > b ? a : b; }
__device__ inline int clamped(int x, int low, int high) { return smaller(larger(x, low), high); }
// Neither infinite nor NaN.
__device__ inline bool finite(float x) { return fabsf(x) <= 3.402823466e38f; }

// ---- masks (attention/mask.h) -------------------------------------------------------------------

struct Keys {
  int first, last;
};
// How many keys lie less than `distance` behind key 0.
__device__ inline int keys_within(const attention::ScoreSizes& a, int distance) {
  if (a.key_stride > 1) distance = distance <= 0 ? 0 : (distance - 1) / a.key_stride + 1;
  return clamped(distance, 0, a.M);
}
// The distance from key 0 to query i.
__device__ inline int distance_of(const attention::ScoreSizes& a, int i) {
  return a.offset + i * a.query_stride;
}
// Keys that positions alone leave to query i.
__device__ inline Keys key_limits(const attention::ScoreSizes& a, int i) {
  const int at = distance_of(a, i);
  Keys keys{a.left >= 0 ? keys_within(a, at - a.left) : 0,
            a.right >= 0 ? keys_within(a, at + a.right + 1) : a.M};
  if (a.causal) keys.last = smaller(keys.last, larger(a.prefix, keys_within(a, at + 1)));
  keys.last = larger(keys.first, keys.last);
  return keys;
}

__device__ inline int query_block_of(const attention::ScoreSizes& a, int i) {
  return (a.query_base + i * a.query_stride) / a.query_block;
}
__device__ inline int key_block_of(const attention::ScoreSizes& a, int j) {
  return (a.key_base + j * a.key_stride) / a.key_block;
}

// kRanges: whether a mask may have ranges of keys.
template <bool kRanges = true, typename T>
__device__ inline bool allowed(const Arguments<T>& a, int b, int h, int i, int j) {
  const int distance = distance_of(a, i) - j * a.key_stride;  // as key_limits() says it
  if (a.left >= 0 && distance > a.left) return false;
  if (a.right >= 0 && -distance > a.right) return false;
  if (a.causal && distance < 0 && j >= a.prefix) return false;
  if (!(a.query_documents == nullptr)) {
    const int document = a.query_documents[int64_t{b} * a.N + i];
    if (document < 0 || document != a.key_documents[int64_t{b} * a.M + j]) return false;
  }
  if (!(a.blocks == nullptr)) {
    const int head = a.block_heads == 1 ? 0 : h;
    if (a.blocks[(int64_t{head} * a.block_rows + query_block_of(a, i)) * a.block_columns +
                 key_block_of(a, j)] == 0)
      return false;
  }
  if (kRanges && !(a.ranges == nullptr)) {
    const Vec<int32_t, 4> range = load<4>(a.ranges + (b * a.range_batch + int64_t{i} * 4));
    const int key = a.key_base + j * a.key_stride;
    if ((key < range[0] || key >= range[1]) && (key < range[2] || key >= range[3])) return false;
  }
  return true;
}

enum class Tile { skip, partial, full };

// Least and most of ids [first, last), for a whole warp.
__device__ inline void range_of(Global<const int32_t> ids, int first, int last, int& least,
                                int& most) {
  least = 0x7fffffff;
  most = -0x7fffffff;
  FOVEA_NO_UNROLL
  for (int i = first + static_cast<int>(threadIdx.x) % kWarp; i < last; i += kWarp) {
    const int id = ids[i];
    least = smaller(least, id);
    most = larger(most, id);
  }
  least = reduce_min(least);
  most = reduce_max(most);
}

// Of heads [h0, h1), queries [i0, i1) and keys [j0, j1), none empty; the same in every thread of a
// warp, which comes as a whole.
template <bool kRanges = true, typename T>
__device__ inline Tile classify(const Arguments<T>& a, int b, int h0, int h1, int i0, int i1,
                                int j0, int j1) {
  const Keys low = key_limits(a, i0), high = key_limits(a, i1 - 1);
  if (j1 <= low.first || j0 >= high.last) return Tile::skip;
  bool full = j0 >= high.first && j1 <= low.last;
  if (!(a.query_documents == nullptr)) {
    int query_least, query_most, key_least, key_most;
    range_of(a.query_documents + int64_t{b} * a.N, i0, i1, query_least, query_most);
    range_of(a.key_documents + int64_t{b} * a.M, j0, j1, key_least, key_most);
    if (query_most < key_least || key_most < query_least || query_most < 0 || key_most < 0)
      return Tile::skip;
    full = full && query_least == query_most && key_least == key_most && query_least == key_least &&
           query_least >= 0;
  }
  if (!(a.blocks == nullptr)) {
    bool on = false, off = false;
    const int c0 = key_block_of(a, j0), c1 = key_block_of(a, j1 - 1);
    for (int head = a.block_heads == 1 ? 0 : h0; head < (a.block_heads == 1 ? 1 : h1); ++head) {
      for (int r = query_block_of(a, i0); r <= query_block_of(a, i1 - 1); ++r) {
        const Global<const uint8_t> row =
            a.blocks + (int64_t{head} * a.block_rows + r) * a.block_columns;
        FOVEA_NO_UNROLL
        for (int c = c0 + static_cast<int>(threadIdx.x) % kWarp; c <= c1; c += kWarp) {
          const bool is_on = row[c] != 0;
          on = on || is_on;
          off = off || !is_on;
        }
      }
    }
    if (!any(on)) return Tile::skip;
    if (any(off)) full = false;
  }
  if (kRanges && !(a.ranges == nullptr)) {
    bool on = false, off = false;
    const int k0 = a.key_base + j0 * a.key_stride, k1 = a.key_base + (j1 - 1) * a.key_stride + 1;
    FOVEA_NO_UNROLL
    for (int i = i0 + static_cast<int>(threadIdx.x) % kWarp; i < i1; i += kWarp) {
      const Vec<int32_t, 4> range = load<4>(a.ranges + (b * a.range_batch + int64_t{i} * 4));
      on = on || (k0 < range[1] && k1 > range[0]) || (k0 < range[3] && k1 > range[2]);
      off = off || !((k0 >= range[0] && k1 <= range[1]) || (k0 >= range[2] && k1 <= range[3]));
    }
    if (!any(on)) return Tile::skip;
    if (any(off)) full = false;
  }
  return full ? Tile::full : Tile::partial;
}

// ---- scores -------------------------------------------------------------------------------------

// A product -> a score before `factor`, where a.adjusts. `cap` receives the derivative of the
// soft-cap.
template <typename T>
__device__ inline float adjusted(const Arguments<T>& a, int b, int h, int i, int j, float product,
                                 float* cap = nullptr) {
  float s = product * a.scale;
  if (a.softcap > 0.0f) {
    const float t = std::is_same_v<T, float> ? tanhf(s / a.softcap) : tanh_fast(s / a.softcap);
    s = a.softcap * t;
    if (cap != nullptr) *cap = 1.0f - t * t;
  }
  if (!(a.slopes == nullptr)) {
    const float slope = a.slopes[h];
    s -= slope * fabsf(static_cast<float>(distance_of(a, i) - j * a.key_stride));
  }
  if (!(a.bias == nullptr)) {
    const float bias = a.bias[b * a.bias_batch + h * a.bias_head + int64_t{i} * a.M + j];
    s += bias;
  }
  return s;
}
// A product -> a score in the Rule's units.
template <class Rule, typename T>
__device__ inline float score_of(const Arguments<T>& a, int b, int h, int i, int j, float product,
                                 float* cap = nullptr) {
  return (a.adjusts ? adjusted(a, b, h, i, j, product, cap) : product) * a.factor;
}

// Dropout's factor of (b, h, i, j): 0 or 1 / (1 - rate); the stream is the cpu engine's.
template <typename T>
__device__ inline float keep_of(const Arguments<T>& a, int b, int h, int i, int j) {
  const int64_t head = (a.first_sample + b) * a.heads + a.first_head + h,
                query = a.query_base + i * a.query_stride, key = a.key_base + j * a.key_stride;
  const auto index = static_cast<uint64_t>((head * a.whole_N + query) * a.whole_M + key);
  const auto words = philox(at_step(a.rng), index >> 2);
  const uint32_t word = (index & 2) != 0 ? ((index & 1) != 0 ? words[3] : words[2])
                                         : ((index & 1) != 0 ? words[1] : words[0]);
  return word < a.drop_threshold ? 0.0f : a.keep_factor;
}

// ---- rows ---------------------------------------------------------------------------------------

// A query's statistic as backward reads it, and whether it saw anything.
struct Statistic {
  float reference, inverse;
  bool empty;
};
template <class Rule>
__device__ inline Statistic statistic_of(float lse) {
  if constexpr (Rule::kOnline) return {lse * kLog2e, 1.0f, lse == -INFINITY};
  if constexpr (!Rule::kNormalised) return {0.0f, 1.0f, false};
  return {0.0f, 1.0f / lse, lse == 0.0f};
}

// What a weight and its gradient need of a query: the reference (online rules; infinite for a row
// that saw nothing, whose weights are 0), or the normaliser's inverse.
template <class Rule>
__device__ inline float packed_statistic(float lse) {
  const Statistic s = statistic_of<Rule>(lse);
  if constexpr (Rule::kOnline) return s.empty ? INFINITY : s.reference;
  return s.empty ? 0.0f : s.inverse;
}

// A finished row: m in base 2.
struct RowEnd {
  float statistic, factor;
};
template <class Rule>
__device__ inline RowEnd finish_row(float m, float l) {
  if constexpr (!Rule::kNormalised) return {0.0f, 1.0f};
  const float inverse = l == 0.0f ? 0.0f : 1.0f / l;
  if constexpr (!Rule::kOnline) return {l, inverse};
  return {l == 0.0f ? -INFINITY : m * kLn2 + logf(l), inverse};
}

}  // namespace FOVEA_GPU
