// SPDX-License-Identifier: Apache-2.0
#pragma once
// Copy with conversion and broadcasting, and fill. Any strides, any dtypes.

#include "core/tensor.h"

namespace fovea {

// out[...] = source[...], converted to out's dtype; source broadcasts to out's shape. Overlap is
// not allowed.
void copy(const Tensor& out, const Tensor& source);

// out[...] = value
void fill(const Tensor& out, double value);

}  // namespace fovea
