// SPDX-License-Identifier: Apache-2.0
#pragma once
// Backward in bf16 on tensor cores, f32 sums. A block owns 64 keys (dk, dv) or 64 queries (dq), 16
// a warp, and walks the tiles of the others (fma_backward.cuh has the equations and names): scores
// and their gradients have owners as rows, so that in registers they already are the left operand
// of what is accumulated. Heads wider than 128 are accumulated by one block each 128 columns.
//
// Cost  14 N M D FLOP a head, causal halves it (24 past 128 columns). Limit: tensor cores.
// Bytes owners' rows once, the others' once an owner tile, from L2.
// Shared memory: owners, two stages of the others, two bands of scores a warp: 84 KiB at kD = 128.
// Determinism  bitwise: no atomics, each sum belongs to one thread.

#include "attention/score/cuda/exact.cuh"
#include "attention/score/cuda/mma.cuh"

namespace FOVEA_GPU {

template <int kD, bool kKeys>
struct MmaBackward {
  static constexpr int kOwners = 64,
                       kPartners = kD <= 64    ? 64
                                   : kD <= 128 ? 32
                                               : 16,
                       kSum = kD > 128 ? 128 : kD, kSlices = kD / kSum;
  using XTile = MmaTile<kOwners, kD>;
  using YTile = MmaTile<kPartners, kD>;
  using Scores = Band<kPartners>;
  static constexpr size_t kRoom = (2 * XTile::kValues + 4 * YTile::kValues) * sizeof(bf16),
                          kBytes = kRoom + 4 * 2 * Scores::kValues * sizeof(float);
};

// What a weight and its gradient need of a query: the reference (online rules; infinite for a row
// that saw nothing, whose weights are 0), or the normaliser's inverse.
template <class Rule>
__device__ inline float packed_statistic(float lse) {
  const Statistic s = statistic_of<Rule>(lse);
  if constexpr (Rule::kOnline) return s.empty ? INFINITY : s.reference;
  return s.empty ? 0.0f : s.inverse;
}
struct WeightPair {
  float p, ds;
};
template <class Rule>
__device__ inline WeightPair weights_of(const Rule& rule, float s, float dp, float statistic,
                                        float delta) {
  const float w = weight_of(rule, s, statistic), slope = derivative_of(rule, s, w);
  if constexpr (Rule::kOnline) return {w, slope * (dp - delta)};
  return {w * statistic, slope * statistic * (dp - delta)};
}

// acc += x w: x [16, kPartners] in registers, w's columns from column0 on; d columns in all.
template <typename Tile_, int kPartners, int kSum>
__device__ inline void add_mma(float (&acc)[kSum / 8][4], const float (&x)[kPartners / 8][4],
                               Shared<bf16> w, int column0, int d) {
  FOVEA_UNROLL
  for (int n = 0; n < kPartners / 16; ++n) {
    uint32_t left[4];
    pack_a(left, x[2 * n], x[2 * n + 1]);
    FOVEA_UNROLL
    for (int c = 0; c < kSum / 16; ++c) {
      if (column0 + c * 16 >= d) break;
      uint32_t right[2][2];
      load_b_rows<Tile_>(right, w, 16 * n, column0 / 16 + c);
      mma_bf16(acc[2 * c], left, right[0]);
      mma_bf16(acc[2 * c + 1], left, right[1]);
    }
  }
}
// s = x y^T over d columns; x from row0 on.
template <typename XTile, typename YTile, int kPartners, int kD>
__device__ inline void multiply_mma(float (&s)[kPartners / 8][4], Shared<bf16> x, int row0,
                                    Shared<bf16> y, int d) {
  FOVEA_UNROLL
  for (int n = 0; n < kPartners / 8; ++n) {
    FOVEA_UNROLL
    for (int e = 0; e < 4; ++e) s[n][e] = 0.0f;
  }
  FOVEA_UNROLL_4
  for (int k = 0; k < kD / 16; ++k) {
    if (k * 16 >= d) break;
    uint32_t left[4];
    load_a<XTile>(left, x, row0, k);
    FOVEA_UNROLL
    for (int n = 0; n < kPartners / 16; ++n) {
      uint32_t right[2][2];
      load_b<YTile>(right, y, 16 * n, k);
      mma_bf16(s[2 * n], left, right[0]);
      mma_bf16(s[2 * n + 1], left, right[1]);
    }
  }
}

template <class Rule, int kD, bool kKeys>
__global__ void __launch_bounds__(kMmaThreads, 1)
    mma_backward_kernel(Rule rule, Arguments<bf16> a) {
  using F = MmaBackward<kD, kKeys>;
  using XTile = typename F::XTile;
  using YTile = typename F::YTile;
  using Scores = typename F::Scores;
  constexpr int kT = F::kOwners, kP = F::kPartners, kSum = F::kSum;
  const int lane = static_cast<int>(threadIdx.x) % kWarp,
            warp = static_cast<int>(threadIdx.x) / kWarp, row0 = warp * 16;
  const Shared<bf16> x1 = dynamic_shared<bf16>(), x2 = x1 + XTile::kValues, y = x2 + XTile::kValues;
  const Shared<float> s_room = dynamic_shared<float>(F::kRoom) + warp * 2 * Scores::kValues,
                      dp_room = s_room + Scores::kValues;
  FOVEA_SHARED(float, statistics, 4 * kP);  // [stage, {statistic, delta}, partner]
  const int heads = kKeys ? a.Hkv : a.H, owners = kKeys ? a.M : a.N, partners = kKeys ? a.N : a.M,
            tiles = (owners + kT - 1) / kT, groups = kKeys ? a.group() : 1;
  int index = static_cast<int>(blockIdx.x);
  const int column0 = index % F::kSlices * kSum;
  index /= F::kSlices;
  const int bh = index % (a.B * heads), b = bh / heads, head = bh % heads,
            tile = index / (a.B * heads), owner0 = (kKeys ? tile : tiles - 1 - tile) * kT;
  const auto copy_owners = [&](Shared<bf16> to, const Rows<const bf16>& rows, int d) {
    copy_rows<kT, kD>(to, rows.at(b, head), d, [&](int r) -> int64_t {
      return owner0 + r < owners ? (owner0 + r) * rows.row : -1;
    });
  };
  copy_owners(x1, kKeys ? a.k : a.q, a.D);
  copy_owners(x2, kKeys ? a.v : a.dout, a.Dv);
  const auto copy_partners = [&](const BackwardStep& step, int stage) {
    const int h = kKeys ? head * groups + step.g : head / a.group(), first = step.tile * kP;
    const auto copy = [&](Shared<bf16> to, const Rows<const bf16>& rows, int d) {
      copy_rows<kP, kD>(to, rows.at(b, h), d, [&](int r) -> int64_t {
        return first + r < partners ? (first + r) * rows.row : -1;
      });
    };
    copy(y + 2 * stage * YTile::kValues, kKeys ? a.q : a.k, a.D);
    copy(y + (2 * stage + 1) * YTile::kValues, kKeys ? a.dout : a.v, a.Dv);
    if (kKeys && static_cast<int>(threadIdx.x) < kP) {
      const int i = first + static_cast<int>(threadIdx.x);
      float statistic = 0.0f, delta = 0.0f;
      if (i < a.N) {
        const float lse = a.lse[a.row(b, h, i)];
        statistic = packed_statistic<Rule>(lse);
        if constexpr (Rule::kNormalised) delta = a.delta[a.row(b, h, i)];
      }
      statistics[2 * stage * kP + threadIdx.x] = statistic;
      statistics[(2 * stage + 1) * kP + threadIdx.x] = delta;
    }
  };
  float own[2] = {}, own_delta[2] = {};  // of the rows, where queries are owners
  FOVEA_UNROLL
  for (int half = 0; half < 2 && !kKeys; ++half) {
    const int64_t row = a.row(b, head, smaller(owner0 + row0 + lane / 4 + 8 * half, a.N - 1));
    const float lse = a.lse[row];
    own[half] = packed_statistic<Rule>(lse);
    if constexpr (Rule::kNormalised) own_delta[half] = a.delta[row];
  }
  float first[kSum / 8][4], second[kKeys ? kSum / 8 : 1][4];
  FOVEA_UNROLL
  for (int n = 0; n < kSum / 8; ++n) {
    FOVEA_UNROLL
    for (int e = 0; e < 4; ++e) {
      first[n][e] = 0.0f;
      if (kKeys) second[n][e] = 0.0f;
    }
  }
  const bool idle = owner0 + row0 >= owners,  // a warp without rows only copies
      slow = a.adjusts || a.drop_threshold > 0;
  BackwardStep step = next_step<kKeys>(a, b, head, owner0, kT, kP, {0, 0, Tile::skip});
  int stage = 0;
  if (step.g < groups) copy_partners(step, 0);
  commit_copies();
  while (step.g < groups) {
    const BackwardStep next =
        next_step<kKeys>(a, b, head, owner0, kT, kP, {step.g, step.tile + 1, Tile::skip});
    if (next.g < groups) copy_partners(next, stage ^ 1);
    commit_copies();
    wait_copies<1>();
    sync_block();
    if (!idle) {
      const Shared<bf16> y1 = y + 2 * stage * YTile::kValues, y2 = y1 + YTile::kValues;
      const int statistic0 = 2 * stage * kP, partner0 = step.tile * kP;
      float s[kP / 8][4], dp[kP / 8][4];
      multiply_mma<XTile, YTile, kP, kD>(s, x1, row0, y1, a.D);
      multiply_mma<XTile, YTile, kP, kD>(dp, x2, row0, y2, a.Dv);
      if (!slow && step.what == Tile::full && partner0 + kP <= partners) {
        FOVEA_UNROLL
        for (int n = 0; n < kP / 8; ++n) {
          FOVEA_UNROLL
          for (int e = 0; e < 4; ++e) {
            const int c = 8 * n + lane % 4 * 2 + (e & 1);
            float statistic = own[e >> 1], delta = own_delta[e >> 1];
            if (kKeys) {
              statistic = statistics[statistic0 + c];
              delta = statistics[statistic0 + kP + c];
            }
            const WeightPair pair =
                weights_of(rule, s[n][e] * a.factor, dp[n][e], statistic, delta);
            s[n][e] = pair.p;
            dp[n][e] = pair.ds;
          }
        }
      } else {
        Scores::put(s_room, s);
        Scores::put(dp_room, dp);
        sync_warp();
        const int h = kKeys ? head * groups + step.g : head;
        Scores::each([&](int at, int r, int c) {
          const int owner = owner0 + row0 + r, partner = partner0 + c, i = kKeys ? partner : owner,
                    j = kKeys ? owner : partner;
          float p = 0.0f, ds = 0.0f;
          if (i < a.N && j < a.M && (step.what == Tile::full || allowed(a, b, h, i, j))) {
            const int64_t row = a.row(b, h, i);
            const float lse = a.lse[row];
            float delta = 0.0f, cap = 1.0f;
            if constexpr (Rule::kNormalised) delta = a.delta[row];
            const float product = s_room[at], dropped = dp_room[at],
                        keep = a.drop_threshold > 0 ? keep_of(a, b, h, i, j) : 1.0f,
                        score = score_of<Rule>(a, b, h, i, j, product, &cap);
            if (!(score == -INFINITY)) {
              const WeightPair pair =
                  weights_of(rule, score, dropped * keep, packed_statistic<Rule>(lse), delta);
              if (!kKeys && !(a.dbias == nullptr)) a.dbias[row * a.M + j] = pair.ds;
              p = pair.p * keep;
              ds = pair.ds * cap;
            }
          }
          s_room[at] = p;
          dp_room[at] = ds;
        });
        sync_warp();
        Scores::take(s_room, s);
        Scores::take(dp_room, dp);
        sync_warp();
      }
      add_mma<YTile, kP, kSum>(first, dp, y1, column0, a.D);
      if constexpr (kKeys) add_mma<YTile, kP, kSum>(second, s, y2, column0, a.Dv);
    }
    sync_block();
    step = next;
    stage ^= 1;
  }
  wait_copies<0>();
  const Outputs<bf16>& to = kKeys ? a.dk : a.dq;
  FOVEA_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int owner = owner0 + row0 + lane / 4 + 8 * half;
    float broken = 0.0f;
    FOVEA_UNROLL
    for (int n = 0; n < kSum / 8; ++n) {
      const int d = column0 + 8 * n + lane % 4 * 2;
      if (owner >= owners) break;
      const float x = first[n][2 * half], next_x = first[n][2 * half + 1];
      if (!finite(x) || !finite(next_x)) broken = 1.0f;
      to.put_pair(b, head, owner, d, a.D, x * a.scale, next_x * a.scale);
      if constexpr (kKeys) {
        const float z = second[n][2 * half], next_z = second[n][2 * half + 1];
        if (!finite(z) || !finite(next_z)) broken = 1.0f;
        a.dv.put_pair(b, head, owner, d, a.Dv, z, next_z);
      }
    }
    broken = quad_max(broken);
    if (lane % 4 > 0 || owner >= owners) continue;
    if (broken == 0.0f) continue;
    (kKeys ? a.suspect_keys : a.suspect)[(int64_t{b} * heads + head) * owners + owner] = 1;
  }
}

