// SPDX-License-Identifier: Apache-2.0
#pragma once
// BatchNorm (1502.03167) and GroupNorm (1803.08494): norms over sets of the values of [B, C, ...],
// then one gamma and one beta a channel. gamma and beta stay f32 when x is bf16 (f64 with f64).
// Statistics are f32 a row, f64 over rows (on GPU devices f32).

#include "nn/module.h"

namespace fovea::nn {

// x [B, C, ...], gamma [C], beta [C] -> x's shape and dtype. Each of `groups` groups of channels of
// each sample has its own mean and variance. Throws when `groups` does not divide C.
Variable group_norm(const Variable& x, const Variable& gamma, const Variable& beta, int64_t groups,
                    double eps = 1e-5);

// What a batch's channels were, [C], f64 (on a GPU device f32, there): mean and (biased) variance
// of `count` values each.
struct ChannelStatistics {
  Tensor mean, variance;
  int64_t count = 0;
};
// Each channel has the mean and variance of its values in the whole batch, returned in *statistics
// where given.
Variable batch_norm(const Variable& x, const Variable& gamma, const Variable& beta,
                    double eps = 1e-5, ChannelStatistics* statistics = nullptr);
// The same with means and variances [C] that are given and constant.
Variable batch_norm_fixed(const Variable& x, const Variable& gamma, const Variable& beta,
                          const Tensor& mean, const Tensor& variance, double eps = 1e-5);

class GroupNorm : public Module {
 public:
  GroupNorm(int64_t groups, int64_t channels, double eps = 1e-5);
  Variable forward(const Variable& x) const { return group_norm(x, weight, bias, groups_, eps_); }

  Variable weight, bias;  // [C]

 private:
  int64_t groups_;
  double eps_;
};

// Over [B, C, H, W]. In training it uses the batch's statistics and moves the running ones towards
// them (those passes that record gradients, so that a recomputed block counts once); in evaluation
// it uses the running ones.
class BatchNorm2d : public Module {
 public:
  // running = (1 - momentum) running + momentum batch, with the unbiased variance
  explicit BatchNorm2d(int64_t channels, double eps = 1e-5, double momentum = 0.1);
  // Throws in training when a channel has a single value: it has no variance.
  Variable forward(const Variable& x);

  Variable weight, bias;                  // [C]
  Tensor running_mean, running_variance;  // [C], buffers

 private:
  double eps_, momentum_;
};

}  // namespace fovea::nn
