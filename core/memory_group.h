// SPDX-License-Identifier: Apache-2.0
#pragma once
// What memory is for: the allocations that a thread makes while a MemoryLabel lives count to its
// group, so that a report can say what fills a device.

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace fovea {

// A name as a number: "gradients of blocks.0.mlp.up.weight". The default is the group of what has
// no name.
class MemoryGroup {
 public:
  MemoryGroup() = default;
  // The group of that name, which lasts as long as the program. Thread-safe.
  explicit MemoryGroup(std::string_view name);

  const std::string& name() const;
  uint32_t index() const { return index_; }
  friend bool operator==(MemoryGroup, MemoryGroup) = default;

 private:
  uint32_t index_ = 0;
};

// Labels nest: the innermost counts.
class MemoryLabel {
 public:
  explicit MemoryLabel(MemoryGroup group) : before_(std::exchange(current_, group)) {}
  explicit MemoryLabel(std::string_view name) : MemoryLabel(MemoryGroup(name)) {}
  ~MemoryLabel() { current_ = before_; }
  MemoryLabel(const MemoryLabel&) = delete;
  MemoryLabel& operator=(const MemoryLabel&) = delete;

  static MemoryGroup current() { return current_; }

 private:
  static inline constinit thread_local MemoryGroup current_{};
  MemoryGroup before_;
};

}  // namespace fovea
