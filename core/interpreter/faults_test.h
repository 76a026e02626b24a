// SPDX-License-Identifier: Apache-2.0
#pragma once
// For tests of wrong kernels: what the interpreted device says of a launch, and what it should. The
// line that it must name ends in "// stops: <kernel>".

#include <gtest/gtest.h>

#include <fstream>

#include "core/cuda/device.h"
#include "core/cuda/kernel.cuh"

namespace fovea::interpreted {

// Device memory of n floats; written by the host unless `fresh`.
class Floats {
 public:
  explicit Floats(int n, bool fresh = false) : at_(device_allocate(static_cast<size_t>(n) * 4)) {
    const std::vector<float> zeros(static_cast<size_t>(n), 0.0f);
    if (!fresh) copy_to_device(at_, zeros.data(), zeros.size() * 4, {});
  }
  ~Floats() { device_free(at_); }
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;
  operator float*() const { return static_cast<float*>(at_); }

 private:
  void* at_;
};

// "core/interpreter/faults_test.cu:42", the line of the caller's file marked "// <marker>".
inline std::string place(const std::string& marker, Where where = Where::current()) {
  const std::string_view whole = where.file_name();
  std::ifstream file(where.file_name());
  int number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    if (line.ends_with("// " + marker))
      return concat(whole.substr(whole.rfind("core/interpreter/")), ':', number);
  }
  return "no line marked " + marker;
}

// The order of lanes while it lives.
class Order {
 public:
  explicit Order(std::optional<uint64_t> seed) : before_(set_seed(seed)) {}
  ~Order() { set_seed(before_); }
  Order(const Order&) = delete;
  Order& operator=(const Order&) = delete;

 private:
  std::optional<uint64_t> before_;
};

template <auto kKernel, typename... A>
std::string stop(Dim3 grid, Dim3 block, size_t shared_bytes, A&&... arguments) {
  const Order as_numbered(std::nullopt);
  try {
    launch<kKernel>(grid, block, shared_bytes, Stream{}, std::forward<A>(arguments)...);
  } catch (const Error& error) {
    return error.what();
  }
  return "no fault";
}

// The whole message. Threads by number, of blocks of one dimension.
inline std::string says(const std::string& kernel, int block, int thread, const std::string& reason,
                        Where where = Where::current()) {
  return concat("kernel ", kernel, ", block (", block, ", 0, 0), thread (", thread, ", 0, 0), ",
                place("stops: " + kernel, where), ": ", reason);
}

}  // namespace fovea::interpreted
