// SPDX-License-Identifier: Apache-2.0
#pragma once
// The third step of a backward, all chunks at once: dq, dk, dg and dbeta from the states, their
// gradients and, for the delta rule, E and Y (U = diag(beta) E, dV = diag(beta) Y; linear: U = V).
//
//   dA = dO U^T, dL = -dV U^T, lower triangles
//   dq = from (dO S^T) + dA . K,  dk_row = -from (dV S^T) + dL . K          (. under the gates)
//   dk = dk_row + dk_column,      dk_column = to (U dS^T) + dA^T . Q + dL^T . K
//   dg_t = sum_{i >= t} (q_i dq_i + k_i (dk_row_i - dk_column_i)) + rowsum(S' dS)
//   rowsum(S' dS) = e^b_last rowsum(S dS) + sum_i k_i to_i (U dS^T)_i
//   dbeta_i = y_i . e_i
//
// Channels of keys pass in panels of 64, columns of values in blocks of 64.
// Bytes a chunk: q, k, v, dout, two states read (Dv / 64 and Dk / 64 times what is not theirs), dq,
// dk written. Cost  64 (2 Dk Dv + 64 (Dv + 2 Dk)) multiply-adds (delta: half as much again).

#include "attention/linear/cuda/tile.cuh"

namespace FOVEA_GPU {

// Tiles of shared memory: four or five of operands (scores' gradients pass with six), dA and dL.
constexpr int gradient_tiles(bool delta, bool channel_gates) {
  const int dense = delta ? 5 : 4, gated = delta ? 6 : 5;
  return (channel_gates ? gated : dense) + (delta ? 2 : 1);
}

// e^(b_s(I) - b_t(J)) for J < I.
__device__ inline float between_sub_chunks(Shared<float> b, int I, int J, int column) {
  const float s = b[(I * kSub - 1) * kStride + column],
              t = b[(J * kSub + kSub - 1) * kStride + column];
  return expf(s - t);
}
// e^(b_i - b_s(I)) and e^(b_t(I) - b_i) for row i of sub-chunk I.
__device__ inline float since_start(Shared<float> b, int i, int column) {
  const float own = b[i * kStride + column];
  float before = 0.0f;
  if (i >= kSub) before = b[(i / kSub * kSub - 1) * kStride + column];
  return expf(own - before);
}
__device__ inline float until_end(Shared<float> b, int i, int column) {
  const float own = b[i * kStride + column],
              end = b[(i / kSub * kSub + kSub - 1) * kStride + column];
  return expf(end - own);
}

// acc[r][c] += sum_j w_ij y_j e^(b_i - b_j) over j <= i, for this thread's rows i; far_y = y
// e^(b_t(J) - b_j). w is 0 where j > i.
__device__ inline void add_gated_rows(float (&acc)[4][4], Shared<float> w, Shared<float> y,
                                      Shared<float> far_y, Shared<float> b) {
  const int row = tile_row(), column = tile_column(), I = row / kSub;
  float part[4][4];
  clear(part);
  for (int J = 0; J < I; ++J) {
    float sums[4][4];
    clear(sums);
    add_product<false>(sums, w + J * kSub, kStride, far_y + J * kSub * kStride, kSub);
    FOVEA_UNROLL
    for (int c = 0; c < 4; ++c) {
      const float f = between_sub_chunks(b, I, J, column + 16 * c);
      FOVEA_UNROLL
      for (int r = 0; r < 4; ++r) part[r][c] = fma(f, sums[r][c], part[r][c]);
    }
  }
  FOVEA_UNROLL
  for (int c = 0; c < 4; ++c) {
    FOVEA_UNROLL
    for (int r = 0; r < 4; ++r)
      acc[r][c] = fma(since_start(b, row + r, column + 16 * c), part[r][c], acc[r][c]);
  }
  FOVEA_NO_UNROLL
  for (int j = I * kSub; j < row + 4; ++j) {
    FOVEA_UNROLL
    for (int c = 0; c < 4; ++c) {
      const float right = y[j * kStride + column + 16 * c], b_j = b[j * kStride + column + 16 * c];
      FOVEA_UNROLL
      for (int r = 0; r < 4; ++r) {
        const float weight = w[(row + r) * kStride + j],
                    b_i = b[(row + r) * kStride + column + 16 * c];
        if (j <= row + r) acc[r][c] = fma(weight * right, expf(b_i - b_j), acc[r][c]);
      }
    }
  }
}

// acc[r][c] += sum_i w_ij x_i e^(b_i - b_j) over i >= j, for this thread's rows j; near_x = x
// e^(b_i - b_s(I)).
__device__ inline void add_gated_columns(float (&acc)[4][4], Shared<float> w, Shared<float> x,
                                         Shared<float> near_x, Shared<float> b) {
  const int row = tile_row(), column = tile_column(), J = row / kSub;
  float part[4][4];
  clear(part);
  for (int I = J + 1; I < kChunk / kSub; ++I) {
    float sums[4][4];
    clear(sums);
    add_product<true>(sums, w + I * kSub * kStride, kStride, near_x + I * kSub * kStride, kSub);
    FOVEA_UNROLL
    for (int c = 0; c < 4; ++c) {
      const float f = between_sub_chunks(b, I, J, column + 16 * c);
      FOVEA_UNROLL
      for (int r = 0; r < 4; ++r) part[r][c] = fma(f, sums[r][c], part[r][c]);
    }
  }
  FOVEA_UNROLL
  for (int c = 0; c < 4; ++c) {
    FOVEA_UNROLL
    for (int r = 0; r < 4; ++r)
      acc[r][c] = fma(until_end(b, row + r, column + 16 * c), part[r][c], acc[r][c]);
  }
  FOVEA_NO_UNROLL
  for (int i = row; i < (J + 1) * kSub; ++i) {
    FOVEA_UNROLL
    for (int c = 0; c < 4; ++c) {
      const float left = x[i * kStride + column + 16 * c], b_i = b[i * kStride + column + 16 * c];
      FOVEA_UNROLL
      for (int r = 0; r < 4; ++r) {
        const float weight = w[i * kStride + row + r],
                    b_j = b[(row + r) * kStride + column + 16 * c];
        if (row + r <= i) acc[r][c] = fma(weight * left, expf(b_i - b_j), acc[r][c]);
      }
    }
  }
}

// dg of one channel, from the last row up: rows [64] (ld apart) the gradients of b, end what the
// state that leaves adds.
template <typename T>
__device__ inline void store_gate_gradients(const ChunkArguments<T>& a, const ChunkPlace& at,
                                            Shared<int> document, Shared<float> rows, int ld,
                                            float end, int channel) {
  float sum = end;
  for (int i = at.rows - 1; i >= 0; --i) {
    const int own = document[i], before = i > 0 ? int(document[i - 1]) : 0;
    const float part = rows[i * ld];
    sum += part;
    a.dg[((int64_t{at.b} * a.H + at.h) * a.N + at.token0 + i) * a.G + channel] =
        own == before ? sum : 0.0f;
    if (own != before) sum = 0.0f;
  }
}

template <typename T, bool kDelta>
__global__ void __launch_bounds__(kTileThreads) chunk_gradient_kernel(ChunkArguments<T> a) {
  FOVEA_SHARED(int, document, kChunk);
  FOVEA_SHARED(int, flags, kChunk);
  FOVEA_SHARED(float, row_sums, kChunk);
  FOVEA_SHARED(float, ends, kChunk);
  const bool channel_gates = a.G > 1;
  const Shared<float> out = dynamic_shared<float>(), u = out + kTile, state = u + kTile,
                      dstate = state + kTile, y = dstate + kTile;
  const Shared<float> dA = out + (gradient_tiles(kDelta, channel_gates) - (kDelta ? 2 : 1)) * kTile,
                      dL = dA + kTile;
  const ChunkPlace at = chunk_place(a, blockIdx.x);
  const int t = thread_number();
  const int64_t factors = at.index * kChunk * a.G;
  count_documents(document, flags, a, at);
  const auto load_values = [&](int d0) {  // dO; V, or E and Y
    load_tile(out, kStride, a.dout, at, d0, a.Dv, kChunk);
    if constexpr (kDelta) {
      load_square(u, a.errors + at.index * kChunk * a.Dv, 0, kChunk, d0, a.Dv);
      load_square(y, a.adjoints + at.index * kChunk * a.Dv, 0, kChunk, d0, a.Dv);
    } else {
      load_tile(u, kStride, a.v, at, d0, a.Dv, kChunk);
    }
  };
  const auto weight_of = [&](int row) {
    if constexpr (kDelta)
      return beta_of(a, at, row);
    else
      return row < at.rows ? 1.0f : 0.0f;
  };

  {  // dA and dL
    float scores[4][4], keys[4][4], dbeta = 0.0f;
    clear(scores);
    clear(keys);
    FOVEA_NO_UNROLL
    for (int d0 = 0; d0 < a.Dv; d0 += kChunk) {
      sync_block();
      load_values(d0);
      sync_block();
      add_product_right_transposed(scores, out, u, kChunk);
      if constexpr (kDelta) {
        add_product_right_transposed(keys, y, u, kChunk);
        FOVEA_UNROLL
        for (int n = 0; n < kSub; ++n) {  // four threads a row
          const float left = y[t / 4 * kStride + t % 4 + 4 * n],
                      right = u[t / 4 * kStride + t % 4 + 4 * n];
          dbeta = fma(left, right, dbeta);
        }
      }
    }
    for_elements([&](int r, int c, int i, int j) {
      const int own = document[i], other = document[j];
      float weight = j <= i && own == other ? weight_of(j) : 0.0f;
      if (weight != 0.0f && !channel_gates) {
        const float b_i = a.sums[factors + i], b_j = a.sums[factors + j];
        weight *= expf(b_i - b_j);
      }
      dA[i * kStride + j] = scores[r][c] * weight;
      if constexpr (kDelta)
        dL[i * kStride + j] = j < i ? -keys[r][c] * weight * weight_of(i) : 0.0f;
    });
    if constexpr (kDelta) {
      dbeta += shuffle_xor(dbeta, 1);
      dbeta += shuffle_xor(dbeta, 2);
      if (t % 4 == 0 && t / 4 < at.rows)
        a.dbeta[(int64_t{at.b} * a.H + at.h) * a.N + at.token0 + t / 4] = dbeta;
    }
  }

  float end_sum = 0.0f, row_sum = 0.0f;  // one gate: over all panels, of channel t and of row t
  FOVEA_NO_UNROLL
  for (int c0 = 0; c0 < a.Dk; c0 += kChunk) {
    float dq[4][4], rows[4][4], columns[4][4], meeting = 0.0f;
    float kept[4] = {0.0f, 0.0f, 0.0f, 0.0f};  // of a column, over this thread's rows
    clear(dq);
    clear(rows);
    clear(columns);
    FOVEA_NO_UNROLL
    for (int d0 = 0; d0 < a.Dv; d0 += kChunk) {
      sync_block();
      load_values(d0);
      load_square(state, a.states + at.index * a.Dk * a.Dv, c0, a.Dk, d0, a.Dv);
      load_square(dstate, a.dstates + at.index * a.Dk * a.Dv, c0, a.Dk, d0, a.Dv);
      sync_block();
      add_product_right_transposed(dq, out, state, kChunk);
      add_product_right_transposed(columns, u, dstate, kChunk);
      if constexpr (kDelta) add_product_right_transposed(rows, y, state, kChunk);
      FOVEA_UNROLL
      for (int n = 0; n < kSub; ++n) {  // four threads a channel
        const float left = state[t / 4 * kStride + t % 4 + 4 * n],
                    right = dstate[t / 4 * kStride + t % 4 + 4 * n];
        meeting = fma(left, right, meeting);
      }
    }
    sync_block();
    const Shared<float> q = out, k = u, near_q = state, far_k = dstate, b = y, near_k = b + kTile;
    load_tile(q, kStride, a.q, at, c0, a.Dk, kChunk);
    load_tile(k, kStride, a.k, at, c0, a.Dk, kChunk);
    if (channel_gates) load_square(b, a.sums + factors, 0, kChunk, c0, a.Dk);
    sync_block();
    for_elements([&](int r, int c, int i, int j) {
      float from = 0.0f, to = 0.0f;
      if (c0 + j < a.Dk) {
        const int64_t gate = factors + int64_t{i} * a.G + (channel_gates ? c0 + j : 0);
        from = a.from_state[gate];
        to = a.to_state[gate];
      }
      const float key = k[i * kStride + j], query = q[i * kStride + j];
      dq[r][c] *= from;
      rows[r][c] *= -from * weight_of(i);
      columns[r][c] *= to * weight_of(i);
      kept[c] = fma(key, columns[r][c], kept[c]);
      if (channel_gates) {
        const float near = since_start(b, i, j);
        near_q[i * kStride + j] = query * near;
        far_k[i * kStride + j] = key * until_end(b, i, j);
        if constexpr (kDelta) near_k[i * kStride + j] = key * near;
      }
    });
    sync_block();
    if (channel_gates) {
      add_gated_rows(dq, dA, k, far_k, b);
      add_gated_columns(columns, dA, q, near_q, b);
      if constexpr (kDelta) {
        add_gated_rows(rows, dL, k, far_k, b);
        add_gated_columns(columns, dL, k, near_k, b);
      }
    } else {
      add_product<false>(dq, dA, kStride, k, kChunk);
      add_product<true>(columns, dA, kStride, q, kChunk);
      if constexpr (kDelta) {
        add_product<false>(rows, dL, kStride, k, kChunk);
        add_product<true>(columns, dL, kStride, k, kChunk);
      }
    }
    sync_block();
    const Shared<float> db = near_q, at_end = far_k;
    for_elements([&](int r, int c, int i, int j) {
      const float query = q[i * kStride + j], key = k[i * kStride + j];
      db[i * kStride + j] = query * dq[r][c] + key * (rows[r][c] - columns[r][c]);
      columns[r][c] += rows[r][c];
    });
    FOVEA_UNROLL
    for (int c = 0; c < 4; ++c) at_end[t / 16 * kStride + t % 16 + 16 * c] = kept[c];
    store_rows(a.dq, at, c0, a.Dk, dq);
    store_rows(a.dk, at, c0, a.Dk, columns);
    if (a.dg == nullptr) continue;
    meeting += shuffle_xor(meeting, 1);
    meeting += shuffle_xor(meeting, 2);
    if (t % 4 == 0) ends[t / 4] = meeting;
    sync_block();
    if (t >= kChunk) continue;
    float end = 0.0f;
    if (c0 + t < a.Dk) {
      const float decay = a.decay[at.index * a.G + (channel_gates ? c0 + t : 0)], met = ends[t];
      end = decay * met;
      for (int i = 0; i < 16; ++i) {
        const float part = at_end[i * kStride + t];
        end += part;
      }
      if (channel_gates) store_gate_gradients(a, at, document, db + t, kStride, end, c0 + t);
    }
    end_sum += end;
    for (int c = 0; c < kChunk; ++c) {
      const float part = db[t * kStride + c];
      row_sum += part;
    }
  }
  if (a.dg == nullptr || channel_gates) return;
  sync_block();
  if (t < kChunk) {
    row_sums[t] = row_sum;
    ends[t] = end_sum;
  }
  sync_block();
  if (t > 0) return;
  float end = 0.0f;
  for (int c = 0; c < kChunk; ++c) {
    const float part = ends[c];
    end += part;
  }
  store_gate_gradients(a, at, document, row_sums, 1, end, 0);
}

}  // namespace FOVEA_GPU
