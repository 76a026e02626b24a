// SPDX-License-Identifier: Apache-2.0
#pragma once
// Keys split over blocks, for few queries: a block leaves acc, m and l of its keys, and a warp a
// row merges them in order (rule.h). Reads splits (Dv + 2) 4 bytes a row, writes the row.

#include "attention/score/cuda/arguments.cuh"

namespace FOVEA_GPU {

constexpr int kMergeThreads = 128;

template <class Rule, typename T>
__global__ void __launch_bounds__(kMergeThreads) merge_kernel(Arguments<T> a) {
  const int64_t rows = int64_t{a.B} * a.H * a.N,
                row = int64_t{blockIdx.x} * (kMergeThreads / kWarp) + threadIdx.x / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (row >= rows) return;
  const int width = a.Dv + 2;
  float m = Rule::kOnline ? -INFINITY : 0.0f, l = 0.0f, acc[8] = {};
  for (int split = 0; split < a.splits; ++split) {
    const Global<const float> part = a.partial + (split * rows + row) * width;
    const float other_m = part[a.Dv], other_l = part[a.Dv + 1];
    float ours = 1.0f, theirs = 1.0f;
    if constexpr (Rule::kOnline) {
      if (other_m == -INFINITY && other_l == 0.0f) continue;  // it saw nothing
      const float top = max(m, other_m), at = top == -INFINITY ? 0.0f : top;
      ours = exp2_fast(m - at);
      theirs = exp2_fast(other_m - at);
      m = top;
    }
    l = l * ours + other_l * theirs;
    FOVEA_UNROLL
    for (int c = 0; c < 8; ++c) {
      const int d = c * kWarp + lane;
      if (d >= a.Dv) continue;
      const float other = part[d];
      acc[c] = acc[c] * ours + other * theirs;
    }
  }
  const RowEnd end = finish_row<Rule>(m, l);
  const int i = static_cast<int>(row % a.N), bh = static_cast<int>(row / a.N);
  const Global<T> out = a.out.at(bh / a.H, bh % a.H) + i * a.out.row;
  bool broken = false;
  FOVEA_UNROLL
  for (int c = 0; c < 8; ++c) {
    const int d = c * kWarp + lane;
    if (d >= a.Dv) continue;
    const float x = acc[c] * end.factor;
    broken = broken || !finite(x);
    out[d] = static_cast<T>(x);
  }
  broken = any(broken);
  if (lane == 0) {
    a.lse[row] = end.statistic;
    a.suspect[row] = broken ? 1 : 0;
  }
}

template <class Rule, typename T>
void merge_splits(const attention::ScoreCall& call, Stream stream) {
  launch<merge_kernel<Rule, T>>(ceil_div(int64_t{call.B} * call.H * call.N, kMergeThreads / kWarp),
                                kMergeThreads, 0, stream, arguments<T, Rule>(call));
}

}  // namespace FOVEA_GPU
