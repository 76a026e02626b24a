// SPDX-License-Identifier: Apache-2.0
#pragma once
// Sums. The order of additions is a function of the shape, the dtype and the kind of device alone:
// the same bits for any number of threads, and on any card.

#include "core/tensor.h"

namespace fovea {

// Sum over all elements, as a tensor of shape [] and dtype of a. Fixed blocks, kept in f64 on the
// cpu and in f32 on a GPU device.
Tensor sum_all(const Tensor& a);

// Sum over one axis; the axis goes away. The result has a's dtype, or the one given (sums are kept
// in f32, f64 for f64).
Tensor sum(const Tensor& a, int axis);
Tensor sum(const Tensor& a, int axis, Dtype dtype);

// The gradient of expand(): sums a over the axes along which `shape` was stretched. Throws unless
// shape broadcasts to a's.
Tensor sum_to(const Tensor& a, const Shape& shape);

}  // namespace fovea
