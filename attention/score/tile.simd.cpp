// SPDX-License-Identifier: Apache-2.0
#include "attention/score/tile.h"

#include "core/cpu/philox.h"
#include "core/cpu/simd.h"

namespace FOVEA_SIMD {
namespace {

// ---- products -----------------------------------------------------------------------------------

constexpr int kWide =
    kLanes == 16 ? 4 : 2;  // vectors of c in a row of registers; up to 24 of 32 registers hold c

// acc + a b, a and b words
template <bool kPairs>
FOVEA_INLINE Vec multiply_add(Vec a, Vec b, Vec acc) {
#if defined(__AVX512BF16__)
  if constexpr (kPairs) {
    return {_mm512_dpbf16_ps(acc.v, reinterpret_cast<__m512bh>(_mm512_castps_si512(a.v)),
                             reinterpret_cast<__m512bh>(_mm512_castps_si512(b.v)))};
  }
#endif
  return fma(a, b, acc);
}

// R rows by C vectors from column j; the last vector is masked when `tail`.
template <bool kPairs, int R, int C>
FOVEA_INLINE void block(const TileProduct& p, int64_t i, int64_t j, Mask mask, bool tail) {
  Vec acc[R][C];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const float* from = p.c + (i + r) * p.ldc + j + c * kLanes;
      acc[r][c] = !p.accumulate ? zero() : tail ? load(from, mask) : load(from);
    }
  }
  // Every third row has a pointer of its own: the two rows after it are reached by one scaled index
  // each.
  const int64_t step = p.a_row;
  const float* a[(R + 2) / 3];
#pragma GCC unroll 16
  for (int g = 0; g < (R + 2) / 3; ++g) a[g] = static_cast<const float*>(p.a) + (i + 3 * g) * step;
  const float* b = static_cast<const float*>(p.b) + j;
  for (int64_t q = 0; q < p.k; ++q, b += p.ldb) {
    Vec column[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
      column[c] = tail ? load(b + c * kLanes, mask) : load(b + c * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec left = splat(a[r / 3][(r % 3) * step]);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) acc[r][c] = multiply_add<kPairs>(left, column[c], acc[r][c]);
    }
#pragma GCC unroll 16
    for (int g = 0; g < (R + 2) / 3; ++g) a[g] += p.a_column;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      float* to = p.c + (i + r) * p.ldc + j + c * kLanes;
      if (tail)
        store(to, acc[r][c], mask);
      else
        store(to, acc[r][c]);
    }
  }
}

// All rows of the C vectors from column j, in few kinds of blocks that all keep the multipliers
// busy: m = 6 a + 5 b, or 12 a + 8 b.
template <bool kPairs, int C>
void columns(const TileProduct& p, int64_t j, Mask mask, bool tail) {
  int64_t i = 0;
  if constexpr (kLanes == 16 && C == kWide) {
    const int64_t fives = (6 - p.m % 6) % 6;
    if (5 * fives <= p.m) {
      for (; i + 5 * fives < p.m; i += 6) block<kPairs, 6, C>(p, i, j, mask, tail);
      for (; i < p.m; i += 5) block<kPairs, 5, C>(p, i, j, mask, tail);
    }
  } else if constexpr (kLanes == 16) {
    for (; i + 12 <= p.m && i + 16 != p.m; i += 12) block<kPairs, 12, C>(p, i, j, mask, tail);
    for (; i + 8 <= p.m; i += 8) block<kPairs, 8, C>(p, i, j, mask, tail);
  }
  for (; i + 4 <= p.m; i += 4) block<kPairs, 4, C>(p, i, j, mask, tail);
  for (; i < p.m; ++i) block<kPairs, 1, C>(p, i, j, mask, tail);
}

template <bool kPairs>
void product(const TileProduct& p) {
  const Mask whole = first_lanes(kLanes);
  int64_t j = 0;
  for (; j + kWide * kLanes <= p.n; j += kWide * kLanes) columns<kPairs, kWide>(p, j, whole, false);
  if constexpr (kWide == 4) {
    if (j + 2 * kLanes <= p.n) {
      columns<kPairs, 2>(p, j, whole, false);
      j += 2 * kLanes;
    }
  }
  for (; j < p.n; j += kLanes) columns<kPairs, 1>(p, j, first_lanes(p.n - j), j + kLanes > p.n);
}

}  // namespace

