// SPDX-License-Identifier: Apache-2.0
#pragma once
// The first step, all chunks at once: sums of gates, factors, scores A, and for the delta rule the
// two inverses of attention/linear/cuda/kernels.h.
//
// Scores with a gate per channel: between sub-chunks J < I of 16 rows by three factors that are
// sums of gates each, (q_i e^(b_i - b_s(I))) e^(b_s(I) - b_t(J)) (k_j e^(b_t(J) - b_j)), s(I) the
// row before I and t(J) the last of J; within a sub-chunk an exponential a term. Channels pass
// through shared memory 32 at a time.
// Inverse: blocks of 16 by substitution, then X21 = -X22 (M21 X11) for 32 and 64.
//
// Bytes a chunk: q, k, g once; writes 64 (64 + 3 G) floats (delta: 64 (192 + 3 G)).
// Cost  64 x 64 Dk multiply-adds (delta: twice, and 2 x 64^3 / 3 for the inverses).

#include "attention/linear/cuda/tile.cuh"

namespace FOVEA_GPU {

constexpr int kSlab = 32, kSlabStride = kSlab + 4, kSlabTile = kChunk * kSlabStride;

// Numbers of shared memory.
constexpr int prepare_floats(bool delta) {
  const int slabs = 6 * kSlabTile + 16 * kSlabStride, inverses = 4 * kTile;
  return delta && inverses > slabs ? inverses : slabs;
}

// acc += x [64, slab] y^T under the gates of slab `b`, for the pairs of rows of this thread. near_x
// = x e^(b_i - b_s(I)), near_y = y e^(b_t(J) - b_j), between [I, J, slab].
__device__ inline void add_gated_products(float (&acc)[4][4], Shared<float> x, Shared<float> y,
                                          Shared<float> b, Shared<float> near_x,
                                          Shared<float> near_y, Shared<float> between,
                                          int channels) {
  const int row = tile_row(), column = tile_column(), I = row / kSub;
  FOVEA_UNROLL
  for (int J = 0; J < 4; ++J) {  // columns x + 16 J are sub-chunk J
    if (J > I) continue;
    const int j = column + kSub * J;
    FOVEA_NO_UNROLL
    for (int p = 0; p < channels; ++p) {
      if (J < I) {
        const float f = between[(4 * I + J) * kSlabStride + p], right = near_y[j * kSlabStride + p];
        FOVEA_UNROLL
        for (int r = 0; r < 4; ++r) {
          const float left = near_x[(row + r) * kSlabStride + p];
          acc[r][J] = fma(left, f * right, acc[r][J]);
        }
      } else {
        const float right = y[j * kSlabStride + p], b_j = b[j * kSlabStride + p];
        FOVEA_UNROLL
        for (int r = 0; r < 4; ++r) {
          const float left = x[(row + r) * kSlabStride + p], b_i = b[(row + r) * kSlabStride + p];
          if (j <= row + r) acc[r][J] = fma(left * expf(b_i - b_j), right, acc[r][J]);
        }
      }
    }
  }
}

// x = (I + m)^-1 of a strictly lower m; all [64, 64] kStride apart. Ends with a barrier.
__device__ inline void invert(Shared<float> x, Shared<float> m, Shared<float> part) {
  const int t = thread_number();
  for (int e = t; e < kSquare; e += kTileThreads)
    x[e / kChunk * kStride + e % kChunk] = e / kChunk == e % kChunk ? 1.0f : 0.0f;
  sync_block();
  if (t < kChunk) {  // column t of its diagonal block
    const int end = (t / kSub + 1) * kSub;
    for (int i = t + 1; i < end; ++i) {
      float total = 0.0f;
      for (int k = t; k < i; ++k) {
        const float left = m[i * kStride + k], right = x[k * kStride + t];
        total = fma(left, right, total);
      }
      x[i * kStride + t] = -total;
    }
  }
  sync_block();
  for (int size = kSub; size < kChunk; size *= 2) {
    const int count = kChunk / 2 * size;  // elements of all blocks X21
    for (int e = t; e < count; e += kTileThreads) {
      const int c0 = e / (size * size) * 2 * size, i = e / size % size + c0 + size,
                j = e % size + c0;
      float total = 0.0f;
      for (int k = j; k < c0 + size; ++k) {
        const float left = m[i * kStride + k], right = x[k * kStride + j];
        total = fma(left, right, total);
      }
      part[i * kStride + j] = total;
    }
    sync_block();
    for (int e = t; e < count; e += kTileThreads) {
      const int c0 = e / (size * size) * 2 * size, i = e / size % size + c0 + size,
                j = e % size + c0;
      float total = 0.0f;
      for (int k = c0 + size; k <= i; ++k) {
        const float left = x[i * kStride + k], right = part[k * kStride + j];
        total = fma(left, right, total);
      }
      // X22 and X21 are apart: nobody reads what is written here.
      x[i * kStride + j] = -total;
    }
    sync_block();
  }
}

template <typename T, bool kDelta>
__global__ void __launch_bounds__(kTileThreads) chunk_prepare_kernel(ChunkArguments<T> a) {
  FOVEA_SHARED(int, document, kChunk);
  FOVEA_SHARED(int, flags, kChunk);
  FOVEA_SHARED(float, beta, kChunk);
  const Shared<float> q = dynamic_shared<float>(), k = q + kSlabTile, b = k + kSlabTile,
                      near_q = b + kSlabTile, near_k = near_q + kSlabTile,
                      far_k = near_k + kSlabTile, between = far_k + kSlabTile;
  const ChunkPlace at = chunk_place(a, blockIdx.x);
  const int t = thread_number(), G = a.G;
  count_documents(document, flags, a, at);
  float scores[4][4], keys[4][4];
  clear(scores);
  clear(keys);
  for (int c0 = 0; c0 < a.Dk; c0 += kSlab) {
    const int channels = a.Dk - c0 < kSlab ? a.Dk - c0 : kSlab;
    const bool gates = G > 1 || c0 == 0;  // one gate: its sums are made with the first channels
    const int width = G > 1 ? channels : 1;
    sync_block();
    load_tile(q, kSlabStride, a.q, at, c0, a.Dk, kSlab);
    load_tile(k, kSlabStride, a.k, at, c0, a.Dk, kSlab);
    if (gates && t < width) {
      float sum = 0.0f;
      for (int i = 0; i < kChunk; ++i) {
        const int before = i > 0 ? int(document[i - 1]) : 0, own = document[i];
        if (!(a.g.data == nullptr) && i < at.rows && own == before) {
          const float gate = a.g.at(at.b, at.h, at.token0 + i)[c0 + t];
          sum += gate;
        }
        b[i * kSlabStride + t] = sum;
      }
    }
    sync_block();
    if (gates) {
      const int last_document = document[kChunk - 1];
      for (int e = t; e < kChunk * width; e += kTileThreads) {
        const int i = e / width, c = e % width, own = document[i];
        const float sum = b[i * kSlabStride + c], end = b[(kChunk - 1) * kSlabStride + c];
        const int64_t to = (at.index * kChunk + i) * G + c0 + c;
        a.sums[to] = sum;
        a.from_state[to] = own == 0 && i < at.rows ? expf(sum) : 0.0f;
        a.to_state[to] = own == last_document && i < at.rows ? expf(end - sum) : 0.0f;
        if (i == kChunk - 1) a.decay[at.index * G + c0 + c] = own == 0 ? expf(end) : 0.0f;
      }
    }
    if (G == 1) {
      const int row = tile_row(), column = tile_column();
      FOVEA_UNROLL_2
      for (int p = 0; p < channels; ++p) {
        FOVEA_UNROLL
        for (int c = 0; c < 4; ++c) {
          const float right = k[(column + 16 * c) * kSlabStride + p];
          FOVEA_UNROLL
          for (int r = 0; r < 4; ++r) {
            const float left = q[(row + r) * kSlabStride + p];
            scores[r][c] = fma(left, right, scores[r][c]);
            if constexpr (kDelta) {
              const float key = k[(row + r) * kSlabStride + p];
              keys[r][c] = fma(key, right, keys[r][c]);
            }
          }
        }
      }
      continue;
    }
    for (int e = t; e < kChunk * channels; e += kTileThreads) {
      const int i = e / channels, c = e % channels, i0 = i / kSub * kSub;
      const float sum = b[i * kSlabStride + c], end = b[(i0 + kSub - 1) * kSlabStride + c],
                  key = k[i * kSlabStride + c], query = q[i * kSlabStride + c];
      float before = 0.0f;
      if (i0 > 0) before = b[(i0 - 1) * kSlabStride + c];
      const float near = expf(sum - before);
      near_q[i * kSlabStride + c] = query * near;
      near_k[i * kSlabStride + c] = key * near;
      far_k[i * kSlabStride + c] = key * expf(end - sum);
      const int pair = i;  // rows 0 to 15 also make the factors between sub-chunks
      if (pair < 16 && pair % 4 < pair / 4) {
        const float s = b[(pair / 4 * kSub - 1) * kSlabStride + c],
                    u = b[(pair % 4 * kSub + kSub - 1) * kSlabStride + c];
        between[pair * kSlabStride + c] = expf(s - u);
      }
    }
    sync_block();
    add_gated_products(scores, q, k, b, near_q, far_k, between, channels);
    if constexpr (kDelta) add_gated_products(keys, k, k, b, near_k, far_k, between, channels);
  }
  for_elements([&](int r, int c, int i, int j) {
    const int own = document[i], other = document[j];
    const bool seen = j <= i && i < at.rows && own == other;
    float ratio = seen ? 1.0f : 0.0f;
    if (seen && G == 1) {
      const float b_i = b[i * kSlabStride], b_j = b[j * kSlabStride];
      ratio = expf(b_i - b_j);
    }
    a.scores[at.index * kSquare + i * kChunk + j] = seen ? scores[r][c] * ratio : 0.0f;
    keys[r][c] = seen && j < i ? keys[r][c] * ratio : 0.0f;
  });
  if constexpr (kDelta) {
    if (t < kChunk) {
      float weight = 0.0f;
      if (t < at.rows) weight = a.beta.at(at.b, at.h, at.token0 + t)[0];
      beta[t] = weight;
    }
    const Shared<float> x = dynamic_shared<float>(), m = x + kTile, part = m + kTile;
    for (int pass = 0; pass < (a.adjoint_inverse == nullptr ? 1 : 2); ++pass) {
      sync_block();
      for_elements([&](int r, int c, int i, int j) {
        const float weight = beta[pass == 0 ? j : i];
        m[i * kStride + j] = keys[r][c] * weight;
      });
      sync_block();
      invert(x, m, part);
      const Global<float> to = pass == 0 ? a.inverse : a.adjoint_inverse;
      for (int e = t; e < kSquare; e += kTileThreads) {
        const float value = x[e / kChunk * kStride + e % kChunk];
        to[at.index * kSquare + e] = value;
      }
    }
  }
}

}  // namespace FOVEA_GPU
