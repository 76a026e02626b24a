// SPDX-License-Identifier: Apache-2.0
#pragma once
// Hopper's instructions on the interpreted device (core/cuda/kernel90.cuh). What they start happens
// as late as a card may let it: a copy when someone waits for its barrier, a product when its
// warpgroup waits for it, a store when its thread does. Until then nobody may touch what they write
// or change what they read; that is a fault, as is shared memory that threads wrote and an
// instruction here touches without a fence_async() by the writer and a meeting in between.

#include "core/cuda/kernel90.cuh"

namespace fovea::interpreted {

// ---- barriers of transactions (mbarrier) --------------------------------------------------------

// By one thread: a barrier whose phases end with `count` arrivals and no bytes under way. Then
// fence_barrier_init() by the same thread, and a barrier of all that use it.
void barrier_init(const Shared<Barrier>& b, int count, Where where = Where::current());
void fence_barrier_init();
void barrier_arrive(const Shared<Barrier>& b, Where where = Where::current());
// The phase ends no sooner than `bytes` more have been copied for it.
void barrier_arrive_expect(const Shared<Barrier>& b, int bytes, Where where = Where::current());
// Until the phase of that parity has ended: the first phase has parity 0, so that waiting for 1 on
// a fresh barrier passes at once. What came before the arrivals, and the copies, are visible then.
void barrier_wait(const Shared<Barrier>& b, unsigned parity, Where where = Where::current());

// ---- copies of tiles (TMA), each by one thread --------------------------------------------------

inline void prefetch_map(const TensorMap&) {}
// What this thread wrote in shared memory is for the instructions of this file to see, once a
// meeting follows (fence.proxy.async).
void fence_async();

struct SharedTile {
  Span* span;
  std::byte* at;
};
void load_tile(SharedTile to, const TensorMap& map, const Shared<Barrier>& b,
               std::initializer_list<int64_t> at, const Where& where);
void write_tile(const TensorMap& map, SharedTile from, bool add, std::initializer_list<int64_t> at,
                const Where& where);

namespace detail {
template <typename T>
SharedTile tile_of(const Shared<T>& at) {
  return {at.span(), reinterpret_cast<std::byte*>(at.address())};
}
}  // namespace detail

// The map's box at the coordinates (innermost first, one for each of its dims; the innermost a
// multiple of 16 bytes), its bytes in order but for the swizzle; zeros where it leaves the tensor,
// and all its bytes count for the barrier.
template <typename T, typename... C>
void load_tile(const Shared<T>& to, const TensorMap& map, const Shared<Barrier>& b, const Index& x,
               C... coordinates) {
  load_tile(detail::tile_of(to), map, b, {x.value, static_cast<int64_t>(coordinates)...}, x.where);
}
// The opposite, part of the thread's open bulk group; outside the tensor nothing is written.
template <typename T, typename... C>
void store_tile(const TensorMap& map, const Shared<T>& from, const Index& x, C... coordinates) {
  write_tile(map, detail::tile_of(from), false, {x.value, static_cast<int64_t>(coordinates)...},
             x.where);
}
// += of f32, element by element, in no order between copies.
template <typename... C>
void add_tile(const TensorMap& map, const Shared<float>& from, const Index& x, C... coordinates) {
  write_tile(map, detail::tile_of(from), true, {x.value, static_cast<int64_t>(coordinates)...},
             x.where);
}

// ---- copies of bytes, multiples of 16 at multiples of 16 ----------------------------------------

void load_bulk(SharedTile to, const Allocation* block, const void* from, int bytes,
               const Shared<Barrier>& b, const Where& where);
void write_bulk(const Allocation* block, void* to, SharedTile from, int bytes, bool add,
                const Where& where);

template <typename T, typename U>
void load_bulk(const Shared<T>& to, const Global<U>& from, int bytes, const Shared<Barrier>& b,
               Where where = Where::current()) {
  load_bulk(detail::tile_of(to), from.block(), from.address(), bytes, b, where);
}
template <typename T, typename U>
void store_bulk(const Global<T>& to, const Shared<U>& from, int bytes,
                Where where = Where::current()) {
  write_bulk(to.block(), to.address(), detail::tile_of(from), bytes, false, where);
}
inline void add_bulk(const Global<float>& to, const Shared<float>& from, int bytes,
                     Where where = Where::current()) {
  write_bulk(to.block(), to.address(), detail::tile_of(from), bytes, true, where);
}

// Ends the thread's open group of stores and adds.
void commit_bulk();
void finish_bulk(int left, bool landed);
// Of all but the newest N groups of this thread, shared memory has been read: it may be written.
template <int N>
void wait_bulk_read() {
  finish_bulk(N, false);
}
// ... and device memory has been written.
template <int N>
void wait_bulk() {
  finish_bulk(N, true);
}

// ---- products of warpgroups (wgmma) -------------------------------------------------------------

// An operand in shared memory. K-major: groups of 8 rows of m or n, `stride_bytes` apart, rows a
// span long (no swizzle: 16 bytes, the next 8 of k `leading_bytes` behind). MN-major: groups of 8
// rows of k, `stride_bytes` apart, and the next span of m or n `leading_bytes` behind; with a
// swizzle only. + moves it by bytes: k16_bytes for the next 16 of k.
struct Descriptor {
  Span* span;
  std::byte* at;
  Swizzle swizzle;
  int leading_bytes, stride_bytes;
  Descriptor operator+(int bytes) const {
    Descriptor moved = *this;
    moved.at += bytes;
    return moved;
  }
};
Descriptor tile_descriptor(SharedTile tile, Swizzle swizzle, int leading_bytes, int stride_bytes,
                           const Where& where);
template <typename T>
Descriptor tile_descriptor(const Shared<T>& tile, Swizzle swizzle, int leading_bytes,
                           int stride_bytes, Where where = Where::current()) {
  return tile_descriptor(detail::tile_of(tile), swizzle, leading_bytes, stride_bytes, where);
}
// For tiles as TMA makes them of boxes a span wide. K-major: [rows of m or n][span of k]; more k is
// more boxes: add the bytes of one. MN-major: [k][span of m or n], the box of the next m or n
// `leading_bytes` behind.
template <typename T>
Descriptor k_major(const Shared<T>& tile, Swizzle swizzle = Swizzle::b128,
                   Where where = Where::current()) {
  return tile_descriptor(detail::tile_of(tile), swizzle, 16, 8 * span_bytes(swizzle), where);
}
template <typename T>
Descriptor mn_major(const Shared<T>& tile, int leading_bytes, Swizzle swizzle = Swizzle::b128,
                    Where where = Where::current()) {
  return tile_descriptor(detail::tile_of(tile), swizzle, leading_bytes, 8 * span_bytes(swizzle),
                         where);
}

// Before the first product of each group: registers that it reads or adds to are ready.
void wgmma_fence();
// Ends the open group of products.
void wgmma_commit(Where where = Where::current());
void finish_products(int left, const Where& where);
// All but the newest N groups are done. Until then their accumulators are NaN here, and changing
// them, or the operands in shared memory, is a fault.
template <int N>
void wgmma_wait(Where where = Where::current()) {
  finish_products(N, where);
}
// With nvcc, holds values in their registers: around groups of products.
template <int N>
void keep(float (&)[N]) {}
template <int N>
void keep(uint32_t (&)[N]) {}

void start_product(float* d, int n, const uint32_t* a_registers, const Descriptor& a, Major a_major,
                   const Descriptor& b, Major b_major, bool accumulate, const Where& where);
// d [64, N] (+)= a b of bf16 in f32: a [64, 16], b [16, N]. With w the warp of the warpgroup,
// g = lane / 4 and q = lane % 4: d[i] holds row 16w + g + 8 (i >> 1 & 1), column
// 8 (i >> 2) + 2q + (i & 1).
template <int N, Major A = Major::k, Major B = Major::k>
void wgmma(float (&d)[N / 2], const Descriptor& a, const Descriptor& b, bool accumulate,
           Where where = Where::current()) {
  static_assert(N >= 16 && N <= 256 && N % 16 == 0);
  start_product(d, N, nullptr, a, A, b, B, accumulate, where);
}
// The same with a in registers: a[r] holds row 16w + g + 8 (r & 1), columns 2q + 8 (r >> 1), + 1.
template <int N, Major B = Major::k>
void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], const Descriptor& b, bool accumulate,
           Where where = Where::current()) {
  static_assert(N >= 16 && N <= 256 && N % 16 == 0);
  start_product(d, N, a, {}, Major::k, b, B, accumulate, where);
}

// ---- registers, lanes ---------------------------------------------------------------------------

// From now on the warpgroup's threads have N registers each (setmaxnreg), of those that the block
// was launched with: for each thread 65536 / threads, rounded down to a multiple of 8.
void set_registers(int n, bool increase, const Where& where);
template <int N>
void decrease_registers(Where where = Where::current()) {
  static_assert(N >= 24 && N <= 256 && N % 8 == 0);
  set_registers(N, false, where);
}
template <int N>
void increase_registers(Where where = Where::current()) {
  static_assert(N >= 24 && N <= 256 && N % 8 == 0);
  set_registers(N, true, where);
}
// One lane of a whole warp.
bool elect_lane(Where where = Where::current());

}  // namespace fovea::interpreted
