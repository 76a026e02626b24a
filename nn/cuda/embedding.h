// SPDX-License-Identifier: Apache-2.0
#pragma once
// Rows of a table by index, on GPU devices.

#include "core/cuda/gpu.h"
#include "core/dtype.h"

FOVEA_GPU_DECLARE(
    // out [count, C] = weight[ids]
    void embedding_forward(void* out, const void* weight, const int64_t* ids, Dtype dtype,
                           int64_t count, int64_t channels, Stream stream);
    // Row rows[k] of out = sum, in order, over p in [first[k], first[k + 1]) of row positions[p] of
    // x, or, from `split` on, of row positions[p] - split of partial (f32). rows null: row k; a row
    // below 0 is none.
    void embedding_sum(void* out, Dtype out_dtype, const int64_t* rows, const int64_t* first,
                       const int64_t* positions, const void* x, Dtype x_dtype, const float* partial,
                       int64_t split, int64_t count, int64_t channels, Stream stream);)
