// SPDX-License-Identifier: Apache-2.0
#pragma once
// What the kernels of the linear and the delta engine share: their argument, tiles of 64 rows in
// shared memory, and products of tiles.
//
// 256 threads, 16 x 16: thread (y, x) has rows 4 y + r and columns x + 16 c of a 64 x 64 result, r,
// c < 4. Tiles of 64 columns stand 68 apart: 16-byte reads of the 16 rows of a column group meet
// no bank more than twice.

#include "attention/linear/cuda/kernels.h"
#include "core/cuda/kernel.cuh"

#if defined(__CUDACC__)
#define FOVEA_UNROLL_2 _Pragma("unroll 2")
#else
#define FOVEA_UNROLL_2
#endif

namespace FOVEA_GPU {

constexpr int kChunk = 64, kSub = 16, kStride = kChunk + 4, kTileThreads = 256;
constexpr int kTile = kChunk * kStride, kSquare = kChunk * kChunk;

template <typename T>
struct ChunkRows {
  Global<T> data;
  int64_t batch, head, row;
  bool wide;  // four elements may be read at once
  __device__ auto at(int b, int h, int64_t token) const {
    return data + (b * batch + h * head + token * row);
  }
};

template <typename T>
struct ChunkArguments {
  int B, H, N, Dk, Dv, G, chunks;
  ChunkRows<const T> q, k, v, dout;
  ChunkRows<const float> g, beta;
  ChunkRows<T> out, dq, dk, dv;
  Global<const uint8_t> starts;
  Global<const float> state, dlast;
  Global<float> last, dfirst, dg, dbeta, sums, from_state, to_state, decay, scores, inverse,
      adjoint_inverse, states, dstates, errors, adjoints;
};

template <typename T>
ChunkRows<T> chunk_rows(const attention::TokenRows& x, int columns) {
  const bool wide = ((x.batch | x.head | x.row | columns) & 3) == 0 &&
                    reinterpret_cast<uintptr_t>(x.data) % (4 * sizeof(T)) == 0;
  return {static_cast<T*>(x.data), x.batch, x.head, x.row, wide};
}

template <typename T>
ChunkArguments<T> chunk_arguments(const attention::ChunkCall& c) {
  return {c.B,
          c.H,
          c.N,
          c.Dk,
          c.Dv,
          c.G,
          c.chunks,
          chunk_rows<const T>(c.q, c.Dk),
          chunk_rows<const T>(c.k, c.Dk),
          chunk_rows<const T>(c.v, c.Dv),
          chunk_rows<const T>(c.dout, c.Dv),
          chunk_rows<const float>(c.g, c.G),
          chunk_rows<const float>(c.beta, 1),
          chunk_rows<T>(c.out, c.Dv),
          chunk_rows<T>(c.dq, c.Dk),
          chunk_rows<T>(c.dk, c.Dk),
          chunk_rows<T>(c.dv, c.Dv),
          c.starts,
          c.state,
          c.dlast,
          c.last,
          c.dfirst,
          c.dg,
          c.dbeta,
          c.sums,
          c.from_state,
          c.to_state,
          c.decay,
          c.scores,
          c.inverse,
          c.adjoint_inverse,
          c.states,
          c.dstates,
          c.errors,
          c.adjoints};
}

// The chunk a block works on: number `index` of [B, H, chunks].
struct ChunkPlace {
  int b, h, token0, rows;
  int64_t index;
};
template <typename T>
__device__ inline ChunkPlace chunk_place(const ChunkArguments<T>& a, int64_t index) {
  const int head = static_cast<int>(index / a.chunks),
            token0 = static_cast<int>(index % a.chunks) * kChunk;
  return {head / a.H, head % a.H, token0, a.N - token0 < kChunk ? a.N - token0 : kChunk, index};
}

__device__ inline int thread_number() { return static_cast<int>(threadIdx.x); }
__device__ inline int tile_row() { return static_cast<int>(threadIdx.x) / 16 * 4; }
__device__ inline int tile_column() { return static_cast<int>(threadIdx.x) % 16; }

// ---- tiles --------------------------------------------------------------------------------------

// to [64, width] (ld apart; width a multiple of 4) = columns [c0, c0 + width) of the chunk's rows,
// times factors [64, G] where there are any; 0 past the chunk's rows and past `columns`.
template <typename T>
__device__ inline void load_tile(Shared<float> to, int ld, const ChunkRows<const T>& x,
                                 const ChunkPlace& at, int c0, int columns, int width,
                                 Global<const float> factors = nullptr, int gates = 1) {
  const int groups = width / 4;
  for (int e = thread_number(); e < kChunk * groups; e += kTileThreads) {
    const int i = e / groups, c = e % groups * 4;
    Vec<float, 4> values{{0.0f, 0.0f, 0.0f, 0.0f}};
    if (i < at.rows) {
      const Global<const T> from = x.at(at.b, at.h, at.token0 + i) + (c0 + c);
      if (x.wide && c0 + c + 4 <= columns) {
        const auto four = load<4>(from);
        FOVEA_UNROLL
        for (int n = 0; n < 4; ++n) values[n] = static_cast<float>(four[n]);
      } else {
        FOVEA_UNROLL
        for (int n = 0; n < 4; ++n) {
          if (c0 + c + n < columns) {
            const T value = from[n];
            values[n] = static_cast<float>(value);
          }
        }
      }
      if (!(factors == nullptr)) {
        FOVEA_UNROLL
        for (int n = 0; n < 4; ++n) {
          if (c0 + c + n < columns) {
            const float factor = factors[i * gates + (gates == 1 ? 0 : c0 + c + n)];
            values[n] *= factor;
          }
        }
      }
    }
    store(to + (i * ld + c), values);
  }
}

// to [64, 64] = rows [r0, r0 + 64) and columns [c0, c0 + 64) of from [rows, columns]; 0 past them.
__device__ inline void load_square(Shared<float> to, Global<const float> from, int r0, int rows,
                                   int c0, int columns) {
  const bool wide = columns % 4 == 0;
  for (int e = thread_number(); e < kChunk * kSub; e += kTileThreads) {
    const int i = e / kSub, c = e % kSub * 4;
    Vec<float, 4> values{{0.0f, 0.0f, 0.0f, 0.0f}};
    if (r0 + i < rows) {
      const Global<const float> row = from + (int64_t{r0 + i} * columns + c0 + c);
      if (wide) {
        if (c0 + c < columns) values = load<4>(row);
      } else {
        FOVEA_UNROLL
        for (int n = 0; n < 4; ++n)
          if (c0 + c + n < columns) values[n] = row[n];
      }
    }
    store(to + (i * kStride + c), values);
  }
}

// ---- products: acc[r][c] += ... over n, a multiple of 4 -----------------------------------------

__device__ inline void clear(float (&acc)[4][4]) {
  FOVEA_UNROLL
  for (int r = 0; r < 4; ++r) {
    FOVEA_UNROLL
    for (int c = 0; c < 4; ++c) acc[r][c] = 0.0f;
  }
}

// x [64, n] y [n, 64]; kTransposed: x^T with x [n, 64]
template <bool kTransposed>
__device__ inline void add_product(float (&acc)[4][4], Shared<float> x, int ldx, Shared<float> y,
                                   int n) {
  const int row = tile_row(), column = tile_column();
  FOVEA_UNROLL_2
  for (int p = 0; p < n; p += 4) {
    Vec<float, 4> left[4];
    FOVEA_UNROLL
    for (int r = 0; r < 4; ++r)
      left[r] =
          kTransposed ? load<4>(x + ((p + r) * ldx + row)) : load<4>(x + ((row + r) * ldx + p));
    FOVEA_UNROLL
    for (int m = 0; m < 4; ++m) {
      FOVEA_UNROLL
      for (int c = 0; c < 4; ++c) {
        const float right = y[(p + m) * kStride + column + 16 * c];
        FOVEA_UNROLL
        for (int r = 0; r < 4; ++r)
          acc[r][c] = fma(kTransposed ? left[m][r] : left[r][m], right, acc[r][c]);
      }
    }
  }
}

// x [64, n] y^T with y [64, n], both kStride apart
__device__ inline void add_product_right_transposed(float (&acc)[4][4], Shared<float> x,
                                                    Shared<float> y, int n) {
  const int row = tile_row(), column = tile_column();
  FOVEA_NO_UNROLL
  for (int p = 0; p < n; p += 4) {
    Vec<float, 4> left[4];
    FOVEA_UNROLL
    for (int r = 0; r < 4; ++r) left[r] = load<4>(x + ((row + r) * kStride + p));
    FOVEA_UNROLL
    for (int c = 0; c < 4; ++c) {
      const Vec<float, 4> right = load<4>(y + ((column + 16 * c) * kStride + p));
      FOVEA_UNROLL
      for (int r = 0; r < 4; ++r) {
        FOVEA_UNROLL
        for (int m = 0; m < 4; ++m) acc[r][c] = fma(left[r][m], right[m], acc[r][c]);
      }
    }
  }
}

// f(r, c, row, column) for each element of this thread.
template <typename F>
__device__ inline void for_elements(F&& f) {
  const int row = tile_row(), column = tile_column();
  FOVEA_UNROLL
  for (int r = 0; r < 4; ++r) {
    FOVEA_UNROLL
    for (int c = 0; c < 4; ++c) f(r, c, row + r, column + 16 * c);
  }
}

// ---- rows of the call ---------------------------------------------------------------------------

template <typename T>
__device__ inline float beta_of(const ChunkArguments<T>& a, const ChunkPlace& at, int row) {
  if (row >= at.rows) return 0.0f;
  const float weight = a.beta.at(at.b, at.h, at.token0 + row)[0];
  return weight;
}

// this thread's elements of a tile [64, Dv] of a chunk, columns from d0 on
template <typename T>
__device__ inline void store_rows(const ChunkRows<T>& to, const ChunkPlace& at, int c0, int columns,
                                  const float (&acc)[4][4]) {
  for_elements([&](int r, int c, int i, int j) {
    if (i < at.rows && c0 + j < columns)
      to.at(at.b, at.h, at.token0 + i)[c0 + j] = static_cast<T>(acc[r][c]);
  });
}

// ---- documents ----------------------------------------------------------------------------------

// document[i] = starts at or before row i within the chunk; row past the end as the last. Ends with
// a barrier; `flags` holds 64 ints.
template <typename T>
__device__ inline void count_documents(Shared<int> document, Shared<int> flags,
                                       const ChunkArguments<T>& a, const ChunkPlace& at) {
  const int i = thread_number();
  if (i < kChunk) {
    int flag = 0;
    if (!(a.starts == nullptr) && i < at.rows) {
      const uint8_t start = a.starts[int64_t{at.b} * a.N + at.token0 + i];
      flag = start != 0 ? 1 : 0;
    }
    flags[i] = flag;
  }
  sync_block();
  if (i < kChunk) {
    int total = 0;
    for (int j = 0; j <= i; ++j) {
      const int flag = flags[j];
      total += flag;
    }
    document[i] = total;
  }
  sync_block();
}

}  // namespace FOVEA_GPU
