// SPDX-License-Identifier: Apache-2.0
#pragma once
// The door to oneDNN: one engine and stream, primitives cached by problem, scratch from our
// allocator. oneDNN runs on the one OpenMP pool (num_threads() of core/parallel.h) and never uses
// more than cpu_isa() allows.

#include "core/ops/matmul_problem.h"

namespace fovea::onednn {

// Operands are f32, or bf16 on a machine with avx512_bf16. False, and nothing done, when oneDNN has
// only its plain loops for this problem.
bool matmul(const MatmulProblem& problem, void* c, const void* a, const void* b, const void* bias);

// Name of the implementation ("brgemm:avx512_core", "gemm:jit"), for benchmarks; empty when there
// is none.
const char* matmul_implementation(const MatmulProblem& problem);

}  // namespace fovea::onednn
