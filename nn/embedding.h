// SPDX-License-Identifier: Apache-2.0
#pragma once
// Rows of a table by index.

#include "autograd/variable.h"

namespace fovea::nn {

// weight [V, C], ids i64 [...] -> [..., C] in the weight's dtype, on its device. Throws naming an
// id outside [0, V) and its position; for that the ids are read by the host: best given on the cpu,
// on a GPU device they make it wait. Backward adds the rows of one id in order of position: the
// same bits for any number of threads.
Variable embedding(const Variable& weight, const Tensor& ids);

}  // namespace fovea::nn
