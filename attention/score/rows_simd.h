// SPDX-License-Identifier: Apache-2.0
#pragma once
// Rows of a tile under any Rule (attention/score/rule.h) in vectors of f32: what a rule's
// *.simd.cpp is made of.

#include "attention/score/rule.h"
#include "core/cpu/simd.h"

#define FOVEA_SCORE_RULE(Rule, name)                                                        \
  namespace FOVEA_SIMD {                                                                    \
  void name##_forward(const RowForward<float>& rows) { score_rows_forward<Rule>(rows); }    \
  void name##_backward(const RowBackward<float>& rows) { score_rows_backward<Rule>(rows); } \
  }

namespace FOVEA_SIMD {

// Scores of keys that a mask hides: -inf.
FOVEA_INLINE Mask hidden(Vec x) { return x < splat(-__FLT_MAX__); }

// kRows rows from row r on, side by side: a row alone would wait for its own sums.
template <class Rule, int kRows>
FOVEA_INLINE void score_rows_forward_from(const RowForward<float>& c, int64_t r) {
  constexpr float kNone = -__builtin_inff();
  const Rule& rule = *static_cast<const Rule*>(c.rule);
  const Vec scale = splat(c.scale), none = splat(kNone);
  float* s = c.s + r * kScoreTile;
  const int64_t whole = c.n - c.n % kLanes;
  const Mask tail = first_lanes(c.n - whole);
  Vec lanes[4] = {none, none, none, none}, reference[kRows];
  float row[4];
  if constexpr (Rule::kOnline) {
    for (int64_t j = 0; j < whole; j += kLanes) {
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i)
        lanes[i] = max(load(s + i * kScoreTile + j), lanes[i]);  // max returns the second for NaN
    }
    if (whole < c.n) {
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i)
        lanes[i] = max(select(tail, load(s + i * kScoreTile + whole, tail), none), lanes[i]);
    }
    if constexpr (kRows == 4)
      max_lanes(row, lanes);
    else
      row[0] = max_lane(lanes[0]);
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      float& m = c.m[r + i];
      const float top = c.scale * row[i];
      if (top > m) {
        const float factor = m == kNone ? 0.0f : __builtin_expf(m - top);
        c.l[r + i] *= factor;
        m = top;
        float* acc = c.acc + (r + i) * c.dv;
        for (int64_t d = 0; d < c.dv; d += kLanes) {
          const Mask k = first_lanes(c.dv - d);
          store(acc + d, splat(factor) * load(acc + d, k), k);
        }
      }
      // A row that has seen nothing yet: every score is -inf and gets weight 0 relative to any
      // number (a NaN keeps the row broken).
      reference[i] = splat(m == kNone ? 0.0f : m);
    }
  } else {
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) reference[i] = zero();
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) lanes[i] = zero();
  for (int64_t j = 0; j < whole; j += kLanes) {
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      const Vec x = scale * load(s + i * kScoreTile + j);
      Vec w = rule.weight(x, reference[i]);
      if constexpr (!Rule::kOnline) w = select(hidden(x), zero(), w);
      store(s + i * kScoreTile + j, w);
      if constexpr (Rule::kNormalised) lanes[i] = lanes[i] + w;
    }
  }
  if (whole < c.n) {
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      const Vec x = scale * load(s + i * kScoreTile + whole, tail);
      Vec w = rule.weight(x, reference[i]);
      if constexpr (!Rule::kOnline) w = select(hidden(x), zero(), w);
      store(s + i * kScoreTile + whole, w, tail);
      if constexpr (Rule::kNormalised) lanes[i] = lanes[i] + select(tail, w, zero());
    }
  }
  if constexpr (Rule::kNormalised) {
    if constexpr (kRows == 4)
      sums(row, lanes);
    else
      row[0] = sum(lanes[0]);
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) c.l[r + i] += row[i];
  }
}

template <class Rule>
FOVEA_INLINE void score_rows_forward(const RowForward<float>& c) {
  int64_t r = 0;
  for (; r + 4 <= c.rows; r += 4) score_rows_forward_from<Rule, 4>(c, r);
  for (; r < c.rows; ++r) score_rows_forward_from<Rule, 1>(c, r);
}

template <class Rule>
FOVEA_INLINE void score_rows_backward(const RowBackward<float>& c) {
  const Rule& rule = *static_cast<const Rule*>(c.rule);
  const Vec scale = splat(c.scale);
  float *s = c.s, *dp = c.dp;
  for (int64_t r = 0; r < c.rows; ++r, s += kScoreTile, dp += kScoreTile) {
    // A row that has seen nothing: no weights, no gradient.
    if (Rule::kNormalised && c.statistic[r] == (Rule::kOnline ? -__builtin_inff() : 0.0f)) {
      for (int64_t j = 0; j < c.n; ++j) s[j] = dp[j] = 0.0f;
      continue;
    }
    const Vec reference = splat(Rule::kOnline ? c.statistic[r] : 0.0f),
              delta = splat(Rule::kNormalised ? c.delta[r] : 0.0f);
    const Vec inverse = splat(Rule::kNormalised && !Rule::kOnline ? 1.0f / c.statistic[r] : 1.0f);
    for (int64_t j = 0; j < c.n; j += kLanes) {
      const bool whole = j + kLanes <= c.n;
      const Mask k = first_lanes(c.n - j);
      const Vec x = scale * (whole ? load(s + j) : load(s + j, k)),
                d = whole ? load(dp + j) : load(dp + j, k);
      Vec w = rule.weight(x, reference), slope = rule.derivative(x, w);
      if constexpr (!Rule::kOnline) {
        w = inverse * select(hidden(x), zero(), w);
        slope = inverse * select(hidden(x), zero(), slope);
      }
      const Vec ds = slope * (d - delta);
      if (whole)
        store(s + j, w), store(dp + j, ds);
      else
        store(s + j, w, k), store(dp + j, ds, k);
    }
  }
}

}  // namespace FOVEA_SIMD
