// SPDX-License-Identifier: Apache-2.0
#pragma once
// Elements of f32 and bf16 tensors as f32 values, 16 bytes an access where they lie on 16-byte
// boundaries; and the two ways in which the kernels of layers share out their work: flat chunks,
// and rows.

#include <initializer_list>
#include <type_traits>

#include "core/cuda/kernel.cuh"

namespace FOVEA_GPU {

constexpr int kThreads = 256;

// Elements of one access.
template <typename T>
inline constexpr int kWide = 16 / static_cast<int>(sizeof(T));

// N elements; where N is a multiple of kWide they start on a 16-byte boundary.
template <int N, typename T>
__device__ inline void load_floats(float (&values)[N], Global<const T> from) {
  if constexpr (N % kWide<T> == 0) {
    FOVEA_UNROLL
    for (int i = 0; i < N; i += kWide<T>) {
      const Vec<T, kWide<T>> part = load<kWide<T>>(from + i);
      FOVEA_UNROLL
      for (int j = 0; j < kWide<T>; ++j) values[i + j] = static_cast<float>(part[j]);
    }
  } else {
    FOVEA_UNROLL
    for (int i = 0; i < N; ++i) values[i] = static_cast<float>(static_cast<T>(from[i]));
  }
}
template <int N, typename T>
__device__ inline void store_floats(Global<T> to, const float (&values)[N]) {
  if constexpr (N % kWide<T> == 0) {
    FOVEA_UNROLL
    for (int i = 0; i < N; i += kWide<T>) {
      Vec<T, kWide<T>> part;
      FOVEA_UNROLL
      for (int j = 0; j < kWide<T>; ++j) part[j] = T(values[i + j]);
      store(to + i, part);
    }
  } else {
    FOVEA_UNROLL
    for (int i = 0; i < N; ++i) to[i] = T(values[i]);
  }
}

// The first `count` of N elements, the rest 0; wide: there are N and they start on a boundary.
template <int N, typename T>
__device__ inline void load_some(float (&values)[N], Global<const T> from, int64_t count,
                                 bool wide) {
  if (wide) return load_floats<N, T>(values, from);
  FOVEA_UNROLL
  for (int i = 0; i < N; ++i) {
    values[i] = 0.0f;
    if (i < count) values[i] = static_cast<float>(static_cast<T>(from[i]));
  }
}
template <int N, typename T>
__device__ inline void store_some(Global<T> to, const float (&values)[N], int64_t count,
                                  bool wide) {
  if (wide) return store_floats<N, T>(to, values);
  FOVEA_UNROLL
  for (int i = 0; i < N; ++i) {
    if (i < count) to[i] = T(values[i]);
  }
}

// ---- flat chunks --------------------------------------------------------------------------------

constexpr int kChunks = 4;  // a thread's, independent of each other
template <typename T>
inline constexpr int64_t kBlockElements = int64_t{kThreads} * kChunks* kWide<T>;

template <int N>
using Width = std::integral_constant<int, N>;

// Over this block's part of n elements: f(Width<N>, i) for the N elements from i on; N is
// kWide<T>, or 1 at the very end and where the tensors are not `wide` (on 16-byte boundaries).
template <typename T, typename F>
__device__ inline void each_chunk(int64_t n, bool wide, F f) {
  const int64_t begin = int64_t{blockIdx.x} * kBlockElements<T>;
  if (wide && begin + kBlockElements<T> <= n) {
    FOVEA_UNROLL
    for (int chunk = 0; chunk < kChunks; ++chunk)
      f(Width<kWide<T>>{}, begin + (int64_t{chunk} * kThreads + threadIdx.x) * kWide<T>);
  } else {
    const int64_t end = begin + kBlockElements<T> < n ? begin + kBlockElements<T> : n;
    const int64_t body = wide ? begin + (end - begin) / kWide<T> * kWide<T> : begin;
    for (int64_t i = begin + int64_t{threadIdx.x} * kWide<T>; i < body; i += kThreads * kWide<T>)
      f(Width<kWide<T>>{}, i);
    for (int64_t i = body + threadIdx.x; i < end; i += kThreads) f(Width<1>{}, i);
  }
}

// ---- rows ---------------------------------------------------------------------------------------

// A team shares a row: a warp of the block's (kWarps = 1), or all kWarps warps of the block.
template <int kWarps>
__device__ inline int64_t team_row() {
  return kWarps == 1 ? int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32
                     : int64_t{blockIdx.x};
}
template <int kWarps>
__device__ inline int team_thread() {
  return static_cast<int>(threadIdx.x) % (kWarps * 32);
}
template <int kWarps>
int64_t team_blocks(int64_t rows) {
  return kWarps == 1 ? ceil_div(rows, kThreads / 32) : rows;
}
// Every thread of the team gets the result. `room` holds 32 floats.
template <int kWarps>
__device__ inline float team_sum(float x, Shared<float> room) {
  if constexpr (kWarps == 1)
    return warp_sum(x);
  else
    return block_sum(x, room);
}
template <int kWarps>
__device__ inline float team_max(float x, Shared<float> room) {
  if constexpr (kWarps == 1)
    return warp_max(x);
  else
    return block_max(x, room);
}

// The team's share of elements [0, n) of a row that begins at element `at` of its tensor, as
// f(Width<N>, i); wide: the tensor starts on a 16-byte boundary, whatever its rows do.
template <typename T, int kWarps, typename F>
__device__ inline void each_of_row(int64_t at, int64_t n, bool wide, F f) {
  constexpr int N = kWide<T>;
  const int64_t thread = team_thread<kWarps>(), threads = kWarps * 32;
  int64_t head = wide ? (N - at % N) % N : n;
  if (head > n) head = n;
  const int64_t body = head + (n - head) / N * N;
  for (int64_t i = thread; i < head; i += threads) f(Width<1>{}, i);
  for (int64_t i = head + thread * N; i < body; i += threads * N) f(Width<N>{}, i);
  for (int64_t i = body + thread; i < n; i += threads) f(Width<1>{}, i);
}

// ---- launching ----------------------------------------------------------------------------------

inline bool on_boundaries(std::initializer_list<const void*> pointers) {
  for (const void* p : pointers) {
    if (reinterpret_cast<uintptr_t>(p) % 16 != 0) return false;
  }
  return true;
}

// f with float{} or bf16{}.
template <typename F>
void with_floating(Dtype dtype, F&& f) {
  if (dtype == Dtype::bf16)
    f(bf16{});
  else
    f(float{});
}

}  // namespace FOVEA_GPU
