// SPDX-License-Identifier: Apache-2.0
#include "attention/score/cuda/wgmma_forward.cuh"

FOVEA_SCORE_KERNELS_DECLARE(softmax)

namespace FOVEA_GPU {

void softmax_forward_sm90(const attention::ScoreCall& call, Stream stream) {
  wgmma_forward<SoftmaxRule>(call, stream);
}

}  // namespace FOVEA_GPU
