// SPDX-License-Identifier: Apache-2.0
#pragma once
// The score engine in f32, by fused multiply-adds: no product is rounded below f32.
//
// Tiles of kT x kT (64; 32 for the widest heads, so that all tiles of a block fit). 256 threads,
// 16 x 16: thread (y, x) has rows y kR + r and columns x + 16 c of scores, and of the same rows
// columns x + 16 c of what is accumulated. Weights pass through shared memory between the 16
// threads of a row, which are half a warp. Rows stand D + 4 apart: 16-byte reads of 16 rows meet
// no bank twice.
//
// Cost  4 N M D FLOP a head forward, 14 backward (keys' and queries' kernels both make scores),
//       causal halves apart; limit: shared memory, 8 16-byte reads for 64 multiply-adds.
// Bytes q, k, v, out once a tile of rows.
// Determinism  bitwise: each sum belongs to one thread, in order.

#include "attention/score/cuda/exact.cuh"
#include "attention/score/cuda/split.cuh"
#include "attention/score/cuda/tile.cuh"

namespace FOVEA_GPU {

constexpr int kFmaThreads = 256;

template <int kD>
struct Fma {
  static constexpr int kStride = kD + 4, kColumns = kD / 16;
  static constexpr int forward_tile() { return kD <= 128 ? 64 : 32; }
  static constexpr int backward_tile() { return kD <= 64 ? 64 : 32; }
};

// Rows r = [0, kT) of shared memory from row(r), null where there is none: zeros. Columns past d up
// to the next multiple of 4 are zeros too.
template <int kT, typename RowAt>
__device__ inline void load_rows(Shared<float> to, int stride, int d, bool wide, RowAt&& row) {
  const int chunks = (d + 3) / 4;
  for (int e = static_cast<int>(threadIdx.x); e < kT * chunks; e += kFmaThreads) {
    const int r = e / chunks, c = e % chunks * 4;
    const Global<const float> from = row(r);
    Vec<float, 4> x{{0.0f, 0.0f, 0.0f, 0.0f}};
    if (!(from == nullptr)) {
      if (wide) {
        x = load<4>(from + c);
      } else {
        FOVEA_UNROLL
        for (int n = 0; n < 4; ++n)
          if (c + n < d) x[n] = from[c + n];
      }
    }
    store(to + (r * stride + c), x);
  }
}
__device__ inline bool is_wide(Rows<const float> rows, int d) {
  return ((d | rows.row | rows.head | rows.batch) & 3) == 0;
}

// s[r][c] = sum_d x[y kR + r][d] w[x + 16 c][d]; 0 from column `columns` on, by 16.
template <int kR>
__device__ inline void products(float (&s)[kR][kR], Shared<float> x, Shared<float> w, int stride,
                                int d, int columns) {
  const int ty = static_cast<int>(threadIdx.x) / 16, tx = static_cast<int>(threadIdx.x) % 16;
  FOVEA_UNROLL
  for (int r = 0; r < kR; ++r) {
    FOVEA_UNROLL
    for (int c = 0; c < kR; ++c) s[r][c] = 0.0f;
  }
  for (int k = 0; k < d; k += 4) {
    Vec<float, 4> left[kR];
    FOVEA_UNROLL
    for (int r = 0; r < kR; ++r) left[r] = load<4>(x + ((ty * kR + r) * stride + k));
    FOVEA_UNROLL
    for (int c = 0; c < kR; ++c) {
      if (16 * c >= columns) break;
      const Vec<float, 4> right = load<4>(w + ((tx + 16 * c) * stride + k));
      FOVEA_UNROLL
      for (int r = 0; r < kR; ++r) {
        FOVEA_UNROLL
        for (int n = 0; n < 4; ++n) s[r][c] = fma(left[r][n], right[n], s[r][c]);
      }
    }
  }
}

// acc[r][c] += sum_j p[y kR + r][j] w[j][x + 16 c] over `columns` j, by 4 (p is 0 past them); d
// columns of w.
template <int kR, int kT, int kColumns>
__device__ inline void add_products(float (&acc)[kR][kColumns], Shared<float> p, Shared<float> w,
                                    int stride, int d, int columns) {
  const int ty = static_cast<int>(threadIdx.x) / 16, tx = static_cast<int>(threadIdx.x) % 16;
  if (tx >= d) return;
  for (int j = 0; j < columns; j += 4) {
    Vec<float, 4> left[kR];
    FOVEA_UNROLL
    for (int r = 0; r < kR; ++r) left[r] = load<4>(p + ((ty * kR + r) * (kT + 4) + j));
    FOVEA_UNROLL
    for (int n = 0; n < 4; ++n) {
      FOVEA_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        if (tx + 16 * c >= d) break;
        const float right = w[(j + n) * stride + tx + 16 * c];
        FOVEA_UNROLL
        for (int r = 0; r < kR; ++r) acc[r][c] = fma(left[r][n], right, acc[r][c]);
      }
    }
  }
}

