// SPDX-License-Identifier: Apache-2.0
#pragma once
// What core/allocator.cpp keeps for a device: who holds how much, and the limit. Where blocks come
// from is said below it: on the cpu in core/allocator.cpp, on a card in core/card/pool.cpp, on the
// interpreted device in core/interpreter/pool.cpp.

#include <algorithm>
#include <mutex>
#include <vector>

#include "core/allocator.h"

namespace fovea {

struct Room {
  int64_t free_bytes, memory_bytes;
};

// The accounts of a device; where its blocks come from is its pool's to say.
class Pool {
 public:
  explicit Pool(Device device);
  virtual ~Pool() = default;

  void* allocate(size_t bytes, MemoryGroup group) {
    std::unique_lock lock(mutex_);
    void* block = take(bytes, lock);
    if (block == nullptr) refuse(bytes);
    ++stats_.allocations;
    stats_.live_bytes += static_cast<int64_t>(bytes);
    stats_.peak_bytes = std::max(stats_.peak_bytes, stats_.live_bytes);
    count(group, static_cast<int64_t>(bytes));
    return block;
  }

  void deallocate(void* block, size_t bytes, MemoryGroup group) noexcept {
    const std::lock_guard lock(mutex_);
    stats_.live_bytes -= static_cast<int64_t>(bytes);
    count(group, -static_cast<int64_t>(bytes));
    give(block, bytes);
  }

  void regroup(size_t bytes, MemoryGroup from, MemoryGroup to) noexcept {
    const std::lock_guard lock(mutex_);
    count(from, -static_cast<int64_t>(bytes));
    count(to, static_cast<int64_t>(bytes));
  }

  MemoryStats stats() {
    const std::lock_guard lock(mutex_);
    fill(stats_);
    return stats_;
  }
  void reset_peak() {
    const std::lock_guard lock(mutex_);
    stats_.peak_bytes = stats_.live_bytes;
  }
  void release() {
    const std::lock_guard lock(mutex_);
    release_cache();
  }
  void set_limit(int64_t bytes) {
    const std::lock_guard lock(mutex_);
    limit_ = bytes;
  }
  std::vector<MemoryUse> use() {
    const std::lock_guard lock(mutex_);
    return sorted_use();
  }
  // core/allocator.h: MemoryArena.
  void* begin_arena() {
    const std::lock_guard lock(mutex_);
    return new_arena();
  }
  void close(void* arena) noexcept {
    const std::lock_guard lock(mutex_);
    close_arena(arena);
  }
  void give_back(void* arena) noexcept {
    const std::lock_guard lock(mutex_);
    give_arena(arena);
  }
  int64_t arena_bytes(void* arena) {
    const std::lock_guard lock(mutex_);
    return bytes_of_arena(arena);
  }

 protected:
  // Null when there is no room. `lock` may be opened while the system works.
  virtual void* take(size_t bytes, std::unique_lock<std::mutex>& lock) = 0;
  virtual void give(void* block, size_t bytes) noexcept = 0;
  virtual void release_cache() noexcept {}
  virtual void* new_arena() { return nullptr; }
  virtual void close_arena(void*) noexcept {}
  virtual void give_arena(void*) noexcept {}
  virtual int64_t bytes_of_arena(void*) const { return 0; }
  // What only the pool knows of its cache.
  virtual void fill(MemoryStats&) const {}
  virtual Room room() const;

  bool within_limit(size_t more) const {
    return limit_ == 0 || (more <= static_cast<size_t>(limit_) &&
                           stats_.reserved_bytes <= limit_ - static_cast<int64_t>(more));
  }
  // Memory comes from the system, or goes back (negative).
  void reserve(int64_t bytes) {
    stats_.reserved_bytes += bytes;
    stats_.system_allocations += bytes > 0 ? 1 : 0;
  }

  const Device device_;
  MemoryStats stats_;

 private:
  void count(MemoryGroup group, int64_t bytes) {
    if (group.index() >= live_.size()) live_.resize(group.index() + 1);
    live_[group.index()].bytes += bytes;
    live_[group.index()].group = group;
  }

  std::vector<MemoryUse> sorted_use() const;
  [[noreturn]] void refuse(size_t bytes);

  struct Live {
    int64_t bytes = 0;
    MemoryGroup group;
  };

  std::mutex mutex_;
  std::vector<Live> live_;  // by index of the group
  int64_t limit_;
};

// The arena that is open on this host thread for the device, or null.
void* open_arena(Device device);

#if defined(FOVEA_CUDA)
Pool& card_pool(Device device);
#endif
#if defined(FOVEA_INTERPRETED)
Pool& interpreted_pool(Device device);
#endif

}  // namespace fovea
