// SPDX-License-Identifier: Apache-2.0
#pragma once
// Elementwise arithmetic of f32 and bf16 tensors on one GPU device, in f32; any strides.

#include "core/cuda/gpu.h"
#include "core/cuda/layout.h"

namespace fovea {

// out[i] = a[i] op b[i]. The result is bf16 where a is and b is no f32, or where it is written over
// a; else f32.
struct Elementwise {
  enum class Op : uint8_t { add, sub, mul, div, axpy };  // axpy: a + value b
  Op op = Op::add;
  float value = 0.0f;
  void* out = nullptr;  // may be a
  const void* a = nullptr;
  const void* b = nullptr;  // null: value stands for every b[i]
  Dtype out_dtype = Dtype::f32, a_dtype = Dtype::f32, b_dtype = Dtype::f32;
};

}  // namespace fovea

FOVEA_GPU_DECLARE(
    // Operands: out, a, b.
    void elementwise(const fovea::Elementwise& e, const fovea::Layout<3>& layout, Stream stream);)
