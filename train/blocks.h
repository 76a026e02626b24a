// SPDX-License-Identifier: Apache-2.0
#pragma once
// Training in blocks of mesh.block tokens, which gives the same bits on every mesh of data x ring
// (docs/data_parallel.md): layers by nn/token_blocks.h, attention by the checked mode of
// distributed/context_attention.h, gradients by the exact sums of distributed/data_parallel.h.

#include "distributed/mesh.h"
#include "train/options.h"

namespace fovea::train {

// Throws in one line where a step on this mesh, with samples of `tokens`, would not be that of
// other meshes.
void check_blocks(const Experiment& experiment, const distributed::MeshSizes& mesh, int64_t tokens);

}  // namespace fovea::train
