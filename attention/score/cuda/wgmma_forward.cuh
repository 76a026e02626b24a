// SPDX-License-Identifier: Apache-2.0
#pragma once
// Forward in bf16 on Hopper's tensor cores (2407.08608): wgmma, TMA, a producer and consumers.
//   S = q k^T,  m' = max(m, rowmax S),  P = weight(S, m'),  l = l exp(m - m') + rowsum P,
//   out = out exp(m - m') + P v
//
// Work     a row tile of one (b, h): 64 queries a consumer, walked over its tiles of keys from the
//          last to the first. A block takes one piece of work, or one after another.
// Producer one warp. It picks the work, skips tiles that the mask hides, and copies q, k and v into
//          rings of stages.
// Consumer a warpgroup: scores, weights and sums in registers. While the tensor cores do P v of a
//          tile and S of the next, it makes that tile's weights: S(j+1) and P(j) v(j) are started
//          together, S(j+1) becomes weights while P(j) v(j) runs. With kTurns consumers start
//          their products in turns, so that one's weights hide behind another's products.
// Cost     4 N M D FLOP a head, causal halves it; limits: tensor cores, an ex2 a score (16 a clock
//          and SM against 4096 / 4D scores: half the time at D = 128, all of it at D = 64).
// Bytes    q, out once; k, v once a row tile, from L2: heads are taken in sections that fit there.
// Determinism  bitwise: a row belongs to one thread quad, keys are added in order.

#include "attention/score/cuda/exact.cuh"
#include "attention/score/cuda/wgmma_scores.cuh"

