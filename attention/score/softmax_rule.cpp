// SPDX-License-Identifier: Apache-2.0
#include "attention/score/cuda/kernels.h"
#include "attention/score/rows.h"
#include "core/cuda/sm90.h"

FOVEA_SCORE_RULE_DECLARE(softmax)
FOVEA_SCORE_KERNELS_DECLARE(softmax)
FOVEA_GPU_DECLARE(void softmax_backward_sm90(const attention::ScoreCall& call, Stream stream);)

namespace fovea {

const ScoreRule& softmax_rule() {
  static const SoftmaxRule object;
  static const ScoreRule rule = [] {
    ScoreRule made = FOVEA_SCORE_RULE_ON_DEVICES(softmax, FOVEA_SCORE_RULE_OF(softmax, object));
    made.hopper_backward = [](Device device, const attention::ScoreCall& c) {
      FOVEA_SM90_CALL(device, softmax_backward_sm90, c, stream_of(device));
    };
    return made;
  }();
  return rule;
}

}  // namespace fovea
