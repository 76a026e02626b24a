// SPDX-License-Identifier: Apache-2.0
#pragma once
// The door to oneDNN: one engine and stream, primitives cached by problem, scratch from our
// allocator. oneDNN runs on the one OpenMP pool (num_threads() of core/parallel.h) and never uses
// more than cpu_isa() allows.

#include <cstdint>
#include <optional>

#include "core/dtype.h"

namespace fovea::onednn {

// c [batch, m, n] = a [batch, m, k] b [batch, k, n] (+ bias [n]) (+ c). Strides in elements; a and
// b have a unit stride along one of their two matrix axes, c along its last. A batch stride of 0
// means the same matrix for the whole batch.
struct MatmulProblem {
  Dtype in = Dtype::f32;  // f32, or bf16 on a machine with avx512_bf16
  Dtype out = Dtype::f32;
  std::optional<Dtype> bias = {};
  bool accumulate = false;
  int64_t batch = 1, m = 0, n = 0, k = 0;
  int64_t a_batch = 0, a_row = 0, a_column = 1;
  int64_t b_batch = 0, b_row = 0, b_column = 1;
  int64_t c_batch = 0, c_row = 0;

  bool operator==(const MatmulProblem&) const = default;
};

// False, and nothing done, when oneDNN has only its plain loops for this problem.
bool matmul(const MatmulProblem& problem, void* c, const void* a, const void* b, const void* bias);

// Name of the implementation ("brgemm:avx512_core", "gemm:jit"), for benchmarks; empty when there
// is none.
const char* matmul_implementation(const MatmulProblem& problem);

}  // namespace fovea::onednn