namespace FOVEA_GPU {

// kPlain: a mask of positions alone (causal, window, prefix), scores as products give them, no
// dropout; otherwise everything.
template <int D, int Keys, int Consumers, int Stages, bool Turns, bool Plain>
struct ForwardTiles {
  static constexpr int kD = D, kKeys = Keys, kConsumers = Consumers, kStages = Stages;
  static constexpr bool kTurns = Turns, kPlain = Plain;
  static constexpr int kRows = kGroupRows * kConsumers, kThreads = kGroupThreads * (1 + kConsumers);
  // setmaxnreg: the producer's, a consumer's; together what a launch gives, 504 or 512.
  static constexpr int kProducerRegisters = kConsumers == 2 ? (kPlain ? 24 : 56) : 32,
                       kConsumerRegisters = kConsumers == 2 ? (kPlain ? 240 : 224) : 160;
  using Q = BoxTile<kGroupRows, kD>;  // of a consumer
  using K = BoxTile<kKeys, kD>;
  // Shared memory: q, stages of k, stages of v, and rows on their way out, which take q's place
  // where there is no other.
  static constexpr int kMostBytes = 226 << 10, kTileBytes = kConsumers * Q::kBytes,
                       kInputBytes = kTileBytes + 2 * kStages * K::kBytes;
  static constexpr bool kOwnRoom = kInputBytes + kTileBytes <= kMostBytes;
  static constexpr int kBytes = kInputBytes + (kOwnRoom ? kTileBytes : 0);
  static_assert(kBytes <= kMostBytes && kKeys % 16 == 0 && kKeys <= 256);
  static_assert(kPlain || kKeys <= 128, "a row's keys in a thread are bits of one word");
};

// Pieces of work: a section of heads after another; in it row tiles, the last first (under a causal
// mask they see most), each of all the section's heads.
struct ForwardList {
  int count, section;  // pieces; heads
  Global<int> taken;   // 0 before: pieces past the grid's first, in the order blocks ask; or null
};
struct ForwardWork {
  int b, h, row0;
  int tile0, tile1;  // key tiles that positions leave to some row
};
template <class Z>
__device__ inline ForwardWork work_of(const Arguments<bf16>& a, const ForwardList& list,
                                      int index) {
  const int tiles = (a.N + Z::kRows - 1) / Z::kRows, size = list.section * tiles,
            first = index / size * list.section, heads = smaller(list.section, a.B * a.H - first),
            at = index % size, bh = first + at % heads;
  ForwardWork work;
  work.b = bh / a.H;
  work.h = bh % a.H;
  work.row0 = (tiles - 1 - at / heads) * Z::kRows;
  work.tile0 = key_limits(a, work.row0).first / Z::kKeys;
  work.tile1 = larger(
      work.tile0,
      (key_limits(a, smaller(work.row0 + Z::kRows, a.N) - 1).last + Z::kKeys - 1) / Z::kKeys);
  return work;
}

// Named barriers: of one consumer, and the turn of one consumer.
constexpr int kGroupBarrier = 1, kTurnBarrier = 5;
constexpr int kNoMore = -1;  // posted instead of a piece of work or a tile

// What producer and consumers share.
struct ForwardRoom {
  Shared<Barrier> q_full, q_empty, k_full, k_empty, v_full, v_empty;
  Shared<int> posts;   // the piece of work; of each stage, unless kPlain: 2 tile + whole
  Shared<int> broken;  // of a consumer's warp: rows with a NaN or an infinity
  Shared<bf16> q, k, v, out;
};

template <class Z>
__device__ inline void produce(const Arguments<bf16>& a, const ForwardList& list,
                               const ForwardRoom& room, const TensorMap& q_map,
                               const TensorMap& k_map, const TensorMap& v_map) {
  const bool leader = threadIdx.x % kWarp == 0;
  RingPlace k_at, v_at;
  unsigned q_phase = 0;
  const auto load_values = [&](const ForwardWork& work, int tile) {
    barrier_wait(room.v_empty + v_at.stage, v_at.phase ^ 1u);
    barrier_arrive_expect(room.v_full + v_at.stage, Z::K::kBytes);
    Z::K::load(room.v + v_at.stage * Z::K::kValues, v_map, room.v_full + v_at.stage,
               tile * Z::kKeys, work.h / a.group(), work.b);
    v_at.next(Z::kStages);
  };
  for (int index = static_cast<int>(blockIdx.x); index < list.count;) {
    int next = index + static_cast<int>(gridDim.x);
    if (!(list.taken == nullptr)) {
      if (leader) next = static_cast<int>(gridDim.x) + atomic_add(list.taken, 1);
      next = shuffle(next, 0);
    }
    const ForwardWork work = work_of<Z>(a, list, index);
    if (leader) {
      barrier_wait(room.q_empty, q_phase ^ 1u);
      room.posts[0] = index;
      barrier_arrive_expect(room.q_full, Z::kTileBytes);
      for (int c = 0; c < Z::kConsumers; ++c)
        Z::Q::load(room.q + c * Z::Q::kValues, q_map, room.q_full, work.row0 + c * kGroupRows,
                   work.h, work.b);
    }
    q_phase ^= 1u;
    // In the order in which consumers want them: k of a tile, v of the one before.
    int before = kNoMore;
    for (int tile = work.tile1 - 1; tile >= work.tile0; --tile) {
      Tile what = Tile::full;
      if constexpr (!Z::kPlain) {
        const int j0 = tile * Z::kKeys;
        what = classify<false>(a, work.b, work.h, work.h + 1, work.row0,
                               smaller(work.row0 + Z::kRows, a.N), j0, smaller(j0 + Z::kKeys, a.M));
        if (what == Tile::skip) continue;
        if (j0 + Z::kKeys > a.M) what = Tile::partial;
      }
      if (!leader) continue;
      barrier_wait(room.k_empty + k_at.stage, k_at.phase ^ 1u);
      if constexpr (!Z::kPlain)
        room.posts[1 + k_at.stage] = 2 * tile + (what == Tile::full ? 1 : 0);
      barrier_arrive_expect(room.k_full + k_at.stage, Z::K::kBytes);
      Z::K::load(room.k + k_at.stage * Z::K::kValues, k_map, room.k_full + k_at.stage,
                 tile * Z::kKeys, work.h / a.group(), work.b);
      k_at.next(Z::kStages);
      if (before != kNoMore) load_values(work, before);
      before = tile;
    }
    if (leader) {
      if constexpr (!Z::kPlain) {
        barrier_wait(room.k_empty + k_at.stage, k_at.phase ^ 1u);
        room.posts[1 + k_at.stage] = kNoMore;
        barrier_arrive(room.k_full + k_at.stage);
        k_at.next(Z::kStages);
      }
      if (before != kNoMore) load_values(work, before);
    }
    index = next;
  }
  if (leader) {
    barrier_wait(room.q_empty, q_phase ^ 1u);
    room.posts[0] = kNoMore;
    barrier_arrive(room.q_full);
  }
}

// A piece of work's rows, one consumer's, on their way out. Those that a NaN or an infinity reached
// are made again, exactly (exact.cuh).
template <class Rule, class Z>
__device__ inline void finish_rows(const Rule& rule, const Arguments<bf16>& a,
                                   const ForwardWork& work, const ForwardRoom& room, int consumer,
                                   int i, const RowState& state, float (&o)[Z::kD / 2],
                                   const TensorMap& out_map) {
  const int t = static_cast<int>(threadIdx.x) % kGroupThreads, first_warp = consumer * 4;
  const Shared<bf16> out = room.out + consumer * Z::Q::kValues;
  unsigned broken[2];  // bit 4 r: row r of the warp's first or last 8
  FOVEA_UNROLL
  for (int half = 0; half < 2; ++half) {
    const RowEnd end = finish_row<Rule>(state.m[half], quad_sum(state.l[half]));
    float worst = 0.0f;
    FOVEA_UNROLL
    for (int n = 0; n < Z::kD / 4; ++n) {
      float& x = o[n / 2 * 4 + 2 * half + n % 2];
      x *= end.factor;
      worst = finite(x) ? worst : 1.0f;
    }
    const int row = i + 8 * half;
    if (t % 4 == 0 && row < a.N) a.lse[a.row(work.b, work.h, row)] = end.statistic;
    broken[half] = ballot(quad_max(worst) > 0.0f && row < a.N);
  }
  if (t == 0) wait_bulk_read<0>();  // the room's last rows have left
  sync_named(kGroupBarrier + consumer, kGroupThreads);
  if (t % kWarp == 0) room.broken[first_warp + t / kWarp] = static_cast<int>(broken[0] | broken[1]);
  put_rows<Z::kD>(out, o);
  fence_async();
  sync_named(kGroupBarrier + consumer, kGroupThreads);
  if (t == 0) {
    Z::Q::store(out_map, out, work.row0 + consumer * kGroupRows, work.h, work.b);
    commit_bulk();
  }
  const Vec<int, 4> marks = load<4>(room.broken + first_warp);
  if ((marks[0] | marks[1] | marks[2] | marks[3]) == 0) return;
  if (t == 0) wait_bulk<0>();
  sync_named(kGroupBarrier + consumer, kGroupThreads);
  FOVEA_NO_UNROLL
  for (int r = 0; r < 16; ++r) {
    if (((r < 8 ? broken[0] : broken[1]) >> r % 8 * 4 & 1u) == 0) continue;
    exact_row<Rule>(rule, a, Exact::out, fresh(work.b), fresh(work.h), i - t % kWarp / 4 + r, 0);
  }
}

template <class Rule, class Z>
__device__ inline void consume(const Rule& rule, const Arguments<bf16>& a, const ForwardList& list,
                               const ForwardRoom& room, int consumer, const TensorMap& out_map) {
  constexpr int kKeys = Z::kKeys, kD = Z::kD;
  const int t = static_cast<int>(threadIdx.x) % kGroupThreads;
  const bool one_lane = t % kWarp == 0;
  const Shared<bf16> q = room.q + consumer * Z::Q::kValues;
  constexpr int kTurnThreads = 2 * kGroupThreads;
  const int turn = kTurnBarrier + consumer,
            next_turn = kTurnBarrier + (consumer + 1) % Z::kConsumers;
  if constexpr (Z::kTurns) {
    if (consumer == 0) arrive_named(turn, kTurnThreads);
  }
  RingPlace k_at, v_at;
  unsigned q_phase = 0;
  for (;; q_phase ^= 1u) {
    barrier_wait(room.q_full, q_phase);
    const int index = room.posts[0];
    if (index == kNoMore) break;
    const ForwardWork work = work_of<Z>(a, list, index);
    const int i0 = work.row0 + consumer * kGroupRows, i = i0 + t / kWarp * 16 + t % kWarp / 4;
    // Keys that every row of the consumer sees, by position.
    const int whole0 = key_limits(a, smaller(i0 + kGroupRows, a.N) - 1).first,
              whole1 = key_limits(a, smaller(i0, a.N - 1)).last;
    RowState state;
    float s[kKeys / 2], o[kD / 2];
    uint32_t p[kKeys / 16][4];
    FOVEA_UNROLL
    for (int half = 0; half < 2; ++half) {
      state.m[half] = -INFINITY;
      state.l[half] = 0.0f;
      if (!(a.sink == nullptr)) {  // one key more
        const float sink = a.sink[work.h];
        state.m[half] = sink * kLog2e;
        state.l[half] = t % 4 == 0 ? 1.0f : 0.0f;
      }
    }
    FOVEA_UNROLL
    for (int n = 0; n < kD / 2; ++n) o[n] = 0.0f;
    // The next tile of keys, which is there; whether there is one.
    int tile = work.tile1;
    bool whole = false;
    const auto next_tile = [&] {
      if constexpr (Z::kPlain) {
        if (--tile < work.tile0) return false;
        barrier_wait(room.k_full + k_at.stage, k_at.phase);
        whole = tile * kKeys >= whole0 && (tile + 1) * kKeys <= whole1;
        return true;
      } else {
        barrier_wait(room.k_full + k_at.stage, k_at.phase);
        const int post = room.posts[1 + k_at.stage];
        tile = post >> 1;
        whole = (post & 1) != 0;
        if (post != kNoMore) return true;
        sync_warp();
        if (one_lane) barrier_arrive(room.k_empty + k_at.stage);
        k_at.next(Z::kStages);
        return false;
      }
    };
    const auto give_back = [&](Shared<Barrier> empty, RingPlace& at) {
      if (one_lane) barrier_arrive(empty + at.stage);
      at.next(Z::kStages);
    };
    const auto weights = [&] {
      if constexpr (Z::kPlain) {
        if (!whole) hide_by_position<kKeys>(a, i, tile * kKeys, s);
      } else {
        finish_scores<kKeys>(a, work.b, work.h, i, tile * kKeys, whole, s);
      }
      const Vec<float, 2> rescale = weigh<Rule, kKeys>(rule, a.factor, s, state);
      if constexpr (!Z::kPlain) {
        if (a.drop_threshold > 0) drop<kKeys>(a, work.b, work.h, i, tile * kKeys, s);
      }
      return rescale;
    };
    const bool some = next_tile();
    if (some) {
      keep(s);
      wgmma_fence();
      start_scores<kKeys, kD>(s, q, room.k + k_at.stage * Z::K::kValues);
      wgmma_commit();
      wgmma_wait<0>();
      keep(s);
      give_back(room.k_empty, k_at);
      weights();
      pack_left<kKeys>(p, s);
      bool more = next_tile();
      while (more) {
        if constexpr (Z::kTurns) sync_named(turn, kTurnThreads);
        keep(s);
        keep(o);
        wgmma_fence();
        start_scores<kKeys, kD>(s, q, room.k + k_at.stage * Z::K::kValues);
        wgmma_commit();
        barrier_wait(room.v_full + v_at.stage, v_at.phase);
        wgmma_fence();
        start_sums<kKeys, kD>(o, p, room.v + v_at.stage * Z::K::kValues);
        wgmma_commit();
        if constexpr (Z::kTurns) arrive_named(next_turn, kTurnThreads);
        wgmma_wait<1>();
        keep(s);
        give_back(room.k_empty, k_at);
        const Vec<float, 2> rescale = weights();
        keep(s);  // and what follows ends a basic block: weights are made before the wait
        more = next_tile();
        wgmma_wait<0>();
        keep(o);
        give_back(room.v_empty, v_at);
        if constexpr (Rule::kOnline) {
          if (!all(rescale[0] == 1.0f && rescale[1] == 1.0f)) {  // maxima seldom move
            FOVEA_UNROLL
            for (int n = 0; n < kD / 2; ++n) o[n] *= rescale[n >> 1 & 1];
          }
        }
        pack_left<kKeys>(p, s);
      }
    } else {
      sync_warp();
    }
    if (Z::kOwnRoom && one_lane) barrier_arrive(room.q_empty);
    if (some) {
      barrier_wait(room.v_full + v_at.stage, v_at.phase);
      keep(o);
      wgmma_fence();
      start_sums<kKeys, kD>(o, p, room.v + v_at.stage * Z::K::kValues);
      wgmma_commit();
      wgmma_wait<0>();
      keep(o);
      give_back(room.v_empty, v_at);
    }
    finish_rows<Rule, Z>(rule, a, work, room, consumer, i, state, o, out_map);
    if (!Z::kOwnRoom && t == 0) {
      wait_bulk_read<0>();
      barrier_arrive(room.q_empty);
    }
  }
  if constexpr (Z::kTurns) {
    if (consumer == 0) sync_named(turn, kTurnThreads);
  }
  if (t == 0) wait_bulk_read<0>();
}

template <class Rule, class Z>
__global__ void __launch_bounds__(Z::kThreads, 1)
    wgmma_forward_kernel(Rule rule, Arguments<bf16> a, ForwardList list,
                         const __grid_constant__ TensorMap q_map,
                         const __grid_constant__ TensorMap k_map,
                         const __grid_constant__ TensorMap v_map,
                         const __grid_constant__ TensorMap out_map) {
  FOVEA_SHARED(Barrier, q_barriers, 2);
  FOVEA_SHARED(Barrier, k_barriers, 2 * Z::kStages);
  FOVEA_SHARED(Barrier, v_barriers, 2 * Z::kStages);
  FOVEA_SHARED(int, posts, 1 + Z::kStages);
  FOVEA_SHARED(int, broken, 4 * Z::kConsumers);
  ForwardRoom room;
  room.q_full = q_barriers + 0;
  room.q_empty = q_barriers + 1;
  room.k_full = k_barriers + 0;
  room.k_empty = k_barriers + Z::kStages;
  room.v_full = v_barriers + 0;
  room.v_empty = v_barriers + Z::kStages;
  room.posts = posts + 0;
  room.broken = broken + 0;
  room.q = dynamic_shared<bf16>();
  room.k = room.q + Z::kConsumers * Z::Q::kValues;
  room.v = room.k + Z::kStages * Z::K::kValues;
  room.out = Z::kOwnRoom ? room.v + Z::kStages * Z::K::kValues : room.q;
  if (threadIdx.x == 0) {
    for (const TensorMap* map : {&q_map, &k_map, &v_map, &out_map}) prefetch_map(*map);
    constexpr int kWarps = Z::kConsumers * kGroupThreads / kWarp;
    barrier_init(room.q_full, 1);
    barrier_init(room.q_empty, Z::kOwnRoom ? kWarps : Z::kConsumers);
    for (int stage = 0; stage < Z::kStages; ++stage) {
      barrier_init(room.k_full + stage, 1);
      barrier_init(room.v_full + stage, 1);
      barrier_init(room.k_empty + stage, kWarps);
      barrier_init(room.v_empty + stage, kWarps);
    }
    fence_barrier_init();
  }
  sync_block();
  const int group = shuffle(static_cast<int>(threadIdx.x) / kGroupThreads, 0);  // one in a warp
  if (group == 0) {
    decrease_registers<Z::kProducerRegisters>();
    if (threadIdx.x < kWarp) produce<Z>(a, list, room, q_map, k_map, v_map);
  } else {
    increase_registers<Z::kConsumerRegisters>();
    consume<Rule, Z>(rule, a, list, room, group - 1, out_map);
  }
}

template <class Rule, class Z>
void wgmma_forward_of(const attention::ScoreCall& call, Stream stream) {
  constexpr int64_t kCacheBytes = 32 << 20;  // of L2, for the keys and values of a section
  const int64_t key_bytes = int64_t{call.M} * (call.D + call.Dv) * 2,
                heads = int64_t{call.B} * call.H, group = call.H / call.Hkv;
  ForwardList list;
  list.count = static_cast<int>((call.N + Z::kRows - 1) / Z::kRows * heads);
  list.section =
      static_cast<int>(std::min(heads, group * std::max<int64_t>(1, kCacheBytes / key_bytes)));
  list.taken = call.taken;
  launch<wgmma_forward_kernel<Rule, Z>>(
      std::min(list.count, call.processors), Z::kThreads, Z::kBytes, stream,
      *static_cast<const Rule*>(call.rule), arguments<bf16, Rule>(call), list,
      rows_map(call.q, call.B, call.H, call.N, call.D, kGroupRows),
      rows_map(call.k, call.B, call.Hkv, call.M, call.D, Z::kKeys),
      rows_map(call.v, call.B, call.Hkv, call.M, call.Dv, Z::kKeys),
      rows_map(call.out, call.B, call.H, call.N, call.Dv, kGroupRows));
}

template <class Rule, int kD, int kKeys, int kConsumers, int kStages, bool kTurns>
void wgmma_forward_by(const attention::ScoreCall& call, Stream stream) {
  if (attention::is_plain(call))
    wgmma_forward_of<Rule, ForwardTiles<kD, kKeys, kConsumers, kStages, kTurns, true>>(call,
                                                                                       stream);
  else if constexpr (kD <= 128)
    wgmma_forward_of<Rule, ForwardTiles<kD, kKeys, kConsumers, kStages, false, false>>(call,
                                                                                       stream);
}

template <class Rule>
void wgmma_forward(const attention::ScoreCall& call, Stream stream) {
  const int d = call.D > call.Dv ? call.D : call.Dv;
  if (d <= 64)
    wgmma_forward_by<Rule, 64, 128, 2, 2, true>(call, stream);
  else if (d <= 128)
    wgmma_forward_by<Rule, 128, 128, 2, 2, true>(call, stream);
  else
    wgmma_forward_by<Rule, 256, 64, 2, 2, true>(call, stream);
}

}  // namespace FOVEA_GPU
