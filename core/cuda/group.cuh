// SPDX-License-Identifier: Apache-2.0
#pragma once
// Groups of threads smaller than a warp and larger than a block: tiles of 2 to 32 lanes, and the
// whole grid. Blocks have one axis of threads. Comes with core/cuda/kernel.cuh.

namespace FOVEA_GPU {

// The warp cut into 32 / N tiles of neighbouring lanes. Every operation is one of all lanes of the
// calling thread's tile; other tiles need not take part. Sums and maxima are the same bits in every
// lane: partners swap, so that each adds the same pairs.
template <int N>
class Lanes {
  static_assert(N >= 2 && N <= 32 && (N & (N - 1)) == 0, "a tile has 2, 4, 8, 16 or 32 lanes");

 public:
  // Lane within the tile, 0 to N - 1; tile within the block.
  __device__ static int rank() { return static_cast<int>(threadIdx.x) % N; }
  __device__ static int index() { return static_cast<int>(threadIdx.x) / N; }
  // Its lanes within the warp.
  __device__ static unsigned mask() {
    if constexpr (N == 32)
      return kAllLanes;
    else
      return ((1u << N) - 1u) << first();
  }

  __device__ static void sync() { sync_warp(mask()); }
  // The value of the lane of rank `source`, or of the one whose rank differs in `bits`.
  template <typename T>
  __device__ static T shuffle(T value, int source) {
    return FOVEA_GPU::shuffle(value, first() + source, mask());
  }
  template <typename T>
  __device__ static T shuffle_xor(T value, int bits) {
    return FOVEA_GPU::shuffle_xor(value, bits, mask());
  }
  template <typename T>
  __device__ static T sum(T x) {
    FOVEA_UNROLL
    for (int bits = N / 2; bits > 0; bits /= 2) x += shuffle_xor(x, bits);
    return x;
  }
  __device__ static float max(float x) {
    FOVEA_UNROLL
    for (int bits = N / 2; bits > 0; bits /= 2) x = FOVEA_GPU::max(x, shuffle_xor(x, bits));
    return x;
  }
  // Bit r: what the lane of rank r says.
  __device__ static unsigned ballot(bool predicate) {
    return FOVEA_GPU::ballot(predicate, mask()) >> first();
  }
  __device__ static bool any(bool predicate) { return FOVEA_GPU::any(predicate, mask()); }
  __device__ static bool all(bool predicate) { return FOVEA_GPU::all(predicate, mask()); }

 private:
  __device__ static int first() { return static_cast<int>(threadIdx.x) % 32 / N * N; }
};

// Waits until all threads of the grid have come, after which they see what was written to device
// memory before. The kernel is launched with launch_together. `counter` is an int in device memory
// that is 0 before its first use, for these barriers alone; it may be used again, by this kernel
// and by later ones.
//
// The blocks but the first add 1 each, the first what is missing to 2^31: the highest bit changes
// when the last has come, and the others are zero again.
__device__ inline void grid_sync(Global<int> counter) {
  sync_block();
  if (threadIdx.x == 0) {
    const unsigned others = gridDim.x * gridDim.y * gridDim.z - 1;
    const bool is_first = blockIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0;
    const unsigned mine = is_first ? 0x80000000u - others : 1u;
    fence_device();
    const int before = atomic_add(counter, static_cast<int>(mine));
    wait_until([=] { return (load_acquire(counter) ^ before) < 0; });
    fence_device();
  }
  sync_block();
}

}  // namespace FOVEA_GPU
