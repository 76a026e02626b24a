// SPDX-License-Identifier: Apache-2.0
#pragma once
// Stacks of fibers, and what a sanitizer must be told when they change.

#include <sys/mman.h>

#include <boost/context/fiber.hpp>
#include <vector>

#include "core/error.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace fovea::interpreted {

// Frames grow under the sanitizers, which put room around every variable.
#if defined(__SANITIZE_ADDRESS__) || !defined(__OPTIMIZE__)
inline constexpr size_t kStack = size_t{512} << 10;
#else
inline constexpr size_t kStack = size_t{128} << 10;
#endif

// Stacks of a host thread's fibers, mapped once and kept: untouched pages cost nothing.
class Stacks {
 public:
  Stacks() = default;
  ~Stacks() {
    for (void* stack : stacks_) {
#if defined(__SANITIZE_ADDRESS__)
      // Fibers leave marks, which whatever is mapped here next would trip over.
      __asan_unpoison_memory_region(stack, kStack);
#endif
      munmap(stack, kStack);
    }
  }
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  boost::context::stack_context operator[](size_t i) {
    while (stacks_.size() <= i) {
      void* stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      FOVEA_CHECK(stack != MAP_FAILED, "interpreter: no memory for the stack of a thread");
      stacks_.push_back(stack);
    }
    // Tops at different lines of a page: those at equal ones would share a few sets of the cache.
    const size_t shift = i % 16 * 256;
    boost::context::stack_context stack;
    stack.size = kStack - shift;
    stack.sp = static_cast<char*>(stacks_[i]) + stack.size;
    return stack;
  }

 private:
  std::vector<void*> stacks_;
};

// For fibers whose stacks outlive them.
struct Keep {
  void deallocate(boost::context::stack_context&) {}
};

class StackSwitch {
 public:
#if defined(__SANITIZE_ADDRESS__)
  // Leaves for the stack [bottom, bottom + size).
  void leave(const void* bottom, size_t size) {
    __sanitizer_start_switch_fiber(&fake_, bottom, size);
  }
  void back() { __sanitizer_finish_switch_fiber(fake_, nullptr, nullptr); }
  static void leave_for_good(const void* bottom, size_t size) {
    __sanitizer_start_switch_fiber(nullptr, bottom, size);
  }
  static void arrive(const void** bottom, size_t* size) {
    __sanitizer_finish_switch_fiber(nullptr, bottom, size);
  }

 private:
  void* fake_ = nullptr;
#else
  void leave(const void*, size_t) {}
  void back() {}
  static void leave_for_good(const void*, size_t) {}
  static void arrive(const void**, size_t*) {}
#endif
};

}  // namespace fovea::interpreted
