// SPDX-License-Identifier: Apache-2.0
#pragma once
// oneDNN's own types, for the files that make primitives (include it in .cpp files only: the header
// is heavy).

#include <oneapi/dnnl/dnnl.hpp>

#include "core/dtype.h"

namespace fovea::onednn {

const dnnl::engine& engine();
dnnl::stream& stream();                          // one per thread
dnnl::memory::data_type data_type(Dtype dtype);  // f32, bf16; throws for others

}  // namespace fovea::onednn
