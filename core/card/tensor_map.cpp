// SPDX-License-Identifier: Apache-2.0
#include "core/cuda/tensor_map.h"

#include <cuda.h>

#include <bit>

#include "core/card/runtime.h"

namespace fovea::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// Of the driver, which is not linked.
Encode encode() {
  static const Encode found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult status{};
    FOVEA_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                      cudaEnableDefault, &status));
    FOVEA_CHECK(status == cudaDriverEntryPointSuccess && function != nullptr,
                "tensor_map: the driver has no cuTensorMapEncodeTiled; it must be of CUDA 12");
    return reinterpret_cast<Encode>(function);
  }();
  return found;
}

CUtensorMapSwizzle code(Swizzle swizzle) {
  switch (swizzle) {
    case Swizzle::b32:
      return CU_TENSOR_MAP_SWIZZLE_32B;
    case Swizzle::b64:
      return CU_TENSOR_MAP_SWIZZLE_64B;
    case Swizzle::b128:
      return CU_TENSOR_MAP_SWIZZLE_128B;
    case Swizzle::none:
      break;
  }
  return CU_TENSOR_MAP_SWIZZLE_NONE;
}

}  // namespace

TensorMap tensor_map(const void* base, Dtype dtype, std::initializer_list<int64_t> dims,
                     std::initializer_list<int64_t> strides, std::initializer_list<int> box,
                     Swizzle swizzle) {
  const TensorMapFacts facts = tensor_map_facts(base, dtype, dims, strides, box, swizzle);
  cuuint64_t sizes[5] = {}, bytes[4] = {};
  cuuint32_t boxes[5] = {}, ones[5] = {1, 1, 1, 1, 1};
  for (size_t i = 0; i < facts.rank; ++i) {
    sizes[i] = static_cast<cuuint64_t>(facts.dims[i]);
    boxes[i] = facts.box[i];
    if (i + 1 < facts.rank) bytes[i] = static_cast<cuuint64_t>(facts.strides[i]);
  }
  CUtensorMap map{};
  const CUresult status = encode()(
      &map,
      dtype == Dtype::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
      facts.rank, const_cast<void*>(base), sizes, bytes, boxes, ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
      code(swizzle), CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  FOVEA_CHECK(status == CUDA_SUCCESS, "tensor_map: the driver refuses it (error ",
              static_cast<int>(status), ")");
  return std::bit_cast<TensorMap>(map);
}

}  // namespace fovea::cuda
