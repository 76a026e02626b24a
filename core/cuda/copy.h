// SPDX-License-Identifier: Apache-2.0
#pragma once
// Copy with conversion, and fill, of tensors on one GPU device; any strides. f64 does not live
// there.

#include "core/cuda/gpu.h"
#include "core/cuda/layout.h"

FOVEA_GPU_DECLARE(
    // Operands: out, source.
    void copy_strided(void* out, fovea::Dtype out_dtype, const void* source,
                      fovea::Dtype source_dtype, const fovea::Layout<2>& layout, Stream stream);
    void fill_strided(void* out, fovea::Dtype dtype, double value, const fovea::Layout<1>& layout,
                      Stream stream);)
