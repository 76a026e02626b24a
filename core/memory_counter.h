// SPDX-License-Identifier: Apache-2.0
#pragma once
// What some host threads allocate less what they free: the memory of one of several ranks in a
// process, where memory_stats() counts all of them.

#include <array>
#include <atomic>
#include <cstdint>

#include "core/device.h"

namespace fovea {

class MemoryCounter {
 public:
  int64_t live_bytes(Device device = kCpu) const { return of(device).live; }
  // The largest live_bytes so far.
  int64_t peak_bytes(Device device = kCpu) const { return of(device).peak; }

  void add(int64_t bytes, Device device) noexcept;

  // While one lives, the calling host thread counts to `counter`, and to no other. Its OpenMP team
  // does not: what kernels take for themselves inside parallel regions is left out.
  class Scope {
   public:
    explicit Scope(MemoryCounter& counter);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    MemoryCounter* before_;
  };
  // The calling thread's, or null.
  static MemoryCounter* current();

 private:
  struct Bytes {
    std::atomic<int64_t> live = 0, peak = 0;
  };
  const Bytes& of(Device device) const { return bytes_[static_cast<size_t>(device.kind)]; }

  std::array<Bytes, 3> bytes_;  // by Device::Kind
};

}  // namespace fovea
