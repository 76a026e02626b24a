// SPDX-License-Identifier: Apache-2.0
#pragma once
// Backward in bf16 on tensor cores, f32 sums, one pass (2307.08691 section 3.1.2). A block owns a
// tile of keys, whose dk and dv stay in registers, and walks the tiles of queries that see them,
// through all heads of its group, each head's last queries first:
//   S^T = k q^T,  dP^T = v dout^T,  P = weight(S, lse),  dS = P' (dP - delta)
//   dv += P^T dout,  dk += dS^T q,  dq += dS k
// Scores and their gradients have keys as rows, so that in registers they already are the left
// operand of dv and dk; dS goes through shared memory for dq, which all blocks of a head add to in
// f32 in device memory. Past 128 columns two warps share 16 keys: each makes the scores of half
// the queries and holds half the columns of dk and dv.
//
// Tiles  128 keys (64 past 128 columns) x 64 queries (32 past 64 columns), 8 warps.
// Cost   10 N M D FLOP a head, causal halves it; an ex2 a score. Limit: shared memory, at kD = 128
//        104 reads of 16 bytes a lane (4 clocks of an SM) for 160 m16n8k16 (2 on an A100) a warp
//        and step: 77% of the tensor cores; 85% at kD = 64.
// Bytes  k, v, dk, dv once; q, dout once a tile of keys, from L2, where dq is added to as often.
// Shared memory: k, v, two stages of q and dout, dS, 2 KiB a warp: 121 KiB at kD = 128, 153 at 256.
// Registers: dk and dv, two tiles of scores; addresses are made where they are used (fresh).
// Determinism  With `turns` bitwise: blocks add to a tile of dq in the order of their keys, and a
//        block waits only for blocks with lower numbers. As all walk queries from the last to the
//        first, the block of keys t comes to a tile t steps after the first block has: under a
//        causal mask, whose block t has t steps fewer to do, all end together. Without `turns` dq
//        is added in any order; dk, dv and dbias are bitwise the same always.

#include "attention/score/cuda/exact.cuh"
#include "attention/score/cuda/mma.cuh"

