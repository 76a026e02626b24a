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

// A number known when compiling, as an argument.
template <int N>
using Width = std::integral_constant<int, N>;

// Elements of one access.
template <typename T>
inline constexpr int kWide = 16 / static_cast<int>(sizeof(T));

// N elements in device or shared memory; where N is a multiple of kWide they start on a 16-byte
// boundary.
template <int N, typename T, typename Pointer>
__device__ inline void load_floats(float (&values)[N], Pointer from) {
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
template <int N, typename T, typename Pointer>
__device__ inline void store_floats(Pointer to, const float (&values)[N]) {
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

// Chunks of a thread, whose loads stand before the first store: 3 or 4 accesses in flight.
template <int kInputs>
inline constexpr int kChunks = 4 / kInputs;
template <typename T, int kInputs>
inline constexpr int64_t kBlockElements = int64_t{kThreads} * kChunks<kInputs>* kWide<T>;

// Over this block's part of n elements, N = kWide<T> at a time, or 1 at the very end and where the
// tensors are not `wide` (on 16-byte boundaries): read(v, i) fills v [kInputs][N] from the elements
// from i on, finish(v, i) stores what comes of them.
template <typename T, int kInputs, typename Read, typename Finish>
__device__ inline void each_chunk(int64_t n, bool wide, Read read, Finish finish) {
  constexpr int N = kWide<T>;
  constexpr int64_t kBlock = kBlockElements<T, kInputs>;
  const int64_t begin = int64_t{blockIdx.x} * kBlock;
  if (wide && begin + kBlock <= n) {
    const int64_t first = begin + int64_t{threadIdx.x} * N;
    float v[kChunks<kInputs>][kInputs][N];
    FOVEA_UNROLL
    for (int chunk = 0; chunk < kChunks<kInputs>; ++chunk)
      read(v[chunk], first + int64_t{chunk} * kThreads * N);
    FOVEA_UNROLL
    for (int chunk = 0; chunk < kChunks<kInputs>; ++chunk)
      finish(v[chunk], first + int64_t{chunk} * kThreads * N);
    return;
  }
  const int64_t end = begin + kBlock < n ? begin + kBlock : n;
  const int64_t body = wide ? begin + (end - begin) / N * N : begin;
  for (int64_t i = begin + int64_t{threadIdx.x} * N; i < body; i += kThreads * N) {
    float v[kInputs][N];
    read(v, i);
    finish(v, i);
  }
  for (int64_t i = body + threadIdx.x; i < end; i += kThreads) {
    float v[kInputs][1];
    read(v, i);
    finish(v, i);
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
// kAtOnce: of whose loads are in flight together.
template <typename T, int kWarps, int kAtOnce = 4, typename F>
__device__ inline void each_of_row(int64_t at, int64_t n, bool wide, F f) {
  constexpr int N = kWide<T>;
  const int64_t thread = team_thread<kWarps>(), threads = kWarps * 32;
  int64_t head = wide ? (N - at % N) % N : n;
  if (head > n) head = n;
  const int64_t body = head + (n - head) / N * N;
  for (int64_t i = thread; i < head; i += threads) f(Width<1>{}, i);
  FOVEA_UNROLL_BY(kAtOnce)
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
