// SPDX-License-Identifier: Apache-2.0
#pragma once
// Instructions of sm_90a under the names that kernels use, with nvcc; see core/cuda/kernel90.cuh.
// What each means is said in core/interpreter/hopper.h.

#include "core/cuda/wgmma.cuh"

namespace fovea::cuda {

// ---- barriers of transactions -------------------------------------------------------------------

__device__ inline void barrier_init(Barrier* b, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(count)
               : "memory");
}
__device__ inline void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ inline void barrier_arrive(Barrier* b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}
__device__ inline void barrier_arrive_expect(Barrier* b, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)),
               "r"(bytes)
               : "memory");
}
__device__ inline void barrier_wait(Barrier* b, unsigned parity) {
  wait_until([=] {
    uint32_t done;
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(shared_address(b)), "r"(parity)
        : "memory");
    return done != 0;
  });
}

// ---- copies of tiles ----------------------------------------------------------------------------

__device__ inline void prefetch_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
__device__ inline void fence_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Of rank `rank`, at the coordinates `c`, whose operands have the numbers `numbers`.
#define FOVEA_LOAD_TILE(rank, numbers, ...)                                                 \
  asm volatile("cp.async.bulk.tensor." rank                                                 \
               "d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {" numbers \
               "}], [%2];" ::"r"(shared_address(to)),                                       \
               "l"(&map), "r"(shared_address(b)), __VA_ARGS__                               \
               : "memory")
template <typename T, typename... C>
__device__ inline void load_tile(T* to, const TensorMap& map, Barrier* b, C... coordinates) {
  constexpr int kRank = sizeof...(C);
  static_assert(kRank >= 1 && kRank <= 5);
  const int c[kRank] = {static_cast<int>(coordinates)...};
  if constexpr (kRank == 1)
    FOVEA_LOAD_TILE("1", "%3", "r"(c[0]));
  else if constexpr (kRank == 2)
    FOVEA_LOAD_TILE("2", "%3, %4", "r"(c[0]), "r"(c[1]));
  else if constexpr (kRank == 3)
    FOVEA_LOAD_TILE("3", "%3, %4, %5", "r"(c[0]), "r"(c[1]), "r"(c[2]));
  else if constexpr (kRank == 4)
    FOVEA_LOAD_TILE("4", "%3, %4, %5, %6", "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
  else
    FOVEA_LOAD_TILE("5", "%3, %4, %5, %6, %7", "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]),
                    "r"(c[4]));
}
#undef FOVEA_LOAD_TILE

#define FOVEA_WRITE_TILE(verb, rank, end, numbers, ...)                                      \
  asm volatile(verb ".async.bulk.tensor." rank "d.global.shared::cta." end " [%0, {" numbers \
                    "}], [%1];" ::"l"(&map),                                                 \
               "r"(shared_address(from)), __VA_ARGS__                                        \
               : "memory")
#define FOVEA_WRITE_TILE_OF_ANY_RANK(verb, end)                                             \
  constexpr int kRank = sizeof...(C);                                                       \
  static_assert(kRank >= 1 && kRank <= 5);                                                  \
  const int c[kRank] = {static_cast<int>(coordinates)...};                                  \
  if constexpr (kRank == 1)                                                                 \
    FOVEA_WRITE_TILE(verb, "1", end, "%2", "r"(c[0]));                                      \
  else if constexpr (kRank == 2)                                                            \
    FOVEA_WRITE_TILE(verb, "2", end, "%2, %3", "r"(c[0]), "r"(c[1]));                       \
  else if constexpr (kRank == 3)                                                            \
    FOVEA_WRITE_TILE(verb, "3", end, "%2, %3, %4", "r"(c[0]), "r"(c[1]), "r"(c[2]));        \
  else if constexpr (kRank == 4)                                                            \
    FOVEA_WRITE_TILE(verb, "4", end, "%2, %3, %4, %5", "r"(c[0]), "r"(c[1]), "r"(c[2]),     \
                     "r"(c[3]));                                                            \
  else                                                                                      \
    FOVEA_WRITE_TILE(verb, "5", end, "%2, %3, %4, %5, %6", "r"(c[0]), "r"(c[1]), "r"(c[2]), \
                     "r"(c[3]), "r"(c[4]))
template <typename T, typename... C>
__device__ inline void store_tile(const TensorMap& map, T* from, C... coordinates) {
  FOVEA_WRITE_TILE_OF_ANY_RANK("cp", "bulk_group");
}
template <typename... C>
__device__ inline void add_tile(const TensorMap& map, const float* from, C... coordinates) {
  FOVEA_WRITE_TILE_OF_ANY_RANK("cp.reduce", "add.bulk_group");
}
#undef FOVEA_WRITE_TILE_OF_ANY_RANK
#undef FOVEA_WRITE_TILE

// ---- copies of bytes ----------------------------------------------------------------------------

template <typename T>
__device__ inline void load_bulk(T* to, const T* from, int bytes, Barrier* b) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(b))
      : "memory");
}
template <typename T>
__device__ inline void store_bulk(T* to, const T* from, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
               "r"(shared_address(from)), "r"(bytes)
               : "memory");
}
__device__ inline void add_bulk(float* to, const float* from, int bytes) {
  asm volatile(
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to),
      "r"(shared_address(from)), "r"(bytes)
      : "memory");
}
__device__ inline void commit_bulk() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int N>
__device__ inline void wait_bulk_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
template <int N>
__device__ inline void wait_bulk() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
}

// ---- registers, lanes ---------------------------------------------------------------------------

template <int N>
__device__ inline void decrease_registers() {
  static_assert(N >= 24 && N <= 256 && N % 8 == 0);
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
__device__ inline void increase_registers() {
  static_assert(N >= 24 && N <= 256 && N % 8 == 0);
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
__device__ inline bool elect_lane() {
  uint32_t elected = 0;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(elected)
               :
               : "memory");
  return elected != 0;
}

}  // namespace fovea::cuda
