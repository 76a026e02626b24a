// SPDX-License-Identifier: Apache-2.0
// Bytes: each element read once; a pass writes less than 1 % of that, and the limit is DRAM. A
// thread has four 16-byte loads in flight. Determinism: bitwise; which elements a thread adds, and
// the tree in which threads are added, are functions of the shape and the dtype (unaligned bases
// change the accesses, not the order).
#include "core/cuda/kernel.cuh"
#include "core/cuda/reduce_ops.h"

namespace FOVEA_GPU {
namespace {

constexpr int kThreads = SumPlan::kThreads;
constexpr int kWide = SumPlan::kVecBytes;
constexpr int kInFlight = 4;  // loads

template <typename T>
constexpr int kVec = kWide / sizeof(T);

// The first `valid` (any number) of a vector's elements, zeros behind.
template <typename T>
__device__ inline void load_vector(float (&to)[kVec<T>], Global<const T> from, int64_t valid,
                                   bool wide) {
  if (wide && valid >= kVec<T>) {
    const Vec<T, kVec<T>> values = load<kVec<T>>(from);
    for (int j = 0; j < kVec<T>; ++j) to[j] = static_cast<float>(values[j]);
  } else {
    FOVEA_UNROLL
    for (int j = 0; j < kVec<T>; ++j) {
      to[j] = 0.0f;
      if (j >= valid) continue;
      const T value = from[j];
      to[j] = static_cast<float>(value);
    }
  }
}

// One of the two is null.
__device__ inline void write(Global<float> sums, Global<bf16> rounded, int64_t i, float value) {
  if (rounded != nullptr)
    rounded[i] = bf16(value);
  else
    sums[i] = value;
}

// x [rows, count] -> [rows, pieces]; kGroup threads (1, a warp or the block) a row and piece.
template <typename T, int kGroup>
__global__ void __launch_bounds__(kThreads)
    sum_rows_kernel(Global<float> sums, Global<bf16> rounded, Global<const T> x, int64_t rows,
                    int64_t count, SumPlan plan, bool wide) {
  constexpr int kStep = kGroup * kVec<T>;
  const int64_t item = int64_t{blockIdx.x} * (kThreads / kGroup) + threadIdx.x / kGroup;
  const int lane = static_cast<int>(threadIdx.x) % kGroup;
  float total[kVec<T>] = {};
  if (item < rows * plan.pieces) {
    const int64_t row = item / plan.pieces, begin = item % plan.pieces * plan.piece;
    const int64_t end = count < begin + plan.piece ? count : begin + plan.piece;
    for (int64_t i = begin + lane * kVec<T>; i < end; i += kStep * kInFlight) {
      float values[kInFlight][kVec<T>];
      FOVEA_UNROLL
      for (int u = 0; u < kInFlight; ++u)
        load_vector<T>(values[u], x + (row * count + i + u * kStep), end - i - u * kStep, wide);
      FOVEA_UNROLL
      for (int u = 0; u < kInFlight; ++u)
        for (int j = 0; j < kVec<T>; ++j) total[j] += values[u][j];
    }
  }
  float sum = 0.0f;
  for (int j = 0; j < kVec<T>; ++j) sum += total[j];
  if constexpr (kGroup == kWarp) {
    sum = warp_sum(sum);
  } else if constexpr (kGroup > kWarp) {
    FOVEA_SHARED(float, room, 32);
    sum = block_sum(sum, room);
  }
  if (lane == 0 && item < rows * plan.pieces) write(sums, rounded, item, sum);
}

// x [outer, count, inner] -> [outer, pieces, inner]. A block takes a panel of `across` vectors of
// columns and its threads share the rows of a piece out; the tree over them is in shared memory.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    sum_columns_kernel(Global<float> sums, Global<bf16> rounded, Global<const T> x, int64_t count,
                       int64_t inner, SumPlan plan, int64_t panels, bool wide) {
  FOVEA_SHARED(float, room, kThreads* kVec<T>);
  const int across = plan.across, down = kThreads / across;
  const int id = static_cast<int>(threadIdx.x), y = id / across;
  const int64_t panel = blockIdx.x % panels, slab = blockIdx.x / panels;  // slab: outer and piece
  const int64_t column = (panel * across + id % across) * kVec<T>;
  const int64_t begin = slab % plan.pieces * plan.piece;
  const int64_t end = count < begin + plan.piece ? count : begin + plan.piece;
  float total[kVec<T>] = {};
  for (int64_t row = begin + y; row < end; row += down * kInFlight) {
    float values[kInFlight][kVec<T>];
    FOVEA_UNROLL
    for (int u = 0; u < kInFlight; ++u) {
      const int64_t at = row + u * down;
      load_vector<T>(values[u], x + ((slab / plan.pieces * count + at) * inner + column),
                     at < end ? inner - column : 0, wide);
    }
    FOVEA_UNROLL
    for (int u = 0; u < kInFlight; ++u)
      for (int j = 0; j < kVec<T>; ++j) total[j] += values[u][j];
  }
  for (int half = down / 2; half > 0; half /= 2) {
    if (y >= half && y < 2 * half)
      for (int j = 0; j < kVec<T>; ++j) room[j * kThreads + id] = total[j];
    sync_block();
    if (y >= half) continue;
    for (int j = 0; j < kVec<T>; ++j) {
      const float other = room[j * kThreads + id + half * across];
      total[j] += other;
    }
  }
  if (y > 0) return;
  FOVEA_UNROLL
  for (int j = 0; j < kVec<T>; ++j)
    if (column + j < inner) write(sums, rounded, slab * inner + column + j, total[j]);
}

template <typename T>
void pass(float* sums, bf16* rounded, const T* x, int64_t outer, int64_t count, int64_t inner,
          Stream stream) {
  const SumPlan plan(dtype_of<T>, count, inner);
  const int64_t run = inner > 1 ? inner : outer > 1 ? count : kVec<T>;  // where 16 bytes may end
  const bool wide = reinterpret_cast<uintptr_t>(x) % kWide == 0 && run % kVec<T> == 0;
  if (inner > 1) {
    const int64_t panels = ceil_div(inner, plan.across * kVec<T>);
    launch<sum_columns_kernel<T>>(outer * plan.pieces * panels, kThreads, 0, stream, sums, rounded,
                                  x, count, inner, plan, panels, wide);
  } else if (count > 1024) {
    launch<sum_rows_kernel<T, kThreads>>(outer * plan.pieces, kThreads, 0, stream, sums, rounded, x,
                                         outer, count, plan, wide);
  } else if (count > 32) {
    launch<sum_rows_kernel<T, kWarp>>(ceil_div(outer, kThreads / kWarp), kThreads, 0, stream, sums,
                                      rounded, x, outer, count, plan, wide);
  } else {
    launch<sum_rows_kernel<T, 1>>(ceil_div(outer, kThreads), kThreads, 0, stream, sums, rounded, x,
                                  outer, count, plan, wide);
  }
}

}  // namespace

void sum_pass(void* out, Dtype out_dtype, const void* x, Dtype dtype, int64_t outer, int64_t count,
              int64_t inner, Stream stream) {
  auto* sums = out_dtype == Dtype::f32 ? static_cast<float*>(out) : nullptr;
  auto* rounded = out_dtype == Dtype::bf16 ? static_cast<bf16*>(out) : nullptr;
  if (dtype == Dtype::f32)
    pass(sums, rounded, static_cast<const float*>(x), outer, count, inner, stream);
  else
    pass(sums, rounded, static_cast<const bf16*>(x), outer, count, inner, stream);
}

}  // namespace FOVEA_GPU
