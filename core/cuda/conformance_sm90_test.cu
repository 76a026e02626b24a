// SPDX-License-Identifier: Apache-2.0
#include "core/cuda/conformance_sm90_test.h"
#include "core/cuda/kernel90.cuh"

namespace FOVEA_GPU {
namespace {

constexpr int kGroup = 128;  // threads of a warpgroup

// ---- products -----------------------------------------------------------------------------------

constexpr int kRoomOfA = 8192;  // bytes

template <Major kMajor>
__device__ inline Descriptor operand(Shared<uint16_t> at, const fovea::OperandImage& image) {
  if (image.swizzle == Swizzle::none)
    return tile_descriptor(at, Swizzle::none, image.leading_bytes, image.stride_bytes);
  if constexpr (kMajor == Major::k)
    return k_major(at, image.swizzle);
  else
    return mn_major(at, image.leading_bytes, image.swizzle);
}

template <int N, Major A, Major B, bool kRegisters>
__global__ void __launch_bounds__(kGroup, 1)
    wgmma_kernel(Global<float> out, Global<const uint16_t> a_values,
                 Global<const uint32_t> a_registers, Global<const uint16_t> b_values,
                 fovea::OperandImage a_image, fovea::OperandImage b_image, bool accumulate) {
  const int t = static_cast<int>(threadIdx.x);
  const Shared<uint16_t> a_tile = dynamic_shared<uint16_t>(),
                         b_tile = dynamic_shared<uint16_t>(kRoomOfA);
  for (int i = t; i < a_image.bytes / 2; i += kGroup) a_tile[i] = a_values[i];
  for (int i = t; i < b_image.bytes / 2; i += kGroup) b_tile[i] = b_values[i];
  fence_async();
  sync_block();
  float d[N / 2];
  FOVEA_UNROLL
  for (int i = 0; i < N / 2; ++i) d[i] = out[t * (N / 2) + i];
  const Descriptor b = operand<B>(b_tile, b_image);
  keep(d);
  wgmma_fence();
  FOVEA_UNROLL
  for (int k = 0; k < 2; ++k) {
    if constexpr (kRegisters) {
      uint32_t r[4];
      FOVEA_UNROLL
      for (int i = 0; i < 4; ++i) r[i] = a_registers[(k * kGroup + t) * 4 + i];
      wgmma<N, B>(d, r, b + k * b_image.next_k, accumulate || k > 0);
    } else {
      const Descriptor a = operand<A>(a_tile, a_image);
      wgmma<N, A, B>(d, a + k * a_image.next_k, b + k * b_image.next_k, accumulate || k > 0);
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
  keep(d);
  FOVEA_UNROLL
  for (int i = 0; i < N / 2; ++i) out[t * (N / 2) + i] = d[i];
}

// ---- copies -------------------------------------------------------------------------------------

__global__ void __launch_bounds__(kGroup, 1)
    tile_kernel(Global<uint8_t> image, const __grid_constant__ TensorMap in,
                const __grid_constant__ TensorMap out, fovea::Coordinates from,
                fovea::Coordinates to, int rank, int bytes, bool add) {
  FOVEA_SHARED(Barrier, full, 1);
  const Shared<uint8_t> tile = dynamic_shared<uint8_t>();
  const Shared<float> floats = dynamic_shared<float>();
  const int t = static_cast<int>(threadIdx.x);
  if (t == 0) {
    prefetch_map(in);
    barrier_init(full, 1);
    fence_barrier_init();
    barrier_arrive_expect(full, bytes);
    const int* x = from.x;
    if (rank == 1) load_tile(tile, in, full, x[0]);
    if (rank == 2) load_tile(tile, in, full, x[0], x[1]);
    if (rank == 3) load_tile(tile, in, full, x[0], x[1], x[2]);
    if (rank == 4) load_tile(tile, in, full, x[0], x[1], x[2], x[3]);
    if (rank == 5) load_tile(tile, in, full, x[0], x[1], x[2], x[3], x[4]);
  }
  sync_block();
  barrier_wait(full, 0);
  for (int i = t; i < bytes; i += kGroup) {
    const uint8_t byte = tile[i];
    image[i] = byte;
  }
  if (t == 0) {
    const int* x = to.x;
    if (add) {
      if (rank == 1) add_tile(out, floats, x[0]);
      if (rank == 2) add_tile(out, floats, x[0], x[1]);
      if (rank == 3) add_tile(out, floats, x[0], x[1], x[2]);
      if (rank == 4) add_tile(out, floats, x[0], x[1], x[2], x[3]);
      if (rank == 5) add_tile(out, floats, x[0], x[1], x[2], x[3], x[4]);
    } else {
      if (rank == 1) store_tile(out, tile, x[0]);
      if (rank == 2) store_tile(out, tile, x[0], x[1]);
      if (rank == 3) store_tile(out, tile, x[0], x[1], x[2]);
      if (rank == 4) store_tile(out, tile, x[0], x[1], x[2], x[3]);
      if (rank == 5) store_tile(out, tile, x[0], x[1], x[2], x[3], x[4]);
    }
    commit_bulk();
    wait_bulk<0>();
  }
}

__global__ void __launch_bounds__(kGroup)
    bulk_kernel(Global<float> out, Global<float> copy, Global<const float> in, int bytes) {
  FOVEA_SHARED(Barrier, full, 1);
  const Shared<float> room = dynamic_shared<float>();
  if (threadIdx.x == 0) {
    barrier_init(full, 1);
    fence_barrier_init();
    barrier_arrive_expect(full, bytes);
    load_bulk(room, in, bytes, full);
    barrier_wait(full, 0);
    add_bulk(out, room, bytes);
    commit_bulk();
    if (blockIdx.x == 0) store_bulk(copy, room, bytes);
    commit_bulk();
    wait_bulk_read<1>();
    wait_bulk_read<0>();
  }
}

// Warp 3 brings, the others add.
__global__ void __launch_bounds__(kGroup)
    ring_kernel(Global<float> out, Global<const float> in, int steps, int stages) {
  constexpr int kColumns = 96, kMost = 4;
  FOVEA_SHARED(Barrier, full, kMost);
  FOVEA_SHARED(Barrier, empty, kMost);
  FOVEA_SHARED(float, room, kMost* kColumns);
  const int t = static_cast<int>(threadIdx.x), lane = t % kWarp;
  if (t == 0) {
    for (int s = 0; s < stages; ++s) {
      barrier_init(full + s, 1);
      barrier_init(empty + s, 3);
    }
    fence_barrier_init();
  }
  sync_block();
  RingPlace at;
  if (t >= kColumns) {
    if (lane == 0) {
      for (int step = 0; step < steps; ++step, at.next(stages)) {
        barrier_wait(empty + at.stage, at.phase ^ 1u);
        barrier_arrive_expect(full + at.stage, kColumns * 4);
        load_bulk(room + at.stage * kColumns, in + step * kColumns, kColumns * 4, full + at.stage);
      }
    }
  } else {
    float sum = 0.0f;
    for (int step = 0; step < steps; ++step, at.next(stages)) {
      barrier_wait(full + at.stage, at.phase);
      sum += room[at.stage * kColumns + t];
      sync_warp();
      if (lane == 0) barrier_arrive(empty + at.stage);
    }
    out[t] = sum;
  }
}

__global__ void __launch_bounds__(2 * kGroup, 1) elect_kernel(Global<int> out) {
  if (threadIdx.x < kGroup) {
    decrease_registers<40>();
    const unsigned elected = ballot(elect_lane());
    int count = 0;
    for (int i = 0; i < kWarp; ++i) count += static_cast<int>(elected >> i & 1u);
    if (threadIdx.x == 0) out[0] = count;
  } else {
    increase_registers<232>();
  }
}

}  // namespace

// ---- launches -----------------------------------------------------------------------------------

void conform_wgmma(float* d, const fovea::OperandImage& a, const uint32_t* a_registers,
                   const fovea::OperandImage& b, int n, bool accumulate, Stream stream) {
  const auto go = [&]<int N, Major A, Major B, bool kRegisters>() {
    launch<wgmma_kernel<N, A, B, kRegisters>>(1, kGroup, static_cast<size_t>(kRoomOfA + b.bytes),
                                              stream, d, a.values, a_registers, b.values, a, b,
                                              accumulate);
  };
  if (a_registers != nullptr && b.mn_major)
    go.template operator()<64, Major::k, Major::mn, true>();
  else if (a_registers != nullptr)
    go.template operator()<64, Major::k, Major::k, true>();
  else if (a.mn_major && b.mn_major)
    go.template operator()<64, Major::mn, Major::mn, false>();
  else if (a.mn_major)
    go.template operator()<64, Major::mn, Major::k, false>();
  else if (b.mn_major)
    go.template operator()<64, Major::k, Major::mn, false>();
  else if (n == 32)
    go.template operator()<32, Major::k, Major::k, false>();
  else if (n == 64)
    go.template operator()<64, Major::k, Major::k, false>();
  else if (n == 80)
    go.template operator()<80, Major::k, Major::k, false>();
  else if (n == 176)
    go.template operator()<176, Major::k, Major::k, false>();
  else
    go.template operator()<256, Major::k, Major::k, false>();
}
void conform_tile(uint8_t* image, int bytes, const fovea::TensorMap& in,
                  const fovea::Coordinates& from, const fovea::TensorMap& out,
                  const fovea::Coordinates& to, int rank, bool add, Stream stream) {
  launch<tile_kernel>(1, kGroup, static_cast<size_t>(bytes), stream, image, in, out, from, to, rank,
                      bytes, add);
}
void conform_bulk(float* out, float* copy, const float* in, int n, int blocks, Stream stream) {
  launch<bulk_kernel>(blocks, kGroup, static_cast<size_t>(n) * 4, stream, out, copy, in, n * 4);
}
void conform_ring(float* out, const float* in, int steps, int stages, Stream stream) {
  launch<ring_kernel>(1, kGroup, 0, stream, out, in, steps, stages);
}
void conform_elect(int* out, Stream stream) { launch<elect_kernel>(1, 2 * kGroup, 0, stream, out); }

}  // namespace FOVEA_GPU
