// SPDX-License-Identifier: Apache-2.0
#include "core/allocator.h"

#include <sys/mman.h>

#include <array>
#include <bit>
#include <cstdlib>
#include <mutex>
#include <vector>

#include "core/cuda/device.h"
#include "core/error.h"
#include "core/memory_counter.h"

namespace fovea {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

// Sizes are rounded up to 2^k * {4, 5, 6, 7} / 4: at most 25 % is lost, and a class is an index.
struct SizeClass {
  size_t index;
  size_t bytes;
};

SizeClass size_class(size_t bytes) {
  if (bytes <= kAlignment) return {0, kAlignment};
  const size_t power = static_cast<size_t>(std::bit_width(bytes - 1)) - 1;  // 2^power <= bytes - 1
  const size_t step = std::max(kAlignment, (size_t{1} << power) / 4);
  const size_t rounded = (bytes + step - 1) / step * step;
  const size_t at = static_cast<size_t>(std::bit_width(rounded)) - 1;
  return {at * 4 + ((rounded >> (at - 2)) & 3), rounded};
}

// Where a pool's blocks come from.
struct Source {
  Device device;
  void* (*fresh)(size_t bytes);  // null when there is no room
  void (*free)(void* block) noexcept;
  bool caches;
};

class Pool {
 public:
  explicit Pool(const Source& source) : source_(source) {}

  void* allocate(size_t bytes) {
    const SizeClass cls = size_class(bytes);
    {
      std::lock_guard lock(mutex_);
      account(bytes);
      auto& free = free_[cls.index];
      if (!free.empty()) {
        void* block = free.back();
        free.pop_back();
        stats_.cached_bytes -= static_cast<int64_t>(cls.bytes);
        return block;
      }
    }
    const size_t room = source_.caches ? cls.bytes : bytes;
    void* block = source_.fresh(room);
    if (block == nullptr) {
      release();
      block = source_.fresh(room);
    }
    if (block == nullptr) {
      std::lock_guard lock(mutex_);
      stats_.live_bytes -= static_cast<int64_t>(bytes);
      detail::fail("allocator: no memory for ", bytes, " bytes on ", source_.device, " (",
                   stats_.live_bytes, " bytes are live)");
    }
    return block;
  }

  void deallocate(void* block, size_t bytes) noexcept {
    const SizeClass cls = size_class(bytes);
    std::lock_guard lock(mutex_);
    stats_.live_bytes -= static_cast<int64_t>(bytes);
    if (!source_.caches) return source_.free(block);
    stats_.cached_bytes += static_cast<int64_t>(cls.bytes);
    free_[cls.index].push_back(block);
  }

  MemoryStats stats() {
    std::lock_guard lock(mutex_);
    return stats_;
  }

  void reset_peak() {
    std::lock_guard lock(mutex_);
    stats_.peak_bytes = stats_.live_bytes;
  }

  void release() {
    std::lock_guard lock(mutex_);
    for (auto& free : free_) {
      for (void* block : free) source_.free(block);
      free.clear();
    }
    stats_.cached_bytes = 0;
  }

 private:
  void account(size_t bytes) {
    ++stats_.allocations;
    stats_.live_bytes += static_cast<int64_t>(bytes);
    stats_.peak_bytes = std::max(stats_.peak_bytes, stats_.live_bytes);
  }

  const Source source_;
  std::mutex mutex_;
  std::array<std::vector<void*>, 256> free_;
  MemoryStats stats_;
};

void* fresh_on_cpu(size_t bytes) {
  if (bytes < kHugePage) return std::aligned_alloc(kAlignment, bytes);
  const size_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* block = std::aligned_alloc(kHugePage, rounded);
  if (block != nullptr)
    madvise(block, rounded, MADV_HUGEPAGE);  // advice: a refusal costs only speed
  return block;
}

// Pools are never destroyed: tensors with static lifetime may outlive any order.
Pool& pool(Device device) {
  switch (device.kind) {
    case Device::Kind::cpu: {
      static auto* cpu =
          new Pool({kCpu, fresh_on_cpu, [](void* block) noexcept { std::free(block); }, true});
      return *cpu;
    }
#if defined(FOVEA_CUDA)
    case Device::Kind::cuda: {
      static auto* card = new Pool({device, cuda::device_allocate, cuda::device_free, true});
      return *card;
    }
#endif
#if defined(FOVEA_INTERPRETED)
    // Nothing is kept: a block's memory is fresh, and what follows its end is a fault.
    case Device::Kind::interpreted: {
      static auto* interpreter =
          new Pool({device, interpreted::device_allocate, interpreted::device_free, false});
      return *interpreter;
    }
#endif
    default:
      detail::fail("allocator: device ", device, " is not in this build");
  }
}

}  // namespace

void* allocate(size_t bytes, Device device) {
  void* block = pool(device).allocate(bytes);
  if (MemoryCounter* counter = MemoryCounter::current())
    counter->add(static_cast<int64_t>(bytes), device);
  return block;
}
void deallocate(void* block, size_t bytes, Device device) noexcept {
  if (MemoryCounter* counter = MemoryCounter::current())
    counter->add(-static_cast<int64_t>(bytes), device);
  pool(device).deallocate(block, bytes);
}
MemoryStats memory_stats(Device device) { return pool(device).stats(); }
void reset_peak(Device device) { pool(device).reset_peak(); }
void release_cached(Device device) { pool(device).release(); }

}  // namespace fovea
