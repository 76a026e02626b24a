// SPDX-License-Identifier: Apache-2.0
#pragma once
// What kernels call, compiled by nvcc: pointers, shared memory, launch, and the words of
// core/cuda/ptx.cuh. The same names for the interpreted device are in core/interpreter/.

#include <cuda_runtime.h>

#include <bit>
#include <type_traits>

#include "core/cuda/ptx.cuh"

#define FOVEA_SHARED(type, name, count) __shared__ alignas(128) type name[count]

namespace fovea::cuda {

template <typename T>
using Global = T* __restrict__;
template <typename T>
using Overlapped = T*;
template <typename T>
using Shared = T*;

template <typename T, int N>
struct alignas(sizeof(T) * N) Vec {
  T v[N];
  __device__ T& operator[](int i) { return v[i]; }
  __device__ const T& operator[](int i) const { return v[i]; }
};

template <int N, typename T>
__device__ inline auto load(const T* from) {
  return *reinterpret_cast<const Vec<T, N>*>(from);
}
// As one word: nvcc takes the copy of a struct apart, and does not always join the pieces again.
template <int N, typename T>
__device__ inline void store(T* to, const Vec<T, N>& values) {
  constexpr size_t kBytes = sizeof(Vec<T, N>);
  static_assert(kBytes == 2 || kBytes == 4 || kBytes == 8 || kBytes == 16);
  using Half = std::conditional_t<kBytes == 2, uint16_t, uint32_t>;
  using Word = std::conditional_t<kBytes <= 4, Half,
                                  std::conditional_t<kBytes == 8, uint64_t, unsigned __int128>>;
  *reinterpret_cast<Word*>(to) = std::bit_cast<Word>(values);
}

__device__ inline void atomic_add(float* to, const Vec<float, 2>& values) {
  add_together(to, values[0], values[1]);
}
__device__ inline void atomic_add(float* to, const Vec<float, 4>& values) {
  add_together(to, values[0], values[1], values[2], values[3]);
}

// The block's dynamic shared memory from a byte on. Its base is aligned to 1024 bytes.
template <typename T>
__device__ inline T* dynamic_shared(size_t byte_offset = 0) {
  extern __shared__ __align__(1024) unsigned char fovea_dynamic_shared[];
  return reinterpret_cast<T*>(fovea_dynamic_shared + byte_offset);
}

// Throws naming the kernel, the shapes of the launch and the runtime's reason.
void launch_raw(const void* kernel, const char* name, dim3 grid, dim3 block, size_t shared_bytes,
                Stream stream, void** arguments);
void launch_together_raw(const void* kernel, const char* name, dim3 grid, dim3 block,
                         size_t shared_bytes, Stream stream, void** arguments);
int64_t blocks_together_raw(const void* kernel, int threads, size_t shared_bytes);

namespace detail {
template <auto kKernel>
const char* kernel_name() {
  return __PRETTY_FUNCTION__;
}
template <auto kKernel, auto kLaunch, typename... P, typename... A>
void launch_as(void (*)(P...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
               A&&... arguments) {
  // Of the kernel's own types, whatever the caller's.
  auto call = [&](P... values) {
    void* pointers[] = {const_cast<void*>(static_cast<const void*>(&values))..., nullptr};
    kLaunch(reinterpret_cast<const void*>(kKernel), kernel_name<kKernel>(), grid, block,
            shared_bytes, stream, pointers);
  };
  call(static_cast<A&&>(arguments)...);
}
}  // namespace detail

template <auto kKernel, typename... A>
void launch(dim3 grid, dim3 block, size_t shared_bytes, Stream stream, A&&... arguments) {
  detail::launch_as<kKernel, launch_raw>(kKernel, grid, block, shared_bytes, stream,
                                         static_cast<A&&>(arguments)...);
}

// A grid whose blocks wait for one another: they must all be on the card at once. blocks_together
// is how many are; a larger grid is an error that says so.
template <auto kKernel>
int64_t blocks_together(int threads, size_t shared_bytes) {
  return blocks_together_raw(reinterpret_cast<const void*>(kKernel), threads, shared_bytes);
}
template <auto kKernel, typename... A>
void launch_together(dim3 grid, dim3 block, size_t shared_bytes, Stream stream, A&&... arguments) {
  detail::launch_as<kKernel, launch_together_raw>(kKernel, grid, block, shared_bytes, stream,
                                                  static_cast<A&&>(arguments)...);
}

}  // namespace fovea::cuda
