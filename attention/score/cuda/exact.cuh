// SPDX-License-Identifier: Apache-2.0
#pragma once
// Rows without tiles, a warp a row, in f32.
//
// Exact rows: those that a NaN or an infinity reached, again, over the keys (queries) they see and
// no others: in a tile a hidden key's weight 0 times its NaN is NaN. The tile kernels mark such
// rows; here a warp looks at 32 marks and takes the marked rows one by one. Where all is finite
// this reads one byte a row.
//
// Wide heads, past 256 columns, have every row made this way, 256 columns at a time, after a kernel
// that finds the rows' statistics. Cost  2 N M (D (1 + slabs) + Dv) FLOP a head forward; limit: L1,
// where each lane reads its own key: far from what tiles do.
// Determinism  bitwise: no atomics, a row belongs to one warp.

#include "attention/score/cuda/arguments.cuh"

namespace FOVEA_GPU {

enum class Exact { out, dq, keys };

constexpr int kExactThreads = 128;

constexpr int kSlab = 256;  // columns of a pass: kSlab / kWarp a lane

struct ExactPair {
  float p, ds, dbias;
};

// The score of a query and a key.
template <class Rule, typename T>
__device__ inline float exact_score(const Arguments<T>& a, int b, int h, int i, int j, float* cap) {
  const Global<const T> q = a.q.at(b, h) + i * a.q.row, k = a.k.at(b, h / a.group()) + j * a.k.row;
  float product = 0.0f;
  for (int d = 0; d < a.D; ++d)
    product = fma(static_cast<float>(q[d]), static_cast<float>(k[d]), product);
  return score_of<Rule>(a, b, h, i, j, product, cap);
}

// The weight and, for gradients, dS of a query, with its row's statistic, and a key that it sees.
template <class Rule, typename T>
__device__ inline ExactPair exact_pair(const Rule& rule, const Arguments<T>& a, bool back, int b,
                                       int h, int i, int j, const Statistic& row) {
  float cap = 1.0f;
  const float s = exact_score<Rule>(a, b, h, i, j, &cap);
  if (row.empty || s == -INFINITY) return {0.0f, 0.0f, 0.0f};
  const float keep = a.drop_threshold > 0 ? keep_of(a, b, h, i, j) : 1.0f;
  const float w = weight_of(rule, s, row.reference), p = w * row.inverse;
  if (!back) return {p * keep, 0.0f, 0.0f};
  const int hk = h / a.group();
  const Global<const T> v = a.v.at(b, hk) + j * a.v.row, dout = a.dout.at(b, h) + i * a.dout.row;
  float dp = 0.0f;
  for (int d = 0; d < a.Dv; ++d)
    dp = fma(static_cast<float>(dout[d]), static_cast<float>(v[d]), dp);
  float delta = 0.0f;
  if constexpr (Rule::kNormalised) delta = a.delta[a.row(b, h, i)];
  const float ds = derivative_of(rule, s, w) * row.inverse * (dp * keep - delta);
  return {p * keep, ds * cap, ds};
}

// sums[c] += f x[column + 32 c], column the lane's first.
template <typename T>
__device__ inline void exact_add(float (&sums)[kSlab / kWarp], float f, Global<const T> x,
                                 int column, int d) {
  FOVEA_UNROLL
  for (int c = 0; c < kSlab / kWarp; ++c) {
    const int at = column + c * kWarp;
    if (at < d) sums[c] = fma(f, static_cast<float>(x[at]), sums[c]);
  }
}

// sums = the weighted values of a query's keys, unnormalised for weights relative to `reference`.
template <class Rule, typename T>
__device__ inline void exact_sums(float (&sums)[kSlab / kWarp], const Rule& rule,
                                  const Arguments<T>& a, int b, int h, int i, float reference) {
  const Statistic row{reference, 1.0f, false};
  const int lane = static_cast<int>(threadIdx.x) % kWarp, hk = h / a.group();
  FOVEA_UNROLL
  for (int c = 0; c < kSlab / kWarp; ++c) sums[c] = 0.0f;
  for (int at = 0; at < a.M; at += kWarp) {
    const int j = at + lane;
    const bool seen = j < a.M && allowed(a, b, h, i, j);
    float p = 0.0f;
    if (seen) p = exact_pair<Rule>(rule, a, false, b, h, i, j, row).p;
    const unsigned all_seen = ballot(seen);
    for (int n = 0; n < kWarp; ++n) {
      if (((all_seen >> n) & 1u) == 0) continue;
      exact_add<T>(sums, shuffle(p, n), a.v.at(b, hk) + int64_t{at + n} * a.v.row, lane, a.Dv);
    }
  }
}

// kSlab columns of one row by one warp: first 32 partners' coefficients, a lane each, then their
// rows.
template <class Rule, typename T>
__device__ inline void exact_row(const Rule& rule, const Arguments<T>& a, Exact what, int b,
                                 int head, int row, int column0) {
  const int lane = fresh(static_cast<int>(threadIdx.x)) % kWarp, column = column0 + lane;
  const bool keys = what == Exact::keys;
  const int partners = keys ? a.N : a.M;
  float first[kSlab / kWarp] = {}, second[kSlab / kWarp] = {};
  FOVEA_NO_UNROLL
  for (int g = 0; g < (keys ? a.group() : 1); ++g) {
    const int h = keys ? head * a.group() + g : head, hk = h / a.group();
    FOVEA_NO_UNROLL
    for (int at = 0; at < partners; at += kWarp) {
      const int mine = at + lane, i = keys ? mine : row, j = keys ? row : mine;
      const bool seen = mine < partners && allowed(a, b, h, i, j);
      ExactPair pair{0.0f, 0.0f, 0.0f};
      if (seen) {
        const float lse = a.lse[a.row(b, h, i)];
        pair = exact_pair<Rule>(rule, a, what != Exact::out, b, h, i, j, statistic_of<Rule>(lse));
      }
      if (seen && what == Exact::dq && column0 == 0 && !(a.dbias == nullptr))
        a.dbias[a.row(b, h, i) * a.M + j] = pair.dbias;
      const unsigned all_seen = ballot(seen);
      FOVEA_NO_UNROLL
      for (int n = 0; n < kWarp; ++n) {
        if (((all_seen >> n) & 1u) == 0) continue;
        const float p = shuffle(pair.p, n), ds = shuffle(pair.ds, n);
        const int64_t partner = at + n;
        if (what == Exact::out)
          exact_add<T>(first, p, a.v.at(b, hk) + partner * a.v.row, column, a.Dv);
        if (what == Exact::dq)
          exact_add<T>(first, ds, a.k.at(b, hk) + partner * a.k.row, column, a.D);
        if (keys) {
          exact_add<T>(first, ds, a.q.at(b, h) + partner * a.q.row, column, a.D);
          exact_add<T>(second, p, a.dout.at(b, h) + partner * a.dout.row, column, a.Dv);
        }
      }
    }
  }
  FOVEA_UNROLL
  for (int c = 0; c < kSlab / kWarp; ++c) {
    const int d = column + c * kWarp;
    if (what == Exact::out && d < a.Dv)
      a.out.at(b, head)[row * a.out.row + d] = static_cast<T>(first[c]);
    if (what == Exact::dq && d < a.D)
      a.dq.put(b * a.dq.batch + head * a.dq.head + row * a.dq.row + d, first[c] * a.scale);
    if (keys && d < a.D)
      a.dk.put(b * a.dk.batch + head * a.dk.head + row * a.dk.row + d, first[c] * a.scale);
    if (keys && d < a.Dv)
      a.dv.put(b * a.dv.batch + head * a.dv.head + row * a.dv.row + d, second[c]);
  }
}

template <class Rule, typename T>
__global__ void __launch_bounds__(kExactThreads, 3)
    exact_kernel(Rule rule, Arguments<T> a, Exact what, bool every) {
  const bool keys = what == Exact::keys;
  const int rows = keys ? a.M : a.N, heads = keys ? a.Hkv : a.H,
            lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t count = int64_t{a.B} * heads * rows,
                first = int64_t{blockIdx.x} * kExactThreads + threadIdx.x - lane;
  int mark = 0;
  if (first + lane < count) {
    mark = 1;
    if (!every) mark = keys ? a.suspect_keys[first + lane] : a.suspect[first + lane];
  }
  const unsigned marks = ballot(mark != 0);
  FOVEA_NO_UNROLL
  for (int n = 0; n < kWarp; ++n) {
    if (((marks >> n) & 1u) == 0) continue;
    const int64_t at = first + n;
    const int bh = static_cast<int>(at / rows);
    FOVEA_NO_UNROLL
    for (int column0 = 0; column0 < larger(a.D, a.Dv); column0 += kSlab)
      exact_row<Rule>(rule, a, what, bh / heads, bh % heads, static_cast<int>(at % rows), column0);
  }
}

template <class Rule, typename T>
void exact_rows(const attention::ScoreCall& call, Exact what, Stream stream, bool every = false) {
  const bool keys = what == Exact::keys;
  const int64_t count = int64_t{call.B} * (keys ? call.Hkv : call.H) * (keys ? call.M : call.N);
  if (count == 0) return;
  launch<exact_kernel<Rule, T>>(ceil_div(count, kExactThreads), kExactThreads, 0, stream,
                                *static_cast<const Rule*>(call.rule), arguments<T, Rule>(call),
                                what, every);
}

// ---- wide heads ---------------------------------------------------------------------------------

inline bool is_wide(const attention::ScoreCall& call) {
  return call.D > attention::kWidestTile || call.Dv > attention::kWidestTile;
}

// lse: lanes take every 32nd key, and then their m and l are merged.
template <class Rule, typename T>
__global__ void __launch_bounds__(kExactThreads) wide_lse_kernel(Rule rule, Arguments<T> a) {
  const int64_t row = int64_t{blockIdx.x} * (kExactThreads / kWarp) + threadIdx.x / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (row >= int64_t{a.B} * a.H * a.N) return;
  const int i = static_cast<int>(row % a.N), bh = static_cast<int>(row / a.N), b = bh / a.H,
            h = bh % a.H;
  float m = -INFINITY, l = 0.0f;
  const auto rescaled = [&](float top) {  // l, and m = top
    const float reference = top == -INFINITY ? 0.0f : top;
    if constexpr (Rule::kOnline) l *= exp2_fast(m - reference);
    m = top;
    return Rule::kOnline ? reference : 0.0f;
  };
  if (!(a.sink == nullptr) && lane == 0) {
    const float sink = a.sink[h];
    m = sink * kLog2e;
    l = 1.0f;
  }
  const Keys keys = key_limits(a, i);
  for (int j = keys.first + lane; j < keys.last; j += kWarp) {
    if (!allowed(a, b, h, i, j)) continue;
    const float s = exact_score<Rule>(a, b, h, i, j, nullptr);
    if (s == -INFINITY) continue;
    const float reference = rescaled(max(m, s));
    l += weight_of(rule, s, reference);
  }
  for (int bits = 1; bits < kWarp; bits *= 2) {
    const float other_m = shuffle_xor(m, bits);
    float other_l = shuffle_xor(l, bits);
    const float reference = rescaled(max(m, other_m));
    if constexpr (Rule::kOnline) other_l *= exp2_fast(other_m - reference);
    l += other_l;
  }
  if (lane == 0) a.lse[row] = finish_row<Rule>(m, l).statistic;
}

template <class Rule, typename T>
void wide_forward(const attention::ScoreCall& call, Stream stream) {
  launch<wide_lse_kernel<Rule, T>>(
      ceil_div(int64_t{call.B} * call.H * call.N, kExactThreads / kWarp), kExactThreads, 0, stream,
      *static_cast<const Rule*>(call.rule), arguments<T, Rule>(call));
  exact_rows<Rule, T>(call, Exact::out, stream, true);
}
template <class Rule, typename T>
void wide_backward(const attention::ScoreCall& call, Stream stream) {
  exact_rows<Rule, T>(call, Exact::keys, stream, true);
  exact_rows<Rule, T>(call, Exact::dq, stream, true);
}

}  // namespace FOVEA_GPU
