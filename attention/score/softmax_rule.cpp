// SPDX-License-Identifier: Apache-2.0
#include "attention/score/rows.h"

FOVEA_SCORE_RULE_DECLARE(softmax)

namespace fovea {

const ScoreRule& softmax_rule() {
  static const SoftmaxRule object;
  static const ScoreRule rule = FOVEA_SCORE_RULE_OF(softmax, object);
  return rule;
}

}  // namespace fovea
