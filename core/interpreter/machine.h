// SPDX-License-Identifier: Apache-2.0
#pragma once
// The interpreted device: runs a kernel with every CUDA thread a fiber. Threads of a block take
// turns on one host thread and change places only where they meet (barriers, warp operations,
// waits); blocks are shared among the host's threads. What a real card leaves undefined is an Error
// here that names kernel, block, thread, file and line:
//   - shared or device memory read before it was written, or outside its block (pointer.h)
//   - two threads on one byte of shared memory, one of them writing, with no barrier between
//   - shared memory read while a copy_async to it is under way
//   - a barrier that some threads reach at another place, or never
//   - a warp operation whose lanes do not all come
//   - a wait (spin) for what no thread will do
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
inline constexpr size_t kSharedMost = size_t{227} << 10;  // bytes of a block, on sm_90
inline constexpr unsigned kAllLanes = 0xffffffffu;

class Block;
struct Span;

// One CUDA thread. What every meeting touches comes first.
struct alignas(64) Thread {
  int id = 0, lane = 0, warp = 0;
  // Counts the meetings it has passed.
  uint32_t clock = 1;
  bool met_some = false;  // of its warp, without the rest, since the whole warp met
  bool left = false;      // the kernel
  bool heard = false;     // by itself, of what other threads did, since the whole warp met
  unsigned mask = 0;
  // Where it waits, if it does, and with what.
  bool (*act)(void*, void* const*) = nullptr;
  void* deposit = nullptr;
  const char* what = "";
  Where where{};
  Block* block = nullptr;
  const void* polled = nullptr;  // the last load_acquire's address, until it spins or meets
  Dim3 index, block_index, block_dim, grid_dim;
  // Copies on their way to shared memory (cp.async); they arrive when waited for.
  struct Copy {
    Span* span;
    std::byte* to;
    const std::byte* from;
    size_t bytes, zeros;  // zeros: written behind the bytes
    int group;
  };
  int copy_group = 0;
  std::vector<Copy> copies;
};

// The thread that runs now. Outside kernels there is none, and this throws.
extern constinit thread_local Thread* running;
[[noreturn]] void fault_outside_kernel();
inline Thread& thread() {
  if (running == nullptr) fault_outside_kernel();
  return *running;
}

struct LaunchSpec {
  std::string kernel;
  Dim3 grid, block;
  size_t shared_bytes = 0;  // dynamic
};

// Runs body once per thread of the grid. Throws the first fault.
void run(const LaunchSpec& spec, const std::function<void()>& body);

// How many blocks run at once: one a host thread. check_together throws for a grid of more.
int64_t blocks_at_once();
void check_together(const std::string& kernel, const Dim3& grid);

// The order of lanes between meetings: as numbered, or drawn anew from a seed. Returns what was set
// before.
std::optional<uint64_t> set_seed(std::optional<uint64_t> seed);

// Stops the kernel: throws Error with kernel, block, thread, file and line before the words.
[[noreturn]] void fault(const std::string& words, const Where& where);

// ---- meetings -----------------------------------------------------------------------------------

// Waits until all threads of the block are at the same place.
void block_barrier(const Where& where);
// Barrier `id` (1 to 15): complete when warps of `count` threads have come to it. Those that wait
// go on then; the others only arrive.
void named_barrier(int id, int count, bool waits, const Where& where);
// Lets others run: the body of a loop that waits for another thread or block. When no thread of the
// launch does anything else, that is a fault.
void pause(const Where& where, const char* what = "a loop that spins");

// All lanes of `mask` meet; the last to come calls act(context, lanes) with what each lane
// deposited (null outside the mask), then all go on, or wait for their barrier where act says
// false.
void meet(const char* what, unsigned mask, void* deposit,
          bool (*act)(void* context, void* const* lanes), void* context, const Where& where);

template <typename T, typename F>
void warp_operation(const char* what, unsigned mask, T& mine, F act, const Where& where) {
  meet(
      what, mask, &mine,
      [](void* context, void* const* lanes) {
        (*static_cast<F*>(context))(reinterpret_cast<T* const*>(lanes));
        return true;
      },
      &act, where);
}

// ---- shared memory ------------------------------------------------------------------------------

// Who wrote a piece of shared memory last, who has read it since, and when.
struct Shadow {
  uint32_t block = 0;  // serial of the block that wrote it; 0: never
  // Of the thread then. Two readers are kept: the first that the others' meetings do not cover,
  // and the last.
  uint32_t write_clock = 0, read_clock = 0, last_clock = 0;
  uint16_t writer = 0, reader = 0, last_reader = 0;
  bool read : 1 = false, read_twice : 1 = false, atomic : 1 = false;
  bool pending : 1 = false;  // a copy_async is on its way here
  bool split : 1 = false;    // the bytes of the word differ
  bool bulk : 1 = false;     // a load_tile or load_bulk wrote it
  bool barrier : 1 = false;  // of transactions
  uint8_t reading = 0;       // copies and products under way that read it
};
// A stretch of a block's shared memory.
struct Span {
  std::byte* begin = nullptr;
  size_t bytes = 0;
  const char* name = "dynamic";
  std::vector<Shadow> words;  // of 4 bytes
  std::vector<Shadow> parts;  // of the words that are split, by byte; empty before the first is
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
// barriers; remembers the write. An atomic one may meet other atomics.
enum class Write : uint8_t { plain, atomic, copy_async, bulk };
void check_shared_write(Span& span, const std::byte* at, size_t bytes, const Where& where,
                        Write kind = Write::plain);
// The running thread's copies of all groups but the newest `left` arrive.
void finish_copies(int left);

}  // namespace fovea::interpreted
