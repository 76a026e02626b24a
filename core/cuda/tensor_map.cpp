// SPDX-License-Identifier: Apache-2.0
#include "core/cuda/tensor_map.h"

#include <algorithm>

namespace fovea {

TensorMapFacts tensor_map_facts(const void* base, Dtype dtype, std::initializer_list<int64_t> dims,
                                std::initializer_list<int64_t> strides,
                                std::initializer_list<int> box, Swizzle swizzle) {
  constexpr int64_t kMostElements = int64_t{1} << 32, kMostBytes = int64_t{1} << 40;
  constexpr int kUnit = 16, kMostBox = 256;  // bytes, elements
  FOVEA_CHECK(dtype == Dtype::f32 || dtype == Dtype::bf16, "tensor_map: ", dtype,
              "; expected f32 or bf16");
  const size_t rank = dims.size();
  FOVEA_CHECK(rank >= 1 && rank <= 5 && strides.size() + 1 == rank && box.size() == rank,
              "tensor_map: ", rank, " dims, ", strides.size(), " strides, a box of ", box.size(),
              "; expected 1 to 5 dims, a stride for each but the first, a box of all");
  FOVEA_CHECK(reinterpret_cast<uintptr_t>(base) % kUnit == 0,
              "tensor_map: the tensor does not begin at a multiple of 16 bytes");
  TensorMapFacts facts;
  facts.base = base;
  facts.rank = static_cast<uint8_t>(rank);
  facts.dtype = dtype;
  facts.swizzle = swizzle;
  std::copy(dims.begin(), dims.end(), facts.dims.begin());
  for (const int64_t n : dims)
    FOVEA_CHECK(n >= 1 && n <= kMostElements, "tensor_map: a dim of ", n,
                "; expected 1 to 4294967296");
  size_t i = 0;
  for (const int64_t stride : strides) {
    const int64_t bytes = stride * size_of(dtype);
    FOVEA_CHECK(bytes >= 0 && bytes < kMostBytes && bytes % kUnit == 0, "tensor_map: dim ", i + 1,
                " has a stride of ", bytes, " bytes; expected a multiple of 16");
    facts.strides[i++] = bytes;
  }
  i = 0;
  for (const int n : box) {
    FOVEA_CHECK(n >= 1 && n <= kMostBox, "tensor_map: a box of ", n, " in dim ", i,
                "; expected 1 to 256");
    facts.box[i++] = static_cast<uint16_t>(n);
  }
  const int64_t inner = facts.box[0] * size_of(dtype);
  FOVEA_CHECK(inner % kUnit == 0, "tensor_map: the innermost box has ", inner,
              " bytes; expected a multiple of 16");
  FOVEA_CHECK(swizzle == Swizzle::none || inner == span_bytes(swizzle),
              "tensor_map: the innermost box has ", inner, " bytes; expected the swizzle's ",
              span_bytes(swizzle));
  return facts;
}

}  // namespace fovea
