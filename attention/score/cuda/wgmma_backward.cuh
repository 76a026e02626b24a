// SPDX-License-Identifier: Apache-2.0
#pragma once
// Backward in bf16 on Hopper, f32 sums (2407.08608 appendix B.2; 2307.08691 section 3.1.2). A block
// owns 128 keys and walks the tiles of queries that see them, through all heads of its group, each
// head's last queries first:
//   S^T = k q^T,  dP^T = v dout^T,  P = weight(S, lse),  dS = P' (dP - delta)
//   dv += P^T dout,  dk += dS^T q,  dq += dS k
//
// Warps. The first warpgroup brings and takes: warp 0 copies k, v and a ring of two stages of q,
// dout, statistics and deltas; warps 1 and 2 add a half of dq's tile each to its sums in device
// memory (cp.reduce.async.bulk); warp 3 passes on the turns of tiles that this block skips. Two
// warpgroups compute, 64 keys each: scores have keys as rows, so that P^T and dS^T are in registers
// the left operands of dv and dk, whose sums stay there too. dS^T goes through shared memory, twice
// kept, for dq: at kD = 128 (64 queries a tile) a warpgroup makes 64 columns of all queries, at
// kD = 64 (128 queries) all columns of 64 queries.
// Order. The next tile's S^T is begun before this tile's dq is handed on, and P is made while dP^T
// runs, dS while dv does.
// Cost   10 N M D FLOP a head, causal halves it; an ex2 a score.
// Limit  tensor cores, 2560 clocks a tile (either kD) of about 3000 in which shared memory is busy:
//        operands 2048, dq's f32 512, copies and dS 400.
// Shared memory 193 KiB; registers 240 a computing thread: dk and dv 128 (64 at kD = 64), scores
// and their gradients 64 (128), P 16 (32). Sums of dq and their turns: wgmma_backward_ends.cuh.
// Blocks: the heads in sections whose q, dout and sums of dq the L2 cache holds, in a section keys
// in order, so that a causal mask's longest walks come first. Determinism  With `turns` bitwise:
// blocks add to a half tile of dq in the order of their keys, and
//        wait only for blocks with lower numbers. As all walk queries from the last to the first, a
//        block comes to a tile after those it waits for. Without, dq is added in any order; dk and
//        dv are bitwise the same always.

#include <algorithm>

#include "attention/score/cuda/exact.cuh"
#include "attention/score/cuda/wgmma_backward_scores.cuh"

