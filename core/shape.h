// SPDX-License-Identifier: Apache-2.0
#pragma once
// Sizes (or strides) of a Tensor: up to eight int64 values held in place. Prints as [2, 3, 32, 16].

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <ostream>
#include <span>

#include "core/error.h"

namespace fovea {

class Shape {
 public:
  static constexpr int kMaxRank = 8;

  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes)
      : Shape(std::span<const int64_t>(sizes.begin(), sizes.size())) {}
  explicit Shape(std::span<const int64_t> sizes) {
    FOVEA_CHECK(sizes.size() <= kMaxRank, "shape: rank ", sizes.size(), " is more than ", kMaxRank);
    rank_ = static_cast<int>(sizes.size());
    std::copy(sizes.begin(), sizes.end(), sizes_.begin());
  }

  int rank() const { return rank_; }
  // Axis -1 is the last. Throws past the rank.
  int64_t operator[](int axis) const { return sizes_[static_cast<size_t>(wrap(axis))]; }
  int64_t& operator[](int axis) { return sizes_[static_cast<size_t>(wrap(axis))]; }
  int wrap(int axis) const {
    const int wrapped = axis < 0 ? axis + rank_ : axis;
    FOVEA_CHECK(wrapped >= 0 && wrapped < rank_, "shape: axis ", axis, " of ", *this,
                ", which has rank ", rank_);
    return wrapped;
  }
  // Product of all sizes; 1 for rank 0.
  int64_t numel() const {
    int64_t product = 1;
    for (int64_t size : *this) product *= size;
    return product;
  }
  void push_back(int64_t size) {
    FOVEA_CHECK(rank_ < kMaxRank, "shape: rank would pass ", kMaxRank);
    sizes_[static_cast<size_t>(rank_++)] = size;
  }

  const int64_t* begin() const { return sizes_.data(); }
  const int64_t* end() const { return sizes_.data() + rank_; }

  friend bool operator==(const Shape& a, const Shape& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end());
  }
  friend std::ostream& operator<<(std::ostream& out, const Shape& shape) {
    out << '[';
    for (int i = 0; i < shape.rank_; ++i)
      out << (i ? ", " : "") << shape.sizes_[static_cast<size_t>(i)];
    return out << ']';
  }

 private:
  std::array<int64_t, kMaxRank> sizes_{};
  int rank_ = 0;
};

// The shape that a and b broadcast to (trailing axes aligned, 1 stretches); throws naming `op` and
// both shapes.
Shape broadcast_shapes(const char* op, const Shape& a, const Shape& b);

// Row-major strides, in elements.
Shape contiguous_strides(const Shape& shape);

}  // namespace fovea
