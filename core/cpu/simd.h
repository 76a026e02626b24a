// SPDX-License-Identifier: Apache-2.0
#pragma once
// One vector of floats, 8 lanes under AVX2 and 16 under AVX-512, for files named *.simd.cpp
// (compiled once for each, see core/cpu/isa.h). Everything here lives in the instruction set's own
// namespace and is always inlined; such a file includes nothing that defines inline functions
// elsewhere (no std containers, no Tensor), or the linker could keep an AVX-512 copy of a shared
// function for every machine.

#include <immintrin.h>

#include <cstdint>

#include "core/dtype.h"

#if defined(__AVX512F__)
#define FOVEA_SIMD fovea::avx512
#else
#define FOVEA_SIMD fovea::avx2
#endif
#define FOVEA_INLINE [[gnu::always_inline]] inline
#define FOVEA_LAMBDA_INLINE __attribute__((always_inline))

namespace FOVEA_SIMD {

// The cache line of p, for soon.
FOVEA_INLINE void prefetch(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
}
// Orders the stream() stores before it with all later ones; once at the end of a kernel.
FOVEA_INLINE void end_streaming() { _mm_sfence(); }

#if defined(__AVX512F__)

inline constexpr int kLanes = 16;
struct Vec {
  __m512 v;
};
struct Mask {
  __mmask16 m;
};

FOVEA_INLINE Mask first_lanes(int64_t n) {
  return {static_cast<__mmask16>(n >= 16 ? 0xffffu : (1u << n) - 1u)};
}
FOVEA_INLINE Vec zero() { return {_mm512_setzero_ps()}; }
FOVEA_INLINE Vec splat(float x) { return {_mm512_set1_ps(x)}; }
FOVEA_INLINE Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
FOVEA_INLINE Vec load(const float* p, Mask k) { return {_mm512_maskz_loadu_ps(k.m, p)}; }
FOVEA_INLINE void store(float* p, Vec x) { _mm512_storeu_ps(p, x.v); }
FOVEA_INLINE void store(float* p, Vec x, Mask k) { _mm512_mask_storeu_ps(p, k.m, x.v); }
FOVEA_INLINE void stream(float* p, Vec x) { _mm512_stream_ps(p, x.v); }  // p 64-byte aligned
FOVEA_INLINE Vec load(const bf16* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16))};
}
FOVEA_INLINE Vec load(const bf16* p, Mask k) {
  return {_mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(k.m, p)), 16))};
}
// Rounds to nearest even; NaN keeps its upper bits with the quiet bit set.
FOVEA_INLINE __m256i to_bf16(Vec x) {
  const __m512i u = _mm512_castps_si512(x.v);
  const __m512i rounded =
      _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)),
                       _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1)));
  const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(
      _mm512_srli_epi32(_mm512_mask_or_epi32(rounded, nan, u, _mm512_set1_epi32(0x400000)), 16));
}
FOVEA_INLINE void store(bf16* p, Vec x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16(x));
}
FOVEA_INLINE void stream(bf16* p, Vec x) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), to_bf16(x));
}
FOVEA_INLINE void store(bf16* p, Vec x, Mask k) { _mm256_mask_storeu_epi16(p, k.m, to_bf16(x)); }
FOVEA_INLINE Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
FOVEA_INLINE Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
FOVEA_INLINE Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
FOVEA_INLINE Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
FOVEA_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }    // a b + c
FOVEA_INLINE Vec fnma(Vec a, Vec b, Vec c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }  // c - a b
FOVEA_INLINE Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
FOVEA_INLINE Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
FOVEA_INLINE Vec sqrt(Vec a) { return {_mm512_sqrt_ps(a.v)}; }
FOVEA_INLINE Vec round(Vec a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
FOVEA_INLINE Vec abs(Vec a) { return {_mm512_abs_ps(a.v)}; }
FOVEA_INLINE Vec copysign(Vec magnitude, Vec sign) {
  const __m512i bit = _mm512_set1_epi32(INT32_MIN);
  return {_mm512_castsi512_ps(_mm512_ternarylogic_epi32(bit, _mm512_castps_si512(sign.v),
                                                        _mm512_castps_si512(magnitude.v), 0xCA))};
}
FOVEA_INLINE Mask operator<(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
FOVEA_INLINE Vec select(Mask k, Vec yes, Vec no) {
  return {_mm512_mask_blend_ps(k.m, no.v, yes.v)};
}
// x 2^n for whole n, with gradual underflow and overflow to infinity
FOVEA_INLINE Vec scale_by_power_of_2(Vec x, Vec n) { return {_mm512_scalef_ps(x.v, n.v)}; }
FOVEA_INLINE float sum(Vec a) { return _mm512_reduce_add_ps(a.v); }
FOVEA_INLINE float max_lane(Vec a) { return _mm512_reduce_max_ps(a.v); }
FOVEA_INLINE Vec lane_numbers() {
  return {_mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)};
}
FOVEA_INLINE Vec swap_neighbours(Vec a) {
  return {_mm512_permute_ps(a.v, 0xB1)};
}  // lanes 2i and 2i + 1
// r[i] lane j <-> r[j] lane i
FOVEA_INLINE void transpose(Vec (&r)[16]) {
  Vec t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 4) {  // 4 x 4 blocks within 128-bit lanes
    const __m512 a = _mm512_unpacklo_ps(r[i].v, r[i + 1].v),
                 b = _mm512_unpackhi_ps(r[i].v, r[i + 1].v);
    const __m512 c = _mm512_unpacklo_ps(r[i + 2].v, r[i + 3].v),
                 d = _mm512_unpackhi_ps(r[i + 2].v, r[i + 3].v);
    t[i].v = _mm512_shuffle_ps(a, c, 0x44);
    t[i + 1].v = _mm512_shuffle_ps(a, c, 0xee);
    t[i + 2].v = _mm512_shuffle_ps(b, d, 0x44);
    t[i + 3].v = _mm512_shuffle_ps(b, d, 0xee);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 4; ++i) {  // the 4 x 4 lanes themselves
    const __m512 a = _mm512_shuffle_f32x4(t[i].v, t[i + 4].v, 0x88),
                 b = _mm512_shuffle_f32x4(t[i].v, t[i + 4].v, 0xdd);
    const __m512 c = _mm512_shuffle_f32x4(t[i + 8].v, t[i + 12].v, 0x88),
                 d = _mm512_shuffle_f32x4(t[i + 8].v, t[i + 12].v, 0xdd);
    r[i].v = _mm512_shuffle_f32x4(a, c, 0x88);
    r[i + 4].v = _mm512_shuffle_f32x4(b, d, 0x88);
    r[i + 8].v = _mm512_shuffle_f32x4(a, c, 0xdd);
    r[i + 12].v = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
}

#else

inline constexpr int kLanes = 8;
struct Vec {
  __m256 v;
};
struct Mask {
  __m256 m;
};

FOVEA_INLINE Mask first_lanes(int64_t n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return {_mm256_castsi256_ps(
      _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n > 8 ? 8 : n)), lane))};
}
FOVEA_INLINE Vec zero() { return {_mm256_setzero_ps()}; }
FOVEA_INLINE Vec splat(float x) { return {_mm256_set1_ps(x)}; }
FOVEA_INLINE Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
FOVEA_INLINE Vec load(const float* p, Mask k) {
  return {_mm256_maskload_ps(p, _mm256_castps_si256(k.m))};
}
FOVEA_INLINE void store(float* p, Vec x) { _mm256_storeu_ps(p, x.v); }
FOVEA_INLINE void store(float* p, Vec x, Mask k) {
  _mm256_maskstore_ps(p, _mm256_castps_si256(k.m), x.v);
}
FOVEA_INLINE void stream(float* p, Vec x) { _mm256_stream_ps(p, x.v); }  // p 32-byte aligned
FOVEA_INLINE Vec load(const bf16* p) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(
      _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16))};
}
FOVEA_INLINE Vec load(const bf16* p, Mask k) {
  alignas(16) bf16 buffer[8];
  const int bits = _mm256_movemask_ps(k.m);
  for (int i = 0; i < 8; ++i) buffer[i].bits = (bits >> i) & 1 ? p[i].bits : uint16_t{0};
  return load(buffer);
}
FOVEA_INLINE __m128i to_bf16(Vec x) {
  const __m256i u = _mm256_castps_si256(x.v);
  __m256i rounded =
      _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)),
                       _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1)));
  const __m256 nan = _mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q);
  rounded = _mm256_castps_si256(
      _mm256_blendv_ps(_mm256_castsi256_ps(rounded),
                       _mm256_or_ps(x.v, _mm256_castsi256_ps(_mm256_set1_epi32(0x400000))), nan));
  const __m256i high = _mm256_srli_epi32(rounded, 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}
