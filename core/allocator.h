// SPDX-License-Identifier: Apache-2.0
#pragma once
// Memory of every device: one pool each, which keeps freed blocks for reuse and counts what is
// live, so that a test can say how much memory a step or an operator took, and a program that asks
// for too much can say what fills the device.
//
// The cpu's blocks are 64-byte aligned and rounded up to size classes; a card's are cut out of a
// few large segments (core/caching_pool.h); the interpreted device's are its own and never kept.
//
// A card's block may be freed while work on it is queued: it belongs to the stream that was current
// when it was allocated (core/stream.h), and what takes its place is queued there, behind that
// work.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/device.h"
#include "core/error.h"
#include "core/memory_group.h"

namespace fovea {

inline constexpr size_t kAlignment = 64;

struct MemoryStats {
  int64_t live_bytes = 0;          // asked for and not yet freed
  int64_t peak_bytes = 0;          // largest live_bytes since the last reset_peak
  int64_t reserved_bytes = 0;      // held from the system, in use or not
  int64_t cached_bytes = 0;        // of these: free, kept for reuse
  int64_t largest_free_bytes = 0;  // largest block that could be had without the system
  int64_t allocations = 0;         // calls since the start
  int64_t system_allocations = 0;  // of these: how often the system was asked

  // Share of the cached bytes outside the largest free block; 0 where none are cached.
  double fragmentation() const {
    return cached_bytes == 0
               ? 0.0
               : 1.0 - static_cast<double>(largest_free_bytes) / static_cast<double>(cached_bytes);
  }
};

// "out of memory on cuda: wanted 1.50 GiB, free 310 MiB of 79.00 GiB; largest live: gradients of
// token.weight 148 MiB, activations of blocks.*.mlp 1.12 GiB (12 together)"
class OutOfMemory : public Error {
 public:
  using Error::Error;
};

// Never null, also for 0 bytes; throws OutOfMemory when neither the pool nor the system has room,
// or the limit is reached. The block counts to `group`. Thread-safe.
void* allocate(size_t bytes, Device device = kCpu, MemoryGroup group = {});
// `bytes` and `group` must be what was asked for.
void deallocate(void* block, size_t bytes, Device device = kCpu, MemoryGroup group = {}) noexcept;
// `bytes` live bytes now count to another group.
void regroup(size_t bytes, Device device, MemoryGroup from, MemoryGroup to) noexcept;

MemoryStats memory_stats(Device device = kCpu);
void reset_peak(Device device = kCpu);
// Gives cached memory back to the system.
void release_cached(Device device = kCpu);

// What a device may hold from the system, its cache included; 0: no limit. Every device starts with
// the limit of the environment variable FOVEA_MEMORY_LIMIT, as in 64MiB or 1.5GiB.
void set_memory_limit(Device device, int64_t bytes);

// Memory for work that is done again and again at the same addresses (core/graph.h). While it is
// open on a host thread, what the thread allocates on the device comes from it, and what it frees
// there is given to nobody else before the arena is gone. Blocks may outlive it.
class MemoryArena {
 public:
  explicit MemoryArena(Device device);  // opens it
  ~MemoryArena();
  MemoryArena(const MemoryArena&) = delete;
  MemoryArena& operator=(const MemoryArena&) = delete;
  void close();
  int64_t bytes() const;  // held from the system

 private:
  Device device_;
  void* arena_;
};

// The groups with live bytes, largest first. Names that differ in numbers alone are counted
// together, the number written as *.
struct MemoryUse {
  std::string name;
  int64_t bytes = 0;
  int64_t groups = 1;  // counted together
};
std::vector<MemoryUse> memory_use(Device device = kCpu);

// "640 KiB", "312 MiB", "1.50 GiB"
std::string short_bytes(int64_t bytes);

}  // namespace fovea
