// SPDX-License-Identifier: Apache-2.0
#pragma once
// The interpreted device: runs a kernel with every CUDA thread a fiber. Threads of a block take
// turns on one host thread and change places only where they meet (barriers, warp operations,
// waits); blocks are shared among the host's threads. What a real card leaves undefined is an Error
// here that names kernel, block, thread, file and line:
//   - shared or device memory read before it was written, or outside its block (pointer.h)
//   - two threads on one byte of shared memory, one of them writing, with no barrier between
//   - a barrier that some threads reach at another line, or never
//   - a warp operation whose lanes do not all come
//
// FOVEA_INTERPRETER_SEED=n runs lanes in an order drawn from n, a new one between any two meetings.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <source_location>
#include <string>
#include <vector>

#include "core/error.h"

namespace fovea::interpreted {

using Where = std::source_location;

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
  Dim3() = default;
  template <typename X, typename Y = unsigned, typename Z = unsigned>
  Dim3(X x_, Y y_ = 1, Z z_ = 1)
      : x(static_cast<unsigned>(x_)), y(static_cast<unsigned>(y_)), z(static_cast<unsigned>(z_)) {}
};

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

class Block;
struct Span;

// One CUDA thread.
struct Thread {
  Dim3 index;
  int id = 0, lane = 0, warp = 0;
  Block* block = nullptr;
  // What it waits for, if it does.
  enum class State : uint8_t { ready, at_barrier, in_warp, done } state = State::ready;
  const char* what = "";
  Where where{};
  int barrier = 0;
  unsigned mask = 0;
  void* deposit = nullptr;
  // Counts the meetings it has passed, equal in all that met: tells which accesses of its warp to
  // shared memory are ordered.
  uint32_t warp_meetings = 0;
  // Copies on their way to shared memory (cp.async); they arrive when waited for.
  struct Copy {
    Span* span;
    std::byte* to;
    const std::byte* from;
    size_t bytes, zeros;  // zeros: written behind the bytes
    int group;
    Where where;
  };
  std::vector<Copy> copies;
  int copy_group = 0;
};

// The thread that runs now. Outside kernels there is none, and this throws.
Thread& thread();

struct LaunchSpec {
  std::string kernel;
  Dim3 grid, block;
  size_t shared_bytes = 0;  // dynamic
};

// Runs body once per thread of the grid. Throws the first fault.
void run(const LaunchSpec& spec, const std::function<void()>& body);

// The order of lanes between meetings: as numbered, or drawn anew from a seed.
void set_seed(std::optional<uint64_t> seed);

// Stops the kernel: throws Error with kernel, block, thread, file and line before the words.
[[noreturn]] void fault(const std::string& words, const Where& where);

// Dim3 of the running thread's block and grid.
Dim3 block_index();
Dim3 block_dim();
Dim3 grid_dim();

// ---- meetings -----------------------------------------------------------------------------------

// Waits until all threads of the block are at the same line.
void block_barrier(const Where& where);
// Barrier `id` (1 to 15): returns when `count` threads have come to it, by syncing or arriving.
void named_barrier(int id, int count, bool wait, const Where& where);
// Lets others run: the body of a loop that waits for another thread or block.
void pause(const Where& where);

// All lanes of `mask` meet; the last to come calls act(context, lanes) with what each lane
// deposited (null outside the mask), then all go on.
void meet(const char* what, unsigned mask, void* deposit,
          void (*act)(void* context, void* const* lanes), void* context, const Where& where);

template <typename T, typename F>
void warp_operation(const char* what, unsigned mask, T& mine, F act, const Where& where) {
  meet(
      what, mask, &mine,
      [](void* context, void* const* lanes) {
        (*static_cast<F*>(context))(reinterpret_cast<T* const*>(lanes));
      },
      &act, where);
}

// ---- shared memory ------------------------------------------------------------------------------

// A stretch of a block's shared memory. `shadow` has an entry a byte.
struct Shadow {
  uint64_t block = 0;  // serial of the block that wrote it; 0: never
  uint16_t writer = 0, reader = 0;
  uint32_t write_clock = 0, read_clock = 0;        // of the accessing warp
  uint32_t write_meetings = 0, read_meetings = 0;  // Thread::warp_meetings then
  bool written = false, read = false, atomic = false;
};
struct Span {
  std::byte* begin = nullptr;
  size_t bytes = 0;
  std::vector<Shadow> shadow;
  const char* name = "dynamic";
};
// The dynamic shared memory of the running block.
Span& dynamic_span();
// A span for a static array of the running kernel, owned by the host thread.
void prepare(Span& span, std::byte* storage, size_t bytes, const char* name);

// Throws unless bytes [at, at + bytes) lie in the span, have been written, and are not being
// written by another thread; remembers the read.
void check_shared_read(Span& span, const std::byte* at, size_t bytes, const Where& where,
                       bool atomic = false);
// Throws unless the bytes lie in the span and no other thread reads or writes them between the same
// barriers; remembers the write.
// An atomic one may meet other atomics.
void check_shared_write(Span& span, const std::byte* at, size_t bytes, const Where& where,
                        bool atomic = false);
// The running thread's copies of all groups but the newest `left` arrive.
void finish_copies(int left);

}  // namespace fovea::interpreted
