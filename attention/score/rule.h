// SPDX-License-Identifier: Apache-2.0
#pragma once
// What tells one score attention from another: a Rule turns scores into weights. The engine owns
// everything else (tiles, masks, grouped heads, positions, dropout, split keys, decoding). For V =
// float, double or a vector of floats:
//
//   struct SoftmaxRule {
//     static constexpr bool kNormalised = true;
//     static constexpr bool kOnline = true;
//     template <class V> FOVEA_HD V weight(V s, V m) const { return exp_nonpositive(s - m); }
//     template <class V> FOVEA_HD V derivative(V s, V w) const { return w; }  // dw/ds
//   };
//
// kNormalised: out_i = sum_j w_ij v_j / l_i with l_i = sum_j w_ij; else without l_i.
// kOnline: weights are relative to a row reference m, the largest score so far (m is 0 otherwise);
// when it moves, sums are multiplied by exp(m - m'). Needs kNormalised.
//
// A key that a mask hides has weight 0, whatever the rule. Backward, with dp_ij = dout_i . v_j,
// Delta_i = sum_d dout_id out_id and the saved row statistic (online: lse = m + log l; else l):
//   normalised:  p = weight(s, lse) or weight(s) / l,  ds = derivative(s, w) [/ l] (dp - Delta)
//   else:        p = weight(s),                        ds = derivative(s, w) dp
// Two partial rows over different keys (split keys, ring attention) merge by rescaling both to the
// larger m and adding l and the accumulators.
//
// On a GPU device V is float, or for online rules a number of base 2 that knows exp_nonpositive and
// differences (attention/score/cuda/arguments.cuh).
//
// To make a ScoreRule of a Rule: FOVEA_SCORE_RULE(Rule, name) in a *.simd.cpp
// (attention/score/rows_simd.h), and where it is used FOVEA_SCORE_RULE_DECLARE(name) and
// FOVEA_SCORE_RULE_OF(name, object) (attention/score/rows.h).

#include <cstdint>

#include "core/cpu/isa.h"
#include "core/device.h"
#include "core/dtype.h"

namespace fovea {

namespace attention {
struct ScoreCall;  // attention/score/cuda/kernels.h
}

// Keys of a tile: rows of a tile of scores stand this far apart.
inline constexpr int64_t kScoreTile = 64;

// Rows of a tile of scores on their way to weights. Scores s are raw products; the true score is
// `scale` times s, scale > 0. A score of -inf is a hidden key.
template <typename Acc>
struct RowForward {
  const void* rule;
  Acc* s;  // [rows, n] -> unnormalised weights
  int64_t rows, n;
  Acc scale;
  Acc* m;    // [rows] reference so far; online rules only
  Acc* l;    // [rows] sum of weights so far; normalised rules only
  Acc* acc;  // [rows, dv], rescaled when m moves
  int64_t dv;
};

// Rows of a tile on their way back: s -> weights (normalised), dp -> ds.
template <typename Acc>
struct RowBackward {
  const void* rule;
  Acc* s;
  Acc* dp;
  int64_t rows, n;
  Acc scale;
  const Acc* statistic;  // [rows] lse or l; normalised rules only
  const Acc* delta;      // [rows]; normalised rules only
};

// A rule as the engine holds it: its flags, its parameters and its rows by type of accumulator.
struct ScoreRule {
  bool normalised, online;
  const void* rule;  // outlives the call; backward reads it too
  void (*forward)(const RowForward<float>&);
  void (*backward)(const RowBackward<float>&);
  void (*forward_f64)(const RowForward<double>&);
  void (*backward_f64)(const RowBackward<double>&);
  // Its kernels for GPU devices; null where it has none.
  void (*device_forward)(Device, const attention::ScoreCall&) = nullptr;
  void (*device_backward)(Device, const attention::ScoreCall&) = nullptr;
  // On Hopper (runs_sm90), of calls that fits_hopper_backward.
  void (*hopper_backward)(Device, const attention::ScoreCall&) = nullptr;
};

// Of numbers, beside those of vectors (core/cpu/simd.h): what rules are written with.
FOVEA_HD inline double exp(double x) { return __builtin_exp(x); }
FOVEA_HD inline double exp_nonpositive(double x) { return __builtin_exp(x); }

// w = exp(s - m), normalised (1706.03762 section 3.2.1).
struct SoftmaxRule {
  static constexpr bool kNormalised = true, kOnline = true;
  template <class V>
  FOVEA_HD V weight(V s, V m) const {
    return exp_nonpositive(s - m);
  }
  template <class V>
  FOVEA_HD V derivative(V, V w) const {
    return w;
  }
};

// The one softmax there is.
const ScoreRule& softmax_rule();

}  // namespace fovea
