// SPDX-License-Identifier: Apache-2.0
#include "core/memory_counter.h"

#include <utility>

namespace fovea {
namespace {
thread_local MemoryCounter* t_current = nullptr;
}  // namespace

MemoryCounter::Scope::Scope(MemoryCounter& counter) : before_(std::exchange(t_current, &counter)) {}
MemoryCounter::Scope::~Scope() { t_current = before_; }

MemoryCounter* MemoryCounter::current() { return t_current; }

void MemoryCounter::add(int64_t bytes, Device device) noexcept {
  Bytes& count = bytes_[static_cast<size_t>(device.kind)];
  const int64_t live = count.live += bytes;
  int64_t peak = count.peak;
  while (live > peak && !count.peak.compare_exchange_weak(peak, live)) {
  }
}

}  // namespace fovea
