// SPDX-License-Identifier: Apache-2.0
#include "core/cuda/tensor_map.h"

#include <cstring>

#include "core/interpreter/async.h"
#include "core/interpreter/memory.h"

namespace fovea::interpreted {

static_assert(sizeof(TensorMapFacts) <= sizeof(TensorMap));

TensorMap tensor_map(const void* base, Dtype dtype, std::initializer_list<int64_t> dims,
                     std::initializer_list<int64_t> strides, std::initializer_list<int> box,
                     Swizzle swizzle) {
  const TensorMapFacts facts = tensor_map_facts(base, dtype, dims, strides, box, swizzle);
  const Allocation* block = find_allocation(base);
  FOVEA_CHECK(block != nullptr, "tensor_map: the tensor is not in device memory");
  int64_t bytes = facts.dims[0] * size_of(dtype);
  for (size_t i = 1; i < facts.rank; ++i) bytes += (facts.dims[i] - 1) * facts.strides[i - 1];
  const auto offset = static_cast<const std::byte*>(base) - block->begin;
  FOVEA_CHECK(offset + bytes <= static_cast<int64_t>(block->bytes),
              "tensor_map: the tensor leaves its device memory, byte ", offset, " to ",
              offset + bytes, " of ", block->bytes);
  TensorMap map;
  std::memcpy(map.words.data(), &facts, sizeof facts);
  return map;
}

TensorMapFacts facts_of(const TensorMap& map) {
  TensorMapFacts facts;
  std::memcpy(static_cast<void*>(&facts), map.words.data(), sizeof facts);
  return facts;
}

}  // namespace fovea::interpreted
