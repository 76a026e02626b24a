// SPDX-License-Identifier: Apache-2.0
#include "attention/score/rows_simd.h"

FOVEA_SCORE_RULE(fovea::SoftmaxRule, softmax)
