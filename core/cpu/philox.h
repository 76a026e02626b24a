// SPDX-License-Identifier: Apache-2.0
#pragma once
// Philox4x32-10 in vectors, for files named *.simd.cpp: the words of core/rng.h's philox(), a block
// a lane.

#include <cstdint>

#include "core/cpu/simd.h"

namespace FOVEA_SIMD {

#if defined(__AVX512F__)

struct Words {
  __m512i v;
};
FOVEA_INLINE Words all(uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
FOVEA_INLINE Words load(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
FOVEA_INLINE Words load(const uint32_t* p, Mask k) { return {_mm512_maskz_loadu_epi32(k.m, p)}; }
FOVEA_INLINE void store(uint32_t* p, Words x) { _mm512_storeu_si512(p, x.v); }
FOVEA_INLINE Mask operator<(Words a, Words b) { return {_mm512_cmplt_epu32_mask(a.v, b.v)}; }
FOVEA_INLINE Words operator^(Words a, Words b) { return {_mm512_xor_si512(a.v, b.v)}; }
// Upper and lower halves of the lanes' 64-bit products.
FOVEA_INLINE void multiply(Words a, Words b, Words& high, Words& low) {
  const __m512i even = _mm512_mul_epu32(a.v, b.v),
                odd = _mm512_mul_epu32(_mm512_srli_epi64(a.v, 32), b.v);
  low.v = _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
  high.v = _mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd);
}

#else

struct Words {
  __m256i v;
};
FOVEA_INLINE Words all(uint32_t x) { return {_mm256_set1_epi32(static_cast<int>(x))}; }
FOVEA_INLINE Words load(const uint32_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
}
FOVEA_INLINE Words load(const uint32_t* p, Mask k) {
  return {_mm256_maskload_epi32(reinterpret_cast<const int*>(p), _mm256_castps_si256(k.m))};
}
FOVEA_INLINE Mask operator<(Words a,
                            Words b) {  // unsigned: both move by 2^31 into the signed order
  const __m256i bias = _mm256_set1_epi32(INT32_MIN);
  return {_mm256_castsi256_ps(
      _mm256_cmpgt_epi32(_mm256_xor_si256(b.v, bias), _mm256_xor_si256(a.v, bias)))};
}
FOVEA_INLINE void store(uint32_t* p, Words x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.v);
}
FOVEA_INLINE Words operator^(Words a, Words b) { return {_mm256_xor_si256(a.v, b.v)}; }
FOVEA_INLINE void multiply(Words a, Words b, Words& high, Words& low) {
  const __m256i even = _mm256_mul_epu32(a.v, b.v),
                odd = _mm256_mul_epu32(_mm256_srli_epi64(a.v, 32), b.v);
  low.v = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
  high.v = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
}

#endif

inline constexpr int kPhiloxBlocks = kLanes;

// words [4 kPhiloxBlocks] = blocks first, first + 1, ... of the stream (key, high)
FOVEA_INLINE void philox_blocks(uint32_t* words, uint64_t key, uint64_t high, uint64_t first) {
  uint32_t low_index[kPhiloxBlocks], high_index[kPhiloxBlocks];
  for (int l = 0; l < kPhiloxBlocks; ++l) {
    low_index[l] = static_cast<uint32_t>(first + static_cast<uint64_t>(l));
    high_index[l] = static_cast<uint32_t>((first + static_cast<uint64_t>(l)) >> 32);
  }
  Words c0 = load(low_index), c1 = load(high_index), c2 = all(static_cast<uint32_t>(high)),
        c3 = all(static_cast<uint32_t>(high >> 32));
  auto k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    Words high0, low0, high1, low1;
    multiply(c0, all(0xD2511F53u), high0, low0);
    multiply(c2, all(0xCD9E8D57u), high1, low1);
    c0 = high1 ^ c1 ^ all(k0);
    c1 = low1;
    c2 = high0 ^ c3 ^ all(k1);
    c3 = low0;
  }
  alignas(64) uint32_t lanes[4][kPhiloxBlocks];
  store(lanes[0], c0), store(lanes[1], c1), store(lanes[2], c2), store(lanes[3], c3);
  for (int l = 0; l < kPhiloxBlocks; ++l) {
    for (int w = 0; w < 4; ++w) words[4 * l + w] = lanes[w][l];
  }
}

}  // namespace FOVEA_SIMD
