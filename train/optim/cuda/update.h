// SPDX-License-Identifier: Apache-2.0
#pragma once
// Update rules on a GPU device: one launch over the chunks of all parameters, whose pointers stand
// in a table in device memory. The rules are those of train/optim/cpu/kernels.h; nothing waits for
// the device.

#include "core/cuda/gpu.h"
#include "train/optim/cpu/kernels.h"

namespace fovea {

// A parameter, or what stands in its place. Contiguous f32 in device memory.
struct UpdateEntry {
  float* p;
  const float* g;
  float *m, *v;  // state, where the rule has it
  int64_t n;
  int32_t decays;
  int32_t aligned;  // all pointers, to 16 bytes
};
inline constexpr int64_t kUpdateChunk = 16384;  // elements
struct UpdateChunk {
  int32_t entry, index;
};
// Both in device memory.
struct UpdateTable {
  const UpdateEntry* entries = nullptr;
  const UpdateChunk* chunks = nullptr;
  int64_t count = 0;  // of chunks
};

// What gradients are multiplied by: `value`; or, with a norm (one f32 in device memory, read when
// the kernel runs), min(1, most / norm), or where `most` is 0, 1 / (norm + 1e-7).
struct GradientFactor {
  float value = 1.0f;
  const float* norm = nullptr;
  float most = 0.0f;
};

struct SgdStep {
  float lr, mu;
  bool nesterov;
  float shrink;
};
struct LionStep {
  float lr, beta1, beta2, shrink;
};
struct MuonStep {
  float lr, shrink;
};

}  // namespace fovea

FOVEA_GPU_DECLARE(
    // `step`, what changes from step to step, is in device memory and read when the kernel runs.
    // AdamwStep::factor is not used.
    void adamw_step(const fovea::UpdateTable& table, const fovea::GradientFactor& factor,
                    const fovea::AdamwStep* step, Stream stream);
    void sgd_step(const fovea::UpdateTable& table, const fovea::GradientFactor& factor,
                  const fovea::SgdStep* step, Stream stream);
    void lion_step(const fovea::UpdateTable& table, const fovea::GradientFactor& factor,
                   const fovea::LionStep* step, Stream stream);
    // p <- shrink p - lr g
    void muon_step(const fovea::UpdateTable& table, const fovea::MuonStep* step, Stream stream);
    // m <- mu m + factor g;  p <- mu m + factor g: Nesterov's direction.
    void momentum_step(const fovea::UpdateTable& table, const fovea::GradientFactor& factor,
                       float mu, Stream stream);
    // p <- factor g
    void scale_step(const fovea::UpdateTable& table, const fovea::GradientFactor& factor,
                    Stream stream);
    // p <- p + rest (g - p): p the average, g the weights.
    void ema_step(const fovea::UpdateTable& table, float rest, Stream stream);
    // norm[0] = root of the sum of squares of every g, summed in f64: chunks by a fixed tree, then
    // the chunks (partial, one f64 each) in order. The same bits every time.
    void gradient_norm(float* norm, double* partial, const fovea::UpdateTable& table,
                       Stream stream);)
