// SPDX-License-Identifier: Apache-2.0
#include "core/interpreter/memory.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <shared_mutex>

#include "core/error.h"

namespace fovea::interpreted {
namespace {

constexpr size_t kAlignment = 256;  // what cudaMalloc promises
constexpr size_t kGap = 256;

struct Registry {
  std::shared_mutex mutex;
  std::map<uintptr_t, std::unique_ptr<Allocation>> blocks;  // by first byte
};

Registry& registry() {
  static auto* one =
      new Registry;  // never destroyed: tensors with static lifetime outlive any order
  return *one;
}

}  // namespace

void* device_allocate(size_t bytes) {
  const size_t room = (bytes + kGap + kAlignment - 1) / kAlignment * kAlignment;
  auto* begin = static_cast<std::byte*>(std::aligned_alloc(kAlignment, room));
  if (begin == nullptr) return nullptr;
  std::memset(begin, 0xFF, room);
  auto block =
      std::make_unique<Allocation>(Allocation{begin, bytes, std::make_unique<uint8_t[]>(bytes)});
  const std::unique_lock lock(registry().mutex);
  registry().blocks.emplace(reinterpret_cast<uintptr_t>(begin), std::move(block));
  return begin;
}

void device_free(void* block) noexcept {
  {
    const std::unique_lock lock(registry().mutex);
    registry().blocks.erase(reinterpret_cast<uintptr_t>(block));
  }
  std::free(block);
}

const Allocation* find_allocation(const void* at) {
  const auto address = reinterpret_cast<uintptr_t>(at);
  const std::shared_lock lock(registry().mutex);
  auto next = registry().blocks.upper_bound(address);
  if (next == registry().blocks.begin()) return nullptr;
  const Allocation* block = std::prev(next)->second.get();
  const size_t offset = address - reinterpret_cast<uintptr_t>(block->begin);
  // A pointer just past the end, and one to an empty block, still belong to it: they may be held.
  return offset <= block->bytes ? block : nullptr;
}

void mark_written(void* at, size_t bytes) {
  if (bytes == 0) return;
  const Allocation* block = find_allocation(at);
  FOVEA_CHECK(block != nullptr, "interpreter: the host writes ", bytes,
              " bytes where no device memory is");
  const auto offset = static_cast<size_t>(static_cast<std::byte*>(at) - block->begin);
  FOVEA_CHECK(offset + bytes <= block->bytes, "interpreter: the host writes ", bytes,
              " bytes at offset ", offset, " of a block of ", block->bytes);
  std::memset(block->written.get() + offset, 1, bytes);
}

}  // namespace fovea::interpreted
