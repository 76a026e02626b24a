// SPDX-License-Identifier: Apache-2.0
// Math    c = a b^T
// Shapes  a [M, K], b [N, K], c [M, N] bf16; sums in f32.
// Cost    2 M N K FLOPs. A block reads (128 + 128) K values for 128 x 128 of c: 64 FLOPs a byte,
// and
//         keeps three stages of 32 KiB under way.
// Determinism  bitwise: one warpgroup sums an element, in the order of k.
//
// A block has three warpgroups. One thread of the first copies tiles into a ring of stages; the
// other two multiply 64 rows each, and give a stage back one step late, so that the next products
// are queued before they wait.
#include "core/cuda/conformance_sm90_test.h"
#include "core/cuda/kernel90.cuh"

namespace FOVEA_GPU {
namespace {

constexpr int kGroup = 128, kConsumers = 2;
constexpr int kRows = 128, kColumns = 128, kDepth = 64, kStages = 3;  // of a tile; 64 = the span
constexpr int kRowsOfGroup = kRows / kConsumers;
constexpr int kBytesOfA = kRows * kDepth * 2, kBytesOfB = kColumns * kDepth * 2,
              kBytesOfStage = kBytesOfA + kBytesOfB, kBytesOfC = kRows * kColumns * 2;

// The tile's boxes of 64 columns, each [kRowsOfGroup][64], of the warpgroup's rows.
__device__ inline void store_result(const float (&d)[kColumns / 2], const TensorMap& c_map,
                                    Shared<bf16> room, int consumer, int row, int column) {
  const int t = static_cast<int>(threadIdx.x) % kGroup, lane = t % kWarp;
  const int r = t / kWarp * 16 + lane % 16;  // the row whose address this lane gives
  FOVEA_UNROLL
  for (int j = 0; j < kColumns / 16; ++j) {
    uint32_t pairs[4];
    FOVEA_UNROLL
    for (int i = 0; i < 4; ++i) pairs[i] = pack(d[8 * j + 2 * i], d[8 * j + 2 * i + 1]);
    const int chunk = 2 * j + lane / 16, box = chunk / 8;
    store_matrices(room + (box * kRowsOfGroup * 64 + r * 64 + ((chunk % 8) ^ (r & 7)) * 8), pairs);
  }
  fence_async();
  sync_named(1 + consumer, kGroup);
  if (t == 0) {
    for (int box = 0; box < kColumns / 64; ++box)
      store_tile(c_map, room + box * kRowsOfGroup * 64, column + 64 * box, row);
    commit_bulk();
    wait_bulk_read<0>();
  }
}

__global__ void __launch_bounds__(kGroup*(1 + kConsumers), 1)
    gemm_kernel(const __grid_constant__ TensorMap a_map, const __grid_constant__ TensorMap b_map,
                const __grid_constant__ TensorMap c_map, int K) {
  FOVEA_SHARED(Barrier, full, kStages);
  FOVEA_SHARED(Barrier, empty, kStages);
  const int group = static_cast<int>(threadIdx.x) / kGroup;
  const int row = static_cast<int>(blockIdx.y) * kRows;
  const int column = static_cast<int>(blockIdx.x) * kColumns;
  const int steps = (K + kDepth - 1) / kDepth;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      barrier_init(full + s, 1);
      barrier_init(empty + s, kConsumers * kGroup / kWarp);
    }
    fence_barrier_init();
  }
  sync_block();
  RingPlace at;
  if (group == 0) {
    decrease_registers<40>();
    if (threadIdx.x == 0) {
      for (int step = 0; step < steps; ++step, at.next(kStages)) {
        barrier_wait(empty + at.stage, at.phase ^ 1u);
        barrier_arrive_expect(full + at.stage, kBytesOfStage);
        const size_t stage = static_cast<size_t>(at.stage) * kBytesOfStage;
        load_tile(dynamic_shared<bf16>(stage), a_map, full + at.stage, step * kDepth, row);
        load_tile(dynamic_shared<bf16>(stage + kBytesOfA), b_map, full + at.stage, step * kDepth,
                  column);
      }
    }
  } else {
    increase_registers<232>();
    const int consumer = group - 1;
    const bool one_lane = threadIdx.x % kWarp == 0;
    float d[kColumns / 2];
    int before = 0;  // the stage of the last step
    for (int step = 0; step < steps; ++step, at.next(kStages)) {
      barrier_wait(full + at.stage, at.phase);
      const size_t stage = static_cast<size_t>(at.stage) * kBytesOfStage;
      const Descriptor a = k_major(
          dynamic_shared<bf16>(stage + static_cast<size_t>(consumer) * (kBytesOfA / kConsumers)));
      const Descriptor b = k_major(dynamic_shared<bf16>(stage + kBytesOfA));
      keep(d);
      wgmma_fence();
      FOVEA_UNROLL
      for (int k = 0; k < kDepth / 16; ++k)
        wgmma<kColumns>(d, a + k * k16_bytes(Major::k), b + k * k16_bytes(Major::k),
                        step > 0 || k > 0);
      wgmma_commit();
      wgmma_wait<1>();
      if (step > 0 && one_lane) barrier_arrive(empty + before);
      before = at.stage;
    }
    wgmma_wait<0>();
    keep(d);
    store_result(d, c_map,
                 dynamic_shared<bf16>(static_cast<size_t>(kStages) * kBytesOfStage +
                                      static_cast<size_t>(consumer) * (kBytesOfC / kConsumers)),
                 consumer, row + consumer * kRowsOfGroup, column);
  }
}

}  // namespace

void gemm_sm90(uint16_t* c, const uint16_t* a, const uint16_t* b, int M, int N, int K,
               Stream stream) {
  const TensorMap a_map = tensor_map(a, Dtype::bf16, {K, M}, {K}, {kDepth, kRows}, Swizzle::b128);
  const TensorMap b_map =
      tensor_map(b, Dtype::bf16, {K, N}, {K}, {kDepth, kColumns}, Swizzle::b128);
  const TensorMap c_map =
      tensor_map(c, Dtype::bf16, {N, M}, {N}, {64, kRowsOfGroup}, Swizzle::b128);
  launch<gemm_kernel>(dim3((N + kColumns - 1) / kColumns, (M + kRows - 1) / kRows),
                      kGroup * (1 + kConsumers), size_t{kStages} * kBytesOfStage + kBytesOfC,
                      stream, a_map, b_map, c_map, K);
}

}  // namespace FOVEA_GPU
