// SPDX-License-Identifier: Apache-2.0
#pragma once
// What kernels call, on the interpreted device; the same names with nvcc are in core/cuda/card.cuh.
// Meanings are those of the PTX ISA; fragment layouts are in its section on warp-level matrix
// instructions.

#include <atomic>
#include <bit>
#include <cmath>

#include "core/dtype.h"
#include "core/interpreter/pointer.h"

namespace fovea::interpreted {

// ---- meetings -----------------------------------------------------------------------------------

inline void sync_block(Where where = Where::current()) { block_barrier(where); }
// Named barriers (bar.sync, bar.arrive): ids 1 to 15, `threads` counts both sides.
inline void sync_named(int id, int threads, Where where = Where::current()) {
  named_barrier(id, threads, true, where);
}
inline void arrive_named(int id, int threads, Where where = Where::current()) {
  named_barrier(id, threads, false, where);
}
inline void sync_warp(unsigned mask = kAllLanes, Where where = Where::current()) {
  int nothing = 0;
  warp_operation(
      "sync_warp", mask, nothing, [](int* const*) {}, where);
}

// ---- warp operations ----------------------------------------------------------------------------

// Lane `source`'s value, for every lane its own source; a source outside the mask is undefined on a
// card and a fault here. 4 or 8 bytes.
template <typename T>
T shuffle(T value, int source, unsigned mask = kAllLanes, Where where = Where::current()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  struct Lane {
    T value, result;
    int source;
    bool absent;
  } mine{value, value, source & (kWarp - 1), false};
  warp_operation(
      sizeof(T) == 4 ? "shuffle" : "shuffle of 8 bytes", mask, mine,
      [](Lane* const* lanes) {
        for (int lane = 0; lane < kWarp; ++lane) {
          if (lanes[lane] == nullptr) continue;
          const Lane* from = lanes[lanes[lane]->source];
          lanes[lane]->absent = from == nullptr;
          if (from != nullptr) lanes[lane]->result = from->value;
        }
      },
      where);
  if (mine.absent) fault(concat("shuffle from lane ", mine.source, ", which takes no part"), where);
  return mine.result;
}
template <typename T>
T shuffle_xor(T value, int bits, unsigned mask = kAllLanes, Where where = Where::current()) {
  return shuffle(value, thread().lane ^ bits, mask, where);
}
// From `delta` lanes below or above; a lane with none there keeps its own.
template <typename T>
T shuffle_up(T value, int delta, unsigned mask = kAllLanes, Where where = Where::current()) {
  const int lane = thread().lane;
  return shuffle(value, lane >= delta ? lane - delta : lane, mask, where);
}
template <typename T>
T shuffle_down(T value, int delta, unsigned mask = kAllLanes, Where where = Where::current()) {
  const int lane = thread().lane;
  return shuffle(value, lane + delta < kWarp ? lane + delta : lane, mask, where);
}
// Bit i: lane i's predicate.
inline unsigned ballot(bool predicate, unsigned mask = kAllLanes, Where where = Where::current()) {
  struct Lane {
    bool predicate;
    unsigned result;
  } mine{predicate, 0};
  warp_operation(
      "ballot", mask, mine,
      [](Lane* const* lanes) {
        unsigned bits = 0;
        for (int lane = 0; lane < kWarp; ++lane)
          if (lanes[lane] != nullptr && lanes[lane]->predicate) bits |= 1u << lane;
        for (int lane = 0; lane < kWarp; ++lane)
          if (lanes[lane] != nullptr) lanes[lane]->result = bits;
      },
      where);
  return mine.result;
}
inline bool any(bool predicate, unsigned mask = kAllLanes, Where where = Where::current()) {
  return ballot(predicate, mask, where) != 0;
}
inline bool all(bool predicate, unsigned mask = kAllLanes, Where where = Where::current()) {
  return ballot(!predicate, mask, where) == 0;
}
namespace detail {
// Integers wrap around.
template <typename T>
T sum(T a, T b) {
  if constexpr (std::is_integral_v<T>)
    return static_cast<T>(std::make_unsigned_t<T>(a) + std::make_unsigned_t<T>(b));
  else
    return a + b;
}
template <typename T, typename F>
T reduce(const char* what, T value, unsigned mask, F f, const Where& where) {
  warp_operation(
      what, mask, value,
      [&f](T* const* lanes) {
        bool first = true;
        T total{};
        for (int lane = 0; lane < kWarp; ++lane) {
          if (lanes[lane] == nullptr) continue;
          total = first ? *lanes[lane] : f(total, *lanes[lane]);
          first = false;
        }
        for (int lane = 0; lane < kWarp; ++lane)
          if (lanes[lane] != nullptr) *lanes[lane] = total;
      },
      where);
  return value;
}
}  // namespace detail
// redux.sync: of 32-bit integers.
template <typename T>
T reduce_add(T value, unsigned mask = kAllLanes, Where where = Where::current()) {
  static_assert(std::is_integral_v<T> && sizeof(T) == 4);
  return detail::reduce(
      "reduce_add", value, mask, [](T a, T b) { return detail::sum(a, b); }, where);
}
template <typename T>
T reduce_max(T value, unsigned mask = kAllLanes, Where where = Where::current()) {
  static_assert(std::is_integral_v<T> && sizeof(T) == 4);
  return detail::reduce(
      "reduce_max", value, mask, [](T a, T b) { return a > b ? a : b; }, where);
}
template <typename T>
T reduce_min(T value, unsigned mask = kAllLanes, Where where = Where::current()) {
  static_assert(std::is_integral_v<T> && sizeof(T) == 4);
  return detail::reduce(
      "reduce_min", value, mask, [](T a, T b) { return a < b ? a : b; }, where);
}

// ---- atomics ------------------------------------------------------------------------------------

namespace detail {
template <typename T>
std::atomic_ref<T> atomic_at(const Global<T>& to, const Where& where) {
  check_written(to.block(), to.address(), sizeof(T), alignof(T), where);
  return std::atomic_ref<T>(*to.address());
}
// Threads of a block take turns, so that a plain change is atomic in shared memory.
template <typename T, typename F>
T change(const Shared<T>& to, F f, const Where& where) {
  auto* at = reinterpret_cast<std::byte*>(to.address());
  check_shared_read(*to.span(), at, sizeof(T), where, true);
  check_shared_write(*to.span(), at, sizeof(T), where, Write::atomic);
  const T before = *to.address();
  *to.address() = f(before);
  return before;
}
}  // namespace detail
// The value before.
template <typename T>
T atomic_add(const Global<T>& to, std::type_identity_t<T> value, Where where = Where::current()) {
  return detail::atomic_at(to, where).fetch_add(value);
}
// N neighbours (2 or 4, aligned together), each on its own; returns nothing
// (red.global.add.vN.f32).
template <int N>
void atomic_add(const Global<float>& to, const Vec<float, N>& values,
                Where where = Where::current()) {
  static_assert(N == 2 || N == 4);
  check_written(to.block(), to.address(), sizeof values, sizeof values, where);
  for (int i = 0; i < N; ++i) std::atomic_ref<float>(to.address()[i]).fetch_add(values[i]);
}
template <typename T>
T atomic_max(const Global<T>& to, std::type_identity_t<T> value, Where where = Where::current()) {
  auto at = detail::atomic_at(to, where);
  T before = at.load();
  while (before < value && !at.compare_exchange_weak(before, value)) {
  }
  return before;
}
template <typename T>
T atomic_exchange(const Global<T>& to, std::type_identity_t<T> value,
                  Where where = Where::current()) {
  return detail::atomic_at(to, where).exchange(value);
}
template <typename T>
T atomic_add(const Shared<T>& to, std::type_identity_t<T> value, Where where = Where::current()) {
  return detail::change(
      to, [value](T before) { return detail::sum(before, value); }, where);
}
template <typename T>
T atomic_max(const Shared<T>& to, std::type_identity_t<T> value, Where where = Where::current()) {
  return detail::change(
      to, [value](T before) { return before < value ? value : before; }, where);
}
template <typename T>
T atomic_exchange(const Shared<T>& to, std::type_identity_t<T> value,
                  Where where = Where::current()) {
  return detail::change(
      to, [value](T) { return value; }, where);
}
// Loads and stores other blocks see (ld.acquire.gpu, st.release.gpu). Loading from one address
// again and again is a wait, as spin() is.
template <typename T>
T load_acquire(const Global<T>& from, Where where = Where::current()) {
  Thread& t = thread();
  if (t.polled == from.address()) pause(where);
  t.polled = from.address();
  return detail::atomic_at(from, where).load(std::memory_order_acquire);
}
template <typename T>
void store_release(const Global<T>& to, std::type_identity_t<T> value,
                   Where where = Where::current()) {
  const size_t offset =
      check_global(to.block(), to.address(), sizeof(T), alignof(T), "writes", where);
  std::memset(to.block()->written.get() + offset, 1, sizeof(T));
  std::atomic_ref<T>(*to.address()).store(value, std::memory_order_release);
}
inline void fence_device() { std::atomic_thread_fence(std::memory_order_seq_cst); }
// The body of a loop that waits for another thread.
inline void spin(Where where = Where::current()) { pause(where); }
// Until done(), which reads what another thread writes. On a card a wait of half a minute is one
// without end: the kernel traps, which the host gets as an error.
template <typename F>
void wait_until(F done, Where where = Where::current()) {
  while (!done()) spin(where);
}

// What is made of the value is made where it stands: nvcc does not make it before a loop, in
// registers that are kept.
inline int fresh(int x) { return x; }

// ---- arithmetic ---------------------------------------------------------------------------------

namespace detail {
// .ftz: subnormal numbers count as zeros of their sign.
inline float flush(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
}  // namespace detail
// ex2.approx.ftz.f32, rcp.approx.ftz.f32 and rsqrt.approx.ftz.f32, rounded better than a card does.
inline float exp2_fast(float x) { return detail::flush(std::exp2(x)); }
inline float reciprocal_fast(float x) { return detail::flush(1.0f / detail::flush(x)); }
inline float rsqrt_fast(float x) { return 1.0f / std::sqrt(detail::flush(x)); }
inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline float min(float a, float b) { return std::fmin(a, b); }

// bf16x2, `low` in the low half.
inline uint32_t pack(float low, float high) {
  return uint32_t{bf16(low).bits} | (uint32_t{bf16(high).bits} << 16);
}
inline float low_half(uint32_t pair) { return std::bit_cast<float>(pair << 16); }
inline float high_half(uint32_t pair) { return std::bit_cast<float>(pair & 0xffff0000u); }
// An f32 whose 13 lowest bits are zero, ties away from zero (cvt.rna.tf32.f32).
inline uint32_t to_tf32(float x) { return std::bit_cast<uint32_t>(round_to_tf32(x)); }

// ---- copies to shared memory (cp.async) ---------------------------------------------------------

void copy_async(Span& span, std::byte* to, const Allocation* block, const std::byte* from,
                int valid, const Where& where);

// 16 bytes, of which the first `valid` come from device memory and the rest are zero. They arrive
// no earlier than the wait, before which nobody may touch the place.
template <typename T, typename U>
void copy_async(const Shared<T>& to, const Global<U>& from, int valid = 16,
                Where where = Where::current()) {
  copy_async(*to.span(), reinterpret_cast<std::byte*>(to.address()), from.block(),
             reinterpret_cast<const std::byte*>(from.address()), valid, where);
}
inline void commit_copies() { ++thread().copy_group; }
// All but the newest N committed groups have arrived.
template <int N>
void wait_copies() {
  finish_copies(N);
}

// ---- matrices in registers ----------------------------------------------------------------------

void load_matrices(uint32_t (&r)[4], Span& span, const std::byte* row, bool transposed,
                   const Where& where);
// Four 8 x 8 matrices of 2-byte values: lane l gives the address of row l % 8 of matrix l / 8 (16
// bytes) and gets in r[m] columns 2 (l % 4), + 1 of row l / 4 of matrix m; transposed, rows
// 2 (l % 4), + 1 of column l / 4.
template <typename T>
void load_matrices(uint32_t (&r)[4], const Shared<T>& row, Where where = Where::current()) {
  load_matrices(r, *row.span(), reinterpret_cast<const std::byte*>(row.address()), false, where);
}
template <typename T>
void load_matrices_transposed(uint32_t (&r)[4], const Shared<T>& row,
                              Where where = Where::current()) {
  load_matrices(r, *row.span(), reinterpret_cast<const std::byte*>(row.address()), true, where);
}

void store_matrices(Span& span, std::byte* row, const uint32_t (&r)[4], const Where& where);
// The opposite of load_matrices (stmatrix): lane l gives the address of row l % 8 of matrix l / 8.
template <typename T>
void store_matrices(const Shared<T>& row, const uint32_t (&r)[4], Where where = Where::current()) {
  store_matrices(*row.span(), reinterpret_cast<std::byte*>(row.address()), r, where);
}
// An 8 x 8 matrix of 2-byte values of which lane l holds columns 2 (l % 4), + 1 of row l / 4; the
// same of its transpose (movmatrix).
uint32_t transpose_matrix(uint32_t pair, Where where = Where::current());

// d += a b in f32, of bf16: a 16 x 16, b 16 x 8, d 16 x 8 (mma.sync.m16n8k16). With g = lane / 4
// and q = lane % 4: a[r] holds row g + 8 (r & 1), columns 2q + 8 (r >> 1), + 1; b[r] rows 2q + 8r,
// + 1 of column g; d[i] row g + 8 (i >> 1), column 2q + (i & 1).
void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
              Where where = Where::current());
// The same of tf32: a 16 x 8, b 8 x 8 (mma.sync.m16n8k8): a[r] holds row g + 8 (r & 1), column
// q + 4 (r >> 1); b[r] row q + 4r of column g.
void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
              Where where = Where::current());

}  // namespace fovea::interpreted
