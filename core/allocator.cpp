// SPDX-License-Identifier: Apache-2.0
#include "core/allocator.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>

#include "core/caching_pool.h"
#include "core/cuda/device.h"
#include "core/memory_counter.h"

namespace fovea {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

// FOVEA_MEMORY_LIMIT; 0: none.
int64_t limit_of_environment() {
  const char* text = std::getenv("FOVEA_MEMORY_LIMIT");
  if (text == nullptr || *text == '\0') return 0;
  const std::string_view whole = text;
  double value = 0.0;
  const auto [rest, code] = std::from_chars(text, text + whole.size(), value);
  const std::string_view unit = whole.substr(static_cast<size_t>(rest - text));
  constexpr std::array<std::string_view, 5> kUnits{"", "KiB", "MiB", "GiB", "TiB"};
  const auto found = std::find(kUnits.begin(), kUnits.end(), unit);
  FOVEA_CHECK(
      code == std::errc{} && value > 0.0 && value < 0x1p20 * 0x1p20 && found != kUnits.end(),
      "FOVEA_MEMORY_LIMIT: expected a size such as 64MiB or 1.5GiB, found \"", text, '"');
  return static_cast<int64_t>(std::ldexp(value, 10 * static_cast<int>(found - kUnits.begin())));
}

struct Room {
  int64_t free_bytes, memory_bytes;
};
Room room_of_machine() {
  const auto page = static_cast<int64_t>(sysconf(_SC_PAGESIZE));
  return {page * sysconf(_SC_AVPHYS_PAGES), page * sysconf(_SC_PHYS_PAGES)};
}

// "blocks.3.mlp" -> "blocks.*.mlp"
std::string without_numbers(const std::string& name) {
  const auto digit = [](char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; };
  std::string out;
  for (size_t i = 0; i < name.size(); ++i) {
    const bool starts = digit(name[i]) && (i == 0 || name[i - 1] == '.');
    if (!starts) {
      out += name[i];
      continue;
    }
    while (i + 1 < name.size() && digit(name[i + 1])) ++i;
    out += '*';
  }
  return out;
}

// The accounts of a device; where its blocks come from is its pool's to say.
class Pool {
 public:
  explicit Pool(Device device) : device_(device), limit_(limit_of_environment()) {}
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

 protected:
  // Null when there is no room. `lock` may be opened while the system works.
  virtual void* take(size_t bytes, std::unique_lock<std::mutex>& lock) = 0;
  virtual void give(void* block, size_t bytes) noexcept = 0;
  virtual void release_cache() noexcept {}
  // What only the pool knows of its cache.
  virtual void fill(MemoryStats&) const {}
  virtual Room room() const { return room_of_machine(); }

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

  std::vector<MemoryUse> sorted_use() const {
    std::map<std::string, MemoryUse> merged;
    for (const Live& live : live_) {
      if (live.bytes <= 0) continue;
      const std::string& name = live.group.name();
      const auto [found, is_new] = merged.emplace(without_numbers(name), MemoryUse{name, 0, 0});
      found->second.bytes += live.bytes;
      if (++found->second.groups > 1) found->second.name = found->first;
    }
    std::vector<MemoryUse> all;
    for (auto& [name, use] : merged) all.push_back(std::move(use));
    std::stable_sort(all.begin(), all.end(),
                     [](const MemoryUse& a, const MemoryUse& b) { return a.bytes > b.bytes; });
    return all;
  }

  [[noreturn]] void refuse(size_t bytes) {
    constexpr size_t kMostGroups = 5;
    fill(stats_);
    Room has = room();
    if (limit_ > 0) {
      has.free_bytes =
          std::min(has.free_bytes, std::max<int64_t>(0, limit_ - stats_.reserved_bytes));
      has.memory_bytes = std::min(has.memory_bytes, limit_);
    }
    std::string line =
        concat("out of memory on ", device_, ": wanted ", short_bytes(static_cast<int64_t>(bytes)),
               ", free ", short_bytes(has.free_bytes + stats_.cached_bytes), " of ",
               short_bytes(has.memory_bytes));
    const std::vector<MemoryUse> all = sorted_use();
    for (size_t i = 0; i < std::min(kMostGroups, all.size()); ++i) {
      line +=
          concat(i == 0 ? "; largest live: " : ", ", all[i].name, ' ', short_bytes(all[i].bytes));
      if (all[i].groups > 1) line += concat(" (", all[i].groups, " together)");
    }
    throw OutOfMemory(line);
  }

  struct Live {
    int64_t bytes = 0;
    MemoryGroup group;
  };

  std::mutex mutex_;
  std::vector<Live> live_;  // by index of the group
  int64_t limit_;
};

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

// ---- a card -------------------------------------------------------------------------------------

#if defined(FOVEA_CUDA)
class CardPool final : public Pool {
 public:
  explicit CardPool(Device device) : Pool(device) {}

 private:
  struct Source final : SegmentSource {
    explicit Source(CardPool& owner) : pool(owner) {}
    void* take(size_t bytes) override {
      if (!pool.within_limit(bytes)) return nullptr;
      void* segment = cuda::device_allocate(bytes);
      if (segment != nullptr) pool.reserve(static_cast<int64_t>(bytes));
      return segment;
    }
    void give(void* segment, size_t bytes) noexcept override {
      pool.reserve(-static_cast<int64_t>(bytes));
      cuda::device_free(segment);
    }
    CardPool& pool;
  };

  void* take(size_t bytes, std::unique_lock<std::mutex>&) override {
    return cache_.allocate(bytes);
  }
  void give(void* block, size_t) noexcept override { cache_.deallocate(block); }
  void release_cache() noexcept override { cache_.release(); }
  void fill(MemoryStats& stats) const override {
    stats.cached_bytes = static_cast<int64_t>(cache_.free_bytes());
    stats.largest_free_bytes = static_cast<int64_t>(cache_.largest_free_bytes());
  }
  Room room() const override {
    const DeviceInfo info = cuda::device_info(device_.index);
    return {info.free_bytes, info.memory_bytes};
  }

  Source source_{*this};
  CachingPool cache_{source_};
};
#endif

// ---- the interpreted device ---------------------------------------------------------------------

#if defined(FOVEA_INTERPRETED)
// Nothing is kept: a block's memory is fresh, and what follows its end is a fault.
class InterpretedPool final : public Pool {
 public:
  explicit InterpretedPool(Device device) : Pool(device) {}

 private:
  void* take(size_t bytes, std::unique_lock<std::mutex>&) override {
    void* block = within_limit(bytes) ? interpreted::device_allocate(bytes) : nullptr;
    if (block != nullptr) reserve(static_cast<int64_t>(bytes));
    return block;
  }
  void give(void* block, size_t bytes) noexcept override {
    reserve(-static_cast<int64_t>(bytes));
    interpreted::device_free(block);
  }
};
#endif

// Pools are never destroyed: tensors with static lifetime may outlive any order.
Pool& pool(Device device) {
  switch (device.kind) {
    case Device::Kind::cpu: {
      static auto* cpu = new CpuPool;
      return *cpu;
    }
#if defined(FOVEA_CUDA)
    case Device::Kind::cuda: {
      static auto* card = new CardPool(device);
      return *card;
    }
#endif
#if defined(FOVEA_INTERPRETED)
    case Device::Kind::interpreted: {
      static auto* interpreter = new InterpretedPool(device);
      return *interpreter;
    }
#endif
    default:
      detail::fail("allocator: device ", device, " is not in this build");
  }
}

}  // namespace

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
