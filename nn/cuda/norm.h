// SPDX-License-Identifier: Apache-2.0
#pragma once
// LayerNorm and RMSNorm on GPU devices; the calls are those of the cpu's row kernels, with pointers
// to the device.

#include "core/cuda/gpu.h"
#include "nn/cpu/kernels.h"

namespace fovea {

// Rows of partial sums of dgamma and dbeta: a function of the number of rows alone, so that the
// bits are the same on every card. Two for each SM of the largest.
constexpr int64_t norm_parts(int64_t rows) { return rows < 264 * 8 ? (rows + 7) / 8 : 264; }

}  // namespace fovea

FOVEA_GPU_DECLARE(
    void norm_forward(const NormForward& call, int64_t rows, Stream stream);
    // sums [2, channels]: dgamma, dbeta. partial: room for [norm_parts(rows), 2, channels].
    void norm_backward(const NormBackward& call, float* sums, float* partial, int64_t rows,
                       Stream stream);)
