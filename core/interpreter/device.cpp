// SPDX-License-Identifier: Apache-2.0
#include "core/cuda/device.h"

#include <unistd.h>

#include <cstring>

#include "core/interpreter/machine.h"
#include "core/interpreter/memory.h"
#include "core/interpreter/queue.h"
#include "core/parallel.h"

namespace fovea::interpreted {

void copy_to_device(void* to, const void* from, size_t bytes, Stream stream) {
  if (tape_of(stream) != nullptr) fail_in_capture("a copy from the host");
  if (bytes == 0) return;
  mark_written(to, bytes);
  const Access access;
  std::memcpy(to, from, bytes);
}

void copy_to_host(void* to, const void* from, size_t bytes, Stream stream) {
  if (tape_of(stream) != nullptr) fail_in_capture("a copy to the host");
  if (bytes == 0) return;
  const Access access;
  std::memcpy(to, from, bytes);
}

void copy_on_device(void* to, const void* from, size_t bytes, Stream stream) {
  if (Tape* tape = tape_of(stream)) {
    tape->push_back([=] { copy_on_device(to, from, bytes, {}); });
    return;
  }
  copy_to_device(to, from, bytes, {});
}

void fill_bytes(void* to, uint8_t value, size_t bytes, Stream stream) {
  if (Tape* tape = tape_of(stream)) {
    tape->push_back([=] { fill_bytes(to, value, bytes, {}); });
    return;
  }
  if (bytes == 0) return;
  mark_written(to, bytes);
  const Access access;
  std::memset(to, value, bytes);
}

void synchronize(Stream stream) {
  if (tape_of(stream) != nullptr) fail_in_capture("a wait of the host");
}

DeviceInfo device_info(int) {
  DeviceInfo info;
  info.name = concat("interpreted (", num_threads(), " host threads)");
  info.shared_bytes = static_cast<int64_t>(kSharedMost);
  const auto page = static_cast<int64_t>(sysconf(_SC_PAGESIZE));
  info.memory_bytes = page * sysconf(_SC_PHYS_PAGES);
  info.free_bytes = page * sysconf(_SC_AVPHYS_PAGES);
  return info;
}

}  // namespace fovea::interpreted
