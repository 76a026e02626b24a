// SPDX-License-Identifier: Apache-2.0
#include "attention/score/cuda/kernels.h"
#include "attention/score/rows.h"

FOVEA_SCORE_RULE_DECLARE(softmax)
FOVEA_SCORE_KERNELS_DECLARE(softmax)

namespace fovea {

const ScoreRule& softmax_rule() {
  static const SoftmaxRule object;
  static const ScoreRule rule =
      FOVEA_SCORE_RULE_ON_DEVICES(softmax, FOVEA_SCORE_RULE_OF(softmax, object));
  return rule;
}

}  // namespace fovea