FOVEA_INLINE void store(bf16* p, Vec x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_bf16(x));
}
FOVEA_INLINE void stream(bf16* p, Vec x) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), to_bf16(x));
}
FOVEA_INLINE void store(bf16* p, Vec x, Mask k) {
  alignas(16) bf16 buffer[8];
  store(buffer, x);
  const int bits = _mm256_movemask_ps(k.m);
  for (int i = 0; i < 8; ++i)
    if ((bits >> i) & 1) p[i] = buffer[i];
}
FOVEA_INLINE Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
FOVEA_INLINE Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
FOVEA_INLINE Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
FOVEA_INLINE Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
FOVEA_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }    // a b + c
FOVEA_INLINE Vec fnma(Vec a, Vec b, Vec c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }  // c - a b
FOVEA_INLINE Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
FOVEA_INLINE Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
FOVEA_INLINE Vec sqrt(Vec a) { return {_mm256_sqrt_ps(a.v)}; }
FOVEA_INLINE Vec round(Vec a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
FOVEA_INLINE Vec abs(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
FOVEA_INLINE Vec copysign(Vec magnitude, Vec sign) {
  const __m256 bit = _mm256_set1_ps(-0.0f);
  return {_mm256_or_ps(_mm256_and_ps(bit, sign.v), _mm256_andnot_ps(bit, magnitude.v))};
}
FOVEA_INLINE Mask operator<(Vec a, Vec b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
FOVEA_INLINE Vec select(Mask k, Vec yes, Vec no) { return {_mm256_blendv_ps(no.v, yes.v, k.m)}; }
// x 2^n for whole n, with gradual underflow and overflow to infinity: the power is applied in two
// halves
FOVEA_INLINE Vec scale_by_power_of_2(Vec x, Vec n) {
  const __m256i whole = _mm256_cvtps_epi32(
      _mm256_max_ps(_mm256_min_ps(n.v, _mm256_set1_ps(252.0f)), _mm256_set1_ps(-252.0f)));
  const __m256i half = _mm256_srai_epi32(whole, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256 first = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  const __m256 second = _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(whole, half), bias), 23));
  return {_mm256_mul_ps(_mm256_mul_ps(x.v, first), second)};
}
FOVEA_INLINE float sum(Vec a) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
FOVEA_INLINE float max_lane(Vec a) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}
FOVEA_INLINE Vec lane_numbers() { return {_mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7)}; }
FOVEA_INLINE Vec swap_neighbours(Vec a) { return {_mm256_permute_ps(a.v, 0xB1)}; }
FOVEA_INLINE void transpose(Vec (&r)[8]) {
  Vec t[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i += 4) {
    const __m256 a = _mm256_unpacklo_ps(r[i].v, r[i + 1].v),
                 b = _mm256_unpackhi_ps(r[i].v, r[i + 1].v);
    const __m256 c = _mm256_unpacklo_ps(r[i + 2].v, r[i + 3].v),
                 d = _mm256_unpackhi_ps(r[i + 2].v, r[i + 3].v);
    t[i].v = _mm256_shuffle_ps(a, c, 0x44);
    t[i + 1].v = _mm256_shuffle_ps(a, c, 0xee);
    t[i + 2].v = _mm256_shuffle_ps(b, d, 0x44);
    t[i + 3].v = _mm256_shuffle_ps(b, d, 0xee);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 4; ++i) {
    r[i].v = _mm256_permute2f128_ps(t[i].v, t[i + 4].v, 0x20);
    r[i + 4].v = _mm256_permute2f128_ps(t[i].v, t[i + 4].v, 0x31);
  }
}

