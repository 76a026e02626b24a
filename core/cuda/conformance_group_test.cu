// SPDX-License-Identifier: Apache-2.0
#include "core/cuda/conformance_group_test.h"
#include "core/cuda/kernel.cuh"

namespace FOVEA_GPU {
namespace {

template <int N>
__global__ void tile_kernel(Global<fovea::TileValues> out, Global<const int> in, unsigned tiles) {
  using T = Lanes<N>;
  if (((tiles >> T::index()) & 1u) == 0) return;
  const int t = static_cast<int>(threadIdx.x);
  const int mine = in[t];
  fovea::TileValues v{};
  v.rank = T::rank();
  v.index = T::index();
  v.shuffled = T::shuffle(mine, (T::rank() + 1) % N);
  v.swapped = T::shuffle_xor(mine, N / 2);
  T::sync();
  v.sum = T::sum(mine);
  v.sum_f32 = T::sum(static_cast<float>(mine));
  v.most = static_cast<int>(T::max(static_cast<float>(mine)));
  v.ballot = T::ballot(mine > 0);
  v.any = T::any(mine > 0) ? 1 : 0;
  v.all = T::all(mine > 0) ? 1 : 0;
  out[t] = v;
}

constexpr int kThreads = 64;

__global__ void grid_sync_kernel(Global<int> values, Global<int> counter, int rounds) {
  const int block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
  const int left = (block + blocks - 1) % blocks, right = (block + 1) % blocks;
  for (int round = 0; round < rounds; ++round) {
    const int from = round % 2 * blocks, to = blocks - from;
    if (threadIdx.x == kThreads - 1) {
      const int a = load_acquire(values + (from + left)), b = load_acquire(values + (from + right));
      values[to + block] = a + b;
    }
    grid_sync(counter);
  }
}

}  // namespace

void conform_tile(fovea::TileValues* out, const int* in, int size, unsigned tiles, Stream stream) {
  switch (size) {
    case 2:
      return launch<tile_kernel<2>>(1, 64, 0, stream, out, in, tiles);
    case 4:
      return launch<tile_kernel<4>>(1, 64, 0, stream, out, in, tiles);
    case 8:
      return launch<tile_kernel<8>>(1, 64, 0, stream, out, in, tiles);
    case 16:
      return launch<tile_kernel<16>>(1, 64, 0, stream, out, in, tiles);
    default:
      return launch<tile_kernel<32>>(1, 64, 0, stream, out, in, tiles);
  }
}

int64_t conform_blocks_together() { return blocks_together<grid_sync_kernel>(kThreads, 0); }
void conform_grid_sync(int* values, int* counter, int blocks, int rounds, Stream stream) {
  launch_together<grid_sync_kernel>(blocks, kThreads, 0, stream, values, counter, rounds);
}

}  // namespace FOVEA_GPU
