// SPDX-License-Identifier: Apache-2.0
// Embedding:  out[i] = weight[ids[i]];  dweight[v] = sum over i with ids[i] = v of dout[i].
// Shapes  weight [V, C], out, dout [n, C].
// Cost  forward: n rows read, n written. Backward: dout read once; each row of the gradient that
// has a token written once (the others are zero before). Both move whole rows, 16 bytes a thread
// and access, 4 rows in flight in the sum. Determinism  bitwise, and in f32 the bits of the cpu:
// the positions of an id come sorted, and a thread adds a column's rows in that order. Long lists
// are cut by the caller into pieces whose sums are rows of their own.
#include "nn/cuda/embedding.h"
#include "nn/cuda/vectors.cuh"

namespace FOVEA_GPU {
namespace {

template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    embedding_forward_kernel(Global<T> out, Global<const T> weight, Global<const int64_t> ids,
                             int64_t count, int64_t channels, bool wide) {
  each_chunk<T, 1>(
      count * channels, wide,
      [&]<int N>(float(&v)[1][N], int64_t i) {
        const int64_t row = i / channels, id = ids[row];
        load_floats<N, T>(v[0], weight + (id * channels + (i - row * channels)));
      },
      [&]<int N>(float(&v)[1][N], int64_t i) { store_floats<N, T>(out + i, v[0]); });
}

// A block's x is the row, its y and threads are the columns.
template <typename To, typename From, int N>
__global__ void __launch_bounds__(kThreads)
    embedding_sum_kernel(Global<To> out, Global<const int64_t> rows, Global<const int64_t> first,
                         Global<const int64_t> positions, Global<const From> x,
                         Global<const float> partial, int64_t split, int64_t channels) {
  const int64_t column = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * N, k = blockIdx.x;
  if (column >= channels) return;
  int64_t row = k;
  if (rows != nullptr) row = rows[k];
  if (row < 0) return;
  const int64_t end = first[k + 1];
  float total[N];
  FOVEA_UNROLL
  for (int e = 0; e < N; ++e) total[e] = 0.0f;
  constexpr int kRows = 4;  // in flight
  for (int64_t p = first[k]; p < end; p += kRows) {
    float values[kRows][N];
    FOVEA_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (p + r >= end) continue;
      const int64_t from = positions[p + r];
      if (from < split)
        load_floats<N, From>(values[r], x + (from * channels + column));
      else
        load_floats<N, float>(values[r], partial + ((from - split) * channels + column));
    }
    FOVEA_UNROLL
    for (int r = 0; r < kRows; ++r) {
      FOVEA_UNROLL
      for (int e = 0; e < N; ++e) {
        if (p + r < end) total[e] += values[r][e];
      }
    }
  }
  store_floats<N, To>(out + (row * channels + column), total);
}

}  // namespace

void embedding_forward(void* out, const void* weight, const int64_t* ids, Dtype dtype,
                       int64_t count, int64_t channels, Stream stream) {
  if (count * channels == 0) return;
  with_floating(dtype, [&](auto type) {
    using T = decltype(type);
    launch<embedding_forward_kernel<T>>(ceil_div(count * channels, kBlockElements<T, 1>), kThreads,
                                        0, stream, static_cast<T*>(out),
                                        static_cast<const T*>(weight), ids, count, channels,
                                        channels % kWide<T> == 0 && on_boundaries({out, weight}));
  });
}

void embedding_sum(void* out, Dtype out_dtype, const int64_t* rows, const int64_t* first,
                   const int64_t* positions, const void* x, Dtype x_dtype, const float* partial,
                   int64_t split, int64_t count, int64_t channels, Stream stream) {
  if (count * channels == 0) return;
  constexpr int kVector = 8;  // a multiple of both types' accesses
  const bool wide = channels % kVector == 0 && on_boundaries({out, x, partial});
  const auto run = [&]<int N>(Width<N>) {
    const int64_t threads = ceil_div(channels, N),
                  block = threads < kThreads ? ceil_div(threads, 32) * 32 : kThreads;
    with_floating(out_dtype, [&](auto to) {
      with_floating(x_dtype, [&](auto from) {
        using To = decltype(to);
        using From = decltype(from);
        launch<embedding_sum_kernel<To, From, N>>(
            dim3(static_cast<unsigned>(count), static_cast<unsigned>(ceil_div(threads, block))),
            static_cast<unsigned>(block), 0, stream, static_cast<To*>(out), rows, first, positions,
            static_cast<const From*>(x), partial, split, channels);
      });
    });
  };
  if (wide)
    run(Width<kVector>{});
  else
    run(Width<1>{});
}

}  // namespace FOVEA_GPU
