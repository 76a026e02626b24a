// SPDX-License-Identifier: Apache-2.0
// Dropout (Srivastava et al. 2014) and DropPath (1603.09382):  y = x factor, or 0 where the draw's
// word is below the threshold. The words are those of core/rng.h, so that every device drops the
// same elements; no mask is stored.
// Shapes  any; a draw covers `span` neighbouring elements.
// Cost  x read, y written once. A Philox block gives 4 words, about 20 instructions each: below the
// time of the 4 to 8 bytes of its element.
#include "core/cuda/random.cuh"
#include "nn/cuda/elementwise.h"
#include "nn/cuda/vectors.cuh"

namespace FOVEA_GPU {
namespace {

// random_word() without an array that is indexed: in registers.
__device__ inline uint32_t word_of(const RngKey& rng, uint64_t index) {
  const std::array<uint32_t, 4> words = philox(rng, index / 4);
  const uint32_t low = index % 2 == 0 ? words[0] : words[1],
                 high = index % 2 == 0 ? words[2] : words[3];
  return index % 4 < 2 ? low : high;
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    dropout_kernel(Global<T> y, Global<const T> x, int64_t count, RngKey given, uint64_t first,
                   uint32_t threshold, float factor, bool wide) {
  const RngKey rng = at_step(given);
  const auto read = [&]<int N>(float(&v)[1][N], int64_t i) { load_floats<N, T>(v[0], x + i); };
  each_chunk<T, 1>(count, wide, read, [&]<int N>(float(&in)[1][N], int64_t i) {
    float(&v)[N] = in[0];
    const uint64_t draw = first + static_cast<uint64_t>(i);
    if constexpr (N % 4 == 0) {  // draw is a multiple of 4
      FOVEA_UNROLL
      for (int b = 0; b < N; b += 4) {
        const std::array<uint32_t, 4> words = philox(rng, (draw + b) / 4);
        FOVEA_UNROLL
        for (int e = 0; e < 4; ++e) v[b + e] = words[e] < threshold ? 0.0f : v[b + e] * factor;
      }
    } else {
      FOVEA_UNROLL
      for (int e = 0; e < N; ++e) v[e] = word_of(rng, draw + e) < threshold ? 0.0f : v[e] * factor;
    }
    store_floats<N, T>(y + i, v);
  });
}

// Rows whose draws lie apart: tokens that are not neighbours in their sequence.
template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    dropout_rows_kernel(Global<T> y, Global<const T> x, int64_t count, int64_t row, int64_t pitch,
                        RngKey given, uint64_t first, uint32_t threshold, float factor, bool wide) {
  const RngKey rng = at_step(given);
  const auto read = [&]<int N>(float(&v)[1][N], int64_t i) { load_floats<N, T>(v[0], x + i); };
  each_chunk<T, 1>(count, wide, read, [&]<int N>(float(&in)[1][N], int64_t i) {
    float(&v)[N] = in[0];
    const uint64_t draw = first + static_cast<uint64_t>(i / row * pitch + i % row);
    FOVEA_UNROLL
    for (int e = 0; e < N; ++e) v[e] = word_of(rng, draw + e) < threshold ? 0.0f : v[e] * factor;
    store_floats<N, T>(y + i, v);
  });
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    dropout_spans_kernel(Global<T> y, Global<const T> x, int64_t count, int64_t span, RngKey given,
                         uint64_t first, uint32_t threshold, float factor, bool wide) {
  const RngKey rng = at_step(given);
  const auto read = [&]<int N>(float(&v)[1][N], int64_t i) { load_floats<N, T>(v[0], x + i); };
  each_chunk<T, 1>(count, wide, read, [&]<int N>(float(&in)[1][N], int64_t i) {
    float(&v)[N] = in[0];
    const bool keep = word_of(rng, first + static_cast<uint64_t>(i / span)) >= threshold;
    FOVEA_UNROLL
    for (int e = 0; e < N; ++e) v[e] = keep ? v[e] * factor : 0.0f;
    store_floats<N, T>(y + i, v);
  });
}

}  // namespace

void dropout(void* y, const void* x, Dtype dtype, int64_t count, int64_t span, const RngKey& rng,
             uint64_t first, uint32_t threshold, float factor, Stream stream) {
  if (count == 0) return;
  with_floating(dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t blocks = ceil_div(count, kBlockElements<T, 1>);
    if (span == 1) {
      launch<dropout_kernel<T>>(blocks, kThreads, 0, stream, static_cast<T*>(y),
                                static_cast<const T*>(x), count, rng, first, threshold, factor,
                                first % 4 == 0 && on_boundaries({y, x}));
    } else {
      launch<dropout_spans_kernel<T>>(blocks, kThreads, 0, stream, static_cast<T*>(y),
                                      static_cast<const T*>(x), count, span, rng, first, threshold,
                                      factor, span % kWide<T> == 0 && on_boundaries({y, x}));
    }
  });
}

void dropout_rows(void* y, const void* x, Dtype dtype, int64_t count, int64_t row, int64_t pitch,
                  const RngKey& rng, uint64_t first, uint32_t threshold, float factor,
                  Stream stream) {
  if (count == 0) return;
  with_floating(dtype, [&](auto type) {
    using T = decltype(type);
    launch<dropout_rows_kernel<T>>(ceil_div(count, kBlockElements<T, 1>), kThreads, 0, stream,
                                   static_cast<T*>(y), static_cast<const T*>(x), count, row, pitch,
                                   rng, first, threshold, factor,
                                   row % kWide<T> == 0 && on_boundaries({y, x}));
  });
}

}  // namespace FOVEA_GPU
