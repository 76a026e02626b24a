// SPDX-License-Identifier: Apache-2.0
#pragma once
// Forward in bf16 on tensor cores, f32 sums (2307.08691). 4 warps; a warp has kBands bands of 16
// rows, scores and sums in registers; 64 or 32 keys a step, the next step's k and v on their way.
//   S = q k^T,  m' = max(m, rowmax S),  P = weight(S, m'),  l = l exp(m - m') + rowsum P,
//   out = out exp(m - m') + P v
//
// Cost  4 N M D FLOP a head, causal halves it. Limits: tensor cores; an ex2 a score.
// Bytes q, out once; k, v once a row tile, from L2 when rows are many.
// Shared memory: q, two stages of k and v, a band of scores a warp: 74 KiB at kD = 128.

#include "attention/score/cuda/exact.cuh"
#include "attention/score/cuda/mma.cuh"
#include "attention/score/cuda/split.cuh"

namespace FOVEA_GPU {

// Keys of a step: as many as registers have room for.
template <int kD>
constexpr int mma_keys() {
  return kD <= 64 ? 64 : 32;
}

template <class Rule, int kD, int kBands>
__global__ void __launch_bounds__(kMmaThreads, 1) mma_forward_kernel(Rule rule, Arguments<bf16> a) {
  constexpr int kRows = 64 * kBands, kKeys = mma_keys<kD>(), kTiles = kKeys / 8, kDims = kD / 8;
  using QTile = MmaTile<kRows, kD>;
  using KTile = MmaTile<kKeys, kD>;
  using Scores = Band<kKeys>;
  const Shared<bf16> q = dynamic_shared<bf16>(), kv = q + QTile::kValues;
  const Shared<float> room =
      dynamic_shared<float>((QTile::kValues + 4 * KTile::kValues) * sizeof(bf16)) +
      static_cast<int>(threadIdx.x) / kWarp * Scores::kValues;
  const int lane = static_cast<int>(threadIdx.x) % kWarp,
            row0 = static_cast<int>(threadIdx.x) / kWarp * 16 * kBands;  // of the warp
  const ForwardBlock block = forward_block(a, kRows, kKeys);
  const int b = block.b;
  // Plain rows are offsets from their head's first; packed ones from the group's.
  copy_rows<kRows, kD>(q, a.q.at(b, block.h), a.D, [&](int r) -> int64_t {
    const int row = block.row0 + r;
    const RowPlace place = place_of(a, block, row);
    return row < block.rows ? (place.h - block.h) * a.q.head + place.i * a.q.row : -1;
  });
  const auto copy_keys = [&](int tile, int stage) {
    const int j0 = tile * kKeys;
    copy_rows<kKeys, kD>(kv + 2 * stage * KTile::kValues, a.k.at(b, block.hk), a.D,
                         [&](int r) { return j0 + r < a.M ? (j0 + r) * a.k.row : -1; });
    copy_rows<kKeys, kD>(kv + (2 * stage + 1) * KTile::kValues, a.v.at(b, block.hk), a.Dv,
                         [&](int r) { return j0 + r < a.M ? (j0 + r) * a.v.row : -1; });
  };
  // Rows row0 + 16 t + lane / 4 + 8 half, t the band.
  const auto row_of = [&](int t, int half) {
    return block.row0 + row0 + 16 * t + lane / 4 + 8 * half;
  };
  float m[kBands][2], l[kBands][2], acc[kBands][kDims][4];
  FOVEA_UNROLL
  for (int t = 0; t < kBands; ++t) {
    FOVEA_UNROLL
    for (int half = 0; half < 2; ++half) {
      m[t][half] = -INFINITY;
      l[t][half] = 0.0f;
      if (!(a.sink == nullptr) && block.split == 0) {  // one key more
        const float sink = a.sink[place_of(a, block, row_of(t, half)).h];
        m[t][half] = sink * kLog2e;
        l[t][half] = lane % 4 == 0 ? 1.0f : 0.0f;
      }
    }
    FOVEA_UNROLL
    for (int n = 0; n < kDims; ++n) {
      FOVEA_UNROLL
      for (int e = 0; e < 4; ++e) acc[t][n][e] = 0.0f;
    }
  }
  const bool idle = block.row0 + row0 >= block.rows;  // a warp without rows only copies
  Tile what = Tile::skip, next_what = Tile::skip;
  int tile = next_tile(a, block, kRows, kKeys, block.tile0, what), stage = 0;
  if (tile < block.tile1) copy_keys(tile, 0);
  commit_copies();
  while (tile < block.tile1) {
    const int next = next_tile(a, block, kRows, kKeys, tile + 1, next_what);
    if (next < block.tile1) copy_keys(next, stage ^ 1);
    commit_copies();
    wait_copies<1>();
    sync_block();
    const Shared<bf16> k = kv + 2 * stage * KTile::kValues, v = k + KTile::kValues;
    if (!idle) {
      const int j0 = tile * kKeys;
      float s[kBands][kTiles][4];
      FOVEA_UNROLL
      for (int t = 0; t < kBands; ++t) {
        FOVEA_UNROLL
        for (int n = 0; n < kTiles; ++n) {
          FOVEA_UNROLL
          for (int e = 0; e < 4; ++e) s[t][n][e] = 0.0f;
        }
      }
      FOVEA_UNROLL_BY(4)
      for (int d = 0; d < kD / 16; ++d) {
        if (d * 16 >= a.D) break;
        uint32_t left[kBands][4];
        FOVEA_UNROLL
        for (int t = 0; t < kBands; ++t) load_a<QTile>(left[t], q, row0 + 16 * t, d);
        FOVEA_UNROLL
        for (int n = 0; n < kTiles / 2; ++n) {
          uint32_t right[2][2];
          load_b<KTile>(right, k, 16 * n, d);
          FOVEA_UNROLL
          for (int t = 0; t < kBands; ++t) {
            mma_bf16(s[t][2 * n], left[t], right[0]);
            mma_bf16(s[t][2 * n + 1], left[t], right[1]);
          }
        }
      }
      const bool whole = what == Tile::full && j0 + kKeys <= a.M;
      FOVEA_UNROLL
      for (int t = 0; t < kBands; ++t) {
        if (a.adjusts || !whole) {
          Scores::put(room, s[t]);
          sync_warp();
          Scores::each([&](int at, int r, int c) {
            const RowPlace place = place_of(a, block, block.row0 + row0 + 16 * t + r);
            const int j = j0 + c;
            float x = room[at];
            if (a.adjusts && j < a.M) x = adjusted(a, b, place.h, place.i, j, x);
            if (j >= a.M || (what != Tile::full && !allowed(a, b, place.h, place.i, j)))
              x = -INFINITY;
            room[at] = x;
          });
          sync_warp();
          Scores::take(room, s[t]);
          sync_warp();
        }
        FOVEA_UNROLL
        for (int half = 0; half < 2; ++half) {
          // f of each score of the row.
          const auto each = [&](auto&& f) {
            FOVEA_UNROLL
            for (int n = 0; n < kTiles; ++n) {
              f(s[t][n][2 * half]);
              f(s[t][n][2 * half + 1]);
            }
          };
          float reference = 0.0f;
          if constexpr (Rule::kOnline) {
            float top = -INFINITY;
            each([&](float& x) { top = max(top, x); });
            top = max(m[t][half], quad_max(top) * a.factor);
            reference = top == -INFINITY ? 0.0f : top;  // nothing seen: weights 0 of any number
            const float rescale = exp2_fast(m[t][half] - reference);
            m[t][half] = top;
            l[t][half] *= rescale;
            if (!all(rescale == 1.0f)) {  // maxima seldom move after the first keys
              FOVEA_UNROLL
              for (int n = 0; n < kDims; ++n) {
                acc[t][n][2 * half] *= rescale;
                acc[t][n][2 * half + 1] *= rescale;
              }
            }
          }
          each([&](float& x) {
            float w = weight_of(rule, x * a.factor, reference);
            if constexpr (!Rule::kOnline) w = x == -INFINITY ? 0.0f : w;
            l[t][half] += w;
            x = w;
          });
        }
        if (a.drop_threshold > 0) {
          Scores::put(room, s[t]);
          sync_warp();
          Scores::each([&](int at, int r, int c) {
            const RowPlace place = place_of(a, block, block.row0 + row0 + 16 * t + r);
            const float x = room[at];
            room[at] = x * keep_of(a, b, place.h, place.i, j0 + c);
          });
          sync_warp();
          Scores::take(room, s[t]);
          sync_warp();
        }
      }
      FOVEA_UNROLL
      for (int n = 0; n < kTiles / 2; ++n) {
        uint32_t left[kBands][4];
        FOVEA_UNROLL
        for (int t = 0; t < kBands; ++t) pack_a(left[t], s[t][2 * n], s[t][2 * n + 1]);
        FOVEA_UNROLL
        for (int d = 0; d < kDims / 2; ++d) {
          if (d * 16 >= a.Dv) break;
          uint32_t right[2][2];
          load_b_rows<KTile>(right, v, 16 * n, d);
          FOVEA_UNROLL
          for (int t = 0; t < kBands; ++t) {
            mma_bf16(acc[t][2 * d], left[t], right[0]);
            mma_bf16(acc[t][2 * d + 1], left[t], right[1]);
          }
        }
      }
    }
    sync_block();
    tile = next;
    what = next_what;
    stage ^= 1;
  }
  wait_copies<0>();
  sync_block();
  // Rows leave by way of the warp's own rows of q: 16 bytes a store; parts of rows as they are.
  const bool leaves = !(a.partial == nullptr);
  const bool wide = ((a.Dv | a.out.row | a.out.head | a.out.batch) & 7) == 0;
  FOVEA_UNROLL
  for (int t = 0; t < kBands; ++t) {
    FOVEA_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = row_of(t, half);
      const RowPlace place = place_of(a, block, row);
      const float total = quad_sum(l[t][half]);
      const RowEnd end = finish_row<Rule>(m[t][half], total);
      const int64_t at = a.row(b, place.h, place.i),
                    part = (block.split * int64_t{a.B} * a.H * a.N + at) * (a.Dv + 2);
      float broken = 0.0f;
      FOVEA_UNROLL
      for (int n = 0; n < kDims; ++n) {
        FOVEA_UNROLL
        for (int e = 0; e < 2; ++e) {
          const int d = 8 * n + lane % 4 * 2 + e;
          const float x = acc[t][n][2 * half + e] * (leaves ? 1.0f : end.factor);
          if (!finite(x)) broken = 1.0f;
          if (leaves) {
            if (row < block.rows && d < a.Dv) a.partial[part + d] = x;
          } else {
            q[QTile::at(row0 + 16 * t + lane / 4 + 8 * half, n) + lane % 4 * 2 + e] = bf16(x);
          }
        }
      }
      broken = quad_max(broken);
      if (lane % 4 > 0 || row >= block.rows) continue;
      if (leaves) {
        a.partial[part + a.Dv] = m[t][half];
        a.partial[part + a.Dv + 1] = total;
      } else {
        a.lse[at] = end.statistic;
        a.suspect[at] = broken > 0.0f ? 1 : 0;
      }
    }
  }
  if (leaves) return;
  sync_warp();
  for (int e = lane; e < 16 * kBands * kDims; e += kWarp) {
    const int r = row0 + e / kDims, c = e % kDims, row = block.row0 + r;
    if (row >= block.rows || c * 8 >= a.Dv) continue;
    const Vec<bf16, 8> values = load<8>(q + QTile::at(r, c));
    const RowPlace place = place_of(a, block, row);
    const Global<bf16> out = a.out.at(b, place.h) + (place.i * a.out.row + c * 8);
    if (wide) {
      store(out, values);
    } else {
      FOVEA_UNROLL
      for (int n = 0; n < 8; ++n)
        if (c * 8 + n < a.Dv) out[n] = values[n];
    }
  }
}

