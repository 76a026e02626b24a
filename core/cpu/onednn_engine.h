// SPDX-License-Identifier: Apache-2.0
#pragma once
// oneDNN's own types, for the files that make primitives (include it in .cpp files only: the header is heavy).

#include <oneapi/dnnl/dnnl.hpp>

#include "core/dtype.h"

namespace fovea::onednn {

const dnnl::engine& engine();
dnnl::stream& stream();                         // one per thread
dnnl::memory::data_type data_type(Dtype dtype);  // f32, bf16; throws for others

// Memory for a primitive's scratchpad, from our allocator; null for 0 bytes.
class Scratch {
 public:
  explicit Scratch(size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* data() const { return data_; }

 private:
  size_t bytes_;
  void* data_;
};

}  // namespace fovea::onednn
