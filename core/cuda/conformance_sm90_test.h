// SPDX-License-Identifier: Apache-2.0
#pragma once
// Kernels that run one instruction of sm_90a each (conformance_sm90_test.cu), and a product of
// matrices that uses most of them (gemm_sm90_test.cu). Pointers are to device memory.

#include "core/cuda/sm90.h"

namespace fovea {

// A product's operand in shared memory: the image of the tile, `next_k` bytes to the next 16 of k.
struct OperandImage {
  const uint16_t* values;
  int bytes;
  bool mn_major;
  Swizzle swizzle;
  int leading_bytes, stride_bytes, next_k;
};

struct Coordinates {
  int x[5];
};

}  // namespace fovea

FOVEA_GPU_DECLARE(
    // d [128, n / 2] += a b, 32 deep, by thread. a in shared memory, or a_registers [2, 128, 4]. n
    // is 64 for all majors and for registers, else 32, 80, 176 or 256 with both K-major.
    void conform_wgmma(float* d, const fovea::OperandImage& a, const uint32_t* a_registers,
                       const fovea::OperandImage& b, int n, bool accumulate, Stream stream);
    // image [bytes] = the box of `in` at `from`, as it lies in shared memory; then, of `out` at
    // `to`, = or += (f32).
    void conform_tile(uint8_t* image, int bytes, const fovea::TensorMap& in,
                      const fovea::Coordinates& from, const fovea::TensorMap& out,
                      const fovea::Coordinates& to, int rank, bool add, Stream stream);
    // out [n] += in [n] by each block, then copy [n] = in [n], all through shared memory.
    void conform_bulk(float* out, float* copy, const float* in, int n, int blocks, Stream stream);
    // out [96]: sums over the steps of in [steps, 96], each step brought through a ring of stages
    // to three warps.
    void conform_ring(float* out, const float* in, int steps, int stages, Stream stream);
    // out[0] = how many lanes of a warp elect_lane() chooses, after registers went from the first
    // warpgroup to the second.
    void conform_elect(int* out, Stream stream);
    // c [M, N] = a [M, K] b [N, K]^T in bf16, sums in f32. K and N are multiples of 8.
    void gemm_sm90(uint16_t* c, const uint16_t* a, const uint16_t* b, int M, int N, int K,
                   Stream stream);)
