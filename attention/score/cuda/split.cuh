// SPDX-License-Identifier: Apache-2.0
#pragma once
// Keys split over blocks, for few queries, or over calls: a block leaves acc, m and l of its keys,
// and a warp a row merges them in order (rule.h), into the row or into sums under way. Reads splits
// (Dv + 2) 4 bytes a row, writes the row.

#include "attention/score/cuda/exact.cuh"

namespace FOVEA_GPU {

constexpr int kMergeThreads = 128;

// A row, 32 columns apart a lane.
struct PartialRow {
  float m, l, acc[8];
};

// row and another over other keys; their m in base 2.
template <class Rule>
__device__ inline void add_row(PartialRow& row, float m, float l, const float (&acc)[8]) {
  float ours = 1.0f, theirs = 1.0f;
  if constexpr (Rule::kOnline) {
    if (m == -INFINITY && l == 0.0f) return;  // it saw nothing
    const float top = max(row.m, m), at = top == -INFINITY ? 0.0f : top;
    ours = exp2_fast(row.m - at);
    theirs = exp2_fast(m - at);
    row.m = top;
  }
  row.l = row.l * ours + l * theirs;
  FOVEA_UNROLL
  for (int c = 0; c < 8; ++c) row.acc[c] = row.acc[c] * ours + acc[c] * theirs;
}
__device__ inline void load_row(float (&acc)[8], Global<const float> from, int d_end, int lane) {
  FOVEA_UNROLL
  for (int c = 0; c < 8; ++c) {
    acc[c] = 0.0f;
    if (c * kWarp + lane < d_end) acc[c] = from[c * kWarp + lane];
  }
}

template <class Rule, typename T, bool kSums>
__global__ void __launch_bounds__(kMergeThreads) merge_kernel(Rule rule, Arguments<T> a) {
  const int64_t rows = int64_t{a.B} * a.H * a.N,
                row = int64_t{blockIdx.x} * (kMergeThreads / kWarp) + threadIdx.x / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (row >= rows) return;
  const int width = a.Dv + 2, i = static_cast<int>(row % a.N), bh = static_cast<int>(row / a.N),
            b = bh / a.H, h = bh % a.H;
  PartialRow x{Rule::kOnline ? -INFINITY : 0.0f, 0.0f, {}};
  for (int split = 0; split < a.splits; ++split) {
    const Global<const float> part = a.partial + (split * rows + row) * width;
    const float other_m = part[a.Dv], other_l = part[a.Dv + 1];
    float acc[8];
    load_row(acc, part, a.Dv, lane);
    add_row<Rule>(x, other_m, other_l, acc);
  }
  bool broken = false;
  if constexpr (kSums) {
    FOVEA_UNROLL
    for (int c = 0; c < 8; ++c) broken = broken || !finite(x.acc[c]);
    if (any(broken)) exact_sums<Rule>(x.acc, rule, a, b, h, i, x.m == -INFINITY ? 0.0f : x.m);
    const Global<float> sum = a.sum_acc + row * a.Dv;
    float m = a.sum_m[row], l = a.sum_l[row];
    PartialRow total{m, l, {}};
    load_row(total.acc, sum, a.Dv, lane);
    add_row<Rule>(total, x.m, x.l, x.acc);
    FOVEA_UNROLL
    for (int c = 0; c < 8; ++c)
      if (c * kWarp + lane < a.Dv) sum[c * kWarp + lane] = total.acc[c];
    sync_warp();  // all lanes have read m and l
    if (lane == 0) {
      a.sum_m[row] = total.m;
      a.sum_l[row] = total.l;
    }
  } else {
    const RowEnd end = finish_row<Rule>(x.m, x.l);
    const Global<T> out = a.out.at(b, h) + i * a.out.row;
    FOVEA_UNROLL
    for (int c = 0; c < 8; ++c) {
      const int d = c * kWarp + lane;
      if (d >= a.Dv) continue;
      const float y = x.acc[c] * end.factor;
      broken = broken || !finite(y);
      out[d] = static_cast<T>(y);
    }
    broken = any(broken);
    if (lane == 0) {
      a.lse[row] = end.statistic;
      a.suspect[row] = broken ? 1 : 0;
    }
  }
}

template <class Rule, typename T, bool kSums>
void merge_rows(const attention::ScoreCall& call, Stream stream) {
  launch<merge_kernel<Rule, T, kSums>>(
      ceil_div(int64_t{call.B} * call.H * call.N, kMergeThreads / kWarp), kMergeThreads, 0, stream,
      *static_cast<const Rule*>(call.rule), arguments<T, Rule>(call));
}

// What follows a forward kernel: rows are merged, and those that a NaN or an infinity reached are
// made again.
template <class Rule, typename T>
void forward_end(const attention::ScoreCall& call, Stream stream) {
  if (call.sum_acc != nullptr) return merge_rows<Rule, T, true>(call, stream);
  if (call.splits > 1) merge_rows<Rule, T, false>(call, stream);
  exact_rows<Rule, T>(call, Exact::out, stream);
}

}  // namespace FOVEA_GPU
