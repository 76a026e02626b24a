// SPDX-License-Identifier: Apache-2.0
#pragma once
// The host's side of kernels for Hopper alone (files named *_sm90.cu; core/cuda/kernel90.cuh):
// which devices run them, how they are called, and the tensor maps their tiles are copied by.

#include <array>
#include <initializer_list>

#include "core/cuda/gpu.h"
#include "core/dtype.h"

namespace fovea {

// Whether the device runs kernels of *_sm90.cu: the interpreted device, and cards of compute
// capability 9.0 where the build has code for sm_90a (FOVEA_SM90). The environment variable
// FOVEA_GPU_ISA=sm_80 keeps both to the kernels of sm_80, for comparisons.
bool runs_sm90(Device device);
// For tests and comparisons: false makes runs_sm90 say no until it is true again. Not while other
// threads ask.
void allow_sm90(bool allowed);

// How a tile lies in shared memory: the 16-byte chunks of its rows change places within a span of
// 32, 64 or 128 bytes. In rows as long as the span, chunk c of row r lies at c ^ (r & 7) (128 B),
// c ^ (r >> 1 & 3) (64 B), c ^ (r >> 2 & 1) (32 B).
enum class Swizzle : uint8_t { none, b32, b64, b128 };
constexpr int span_bytes(Swizzle swizzle) { return 16 << static_cast<int>(swizzle); }
// What the first byte of a tile must be a multiple of.
constexpr int tile_alignment(Swizzle swizzle) {
  return swizzle == Swizzle::none ? 128 : 8 * span_bytes(swizzle);
}

// A tensor in device memory and the box of it that one copy moves, for load_tile and its like: made
// by tensor_map, passed to kernels as `const __grid_constant__ TensorMap`. Opaque.
struct alignas(64) TensorMap {
  std::array<uint64_t, 16> words{};
};
static_assert(sizeof(TensorMap) == 128);

}  // namespace fovea

FOVEA_GPU_DECLARE(
    // A tensor of `dims` elements (f32 or bf16; 1 to 5 dims, the innermost first, contiguous), its
    // other dims `strides` elements apart, moved in boxes of `box` elements. The innermost box is
    // at most the span of the swizzle. Throws unless base is a multiple of 16 bytes, as every
    // stride and the innermost box are; dims below 2^32, boxes at most 256.
    TensorMap tensor_map(const void* base, Dtype dtype, std::initializer_list<int64_t> dims,
                         std::initializer_list<int64_t> strides, std::initializer_list<int> box,
                         Swizzle swizzle);)

// FOVEA_GPU_CALL for a function of a *_sm90.cu, on a device that runs_sm90.
#if defined(FOVEA_SM90) || !defined(FOVEA_CUDA)
#define FOVEA_SM90_CALL(device, function, ...) FOVEA_GPU_CALL(device, function, __VA_ARGS__)
#elif defined(FOVEA_INTERPRETED)
#define FOVEA_SM90_CALL(device, function, ...) \
  (::fovea::detail::ignore(device), ::fovea::interpreted::function(__VA_ARGS__))
#else
#define FOVEA_SM90_CALL(device, function, ...) \
  (::fovea::detail::ignore(__VA_ARGS__),       \
   ::fovea::detail::fail(#function ": this build has no code for sm_90a"))
#endif