namespace FOVEA_GPU {

// s = x y^T over kD columns; x 64 rows, y kRows, in boxes x_box and y_box bytes apart.
template <int kD, int kRows>
__device__ inline void start_scores(float (&s)[kRows / 2], Descriptor x, int x_box, Descriptor y,
                                    int y_box) {
  wgmma_fence();
  FOVEA_UNROLL
  for (int k = 0; k < kD / 16; ++k)
    wgmma<kRows>(s, x + (k / 4 * x_box + k % 4 * k16_bytes(Major::k)),
                 y + (k / 4 * y_box + k % 4 * k16_bytes(Major::k)), k > 0);
}
// acc += left w, w of kQ rows.
template <class F>
__device__ inline void start_sum(float (&acc)[F::kD / 2], uint32_t (&left)[F::kQ / 16][4],
                                 Descriptor w) {
  FOVEA_UNROLL
  for (int k = 0; k < F::kQ / 16; ++k) keep(left[k]);
  wgmma_fence();
  FOVEA_UNROLL
  for (int k = 0; k < F::kQ / 16; ++k)
    wgmma<F::kD, Major::mn>(acc, left[k], w + k * k16_bytes(Major::mn), true);
}

template <class F, bool kGeneral, class Rule>
__device__ inline void compute(const Rule& rule, const Arguments<bf16>& a, int section, int group,
                               Shared<Barrier> keys_full, Shared<Barrier> full,
                               Shared<Barrier> empty, Shared<int> steps) {
  constexpr int kQ = F::kQ, kD = F::kD, kHalfBox = 64 * F::kSpan;  // values of 64 rows of a box
  // With P in registers beside scores and their gradients, dv runs while dS is made.
  constexpr bool kEarly = kD == 128 && !kGeneral;
  constexpr int kParts = kGeneral ? kQ / 64 : 1;  // dP's, one after the other
  const int thread = static_cast<int>(threadIdx.x) % kGroupThreads, lane = thread % kWarp,
            warp = thread / kWarp, row = 64 * group + 16 * warp + lane / 4;
  const Shared<bf16> k = dynamic_shared<bf16>(), v = dynamic_shared<bf16>(F::kKeyBytes),
                     scores = dynamic_shared<bf16>(F::kScoresAt);
  const Descriptor k_rows = k_major(k + group * kHalfBox), v_rows = k_major(v + group * kHalfBox),
                   k_columns = mn_major(k + (kD == 128 ? group * F::kKeyBox : 0), 0);
  const auto stage_of = [](int stage) {
    return dynamic_shared<bf16>(F::kStageAt) + stage * F::kQueryBytes;
  };
  float s[kQ / 2], dp[kQ / 2 / kParts], dk[kD / 2], dv[kD / 2];
  FOVEA_UNROLL
  for (int e = 0; e < kD / 2; ++e) dk[e] = dv[e] = 0.0f;
  const auto start_products = [&](const Shared<bf16>& q) {
    start_scores<kD, kQ>(s, k_rows, 2 * F::kKeyBox, k_major(q), 2 * F::kQueryBox);
  };
  barrier_wait(keys_full, 0);
  barrier_wait(full, 0);
  Step step = take_step(steps);
  bool more = step.h != kEnd;
  if (more) {
    start_products(stage_of(0));
    wgmma_commit();
    wgmma_wait<0>();
    keep(s);
    barrier_wait(keys_full + 1, 0);
    unsigned count = 0;  // tiles so far
    do {
      const int stage = static_cast<int>(count % F::kStages);
      const Shared<bf16> q = stage_of(stage), dout = q + F::kQueryBytes / 2;
      const Shared<float> statistics =
          dynamic_shared<float>(F::kStatisticsAt) + (stage * (2 * kQ) + lane % 4 * 4);
      const auto start_gradients = [&](int part) {
        start_scores<kD, kQ / kParts>(dp, v_rows, 2 * F::kKeyBox,
                                      k_major(dout + part * (kQ / kParts * F::kSpan)),
                                      2 * F::kQueryBox);
        wgmma_commit();
      };
      const int i0 = step.tile() * kQ, column = lane % 4 * 2;
      if (!kGeneral) {
        if (step.partial()) hide<F>(a, s, keys_of_block(a, section).key0 + row, i0 + column);
        start_gradients(0);
      }
      General<F> general;
      int distance = 0;
      if constexpr (kGeneral) {
        const HopperKeys keys = keys_of_block(a, section);
        general = general_of<F>(a, keys.b, step, keys.key0 + row);
        distance = distance_of(a, i0 + column) - (keys.key0 + row);
      }
      uint32_t p[kQ / 16][4], ds[kQ / 16][4];
      weigh<F, kGeneral>(rule, a, statistics, general, distance, s);
      if (kEarly) {
        FOVEA_UNROLL
        for (int n = 0; n < kQ / 4; ++n)
          operand<F>(p, n) = pack_weights<F, kGeneral>(a, general, s, n);
        start_sum<F>(dv, p, mn_major(dout, 2 * F::kQueryBox));
        wgmma_commit();
      }
      FOVEA_UNROLL
      for (int part = 0; part < kParts; ++part) {
        if (kGeneral) start_gradients(part);
        wgmma_wait<kEarly ? 1 : 0>();
        keep(dp);
        FOVEA_UNROLL
        for (int k = part * (kQ / 16 / kParts); k < (part + 1) * (kQ / 16 / kParts); ++k) {
          Vec<float, 4> statistic{};
          if constexpr (kGeneral) statistic = load<4>(statistics + 16 * k);
          const Vec<float, 4> delta = load<4>(statistics + (kQ + 16 * k));
          FOVEA_UNROLL
          for (int n = 4 * k; n < 4 * k + 4; ++n) {
            if (!kEarly) operand<F>(p, n) = pack_weights<F, kGeneral>(a, general, s, n);
            operand<F>(ds, n) = pack_gradients<F, kGeneral>(a, general, statistic, delta, distance,
                                                            s, dp, n, n - part * (kQ / 4 / kParts));
          }
        }
      }
      if (!kEarly) {
        start_sum<F>(dv, p, mn_major(dout, 2 * F::kQueryBox));
        wgmma_commit();
      }
      // dS^T [keys, queries] in boxes of 64 queries.
      const Shared<bf16> room = scores + static_cast<int>(count % 2) * (F::kScoreBytes / 2);
      const int at_scores = fresh(thread);
      FOVEA_UNROLL
      for (int n = 0; n < kQ / 16; ++n) {
        const int r = 64 * group + at_scores / kWarp * 16 + at_scores % 16,
                  chunk = 2 * n + at_scores % kWarp / 16;
        store_matrices(room + (chunk / 8 * F::kKeyBox + r * F::kSpan + ((chunk % 8) ^ (r & 7)) * 8),
                       ds[n]);
      }
      fence_async();
      start_sum<F>(dk, ds, mn_major(q, 2 * F::kQueryBox));
      wgmma_commit();
      sync_named(kScoresThere, kComputing * kGroupThreads);
      float part[kPartValues / kGroupThreads];
      {
        const Descriptor left = mn_major(room + (kD == 64 ? group * F::kKeyBox : 0), 0);
        wgmma_fence();
        FOVEA_UNROLL
        for (int n = 0; n < F::kKeys / 16; ++n)
          wgmma<64, Major::mn, Major::mn>(part, left + n * k16_bytes(Major::mn),
                                          k_columns + n * k16_bytes(Major::mn), n > 0);
        wgmma_commit();
      }
      wgmma_wait<1>();  // all but dq: what is issued next finds it under way
      keep(dv);
      if (lane == 0) barrier_arrive(empty + stage);
      ++count;
      const int next_stage = static_cast<int>(count % F::kStages);
      barrier_wait(full + next_stage, count / F::kStages % 2);
      step = take_step(steps + 2 * static_cast<int>(count % kSteps));
      more = step.h != kEnd;
      start_products(stage_of(more ? next_stage : stage));  // at the end, in vain
      wgmma_commit();
      wgmma_wait<1>();  // dq
      keep(dk);
      keep(part);
      sync_named(kPartEmpty + group, kPartThreads);
      const int mine = fresh(thread), part_row = mine / kWarp * 16 + mine % kWarp / 4;
      const Shared<float> part_room =
          dynamic_shared<float>(F::kPartsAt) + (group * kPartValues + part_row * 64 + mine % 4 * 2);
      FOVEA_UNROLL
      for (int n = 0; n < 8; ++n) {
        FOVEA_UNROLL
        for (int half = 0; half < 2; ++half)
          store(part_room + (8 * half * 64 + (n ^ (part_row & 7)) * 8),
                Vec<float, 2>{{part[4 * n + 2 * half], part[4 * n + 2 * half + 1]}});
      }
      fence_async();
      arrive_named(kPartFull + group, kPartThreads);
      wgmma_wait<0>();
      keep(s);
    } while (more);
  } else {
    barrier_wait(keys_full + 1, 0);
  }
  sync_named(kPartEmpty + group, kPartThreads);
  arrive_named(kPartFull + group, kPartThreads);
  const HopperKeys keys = keys_of_block(a, section);
  FOVEA_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int j = keys.key0 + row + 8 * half;
    if (j >= a.M) break;
    float broken = 0.0f;
    FOVEA_UNROLL
    for (int n = 0; n < kD / 8; ++n) {
      const int d = 8 * n + lane % 4 * 2, e = 4 * n + 2 * half;
      broken =
          fma(dk[e], 0.0f, fma(dk[e + 1], 0.0f, fma(dv[e], 0.0f, fma(dv[e + 1], 0.0f, broken))));
      a.dk.put_pair(keys.b, keys.hk, j, d, a.D, dk[e] * a.scale, dk[e + 1] * a.scale);
      a.dv.put_pair(keys.b, keys.hk, j, d, a.Dv, dv[e], dv[e + 1]);
    }
    if (!(broken == 0.0f)) a.suspect_keys[(int64_t{keys.b} * a.Hkv + keys.hk) * a.M + j] = 1;
  }
}