template <class Rule, int kD, int kBands>
void mma_forward_of(const attention::ScoreCall& call, Stream stream) {
  const auto a = arguments<bf16, Rule>(call);
  constexpr int kKeys = mma_keys<kD>();
  launch<mma_forward_kernel<Rule, kD, kBands>>(
      forward_grid(a, 64 * kBands), kMmaThreads,
      (64 * kBands + 4 * kKeys) * kD * sizeof(bf16) + 4 * Band<kKeys>::kValues * sizeof(float),
      stream, *static_cast<const Rule*>(call.rule), a);
}

// Head dims up to 96.
template <class Rule>
void mma_forward_small(const attention::ScoreCall& call, Stream stream) {
  const int d = call.D > call.Dv ? call.D : call.Dv;
  if (d <= 32)
    mma_forward_of<Rule, 32, 1>(call, stream);
  else if (d <= 64)
    mma_forward_of<Rule, 64, 2>(call, stream);
  else
    mma_forward_of<Rule, 96, 2>(call, stream);
  forward_end<Rule, bf16>(call, stream);
}
// From there on.
template <class Rule>
void mma_forward_large(const attention::ScoreCall& call, Stream stream) {
  if (is_wide(call)) return wide_forward<Rule, bf16>(call, stream);
  const int d = call.D > call.Dv ? call.D : call.Dv;
  if (d <= 128)
    mma_forward_of<Rule, 128, 2>(call, stream);
  else
    mma_forward_of<Rule, 256, 1>(call, stream);
  forward_end<Rule, bf16>(call, stream);
}

}  // namespace FOVEA_GPU
