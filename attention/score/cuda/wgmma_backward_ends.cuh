// SPDX-License-Identifier: Apache-2.0
#pragma once
// Before and after Hopper's backward (wgmma_backward.cuh), a block a tile of queries; memory alone
// limits both.
//   before  delta = rowsum(dout out); the tile's statistics and deltas side by side, for one copy;
//           zeros for dq's sums. Bytes a query: 2 Dv 2 read, 4 kD written.
//   after   dq = scale times its sums, in dq's type and strides; marks rows that are not finite.
//           Bytes a query: 4 kD read, 2 D written.
// dq's sums lie as the tiles' warpgroups leave them: [B, H, tiles, 2 halves, 64 rows, 64 columns],
// chunk c of 8 columns of row r at c ^ (r & 7). The halves are columns of 128, or queries of 128.

#include "attention/score/cuda/arguments.cuh"

namespace FOVEA_GPU {

constexpr int kEndThreads = 256, kPartSide = 64, kPartValues = kPartSide * kPartSide;

// Tiles of queries of backward on Hopper, for heads of kD columns.
template <int kD>
struct QueryTiles {
  static_assert(kD == 64 || kD == 128);
  static constexpr int kQueries = kD == 64 ? 128 : 64, kValues = kQueries * kD;
};

// Eight columns of a row from column on, as f32; zeros past d.
__device__ inline Vec<float, 8> eight_of(Global<const bf16> row, int column, int d, bool aligned) {
  Vec<float, 8> x;
  if (aligned && column < d) {
    const Vec<bf16, 8> read = load<8>(row + column);
    FOVEA_UNROLL
    for (int e = 0; e < 8; ++e) x[e] = static_cast<float>(read[e]);
    return x;
  }
  FOVEA_UNROLL
  for (int e = 0; e < 8; ++e) {
    x[e] = 0.0f;
    if (column + e < d) x[e] = static_cast<float>(row[column + e]);
  }
  return x;
}

template <class Rule, int kD>
__global__ void __launch_bounds__(kEndThreads)
    backward_start_kernel(Arguments<bf16> a, bool aligned) {
  using Tiles = QueryTiles<kD>;
  constexpr int kQ = Tiles::kQueries, kLanes = kD / 8, kRowsAtOnce = kEndThreads / kLanes;
  const int tiles = (a.N + kQ - 1) / kQ, tile = static_cast<int>(blockIdx.x) % tiles,
            bh = static_cast<int>(blockIdx.x) / tiles, b = bh / a.H, h = bh % a.H,
            thread = static_cast<int>(threadIdx.x), lane = thread % kLanes;
  const Global<float> statistics = a.statistics + int64_t{blockIdx.x} * (2 * kQ),
                      sums = a.sums + int64_t{blockIdx.x} * Tiles::kValues;
  FOVEA_UNROLL
  for (int n = 0; n < kQ / kRowsAtOnce; ++n) {
    const int row = n * kRowsAtOnce + thread / kLanes, i = tile * kQ + row;
    float delta = 0.0f;
    if (i < a.N && Rule::kNormalised) {
      const Vec<float, 8> x = eight_of(a.result.at(b, h) + i * a.result.row, lane * 8, a.Dv,
                                       aligned),
                          y = eight_of(a.dout.at(b, h) + i * a.dout.row, lane * 8, a.Dv, aligned);
      FOVEA_UNROLL
      for (int e = 0; e < 8; ++e) delta = fma(x[e], y[e], delta);
    }
    FOVEA_UNROLL
    for (int bits = 1; bits < kLanes; bits *= 2) delta += shuffle_xor(delta, bits);
    if (lane > 0) continue;
    float statistic = Rule::kOnline ? INFINITY : 0.0f;  // past the end: weight 0
    if (i < a.N) {
      const float lse = a.lse[a.row(b, h, i)];
      statistic = packed_statistic<Rule>(lse);
      a.delta[a.row(b, h, i)] = delta;
    }
    // A thread's four columns of every 16 of a product's accumulator, side by side.
    const int place = row / 16 * 16 + row % 8 / 2 * 4 + row / 8 % 2 * 2 + row % 2;
    statistics[place] = statistic;
    statistics[kQ + place] = delta;
  }
  FOVEA_UNROLL
  for (int n = 0; n < Tiles::kValues / (4 * kEndThreads); ++n)
    store(sums + (n * kEndThreads + thread) * 4, Vec<float, 4>{});
}

template <int kD>
__global__ void __launch_bounds__(kEndThreads) backward_end_kernel(Arguments<bf16> a, bool whole) {
  using Tiles = QueryTiles<kD>;
  constexpr int kQ = Tiles::kQueries, kChunks = kPartSide / 8;
  const int tiles = (a.N + kQ - 1) / kQ, tile = static_cast<int>(blockIdx.x) % tiles,
            bh = static_cast<int>(blockIdx.x) / tiles, b = bh / a.H, h = bh % a.H;
  const Global<const float> sums = a.sums + int64_t{blockIdx.x} * Tiles::kValues;
  FOVEA_UNROLL
  for (int n = 0; n < Tiles::kValues / (8 * kEndThreads); ++n) {
    const int e = n * kEndThreads + static_cast<int>(threadIdx.x), half = e * 8 / kPartValues,
              row = e / kChunks % kPartSide, chunk = e % kChunks,
              i = tile * kQ + row + (kD == 64 ? half * kPartSide : 0),
              column = chunk * 8 + (kD == 64 ? 0 : half * kPartSide);
    const Global<const float> from =
        sums + (half * kPartValues + row * kPartSide + (chunk ^ (row & 7)) * 8);
    const Vec<float, 4> low = load<4>(from), high = load<4>(from + 4);
    if (i >= a.N || column >= a.D) continue;
    Vec<bf16, 8> rounded;
    float broken = 0.0f;  // NaN once a value is not finite
    FOVEA_UNROLL
    for (int c = 0; c < 8; ++c) {
      const float x = (c < 4 ? low[c & 3] : high[c & 3]) * a.scale;
      broken = fma(x, 0.0f, broken);
      rounded[c] = static_cast<bf16>(x);
    }
    if (!(broken == 0.0f)) a.suspect[a.row(b, h, i)] = 1;
    if (whole) {
      store(a.dq.data + (b * a.dq.batch + h * a.dq.head + i * a.dq.row + column), rounded);
      continue;
    }
    FOVEA_UNROLL
    for (int c = 0; c < 4; ++c) {
      const float x = c < 2 ? low[2 * c] : high[2 * c - 4],
                  next = c < 2 ? low[2 * c + 1] : high[2 * c - 3];
      a.dq.put_pair(b, h, i, column + 2 * c, a.D, x * a.scale, next * a.scale);
    }
  }
}

// Whether rows of bf16 are read and written eight values at a time.
inline bool in_eights(const attention::ScoreRows& r, int d) {
  return r.dtype == Dtype::bf16 && ((r.batch | r.head | r.row | d) & 7) == 0 &&
         reinterpret_cast<uintptr_t>(r.data) % 16 == 0;
}

template <class Rule, int kD>
void backward_start(const attention::ScoreCall& call, Stream stream) {
  launch<backward_start_kernel<Rule, kD>>(
      attention::hopper_backward(call).tiles, kEndThreads, 0, stream, arguments<bf16, Rule>(call),
      in_eights(call.out, call.Dv) && in_eights(call.dout, call.Dv));
}
template <class Rule, int kD>
void backward_end(const attention::ScoreCall& call, Stream stream) {
  launch<backward_end_kernel<kD>>(attention::hopper_backward(call).tiles, kEndThreads, 0, stream,
                                  arguments<bf16, Rule>(call), in_eights(call.dq, call.D));
}

}  // namespace FOVEA_GPU
