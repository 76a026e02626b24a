// SPDX-License-Identifier: Apache-2.0
#include "core/allocator.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "core/memory_counter.h"
#include "core/pool.h"

namespace fovea {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

// ---- the cpu ------------------------------------------------------------------------------------

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

// What a block of a class takes from the system.
size_t pages_of(size_t bytes) {
  return bytes < kHugePage ? bytes : (bytes + kHugePage - 1) / kHugePage * kHugePage;
}

void* fresh_on_cpu(size_t bytes) {
  if (bytes < kHugePage) return std::aligned_alloc(kAlignment, bytes);
  void* block = std::aligned_alloc(kHugePage, bytes);
  if (block != nullptr) madvise(block, bytes, MADV_HUGEPAGE);  // advice: a refusal costs only speed
  return block;
}

class CpuPool final : public Pool {
 public:
  CpuPool() : Pool(kCpu) {}

 private:
  struct Class {
    size_t bytes = 0;
    std::vector<void*> free;
  };

  void* take(size_t bytes, std::unique_lock<std::mutex>& lock) override {
    const SizeClass cls = size_class(bytes);
    const size_t room = pages_of(cls.bytes);
    auto& [size, free] = classes_[cls.index];
    if (!free.empty()) {
      void* block = free.back();
      free.pop_back();
      stats_.cached_bytes -= static_cast<int64_t>(room);
      return block;
    }
    size = room;
    if (!within_limit(room)) release_cache();
    if (!within_limit(room)) return nullptr;
    reserve(static_cast<int64_t>(room));
    lock.unlock();
    void* block = fresh_on_cpu(room);
    lock.lock();
    if (block == nullptr) {
      release_cache();
      block = fresh_on_cpu(room);
    }
    if (block == nullptr) reserve(-static_cast<int64_t>(room));
    return block;
  }
  void give(void* block, size_t bytes) noexcept override {
    Class& cls = classes_[size_class(bytes).index];
    stats_.cached_bytes += static_cast<int64_t>(cls.bytes);
    cls.free.push_back(block);
  }
  void release_cache() noexcept override {
    for (Class& cls : classes_) {
      for (void* block : cls.free) std::free(block);
      cls.free.clear();
    }
    reserve(-stats_.cached_bytes);
    stats_.cached_bytes = 0;
  }
  void fill(MemoryStats& stats) const override {
    stats.largest_free_bytes = 0;
    for (const Class& cls : classes_)
      if (!cls.free.empty())
        stats.largest_free_bytes =
            std::max(stats.largest_free_bytes, static_cast<int64_t>(cls.bytes));
  }

  std::array<Class, 256> classes_;
};

// Pools are never destroyed: tensors with static lifetime may outlive any order.
Pool& pool(Device device) {
  switch (device.kind) {
    case Device::Kind::cpu: {
      static auto* cpu = new CpuPool;
      return *cpu;
    }
#if defined(FOVEA_CUDA)
    case Device::Kind::cuda:
      return card_pool(device);
#endif
#if defined(FOVEA_INTERPRETED)
    case Device::Kind::interpreted:
      return interpreted_pool(device);
#endif
    default:
      detail::fail("allocator: device ", device, " is not in this build");
  }
}

struct OpenArena {
  Device device;
  void* arena = nullptr;
};
constinit thread_local OpenArena t_open;

}  // namespace

void* open_arena(Device device) { return t_open.device == device ? t_open.arena : nullptr; }

MemoryArena::MemoryArena(Device device) : device_(device) {
  FOVEA_CHECK(t_open.arena == nullptr, "allocator: an arena in an open arena");
  FOVEA_CHECK(!device.is_cpu(), "allocator: the cpu has no arenas");
  arena_ = pool(device).begin_arena();
  t_open = {device, arena_};
}
MemoryArena::~MemoryArena() {
  close();
  pool(device_).give_back(arena_);
}
void MemoryArena::close() {
  if (t_open.arena != arena_) return;
  t_open = {};
  pool(device_).close(arena_);
}
int64_t MemoryArena::bytes() const { return pool(device_).arena_bytes(arena_); }

void* allocate(size_t bytes, Device device, MemoryGroup group) {
  void* block = pool(device).allocate(bytes, group);
  if (MemoryCounter* counter = MemoryCounter::current())
    counter->add(static_cast<int64_t>(bytes), device);
  return block;
}
void deallocate(void* block, size_t bytes, Device device, MemoryGroup group) noexcept {
  if (MemoryCounter* counter = MemoryCounter::current())
    counter->add(-static_cast<int64_t>(bytes), device);
  pool(device).deallocate(block, bytes, group);
}
void regroup(size_t bytes, Device device, MemoryGroup from, MemoryGroup to) noexcept {
  pool(device).regroup(bytes, from, to);
}
MemoryStats memory_stats(Device device) { return pool(device).stats(); }
void reset_peak(Device device) { pool(device).reset_peak(); }
void release_cached(Device device) { pool(device).release(); }
void set_memory_limit(Device device, int64_t bytes) {
  FOVEA_CHECK(bytes >= 0, "memory limit: expected bytes, or 0 for none, found ", bytes);
  pool(device).set_limit(bytes);
}
std::vector<MemoryUse> memory_use(Device device) { return pool(device).use(); }

std::string short_bytes(int64_t bytes) {
  const auto value = static_cast<double>(bytes);
  char text[40];
  if (value >= 0x1p30)
    std::snprintf(text, sizeof text, "%.2f GiB", value / 0x1p30);
  else if (value >= 0x1p20)
    std::snprintf(text, sizeof text, "%.0f MiB", value / 0x1p20);
  else
    std::snprintf(text, sizeof text, "%.0f KiB", value / 0x1p10);
  return text;
}

}  // namespace fovea
