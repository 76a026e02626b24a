// SPDX-License-Identifier: Apache-2.0
#pragma once
// One launch over all parameters: a table of pieces in device memory, a block a piece. The rules
// are those of train/optim/cpu/kernels.h.

#include "core/cuda/gpu.h"
#include "train/optim/cpu/kernels.h"

namespace fovea {

// Elements of a parameter with its gradient and state; f32. Rules without a second state leave it
// null.
struct OptimizerPiece {
  float* value;
  const float* gradient;
  float* first;
  float* second;
  int64_t count;
  float shrink;  // 1 - lr weight_decay, or 1 where nothing decays
};
inline constexpr int64_t kOptimizerPiece = 16384;  // elements: 32 a thread

struct MomentumStep {
  float factor, lr;
  float beta1, beta2;  // SGD: beta1 is the momentum
  bool nesterov;
};

}  // namespace fovea

FOVEA_GPU_DECLARE(
    // `pieces` [count] lies on the device.
    void adamw_pieces(const OptimizerPiece* pieces, int64_t count, const AdamwStep& step,
                      Stream stream);
    void sgd_pieces(const OptimizerPiece* pieces, int64_t count, const MomentumStep& step,
                    Stream stream);
    void lion_pieces(const OptimizerPiece* pieces, int64_t count, const MomentumStep& step,
                     Stream stream);
    // first <- first + rest (value - first)
    void ema_pieces(const OptimizerPiece* pieces, int64_t count, float rest, Stream stream);
    // value <-> first
    void swap_pieces(const OptimizerPiece* pieces, int64_t count, Stream stream);
    // total[0] = root of the sum of squares of all gradients, in f64 and a fixed order, rounded;
    // partial [count] is working memory of doubles.
    void norm_of_pieces(float* total, void* partial, const OptimizerPiece* pieces, int64_t count,
                        Stream stream);)
