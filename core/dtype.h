// SPDX-License-Identifier: Apache-2.0
#pragma once
// Element types of a Tensor, and the one place where a run-time Dtype becomes a C++ type.

#include <bit>
#include <cstdint>
#include <ostream>
#include <string_view>

#include "core/error.h"

#if defined(__CUDACC__)
#define FOVEA_HD __host__ __device__
#else
#define FOVEA_HD
#endif

namespace fovea {

// f64 exists on cpu for gradcheck and golden vectors; bf16 is a storage type, arithmetic is f32.
enum class Dtype : uint8_t { f32, bf16, f64, i64, i32, u8, boolean };

// Brain float: the upper half of an f32, rounded to nearest even; NaN stays NaN.
struct bf16 {
  uint16_t bits = 0;

  bf16() = default;
  FOVEA_HD explicit bf16(float value) {
#if defined(__CUDA_ARCH__)  // one instruction; a NaN's lower bits may differ
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#else
    const auto u = std::bit_cast<uint32_t>(value);
    bits = (u & 0x7fffffffu) > 0x7f800000u
               ? static_cast<uint16_t>((u >> 16) | 0x40u)
               : static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
#endif
  }
  FOVEA_HD operator float() const {
    return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  }
};
static_assert(sizeof(bf16) == 2);

// To the 10 bits of mantissa that tf32 has, ties away from zero (cvt.rna.tf32.f32).
inline float round_to_tf32(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7f800000u) == 0x7f800000u) return x;
  return std::bit_cast<float>((bits + 0x1000u) & 0xffffe000u);
}

namespace detail {
template <typename T>
struct DtypeOf;
template <>
struct DtypeOf<float> {
  static constexpr Dtype value = Dtype::f32;
};
template <>
struct DtypeOf<bf16> {
  static constexpr Dtype value = Dtype::bf16;
};
template <>
struct DtypeOf<double> {
  static constexpr Dtype value = Dtype::f64;
};
template <>
struct DtypeOf<int64_t> {
  static constexpr Dtype value = Dtype::i64;
};
template <>
struct DtypeOf<int32_t> {
  static constexpr Dtype value = Dtype::i32;
};
template <>
struct DtypeOf<uint8_t> {
  static constexpr Dtype value = Dtype::u8;
};
template <>
struct DtypeOf<bool> {
  static constexpr Dtype value = Dtype::boolean;
};
}  // namespace detail

template <typename T>
inline constexpr Dtype dtype_of = detail::DtypeOf<T>::value;

constexpr int64_t size_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::f64:
    case Dtype::i64:
      return 8;
    case Dtype::f32:
    case Dtype::i32:
      return 4;
    case Dtype::bf16:
      return 2;
    case Dtype::u8:
    case Dtype::boolean:
      return 1;
  }
  return 0;
}

constexpr std::string_view name(Dtype dtype) {
  switch (dtype) {
    case Dtype::f32:
      return "f32";
    case Dtype::bf16:
      return "bf16";
    case Dtype::f64:
      return "f64";
    case Dtype::i64:
      return "i64";
    case Dtype::i32:
      return "i32";
    case Dtype::u8:
      return "u8";
    case Dtype::boolean:
      return "bool";
  }
  return "?";
}

inline std::ostream& operator<<(std::ostream& out, Dtype dtype) { return out << name(dtype); }

constexpr bool is_floating(Dtype dtype) {
  return dtype == Dtype::f32 || dtype == Dtype::bf16 || dtype == Dtype::f64;
}

// "f32" -> Dtype::f32; throws for a name that is none.
Dtype parse_dtype(std::string_view name);

// The type in which sums over T are kept: double for double, float otherwise.
template <typename T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <typename T>
using accumulator_t = typename Accumulator<T>::type;

// Calls f.template operator()<T>() with T = float, bf16 or double; throws naming `op` for any other
// dtype.
//   dispatch_floating(x.dtype(), "gelu", [&]<typename T>() { ... x.data<T>() ... });
template <typename F>
decltype(auto) dispatch_floating(Dtype dtype, std::string_view op, F&& f) {
  switch (dtype) {
    case Dtype::f32:
      return f.template operator()<float>();
    case Dtype::bf16:
      return f.template operator()<bf16>();
    case Dtype::f64:
      return f.template operator()<double>();
    default:
      detail::fail(op, ": expected f32, bf16 or f64, found ", dtype);
  }
}

// The same over every dtype.
template <typename F>
decltype(auto) dispatch_all(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::f32:
      return f.template operator()<float>();
    case Dtype::bf16:
      return f.template operator()<bf16>();
    case Dtype::f64:
      return f.template operator()<double>();
    case Dtype::i64:
      return f.template operator()<int64_t>();
    case Dtype::i32:
      return f.template operator()<int32_t>();
    case Dtype::u8:
      return f.template operator()<uint8_t>();
    case Dtype::boolean:
      return f.template operator()<bool>();
  }
  detail::fail("dispatch: unknown dtype ", static_cast<int>(dtype));
}

}  // namespace fovea
