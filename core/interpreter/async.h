// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a block has started and not yet finished with Hopper's instructions, for the interpreter's
// own files.

#include <functional>
#include <unordered_map>

#include "core/cuda/tensor_map.h"
#include "core/interpreter/block.h"
#include "core/interpreter/hopper.h"

namespace fovea::interpreted {

inline constexpr int kWarpsOfGroup = 4;

TensorMapFacts facts_of(const TensorMap& map);

// A copy to shared memory. It happens when someone waits for its barrier.
struct Load {
  int thread;
  uint32_t clock;  // of the thread
  SharedTile to;
  int64_t bytes;
  std::function<void()> copy;
  Where where;
};

// A barrier of transactions.
struct Transactions {
  int count = 0, pending = 0;             // arrivals of a phase, and those it still misses
  int64_t expected_bytes = 0, bytes = 0;  // of this phase, and those that came
  unsigned phase = 0;
  int thread = 0;  // that made it, then
  uint32_t clock = 0;
  bool fenced = false;
  std::vector<Load> loads;   // under way
  Knowledge now, published;  // before the end of this phase, of the last

  // The phase ends when all is there.
  bool try_to_end();
};

// A copy from shared memory, which is read when its thread waits for that.
struct Store {
  SharedTile from;
  int64_t bytes;
  int group;
  std::vector<std::byte> values;  // as they were read
  std::function<void(const std::byte* values)> write;
  Where where;
};

// One thread's part of a product.
struct Product {
  float* d;
  int n;
  bool in_registers, accumulate;
  std::array<uint32_t, 4> a_registers;
  Descriptor a, b;
  Major a_major, b_major;
  std::vector<float> saved;  // what it adds to
  int group;
  Where where;
};

// Whether the part of a warp (0 to 3 of its warpgroup) answers for these bytes of shared memory.
bool reads(const Product& p, int warp, const std::byte* at, size_t bytes);

struct Started {
  std::vector<uint32_t> fences;  // clocks of its fence_async
  int store_group = 0, product_group = 0;
  bool fenced = false;  // by wgmma_fence, since the last wgmma_commit
  std::vector<Store> stores, landing;
  std::vector<Product> products;
};

class Async {
 public:
  Async(Block& block, size_t threads, std::optional<uint64_t> seed);

  Started& of(const Thread& t) { return started_[static_cast<size_t>(t.id)]; }
  // The barrier that t uses, which another thread has made visible to it.
  Transactions& barrier(const Shared<Barrier>& b, const Thread& t, const char* verb,
                        const Where& where);
  void make_barrier(const Shared<Barrier>& b, int count, const Where& where);
  void fence_barriers(const Thread& t);
  void arrive(Transactions& b, Thread& t, int64_t bytes, const Where& where);
  void wait(Transactions& b, Thread& t, unsigned parity, const Where& where);
  void load(Transactions& b, Thread& t, SharedTile to, int64_t bytes, const char* verb,
            std::function<void()> copy, const Where& where);
  void store(Thread& t, SharedTile from, int64_t bytes, const char* verb,
             std::function<void(const std::byte*)> write, const Where& where);

  // Counts a warp's products, which must be those of the other warps of its warpgroup.
  void count_product(const Thread& t, const Product& product);
  void set_registers(const Thread& t, int n, const Where& where);

  // Whether what a thread wrote at a clock is for t's copies and products to see.
  bool visible(const Thread& t, unsigned writer, uint32_t clock) const;
  // "a wgmma of thread (0, 0, 0) at x.cu:42 reads until its wgmma_wait", of bytes of shared memory.
  std::string reader_of(const std::byte* at, size_t bytes) const;
  // What t's barrier_wait waits for.
  std::string missing(const Thread& t) const;
  // Throws where a thread that leaves has left something open; the last one also for the block.
  void leave(const Thread& t, bool last);

 private:
  void deliver(Transactions& b, size_t i);
  bool coin();
  uint32_t draw(uint32_t below);

  struct Call {
    int n;
    const std::byte *a, *b;
    Where where;
  };
  Block& block_;
  bool seeded_;
  uint64_t random_;
  std::unordered_map<const std::byte*, Transactions> barriers_;
  std::vector<Started> started_;          // by thread
  std::vector<std::vector<Call>> calls_;  // by warpgroup
  std::vector<size_t> counts_;            // of products, by warp
  std::vector<int> registers_;            // of a thread, by warpgroup; 0: as launched
  std::unordered_map<const Thread*, const Transactions*> waiting_;
};

// ---- shared memory (shared.cpp) -----------------------------------------------------------------

// Bytes that a copy or product of t reads from now on; throws unless they are there and visible.
void begin_async_read(Span& span, const std::byte* at, size_t bytes, const char* verb,
                      const Where& where);
// ... has read, at a clock of that thread.
void end_async_read(Span& span, const std::byte* at, size_t bytes, int thread, uint32_t clock);
// Bytes of a load are there.
void end_async_write(Span& span, const std::byte* at, size_t bytes);
// Bytes that hold a barrier.
void mark_barrier(Span& span, const std::byte* at, size_t bytes);

// The chunk of 16 bytes at an address before the swizzle.
inline std::byte* swizzled(std::byte* at, Swizzle swizzle) {
  const auto address = reinterpret_cast<uintptr_t>(at);
  const uintptr_t mask = swizzle == Swizzle::none ? 0 : span_bytes(swizzle) / 16 - 1;
  return reinterpret_cast<std::byte*>(address ^ ((address >> 7 & mask) << 4));
}
// Throws unless a tile may begin there.
void check_tile(SharedTile tile, Swizzle swizzle, const char* verb, const Where& where);

}  // namespace fovea::interpreted
