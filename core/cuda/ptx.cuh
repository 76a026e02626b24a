// SPDX-License-Identifier: Apache-2.0
#pragma once
// The one place with asm: PTX instructions under the names that kernels use. What each means is
// said once, in core/interpreter/intrinsics.h, where it is spelled out in C++.

#include <cstdint>
#include <type_traits>

namespace fovea::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

// ---- meetings -----------------------------------------------------------------------------------

__device__ inline void sync_block() { __syncthreads(); }
__device__ inline void sync_named(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ inline void arrive_named(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ inline void sync_warp(unsigned mask = kAllLanes) { __syncwarp(mask); }

// ---- warp operations ----------------------------------------------------------------------------

template <typename T>
__device__ inline T shuffle(T value, int source, unsigned mask = kAllLanes) {
  return __shfl_sync(mask, value, source);
}
template <typename T>
__device__ inline T shuffle_xor(T value, int bits, unsigned mask = kAllLanes) {
  return __shfl_xor_sync(mask, value, bits);
}
template <typename T>
__device__ inline T shuffle_up(T value, int delta, unsigned mask = kAllLanes) {
  return __shfl_up_sync(mask, value, static_cast<unsigned>(delta));
}
template <typename T>
__device__ inline T shuffle_down(T value, int delta, unsigned mask = kAllLanes) {
  return __shfl_down_sync(mask, value, static_cast<unsigned>(delta));
}
__device__ inline unsigned ballot(bool predicate, unsigned mask = kAllLanes) {
  return __ballot_sync(mask, predicate);
}
__device__ inline bool any(bool predicate, unsigned mask = kAllLanes) {
  return __any_sync(mask, predicate) != 0;
}
__device__ inline bool all(bool predicate, unsigned mask = kAllLanes) {
  return __all_sync(mask, predicate) != 0;
}
template <typename T>
__device__ inline T reduce_add(T value, unsigned mask = kAllLanes) {
  return __reduce_add_sync(mask, value);
}
template <typename T>
__device__ inline T reduce_max(T value, unsigned mask = kAllLanes) {
  return __reduce_max_sync(mask, value);
}
template <typename T>
__device__ inline T reduce_min(T value, unsigned mask = kAllLanes) {
  return __reduce_min_sync(mask, value);
}

// ---- atomics ------------------------------------------------------------------------------------

template <typename T>
__device__ inline T atomic_add(T* to, std::type_identity_t<T> value) {
  return atomicAdd(to, value);
}
template <typename T>
__device__ inline T atomic_max(T* to, std::type_identity_t<T> value) {
  return atomicMax(to, value);
}
template <typename T>
__device__ inline T atomic_exchange(T* to, std::type_identity_t<T> value) {
  return atomicExch(to, value);
}
// Of neighbours in device memory, together.
__device__ inline void add_together(float* to, float a, float b) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(a), "f"(b) : "memory");
#else
  atomicAdd(to, a);
  atomicAdd(to + 1, b);
#endif
}
__device__ inline void add_together(float* to, float a, float b, float c, float d) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(a), "f"(b), "f"(c),
               "f"(d)
               : "memory");
#else
  add_together(to, a, b);
  add_together(to + 2, c, d);
#endif
}
__device__ inline int load_acquire(const int* from) {
  int value;
  asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
__device__ inline void store_release(int* to, int value) {
  asm volatile("st.release.gpu.global.b32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
__device__ inline void fence_device() { __threadfence(); }
__device__ inline void spin() {}

// Units of 2^32 ns: 4.3 s.
__device__ inline uint32_t slow_clock() {
  uint32_t units;
  asm volatile("mov.u32 %0, %%globaltimer_hi;" : "=r"(units));
  return units;
}
inline constexpr uint32_t kLongestWait = 8;  // 30 to 34 s
// The trap leaves the loop as if it were over: where it does not, as with __trap(), the kernels of
// Hopper spill, for ptxas then gives up the register counts of their roles.
template <typename F>
__device__ inline void wait_until(F done) {
  if (done()) return;
  const uint32_t start = slow_clock();
  while (!done()) {
    if (slow_clock() - start < kLongestWait) continue;
    asm volatile("trap;");
    break;
  }
}

// What is made of the value is made where it stands: nvcc does not make it before a loop, in
// registers that are kept.
__device__ inline int fresh(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// ---- arithmetic ---------------------------------------------------------------------------------

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float rsqrt_fast(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float fma(float a, float b, float c) { return fmaf(a, b, c); }
__device__ inline float max(float a, float b) { return fmaxf(a, b); }
__device__ inline float min(float a, float b) { return fminf(a, b); }

__device__ inline uint32_t pack(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ inline float low_half(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ inline float high_half(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ inline uint32_t to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// ---- copies to shared memory --------------------------------------------------------------------

__device__ inline uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}
__device__ inline void copy_async(void* to, const void* from, int valid = 16) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
               "l"(from), "r"(valid)
               : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- matrices in registers ----------------------------------------------------------------------

__device__ inline void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void store_matrices(void* row, const uint32_t (&r)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
      "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
      : "memory");
#else
  const int lane =
      static_cast<int>(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % kWarp;
  for (int m = 0; m < 4; ++m) {
    const uint32_t to = shuffle(shared_address(row), 8 * m + lane / 4) + lane % 4 * 4;
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(r[m]) : "memory");
  }
  sync_warp();
#endif
}
__device__ inline uint32_t transpose_matrix(uint32_t pair) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(pair));
  return transposed;
}
__device__ inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace fovea::cuda
