// SPDX-License-Identifier: Apache-2.0
#pragma once
// How a card's memory is kept: few large segments come from the system, and blocks are cut out of
// them. A request takes the smallest free block that holds it (best fit) and leaves the rest free;
// a freed block joins its free neighbours. So the requests of a training step, which are the same
// every time, find their places again without the system.
//
//   request          rounded up to       segment
//   < 1 MiB          256 bytes           2 MiB
//   < 16 MiB         an eighth of the    32 MiB
//   larger           power of two below  its own
//
// A segment serves one of these three kinds: long-lived small blocks never stand in the way of a
// large one. The policy knows no device: segments come from a source.

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <utility>

namespace fovea {

class SegmentSource {
 public:
  virtual ~SegmentSource() = default;
  // Aligned to 256 bytes; null when there is no room.
  virtual void* take(size_t bytes) = 0;
  virtual void give(void* segment, size_t bytes) noexcept = 0;
};

// Not thread-safe.
class CachingPool {
 public:
  // keeps: segments go back when release() is called, and never to make room.
  explicit CachingPool(SegmentSource& source, bool keeps = false)
      : source_(source), keeps_(keeps) {}
  CachingPool(const CachingPool&) = delete;
  CachingPool& operator=(const CachingPool&) = delete;

  // Aligned to 256 bytes, never of another live block; null when the source has no room even with
  // every wholly free segment given back.
  void* allocate(size_t bytes);
  void deallocate(void* block) noexcept;
  // Whether `block` is one of its live blocks.
  bool owns(void* block) const;
  // Gives wholly free segments back.
  void release() noexcept;

  size_t reserved_bytes() const { return reserved_; }
  size_t free_bytes() const { return free_bytes_; }
  size_t largest_free_bytes() const;
  size_t segments() const { return segments_.size(); }
  int64_t segments_taken() const { return taken_; }  // since the start

  // What a request takes of a segment.
  static size_t rounded(size_t bytes);

 private:
  struct Block {
    size_t bytes;
    std::byte* segment;
    bool live;
  };
  using Blocks = std::map<std::byte*, Block>;
  using Free = std::set<std::pair<size_t, std::byte*>>;

  bool grow(size_t kind, size_t bytes);
  bool take(size_t bytes, size_t kind);
  Free& free_of(const Block& block);

  SegmentSource& source_;
  const bool keeps_;
  struct Segment {
    size_t bytes, kind;
  };
  std::map<std::byte*, Segment> segments_;
  Blocks blocks_;             // all, by address
  std::array<Free, 3> free_;  // by kind; smallest first, then lowest address
  size_t reserved_ = 0, free_bytes_ = 0;
  int64_t taken_ = 0;
};

}  // namespace fovea
