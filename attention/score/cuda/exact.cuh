// SPDX-License-Identifier: Apache-2.0
#pragma once
// Rows that a NaN or an infinity reached, again, over the keys (queries) they see and no others:
// in a tile a hidden key's weight 0 times its NaN is NaN. The tile kernels mark such rows; here a
// warp looks at 32 marks and takes the marked rows one by one. Where all is finite this reads one
// byte a row.

#include "attention/score/cuda/arguments.cuh"

namespace FOVEA_GPU {

enum class Exact { out, dq, keys };

constexpr int kExactThreads = 128;

struct ExactPair {
  float p, ds;
};

// The weight and, for gradients, dS of a query and a key that it sees.
template <class Rule, typename T>
__device__ inline ExactPair exact_pair(const Rule& rule, const Arguments<T>& a, bool back, int b,
                                       int h, int i, int j) {
  const int hk = h / a.group();
  const Global<const T> q = a.q.at(b, h) + i * a.q.row, k = a.k.at(b, hk) + j * a.k.row;
  float product = 0.0f;
  for (int d = 0; d < a.D; ++d)
    product = fma(static_cast<float>(q[d]), static_cast<float>(k[d]), product);
  float cap = 1.0f;
  const float s = score_of<Rule>(a, b, h, i, j, product, &cap);
  const float lse = a.lse[a.row(b, h, i)];
  const Statistic row = statistic_of<Rule>(lse);
  if (row.empty || s == -INFINITY) return {0.0f, 0.0f};
  const float keep = a.drop_threshold > 0 ? keep_of(a, b, h, i, j) : 1.0f;
  const float w = weight_of(rule, s, row.reference), p = w * row.inverse;
  if (!back) return {p * keep, 0.0f};
  const Global<const T> v = a.v.at(b, hk) + j * a.v.row, dout = a.dout.at(b, h) + i * a.dout.row;
  float dp = 0.0f;
  for (int d = 0; d < a.Dv; ++d)
    dp = fma(static_cast<float>(dout[d]), static_cast<float>(v[d]), dp);
  float delta = 0.0f;
  if constexpr (Rule::kNormalised) delta = a.delta[a.row(b, h, i)];
  return {p * keep, derivative_of(rule, s, w) * row.inverse * (dp * keep - delta) * cap};
}

// sums[c] += f x[c 32 + lane]
template <typename T>
__device__ inline void exact_add(float (&sums)[8], float f, Global<const T> x, int d) {
  FOVEA_UNROLL
  for (int c = 0; c < 8; ++c) {
    const int at = c * kWarp + static_cast<int>(threadIdx.x) % kWarp;
    if (at < d) sums[c] = fma(f, static_cast<float>(x[at]), sums[c]);
  }
}

// One row by one warp: first 32 partners' coefficients, a lane each, then their rows.
template <class Rule, typename T>
__device__ inline void exact_row(const Rule& rule, const Arguments<T>& a, Exact what, int b,
                                 int head, int row) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const bool keys = what == Exact::keys;
  const int partners = keys ? a.N : a.M;
  float first[8] = {}, second[8] = {};
  for (int g = 0; g < (keys ? a.group() : 1); ++g) {
    const int h = keys ? head * a.group() + g : head, hk = h / a.group();
    for (int at = 0; at < partners; at += kWarp) {
      const int mine = at + lane, i = keys ? mine : row, j = keys ? row : mine;
      const bool seen = mine < partners && allowed(a, b, h, i, j);
      ExactPair pair{0.0f, 0.0f};
      if (seen) pair = exact_pair<Rule>(rule, a, what != Exact::out, b, h, i, j);
      const unsigned all_seen = ballot(seen);
      for (int n = 0; n < kWarp; ++n) {
        if (((all_seen >> n) & 1u) == 0) continue;
        const float p = shuffle(pair.p, n), ds = shuffle(pair.ds, n);
        const int64_t partner = at + n;
        if (what == Exact::out) exact_add<T>(first, p, a.v.at(b, hk) + partner * a.v.row, a.Dv);
        if (what == Exact::dq) exact_add<T>(first, ds, a.k.at(b, hk) + partner * a.k.row, a.D);
        if (keys) {
          exact_add<T>(first, ds, a.q.at(b, h) + partner * a.q.row, a.D);
          exact_add<T>(second, p, a.dout.at(b, h) + partner * a.dout.row, a.Dv);
        }
      }
    }
  }
  FOVEA_UNROLL
  for (int c = 0; c < 8; ++c) {
    const int d = c * kWarp + lane;
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
__global__ void __launch_bounds__(kExactThreads)
    exact_kernel(Rule rule, Arguments<T> a, Exact what) {
  const bool keys = what == Exact::keys;
  const int rows = keys ? a.M : a.N, heads = keys ? a.Hkv : a.H,
            lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t count = int64_t{a.B} * heads * rows,
                first = int64_t{blockIdx.x} * kExactThreads + threadIdx.x - lane;
  int mark = 0;
  if (first + lane < count) mark = keys ? a.suspect_keys[first + lane] : a.suspect[first + lane];
  const unsigned marks = ballot(mark != 0);
  for (int n = 0; n < kWarp; ++n) {
    if (((marks >> n) & 1u) == 0) continue;
    const int64_t at = first + n;
    const int bh = static_cast<int>(at / rows);
    exact_row<Rule>(rule, a, what, bh / heads, bh % heads, static_cast<int>(at % rows));
  }
}

template <class Rule, typename T>
void exact_rows(const attention::ScoreCall& call, Exact what, Stream stream) {
  const bool keys = what == Exact::keys;
  const int64_t count = int64_t{call.B} * (keys ? call.Hkv : call.H) * (keys ? call.M : call.N);
  if (count == 0) return;
  launch<exact_kernel<Rule, T>>(ceil_div(count, kExactThreads), kExactThreads, 0, stream,
                                *static_cast<const Rule*>(call.rule), arguments<T, Rule>(call),
                                what);
}

}  // namespace FOVEA_GPU
