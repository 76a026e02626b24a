// SPDX-License-Identifier: Apache-2.0
#pragma once
// The tiles of backward on Hopper (wgmma_backward.cuh): their shape, the walk of a block through
// them, and the warps that bring them to shared memory and take dq's sums away.

#include "attention/score/cuda/wgmma_backward_ends.cuh"
#include "core/cuda/kernel90.cuh"

namespace FOVEA_GPU {

constexpr int kGroupThreads = 128, kComputing = 2,
              kHopperThreads = kGroupThreads * (1 + kComputing);

template <int kD_>
struct WgmmaBackward : QueryTiles<kD_> {
  static constexpr int kD = kD_, kQ = QueryTiles<kD_>::kQueries, kKeys = 128, kStages = 2;
  static constexpr int kSpan = 64;  // columns of a box, 128 bytes
  static constexpr int kKeyBox = kKeys * kSpan, kQueryBox = kQ * kSpan;  // values
  static constexpr int kStatisticBytes = 2 * kQ * 4;
  // Bytes of shared memory.
  static constexpr int kKeyBytes = kKeys * kD * 2, kQueryBytes = kQ * kD * 2,
                       kScoreBytes = kKeys * kQ * 2, kPartBytes = kPartValues * 4;
  static constexpr int kStageAt = 2 * kKeyBytes, kScoresAt = kStageAt + 2 * kStages * kQueryBytes,
                       kPartsAt = kScoresAt + 2 * kScoreBytes,
                       kStatisticsAt = kPartsAt + kComputing * kPartBytes,
                       kBytes = kStatisticsAt + kStages * kStatisticBytes;
};

// Named barriers; of a half of dq's tile: a computing warpgroup and the warp that adds it.
enum Meeting : int { kScoresThere = 1, kPartFull = 2, kPartEmpty = 4 };
constexpr int kPartThreads = kGroupThreads + kWarp;

struct HopperKeys {
  int b, hk, key0, key1;
};
template <typename T>
__device__ inline HopperKeys keys_of_block(const Arguments<T>& a, int section) {
  constexpr int kKeys = 128;
  const int heads = a.B * a.Hkv, tiles = (a.M + kKeys - 1) / kKeys,
            index = fresh(static_cast<int>(blockIdx.x)),
            head0 = index / (section * tiles) * section, count = smaller(section, heads - head0),
            rest = index - head0 * tiles, bh = head0 + rest % count, key0 = rest / count * kKeys;
  return {bh / a.Hkv, bh % a.Hkv, key0, smaller(key0 + kKeys, a.M)};
}

// Queries that positions let see key j: key_limits, seen from the key, where positions follow one
// another.
struct Queries {
  int first, last;
};
__device__ inline Queries query_limits(const attention::ScoreSizes& a, int j) {
  const int at = j - a.offset;
  Queries queries{0, a.N};
  if (a.right >= 0) queries.first = larger(queries.first, at - a.right);
  if (a.causal && j >= a.prefix) queries.first = larger(queries.first, at);
  if (a.left >= 0) queries.last = smaller(queries.last, at + a.left + 1);
  return queries;
}

// Calls f(h, tile, what) for the tiles of queries that see the block's keys, and skipped(h, tile)
// for those that positions let see them but other masks do not. By a whole warp.
template <class Shape, bool kGeneral, typename F, typename G>
__device__ inline void walk(const Arguments<bf16>& a, const HopperKeys& keys, F&& f, G&& skipped) {
  constexpr int kQ = Shape::kQ;
  const Queries begins = query_limits(a, keys.key0), ends = query_limits(a, keys.key1 - 1);
  const int first = begins.first / kQ, last = (ends.last + kQ - 1) / kQ;
  const bool whole = keys.key1 - keys.key0 == Shape::kKeys;
  for (int g = 0; g < a.group(); ++g) {
    const int h = keys.hk * a.group() + g;
    for (int tile = last - 1; tile >= first; --tile) {
      const int i0 = tile * kQ, i1 = smaller(i0 + kQ, a.N);
      Tile what = i0 >= ends.first && i1 <= begins.last ? Tile::full : Tile::partial;
      if constexpr (kGeneral)
        what = classify<false>(a, keys.b, h, h + 1, i0, i1, keys.key0, keys.key1);
      if (what == Tile::skip)
        skipped(h, tile);
      else
        f(h, tile, whole ? what : Tile::partial);
    }
  }
}

// ---- the warps that bring and take --------------------------------------------------------------

// What a stage is for: its head and its tile of queries; kEnd: nothing more. Twice as many as
// stages: the warps that take dq's sums read them later.
constexpr int kEnd = -1, kSteps = 4;
struct Step {
  int h, word;
  __device__ int tile() const { return word >> 1; }
  __device__ bool partial() const { return (word & 1) != 0; }
};
__device__ inline void put_step(Shared<int> at, int h, int tile, bool partial) {
  store(at, Vec<int, 2>{{h, 2 * tile + (partial ? 1 : 0)}});
}
__device__ inline Step take_step(Shared<int> at) {
  const Vec<int, 2> words = load<2>(at);
  return {words[0], words[1]};
}

// Boxes of 64 columns, one after the other.
template <int kBoxes>
__device__ inline void load_boxes(Shared<bf16> to, int box, const TensorMap& map, Shared<Barrier> b,
                                  int row, int h, int batch) {
  FOVEA_UNROLL
  for (int n = 0; n < kBoxes; ++n) load_tile(to + n * box, map, b, n * 64, row, h, batch);
}

template <class F, bool kGeneral>
__device__ inline void bring(const Arguments<bf16>& a, const HopperKeys& keys, const TensorMap& q,
                             const TensorMap& k, const TensorMap& v, const TensorMap& dout,
                             Shared<Barrier> keys_full, Shared<Barrier> full, Shared<Barrier> empty,
                             Shared<int> steps) {
  constexpr int kBoxes = F::kD / F::kSpan;
  const bool one = static_cast<int>(threadIdx.x) % kWarp == 0;
  if (one) {
    prefetch_map(q);
    prefetch_map(dout);
    barrier_arrive_expect(keys_full, F::kKeyBytes);
    load_boxes<kBoxes>(dynamic_shared<bf16>(), F::kKeyBox, k, keys_full, keys.key0, keys.hk,
                       keys.b);
  }
  bool values = false;  // v is under way
  const auto load_values = [&] {
    if (one && !values) {
      barrier_arrive_expect(keys_full + 1, F::kKeyBytes);
      load_boxes<kBoxes>(dynamic_shared<bf16>(F::kKeyBytes), F::kKeyBox, v, keys_full + 1,
                         keys.key0, keys.hk, keys.b);
    }
    values = true;
  };
  unsigned n = 0;  // tiles so far
  const auto wait_stage = [&] { barrier_wait(empty + n % F::kStages, (n / F::kStages % 2) ^ 1u); };
  walk<F, kGeneral>(
      a, keys,
      [&](int h, int tile, Tile what) {
        wait_stage();
        if (one) {
          const int stage = n % F::kStages;
          const Shared<Barrier> b = full + stage;
          const Shared<bf16> to =
              dynamic_shared<bf16>(F::kStageAt) + stage * (F::kQueryBytes);  // of two tiles
          const int tiles = (a.N + F::kQ - 1) / F::kQ;
          put_step(steps + 2 * (n % kSteps), h, tile, what == Tile::partial);
          barrier_arrive_expect(b, 2 * F::kQueryBytes + F::kStatisticBytes);
          load_boxes<kBoxes>(to, F::kQueryBox, q, b, tile * F::kQ, h, keys.b);
          load_boxes<kBoxes>(to + F::kQueryBytes / 2, F::kQueryBox, dout, b, tile * F::kQ, h,
                             keys.b);
          load_bulk(dynamic_shared<float>(F::kStatisticsAt) + stage * (2 * F::kQ),
                    a.statistics + ((int64_t{keys.b} * a.H + h) * tiles + tile) * (2 * F::kQ),
                    F::kStatisticBytes, b);
        }
        load_values();
        ++n;
      },
      [](int, int) {});
  load_values();
  wait_stage();
  if (one) {
    put_step(steps + 2 * (n % kSteps), kEnd, 0, false);
    barrier_arrive(full + n % F::kStages);
  }
}

// In turns: of a half tile of dq, and this block's number among those that add to it.
template <class F>
__device__ inline auto turn_at(const Arguments<bf16>& a, int b, int h, int tile, int half) {
  const int tiles = (a.N + F::kQ - 1) / F::kQ;
  return a.turns + (((int64_t{b} * a.H + h) * tiles + tile) * 2 + half);
}
template <class F>
__device__ inline int number_of(const Arguments<bf16>& a, const HopperKeys& keys, int tile) {
  return keys.key0 / F::kKeys - key_limits(a, tile * F::kQ).first / F::kKeys;
}
__device__ inline void wait_turn(Global<int> turn, int mine) {
  wait_until([=] { return load_acquire(turn) == mine; });
}

// Adds the halves that a computing warpgroup leaves.
template <class F>
__device__ inline void take(const Arguments<bf16>& a, const HopperKeys& keys, int half,
                            Shared<int> steps) {
  const bool one = static_cast<int>(threadIdx.x) % kWarp == 0;
  const int tiles = (a.N + F::kQ - 1) / F::kQ;
  arrive_named(kPartEmpty + half, kPartThreads);
  for (unsigned n = 0;; ++n) {
    sync_named(kPartFull + half, kPartThreads);
    const Step step = take_step(steps + 2 * (n % kSteps));
    if (step.h == kEnd) break;
    if (one) {
      const Global<float> to =
          a.sums + ((int64_t{keys.b} * a.H + step.h) * tiles + step.tile()) * F::kValues +
          half * kPartValues;
      const int mine = number_of<F>(a, keys, step.tile());
      if (!(a.turns == nullptr)) wait_turn(turn_at<F>(a, keys.b, step.h, step.tile(), half), mine);
      add_bulk(to, dynamic_shared<float>(F::kPartsAt) + half * kPartValues, F::kPartBytes);
      commit_bulk();
      wait_bulk_read<0>();
    }
    sync_warp();
    arrive_named(kPartEmpty + half, kPartThreads);
    if (one && !(a.turns == nullptr)) {
      wait_bulk<0>();
      fence_device();
      store_release(turn_at<F>(a, keys.b, step.h, step.tile(), half),
                    number_of<F>(a, keys, step.tile()) + 1);
    }
  }
  if (one) wait_bulk<0>();
}

// Passes on the turns of tiles that other masks than positions hide from the block.
template <class F>
__device__ inline void pass_on(const Arguments<bf16>& a, const HopperKeys& keys) {
  walk<F, true>(
      a, keys, [](int, int, Tile) {},
      [&](int h, int tile) {
        if (threadIdx.x % kWarp > 0) return;
        const int mine = number_of<F>(a, keys, tile);
        FOVEA_NO_UNROLL
        for (int half = 0; half < kComputing; ++half) {
          const Global<int> turn = turn_at<F>(a, keys.b, h, tile, half);
          wait_turn(turn, mine);
          store_release(turn, mine + 1);
        }
      });
}

}  // namespace FOVEA_GPU
