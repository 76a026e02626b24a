// SPDX-License-Identifier: Apache-2.0
#pragma once
// Our own blocked matrix product, for what oneDNN does not do (f64, odd layouts, bf16 without
// AVX-512) and for problems so small that its call overhead dominates. Tiles of the result are
// independent and each walks k in order: the bits depend on the shape and the instruction set
// alone, never on the number of threads.

#include <cstdint>

#include "core/cpu/isa.h"

namespace fovea {

inline constexpr int64_t kGemmTileRows = 96;
inline constexpr int64_t kGemmTileColumns = 192;
inline constexpr int64_t kGemmTileDepth = 256;

// Element types of operands and result.
enum class GemmKind { f32, f64, bf16_to_bf16, bf16_to_f32 };

// c [m, n] = init + a [m, k] b [k, n], with init = c (accumulate), bias [n] (f32, or f64 for f64)
// or 0. Strides in elements.
struct GemmCall {
  GemmKind kind = GemmKind::f32;
  int64_t m = 0, n = 0, k = 0;
  const void* a = nullptr;
  int64_t a_row = 0, a_column = 1;
  const void* b = nullptr;
  int64_t b_row = 0, b_column = 1;
  void* c = nullptr;
  int64_t c_row = 0;
  const void* bias = nullptr;
  bool accumulate = false;
};

// Bytes of scratch (64-byte aligned) that gemm_tile needs for any tile of any problem.
inline constexpr int64_t kGemmScratchBytes =
    8 * (kGemmTileRows * kGemmTileDepth + (kGemmTileColumns + 64) * kGemmTileDepth) +
    4 * kGemmTileRows * kGemmTileColumns;

}  // namespace fovea

// Rows [i, i + rows) and columns [j, j + columns) of the result; at most a tile, k > 0.
FOVEA_SIMD_DECLARE(void gemm_tile(const GemmCall& call, int64_t i, int64_t rows, int64_t j,
                                  int64_t columns, void* scratch);)
