// SPDX-License-Identifier: Apache-2.0
#pragma once
// Losses on GPU devices. Results stay there: nothing waits for the host.

#include "core/cuda/gpu.h"
#include "core/dtype.h"

namespace fovea {

// logits [rows, classes]; either labels [rows] or soft targets [rows, classes] (f32), the other
// null. dlogits [rows, classes] in the logits' dtype, null where no gradient is wanted; may be the
// logits.
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
  void* dlogits;
  const float* dloss;    // one in device memory: the gradient of the loss; null: 1
  int64_t shared_bytes;  // of the device (DeviceInfo)
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

    // loss [], and call.dlogits. row_loss: room for [rows].
    void cross_entropy(float* loss, float* row_loss, const CrossEntropyCall& call, Stream stream);
    // d [n], a gradient for `assumed` (null: 1), made one for dloss.
    void scale_gradient(void* d, Dtype dtype, int64_t n, const float* dloss, const float* assumed,
                        Stream stream);

    // loss [] = mean f(x, target). partial: room for [point_loss_parts(count)].
    void point_loss_forward(float* loss, float* partial, const void* x, Dtype dtype,
                            const float* target, int64_t count, PointLoss kind, Stream stream);
    void point_loss_backward(void* dx, const float* dloss, const void* x, Dtype dtype,
                             const float* target, int64_t count, PointLoss kind, Stream stream);)
