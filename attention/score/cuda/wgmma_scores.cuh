// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a thread of a warpgroup does to the scores that it holds (wgmma_tile.cuh): masks, soft-caps
// and their like, weights, dropout. All in registers: a thread knows its rows and columns.

#include "attention/score/cuda/wgmma_tile.cuh"

namespace FOVEA_GPU {

// Hides keys of the thread's two rows, i and i + 8, of keys from j0 on.
template <int kKeys>
__device__ inline void hide_by_position(const Arguments<bf16>& a, int i, int j0,
                                        float (&s)[kKeys / 2]) {
  const int column0 = j0 + static_cast<int>(threadIdx.x) % 4 * 2;
  FOVEA_UNROLL
  for (int half = 0; half < 2; ++half) {
    const Keys keys = key_limits(a, smaller(i + 8 * half, a.N - 1));
    const int first = keys.first - column0, last = keys.last - column0;
    FOVEA_UNROLL
    for (int n = 0; n < kKeys / 4; ++n) {
      const int c = n / 2 * 8 + n % 2;
      float& x = s[n / 2 * 4 + 2 * half + n % 2];
      if (c < first || c >= last) x = -INFINITY;
    }
  }
}

// f(j) of the keys of a thread's row, in order: 2 (n / 2 * 4 + lane % 4) + n % 2 for n = 0, 1, ...;
// the bits that it returns, the first the lowest.
template <int kKeys, typename F>
__device__ inline uint32_t bits_of(int j0, F&& f) {
  const int column0 = j0 + static_cast<int>(threadIdx.x) % 4 * 2;
  uint32_t bits = 0;
  FOVEA_NO_UNROLL
  for (int n = 0; n < kKeys / 4; ++n)
    bits |= (f(column0 + n / 2 * 8 + n % 2) ? uint32_t{1} : uint32_t{0}) << n;
  return bits;
}
// x of a row's scores whose bit is not set becomes hidden(x).
template <int kKeys, typename F>
__device__ inline void where_clear(uint32_t bits, int half, float (&s)[kKeys / 2], F&& hidden) {
  FOVEA_UNROLL
  for (int n = 0; n < kKeys / 4; ++n) {
    float& x = s[n / 2 * 4 + 2 * half + n % 2];
    x = (bits >> n & 1u) != 0 ? x : hidden(x);
  }
}

// A tile's products to scores before `factor`: adjusted, and hidden ones -inf unless `whole`.
template <int kKeys>
__device__ inline void finish_scores(const Arguments<bf16>& a, int b, int h, int i, int j0,
                                     bool whole, float (&s)[kKeys / 2]) {
  const int column0 = j0 + static_cast<int>(threadIdx.x) % 4 * 2;
  FOVEA_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row = smaller(i + 8 * half, a.N - 1);
    if (a.adjusts) {
      FOVEA_UNROLL
      for (int n = 0; n < kKeys / 4; ++n) {
        float& x = s[n / 2 * 4 + 2 * half + n % 2];
        x = adjusted(a, b, h, row, smaller(column0 + n / 2 * 8 + n % 2, a.M - 1), x);
      }
    }
    if (!whole)
      where_clear<kKeys>(
          bits_of<kKeys>(j0, [&](int j) { return j < a.M && allowed<false>(a, b, h, row, j); }),
          half, s, [](float) { return -INFINITY; });
  }
}

// Dropout of a tile's weights.
template <int kKeys>
__device__ inline void drop(const Arguments<bf16>& a, int b, int h, int i, int j0,
                            float (&w)[kKeys / 2]) {
  FOVEA_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row = smaller(i + 8 * half, a.N - 1);
    where_clear<kKeys>(bits_of<kKeys>(j0, [&](int j) { return keep_of(a, b, h, row, j) != 0.0f; }),
                       half, w, [](float) { return 0.0f; });
  }
  FOVEA_UNROLL
  for (int n = 0; n < kKeys / 2; ++n) w[n] *= a.keep_factor;
}

// Of a thread's two rows: m in base 2; l of the thread's columns.
struct RowState {
  float m[2], l[2];
};

// How far, in base 2, scores may rise above m before m follows them. Any m gives the same quotient;
// weights up to 2^kSlack lose nothing, and sums are seldom multiplied after the first keys.
constexpr float kSlack = 8.0f;

// A tile's scores to weights, in place; returns what the rows' sums so far are to be multiplied by.
template <class Rule, int kKeys>
__device__ inline Vec<float, 2> weigh(const Rule& rule, float factor, float (&s)[kKeys / 2],
                                      RowState& state) {
  Vec<float, 2> rescale{{1.0f, 1.0f}};
  float reference[2] = {0.0f, 0.0f};
  if constexpr (Rule::kOnline) {
    FOVEA_UNROLL
    for (int half = 0; half < 2; ++half) {
      float top = -INFINITY;
      FOVEA_UNROLL
      for (int n = 0; n < kKeys / 8; ++n)
        top = max(top, max(s[4 * n + 2 * half], s[4 * n + 2 * half + 1]));
      top = quad_max(top) * factor;
      top = top - state.m[half] > kSlack ? top : state.m[half];
      reference[half] = top == -INFINITY ? 0.0f : top;  // nothing seen: weights 0 of any number
      rescale[half] = exp2_fast(state.m[half] - reference[half]);
      state.m[half] = top;
      state.l[half] *= rescale[half];
    }
  }
  FOVEA_UNROLL
  for (int half = 0; half < 2; ++half) {
    FOVEA_UNROLL
    for (int n = 0; n < kKeys / 4; ++n) {
      float& x = s[n / 2 * 4 + 2 * half + n % 2];
      float w = weight_of(rule, x * factor, reference[half]);
      if constexpr (!Rule::kOnline) w = x == -INFINITY ? 0.0f : w;
      state.l[half] += w;
      x = w;
    }
  }
  return rescale;
}

}  // namespace FOVEA_GPU