#endif

// e^x = 2^n 2^f with n = round(x log2 e) and |f| <= 1/2; 2^f = 1 + f q(f) with q of degree 4
// (minimax, relative error 1e-7). log2 e is split, so that f is exact to its last bits: relative
// error below 3e-7 for |x| < 88. -inf gives 0, NaN stays NaN.
FOVEA_INLINE Vec exp(Vec x) {
  constexpr float kLog2e = 1.44269504f, kLog2eLow = 1.92596303e-8f;
  const Vec clamped =
      max(splat(-110.0f), min(splat(110.0f), x));  // min and max return the second operand for NaN
  const Vec n = round(clamped * splat(kLog2e));
  const Vec f = fma(clamped, splat(kLog2eLow), fma(clamped, splat(kLog2e), zero() - n));
  Vec q = splat(1.3264727266401263e-3f);
  q = fma(q, f, splat(9.6715127684551592e-3f));
  q = fma(q, f, splat(5.5507337442726380e-2f));
  q = fma(q, f, splat(2.4022242083388481e-1f));
  q = fma(q, f, splat(6.9314697759788460e-1f));
  return scale_by_power_of_2(fma(q, f, splat(1.0f)), n);
}

// 2^x, relative error below 1.7e-7 (AVX2: 1e-7). -inf gives 0, NaN stays NaN.
FOVEA_INLINE Vec exp2(Vec x) {
#if defined(__AVX512F__)
  // 2^floor(x) 2^f, f in [0, 1); 2^f = 1 + f q(f), minimax. The reduction of an infinity is 0, and
  // scalef takes the floor itself.
  const Vec f{_mm512_reduce_ps(x.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
  Vec q = splat(1.868956373e-3f);
  q = fma(q, f, splat(9.014884941e-3f));
  q = fma(q, f, splat(5.579930171e-2f));
  q = fma(q, f, splat(2.401656508e-1f));
  q = fma(q, f, splat(6.931510568e-1f));
  return {_mm512_scalef_ps(fma(q, f, splat(1.0f)).v, x.v)};
#else
  const Vec t = max(splat(-200.0f), x);  // max returns the second operand for NaN
  const Vec n = round(t), f = t - n;
  Vec q = splat(1.3264727266401263e-3f);
  q = fma(q, f, splat(9.6715127684551592e-3f));
  q = fma(q, f, splat(5.5507337442726380e-2f));
  q = fma(q, f, splat(2.4022242083388481e-1f));
  q = fma(q, f, splat(6.9314697759788460e-1f));
  return scale_by_power_of_2(fma(q, f, splat(1.0f)), n);
#endif
}

inline constexpr float kLog2e = 1.44269504f;
// e^x for x <= 0 (a little above does no harm), as weights of a softmax are: absolute error below
// 2e-7.
FOVEA_INLINE Vec exp_nonpositive(Vec x) { return exp2(x * splat(kLog2e)); }
// e^(x - shift) with shifted = -shift log2 e, for x - shift <= 0 or little above. Relative error
// below 1.7e-7 (1 + |x| + |shift|), what rounding x itself costs.
FOVEA_INLINE Vec exp_shifted(Vec x, Vec shifted) { return exp2(fma(x, splat(kLog2e), shifted)); }

// sums, max_lanes: to[i] = the sum, or the largest, of a[i]'s lanes
#if defined(__AVX512F__)
// [a0 a1 a2 a3] folded to one 128-bit lane each, then transposed
template <typename F>
FOVEA_INLINE void fold_four(float* to, const Vec (&a)[4], F&& f) {
  __m128 r[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m256 half = f(_mm512_castps512_ps256(a[i].v), _mm512_extractf32x8_ps(a[i].v, 1));
    r[i] = _mm256_castps256_ps128(f(half, _mm256_permute2f128_ps(half, half, 1)));
  }
  const __m128 lo01 = _mm_unpacklo_ps(r[0], r[1]), hi01 = _mm_unpackhi_ps(r[0], r[1]),
               lo23 = _mm_unpacklo_ps(r[2], r[3]), hi23 = _mm_unpackhi_ps(r[2], r[3]);
  const __m256 low = _mm256_set_m128(_mm_movehl_ps(lo23, lo01), _mm_movelh_ps(lo01, lo23));
  const __m256 high = _mm256_set_m128(_mm_movehl_ps(hi23, hi01), _mm_movelh_ps(hi01, hi23));
  const __m256 pairs = f(low, high);
  _mm_storeu_ps(to, _mm256_castps256_ps128(f(pairs, _mm256_permute2f128_ps(pairs, pairs, 1))));
}
FOVEA_INLINE void sums(float* to, const Vec (&a)[4]) {
  fold_four(to, a, [](__m256 x, __m256 y) FOVEA_LAMBDA_INLINE { return _mm256_add_ps(x, y); });
}
FOVEA_INLINE void max_lanes(float* to, const Vec (&a)[4]) {
  fold_four(to, a, [](__m256 x, __m256 y) FOVEA_LAMBDA_INLINE { return _mm256_max_ps(x, y); });
}
#else
FOVEA_INLINE void sums(float* to, const Vec (&a)[4]) {
  for (int i = 0; i < 4; ++i) to[i] = sum(a[i]);
}
FOVEA_INLINE void max_lanes(float* to, const Vec (&a)[4]) {
  for (int i = 0; i < 4; ++i) to[i] = max_lane(a[i]);
}
#endif

// tanh x = sign(x) (1 - e) / (1 + e) with e = exp(-2 |x|); below 0.625 an odd polynomial, so that
// small x keep their relative accuracy (below 3e-7 everywhere).
FOVEA_INLINE Vec tanh(Vec x) {
  const Vec a = abs(x);
  const Vec e = exp(splat(-2.0f) * a);
  const Vec large = (splat(1.0f) - e) / (splat(1.0f) + e);
  const Vec z = a * a;
  Vec p = splat(-5.70498872745e-3f);
  p = fma(p, z, splat(2.06390887954e-2f));
  p = fma(p, z, splat(-5.37397155531e-2f));
  p = fma(p, z, splat(1.33314422036e-1f));
  p = fma(p, z, splat(-3.33332819422e-1f));
  const Vec small = fma(p * z, a, a);
  return copysign(select(a < splat(0.625f), small, large), x);
}

}  // namespace FOVEA_SIMD