namespace FOVEA_GPU {

constexpr int kBackwardWarps = 8, kBackwardThreads = kBackwardWarps * kWarp;

template <int kD>
struct MmaBackward {
  static constexpr int kSplit = kD > 128 ? 2 : 1;
  static constexpr int kKeys = 128 / kSplit, kQueries = kD > 64 ? 32 : 64;
  static constexpr int kSeen = kQueries / kSplit;  // queries of a warp's scores
  static constexpr int kSum = kD / kSplit;         // columns of a warp's dk and dv
  // A warp's dq: 16 queries and this many columns. Of 96, two warps have none.
  static constexpr int kBands = kQueries / 16,
                       kPart = (kD * kBands / kBackwardWarps + 15) / 16 * 16;
  using KeyTile = MmaTile<kKeys, kD>;
  using QueryTile = MmaTile<kQueries, kD>;
  using WeightTile = MmaTile<kKeys, kQueries>;
  static constexpr int kSlow = 256;  // scores of a warp that are changed one by one, at a time
  static constexpr int kWeights = 2 * KeyTile::kValues + 4 * QueryTile::kValues;  // before dS (P)
  static constexpr size_t kRoom = (kWeights + kSplit * WeightTile::kValues) * sizeof(bf16),
                          kBytes = kRoom + kBackwardWarps * 2 * kSlow * sizeof(float);
};

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

template <int kTiles>
__device__ inline void clear(float (&x)[kTiles][4]) {
  FOVEA_UNROLL
  for (int n = 0; n < kTiles; ++n) {
    FOVEA_UNROLL
    for (int e = 0; e < 4; ++e) x[n][e] = 0.0f;
  }
}

// s = x y^T over d columns; x from row x0 on, y from y0.
template <typename XTile, typename YTile, int kSeen, int kD>
__device__ inline void multiply_mma(float (&s)[kSeen / 8][4], Shared<bf16> x, int x0,
                                    Shared<bf16> y, int y0, int d) {
  clear(s);
  const int lane = fresh(lane_of_warp());
  FOVEA_UNROLL_BY(4)
  for (int k = 0; k < kD / 16; ++k) {
    if (k * 16 >= d) break;
    uint32_t left[4];
    load_a<XTile>(left, x, x0, k, lane);
    FOVEA_UNROLL
    for (int n = 0; n < kSeen / 16; ++n) {
      uint32_t right[2][2];
      load_b<YTile>(right, y, y0 + 16 * n, k, lane);
      mma_bf16(s[2 * n], left, right[0]);
      mma_bf16(s[2 * n + 1], left, right[1]);
    }
  }
}
// acc += left w: w's rows [row0, row0 + 16), its columns from column0 on; d columns in all.
template <typename Tile_, int kSum>
__device__ inline void add_mma(float (&acc)[kSum / 8][4], const uint32_t (&left)[4], Shared<bf16> w,
                               int row0, int column0, int d, int lane) {
  FOVEA_UNROLL
  for (int c = 0; c < kSum / 16; ++c) {
    if (column0 + c * 16 >= d) break;
    uint32_t right[2][2];
    load_b_rows<Tile_>(right, w, row0, column0 / 16 + c, lane);
    mma_bf16(acc[2 * c], left, right[0]);
    mma_bf16(acc[2 * c + 1], left, right[1]);
  }
}

// The block's keys, and a step of its walk.
struct KeyBlock {
  int b, hk, key0, key1;
};
struct QueryStep {
  int g, tile;  // head of the group, tile of queries
  Tile what;
};

// Which block of keys this is for the queries from i0 on: the number of blocks before it that add
// to their dq.
template <int kKeys, typename T>
__device__ inline int turn_of(const Arguments<T>& a, const KeyBlock& block, int i0) {
  return block.key0 / kKeys - key_limits(a, i0).first / kKeys;
}
__device__ inline void wait_turn(Global<int> turn, int mine) {
  wait_until([=] { return load_acquire(turn) == mine; });
}

// The first step from `step` on that is not skipped. In turns, this block's is passed on where
// positions, but not all masks, let the queries see its keys.
template <class Shape_, typename T>
__device__ inline QueryStep next_queries(const Arguments<T>& a, const KeyBlock& block,
                                         QueryStep step) {
  constexpr int kQ = Shape_::kQueries;
  const int tiles = (a.N + kQ - 1) / kQ;
  for (; step.g < a.group(); ++step.g, step.tile = tiles - 1) {
    const int h = block.hk * a.group() + step.g;
    for (; step.tile >= 0; --step.tile) {
      const int i0 = step.tile * kQ, i1 = smaller(i0 + kQ, a.N);
      if (key_limits(a, i1 - 1).last <= block.key0) break;  // and so it is for those before
      step.what = classify(a, block.b, h, h + 1, i0, i1, block.key0, block.key1);
      if (step.what != Tile::skip) return step;
      if (a.turns == nullptr || threadIdx.x > 0 || block.key1 <= key_limits(a, i0).first) continue;
      const Global<int> turn = a.turns + ((int64_t{block.b} * a.H + h) * tiles + step.tile);
      const int mine = turn_of<Shape_::kKeys>(a, block, i0);
      wait_turn(turn, mine);
      store_release(turn, mine + 1);
    }
  }
  return step;
}

template <class Rule, int kD>
__global__ void __launch_bounds__(kBackwardThreads, 1)
    mma_backward_kernel(Rule rule, Arguments<bf16> a) {
  using F = MmaBackward<kD>;
  using KeyTile = typename F::KeyTile;
  using QueryTile = typename F::QueryTile;
  using WeightTile = typename F::WeightTile;
  constexpr int kQ = F::kQueries, kSeen = F::kSeen, kSum = F::kSum;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, row0 = warp % (F::kKeys / 16) * 16,
            share = warp / (F::kKeys / 16);  // of queries and columns
  const Shared<bf16> k = dynamic_shared<bf16>(), v = k + KeyTile::kValues,
                     stages = v + KeyTile::kValues, ds_tile = stages + 4 * QueryTile::kValues,
                     p_tile = ds_tile + WeightTile::kValues;  // where a tile is shared
  const Shared<uint32_t> ds_words = dynamic_shared<uint32_t>(F::kWeights * sizeof(bf16)),
                         p_words = ds_words + WeightTile::kValues / 2;
  const Shared<float> s_room = dynamic_shared<float>(F::kRoom) + warp * 2 * F::kSlow,
                      dp_room = s_room + F::kSlow;
  FOVEA_SHARED(float, statistics, 4 * kQ);  // [stage, {statistic, delta}, query]
  const int bh = static_cast<int>(blockIdx.x) % (a.B * a.Hkv),
            key0 = static_cast<int>(blockIdx.x) / (a.B * a.Hkv) * F::kKeys,
            tiles = (a.N + kQ - 1) / kQ;
  const KeyBlock block{bh / a.Hkv, bh % a.Hkv, key0, smaller(key0 + F::kKeys, a.M)};
  const auto copy_keys = [&](Shared<bf16> to, const Rows<const bf16>& rows, int d) {
    copy_rows<F::kKeys, kD, kBackwardThreads>(
        to, rows.at(block.b, block.hk), d,
        [&](int r) -> int64_t { return key0 + r < a.M ? (key0 + r) * rows.row : -1; });
  };
  copy_keys(k, a.k, a.D);
  copy_keys(v, a.v, a.Dv);
  const auto copy_queries = [&](const QueryStep& step, int stage) {
    const int h = block.hk * a.group() + step.g, first = step.tile * kQ;
    const auto copy = [&](Shared<bf16> to, const Rows<const bf16>& rows, int d) {
      copy_rows<kQ, kD, kBackwardThreads>(to, rows.at(block.b, h), d, [&](int r) -> int64_t {
        return first + r < a.N ? (first + r) * rows.row : -1;
      });
    };
    copy(stages + 2 * stage * QueryTile::kValues, a.q, a.D);
    copy(stages + (2 * stage + 1) * QueryTile::kValues, a.dout, a.Dv);
    if (static_cast<int>(threadIdx.x) < kQ) {
      const int i = first + static_cast<int>(threadIdx.x);
      float statistic = Rule::kOnline ? INFINITY : 0.0f, delta = 0.0f;  // past the end: weight 0
      if (i < a.N) {
        const float lse = a.lse[a.row(block.b, h, i)];
        statistic = packed_statistic<Rule>(lse);
        if constexpr (Rule::kNormalised) delta = a.delta[a.row(block.b, h, i)];
      }
      statistics[2 * stage * kQ + threadIdx.x] = statistic;
      statistics[(2 * stage + 1) * kQ + threadIdx.x] = delta;
    }
  };
  float dk[kSum / 8][4], dv[kSum / 8][4];
  clear(dk);
  clear(dv);
  const bool idle = key0 + row0 >= a.M,  // a warp without keys helps with dq
      slow = a.adjusts || a.drop_threshold > 0;
  QueryStep step = next_queries<F>(a, block, {0, tiles - 1, Tile::skip});
  int stage = 0;
  if (step.g < a.group()) copy_queries(step, 0);
  commit_copies();
  while (step.g < a.group()) {
    const QueryStep next = next_queries<F>(a, block, {step.g, step.tile - 1, Tile::skip});
    if (next.g < a.group()) copy_queries(next, stage ^ 1);
    commit_copies();
    wait_copies<1>();
    sync_block();
    const Shared<bf16> q = stages + 2 * stage * QueryTile::kValues, dout = q + QueryTile::kValues;
    const int h = block.hk * a.group() + step.g, query0 = step.tile * kQ;
    if (!idle) {
      const int lane = fresh(lane_of_warp()), seen0 = share * kSeen,
                statistic0 = 2 * stage * kQ + seen0;
      float s[kSeen / 8][4], dp[kSeen / 8][4];
      multiply_mma<KeyTile, QueryTile, kSeen, kD>(s, k, row0, q, seen0, a.D);
      multiply_mma<KeyTile, QueryTile, kSeen, kD>(dp, v, row0, dout, seen0, a.Dv);
      if (!slow && step.what == Tile::full) {
        const bool ends = key0 + row0 + 16 > a.M;
        FOVEA_UNROLL
        for (int n = 0; n < kSeen / 8; ++n) {
          const int c = statistic0 + 8 * n + lane % 4 * 2;
          const Vec<float, 2> statistic = load<2>(statistics + c),
                              delta = load<2>(statistics + (c + kQ));
          FOVEA_UNROLL
          for (int e = 0; e < 4; ++e) {
            const WeightPair pair =
                weights_of(rule, s[n][e] * a.factor, dp[n][e], statistic[e & 1], delta[e & 1]);
            const bool none = ends && key0 + row0 + lane / 4 + 8 * (e >> 1) >= a.M;
            s[n][e] = none ? 0.0f : pair.p;
            dp[n][e] = none ? 0.0f : pair.ds;
          }
        }
      } else {  // one by one, 16 queries at a time, by way of shared memory: [query, key]
        FOVEA_UNROLL
        for (int band = 0; band < kSeen / 16; ++band) {
          const auto exchange = [&](auto&& f) {
            FOVEA_UNROLL
            for (int t = 0; t < 2; ++t) {
              FOVEA_UNROLL
              for (int e = 0; e < 4; ++e) {
                const int at = (8 * t + lane % 4 * 2 + (e & 1)) * 16 + lane / 4 + 8 * (e >> 1);
                f(at, s[2 * band + t][e], dp[2 * band + t][e]);
              }
            }
            sync_warp();
          };
          exchange([&](int at, float& x, float& dx) {
            s_room[at] = x;
            dp_room[at] = dx;
          });
          FOVEA_NO_UNROLL
          for (int at = lane; at < F::kSlow; at += kWarp) {
            const int c = 16 * band + at / 16, i = query0 + seen0 + c, j = key0 + row0 + at % 16;
            float p = 0.0f, ds = 0.0f;
            if (i < a.N && j < a.M && (step.what == Tile::full || allowed(a, block.b, h, i, j))) {
              float cap = 1.0f;
              const float product = s_room[at], dropped = dp_room[at],
                          statistic = statistics[statistic0 + c],
                          delta = statistics[statistic0 + kQ + c],
                          keep = a.drop_threshold > 0 ? keep_of(a, block.b, h, i, j) : 1.0f,
                          score = score_of<Rule>(a, block.b, h, i, j, product, &cap);
              if (!(score == -INFINITY)) {
                const WeightPair pair = weights_of(rule, score, dropped * keep, statistic, delta);
                if (!(a.dbias == nullptr)) a.dbias[a.row(block.b, h, i) * a.M + j] = pair.ds;
                p = pair.p * keep;
                ds = pair.ds * cap;
              }
            }
            s_room[at] = p;
            dp_room[at] = ds;
          }
          sync_warp();
          exchange([&](int at, float& x, float& dx) {
            x = s_room[at];
            dx = dp_room[at];
          });
        }
      }
      const auto put = [&](Shared<uint32_t> words, const float(&x)[kSeen / 8][4]) {
        FOVEA_UNROLL
        for (int n = 0; n < kSeen / 8; ++n) {
          FOVEA_UNROLL
          for (int half = 0; half < 2; ++half)
            words[WeightTile::at(row0 + lane / 4 + 8 * half, seen0 / 8 + n) / 2 + lane % 4] =
                pack(x[n][2 * half], x[n][2 * half + 1]);
        }
      };
      put(ds_words, dp);
      if constexpr (F::kSplit > 1) {
        put(p_words, s);
      } else {
        FOVEA_UNROLL
        for (int n = 0; n < kQ / 16; ++n) {
          uint32_t left[4];
          pack_a(left, s[2 * n], s[2 * n + 1]);
          add_mma<QueryTile, kSum>(dv, left, dout, 16 * n, 0, a.Dv, lane);
          pack_a(left, dp[2 * n], dp[2 * n + 1]);
          add_mma<QueryTile, kSum>(dk, left, q, 16 * n, 0, a.D, lane);
        }
      }
    }
    sync_block();
    if (F::kSplit > 1 && !idle) {
      const int lane = fresh(lane_of_warp());
      FOVEA_UNROLL
      for (int n = 0; n < kQ / 16; ++n) {
        uint32_t left[4];
        load_a<WeightTile>(left, p_tile, row0, n, lane);
        add_mma<QueryTile, kSum>(dv, left, dout, 16 * n, share * kSum, a.Dv, lane);
        load_a<WeightTile>(left, ds_tile, row0, n, lane);
        add_mma<QueryTile, kSum>(dk, left, q, 16 * n, share * kSum, a.D, lane);
      }
    }
    {
      const int band = warp % F::kBands, column0 = warp / F::kBands * F::kPart;
      const int lane = fresh(lane_of_warp());
      float part[F::kPart / 8][4];
      clear(part);
      FOVEA_UNROLL_BY(4)
      for (int n = 0; n < F::kKeys / 16; ++n) {
        if (key0 + 16 * n >= a.M) break;
        uint32_t left[4];  // dS, turned
        load_matrices_transposed(left, ds_tile + WeightTile::at(16 * n + lane % 8 + lane / 16 * 8,
                                                                2 * band + lane / 8 % 2));
        add_mma<KeyTile, F::kPart>(part, left, k, 16 * n, column0, a.D, lane);
      }
      const Global<int> turn = a.turns + ((int64_t{block.b} * a.H + h) * tiles + step.tile);
      const int mine = turn_of<F::kKeys>(a, block, query0);
      if (!(a.turns == nullptr)) {
        if (threadIdx.x == 0) wait_turn(turn, mine);
        sync_block();
      }
      FOVEA_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int i = query0 + 16 * band + lane / 4 + 8 * half;
        if (i >= a.N) break;
        const Global<float> dq = a.dq.wide + (block.b * a.dq.batch + h * a.dq.head + i * a.dq.row);
        float broken = 0.0f;  // NaN once a value was not finite
        FOVEA_UNROLL
        for (int n = 0; n < F::kPart / 8; ++n) {
          FOVEA_UNROLL
          for (int e = 0; e < 2; ++e) {
            const int d = column0 + 8 * n + lane % 4 * 2 + e;
            const float x = part[n][2 * half + e] * a.scale;
            broken = fma(x, 0.0f, broken);
            if (d < a.D) atomic_add(dq + d, x);
          }
        }
        if (!(broken == 0.0f)) a.suspect[a.row(block.b, h, i)] = 1;
      }
      if (!(a.turns == nullptr)) fence_device();
      sync_block();
      if (!(a.turns == nullptr) && threadIdx.x == 0) store_release(turn, mine + 1);
    }
    step = next;
    stage ^= 1;
  }
  wait_copies<0>();
  const int lane = lane_of_warp();
  FOVEA_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int j = key0 + row0 + lane / 4 + 8 * half;
    if (j >= a.M) break;
    float broken = 0.0f;
    FOVEA_UNROLL
    for (int n = 0; n < kSum / 8; ++n) {
      const int d = share * kSum + 8 * n + lane % 4 * 2;
      const float x = dk[n][2 * half], next_x = dk[n][2 * half + 1], y = dv[n][2 * half],
                  next_y = dv[n][2 * half + 1];
      broken = fma(x, 0.0f, fma(next_x, 0.0f, fma(y, 0.0f, fma(next_y, 0.0f, broken))));
      a.dk.put_pair(block.b, block.hk, j, d, a.D, x * a.scale, next_x * a.scale);
      a.dv.put_pair(block.b, block.hk, j, d, a.Dv, y, next_y);
    }
    if (!(broken == 0.0f)) a.suspect_keys[(int64_t{block.b} * a.Hkv + block.hk) * a.M + j] = 1;
  }
}

