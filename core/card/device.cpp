// SPDX-License-Identifier: Apache-2.0
#include "core/cuda/device.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <mutex>
#include <string_view>

#include "core/card/runtime.h"
#include "core/cuda/stream.h"

namespace fovea::cuda {
namespace {

constexpr int kOldestArchitecture = 80;                // bf16 in mma.sync, cp.async
constexpr size_t kSharedByDefault = size_t{48} << 10;  // more must be asked for, per kernel

cudaStream_t handle(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

// Page-locked memory through which host values go to a card, in turns: a copy is queued and the
// host goes on; it waits only for a slot whose last copy is not done.
class Staging {
 public:
  static Staging& one() {
    static auto* staging = new Staging;  // the runtime may be gone before it could be destroyed
    return *staging;
  }
  void send(void* to, const void* from, size_t bytes, cudaStream_t stream) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (size_t done = 0; done < bytes; done += kSlot) {
      const size_t part = std::min(kSlot, bytes - done);
      Slot& slot = slots_[next_++ % slots_.size()];
      if (slot.memory == nullptr) {
        FOVEA_CUDA_CHECK(cudaMallocHost(&slot.memory, kSlot));
        FOVEA_CUDA_CHECK(cudaEventCreateWithFlags(&slot.sent, cudaEventDisableTiming));
      } else {
        FOVEA_CUDA_CHECK(cudaEventSynchronize(slot.sent));
      }
      std::memcpy(slot.memory, static_cast<const std::byte*>(from) + done, part);
      FOVEA_CUDA_CHECK(cudaMemcpyAsync(static_cast<std::byte*>(to) + done, slot.memory, part,
                                       cudaMemcpyHostToDevice, stream));
      FOVEA_CUDA_CHECK(cudaEventRecord(slot.sent, stream));
    }
  }

 private:
  static constexpr size_t kSlot = size_t{4} << 20;
  struct Slot {
    void* memory = nullptr;
    cudaEvent_t sent = nullptr;
  };
  std::array<Slot, 8> slots_;
  size_t next_ = 0;
  std::mutex mutex_;
};

}  // namespace

void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  const std::string_view whole = call;
  if (status == cudaErrorInsufficientDriver || status == cudaErrorNoDevice) {
    fovea::detail::fail(
        "cuda: ", cudaGetErrorString(status),
        "; use --device=cpu, or --device=interpreted to run the kernels without a card");
  }
  const bool broke_off = status == cudaErrorLaunchFailure || status == cudaErrorIllegalInstruction;
  fovea::detail::fail(
      "cuda ", whole.substr(0, whole.find('(')), ": ", cudaGetErrorString(status),
      broke_off ? "; a kernel broke off, as one does that waits half a minute for another thread; "
                  "with CUDA_LAUNCH_BLOCKING=1 the error names it"
                : "");
}

void* device_allocate(size_t bytes) {
  void* block = nullptr;
  const cudaError_t status = cudaMalloc(&block, std::max<size_t>(bytes, 1));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not sticky: clear it
    return nullptr;
  }
  check(status, "cudaMalloc");
  return block;
}

void device_free(void* block) noexcept { cudaFree(block); }

void copy_to_device(void* to, const void* from, size_t bytes, Stream stream) {
  if (is_capturing(stream)) fail_in_capture("a copy from the host");
  if (bytes > 0) Staging::one().send(to, from, bytes, handle(stream));
}

void copy_to_host(void* to, const void* from, size_t bytes, Stream stream) {
  if (is_capturing(stream)) fail_in_capture("a copy to the host");
  if (bytes == 0) return;
  FOVEA_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, handle(stream)));
  synchronize(stream);
}

void copy_on_device(void* to, const void* from, size_t bytes, Stream stream) {
  if (bytes == 0) return;
  FOVEA_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, handle(stream)));
}

void fill_bytes(void* to, uint8_t value, size_t bytes, Stream stream) {
  if (bytes == 0) return;
  FOVEA_CUDA_CHECK(cudaMemsetAsync(to, value, bytes, handle(stream)));
}

void synchronize(Stream stream) {
  if (is_capturing(stream)) fail_in_capture("a wait of the host");
  FOVEA_CUDA_CHECK(cudaStreamSynchronize(handle(stream)));
}

DeviceInfo device_info(int index) {
  int count = 0;
  FOVEA_CUDA_CHECK(cudaGetDeviceCount(&count));
  FOVEA_CHECK(index >= 0 && index < count, "cuda: there is no device ", index,
              "; this machine has ", count);
  cudaDeviceProp properties{};
  FOVEA_CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
  DeviceInfo info;
  info.name = properties.name;
  info.architecture = properties.major * 10 + properties.minor;
  FOVEA_CHECK(info.architecture >= kOldestArchitecture, "cuda: ", info.name, " is sm_",
              info.architecture, "; these kernels need sm_", kOldestArchitecture,
              " or later; use --device=cpu");
  info.processors = properties.multiProcessorCount;
  std::array<char, 32> bus{};
  FOVEA_CUDA_CHECK(cudaDeviceGetPCIBusId(bus.data(), static_cast<int>(bus.size()), index));
  info.bus = bus.data();
  info.shared_bytes = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
  size_t free = 0, total = 0;
  FOVEA_CUDA_CHECK(cudaSetDevice(index));
  FOVEA_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  info.memory_bytes = static_cast<int64_t>(total);
  info.free_bytes = static_cast<int64_t>(free);
  return info;
}

void launch_raw(const void* kernel, const char* name, dim3 grid, dim3 block, size_t shared_bytes,
                Stream stream, void** arguments);
void launch_raw(const void* kernel, const char* name, dim3 grid, dim3 block, size_t shared_bytes,
                Stream stream, void** arguments) {
  if (shared_bytes > kSharedByDefault) {
    static std::mutex mutex;
    static std::map<const void*, size_t> allowed;
    const std::lock_guard<std::mutex> lock(mutex);
    size_t& most = allowed[kernel];
    if (most < shared_bytes) {
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes)),
            "cudaFuncSetAttribute");
      most = shared_bytes;
    }
  }
  const cudaError_t status =
      cudaLaunchKernel(kernel, grid, block, arguments, shared_bytes, handle(stream));
  FOVEA_CHECK(status == cudaSuccess, "cuda launch of ", name, ", grid (", grid.x, ", ", grid.y,
              ", ", grid.z, "), block (", block.x, ", ", block.y, ", ", block.z, "), ",
              shared_bytes, " bytes of shared memory: ", cudaGetErrorString(status));
}

}  // namespace fovea::cuda
