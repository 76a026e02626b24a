// SPDX-License-Identifier: Apache-2.0
#pragma once
// The differentiable glue between handwritten Functions: arithmetic with broadcasting, shape
// changes, conversions. Shapes and errors are those of the Tensor operation of the same name
// (core/ops/, core/tensor.h).

#include "autograd/function.h"

namespace fovea {

// ---- arithmetic ---------------------------------------------------------------------------------
Variable add(const Variable& a, const Variable& b);
Variable sub(const Variable& a, const Variable& b);
Variable mul(const Variable& a, const Variable& b);
Variable scale(const Variable& a, double factor);

// a [..., m, k] x b [..., k, n] -> [..., m, n]; both with the same leading axes, or b 2-D.
Variable matmul(const Variable& a, const Variable& b);

// ---- sums ---------------------------------------------------------------------------------------
Variable sum_all(const Variable& a);        // -> []
Variable mean_all(const Variable& a);       // -> []
Variable sum(const Variable& a, int axis);  // the axis goes away
Variable mean(const Variable& a, int axis);

// ---- shape --------------------------------------------------------------------------------------
// A view where strides allow it; one size may be -1.
Variable reshape(const Variable& a, const Shape& shape);
Variable transpose(const Variable& a, int axis_a, int axis_b);
Variable slice(const Variable& a, int axis, int64_t begin, int64_t end);
Variable expand(const Variable& a, const Shape& shape);
Variable concat(const Variables& parts, int axis);
// Pieces of `size` along the axis, which it divides: what concat joins.
Variables split(const Variable& a, int axis, int64_t size);

// ---- conversion ---------------------------------------------------------------------------------
// The gradient comes back in a's dtype. The same handle when the dtype is already right.
Variable cast(const Variable& a, Dtype dtype);

}  // namespace fovea
