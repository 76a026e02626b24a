// SPDX-License-Identifier: Apache-2.0
#pragma once
// Tile products and row moves of the score engine in f32 and bf16 (attention/score/format.h has
// their f64 definitions).
//
// Operands of products are words of 4 bytes: one f32, or a pair of neighbouring bf16 along the axis
// that is summed over (the first in the lower half). Odd lengths are padded with zeros. Sums are
// f32 either way.

#include <cstdint>

#include "core/cpu/isa.h"
#include "core/dtype.h"

namespace fovea {

// c [m, n] (ldc) = or += a [m, k] b [k, n] (ldb) with k counted in words; word (i, p) of a stands
// at a[i a_row + p a_column], word (p, j) of b at b[p ldb + j]. Up to 12 rows of c by 64 columns
// (AVX2: 4 by 16) stay in registers over k.
struct TileProduct {
  float* c;
  int64_t ldc;
  const void* a;
  int64_t a_row, a_column;
  const void* b;
  int64_t ldb;
  int64_t m, n, k;
  bool accumulate;
  bool pairs;  // words are bf16 pairs; only where cpu_isa() is avx512_bf16
};

// Rows of another tensor: element (i, c) stands at data[i stride + c].
struct TileRows {
  void* data;
  Dtype dtype;  // f32 or bf16
  int64_t stride;
  int64_t rows, columns;
};

// What happens to raw scores s_j = q.k_j of one row before a rule weighs them: cap(scale s_j) -
// slope |position - j step| + bias_j.
struct ScoreAdjustment {
  float scale;
  float softcap;      // 0: none
  float alibi;        // slope; 0: none
  int64_t position;   // of the query, counted from the row's first key
  int64_t step;       // from key to key
  const float* bias;  // [n], or null
  float* capped;      // [n] receives d cap / d (scale s), or null
};

}  // namespace fovea

FOVEA_SIMD_DECLARE(
    void tile_product(const TileProduct& p);

    // to [rows, columns] = factor from, and back
    void load_rows(float* to, const TileRows& from, float factor);
    void store_rows(const TileRows& to, const float* from, float factor);
    // bf16 rows as words: to [rows, (columns + 1) / 2]
    void load_pairs(uint32_t* to, const TileRows& from);
    // f32 rows (ld apart) as words: to [rows, to_ld]; columns is even or padded with zeros in
    // `from`
    void round_pairs(uint32_t* to, int64_t to_ld, const float* from, int64_t ld, int64_t rows,
                     int64_t columns);
    // Neighbouring rows as words: to [(rows + 1) / 2, columns] with (row 2i, row 2i + 1); from bf16
    // rows of `words` words, or from f32 rows ld apart (to_ld apart in `to`).
    void interleave_rows(uint32_t* to, const uint32_t* from, int64_t words, int64_t rows,
                         int64_t columns);
    void interleave_rounded(uint32_t* to, int64_t to_ld, const float* from, int64_t ld,
                            int64_t rows, int64_t columns);
    // to [columns, 64] = from [rows, columns]^T in words, rows <= 64, zeros from column `rows` on
    void transpose_tile(void* to, const void* from, int64_t rows, int64_t columns);
    // x [rows, columns], turned in place by tables cosine, sine [rows, columns]: x cosine +
    // partner(x) sine, where the partner of channel c is c ^ 1 (interleaved) or the channel half
    // the width away. direction -1 turns back.
    void rotate_rows(float* x, int64_t rows, int64_t columns, const float* cosine,
                     const float* sine, bool interleaved, float direction);
    // Whether every element is finite.
    bool rows_are_finite(const TileRows& rows);

    // to [rows] = sum over columns of a [rows, columns] b
    void row_dots(float* to, const float* a, const TileRows& b);
    // s [m, 64] = a [m, d] b [n, d]^T for a few rows a: the products of a decode step, n <= 64
    void few_dots(float* s, const float* a, int64_t m, const float* b, int64_t n, int64_t d);
    // acc [m, d] += w [m, 64] rows [n, d] for a few rows w; a weight of 0 adds nothing, not even a
    // NaN
    void few_sums(float* acc, const float* w, int64_t m, const TileRows& rows);
    void adjust_scores(float* s, int64_t n, const ScoreAdjustment& adjustment);
    // x <- x times 0 or factor; element c is dropped where word first + c of the stream (key, high)
    // is below the threshold
    void drop_row(float* x, int64_t n, uint64_t key, uint64_t high, uint64_t first,
                  uint32_t threshold, float factor);)
