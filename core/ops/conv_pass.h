// SPDX-License-Identifier: Apache-2.0
#pragma once
// What the libraries that compute convolutions (core/ops/conv.h) are asked for.

#include <cstdint>

namespace fovea {

// Two of x, w and y (in the gradients that of the result) are read; forward writes y,
// input_gradient x and weight_gradient w.
enum class ConvPass : int64_t { forward, input_gradient, weight_gradient };

}  // namespace fovea
