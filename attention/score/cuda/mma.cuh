// SPDX-License-Identifier: Apache-2.0
#pragma once
// Tiles of bf16 rows in shared memory and their fragments, for mma.sync.m16n8k16.
//
// A tile of kRows x kD lies in columns of kSpan = 64 (32) values; a row of one is 128 (64) bytes,
// whose 16-byte chunks are exchanged by an xor with the row, so that 8 rows of a matrix and 8
// chunks of a row both meet every bank once.

#include "attention/score/cuda/tile.cuh"

namespace FOVEA_GPU {

constexpr int kMmaThreads = 128;

__device__ inline int lane_of_warp() { return static_cast<int>(threadIdx.x) % kWarp; }

template <int kRows, int kD>
struct MmaTile {
  static constexpr int kSpan = kD % 64 == 0 ? 64 : 32, kChunks = kSpan / 8;
  static constexpr int kValues = kRows * kD;
  // Of the 16-byte chunk that holds columns [8 chunk, 8 chunk + 8) of a row: in values.
  __device__ static int at(int row, int chunk) {
    const int turn = kSpan == 64 ? row & 7 : (row >> 1) & 3;
    return (chunk / kChunks) * (kRows * kSpan) + row * kSpan + (((chunk % kChunks) ^ turn) << 3);
  }
};

// Starts the copy of rows [0, kRows) from row(r), null where there is none: zeros, as are columns
// past d, a multiple of 8.
template <int kRows, int kD, int kThreads = kMmaThreads, typename RowAt>
__device__ inline void copy_rows(Shared<bf16> to, Global<const bf16> any, int d, RowAt&& row) {
  constexpr int kChunks = kD / 8;
  const int thread = fresh(static_cast<int>(threadIdx.x));
  FOVEA_UNROLL_BY(4)
  for (int n = 0; n < (kRows * kChunks + kThreads - 1) / kThreads; ++n) {
    const int e = n * kThreads + thread, r = e / kChunks, c = e % kChunks;
    if (kRows * kChunks % kThreads > 0 && e >= kRows * kChunks) break;
    const int64_t offset = row(r);
    const bool there = offset >= 0 && c * 8 < d;
    copy_async(to + MmaTile<kRows, kD>::at(r, c), any + (there ? offset + c * 8 : 0),
               there ? 16 : 0);
  }
}

// A of rows [row0, row0 + 16), columns [16 k, 16 k + 16).
template <typename Tile_>
__device__ inline void load_a(uint32_t (&a)[4], Shared<bf16> tile, int row0, int k,
                              int lane = lane_of_warp()) {
  load_matrices(a, tile + Tile_::at(row0 + lane % 16, 2 * k + lane / 16));
}
// B for n = rows [row0, row0 + 16) (two n-tiles), k = columns [16 k, 16 k + 16).
template <typename Tile_>
__device__ inline void load_b(uint32_t (&b)[2][2], Shared<bf16> tile, int row0, int k,
                              int lane = lane_of_warp()) {
  uint32_t r[4];
  load_matrices(r, tile + Tile_::at(row0 + lane % 8 + 8 * (lane / 16), 2 * k + lane / 8 % 2));
  b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
}
// B for k = rows [row0, row0 + 16), n = columns [16 n, 16 n + 16) (two n-tiles).
template <typename Tile_>
__device__ inline void load_b_rows(uint32_t (&b)[2][2], Shared<bf16> tile, int row0, int n,
                                   int lane = lane_of_warp()) {
  uint32_t r[4];
  load_matrices_transposed(r, tile + Tile_::at(row0 + lane % 16, 2 * n + lane / 16));
  b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
}
// D of two neighbouring n-tiles is the A of the next product.
__device__ inline void pack_a(uint32_t (&a)[4], const float (&left)[4], const float (&right)[4]) {
  a[0] = pack(left[0], left[1]);
  a[1] = pack(left[2], left[3]);
  a[2] = pack(right[0], right[1]);
  a[3] = pack(right[2], right[3]);
}

// A band's scores by way of shared memory, where each lane meets whole columns: what is seldom done
// to scores (masks' edges, biases, dropout) is a loop there, and costs the registers of the usual
// case nothing. `room` is the warp's.
template <int kKeys>
struct Band {
  static constexpr int kStride = kKeys + 8, kValues = 16 * kStride;  // fragments meet no bank twice
  static __device__ void put(Shared<float> room, const float (&s)[kKeys / 8][4]) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    FOVEA_UNROLL
    for (int n = 0; n < kKeys / 8; ++n) {
      FOVEA_UNROLL
      for (int half = 0; half < 2; ++half)
        store(room + ((lane / 4 + 8 * half) * kStride + 8 * n + lane % 4 * 2),
              Vec<float, 2>{{s[n][2 * half], s[n][2 * half + 1]}});
    }
  }
  static __device__ void take(Shared<float> room, float (&s)[kKeys / 8][4]) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    FOVEA_UNROLL
    for (int n = 0; n < kKeys / 8; ++n) {
      FOVEA_UNROLL
      for (int half = 0; half < 2; ++half) {
        const Vec<float, 2> pair =
            load<2>(room + ((lane / 4 + 8 * half) * kStride + 8 * n + lane % 4 * 2));
        s[n][2 * half] = pair[0];
        s[n][2 * half + 1] = pair[1];
      }
    }
  }
  // f(place, row, column) of each element, place = row kStride + column.
  template <typename F>
  static __device__ void each(F&& f) {
    FOVEA_NO_UNROLL
    for (int r = 0; r < 16; ++r) {
      FOVEA_NO_UNROLL
      for (int c = static_cast<int>(threadIdx.x) % kWarp; c < kKeys; c += kWarp)
        f(r * kStride + c, r, c);
    }
  }
};

}  // namespace FOVEA_GPU
