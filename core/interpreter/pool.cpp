// SPDX-License-Identifier: Apache-2.0
// The interpreted device's memory. Nothing is kept: a block's memory is fresh, and what follows its
// end is a fault. Only an arena's blocks, and those freed while it is open, live as long as it
// does.
#include "core/pool.h"

#include <list>
#include <set>

#include "core/cuda/device.h"

namespace fovea {
namespace {

class InterpretedPool final : public Pool {
 public:
  explicit InterpretedPool(Device device) : Pool(device) {}

 private:
  struct Arena {
    std::set<void*> blocks;                      // its own
    std::vector<std::pair<void*, size_t>> kept;  // freed, its own and others'
    int64_t bytes = 0;                           // of its own
  };

  void* take(size_t bytes, std::unique_lock<std::mutex>&) override {
    void* block = within_limit(bytes) ? interpreted::device_allocate(bytes) : nullptr;
    if (block == nullptr) return nullptr;
    reserve(static_cast<int64_t>(bytes));
    if (auto* arena = static_cast<Arena*>(open_arena(device_))) {
      arena->blocks.insert(block);
      arena->bytes += static_cast<int64_t>(bytes);
    }
    return block;
  }
  void give(void* block, size_t bytes) noexcept override {
    auto* keeper = static_cast<Arena*>(open_arena(device_));
    for (Arena& arena : arenas_)
      if (arena.blocks.contains(block)) keeper = &arena;
    if (keeper != nullptr) {
      keeper->kept.emplace_back(block, bytes);
      return;
    }
    reserve(-static_cast<int64_t>(bytes));
    interpreted::device_free(block);
  }

  void* new_arena() override { return &arenas_.emplace_back(); }
  void give_arena(void* arena) noexcept override {
    const std::vector<std::pair<void*, size_t>> kept = std::move(static_cast<Arena*>(arena)->kept);
    arenas_.remove_if([&](const Arena& other) { return &other == arena; });
    for (const auto& [block, bytes] : kept) give(block, bytes);
  }
  int64_t bytes_of_arena(void* arena) const override {
    return static_cast<const Arena*>(arena)->bytes;
  }

  std::list<Arena> arenas_;
};

}  // namespace

Pool& interpreted_pool(Device device) {
  static auto* interpreter = new InterpretedPool(device);
  return *interpreter;
}

}  // namespace fovea
