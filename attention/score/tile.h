// SPDX-License-Identifier: Apache-2.0
#pragma once
// Tile products and softmax rows of the score engine in f32 (attention/score/score.cpp has their f64 definitions).

#include <cstdint>

#include "core/cpu/isa.h"
#include "core/dtype.h"

namespace fovea {

// c [m, n] (ldc) = or += a [m, k] b [k, n] (ldb); element (i, p) of a stands at a[i a_row + p a_column]. Four rows of c by
// 64 (AVX2: 16) columns stay in registers over k.
struct TileProduct {
  float* c;
  int64_t ldc;
  const float* a;
  int64_t a_row, a_column;
  const float* b;
  int64_t ldb;
  int64_t m, n, k;
  bool accumulate;
};

// Rows of another tensor: element (i, c) stands at data[i stride + c].
struct TileRows {
  void* data;
  Dtype dtype;  // f32 or bf16
  int64_t stride;
  int64_t rows, columns;
};

}  // namespace fovea

FOVEA_SIMD_DECLARE(
void tile_product(const TileProduct& p);
// Rows of scores s [rows, n] (64 apart). For each: with m' = max(m, max s): s <- exp(s - m'), l <- l exp(m - m') + sum s,
// m <- m', and its row of acc [rows, dv] is multiplied by exp(m - m'). A row that has seen nothing (m' = -inf) becomes zeros.
void softmax_rows(float* s, int64_t rows, int64_t n, float* m, float* l, float* acc, int64_t dv);
// For each row: s <- exp(s - lse), 0 for lse = -inf;   dp <- s (dp - delta)
void softmax_rows_backward(float* s, float* dp, int64_t rows, int64_t n, const float* lse, const float* delta);
// s <- cap tanh(s / cap); slope [n] receives 1 - tanh^2 (or null)
void softcap_row(float* s, float* slope, int64_t n, float cap);
// to [rows, columns] = factor from, and back
void load_rows(float* to, const TileRows& from, float factor);
void store_rows(const TileRows& to, const float* from, float factor);
// to [rows] = sum over columns of a [rows, columns] b
void row_dots(float* to, const float* a, const TileRows& b);
// to [columns, 64] = from [rows, columns]^T, rows <= 64, zeros from column `rows` on
void transpose_tile(float* to, const float* from, int64_t rows, int64_t columns);)