template <class Rule, int kD>
void mma_backward_of(const attention::ScoreCall& call, Stream stream) {
  using F = MmaBackward<kD>;
  const int64_t tiles = ceil_div(call.M, F::kKeys);
  if (tiles == 0) return;
  launch<mma_backward_kernel<Rule, kD>>(tiles * call.B * call.Hkv, kBackwardThreads, F::kBytes,
                                        stream, *static_cast<const Rule*>(call.rule),
                                        arguments<bf16, Rule>(call));
}
template <class Rule>
void mma_backward_end(const attention::ScoreCall& call, Stream stream) {
  exact_rows<Rule, bf16>(call, Exact::keys, stream);
  exact_rows<Rule, bf16>(call, Exact::dq, stream);
}

// Head dims up to 96.
template <class Rule>
void mma_backward_small(const attention::ScoreCall& call, Stream stream) {
  const int d = call.D > call.Dv ? call.D : call.Dv;
  if (d <= 32)
    mma_backward_of<Rule, 32>(call, stream);
  else if (d <= 64)
    mma_backward_of<Rule, 64>(call, stream);
  else
    mma_backward_of<Rule, 96>(call, stream);
  mma_backward_end<Rule>(call, stream);
}
// From there on.
template <class Rule>
void mma_backward_large(const attention::ScoreCall& call, Stream stream) {
  if (is_wide(call)) return wide_backward<Rule, bf16>(call, stream);
  if (call.D <= 128 && call.Dv <= 128)
    mma_backward_of<Rule, 128>(call, stream);
  else
    mma_backward_of<Rule, 256>(call, stream);
  mma_backward_end<Rule>(call, stream);
}

}  // namespace FOVEA_GPU
