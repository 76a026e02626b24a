// SPDX-License-Identifier: Apache-2.0
#pragma once
// Caching allocator: blocks are 64-byte aligned, rounded up to size classes, and kept for reuse
// when freed. Counts live and peak bytes, so that a test can say how much memory a step or an
// operator took.

#include <cstddef>
#include <cstdint>

#include "core/device.h"

namespace fovea {

inline constexpr size_t kAlignment = 64;

struct MemoryStats {
  int64_t live_bytes = 0;    // asked for and not yet freed
  int64_t peak_bytes = 0;    // largest live_bytes since the last reset_peak
  int64_t cached_bytes = 0;  // freed, kept for reuse
  int64_t allocations = 0;   // calls since the start
};

// Never null, also for 0 bytes; throws Error naming the size when the system has no memory left.
// Thread-safe.
void* allocate(size_t bytes, Device device = kCpu);
// `bytes` must be what was asked for.
void deallocate(void* block, size_t bytes, Device device = kCpu) noexcept;

MemoryStats memory_stats(Device device = kCpu);
void reset_peak(Device device = kCpu);
// Gives cached blocks back to the system.
void release_cached(Device device = kCpu);

}  // namespace fovea