void tile_product(const TileProduct& p) {
#if defined(__AVX512BF16__)
  if (p.pairs) return product<true>(p);
#endif
  product<false>(p);
}

// ---- rows ---------------------------------------------------------------------------------------

namespace {

template <typename T>
void load_rows_of(float* to, const TileRows& from, float factor) {
  const Vec f = splat(factor);
  for (int64_t i = 0; i < from.rows; ++i, to += from.columns) {
    const T* row = static_cast<const T*>(from.data) + i * from.stride;
    int64_t c = 0;
    for (; c + kLanes <= from.columns; c += kLanes) store(to + c, f * load(row + c));
    if (const Mask k = first_lanes(from.columns - c); c < from.columns)
      store(to + c, f * load(row + c, k), k);
  }
}

template <typename T>
void store_rows_of(const TileRows& to, const float* from, float factor) {
  const Vec f = splat(factor);
  for (int64_t i = 0; i < to.rows; ++i, from += to.columns) {
    T* row = static_cast<T*>(to.data) + i * to.stride;
    int64_t c = 0;
    if (reinterpret_cast<uintptr_t>(row) % 64 ==
        0) {  // past the caches: strided rows would be fetched first, to be overwritten
      for (; c + kLanes <= to.columns; c += kLanes) stream(row + c, f * load(from + c));
    }
    for (; c + kLanes <= to.columns; c += kLanes) store(row + c, f * load(from + c));
    if (const Mask k = first_lanes(to.columns - c); c < to.columns)
      store(row + c, f * load(from + c, k), k);
  }
}

template <typename T>
void row_dots_of(float* to, const float* a, const TileRows& b) {
  for (int64_t i = 0; i < b.rows; ++i, a += b.columns) {
    const T* row = static_cast<const T*>(b.data) + i * b.stride;
    Vec total = zero();
    int64_t c = 0;
    for (; c + kLanes <= b.columns; c += kLanes) total = fma(load(a + c), load(row + c), total);
    if (const Mask k = first_lanes(b.columns - c); c < b.columns)
      total = total + select(k, load(a + c, k) * load(row + c, k), zero());
    to[i] = sum(total);
  }
}

template <typename T>
bool finite(const TileRows& rows) {
  // x - x is 0 for a finite x and NaN otherwise, and a NaN stays in the sum.
  Vec total = zero();
  for (int64_t i = 0; i < rows.rows; ++i) {
    const T* row = static_cast<const T*>(rows.data) + i * rows.stride;
    for (int64_t c = 0; c < rows.columns; c += kLanes) {
      const Vec x =
          rows.columns - c >= kLanes ? load(row + c) : load(row + c, first_lanes(rows.columns - c));
      total = total + (x - x);
    }
  }
  return sum(total) == 0.0f;
}

template <typename T>
void few_sums_of(float* acc, const float* w, int64_t m, const TileRows& rows) {
  for (int64_t r = 0; r < m; ++r, acc += rows.columns, w += 64) {
    for (int64_t c = 0; c < rows.columns; c += kLanes) {
      const Mask k = first_lanes(rows.columns - c);
      Vec total = load(acc + c, k);
      for (int64_t j = 0; j < rows.rows; ++j) {
        if (w[j] != 0.0f)
          total = fma(splat(w[j]), load(static_cast<const T*>(rows.data) + j * rows.stride + c, k),
                      total);
      }
      store(acc + c, total, k);
    }
  }
}

}  // namespace

void load_rows(float* to, const TileRows& from, float factor) {
  if (from.dtype == Dtype::bf16)
    load_rows_of<bf16>(to, from, factor);
  else
    load_rows_of<float>(to, from, factor);
}

void store_rows(const TileRows& to, const float* from, float factor) {
  if (to.dtype == Dtype::bf16)
    store_rows_of<bf16>(to, from, factor);
  else
    store_rows_of<float>(to, from, factor);
  end_streaming();
}

bool rows_are_finite(const TileRows& rows) {
  return rows.dtype == Dtype::bf16 ? finite<bf16>(rows) : finite<float>(rows);
}

