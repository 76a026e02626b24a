// SPDX-License-Identifier: Apache-2.0
#pragma once
// The three ways the engine computes a tile, as static functions of one shape:
//   F64    double, plain loops: the definition that the others are held to
//   F32    f32 products; also bf16 inputs on processors without bf16 products
//   Pairs  bf16 products with f32 sums; everything between products is f32
// A word is what a product multiplies: one number, or a pair of bf16 along the summed axis
// (attention/score/tile.h).

#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention/score/rule.h"
#include "attention/score/tile.h"
#include "core/rng.h"

namespace fovea::attention {

// Word (i, p) of the left factor of a product stands at data[i row + p column].
template <typename Word>
struct Operand {
  const Word* data;
  int64_t row, column;
};

struct F32 {
  using Acc = float;
  using Word = float;
  static constexpr int64_t kPack = 1;  // numbers a word

  static void product(float* c, int64_t ldc, const Operand<float>& a, const float* b, int64_t ldb,
                      int64_t m, int64_t n, int64_t k, bool accumulate) {
    const TileProduct p{c, ldc, a.data, a.row, a.column, b, ldb, m, n, k, accumulate, false};
    FOVEA_SIMD_CALL(tile_product, p);
  }
  static void load(float* to, const TileRows& from) { FOVEA_SIMD_CALL(load_rows, to, from, 1.0f); }
  static void round(float*, const float*, int64_t, int64_t) {}
  static void transpose(float* to, const float* from, int64_t rows, int64_t words) {
    FOVEA_SIMD_CALL(transpose_tile, to, from, rows, words);
  }
  // A tile of scores as the left factor of a product over its keys, or over its queries
  // (transposed).
  static Operand<float> over_keys(float*, const float* s, int64_t, int64_t) {
    return {s, kScoreTile, 1};
  }
  static Operand<float> over_queries(float*, const float* s, int64_t, int64_t) {
    return {s, 1, kScoreTile};
  }

  static void load_numbers(float* to, const TileRows& from) {
    FOVEA_SIMD_CALL(load_rows, to, from, 1.0f);
  }
  static void store(const TileRows& to, const float* from, double factor) {
    FOVEA_SIMD_CALL(store_rows, to, from, static_cast<float>(factor));
  }
  static bool finite(const TileRows& rows) { return FOVEA_SIMD_CALL(rows_are_finite, rows); }
  static void dots(float* to, const float* a, const TileRows& b) {
    FOVEA_SIMD_CALL(row_dots, to, a, b);
  }
  static void rotate(float* x, int64_t rows, int64_t columns, const float* cosine,
                     const float* sine, bool interleaved, float direction) {
    FOVEA_SIMD_CALL(rotate_rows, x, rows, columns, cosine, sine, interleaved, direction);
  }
  static void forward_rows(const ScoreRule& rule, const RowForward<float>& rows) {
    rule.forward(rows);
  }
  static void backward_rows(const ScoreRule& rule, const RowBackward<float>& rows) {
    rule.backward(rows);
  }
  static void adjust(float* s, int64_t n, double scale, double softcap, double alibi,
                     int64_t position, int64_t step, const float* bias, float* capped) {
    const ScoreAdjustment a{static_cast<float>(scale),
                            static_cast<float>(softcap),
                            static_cast<float>(alibi),
                            position,
                            step,
                            bias,
                            capped};
    FOVEA_SIMD_CALL(adjust_scores, s, n, a);
  }
  static void drop(float* x, int64_t n, const RngKey& rng, uint64_t first, uint32_t threshold,
                   double factor) {
    FOVEA_SIMD_CALL(drop_row, x, n, rng.key, rng.high, first, threshold,
                    static_cast<float>(factor));
  }
  static void few_dots(float* s, const float* a, int64_t m, const float* b, int64_t n, int64_t d) {
    FOVEA_SIMD_CALL(few_dots, s, a, m, b, n, d);
  }
  static void few_sums(float* acc, const float* w, int64_t m, const TileRows& rows) {
    FOVEA_SIMD_CALL(few_sums, acc, w, m, rows);
  }
};

struct Pairs : F32 {
  using Word = uint32_t;
  static constexpr int64_t kPack = 2;

  static void product(float* c, int64_t ldc, const Operand<Word>& a, const Word* b, int64_t ldb,
                      int64_t m, int64_t n, int64_t k, bool accumulate) {
    const TileProduct p{c, ldc, a.data, a.row, a.column, b, ldb, m, n, k, accumulate, true};
    avx512::tile_product(p);
  }
  static void load(Word* to, const TileRows& from) { avx512::load_pairs(to, from); }
  // Rows of numbers as words.
  static void round(Word* to, const float* from, int64_t rows, int64_t columns) {
    avx512::round_pairs(to, (columns + 1) / 2, from, columns, rows, columns);
  }
  static void transpose(Word* to, const Word* from, int64_t rows, int64_t words) {
    avx512::transpose_tile(to, from, rows, words);
  }
  static Operand<Word> over_keys(Word* buffer, const float* s, int64_t rows, int64_t columns) {
    avx512::round_pairs(buffer, kScoreTile / 2, s, kScoreTile, rows, columns);
    return {buffer, kScoreTile / 2, 1};
  }
  static Operand<Word> over_queries(Word* buffer, const float* s, int64_t rows, int64_t columns) {
    avx512::interleave_rounded(buffer, kScoreTile, s, kScoreTile, rows, columns);
    return {buffer, 1, kScoreTile};
  }
  // Neighbouring rows as words: [rows, columns] -> [rows / 2, columns]
  static void interleave(Word* to, const Word* from, int64_t rows, int64_t columns) {
    avx512::interleave_rows(to, from, (columns + 1) / 2, rows, columns);
  }
};

struct F64 {
  using Acc = double;
  using Word = double;
  static constexpr int64_t kPack = 1;

