// SPDX-License-Identifier: Apache-2.0
#pragma once
// Working memory of a kernel: uninitialised, 64-byte aligned, from the caching allocator (a
// std::vector of this size would be fetched from and given back to the system on every call).

#include <algorithm>

#include "core/allocator.h"

namespace fovea {

template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : count_(count), data_(count == 0 ? nullptr : static_cast<T*>(allocate(bytes()))) {}
  Scratch(int64_t count, T value) : Scratch(count) { std::fill(data_, data_ + count, value); }
  ~Scratch() {
    if (data_ != nullptr) deallocate(data_, bytes());
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* data() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  size_t bytes() const { return static_cast<size_t>(count_) * sizeof(T); }

  int64_t count_;
  T* data_;
};

}  // namespace fovea
