// SPDX-License-Identifier: Apache-2.0
#pragma once
// The second step: a block walks over the chunks of one head with 64 columns of the state in shared
// memory, which do not mix. Forward with the outputs fused; before a backward, forward without them
// and then back.
//
// forward   delta: E = (I + L diag(beta))^-1 (V - (K from) S), U = diag(beta) E; linear: U = V
//           O = (Q from) S + A U;  S <- e^b_last S + (K to)^T U
// backward  dU = A^T dO + (K to) dS; linear: dV = dU
//           delta: Y = (I + diag(beta) L)^-T dU, dV = diag(beta) Y
//           dS <- e^b_last dS + (Q from)^T dO [- (K from)^T dV]
//
// Bytes a chunk and 64 columns: q, k (delta: k twice), A (delta: and the inverse) 16 KiB, v, out.
// Cost  64 (4 Dk + 64) multiply-adds a row (delta: 64 (6 Dk + 128)); limit: shared memory, 20
//       reads of 4 to 16 bytes for 64 multiply-adds.
// Determinism  bitwise: each sum belongs to one thread, in order.

#include "attention/linear/cuda/tile.cuh"

namespace FOVEA_GPU {

constexpr int pad4(int n) { return (n + 3) / 4 * 4; }
constexpr int panels_of(int n) { return (n + kChunk - 1) / kChunk; }

// Numbers of shared memory: rows of keys or queries, the state's columns, and tiles.
constexpr int walk_floats(int Dk, int tiles) {
  return kChunk * (pad4(Dk) + 4) + (panels_of(Dk) + tiles) * kTile;
}

// Columns [d0, d0 + 64) of [Dk, Dv] to and from shared memory, [panels 64, 64].
__device__ inline void load_state(Shared<float> state, Global<const float> from, int Dk, int Dv,
                                  int d0) {
  for (int e = thread_number(); e < panels_of(Dk) * kSquare; e += kTileThreads) {
    const int c = e / kChunk, d = e % kChunk;
    float value = 0.0f;
    if (!(from == nullptr) && c < Dk && d0 + d < Dv) value = from[int64_t{c} * Dv + d0 + d];
    state[c * kStride + d] = value;
  }
}
__device__ inline void store_state(Global<float> to, Shared<float> state, int Dk, int Dv, int d0) {
  for (int e = thread_number(); e < Dk * kChunk; e += kTileThreads) {
    const int c = e / kChunk, d = e % kChunk;
    if (d0 + d >= Dv) continue;
    const float value = state[c * kStride + d];
    to[int64_t{c} * Dv + d0 + d] = value;
  }
}

// state = decay state + sign x^T y, x [64, Dk], y [64, 64]; decay [G], or null: 1.
__device__ inline void add_to_state(Shared<float> state, Global<const float> decay, int G,
                                    float sign, Shared<float> x, int ldx, Shared<float> y, int Dk) {
  for (int panel = 0; panel < panels_of(Dk); ++panel) {
    const int c0 = panel * kChunk;
    if (c0 + tile_row() >= Dk) continue;
    float acc[4][4];
    clear(acc);
    add_product<true>(acc, x + c0, ldx, y, kChunk);
    for_elements([&](int r, int c, int i, int j) {
      if (c0 + i >= Dk) return;
      float factor = 1.0f;
      if (!(decay == nullptr)) factor = decay[G == 1 ? 0 : c0 + i];
      const float before = state[(c0 + i) * kStride + j];
      state[(c0 + i) * kStride + j] = fma(factor, before, sign * acc[r][c]);
    });
  }
}

// The state of a head as a block holds it, or null.
template <typename P>
__device__ inline P head_state(P states, int64_t index, int Dk, int Dv) {
  return states == nullptr ? states : states + index * Dk * Dv;
}

template <typename T, bool kDelta>
__global__ void __launch_bounds__(kTileThreads) chunk_walk_kernel(ChunkArguments<T> a) {
  const int padded = pad4(a.Dk), ldx = padded + 4, blocks = panels_of(a.Dv);
  const Shared<float> x = dynamic_shared<float>(), state = x + kChunk * ldx,
                      v = state + panels_of(a.Dk) * kTile, m = v + kTile;
  const int64_t head = blockIdx.x / blocks;
  const int d0 = static_cast<int>(blockIdx.x % blocks) * kChunk;
  load_state(state, head_state(a.state, head, a.Dk, a.Dv), a.Dk, a.Dv, d0);
  for (int chunk = 0; chunk < a.chunks; ++chunk) {
    const ChunkPlace at = chunk_place(a, head * a.chunks + chunk);
    const Global<const float> from = a.from_state + at.index * kChunk * a.G,
                              to = a.to_state + at.index * kChunk * a.G;
    float acc[4][4];
    sync_block();
    if (!(a.states == nullptr))
      store_state(a.states + at.index * a.Dk * a.Dv, state, a.Dk, a.Dv, d0);
    load_tile(v, kStride, a.v, at, d0, a.Dv, kChunk);
    if constexpr (kDelta) {
      load_tile(x, ldx, a.k, at, 0, a.Dk, padded, from, a.G);
      load_square(m, a.inverse + at.index * kSquare, 0, kChunk, 0, kChunk);
      sync_block();
      clear(acc);
      add_product<false>(acc, x, ldx, state, padded);
      for_elements([&](int r, int c, int i, int j) { v[i * kStride + j] += -acc[r][c]; });
      sync_block();
      clear(acc);
      add_product<false>(acc, m, kStride, v, kChunk);
      sync_block();
      for_elements([&](int r, int c, int i, int j) {
        if (!(a.errors == nullptr) && d0 + j < a.Dv)
          a.errors[(at.index * kChunk + i) * a.Dv + d0 + j] = acc[r][c];
        v[i * kStride + j] = beta_of(a, at, i) * acc[r][c];
      });
      sync_block();
    }
    if (!(a.out.data == nullptr)) {
      load_tile(x, ldx, a.q, at, 0, a.Dk, padded, from, a.G);
      load_square(m, a.scores + at.index * kSquare, 0, kChunk, 0, kChunk);
      sync_block();
      clear(acc);
      add_product<false>(acc, x, ldx, state, padded);
      add_product<false>(acc, m, kStride, v, kChunk);
      store_rows(a.out, at, d0, a.Dv, acc);
      sync_block();
    }
    load_tile(x, ldx, a.k, at, 0, a.Dk, padded, to, a.G);
    sync_block();
    add_to_state(state, a.decay + at.index * a.G, a.G, 1.0f, x, ldx, v, a.Dk);
  }
  sync_block();
  store_state(a.last + head * a.Dk * a.Dv, state, a.Dk, a.Dv, d0);
}

template <typename T, bool kDelta>
__global__ void __launch_bounds__(kTileThreads) chunk_walk_back_kernel(ChunkArguments<T> a) {
  const int padded = pad4(a.Dk), ldx = padded + 4, blocks = panels_of(a.Dv);
  const Shared<float> x = dynamic_shared<float>(), state = x + kChunk * ldx,
                      out = state + panels_of(a.Dk) * kTile, m = out + kTile, y = m + kTile;
  const int64_t head = blockIdx.x / blocks;
  const int d0 = static_cast<int>(blockIdx.x % blocks) * kChunk;
  load_state(state, head_state(a.dlast, head, a.Dk, a.Dv), a.Dk, a.Dv, d0);
  for (int chunk = a.chunks - 1; chunk >= 0; --chunk) {
    const ChunkPlace at = chunk_place(a, head * a.chunks + chunk);
    const Global<const float> from = a.from_state + at.index * kChunk * a.G,
                              to = a.to_state + at.index * kChunk * a.G;
    float acc[4][4];
    sync_block();
    store_state(a.dstates + at.index * a.Dk * a.Dv, state, a.Dk, a.Dv, d0);
    load_tile(out, kStride, a.dout, at, d0, a.Dv, kChunk);
    load_tile(x, ldx, a.k, at, 0, a.Dk, padded, to, a.G);
    load_square(m, a.scores + at.index * kSquare, 0, kChunk, 0, kChunk);
    sync_block();
    clear(acc);
    add_product<false>(acc, x, ldx, state, padded);
    add_product<true>(acc, m, kStride, out, kChunk);
    if constexpr (kDelta) {
      for_elements([&](int r, int c, int i, int j) { y[i * kStride + j] = acc[r][c]; });
      sync_block();
      load_square(m, a.adjoint_inverse + at.index * kSquare, 0, kChunk, 0, kChunk);
      sync_block();
      clear(acc);
      add_product<true>(acc, m, kStride, y, kChunk);
      sync_block();
      for_elements([&](int r, int c, int i, int j) {
        if (d0 + j < a.Dv) a.adjoints[(at.index * kChunk + i) * a.Dv + d0 + j] = acc[r][c];
        acc[r][c] *= beta_of(a, at, i);
        y[i * kStride + j] = acc[r][c];
      });
    }
    store_rows(a.dv, at, d0, a.Dv, acc);
    sync_block();
    load_tile(x, ldx, a.q, at, 0, a.Dk, padded, from, a.G);
    sync_block();
    add_to_state(state, a.decay + at.index * a.G, a.G, 1.0f, x, ldx, out, a.Dk);
    if constexpr (kDelta) {
      sync_block();
      load_tile(x, ldx, a.k, at, 0, a.Dk, padded, from, a.G);
      sync_block();
      add_to_state(state, nullptr, 1, -1.0f, x, ldx, y, a.Dk);
    }
  }
  sync_block();
  store_state(a.dfirst + head * a.Dk * a.Dv, state, a.Dk, a.Dv, d0);
}

}  // namespace FOVEA_GPU