  static void product(double* c, int64_t ldc, const Operand<double>& a, const double* b,
                      int64_t ldb, int64_t m, int64_t n, int64_t k, bool accumulate) {
    for (int64_t i = 0; i < m; ++i) {
      if (!accumulate) std::fill(c + i * ldc, c + i * ldc + n, 0.0);
      for (int64_t p = 0; p < k; ++p) {
        const double left = a.data[i * a.row + p * a.column];
        for (int64_t j = 0; j < n; ++j) c[i * ldc + j] += left * b[p * ldb + j];
      }
    }
  }
  static void load(double* to, const TileRows& from) {
    for (int64_t i = 0; i < from.rows; ++i)
      std::copy_n(static_cast<const double*>(from.data) + i * from.stride, from.columns,
                  to + i * from.columns);
  }
  static void round(double*, const double*, int64_t, int64_t) {}
  static void transpose(double* to, const double* from, int64_t rows, int64_t words) {
    for (int64_t c = 0; c < words; ++c) {
      for (int64_t i = 0; i < kScoreTile; ++i)
        to[c * kScoreTile + i] = i < rows ? from[i * words + c] : 0.0;
    }
  }
  static Operand<double> over_keys(double*, const double* s, int64_t, int64_t) {
    return {s, kScoreTile, 1};
  }
  static Operand<double> over_queries(double*, const double* s, int64_t, int64_t) {
    return {s, 1, kScoreTile};
  }

  static void load_numbers(double* to, const TileRows& from) { load(to, from); }
  static void store(const TileRows& to, const double* from, double factor) {
    for (int64_t i = 0; i < to.rows; ++i) {
      for (int64_t c = 0; c < to.columns; ++c)
        static_cast<double*>(to.data)[i * to.stride + c] = factor * from[i * to.columns + c];
    }
  }
  static bool finite(const TileRows& rows) {
    for (int64_t i = 0; i < rows.rows; ++i) {
      const double* row = static_cast<const double*>(rows.data) + i * rows.stride;
      if (!std::all_of(row, row + rows.columns, [](double x) { return std::isfinite(x); }))
        return false;
    }
    return true;
  }
  static void dots(double* to, const double* a, const TileRows& b) {
    for (int64_t i = 0; i < b.rows; ++i) {
      to[i] = 0.0;
      for (int64_t c = 0; c < b.columns; ++c)
        to[i] += a[i * b.columns + c] * static_cast<const double*>(b.data)[i * b.stride + c];
    }
  }
  static void rotate(double* x, int64_t rows, int64_t columns, const double* cosine,
                     const double* sine, bool interleaved, double direction) {
    for (int64_t i = 0; i < rows; ++i, x += columns, cosine += columns, sine += columns) {
      for (int64_t t = 0; t < columns / 2; ++t) {
        const int64_t one = interleaved ? 2 * t : t,
                      other = interleaved ? 2 * t + 1 : t + columns / 2;
        const double a = x[one], b = x[other];
        x[one] = a * cosine[one] + direction * sine[one] * b;
        x[other] = b * cosine[other] + direction * sine[other] * a;
      }
    }
  }
  static void forward_rows(const ScoreRule& rule, const RowForward<double>& rows) {
    rule.forward_f64(rows);
  }
  static void backward_rows(const ScoreRule& rule, const RowBackward<double>& rows) {
    rule.backward_f64(rows);
  }
  static void adjust(double* s, int64_t n, double scale, double softcap, double alibi,
                     int64_t position, int64_t step, const double* bias, double* capped) {
    for (int64_t j = 0; j < n; ++j) {
      s[j] *= scale;
      if (softcap > 0.0) {
        const double t = std::tanh(s[j] / softcap);
        if (capped != nullptr) capped[j] = 1.0 - t * t;
        s[j] = softcap * t;
      }
      s[j] -= alibi * static_cast<double>(std::abs(position - j * step));
      if (bias != nullptr) s[j] += bias[j];
    }
  }
  static void drop(double* x, int64_t n, const RngKey& rng, uint64_t first, uint32_t threshold,
                   double factor) {
    for (int64_t c = 0; c < n; ++c)
      x[c] *= random_word(rng, first + static_cast<uint64_t>(c)) < threshold ? 0.0 : factor;
  }
  static void few_dots(double* s, const double* a, int64_t m, const double* b, int64_t n,
                       int64_t d) {
    for (int64_t r = 0; r < m; ++r) {
      for (int64_t j = 0; j < n; ++j) {
        s[r * kScoreTile + j] = 0.0;
        for (int64_t c = 0; c < d; ++c) s[r * kScoreTile + j] += a[r * d + c] * b[j * d + c];
      }
    }
  }
  static void few_sums(double* acc, const double* w, int64_t m, const TileRows& rows) {
    for (int64_t r = 0; r < m; ++r) {
      for (int64_t j = 0; j < rows.rows; ++j) {
        if (w[r * kScoreTile + j] == 0.0) continue;  // a hidden key adds nothing, not even a NaN
        for (int64_t c = 0; c < rows.columns; ++c)
          acc[r * rows.columns + c] +=
              w[r * kScoreTile + j] * static_cast<const double*>(rows.data)[j * rows.stride + c];
      }
    }
  }
};

}  // namespace fovea::attention
