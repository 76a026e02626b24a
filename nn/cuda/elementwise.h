// SPDX-License-Identifier: Apache-2.0
#pragma once
// Activations and dropout on GPU devices: contiguous tensors of f32 or bf16.

#include "core/cuda/gpu.h"
#include "core/rng.h"
#include "nn/cpu/kernels.h"

FOVEA_GPU_DECLARE(
    // y = f(x);  dx = dy f'(x)
    void activation_forward(void* y, const void* x, Dtype dtype, int64_t count,
                            ActivationKernel kind, Stream stream);
    void activation_backward(void* dx, const void* dy, const void* x, Dtype dtype, int64_t count,
                             ActivationKernel kind, Stream stream);
    // y [rows, F] = silu(x[:, :F]) x[:, F:];  dx [rows, 2F]
    void swiglu_forward(void* y, const void* x, Dtype dtype, int64_t rows, int64_t channels,
                        Stream stream);
    void swiglu_backward(void* dx, const void* dy, const void* x, Dtype dtype, int64_t rows,
                         int64_t channels, Stream stream);
    // y = x times 0 or factor: element i belongs to draw first + i / span, and is dropped where
    // that word of the stream is below the threshold
    void dropout(void* y, const void* x, Dtype dtype, int64_t count, int64_t span,
                 const RngKey& rng, uint64_t first, uint32_t threshold, float factor,
                 Stream stream);
    // the same of rows of `row` elements: element i has draw first + i / row * pitch + i % row
    void dropout_rows(void* y, const void* x, Dtype dtype, int64_t count, int64_t row,
                      int64_t pitch, const RngKey& rng, uint64_t first, uint32_t threshold,
                      float factor, Stream stream);)