// ---- the kernel ---------------------------------------------------------------------------------

template <class Rule, int kD, bool kGeneral>
__global__ void __launch_bounds__(kHopperThreads, 1)
    wgmma_backward_kernel(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k,
                          const __grid_constant__ TensorMap v,
                          const __grid_constant__ TensorMap dout, Rule rule, Arguments<bf16> a,
                          int section) {
  using F = WgmmaBackward<kD>;
  FOVEA_SHARED(Barrier, keys_full, 2);  // k, v
  FOVEA_SHARED(Barrier, full, F::kStages);
  FOVEA_SHARED(Barrier, empty, F::kStages);
  FOVEA_SHARED(int, steps, 2 * kSteps);
  if (threadIdx.x == 0) {
    for (int n = 0; n < 2; ++n) barrier_init(keys_full + n, 1);
    for (int n = 0; n < F::kStages; ++n) {
      barrier_init(full + n, 1);
      barrier_init(empty + n, kComputing * kGroupThreads / kWarp);
    }
    fence_barrier_init();
  }
  sync_block();
  // By a shuffle, so that nvcc sees that it is the same in a warp.
  const int warp = shuffle(static_cast<int>(threadIdx.x) / kWarp, 0), group = warp / 4;
  if (group == 0) {
    decrease_registers<kGeneral ? 40 : 24>();
    const HopperKeys keys = keys_of_block(a, section);
    if (warp == 0)
      bring<F, kGeneral>(a, keys, q, k, v, dout, keys_full, full, empty, steps);
    else if (warp <= kComputing)
      take<F>(a, keys, warp - 1, steps);
    else if (kGeneral && !(a.turns == nullptr))
      pass_on<F>(a, keys);
  } else {
    increase_registers<kGeneral ? 232 : 240>();
    compute<F, kGeneral>(rule, a, section, group - 1, keys_full, full, empty, steps);
  }
}