// Over the 16 threads of a row.
__device__ inline float row_sum(float x) {
  for (int bits = 8; bits > 0; bits /= 2) x += shuffle_xor(x, bits);
  return x;
}
__device__ inline float row_max(float x) {
  for (int bits = 8; bits > 0; bits /= 2) x = max(x, shuffle_xor(x, bits));
  return x;
}

// ---- forward ------------------------------------------------------------------------------------

template <class Rule, int kD>
__global__ void __launch_bounds__(kFmaThreads, 1)
    fma_forward_kernel(Rule rule, Arguments<float> a) {
  using F = Fma<kD>;
  constexpr int kT = F::forward_tile(), kR = kT / 16, kTile = kT * F::kStride;
  const Shared<float> q = dynamic_shared<float>(), k = q + kTile, v = k + kTile, p = v + kTile;
  const int ty = static_cast<int>(threadIdx.x) / 16, tx = static_cast<int>(threadIdx.x) % 16;
  const ForwardBlock block = forward_block(a, kT, kT);
  const int b = block.b;
  load_rows<kT>(q, F::kStride, a.D, is_wide(a.q, a.D), [&](int r) {
    const int row = block.row0 + r;
    if (row >= block.rows) return Global<const float>(nullptr);
    const RowPlace place = place_of(a, block, row);
    return a.q.at(b, place.h) + place.i * a.q.row;
  });
  float m[kR], l[kR], acc[kR][F::kColumns];
  int head[kR], query[kR];
  FOVEA_UNROLL
  for (int r = 0; r < kR; ++r) {
    const RowPlace place = place_of(a, block, block.row0 + ty * kR + r);
    head[r] = place.h;
    query[r] = place.i;
    m[r] = -INFINITY;
    l[r] = 0.0f;
    if (!(a.sink == nullptr) && block.split == 0) {  // one key more
      const float sink = a.sink[head[r]];
      m[r] = sink * kLog2e;
      l[r] = tx == 0 ? 1.0f : 0.0f;
    }
    FOVEA_UNROLL
    for (int c = 0; c < F::kColumns; ++c) acc[r][c] = 0.0f;
  }
  Tile what = Tile::skip;
  for (int tile = next_tile(a, block, kT, kT, block.tile0, what); tile < block.tile1;
       tile = next_tile(a, block, kT, kT, tile + 1, what)) {
    const int j0 = tile * kT, columns = smaller(kT, a.M - j0);
    sync_block();
    load_rows<kT>(k, F::kStride, a.D, is_wide(a.k, a.D), [&](int r) {
      return j0 + r < a.M ? a.k.at(b, block.hk) + (j0 + r) * a.k.row : Global<const float>(nullptr);
    });
    load_rows<kT>(v, F::kStride, a.Dv, is_wide(a.v, a.Dv), [&](int r) {
      return j0 + r < a.M ? a.v.at(b, block.hk) + (j0 + r) * a.v.row : Global<const float>(nullptr);
    });
    sync_block();
    float s[kR][kR];
    products<kR>(s, q, k, F::kStride, a.D, columns);
    FOVEA_UNROLL
    for (int r = 0; r < kR; ++r) {
      float top = -INFINITY;
      FOVEA_UNROLL
      for (int c = 0; c < kR; ++c) {
        const int j = j0 + tx + 16 * c;
        const bool seen = j < a.M && (what == Tile::full || allowed(a, b, head[r], query[r], j));
        s[r][c] = seen ? score_of<Rule>(a, b, head[r], query[r], j, s[r][c]) : -INFINITY;
        top = max(top, s[r][c]);
      }
      float reference = 0.0f;
      if constexpr (Rule::kOnline) {
        top = max(m[r], row_max(top));
        reference = top == -INFINITY ? 0.0f : top;  // nothing seen: weights 0 of any number
        const float rescale = exp2_fast(m[r] - reference);
        m[r] = top;
        l[r] *= rescale;
        FOVEA_UNROLL
        for (int c = 0; c < F::kColumns; ++c) acc[r][c] *= rescale;
      }
      FOVEA_UNROLL
      for (int c = 0; c < kR; ++c) {
        float w = s[r][c] == -INFINITY ? 0.0f : weight_of(rule, s[r][c], reference);
        l[r] += w;
        if (a.drop_threshold > 0) w *= keep_of(a, b, head[r], query[r], j0 + tx + 16 * c);
        p[(ty * kR + r) * (kT + 4) + tx + 16 * c] = w;
      }
    }
    sync_warp();
    add_products<kR, kT>(acc, p, v, F::kStride, a.Dv, columns);
    sync_warp();
  }
  FOVEA_UNROLL
  for (int r = 0; r < kR; ++r) {
    const int row = block.row0 + ty * kR + r;
    l[r] = row_sum(l[r]);
    const int64_t at = a.row(b, head[r], query[r]);
    const RowEnd end = finish_row<Rule>(m[r], l[r]);
    float broken = 0.0f;
    FOVEA_UNROLL
    for (int c = 0; c < F::kColumns; ++c) {
      const int d = tx + 16 * c;
      if (d >= a.Dv || row >= block.rows) break;
      if (!(a.partial == nullptr)) {
        a.partial[(block.split * int64_t{a.B} * a.H * a.N + at) * (a.Dv + 2) + d] = acc[r][c];
        continue;
      }
      const float x = acc[r][c] * end.factor;
      if (!finite(x)) broken = 1.0f;
      a.out.at(b, head[r])[query[r] * a.out.row + d] = x;
    }
    broken = row_max(broken);
    if (tx > 0 || row >= block.rows) continue;
    if (!(a.partial == nullptr)) {
      const int64_t part = (block.split * int64_t{a.B} * a.H * a.N + at) * (a.Dv + 2) + a.Dv;
      a.partial[part] = m[r];
      a.partial[part + 1] = l[r];
    } else {
      a.lse[at] = end.statistic;
      a.suspect[at] = broken > 0.0f ? 1 : 0;
    }
  }
}

template <class Rule, int kD>
void fma_forward_of(const attention::ScoreCall& call, Stream stream) {
  constexpr int kT = Fma<kD>::forward_tile();
  const auto a = arguments<float, Rule>(call);
  launch<fma_forward_kernel<Rule, kD>>(forward_grid(a, kT), kFmaThreads,
                                       (3 * kT * Fma<kD>::kStride + kT * (kT + 4)) * sizeof(float),
                                       stream, *static_cast<const Rule*>(call.rule), a);
}

template <class Rule>
void fma_forward(const attention::ScoreCall& call, Stream stream) {
  if (is_wide(call)) return wide_forward<Rule, float>(call, stream);
  const int d = call.D > call.Dv ? call.D : call.Dv;
  if (d <= 64)
    fma_forward_of<Rule, 64>(call, stream);
  else if (d <= 128)
    fma_forward_of<Rule, 128>(call, stream);
  else
    fma_forward_of<Rule, 256>(call, stream);
  forward_end<Rule, float>(call, stream);
}

}  // namespace FOVEA_GPU
