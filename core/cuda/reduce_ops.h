// SPDX-License-Identifier: Apache-2.0
#pragma once
// Sums of f32 and bf16 tensors on one GPU device, kept in f32. A pass sums successive pieces of an
// axis; summing the pieces again, until one is left, gives the sum. Where pieces end, and the order
// within, follow from the shape and the dtype.

#include <algorithm>
#include <bit>

#include "core/cuda/gpu.h"

namespace fovea {

// How a pass sums x [outer, count, inner].
struct SumPlan {
  static constexpr int kThreads = 256;
  static constexpr int kVecBytes = 16;
  static constexpr int kRowsAThread = 16;

  int64_t piece;   // elements of the middle axis in one sum
  int64_t pieces;  // at least 1
  int across = 1;  // inner > 1: vectors of columns that a block takes, a power of two

  SumPlan(Dtype dtype, int64_t count, int64_t inner) : piece(16384) {
    if (inner > 1) {
      // As many as there are, but eight rows (if there are so many) are read at a time.
      const int64_t vec = kVecBytes / size_of(dtype);
      const auto down = std::bit_ceil(static_cast<uint64_t>(std::min<int64_t>(count, 8)));
      const auto vectors = std::bit_ceil(static_cast<uint64_t>((inner + vec - 1) / vec));
      across = static_cast<int>(std::min(vectors, kThreads / down));
      piece = kThreads / across * kRowsAThread;
    }
    pieces = std::max<int64_t>(1, (count + piece - 1) / piece);
  }
};

}  // namespace fovea

FOVEA_GPU_DECLARE(
    // x [outer, count, inner], contiguous -> out [outer, pieces, inner], f32 or bf16.
    void sum_pass(void* out, fovea::Dtype out_dtype, const void* x, fovea::Dtype dtype,
                  int64_t outer, int64_t count, int64_t inner, Stream stream);)