// Heads whose q, dout and sums of dq fit in the L2 cache beside what else is there.
inline int heads_of_section(const attention::ScoreCall& c, int width) {
  constexpr int64_t kRoom = int64_t{32} << 20;
  const int64_t each = int64_t{c.H / c.Hkv} * c.N * width * (2 + 2 + 4);
  return static_cast<int>(std::clamp<int64_t>(kRoom / each, 1, int64_t{c.B} * c.Hkv));
}

template <class Rule, int kD, bool kGeneral>
void wgmma_backward_of(const attention::ScoreCall& c, int section, Stream stream) {
  using F = WgmmaBackward<kD>;
  const auto stride = [](int64_t n) { return n > 0 ? n : 8; };  // 0: of a dim of 1
  const auto map = [&](const attention::ScoreRows& r, int d, int n, int heads, int B, int rows) {
    return tensor_map(r.data, Dtype::bf16, {d, n, heads, B},
                      {stride(r.row), stride(r.head), stride(r.batch)}, {F::kSpan, rows, 1, 1},
                      Swizzle::b128);
  };
  launch<wgmma_backward_kernel<Rule, kD, kGeneral>>(
      ceil_div(c.M, F::kKeys) * c.B * c.Hkv, kHopperThreads, F::kBytes, stream,
      map(c.q, c.D, c.N, c.H, c.B, F::kQ), map(c.k, c.D, c.M, c.Hkv, c.B, F::kKeys),
      map(c.v, c.Dv, c.M, c.Hkv, c.B, F::kKeys), map(c.dout, c.Dv, c.N, c.H, c.B, F::kQ),
      *static_cast<const Rule*>(c.rule), arguments<bf16, Rule>(c), section);
}

// Calls that fits_hopper_backward.
template <class Rule, int kD>
void wgmma_backward(const attention::ScoreCall& c, Stream stream) {
  backward_start<Rule, kD>(c, stream);
  if (c.M > 0) {
    if (attention::is_plain(c))
      wgmma_backward_of<Rule, kD, false>(c, heads_of_section(c, kD), stream);
    else
      wgmma_backward_of<Rule, kD, true>(c, heads_of_section(c, kD), stream);
  }
  backward_end<Rule, kD>(c, stream);
  exact_rows<Rule, bf16>(c, Exact::keys, stream);
  exact_rows<Rule, bf16>(c, Exact::dq, stream);
}

}  // namespace FOVEA_GPU
