// SPDX-License-Identifier: Apache-2.0
#include "attention/score/cuda/mma_backward.cuh"

FOVEA_SCORE_KERNELS_DECLARE(softmax)

namespace FOVEA_GPU {

void softmax_backward_bf16_small(const attention::ScoreCall& call, Stream stream) {
  mma_backward_small<SoftmaxRule>(call, stream);
}

}  // namespace FOVEA_GPU
