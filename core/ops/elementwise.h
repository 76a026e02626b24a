// SPDX-License-Identifier: Apache-2.0
#pragma once
// Elementwise arithmetic with broadcasting. Operands f32, bf16 or f64; mixed f32 and bf16 give f32,
// any other mixture throws. Arithmetic is f32 (f64 for f64). Both operands are on one device; the
// result is there too.

#include "core/tensor.h"

namespace fovea {

// a op b, broadcast (trailing axes aligned).
Tensor add(const Tensor& a, const Tensor& b);
Tensor sub(const Tensor& a, const Tensor& b);
Tensor mul(const Tensor& a, const Tensor& b);
Tensor div(const Tensor& a, const Tensor& b);

// a * factor, a + term
Tensor scale(const Tensor& a, double factor);
Tensor add_scalar(const Tensor& a, double term);

// In place: y += alpha x (x broadcasts to y's shape and may have another floating dtype).
void axpy_(const Tensor& y, double alpha, const Tensor& x);
// In place: y *= factor
void scale_(const Tensor& y, double factor);

}  // namespace fovea
