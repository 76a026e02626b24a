// SPDX-License-Identifier: Apache-2.0
#pragma once
// Memory of the devices that run CUDA source, and copies to and from it. What a caller uses is
// core/allocator.h and Tensor; these are the two implementations beneath (core/card/,
// core/interpreter/).

#include <cstddef>
#include <string>

#include "core/cuda/gpu.h"

namespace fovea {

struct DeviceInfo {
  std::string name;          // "NVIDIA H200", "interpreted (2 host threads)"
  int architecture = 0;      // 90 for sm_90; 0 for the interpreted device
  int processors = 1;        // SMs
  int64_t shared_bytes = 0;  // of shared memory a block may have, at most
  std::string bus;           // a card's place in its machine: "0000:3B:00.0"
  int64_t memory_bytes = 0, free_bytes = 0;
};

// device_info, asked once: its free bytes are of then.
const DeviceInfo& known_device(Device device);

}  // namespace fovea

FOVEA_GPU_DECLARE(
    // Null when there is no room. Free before or while work on the block is queued: later work on
    // the same stream may reuse it.
    void* device_allocate(size_t bytes); void device_free(void* block) noexcept;
    // Both return when the host's memory may be changed, or holds the values.
    void copy_to_device(void* to, const void* from, size_t bytes, Stream stream);
    void copy_to_host(void* to, const void* from, size_t bytes, Stream stream);
    void copy_on_device(void* to, const void* from, size_t bytes, Stream stream);
    void fill_bytes(void* to, uint8_t value, size_t bytes, Stream stream);
    void synchronize(Stream stream); DeviceInfo device_info(int index);)
