// SPDX-License-Identifier: Apache-2.0
#pragma once
// Dropout (Srivastava et al. 2014) and DropPath (1603.09382). Masks are functions of (seed, owner's
// path, step, sample, element): nothing is stored, and a split of the batch over micro-batches or
// ranks draws the same ones.

#include "nn/module.h"
#include "nn/sequence_part.h"

namespace fovea::nn {

// x * keep / (1 - rate), keep drawn per element; axis 0 is the sample. x itself when rate is 0 or
// outside training. part: x [B, n, C] is a part of sequences [B, N, C], and is dropped as they are.
Variable dropout(const Variable& x, double rate, const Module& owner,
                 const SequencePart* part = nullptr);
// The same drawn per sample.
Variable drop_path(const Variable& x, double rate, const Module& owner);

}  // namespace fovea::nn
