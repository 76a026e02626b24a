// SPDX-License-Identifier: Apache-2.0
// The linear engine's kernels: eight instances, f32 and bf16.
#include "attention/linear/cuda/steps.cuh"

namespace FOVEA_GPU {

using Steps = ChunkSteps<false>;

void linear_prepare(const attention::ChunkCall& call, Stream stream) {
  Steps::prepare(call, stream);
}
void linear_walk(const attention::ChunkCall& call, Stream stream) { Steps::walk(call, stream); }
void linear_walk_back(const attention::ChunkCall& call, Stream stream) {
  Steps::walk_back(call, stream);
}
void linear_gradients(const attention::ChunkCall& call, Stream stream) {
  Steps::gradients(call, stream);
}

}  // namespace FOVEA_GPU
