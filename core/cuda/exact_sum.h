// SPDX-License-Identifier: Apache-2.0
#pragma once
// ExactSum (core/ops/exact_sum.h) on one GPU device. Tensors are contiguous.

#include "core/cuda/gpu.h"
#include "core/fixed_point.h"

FOVEA_GPU_DECLARE(
    // parts [2, n] += x [n]; bad becomes 1 where an element of x does not fit.
    void exact_add(int64_t* parts, int32_t* bad, const float* x, int64_t n, Stream stream);
    // out [n] of parts [2, n]
    void exact_total(float* out, const int64_t* parts, int64_t n, Stream stream);)
