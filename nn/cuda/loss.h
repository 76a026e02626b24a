// SPDX-License-Identifier: Apache-2.0
#pragma once
// Losses on GPU devices. Results stay there: nothing waits for the host.

#include "core/cuda/gpu.h"
#include "core/dtype.h"

namespace fovea {

// logits [rows, classes]; either labels [rows] or soft targets [rows, classes] (f32), the other
// null.
struct CrossEntropyCall {
  const void* logits;
  Dtype dtype;
  const int64_t* labels;
  const float* soft;
  int64_t rows, classes;
  int64_t ignore;  // label of rows that do not count
  float smoothing, z_loss;
  bool divergence;      // soft: less the entropy of the targets
  const float* scored;  // one in device memory: how many rows count
};

enum class PointLoss { squared_error, binary_cross_entropy };

// Blocks of point_loss_forward, a function of the count alone.
constexpr int64_t point_loss_parts(int64_t count) {
  constexpr int64_t kSpan = 4096;
  return count < 1024 * kSpan ? (count + kSpan - 1) / kSpan : 1024;
}

}  // namespace fovea

FOVEA_GPU_DECLARE(
    // mean [] = sum of x [n] / divisor; 0 where that is 0. The divisor is scored[0], or the number
    // where `scored` is null.
    void mean_of(float* mean, const float* x, int64_t n, const float* scored, float divisor,
                 Stream stream);

    // loss []; saved for backward: lse [rows] and weight [rows], the factor of the row's softmax in
    // its gradient. row_loss: room for [rows].
    void cross_entropy_forward(float* loss, float* lse, float* weight, float* row_loss,
                               const CrossEntropyCall& call, Stream stream);
    // dlogits in the logits' dtype; dloss []
    void cross_entropy_backward(void* dlogits, const float* dloss, const float* lse,
                                const float* weight, const CrossEntropyCall& call, Stream stream);

    // loss [] = mean f(x, target). partial: room for [point_loss_parts(count)].
    void point_loss_forward(float* loss, float* partial, const void* x, Dtype dtype,
                            const float* target, int64_t count, PointLoss kind, Stream stream);
    void point_loss_backward(void* dx, const float* dloss, const void* x, Dtype dtype,
                             const float* target, int64_t count, PointLoss kind, Stream stream);)
