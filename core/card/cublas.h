// SPDX-License-Identifier: Apache-2.0
#pragma once
// The door to cuBLASLt, loaded with the first product. Sums are f32: of f32 operands in full
// precision unless the problem allows tf32, of bf16 in the tensor cores.

#include "core/cuda/gpu.h"
#include "core/ops/matmul_problem.h"

namespace fovea::cublas {

// Pointers are device memory; bias, if any, has the dtype of c. The algorithm is cuBLASLt's first
// choice, asked for once a problem, so that the same shapes give the same bits. Throws naming the
// problem when there is none.
void matmul(const MatmulProblem& problem, void* c, const void* a, const void* b, const void* bias,
            Device device);

// The same for a problem with a GELU. False, and nothing done, when cuBLASLt has no algorithm for
// it: then a product and an activation give as much.
bool matmul_gelu(const MatmulProblem& problem, void* c, void* aux, const void* a, const void* b,
                 void* bias, Device device);

}  // namespace fovea::cublas
