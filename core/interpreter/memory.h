// SPDX-License-Identifier: Apache-2.0
#pragma once
// The memory of the interpreted device: host memory that remembers, byte by byte, what has been
// written. Fresh memory is filled with 0xFF (NaN in f32 and bf16), and a kernel that reads a byte
// nobody wrote, or that leaves its block, is stopped by name (core/interpreter/pointer.h). Host
// code that touches it, as it could not touch a card's, ends in a segmentation fault that says so.

#include <cstddef>
#include <cstdint>
#include <memory>

namespace fovea::interpreted {

struct Allocation {
  std::byte* begin;
  size_t bytes;
  std::unique_ptr<uint8_t[]> written;  // one per byte: 1 once written
};

// Between blocks lies space that belongs to none. Null when the system has no memory left.
void* device_allocate(size_t bytes);
void device_free(void* block) noexcept;

// The allocation that holds `at`, or null: a host pointer, or one past its block.
const Allocation* find_allocation(const void* at);

// What the host writes, by copies: without it a kernel refuses to read.
void mark_written(void* at, size_t bytes);

// Device memory can be touched while one lives: in kernels and copies.
class Access {
 public:
  Access();
  ~Access();
  Access(const Access&) = delete;
  Access& operator=(const Access&) = delete;
};

}  // namespace fovea::interpreted
