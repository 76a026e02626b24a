// SPDX-License-Identifier: Apache-2.0
#include "attention/score/cuda/mma_forward.cuh"

FOVEA_SCORE_KERNELS_DECLARE(softmax)

namespace FOVEA_GPU {

void softmax_forward_bf16_large(const attention::ScoreCall& call, Stream stream) {
  mma_forward_large<SoftmaxRule>(call, stream);
}

}  // namespace FOVEA_GPU
