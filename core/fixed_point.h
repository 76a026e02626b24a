// SPDX-License-Identifier: Apache-2.0
#pragma once
// Numbers whose sums are exact, so that no order of additions changes a bit: f32 as integers of
// two parts, and f64 rounded to a grid.

#include <cmath>
#include <cstdint>

#include "core/dtype.h"

namespace fovea {

// high 2^-20 + low 2^-64. Of a sum of up to kMostAddends numbers below kLimit neither part
// overflows.
struct FixedPoint {
  static constexpr float kLimit = 0x1p23f;
  static constexpr int64_t kMostAddends = int64_t{1} << 19;
  static constexpr int kLowBits = 44;

  int64_t high = 0, low = 0;

  static FOVEA_HD bool holds(float x) { return x > -kLimit && x < kLimit; }  // no NaN either
  // x to the nearest multiple of 2^-64: all of its bits where |x| >= 2^-41. holds(x).
  static FOVEA_HD FixedPoint of(float x) {
    const double scaled = static_cast<double>(x) * 0x1p20, high = rint(scaled);
    return {static_cast<int64_t>(high), static_cast<int64_t>(rint((scaled - high) * 0x1p44))};
  }
  // The same bits for the same sum, however it is divided over the parts.
  FOVEA_HD float value() const {
    const int64_t carry = (low + (int64_t{1} << (kLowBits - 1))) >> kLowBits;
    return static_cast<float>(static_cast<double>(high + carry) * 0x1p-20 +
                              static_cast<double>(low - carry * (int64_t{1} << kLowBits)) *
                                  0x1p-64);
  }
};

// To a multiple of 2^-bits: such numbers add without rounding where their sum is below 2^(53 -
// bits).
inline double to_grid(double x, int bits) { return std::ldexp(rint(std::ldexp(x, bits)), -bits); }

}  // namespace fovea
