// SPDX-License-Identifier: Apache-2.0
#pragma once
// Sums over rows (core/ops/reduce.h) in f32 and bf16.

#include <cstdint>

#include "core/cpu/isa.h"
#include "core/dtype.h"

FOVEA_SIMD_DECLARE(
    // to [columns] = sum over rows of x [rows, columns], rows `stride` elements apart, each
    // column's rows in order
    void column_sums(float* to, const void* x, Dtype dtype, int64_t stride, int64_t rows,
                     int64_t columns);)
