// SPDX-License-Identifier: Apache-2.0
// Launches of grids whose blocks wait for one another.
#include "core/card/runtime.h"
#include "core/cuda/gpu.h"

namespace fovea::cuda {
namespace {

constexpr size_t kSharedByDefault = size_t{48} << 10;  // more must be asked for, per kernel

void allow_shared(const void* kernel, size_t bytes) {
  if (bytes > kSharedByDefault)
    FOVEA_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          static_cast<int>(bytes)));
}

}  // namespace

int64_t blocks_together_raw(const void* kernel, int threads, size_t shared_bytes);
int64_t blocks_together_raw(const void* kernel, int threads, size_t shared_bytes) {
  allow_shared(kernel, shared_bytes);
  int card = 0, processors = 0, blocks = 0;
  FOVEA_CUDA_CHECK(cudaGetDevice(&card));
  FOVEA_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, card));
  FOVEA_CUDA_CHECK(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes));
  return int64_t{blocks} * processors;
}

void launch_together_raw(const void* kernel, const char* name, dim3 grid, dim3 block,
                         size_t shared_bytes, Stream stream, void** arguments);
void launch_together_raw(const void* kernel, const char* name, dim3 grid, dim3 block,
                         size_t shared_bytes, Stream stream, void** arguments) {
  allow_shared(kernel, shared_bytes);
  const cudaError_t status = cudaLaunchCooperativeKernel(
      kernel, grid, block, arguments, shared_bytes, static_cast<cudaStream_t>(stream.handle));
  if (status == cudaErrorCooperativeLaunchTooLarge) {
    cudaGetLastError();  // not sticky: clear it
    const auto threads = static_cast<int>(block.x * block.y * block.z);
    fovea::detail::fail("cuda launch of ", name, ": a grid of (", grid.x, ", ", grid.y, ", ",
                        grid.z, ") whose blocks wait for one another; ",
                        blocks_together_raw(kernel, threads, shared_bytes), " run at once");
  }
  check(status, "cudaLaunchCooperativeKernel");
}

}  // namespace fovea::cuda
