// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a TensorMap says, spelled out and checked before a driver or the interpreted device gets it.

#include "core/cuda/sm90.h"

namespace fovea {

struct TensorMapFacts {
  const void* base = nullptr;
  std::array<int64_t, 5> dims{};     // elements
  std::array<int64_t, 4> strides{};  // bytes, of dims 1..
  std::array<uint16_t, 5> box{};     // elements
  uint8_t rank = 0;
  Dtype dtype = Dtype::f32;
  Swizzle swizzle = Swizzle::none;

  int64_t box_bytes() const {
    int64_t bytes = size_of(dtype);
    for (int i = 0; i < rank; ++i) bytes *= box[static_cast<size_t>(i)];
    return bytes;
  }
};

// The arguments of tensor_map; throws where cuTensorMapEncodeTiled would refuse them.
TensorMapFacts tensor_map_facts(const void* base, Dtype dtype, std::initializer_list<int64_t> dims,
                                std::initializer_list<int64_t> strides,
                                std::initializer_list<int> box, Swizzle swizzle);

}  // namespace fovea