template <class Rule, int kD, bool kKeys>
void mma_backward_of(const attention::ScoreCall& call, Stream stream) {
  using F = MmaBackward<kD, kKeys>;
  const int64_t tiles = ceil_div(kKeys ? call.M : call.N, F::kOwners);
  if (tiles == 0) return;
  launch<mma_backward_kernel<Rule, kD, kKeys>>(
      tiles * call.B * (kKeys ? call.Hkv : call.H) * F::kSlices, kMmaThreads, F::kBytes, stream,
      *static_cast<const Rule*>(call.rule), arguments<bf16, Rule>(call));
}
template <class Rule, int kD>
void mma_backward_both(const attention::ScoreCall& call, Stream stream) {
  mma_backward_of<Rule, kD, true>(call, stream);
  mma_backward_of<Rule, kD, false>(call, stream);
  exact_rows<Rule, bf16>(call, Exact::keys, stream);
  exact_rows<Rule, bf16>(call, Exact::dq, stream);
}

// Head dims up to 96.
template <class Rule>
void mma_backward_small(const attention::ScoreCall& call, Stream stream) {
  const int d = call.D > call.Dv ? call.D : call.Dv;
  if (d <= 32)
    mma_backward_both<Rule, 32>(call, stream);
  else if (d <= 64)
    mma_backward_both<Rule, 64>(call, stream);
  else
    mma_backward_both<Rule, 96>(call, stream);
}
// From there to 256.
template <class Rule>
void mma_backward_large(const attention::ScoreCall& call, Stream stream) {
  if (call.D <= 128 && call.Dv <= 128)
    mma_backward_both<Rule, 128>(call, stream);
  else
    mma_backward_both<Rule, 256>(call, stream);
}

}  // namespace FOVEA_GPU
