// SPDX-License-Identifier: Apache-2.0
// A card's memory: a caching pool for every stream, and one for every arena.
#include "core/pool.h"

#include <list>

#include "core/caching_pool.h"
#include "core/cuda/device.h"
#include "core/cuda/stream.h"

namespace fovea {
namespace {

class CardPool final : public Pool {
 public:
  explicit CardPool(Device device) : Pool(device) {}

 private:
  struct Part final : SegmentSource {
    Part(CardPool& owner, Stream stream_, bool is_arena)
        : pool(owner), stream(stream_), arena(is_arena), cache(*this, is_arena) {}
    void* take(size_t bytes) override { return pool.take_segment(*this, bytes); }
    void give(void* segment, size_t bytes) noexcept override {
      pool.reserve(-static_cast<int64_t>(bytes));
      cuda::device_free(segment);
    }

    CardPool& pool;
    const Stream stream;  // of no meaning to an arena
    const bool arena;
    CachingPool cache;
    std::vector<void*> kept;  // others' blocks, freed while the arena was open
    bool gone = false;        // an arena of which only live blocks are left
  };

  void* take_segment(const Part& part, size_t bytes) {
    for (const bool again : {false, true}) {
      if (again) {  // what other streams do not use; but a capture bears no cudaFree
        if (open_ > 0) break;
        for (Part& other : parts_)
          if (&other != &part && !other.arena) other.cache.release();
      }
      void* segment = within_limit(bytes) ? cuda::device_allocate(bytes) : nullptr;
      if (segment == nullptr) continue;
      reserve(static_cast<int64_t>(bytes));
      return segment;
    }
    return nullptr;
  }

  Part& part_of_stream(Stream stream) {
    for (Part& part : parts_)
      if (!part.arena && part.stream == stream) return part;
    return parts_.emplace_back(*this, stream, false);
  }
  Part& owner(void* block) {
    for (Part& part : parts_)
      if (part.cache.owns(block)) return part;
    detail::fail("allocator: a block is freed that is nobody's");
  }

  void* take(size_t bytes, std::unique_lock<std::mutex>&) override {
    auto* arena = static_cast<Part*>(open_arena(device_));
    return (arena != nullptr ? *arena : part_of_stream(stream_of(device_))).cache.allocate(bytes);
  }
  void give(void* block, size_t) noexcept override {
    Part& part = owner(block);
    auto* arena = static_cast<Part*>(open_arena(device_));
    if (arena != nullptr && arena != &part) {
      arena->kept.push_back(block);
      return;
    }
    // Its next user waits for what was done with it elsewhere.
    if (!part.arena) {
      const Stream here = stream_of(device_);
      if (!(here == part.stream)) cuda::put_behind(part.stream, here);
    }
    part.cache.deallocate(block);
    if (part.gone) bury();
  }
  void release_cache() noexcept override {
    for (Part& part : parts_)
      if (!part.arena) part.cache.release();
  }

  void* new_arena() override {
    ++open_;
    return &parts_.emplace_back(*this, Stream{}, true);
  }
  void close_arena(void*) noexcept override {
    --open_;
    bury();
  }
  // The graph's work is over.
  void give_arena(void* arena) noexcept override {
    auto& part = *static_cast<Part*>(arena);
    for (void* block : part.kept) owner(block).cache.deallocate(block);
    part.kept.clear();
    part.gone = true;
    bury();
  }
  // What the arenas that are gone have free.
  void bury() noexcept {
    if (open_ > 0) return;  // no cudaFree in a capture
    for (Part& part : parts_)
      if (part.gone) part.cache.release();
    parts_.remove_if([](const Part& part) { return part.gone && part.cache.segments() == 0; });
  }
  int64_t bytes_of_arena(void* arena) const override {
    return static_cast<int64_t>(static_cast<const Part*>(arena)->cache.reserved_bytes());
  }

  void fill(MemoryStats& stats) const override {
    stats.cached_bytes = stats.largest_free_bytes = 0;
    for (const Part& part : parts_) {
      if (part.arena) continue;
      stats.cached_bytes += static_cast<int64_t>(part.cache.free_bytes());
      stats.largest_free_bytes =
          std::max(stats.largest_free_bytes, static_cast<int64_t>(part.cache.largest_free_bytes()));
    }
  }
  Room room() const override {
    const DeviceInfo info = cuda::device_info(device_.index);
    return {info.free_bytes, info.memory_bytes};
  }

  std::list<Part> parts_;
  int open_ = 0;  // arenas
};

}  // namespace

Pool& card_pool(Device device) {
  static auto* card = new CardPool(device);
  return *card;
}

}  // namespace fovea
