// SPDX-License-Identifier: Apache-2.0
#include "attention/score/cuda/wgmma_backward.cuh"

FOVEA_GPU_DECLARE(void softmax_backward_sm90(const attention::ScoreCall& call, Stream stream);)

namespace FOVEA_GPU {

void softmax_backward_sm90(const attention::ScoreCall& call, Stream stream) {
  if (attention::hopper_backward(call).width == 64)
    wgmma_backward<SoftmaxRule, 64>(call, stream);
  else
    wgmma_backward<SoftmaxRule, 128>(call, stream);
}

}  // namespace FOVEA_GPU
