// SPDX-License-Identifier: Apache-2.0
#include "attention/score/tile.h"

#include "core/cpu/simd.h"

namespace FOVEA_SIMD {
namespace {

constexpr int kRows = 4;
constexpr int kColumns = kLanes == 16 ? 4 : 2;  // vectors of c in a row of registers

// R rows by C vectors from column j; the last vector is masked when `tail`.
template <int R, int C>
FOVEA_INLINE void block(const TileProduct& p, int64_t i, int64_t j, Mask mask, bool tail) {
  Vec acc[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const float* from = p.c + (i + r) * p.ldc + j + c * kLanes;
      acc[r][c] = !p.accumulate ? zero() : tail ? load(from, mask) : load(from);
    }
  }
  const float* a = p.a + i * p.a_row;
  const float* b = p.b + j;
  for (int64_t q = 0; q < p.k; ++q, a += p.a_column, b += p.ldb) {
    Vec column[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) column[c] = tail ? load(b + c * kLanes, mask) : load(b + c * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec left = splat(a[r * p.a_row]);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) acc[r][c] = fma(left, column[c], acc[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      float* to = p.c + (i + r) * p.ldc + j + c * kLanes;
      if (tail) store(to, acc[r][c], mask);
      else store(to, acc[r][c]);
    }
  }
}

template <int R>
void rows(const TileProduct& p, int64_t i) {
  const Mask whole = first_lanes(kLanes);
  int64_t j = 0;
  for (; j + kColumns * kLanes <= p.n; j += kColumns * kLanes) block<R, kColumns>(p, i, j, whole, false);
  if constexpr (kColumns == 4) {
    if (j + 2 * kLanes <= p.n) {
      block<R, 2>(p, i, j, whole, false);
      j += 2 * kLanes;
    }
  }
  for (; j + kLanes <= p.n; j += kLanes) block<R, 1>(p, i, j, whole, false);
  if (j < p.n) block<R, 1>(p, i, j, first_lanes(p.n - j), true);
}

}  // namespace

void tile_product(const TileProduct& p) {
  int64_t i = 0;
  for (; i + kRows <= p.m; i += kRows) rows<kRows>(p, i);
  for (; i < p.m; ++i) rows<1>(p, i);
}

void softmax_rows(float* s, int64_t rows, int64_t n, float* m, float* l, float* acc, int64_t dv) {
  constexpr float kNone = -__builtin_inff();
  for (int64_t r = 0; r < rows; ++r, s += 64, acc += dv) {
    Vec largest = splat(kNone);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) largest = max(load(s + i), largest);
    const Mask tail = first_lanes(n - i);
    if (i < n) largest = max(select(tail, load(s + i, tail), splat(kNone)), largest);
    float top = max_lane(largest);
    top = top > m[r] ? top : m[r];
    if (top == kNone) {
      // Nothing seen yet. NaN scores compare false above and are kept: the row is broken, and says so.
      for (int64_t j = 0; j < n; ++j) s[j] = s[j] != s[j] ? s[j] : 0.0f;
      for (int64_t j = 0; j < n; ++j) l[r] += s[j];
      continue;
    }
    if (top != m[r]) {
      const float factor = m[r] == kNone ? 0.0f : __builtin_expf(m[r] - top);
      l[r] *= factor;
      m[r] = top;
      for (int64_t d = 0; d < dv; d += kLanes) {
        const Mask k = first_lanes(dv - d);
        store(acc + d, splat(factor) * load(acc + d, k), k);
      }
    }
    const Vec shift = splat(top);
    Vec total = zero();
    for (i = 0; i + kLanes <= n; i += kLanes) {
      const Vec e = exp(load(s + i) - shift);
      store(s + i, e);
      total = total + e;
    }
    if (i < n) {
      const Vec e = select(tail, exp(load(s + i, tail) - shift), zero());
      store(s + i, e, tail);
      total = total + e;
    }
    l[r] += sum(total);
  }
}

