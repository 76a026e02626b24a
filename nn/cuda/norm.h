// SPDX-License-Identifier: Apache-2.0
#pragma once
// LayerNorm and RMSNorm on GPU devices; the calls are those of the cpu's row kernels, with pointers
// to the device.

#include "core/cuda/gpu.h"
#include "nn/cpu/kernels.h"

namespace fovea {

// Of a block of backward. A thread has 8 neighbouring channels: rows up to 256 channels are a
// warp's and a block takes 8 of them at a time, longer ones are a block's; past 6144 it reads some
// channels twice.
constexpr int norm_threads(int64_t channels) {
  if (channels <= 256) return 256;
  return channels > 6144 ? 512 : static_cast<int>((channels + 255) / 256 * 32);
}
// Its blocks, which are the rows of partial sums of dgamma and dbeta: as many as fit on 132 SMs in
// 80 registers a thread, and at least 8 rows each. Of the shape alone, so that the bits are the
// same on every card.
constexpr int64_t norm_parts(int64_t rows, int64_t channels) {
  const int64_t most = 132 * (768 / norm_threads(channels));
  return rows < most * 8 ? (rows + 7) / 8 : most;
}

}  // namespace fovea

FOVEA_GPU_DECLARE(void norm_forward(const NormForward& call, int64_t rows, Stream stream);
                  // sums [2, channels]: dgamma, dbeta. partial: room for [norm_parts(rows,
                  // channels), 2, channels].
                  void norm_backward(const NormBackward& call, float* sums, float* partial,
                                     int64_t rows, Stream stream);)
