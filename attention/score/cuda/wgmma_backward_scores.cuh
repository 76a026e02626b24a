// SPDX-License-Identifier: Apache-2.0
#pragma once
// From products to weights and to dS in the registers of backward on Hopper (wgmma_backward.cuh).
//
// Element e of a thread's scores: key row + 8 (e >> 1 & 1) of the block, query 8 (e >> 2) + column
// + (e & 1) of the tile, with row = 64 group + 16 warp + lane / 4 and column = lane % 4 * 2.

#include "attention/score/cuda/wgmma_backward_tiles.cuh"

namespace FOVEA_GPU {

// A bit for each of 32 elements, from number `first` on: f(query, which key).
template <typename F>
__device__ inline uint32_t bits_of(int first, F&& f) {
  uint32_t bits = 0;
  const int column = static_cast<int>(threadIdx.x) % 4 * 2;
  FOVEA_NO_UNROLL
  for (int c = 0; c < 16; ++c) {
    const int query = first / 4 * 8 + (c >> 1) * 8 + column + (c & 1);
    FOVEA_UNROLL
    for (int half = 0; half < 2; ++half)
      bits |= (f(query, half) ? 1u : 0u) << ((c >> 1) * 4 + 2 * half + (c & 1));
  }
  return bits;
}

// Raw products -> -inf where positions hide a key, and past the last.
template <class F>
__device__ inline void hide(const Arguments<bf16>& a, float (&s)[F::kQ / 2], int j0, int i0) {
  FOVEA_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int j = j0 + 8 * half;
    Queries seen = query_limits(a, j);
    if (j >= a.M) seen.last = seen.first;
    const int first = seen.first - i0, last = seen.last - i0;
    FOVEA_UNROLL
    for (int e = 0; e < F::kQ / 2; ++e) {
      if ((e >> 1 & 1) != half) continue;
      const int c = 8 * (e >> 2) + (e & 1);
      if (c < first || c >= last) s[e] = -INFINITY;
    }
  }
}

// What general calls do to the scores of a head. A thread's elements: those `seen`, and those that
// dropout kept, by bits.
template <class F>
struct General {
  float slope, inverse_cap;
  uint32_t seen[F::kQ / 64], kept[F::kQ / 64];
  __device__ bool sees(int e) const { return (seen[e / 32] >> (e % 32) & 1u) != 0; }
  __device__ bool keeps(int e) const { return (kept[e / 32] >> (e % 32) & 1u) != 0; }
};
template <class F>
__device__ inline General<F> general_of(const Arguments<bf16>& a, int b, const Step& step, int j0) {
  General<F> general;
  general.slope = general.inverse_cap = 0.0f;
  if (!(a.slopes == nullptr)) general.slope = a.slopes[step.h];
  if (a.softcap > 0.0f) general.inverse_cap = 1.0f / a.softcap;
  const int i0 = step.tile() * F::kQ;
  FOVEA_UNROLL
  for (int n = 0; n < F::kQ / 64; ++n) {
    general.seen[n] = general.kept[n] = ~0u;
    if (step.partial())
      general.seen[n] = bits_of(32 * n, [&](int query, int half) {
        const int i = i0 + query, j = j0 + 8 * half;
        return i < a.N && j < a.M && allowed<false>(a, b, step.h, i, j);
      });
    if (a.drop_threshold > 0)
      general.kept[n] = bits_of(32 * n, [&](int query, int half) {
        return keep_of(a, b, step.h, i0 + query, j0 + 8 * half) > 0.0f;
      });
  }
  return general;
}

// Raw products -> weights. distance: of the thread's first query to its first key.
template <class F, bool kGeneral, class Rule>
__device__ inline void weigh(const Rule& rule, const Arguments<bf16>& a, Shared<float> statistics,
                             const General<F>& general, int distance, float (&s)[F::kQ / 2]) {
  FOVEA_UNROLL
  for (int k = 0; k < F::kQ / 16; ++k) {
    const Vec<float, 4> statistic = load<4>(statistics + 16 * k);
    FOVEA_UNROLL
    for (int e = 8 * k; e < 8 * k + 8; ++e) {
      float score = s[e];
      if constexpr (kGeneral) {
        if (a.adjusts) {
          score *= a.scale;
          if (a.softcap > 0.0f) score = a.softcap * tanh_fast(score * general.inverse_cap);
          score -= general.slope *
                   fabsf(static_cast<float>(distance + 8 * (e >> 2) + (e & 1) - 8 * (e >> 1 & 1)));
        }
        if (!general.sees(e)) score = -INFINITY;
      }
      s[e] = weight_of(rule, score * a.factor, statistic[e / 4 % 2 * 2 + e % 2]);
    }
  }
}

// Elements 2 pair and 2 pair + 1 of the scores, as registers of a left operand.
template <class F>
__device__ inline uint32_t& operand(uint32_t (&left)[F::kQ / 16][4], int pair) {
  return left[pair / 4][pair % 4];
}

// Weights as a left operand, without those that dropout hides.
template <class F, bool kGeneral>
__device__ inline uint32_t pack_weights(const Arguments<bf16>& a, const General<F>& general,
                                        const float (&s)[F::kQ / 2], int pair) {
  float w[2];
  FOVEA_UNROLL
  for (int c = 0; c < 2; ++c) {
    w[c] = s[2 * pair + c];
    if constexpr (kGeneral) w[c] = general.keeps(2 * pair + c) ? w[c] * a.keep_factor : 0.0f;
  }
  return pack(w[0], w[1]);
}

// dS = P (dP - delta) as a left operand. Under a soft-cap c, whose derivative is 1 - (x / c)^2 at a
// capped score x, that comes back from its weight.
template <class F, bool kGeneral, int kCount>
__device__ inline uint32_t pack_gradients(const Arguments<bf16>& a, const General<F>& general,
                                          const Vec<float, 4>& statistic,
                                          const Vec<float, 4>& delta, int distance,
                                          const float (&s)[F::kQ / 2], const float (&dp)[kCount],
                                          int pair, int pair_of_dp) {
  float ds[2];
  FOVEA_UNROLL
  for (int c = 0; c < 2; ++c) {
    const int e = 2 * pair + c;
    float x = dp[2 * pair_of_dp + c];
    if constexpr (kGeneral) x = general.keeps(e) ? x * a.keep_factor : 0.0f;
    ds[c] = s[e] * (x - delta[pair / 2 % 2 * 2 + c]);
    if constexpr (kGeneral) {
      if (a.softcap > 0.0f && s[e] > 0.0f) {
        const float score = (log2f(s[e]) + statistic[pair / 2 % 2 * 2 + c]) * kLn2 +
                            general.slope * fabsf(static_cast<float>(distance + 8 * (e >> 2) + c -
                                                                     8 * (e >> 1 & 1))),
                    t = score * general.inverse_cap;
        ds[c] *= 1.0f - t * t;
      }
    }
  }
  return pack(ds[0], ds[1]);
}

}  // namespace FOVEA_GPU
