// SPDX-License-Identifier: Apache-2.0
#pragma once
// The arithmetic of a reduction: one op over what the ranks sent.

#include <span>

#include "distributed/communicator.h"

namespace fovea::distributed {

// out [n] = op over pieces [P][n] as a balanced binary tree: the first 2^k < P pieces, and the
// rest. All contiguous, of one dtype (f32, f64, bf16, i64) and one device; bf16 sums are f32,
// rounded at the end. out may be one of the pieces.
void reduce_pieces(const Tensor& out, std::span<const Tensor> pieces, Reduce op);

}  // namespace fovea::distributed
