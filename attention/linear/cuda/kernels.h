// SPDX-License-Identifier: Apache-2.0
#pragma once
// Kernels of the linear and the delta engine: what they are told of one call, and their host entry
// points. Both engines run the same three steps (attention/linear/cuda/*.cuh).

#include "core/cuda/gpu.h"
#include "core/dtype.h"

namespace fovea::attention {

inline constexpr int kLargestKeyDim = 256;

// Rows of [B, H, N, D]: strides in elements, the last one 1.
struct TokenRows {
  void* data = nullptr;
  int64_t batch = 0, head = 0, row = 0;
};

struct ChunkCall {
  int B, H, N, Dk, Dv, G, chunks;
  Dtype dtype;                      // of q, k, v, out and their gradients: f32 or bf16
  TokenRows q, k, v, g, beta;       // g [B, H, N, G] and beta [B, H, N, 1] f32; g absent: no decay
  const uint8_t* starts = nullptr;  // [B, N], or null
  const float* state = nullptr;     // [B, H, Dk, Dv], or null: 0
  float* last = nullptr;            // [B, H, Dk, Dv]
  TokenRows out;                    // absent: only states are wanted
  // Backward.
  TokenRows dout, dq, dk, dv;
  const float* dlast = nullptr;                              // [B, H, Dk, Dv], or null: 0
  float *dfirst = nullptr, *dg = nullptr, *dbeta = nullptr;  // [B, H, Dk, Dv], [B, H, N, G or 1]
  // Working memory, [B, H, chunks, ...]: sums of gates b and the factors e^b_i, e^(b_last - b_i)
  // [64, G], e^b_last [G]; scores A [64, 64]; delta: (I + L diag(beta))^-1 and (I + diag(beta)
  // L)^-1.
  float *sums = nullptr, *from_state = nullptr, *to_state = nullptr, *decay = nullptr,
        *scores = nullptr, *inverse = nullptr, *adjoint_inverse = nullptr;
  // Backward: states that enter and gradients of those that leave [Dk, Dv]; delta: E, Y [64, Dv].
  float *states = nullptr, *dstates = nullptr, *errors = nullptr, *adjoints = nullptr;
};

}  // namespace fovea::attention

FOVEA_GPU_DECLARE(
    // prepare fills working memory; walk the last states, and out or states and errors; walk_back
    // dv, dfirst, dstates and adjoints; gradients the rest.
    void linear_prepare(const attention::ChunkCall& call, Stream stream);
    void linear_walk(const attention::ChunkCall& call, Stream stream);
    void linear_walk_back(const attention::ChunkCall& call, Stream stream);
    void linear_gradients(const attention::ChunkCall& call, Stream stream);
    void delta_prepare(const attention::ChunkCall& call, Stream stream);
    void delta_walk(const attention::ChunkCall& call, Stream stream);
    void delta_walk_back(const attention::ChunkCall& call, Stream stream);
    void delta_gradients(const attention::ChunkCall& call, Stream stream);)
