// SPDX-License-Identifier: Apache-2.0
// Kernel  kRows x (kVectors vectors) of accumulators in registers; each step of k loads kVectors
// vectors of b and
//         broadcasts kRows values of a.
// Shapes  a is read at a[i a_row + k a_column], b at b[k b_row + j] (unit stride along j), both
// either in place or from
//         packed panels: a as [panel][k][6 rows], b as [panel][k][kVectors vectors], zero past the
//         last column.
// Order   each element of the result sums over k in order, one fused multiply-add a step (bf16:
// after rounding up to f32).
#include "core/cpu/gemm.h"

#include "core/cpu/simd.h"

namespace FOVEA_SIMD {

// ---- vectors of double, with the names simd.h has for float -------------------------------------
#if defined(__AVX512F__)
struct VecD {
  __m512d v;
};
struct MaskD {
  __mmask8 m;
};
constexpr int kMaxVectors = 4;
FOVEA_INLINE VecD load(const double* p, MaskD k) { return {_mm512_maskz_loadu_pd(k.m, p)}; }
FOVEA_INLINE VecD load(const double* p) { return {_mm512_loadu_pd(p)}; }
FOVEA_INLINE void store(double* p, VecD x, MaskD k) { _mm512_mask_storeu_pd(p, k.m, x.v); }
FOVEA_INLINE void store(double* p, VecD x) { _mm512_storeu_pd(p, x.v); }
FOVEA_INLINE VecD splat(double x) { return {_mm512_set1_pd(x)}; }
FOVEA_INLINE VecD fma(VecD a, VecD b, VecD c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
FOVEA_INLINE MaskD first_double_lanes(int64_t n) {
  return {static_cast<__mmask8>(n >= 8 ? 0xffu : (1u << n) - 1u)};
}
#else
struct VecD {
  __m256d v;
};
struct MaskD {
  __m256i m;
};
constexpr int kMaxVectors = 2;
FOVEA_INLINE VecD load(const double* p, MaskD k) { return {_mm256_maskload_pd(p, k.m)}; }
FOVEA_INLINE VecD load(const double* p) { return {_mm256_loadu_pd(p)}; }
FOVEA_INLINE void store(double* p, VecD x, MaskD k) { _mm256_maskstore_pd(p, k.m, x.v); }
FOVEA_INLINE void store(double* p, VecD x) { _mm256_storeu_pd(p, x.v); }
FOVEA_INLINE VecD splat(double x) { return {_mm256_set1_pd(x)}; }
FOVEA_INLINE VecD fma(VecD a, VecD b, VecD c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
FOVEA_INLINE MaskD first_double_lanes(int64_t n) {
  return {_mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3))};
}
#endif

namespace {

template <typename T>
struct Lanes;
template <>
struct Lanes<float> {
  using V = Vec;
  using M = Mask;
  static constexpr int count = kLanes;
  FOVEA_INLINE static M first(int64_t n) { return first_lanes(n); }
};
template <>
struct Lanes<double> {
  using V = VecD;
  using M = MaskD;
  static constexpr int count = kLanes / 2;
  FOVEA_INLINE static M first(int64_t n) { return first_double_lanes(n); }
};

constexpr int kRows = 6;
template <typename T>
constexpr int64_t panel_columns = kMaxVectors* Lanes<T>::count;

// One kernel call: the accumulators start at init[i init_row + j] (null: 0) and end in c[i c_row +
// j].
template <typename T>
struct Micro {
  int64_t k;
  const T* a;
  int64_t a_row, a_column;
  const T* b;
  int64_t b_row;
  const T* init;
  int64_t init_row;
  T* c;
  int64_t c_row;
  int64_t columns;  // of the result; the last vector may be partly past it
  bool b_padded;    // b may be read past `columns`
};

template <typename T, int kR, int kV>
void micro(const Micro<T>& p) {
  using L = Lanes<T>;
  using V = typename L::V;
  const typename L::M last = L::first(p.columns - (kV - 1) * L::count);
  V acc[kR][kV];
#pragma GCC unroll 8
  for (int i = 0; i < kR; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) {
      if (p.init == nullptr) {
        acc[i][v] = splat(T{0});
      } else {
        const T* from = p.init + i * p.init_row + v * L::count;
        acc[i][v] = v + 1 == kV ? load(from, last) : load(from);
      }
    }
  }
  const T* a = p.a;
  const T* b = p.b;
  const bool whole = p.b_padded || p.columns == kV * L::count;
  const auto walk = [&]<bool kWhole>() {
    for (int64_t k = 0; k < p.k; ++k, a += p.a_column, b += p.b_row) {
      V row[kV];
#pragma GCC unroll 8
      for (int v = 0; v < kV; ++v)
        row[v] = !kWhole && v + 1 == kV ? load(b + v * L::count, last) : load(b + v * L::count);
#pragma GCC unroll 8
      for (int i = 0; i < kR; ++i) {
        const V x = splat(a[i * p.a_row]);
#pragma GCC unroll 8
        for (int v = 0; v < kV; ++v) acc[i][v] = fma(x, row[v], acc[i][v]);
      }
    }
  };
  if (whole)
    walk.template operator()<true>();
  else
    walk.template operator()<false>();
#pragma GCC unroll 8
  for (int i = 0; i < kR; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) {
      T* to = p.c + i * p.c_row + v * L::count;
      if (v + 1 == kV)
        store(to, acc[i][v], last);
      else
        store(to, acc[i][v]);
    }
  }
}