void row_dots(float* to, const float* a, const TileRows& b) {
  if (b.dtype == Dtype::bf16)
    row_dots_of<bf16>(to, a, b);
  else
    row_dots_of<float>(to, a, b);
}

void transpose_tile(void* to_words, const void* from_words, int64_t rows, int64_t columns) {
  auto* to = static_cast<float*>(to_words);
  const auto* from = static_cast<const float*>(from_words);
  for (int64_t c = 0; c < columns; c += kLanes) {
    const int64_t width = columns - c < kLanes ? columns - c : kLanes;
    const Mask k = first_lanes(width);
    for (int64_t i = 0; i < 64; i += kLanes) {
      Vec block[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r)
        block[r] = i + r < rows ? load(from + (i + r) * columns + c, k) : zero();
      transpose(block);
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) {
        if (r < width) store(to + (c + r) * 64 + i, block[r]);
      }
    }
  }
}

void rotate_rows(float* x, int64_t rows, int64_t columns, const float* cosine, const float* sine,
                 bool interleaved, float direction) {
  const Vec sign = splat(direction);
  const int64_t half = columns / 2;
  for (int64_t i = 0; i < rows; ++i, x += columns, cosine += columns, sine += columns) {
    if (interleaved) {
      for (int64_t c = 0; c < columns; c += kLanes) {
        const Mask k = first_lanes(columns - c);
        const Vec v = load(x + c, k);
        store(x + c, fma(v, load(cosine + c, k), sign * load(sine + c, k) * swap_neighbours(v)), k);
      }
    } else {
      for (int64_t c = 0; c < half; c += kLanes) {
        const Mask k = first_lanes(half - c);
        const Vec a = load(x + c, k), b = load(x + half + c, k);
        store(x + c, fma(a, load(cosine + c, k), sign * load(sine + c, k) * b), k);
        store(x + half + c, fma(b, load(cosine + half + c, k), sign * load(sine + half + c, k) * a),
              k);
      }
    }
  }
}

// ---- bf16 pairs (reached only where the products take them) -------------------------------------

#if defined(__AVX512BF16__)

namespace {
FOVEA_INLINE uint32_t pair_of(const bf16* row, int64_t c, int64_t columns) {
  return row[c].bits | (c + 1 < columns ? static_cast<uint32_t>(row[c + 1].bits) << 16 : 0u);
}
// (a[l], b[l]) rounded, a in the lower half
FOVEA_INLINE __m512i rounded_pairs(Vec a, Vec b) {
  const __m512i index = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(index, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b.v, a.v)));
}
}  // namespace

void load_pairs(uint32_t* to, const TileRows& from) {
  const int64_t words = (from.columns + 1) / 2;
  for (int64_t i = 0; i < from.rows; ++i, to += words) {
    const bf16* row = static_cast<const bf16*>(from.data) + i * from.stride;
    int64_t c = 0;
    for (; c + 32 <= from.columns; c += 32)
      _mm512_storeu_si512(to + c / 2, _mm512_loadu_si512(row + c));
    for (; c < from.columns; c += 2) to[c / 2] = pair_of(row, c, from.columns);
  }
}

void round_pairs(uint32_t* to, int64_t to_ld, const float* from, int64_t ld, int64_t rows,
                 int64_t columns) {
  for (int64_t i = 0; i < rows; ++i, to += to_ld, from += ld) {
    int64_t c = 0;
    for (; c + 32 <= columns; c += 32) {
      _mm512_storeu_si512(
          to + c / 2, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + c + 16),
                                                                    _mm512_loadu_ps(from + c))));
    }
    for (; c < columns; c += 2)
      to[c / 2] = bf16(from[c]).bits |
                  (c + 1 < columns ? static_cast<uint32_t>(bf16(from[c + 1]).bits) << 16 : 0u);
  }
}

void interleave_rows(uint32_t* to, const uint32_t* from, int64_t words, int64_t rows,
                     int64_t columns) {
  for (int64_t i = 0; i < rows; i += 2, to += columns, from += 2 * words) {
    const auto *even = reinterpret_cast<const uint16_t*>(from),
               *odd = reinterpret_cast<const uint16_t*>(from + words);
    for (int64_t c = 0; c < columns; c += 16) {
      const __mmask16 k = first_lanes(columns - c).m;
      const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(k, even + c));
      const __m512i high = i + 1 < rows
                               ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(k, odd + c))
                               : _mm512_setzero_si512();
      _mm512_mask_storeu_epi32(to + c, k, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }
}

