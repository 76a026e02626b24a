// SPDX-License-Identifier: Apache-2.0
#pragma once
// BatchNorm and GroupNorm on GPU devices.

#include "core/cuda/gpu.h"
#include "core/dtype.h"

namespace fovea {

// x [batch, channels, size] as batch * channels rows. A set of rows shares a mean and a variance: a
// channel's rows (groups 0), or those of one of `groups` groups of channels of a sample.
struct ChannelRows {
  Dtype dtype;
  int64_t batch, channels, size, groups;

  FOVEA_HD int64_t rows() const { return batch * channels; }
  FOVEA_HD int64_t sets() const { return groups > 0 ? batch * groups : channels; }
  FOVEA_HD int64_t rows_of_set() const { return rows() / sets(); }
  FOVEA_HD int64_t set_of(int64_t row) const {
    return groups > 0 ? row / (channels / groups) : row % channels;
  }
  // Row k of set s.
  FOVEA_HD int64_t row_of(int64_t s, int64_t k) const {
    return groups > 0 ? s * (channels / groups) + k : k * channels + s;
  }
};

}  // namespace fovea

FOVEA_GPU_DECLARE(
    // mean, variance, rstd [sets]. moments: room for [rows, 2].
    void channel_statistics(float* mean, float* variance, float* rstd, float* moments,
                            const void* x, const ChannelRows& shape, float eps, Stream stream);
    // rstd [n] = (variance + eps)^-1/2
    void inverse_deviation(float* rstd, const float* variance, int64_t n, float eps, Stream stream);
    // y = gamma rstd (x - mean) + beta
    void channel_norm_forward(void* y, const void* x, const float* mean, const float* rstd,
                              const float* gamma, const float* beta, const ChannelRows& shape,
                              Stream stream);
    // running += momentum (factor found - running)
    void move_statistics(float* running, const float* found, int64_t n, float momentum,
                         float factor, Stream stream);
    // dx may be null. sums: room for [rows, 2]; means: for [sets, 2]. fixed: mean and rstd are
    // constants.
    void channel_norm_backward(void* dx, float* dgamma, float* dbeta, float* sums, float* means,
                               const void* dy, const void* x, const float* mean, const float* rstd,
                               const float* gamma, const ChannelRows& shape, bool fixed,
                               Stream stream);)