template <typename T, int kR>
void micro_columns(const Micro<T>& p) {
  const int64_t vectors = (p.columns + Lanes<T>::count - 1) / Lanes<T>::count;
  if (vectors == 1) return micro<T, kR, 1>(p);
  if (vectors == 2) return micro<T, kR, 2>(p);
  if constexpr (kMaxVectors == 4) {
    if (vectors == 3) return micro<T, kR, 3>(p);
    micro<T, kR, 4>(p);
  }
}

template <typename T>
void micro_any(int64_t rows, const Micro<T>& p) {
  switch (rows) {
    case 1:
      return micro_columns<T, 1>(p);
    case 2:
      return micro_columns<T, 2>(p);
    case 3:
      return micro_columns<T, 3>(p);
    case 4:
      return micro_columns<T, 4>(p);
    case 5:
      return micro_columns<T, 5>(p);
    default:
      return micro_columns<T, 6>(p);
  }
}

FOVEA_INLINE float widen(float x) { return x; }
FOVEA_INLINE double widen(double x) { return x; }
FOVEA_INLINE float widen(bf16 x) {
  return _mm_cvtss_f32(
      _mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int>(uint32_t{x.bits} << 16))));
}

// a [rows, depth] -> [panel][depth][kRows]
template <typename T, typename In>
void pack_a(T* to, const In* a, int64_t a_row, int64_t a_column, int64_t rows, int64_t depth) {
  for (int64_t i0 = 0; i0 < rows; i0 += kRows, to += kRows * depth) {
    const int64_t height = rows - i0 < kRows ? rows - i0 : kRows;
    for (int64_t i = 0; i < height; ++i) {
      const In* from = a + (i0 + i) * a_row;
      for (int64_t k = 0; k < depth; ++k) to[k * kRows + i] = widen(from[k * a_column]);
    }
  }
}

// b [depth, columns] -> [panel][depth][panel_columns], zeros past the last column
template <typename T, typename In>
void pack_b(T* to, const In* b, int64_t b_row, int64_t b_column, int64_t columns, int64_t depth) {
  constexpr int64_t kWidth = panel_columns<T>;
  for (int64_t j0 = 0; j0 < columns; j0 += kWidth, to += kWidth * depth) {
    const int64_t width = columns - j0 < kWidth ? columns - j0 : kWidth;
    const In* from = b + j0 * b_column;
    if (b_column == 1) {
      for (int64_t k = 0; k < depth; ++k) {
        for (int64_t j = 0; j < width; ++j) to[k * kWidth + j] = widen(from[k * b_row + j]);
        for (int64_t j = width; j < kWidth; ++j) to[k * kWidth + j] = T{0};
      }
    } else {
      for (int64_t j = 0; j < width; ++j) {
        for (int64_t k = 0; k < depth; ++k)
          to[k * kWidth + j] = widen(from[j * b_column + k * b_row]);
      }
      for (int64_t k = 0; k < depth; ++k) {
        for (int64_t j = width; j < kWidth; ++j) to[k * kWidth + j] = T{0};
      }
    }
  }
}

