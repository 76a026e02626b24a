// SPDX-License-Identifier: Apache-2.0
#pragma once
// Losses: scalars [], means over the scored rows, on the device of what is scored. Labels, and the
// targets of bce_with_logits, are checked by the host: best given on the cpu, on a GPU device they
// make it wait; nothing else does.

#include "autograd/variable.h"

namespace fovea::nn {

struct CrossEntropyOptions {
  double label_smoothing =
      0.0;  // share of the target spread evenly over all V classes (1512.00567 section 7)
  int64_t ignore_index = -100;  // rows with this target do not count
  double z_loss = 0.0;          // adds z_loss * lse^2 (2204.02311 section 5)
  // What backward will be given, where that is known and not 1: [] on the logits' device, not 0.
  // Another one costs a pass over the gradient, and bf16 another rounding.
  Tensor dloss{};
};

// logits [..., V] (f32, bf16, f64), targets i64 [...]. With lse = log sum_j exp(l_j), a row costs
//   (1 - e) (lse - l_y) + e (lse - mean_j l_j) + z lse^2.
// Where a gradient is wanted, forward makes it with the loss, in one pass, and keeps that alone:
// logits in a new tensor of their size, or in place of them if they are given up by std::move (or
// are a temporary) and nobody else sees them. Probabilities are never stored. Throws naming row,
// label and V for a label outside [0, V) that is not ignore_index. No scored row: 0.
Variable cross_entropy(const Variable& logits, const Tensor& targets,
                       const CrossEntropyOptions& options = {});
Variable cross_entropy(Variable&& logits, const Tensor& targets,
                       const CrossEntropyOptions& options = {});
// targets f32 [..., V], each row a distribution (mixup, cutmix).
Variable cross_entropy_soft(const Variable& logits, const Tensor& targets,
                            const CrossEntropyOptions& options = {});

// KL(target || softmax(logits)), mean over rows: the soft cross-entropy less the entropy of the
// targets (distillation, 1503.02531). targets f32 [..., V], each row a distribution.
Variable kl_divergence(const Variable& logits, const Tensor& targets);

// Mean of max(x, 0) - x t + log(1 + exp(-|x|)) = -t log sigmoid(x) - (1 - t) log(1 - sigmoid(x)),
// never overflowing. logits x and targets t in [0, 1] have the same shape. Throws naming the first
// target outside.
Variable bce_with_logits(const Variable& logits, const Tensor& targets);

// mean (x - target)^2
Variable mse(const Variable& x, const Tensor& target);

}  // namespace fovea::nn