void softmax_rows_backward(float* s, float* dp, int64_t rows, int64_t n, const float* lse, const float* delta) {
  for (int64_t r = 0; r < rows; ++r, s += 64, dp += 64) {
    if (lse[r] == -__builtin_inff()) {
      for (int64_t j = 0; j < n; ++j) s[j] = dp[j] = 0.0f;
      continue;
    }
    const Vec z = splat(lse[r]), d = splat(delta[r]);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      const Vec p = exp(load(s + i) - z);
      store(s + i, p);
      store(dp + i, p * (load(dp + i) - d));
    }
    if (i < n) {
      const Mask tail = first_lanes(n - i);
      const Vec p = exp(load(s + i, tail) - z);
      store(s + i, p, tail);
      store(dp + i, p * (load(dp + i, tail) - d), tail);
    }
  }
}

void softcap_row(float* s, float* slope, int64_t n, float cap) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const Mask k = first_lanes(n - i);
    const Vec t = tanh(load(s + i, k) / splat(cap));
    store(s + i, splat(cap) * t, k);
    if (slope != nullptr) store(slope + i, splat(1.0f) - t * t, k);
  }
}

namespace {

template <typename T>
void load_rows_of(float* to, const TileRows& from, float factor) {
  const Vec f = splat(factor);
  for (int64_t i = 0; i < from.rows; ++i, to += from.columns) {
    const T* row = static_cast<const T*>(from.data) + i * from.stride;
    int64_t c = 0;
    for (; c + kLanes <= from.columns; c += kLanes) store(to + c, f * load(row + c));
    if (const Mask k = first_lanes(from.columns - c); c < from.columns) store(to + c, f * load(row + c, k), k);
  }
}

template <typename T>
void store_rows_of(const TileRows& to, const float* from, float factor) {
  const Vec f = splat(factor);
  for (int64_t i = 0; i < to.rows; ++i, from += to.columns) {
    T* row = static_cast<T*>(to.data) + i * to.stride;
    int64_t c = 0;
    for (; c + kLanes <= to.columns; c += kLanes) store(row + c, f * load(from + c));
    if (const Mask k = first_lanes(to.columns - c); c < to.columns) store(row + c, f * load(from + c, k), k);
  }
}

template <typename T>
void row_dots_of(float* to, const float* a, const TileRows& b) {
  for (int64_t i = 0; i < b.rows; ++i, a += b.columns) {
    const T* row = static_cast<const T*>(b.data) + i * b.stride;
    Vec total = zero();
    int64_t c = 0;
    for (; c + kLanes <= b.columns; c += kLanes) total = fma(load(a + c), load(row + c), total);
    if (const Mask k = first_lanes(b.columns - c); c < b.columns) total = total + select(k, load(a + c, k) * load(row + c, k), zero());
    to[i] = sum(total);
  }
}

}  // namespace

void load_rows(float* to, const TileRows& from, float factor) {
  if (from.dtype == Dtype::bf16) load_rows_of<bf16>(to, from, factor);
  else load_rows_of<float>(to, from, factor);
}

void store_rows(const TileRows& to, const float* from, float factor) {
  if (to.dtype == Dtype::bf16) store_rows_of<bf16>(to, from, factor);
  else store_rows_of<float>(to, from, factor);
}

void row_dots(float* to, const float* a, const TileRows& b) {
  if (b.dtype == Dtype::bf16) row_dots_of<bf16>(to, a, b);
  else row_dots_of<float>(to, a, b);
}

void transpose_tile(float* to, const float* from, int64_t rows, int64_t columns) {
  for (int64_t c = 0; c < columns; c += kLanes) {
    const int64_t width = columns - c < kLanes ? columns - c : kLanes;
    const Mask k = first_lanes(width);
    for (int64_t i = 0; i < 64; i += kLanes) {
      Vec block[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) block[r] = i + r < rows ? load(from + (i + r) * columns + c, k) : zero();
      transpose(block);
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) {
        if (r < width) store(to + (c + r) * 64 + i, block[r]);
      }
    }
  }
}

}  // namespace FOVEA_SIMD
