// SPDX-License-Identifier: Apache-2.0
#pragma once
// Kernels of core/cuda/group.cuh's groups (conformance_group_test.cu), for its test.

#include "core/cuda/gpu.h"

namespace fovea {

// What a thread of conform_tile writes.
struct TileValues {
  int rank, index;
  int shuffled;   // of the lane of the next rank, around
  int swapped;    // of the lane across the tile's middle
  int sum, most;  // over the tile
  float sum_f32;  // the same through float
  unsigned ballot;
  int any, all;
};

}  // namespace fovea

FOVEA_GPU_DECLARE(
    // Two warps in tiles of `size` lanes, of which those whose bit is set in `tiles` take part,
    // each with in[thread]; predicates are in > 0. The others' values stay.
    void conform_tile(fovea::TileValues* out, const int* in, int size, unsigned tiles,
                      Stream stream);
    // How many blocks of conform_grid_sync run at once.
    int64_t conform_blocks_together();
    // rounds of: every block writes its sum of the ring's two neighbours, all meet, and read.
    // values [2, blocks] (changed), counter [1].
    void conform_grid_sync(int* values, int* counter, int blocks, int rounds, Stream stream);)