void interleave_rounded(uint32_t* to, int64_t to_ld, const float* from, int64_t ld, int64_t rows,
                        int64_t columns) {
  for (int64_t i = 0; i < rows; i += 2, to += to_ld, from += 2 * ld) {
    for (int64_t c = 0; c < columns; c += 16) {
      const Mask k = first_lanes(columns - c);
      const Vec a = load(from + c, k), b = i + 1 < rows ? load(from + ld + c, k) : zero();
      _mm512_mask_storeu_epi32(to + c, k.m, rounded_pairs(a, b));
    }
  }
}

#else

void load_pairs(uint32_t*, const TileRows&) { __builtin_trap(); }
void round_pairs(uint32_t*, int64_t, const float*, int64_t, int64_t, int64_t) { __builtin_trap(); }
void interleave_rows(uint32_t*, const uint32_t*, int64_t, int64_t, int64_t) { __builtin_trap(); }
void interleave_rounded(uint32_t*, int64_t, const float*, int64_t, int64_t, int64_t) {
  __builtin_trap();
}

#endif

// ---- few queries --------------------------------------------------------------------------------

void few_dots(float* s, const float* a, int64_t m, const float* b, int64_t n, int64_t d) {
  for (int64_t r = 0; r < m; ++r, a += d, s += 64) {
    for (int64_t j = 0; j < n; ++j) {
      const float* key = b + j * d;
      Vec total = zero();
      int64_t c = 0;
      for (; c + kLanes <= d; c += kLanes) total = fma(load(a + c), load(key + c), total);
      if (const Mask k = first_lanes(d - c); c < d)
        total = fma(load(a + c, k), load(key + c, k), total);
      s[j] = sum(total);
    }
  }
}

void few_sums(float* acc, const float* w, int64_t m, const TileRows& rows) {
  if (rows.dtype == Dtype::bf16)
    few_sums_of<bf16>(acc, w, m, rows);
  else
    few_sums_of<float>(acc, w, m, rows);
}

// ---- scores -------------------------------------------------------------------------------------

void adjust_scores(float* s, int64_t n, const ScoreAdjustment& a) {
  const Vec scale = splat(a.scale), c = splat(a.softcap),
            inverse = splat(a.softcap > 0.0f ? 1.0f / a.softcap : 0.0f), slope = splat(a.alibi),
            step = splat(static_cast<float>(a.step));
  for (int64_t j = 0; j < n; j += kLanes) {
    const Mask k = first_lanes(n - j);
    Vec x = scale * load(s + j, k);
    if (a.softcap > 0.0f) {
      const Vec t = tanh(x * inverse);
      if (a.capped != nullptr) store(a.capped + j, splat(1.0f) - t * t, k);
      x = c * t;
    }
    if (a.alibi != 0.0f)
      x = fnma(slope,
               abs(splat(static_cast<float>(a.position - j * a.step)) - step * lane_numbers()), x);
    if (a.bias != nullptr) x = x + load(a.bias + j, k);
    store(s + j, x, k);
  }
}

void drop_row(float* x, int64_t n, uint64_t key, uint64_t high, uint64_t first, uint32_t threshold,
              float factor) {
  alignas(64) uint32_t words[4 * kPhiloxBlocks];
  for (int64_t done = 0; done < n;) {
    const uint64_t index = first + static_cast<uint64_t>(done);
    philox_blocks(words, key, high, index >> 2);
    const auto skip = static_cast<int64_t>(index & 3);
    const int64_t count = n - done < 4 * kPhiloxBlocks - skip ? n - done : 4 * kPhiloxBlocks - skip;
    for (int64_t c = 0; c < count; c += kLanes) {
      const Mask k = first_lanes(count - c), dropped = load(words + skip + c, k) < all(threshold);
      store(x + done + c, select(dropped, zero(), splat(factor) * load(x + done + c, k)), k);
    }
    done += count;
  }
}

}  // namespace FOVEA_SIMD
