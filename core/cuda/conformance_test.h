// SPDX-License-Identifier: Apache-2.0
#pragma once
// Kernels that run one instruction each (conformance_test.cu), for conformance_test.cpp, which says
// what the PTX ISA promises of it. Pointers are to device memory; kernels of one warp unless said
// otherwise.

#include "core/cuda/gpu.h"

namespace fovea {

// How a kernel of the test is launched.
struct LaunchShape {
  unsigned grid[3], block[3];
};

enum class Exchange { index, xor_, up, down };
enum class Vote { ballot, any, all };
enum class Reduction { add, max, min };
enum class Unary { exp2, reciprocal, rsqrt, tf32, low, high };

}  // namespace fovea

FOVEA_GPU_DECLARE(
    // Twelve numbers a thread: blockIdx, threadIdx, blockDim, gridDim.
    void conform_indices(int* out, const fovea::LaunchShape& shape, Stream stream);
    // out[t] = in[threads - 1 - t], through static and dynamic shared memory, one block.
    void conform_block_barrier(int* out, const int* in, int threads, Stream stream);
    // Two warps bring in [4, 64], two others read it reversed: out[t] = 8 in[0][63 - t] + 4 in[1]..
    void conform_named_barrier(int* out, const int* in, Stream stream);
    // out[t] = in[t ^ 31], two warps.
    void conform_warp_barrier(int* out, const int* in, Stream stream);
    // T is int32_t, float or int64_t; operand[lane] the source, the bits or the delta. Lanes
    // outside the mask write -1.
    template <typename T> void conform_shuffle(T* out, const T* in, const int* operand,
                                               fovea::Exchange how, unsigned mask, Stream stream);
    // Lanes outside the mask write 0xdead.
    void conform_vote(unsigned* out, const int* in, fovea::Vote how, unsigned mask, Stream stream);
    // T is int32_t or uint32_t. Lanes outside the mask write 0.
    template <typename T>
    void conform_reduce(T* out, const T* in, fovea::Reduction how, unsigned mask, Stream stream);
    // out: sum and maximum of `in` through device memory, the same through shared memory, the sum
    // of all that a shared exchange of indices returned and left, a counter, the last of an
    // exchange, the sum of what that returned; then indices, each at what an add to the counter
    // returned.
    void conform_atomics(int* out, const int* in, int blocks, int threads, Stream stream);
    // out [width] += row by row of in [threads, width], by each block; width is 2 or 4.
    void conform_add_vectors(float* out, const float* in, int blocks, int threads, int width,
                             Stream stream);
    // out[0] = 3 out[0] + block, by the blocks in turn; out[1] counts them.
    void conform_turns(int* out, int blocks, Stream stream);
    void conform_unary(float* out, const float* in, fovea::Unary how, int n, Stream stream);
    // Three numbers each: fma, max(a, b), min(a, b).
    void conform_fma(float* out, const float* a, const float* b, const float* c, int n,
                     Stream stream);
    void conform_pack(uint32_t* out, const float* low, const float* high, int n, Stream stream);
    // out [3, 32, 4] = in, of which each copy of 4 brings the first `valid` bytes; a group a row.
    void conform_copy_async(float* out, const float* in, int valid, Stream stream);
    // Of a tile of 16 rows, 24 apart, of 16 values: matrices 0 and 1 at its left, 2 and 3 at its
    // right; registers [32, 4].
    void conform_load_matrices(uint32_t* out, const uint16_t* tile, bool transposed, Stream stream);
    // The opposite; what is not stored is 7.
    void conform_store_matrices(uint16_t* tile, const uint32_t* in, Stream stream);
    void conform_transpose(uint32_t* out, const uint32_t* in, Stream stream);
    // Fragments d [32, 4] (changed), a [32, 4], b [32, 2].
    void conform_mma(float* d, const uint32_t* a, const uint32_t* b, bool tf32, Stream stream);
    // out [256] = in reversed, through shared memory, in accesses of `width` bytes: 2, 4, 8 or 16.
    void conform_vectors(uint8_t* out, const uint8_t* in, int width, Stream stream);)
