// SPDX-License-Identifier: Apache-2.0
#pragma once
// A Rule (attention/score/rule.h) as a ScoreRule: its rows in f64 are here, plainly, those in f32
// in rows_simd.h.

#include <algorithm>
#include <cmath>

#include "attention/score/rule.h"

// In a header: what <rule>.simd.cpp defines for both instruction sets.
#define FOVEA_SCORE_RULE_DECLARE(name)                                            \
  FOVEA_SIMD_DECLARE(void name##_forward(const ::fovea::RowForward<float>& rows); \
                     void name##_backward(const ::fovea::RowBackward<float>& rows);)
// The ScoreRule of `object`, a Rule that outlives its use.
#define FOVEA_SCORE_RULE_OF(name, object)                                             \
  ::fovea::score_rule(                                                                \
      object, [](const RowForward<float>& r) { FOVEA_SIMD_CALL(name##_forward, r); }, \
      [](const RowBackward<float>& r) { FOVEA_SIMD_CALL(name##_backward, r); })

namespace fovea {

template <class Rule>
void score_rows_forward_f64(const RowForward<double>& c) {
  const Rule& rule = *static_cast<const Rule*>(c.rule);
  for (int64_t r = 0; r < c.rows; ++r) {
    double *s = c.s + r * kScoreTile, *acc = c.acc + r * c.dv, reference = 0.0;
    if constexpr (Rule::kOnline) {
      reference = c.m[r];
      for (int64_t j = 0; j < c.n; ++j) reference = std::max(reference, c.scale * s[j]);
      const double factor = c.m[r] == -INFINITY ? 0.0 : std::exp(c.m[r] - reference);
      for (int64_t d = 0; d < c.dv; ++d) acc[d] *= factor;
      c.l[r] *= factor;
      c.m[r] = reference;
    }
    for (int64_t j = 0; j < c.n; ++j) {
      const double x = c.scale * s[j];
      s[j] = x == -INFINITY ? 0.0 : rule.weight(x, reference);
      if constexpr (Rule::kNormalised) c.l[r] += s[j];
    }
  }
}

template <class Rule>
void score_rows_backward_f64(const RowBackward<double>& c) {
  const Rule& rule = *static_cast<const Rule*>(c.rule);
  for (int64_t r = 0; r < c.rows; ++r) {
    double *s = c.s + r * kScoreTile, *dp = c.dp + r * kScoreTile;
    const bool empty = Rule::kNormalised && c.statistic[r] == (Rule::kOnline ? -INFINITY : 0.0);
    for (int64_t j = 0; j < c.n; ++j) {
      const double x = c.scale * s[j];
      if (empty || x == -INFINITY) {
        s[j] = dp[j] = 0.0;
        continue;
      }
      const double w = rule.weight(x, Rule::kOnline ? c.statistic[r] : 0.0),
                   inverse = Rule::kNormalised && !Rule::kOnline ? 1.0 / c.statistic[r] : 1.0;
      dp[j] = rule.derivative(x, w) * inverse * (dp[j] - (Rule::kNormalised ? c.delta[r] : 0.0));
      s[j] = w * inverse;
    }
  }
}

template <class Rule>
ScoreRule score_rule(const Rule& rule, void (*forward)(const RowForward<float>&),
                     void (*backward)(const RowBackward<float>&)) {
  static_assert(Rule::kNormalised || !Rule::kOnline, "an online rule is normalised");
  return {Rule::kNormalised,
          Rule::kOnline,
          &rule,
          forward,
          backward,
          score_rows_forward_f64<Rule>,
          score_rows_backward_f64<Rule>,
          nullptr,
          nullptr};
}

}  // namespace fovea
