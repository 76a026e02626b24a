// SPDX-License-Identifier: Apache-2.0
#pragma once
// Pointers as kernels hold them on the interpreted device: Global<T> into device memory, Shared<T>
// into a block's. They index and add like T*, check every access and name the line it stands on;
// with nvcc they are T* (core/cuda/card.cuh). An element that is not const is a Ref: read it into a
// value (float x = p[i], not auto).

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>

#include "core/interpreter/machine.h"
#include "core/interpreter/memory.h"

namespace fovea::interpreted {

// An index that knows the line it was written on.
struct Index {
  int64_t value;
  Where where;
  template <typename I>
  requires std::is_integral_v<I> Index(I i, Where w = Where::current())
      : value(static_cast<int64_t>(i)), where(w) {}
};

// N values that travel as one access of N * sizeof(T) bytes (2, 4, 8 or 16).
template <typename T, int N>
struct alignas(sizeof(T) * N) Vec {
  T v[N];
  T& operator[](int i) { return v[i]; }
  const T& operator[](int i) const { return v[i]; }
};

// ---- device memory ------------------------------------------------------------------------------

[[noreturn]] void fault_global(const Allocation* block, const void* at, size_t bytes,
                               const char* verb, const Where& where);

// The offset of the bytes in their block.
inline size_t check_global(const Allocation* block, const void* at, size_t bytes, size_t alignment,
                           const char* verb, const Where& where) {
  const auto offset = static_cast<const std::byte*>(at) - (block ? block->begin : nullptr);
  if (block == nullptr || offset < 0 || static_cast<size_t>(offset) + bytes > block->bytes ||
      reinterpret_cast<uintptr_t>(at) % alignment != 0)
    fault_global(block, at, bytes, verb, where);
  return static_cast<size_t>(offset);
}

inline void check_written(const Allocation* block, const void* at, size_t bytes, size_t alignment,
                          const Where& where) {
  static constexpr auto kWritten = [] {
    std::array<uint8_t, 16> ones{};
    ones.fill(1);
    return ones;
  }();
  const size_t offset = check_global(block, at, bytes, alignment, "reads", where);
  for (size_t i = 0; i < bytes; i += kWritten.size()) {
    if (std::memcmp(block->written.get() + offset + i, kWritten.data(),
                    std::min(kWritten.size(), bytes - i)) != 0)
      fault_global(block, at, bytes, "unwritten", where);
  }
}

template <typename T>
T read_global(const Allocation* block, const void* at, const Where& where) {
  check_written(block, at, sizeof(T), alignof(T), where);
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

template <typename T>
void write_global(const Allocation* block, void* at, const T& value, const Where& where) {
  const size_t offset = check_global(block, at, sizeof(T), alignof(T), "writes", where);
  std::memcpy(at, &value, sizeof(T));
  std::memset(block->written.get() + offset, 1, sizeof(T));
}

template <typename T>
class Global;

template <typename T>
class GlobalRef {
 public:
  GlobalRef(const Allocation* block, T* at, const Where& where)
      : block_(block), at_(at), where_(where) {}
  GlobalRef(const GlobalRef&) = default;
  operator T() const { return read_global<T>(block_, at_, where_); }
  const GlobalRef& operator=(const T& value) const {
    write_global(block_, at_, value, where_);
    return *this;
  }
  const GlobalRef& operator=(const GlobalRef& other) const { return *this = static_cast<T>(other); }
  const GlobalRef& operator+=(const T& value) const { return *this = T(T(*this) + value); }

 private:
  const Allocation* block_;
  T* at_;
  Where where_;
};

template <typename T>
class Global {
  using Value = std::remove_const_t<T>;

 public:
  Global() = default;
  Global(std::nullptr_t) {}
  Global(T* at) : at_(at), block_(at == nullptr ? nullptr : find_allocation(at)) {}
  // To const.
  template <typename U>
  requires(std::is_same_v<const U, T> && !std::is_const_v<U>) Global(const Global<U>& other)
      : at_(other.address()), block_(other.block()) {}

  // A value where T is const, else a Ref.
  decltype(auto) operator[](const Index& i) const {
    if constexpr (std::is_const_v<T>)
      return read_global<Value>(block_, at_ + i.value, i.where);
    else
      return GlobalRef<T>(block_, at_ + i.value, i.where);
  }
  template <typename I>
  requires std::is_integral_v<I> Global operator+(I n) const {
    Global moved = *this;
    moved.at_ += n;
    return moved;
  }
  template <typename I>
  requires std::is_integral_v<I> Global& operator+=(I n) {
    at_ += n;
    return *this;
  }
  friend bool operator==(const Global& a, const Global& b) { return a.at_ == b.at_; }
  friend bool operator==(const Global& a, std::nullptr_t) { return a.at_ == nullptr; }
  T* address() const { return at_; }
  const Allocation* block() const { return block_; }

 private:
  T* at_ = nullptr;
  const Allocation* block_ = nullptr;
};

template <typename T>
using Overlapped = Global<T>;

// ---- shared memory ------------------------------------------------------------------------------

template <typename T>
class SharedRef {
 public:
  SharedRef(Span* span, T* at, const Where& where) : span_(span), at_(at), where_(where) {}
  SharedRef(const SharedRef&) = default;
  operator T() const {
    check_shared_read(*span_, reinterpret_cast<const std::byte*>(at_), sizeof(T), where_);
    T value;
    std::memcpy(&value, at_, sizeof(T));
    return value;
  }
  const SharedRef& operator=(const T& value) const {
    check_shared_write(*span_, reinterpret_cast<const std::byte*>(at_), sizeof(T), where_);
    std::memcpy(at_, &value, sizeof(T));
    return *this;
  }
  const SharedRef& operator=(const SharedRef& other) const { return *this = static_cast<T>(other); }
  const SharedRef& operator+=(const T& value) const { return *this = T(T(*this) + value); }

 private:
  Span* span_;
  T* at_;
  Where where_;
};

template <typename T>
class Shared {
 public:
  Shared() = default;
  Shared(Span* span, T* at) : span_(span), at_(at) {}
  SharedRef<T> operator[](const Index& i) const {
    return SharedRef<T>(span_, at_ + i.value, i.where);
  }
  template <typename I>
  requires std::is_integral_v<I> Shared operator+(I n) const { return Shared(span_, at_ + n); }
  // The same bytes as another type.
  template <typename U>
  Shared<U> as() const {
    return Shared<U>(span_, reinterpret_cast<U*>(at_));
  }
  T* address() const { return at_; }
  Span* span() const { return span_; }

 private:
  Span* span_ = nullptr;
  T* at_ = nullptr;
};

// A static array of a kernel: FOVEA_SHARED(float, sums, 32). One per host thread, whose blocks come
// one after another.
template <typename T, size_t N>
class SharedArray {
  static_assert(sizeof(T[N]) <= size_t{48} << 10, "more than 48 KiB: use dynamic_shared");

 public:
  explicit SharedArray(const char* name) {
    prepare(span_, reinterpret_cast<std::byte*>(values_), sizeof(values_), name);
  }
  operator Shared<T>() { return Shared<T>(&span_, values_); }
  SharedRef<T> operator[](const Index& i) {
    return SharedRef<T>(&span_, values_ + i.value, i.where);
  }
  template <typename I>
  requires std::is_integral_v<I> Shared<T>
  operator+(I n) { return Shared<T>(&span_, values_ + n); }

 private:
  alignas(128) T values_[N];
  Span span_;
};

template <typename T>
Shared<T> dynamic_shared(size_t byte_offset = 0) {
  Span& span = dynamic_span();
  return Shared<T>(&span, reinterpret_cast<T*>(span.begin + byte_offset));
}

// ---- N values in one access ---------------------------------------------------------------------

template <int N, typename T>
Vec<std::remove_const_t<T>, N> load(const Global<T>& from, Where where = Where::current()) {
  return read_global<Vec<std::remove_const_t<T>, N>>(from.block(), from.address(), where);
}
template <int N, typename T>
void store(const Global<T>& to, const Vec<T, N>& values, Where where = Where::current()) {
  write_global(to.block(), to.address(), values, where);
}
template <int N, typename T>
Vec<T, N> load(const Shared<T>& from, Where where = Where::current()) {
  Vec<T, N> values;
  const auto* at = reinterpret_cast<const std::byte*>(from.address());
  check_shared_read(*from.span(), at, sizeof values, where);
  std::memcpy(&values, at, sizeof values);
  return values;
}
template <int N, typename T>
void store(const Shared<T>& to, const Vec<T, N>& values, Where where = Where::current()) {
  auto* at = reinterpret_cast<std::byte*>(to.address());
  check_shared_write(*to.span(), at, sizeof values, where);
  std::memcpy(at, &values, sizeof values);
}

}  // namespace fovea::interpreted
