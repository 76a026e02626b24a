// SPDX-License-Identifier: Apache-2.0
#include "attention/score/cuda/fma_backward.cuh"

FOVEA_SCORE_KERNELS_DECLARE(softmax)

namespace FOVEA_GPU {

void softmax_backward_f32(const attention::ScoreCall& call, Stream stream) {
  fma_backward<SoftmaxRule>(call, stream);
}

}  // namespace FOVEA_GPU