// T accumulates, In is read. Result tile c [rows, columns] of T, at stride c_row.
template <typename T, typename In>
void tile(const GemmCall& call, int64_t i, int64_t rows, int64_t j, int64_t columns, T* c,
          int64_t c_row, const T* init, int64_t init_row, T* scratch) {
  constexpr int64_t kWidth = panel_columns<T>;
  constexpr bool kConverts = !__is_same(T, In);
  T* const a_packed = scratch;
  T* const b_packed = scratch + kGemmTileRows * kGemmTileDepth;
  const bool packs_a = kConverts || (call.a_column != 1 && columns > kWidth);
  const bool packs_b = kConverts || call.b_column != 1 || rows > 64;
  for (int64_t k0 = 0; k0 < call.k; k0 += kGemmTileDepth) {
    const int64_t depth = call.k - k0 < kGemmTileDepth ? call.k - k0 : kGemmTileDepth;
    const In* a = static_cast<const In*>(call.a) + i * call.a_row + k0 * call.a_column;
    const In* b = static_cast<const In*>(call.b) + k0 * call.b_row + j * call.b_column;
    if (packs_a) pack_a(a_packed, a, call.a_row, call.a_column, rows, depth);
    if (packs_b) pack_b(b_packed, b, call.b_row, call.b_column, columns, depth);
    for (int64_t column = 0; column < columns; column += kWidth) {
      for (int64_t row = 0; row < rows; row += kRows) {
        Micro<T> p;
        p.k = depth;
        if constexpr (kConverts) {
          p.a = a_packed + row * depth, p.a_row = 1, p.a_column = kRows;
          p.b = b_packed + column * depth, p.b_row = kWidth;
        } else {
          p.a = packs_a ? a_packed + row * depth : a + row * call.a_row;
          p.a_row = packs_a ? 1 : call.a_row;
          p.a_column = packs_a ? kRows : call.a_column;
          p.b = packs_b ? b_packed + column * depth : b + column;
          p.b_row = packs_b ? kWidth : call.b_row;
        }
        p.b_padded = packs_b;
        p.c = c + row * c_row + column, p.c_row = c_row;
        p.init = k0 > 0 ? p.c : init != nullptr ? init + row * init_row + column : nullptr;
        p.init_row = k0 > 0 ? c_row : init_row;
        p.columns = columns - column < kWidth ? columns - column : kWidth;
        micro_any<T>(rows - row < kRows ? rows - row : kRows, p);
      }
    }
  }
}

template <typename T, typename In>
void tile_in_place(const GemmCall& call, int64_t i, int64_t rows, int64_t j, int64_t columns,
                   void* scratch) {
  T* const c = static_cast<T*>(call.c) + i * call.c_row + j;
  const T* init = nullptr;
  int64_t init_row = 0;
  if (call.accumulate)
    init = c, init_row = call.c_row;
  else if (call.bias != nullptr)
    init = static_cast<const T*>(call.bias) + j;
  tile<T, In>(call, i, rows, j, columns, c, call.c_row, init, init_row, static_cast<T*>(scratch));
}

// A bf16 result is rounded once, at the end, from an f32 tile.
void tile_bf16(const GemmCall& call, int64_t i, int64_t rows, int64_t j, int64_t columns,
               void* scratch) {
  float* const wide = static_cast<float*>(scratch);
  float* const rest = wide + kGemmTileRows * kGemmTileColumns;
  bf16* const c = static_cast<bf16*>(call.c) + i * call.c_row + j;
  const float* init = nullptr;
  int64_t init_row = 0;
  if (call.accumulate) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < columns; ++column)
        wide[row * columns + column] = widen(c[row * call.c_row + column]);
    }
    init = wide, init_row = columns;
  } else if (call.bias != nullptr) {
    init = static_cast<const float*>(call.bias) + j;
  }
  tile<float, bf16>(call, i, rows, j, columns, wide, columns, init, init_row, rest);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; column += kLanes) {
      const Mask k = first_lanes(columns - column);
      store(c + row * call.c_row + column, load(wide + row * columns + column, k), k);
    }
  }
}

}  // namespace

void gemm_tile(const GemmCall& call, int64_t i, int64_t rows, int64_t j, int64_t columns,
               void* scratch) {
  switch (call.kind) {
    case GemmKind::f32:
      return tile_in_place<float, float>(call, i, rows, j, columns, scratch);
    case GemmKind::f64:
      return tile_in_place<double, double>(call, i, rows, j, columns, scratch);
    case GemmKind::bf16_to_f32:
      return tile_in_place<float, bf16>(call, i, rows, j, columns, scratch);
    case GemmKind::bf16_to_bf16:
      return tile_bf16(call, i, rows, j, columns, scratch);
  }
}

}  // namespace FOVEA_SIMD
