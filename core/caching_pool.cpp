// SPDX-License-Identifier: Apache-2.0
#include "core/caching_pool.h"

#include <algorithm>
#include <bit>
#include <iterator>

namespace fovea {
namespace {

constexpr size_t kMiB = size_t{1} << 20;
constexpr size_t kGranule = 256;           // bytes: what the card's loads and its libraries like
constexpr size_t kSegmentUnit = 2 * kMiB;  // what the driver hands out

struct Kind {
  size_t below, segment;  // requests, bytes of a segment
};
constexpr std::array<Kind, 3> kKinds{{{kMiB, 2 * kMiB}, {16 * kMiB, 32 * kMiB}, {SIZE_MAX, 0}}};

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

size_t kind_of(size_t bytes) {
  size_t kind = 0;
  while (bytes >= kKinds[kind].below) ++kind;
  return kind;
}

}  // namespace

size_t CachingPool::rounded(size_t bytes) {
  const size_t unit = bytes < kMiB ? kGranule : std::bit_floor(bytes) / 8;
  return round_up(std::max<size_t>(bytes, 1), unit);
}

CachingPool::Free& CachingPool::free_of(const Block& block) {
  return free_[segments_.find(block.segment)->second.kind];
}

void* CachingPool::allocate(size_t bytes) {
  const size_t wanted = rounded(bytes), kind = kind_of(bytes);
  Free& free = free_[kind];
  auto found = free.lower_bound({wanted, nullptr});
  if (found == free.end()) {
    if (!grow(kind, wanted)) return nullptr;
    found = free.lower_bound({wanted, nullptr});
  }
  std::byte* begin = found->second;
  free.erase(found);
  Block& block = blocks_.find(begin)->second;
  if (block.bytes > wanted) {
    const size_t rest = block.bytes - wanted;
    blocks_.emplace(begin + wanted, Block{rest, block.segment, false});
    free.emplace(rest, begin + wanted);
    block.bytes = wanted;
  }
  block.live = true;
  free_bytes_ -= wanted;
  return begin;
}

void CachingPool::deallocate(void* address) noexcept {
  auto block = blocks_.find(static_cast<std::byte*>(address));
  Free& free = free_of(block->second);
  block->second.live = false;
  free_bytes_ += block->second.bytes;
  const auto joins = [&](Blocks::iterator other) {
    return !other->second.live && other->second.segment == block->second.segment;
  };
  if (const auto next = std::next(block); next != blocks_.end() && joins(next)) {
    free.erase({next->second.bytes, next->first});
    block->second.bytes += next->second.bytes;
    blocks_.erase(next);
  }
  if (block != blocks_.begin() && joins(std::prev(block))) {
    const auto before = std::prev(block);
    free.erase({before->second.bytes, before->first});
    before->second.bytes += block->second.bytes;
    blocks_.erase(block);
    block = before;
  }
  free.emplace(block->second.bytes, block->first);
}

bool CachingPool::owns(void* address) const {
  const auto block = blocks_.find(static_cast<std::byte*>(address));
  return block != blocks_.end() && block->second.live;
}

bool CachingPool::take(size_t bytes, size_t kind) {
  auto* begin = static_cast<std::byte*>(source_.take(bytes));
  if (begin == nullptr) return false;
  segments_.emplace(begin, Segment{bytes, kind});
  blocks_.emplace(begin, Block{bytes, begin, false});
  free_[kind].emplace(bytes, begin);
  reserved_ += bytes;
  free_bytes_ += bytes;
  ++taken_;
  return true;
}

// Where the room is scarce a segment is no larger than its first block.
bool CachingPool::grow(size_t kind, size_t bytes) {
  const size_t least = round_up(bytes, kSegmentUnit), usual = std::max(least, kKinds[kind].segment);
  if (take(usual, kind)) return true;
  if (!keeps_) release();
  return take(usual, kind) || (least < usual && take(least, kind));
}

void CachingPool::release() noexcept {
  for (auto segment = segments_.begin(); segment != segments_.end();) {
    const auto [begin, whole] = *segment;
    const auto block = blocks_.find(begin);
    if (block->second.live || block->second.bytes != whole.bytes) {
      ++segment;
      continue;
    }
    free_[whole.kind].erase({whole.bytes, begin});
    blocks_.erase(block);
    segment = segments_.erase(segment);
    reserved_ -= whole.bytes;
    free_bytes_ -= whole.bytes;
    source_.give(begin, whole.bytes);
  }
}

size_t CachingPool::largest_free_bytes() const {
  size_t largest = 0;
  for (const Free& free : free_)
    if (!free.empty()) largest = std::max(largest, free.rbegin()->first);
  return largest;
}

}  // namespace fovea
