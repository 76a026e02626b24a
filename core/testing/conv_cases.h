// SPDX-License-Identifier: Apache-2.0
#pragma once
// Convolutions of every kind, small and odd, for tests of the op and of its gradient.

#include <vector>

#include "core/ops/conv.h"

namespace fovea {

struct ConvCase {
  const char* name;
  Shape x, w;
  ConvGeometry geometry;
};

inline const std::vector<ConvCase>& conv_cases() {
  static const std::vector<ConvCase> list{
      {"dense", {2, 3, 6, 5}, {4, 3, 3, 3}, {{1, 1}, {1, 1}, {1, 1}, {1, 1}, 1}},
      {"strided, uneven padding", {2, 2, 7, 8}, {3, 2, 3, 2}, {{2, 3}, {1, 1}, {0, 1}, {1, 0}, 1}},
      {"dilated", {1, 2, 9, 9}, {2, 2, 3, 3}, {{1, 1}, {2, 3}, {2, 3}, {2, 3}, 1}},
      {"grouped", {2, 4, 5, 5}, {6, 2, 3, 3}, {{1, 1}, {1, 1}, {1, 1}, {1, 1}, 2}},
      {"depthwise", {2, 5, 6, 6}, {5, 1, 3, 3}, {{1, 1}, {1, 1}, {1, 1}, {1, 1}, 5}},
      {"causal", {2, 4, 1, 9}, {4, 1, 1, 4}, {{1, 1}, {1, 1}, {0, 3}, {0, 0}, 4}},
      {"pointwise", {2, 3, 4, 4}, {2, 3, 1, 1}, {}},
      {"patches", {2, 3, 8, 8}, {16, 3, 4, 4}, {{4, 4}, {1, 1}, {0, 0}, {0, 0}, 1}},
  };
  return list;
}

}  // namespace fovea
