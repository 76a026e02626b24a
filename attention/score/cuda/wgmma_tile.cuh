// SPDX-License-Identifier: Apache-2.0
#pragma once
// Tiles of bf16 rows in shared memory as TMA brings them and wgmma multiplies them, and what a
// thread of a warpgroup holds of scores.
//
// A tile of kRows x kD lies in boxes of 64 columns, each [kRows][64] with a swizzle of 128 bytes;
// columns past a tensor's are zeros, as are rows past its last.
//
// Value i of a thread's accumulators is row 16 w + lane / 4 + 8 (i >> 1 & 1) of the warpgroup's 64
// (w its warp) and column 8 (i >> 2) + 2 (lane % 4) + (i & 1): it has two rows, `half` 0 and 1.

#include "attention/score/cuda/tile.cuh"
#include "core/cuda/kernel90.cuh"

namespace FOVEA_GPU {

constexpr int kGroupThreads = 128;  // of a warpgroup
constexpr int kGroupRows = 64;      // of its products
constexpr int kBoxColumns = 64;

template <int kRows, int kD>
struct BoxTile {
  static constexpr int kBoxes = (kD + kBoxColumns - 1) / kBoxColumns,
                       kBoxValues = kRows * kBoxColumns, kBoxBytes = 2 * kBoxValues,
                       kValues = kBoxes * kBoxValues, kBytes = 2 * kValues;

  // Rows [row, row + kRows) of (b, h), by one thread. kBytes arrive at the barrier.
  static __device__ void load(Shared<bf16> to, const TensorMap& map, Shared<Barrier> barrier,
                              int row, int h, int b) {
    FOVEA_UNROLL
    for (int box = 0; box < kBoxes; ++box)
      load_tile(to + box * kBoxValues, map, barrier, box * kBoxColumns, row, h, b);
  }
  static __device__ void store(const TensorMap& map, Shared<bf16> from, int row, int h, int b) {
    FOVEA_UNROLL
    for (int box = 0; box < kBoxes; ++box)
      store_tile(map, from + box * kBoxValues, box * kBoxColumns, row, h, b);
  }

  // What moves a K-major operand to its columns [16 k, 16 k + 16), in bytes.
  static __device__ constexpr int column_bytes(int k) {
    return k / 4 * kBoxBytes + k % 4 * k16_bytes(Major::k);
  }
  // What moves an MN-major operand, whose k are the tile's rows, to its rows [16 k, 16 k + 16).
  static __device__ constexpr int row_bytes(int k) { return k * k16_bytes(Major::mn); }
};

// d [64, kRows] = a [64, kD] b [kRows, kD]^T, started.
template <int kRows, int kD>
__device__ inline void start_scores(float (&d)[kRows / 2], Shared<bf16> a, Shared<bf16> b) {
  const Descriptor left = k_major(a), right = k_major(b);
  FOVEA_UNROLL
  for (int k = 0; k < kD / 16; ++k)
    wgmma<kRows>(d, left + BoxTile<kGroupRows, kD>::column_bytes(k),
                 right + BoxTile<kRows, kD>::column_bytes(k), k > 0);
}
// d [64, kD] += a [64, kRows] b [kRows, kD], started; a in registers, 16 columns each.
template <int kRows, int kD>
__device__ inline void start_sums(float (&d)[kD / 2], const uint32_t (&a)[kRows / 16][4],
                                  Shared<bf16> b) {
  const Descriptor right = mn_major(b, BoxTile<kRows, kD>::kBoxBytes);
  FOVEA_UNROLL
  for (int k = 0; k < kRows / 16; ++k)
    wgmma<kD, Major::mn>(d, a[k], right + BoxTile<kRows, kD>::row_bytes(k), true);
}
// Accumulators as the left operand of the next product.
template <int kColumns>
__device__ inline void pack_left(uint32_t (&a)[kColumns / 16][4], const float (&d)[kColumns / 2]) {
  FOVEA_UNROLL
  for (int k = 0; k < kColumns / 16; ++k) {
    FOVEA_UNROLL
    for (int r = 0; r < 4; ++r) a[k][r] = pack(d[8 * k + 2 * r], d[8 * k + 2 * r + 1]);
  }
}

// The warpgroup's accumulators [64, kD] into `room`, a BoxTile of 64 rows, by whole warps.
template <int kD>
__device__ inline void put_rows(Shared<bf16> room, const float (&d)[kD / 2]) {
  const int t = fresh(static_cast<int>(threadIdx.x) % kGroupThreads), lane = t % kWarp,
            row = t / kWarp * 16 + lane % 16;  // whose address this lane gives
  FOVEA_UNROLL
  for (int k = 0; k < kD / 16; ++k) {
    uint32_t pairs[4];
    FOVEA_UNROLL
    for (int r = 0; r < 4; ++r) pairs[r] = pack(d[8 * k + 2 * r], d[8 * k + 2 * r + 1]);
    const int chunk = 2 * k + lane / 16;
    store_matrices(room + (chunk / 8 * BoxTile<kGroupRows, kD>::kBoxValues + row * kBoxColumns +
                           ((chunk % 8) ^ (row & 7)) * 8),
                   pairs);
  }
}

// The map of rows [B, heads, n, d] in boxes of `rows`.
inline TensorMap rows_map(const attention::ScoreRows& r, int B, int heads, int n, int d, int rows) {
  // The stride of a dim of 1 says nothing, and may be anything.
  const auto stride = [&](int64_t length, int64_t of) { return length > 1 ? of : 8; };
  return tensor_map(r.data, Dtype::bf16, {d, n, heads, B},
                    {stride(n, r.row), stride(heads, r.head), stride(B, r.batch)},
                    {kBoxColumns, rows, 1, 1}, Swizzle::b128);
}

}  // namespace FOVEA_GPU
