// SPDX-License-Identifier: Apache-2.0
#pragma once
// The score engine's kernels: what they are told of one call, and their host entry points.
//
// Kernels take rows with a unit last stride. bf16 rows start on 16 bytes and hold a multiple of 8
// values; f32 rows have any length. Rotary positions and padding are turn_rows', before and after.

#include "attention/score/rule.h"
#include "core/cuda/sm90.h"
#include "core/dtype.h"
#include "core/rng.h"

namespace fovea::attention {

inline constexpr int kWidestTile = 256;    // wider heads go by a slower kernel
inline constexpr int kFewestQueries = 32;  // of a tile of backward in bf16

// Rows of [B, H, N, D]: strides in elements.
struct ScoreRows {
  void* data = nullptr;
  int64_t batch = 0, head = 0, row = 0;
  Dtype dtype = Dtype::f32;
};

// Whether TMA can copy tiles of bf16 rows [B, heads, n, D].
inline bool in_tiles(const ScoreRows& r, int B, int heads, int n) {
  const auto fits = [](int length, int64_t stride) {
    return length == 1 || (stride > 0 && stride % 8 == 0);
  };
  return fits(n, r.row) && fits(heads, r.head) && fits(B, r.batch) &&
         reinterpret_cast<uintptr_t>(r.data) % 16 == 0;
}

struct ScoreSizes {
  int B, H, Hkv, N, M, D, Dv;
  // Forward: rows of a tile are (head of the group, query), so that keys are read once for them
  // all; keys are split over this many blocks.
  bool packed = false;
  int splits = 1;

  float scale, softcap = 0.0f;
  bool adjusts = false;  // scores are more than scale times products
  bool causal = false;
  int left = -1, right = -1, prefix = 0;
  // Where the problem is in the whole it is part of (attention/places.h); `offset` is the distance
  // from key 0 to query 0, `prefix` counts the problem's own keys.
  int query_base = 0, query_stride = 1, key_base = 0, key_stride = 1, offset = 0;
  int whole_N = 0, whole_M = 0, first_head = 0, heads = 0;
  int block_heads = 1, block_rows = 0, block_columns = 0, query_block = 1, key_block = 1;
  int64_t bias_batch = 0, bias_head = 0;  // strides, 0 where it is shared
  int64_t range_batch = 0;                // likewise

  RngKey rng;  // dropout
  int64_t first_sample = 0;
  uint32_t drop_threshold = 0;
  float keep_factor = 1.0f;
};

struct ScoreCall : ScoreSizes {
  const void* rule = nullptr;
  const int32_t *query_documents = nullptr, *key_documents = nullptr;  // [B, N], [B, M]
  const uint8_t* blocks = nullptr;                                     // [block_heads, rows, cols]
  const int32_t* ranges = nullptr;                                     // [Bb, N, 4]
  const float *slopes = nullptr, *sink = nullptr;                      // [H]
  const float* bias = nullptr;                                         // [Bb, Hb, N, M]
  ScoreRows q, k, v, out;
  float* lse = nullptr;      // [B, H, N], in rule.h's words the row statistic
  float* partial = nullptr;  // with splits, or sums: [splits, B H N, Dv + 2]: acc, m, l
  // Sums under way, to which the rows are added: [B, H, N, Dv], [B, H, N] twice. Null: out and lse
  // are written.
  float *sum_acc = nullptr, *sum_m = nullptr, *sum_l = nullptr;
  // 1 for rows that met a NaN or an infinity, [B, H, N] ([B, Hkv, M] for keys): they are computed
  // again, exactly. Backward: zeros before.
  uint8_t *suspect = nullptr, *suspect_keys = nullptr;
  // Of kernels whose blocks take one piece of work after another: SMs, and a counter, zero before.
  int processors = 1;
  int32_t* taken = nullptr;
  // Backward. bf16: dq is f32 and zeros before.
  ScoreRows dout, dq, dk, dv;
  int32_t* turns = nullptr;  // zeros, one for each kFewestQueries queries; null: dq in any order
  float* delta = nullptr;    // [B, H, N]
  float* dbias = nullptr;    // [B, H, N, M], zeros; dS of what is not hidden
  // Hopper's backward: room for dq's sums and for what tiles of queries bring beside q and dout
  // (HopperBackward). There dq is the caller's, and a tile of queries takes two turns.
  float *sums = nullptr, *statistics = nullptr;
};

// Backward on Hopper (wgmma_backward.cuh): bf16, head dims up to 128. A bias goes by the kernels
// for sm_80: its gradient is a store of every score; masks of ranges and positions that do not
// follow one another too.
struct HopperBackward {
  int width, queries;  // columns; queries of a tile
  int64_t tiles;       // in all
  int64_t sums() const { return tiles * queries * width; }
  int64_t statistics() const { return tiles * queries * 2; }
  int64_t turns() const { return tiles * 2; }
};
inline HopperBackward hopper_backward(const ScoreSizes& c) {
  const int width = c.D <= 64 && c.Dv <= 64 ? 64 : 128, queries = width == 64 ? 128 : 64;
  return {width, queries, int64_t{c.B} * c.H * ((c.N + queries - 1) / queries)};
}
inline bool fits_hopper_backward(const ScoreCall& c) {
  return c.q.dtype == Dtype::bf16 && c.D <= 128 && c.Dv <= 128 && c.bias == nullptr &&
         c.ranges == nullptr && c.query_stride == 1 && c.key_stride == 1 &&
         in_tiles(c.q, c.B, c.H, c.N) && in_tiles(c.k, c.B, c.Hkv, c.M) &&
         in_tiles(c.v, c.B, c.Hkv, c.M) && in_tiles(c.dout, c.B, c.H, c.N);
}

// One copy of rows: out[b, h, n, :] = turned x[b, h, n, :], out's columns past D are 0.
struct TurnedRows {
  ScoreRows out, x;
  int B, H, N, D, width;                           // width: of out
  const float *cosine = nullptr, *sine = nullptr;  // [positions, D]; null: no turn
  int first_position = 0, step = 1;
  bool interleaved = false;
  float direction = 1.0f;
};

// out = acc / l and lse of it; where the rule has no normaliser acc and 0.
struct FinishedRows {
  ScoreRows out;
  float* lse;
  const float *acc, *m, *l;
  int B, H, N, Dv;
  bool normalised, online;
};

}  // namespace fovea::attention

FOVEA_GPU_DECLARE(
    void turn_rows(const attention::TurnedRows& rows, Stream stream);
    // delta[b, h, i] = sum_d dout out
    void score_delta(const attention::ScoreCall& call, Stream stream);
    // dsink[h] = -sum_{b, i} exp(sink - lse) delta
    void score_dsink(float* dsink, const attention::ScoreCall& call, Stream stream);
    // out and lse of sums, rows as ScoreCall holds them.
    void score_finish(const attention::FinishedRows& rows, Stream stream);
    // out [Bb or 1, H or 1, N M] = sums of x [B, H, N M] over what is shared, in order.
    void sum_shared(float* out, const float* x, int B, int H, bool share_batch, bool share_heads,
                    int64_t n, Stream stream);)

// Of one Rule, by dtype and the largest head dim.
#define FOVEA_SCORE_KERNELS_DECLARE(name)                                               \
  FOVEA_GPU_DECLARE(                                                                    \
      void name##_forward_f32(const attention::ScoreCall& call, Stream stream);         \
      void name##_backward_f32(const attention::ScoreCall& call, Stream stream);        \
      void name##_forward_bf16_small(const attention::ScoreCall& call, Stream stream);  \
      void name##_forward_bf16_large(const attention::ScoreCall& call, Stream stream);  \
      void name##_forward_sm90(const attention::ScoreCall& call, Stream stream);        \
      void name##_backward_bf16_small(const attention::ScoreCall& call, Stream stream); \
      void name##_backward_bf16_large(const attention::ScoreCall& call, Stream stream);)
// `rule`, a ScoreRule, with these kernels.
#define FOVEA_SCORE_RULE_ON_DEVICES(name, rule)                                              \
  ::fovea::attention::on_devices(                                                            \
      rule,                                                                                  \
      [](::fovea::Device device, const ::fovea::attention::ScoreCall& c) {                   \
        if (c.q.dtype == ::fovea::Dtype::f32)                                                \
          FOVEA_GPU_CALL(device, name##_forward_f32, c, ::fovea::stream_of(device));         \
        else if (::fovea::attention::forward_by_wgmma(device, c))                            \
          FOVEA_SM90_CALL(device, name##_forward_sm90, c, ::fovea::stream_of(device));       \
        else if (c.D <= 96 && c.Dv <= 96)                                                    \
          FOVEA_GPU_CALL(device, name##_forward_bf16_small, c, ::fovea::stream_of(device));  \
        else                                                                                 \
          FOVEA_GPU_CALL(device, name##_forward_bf16_large, c, ::fovea::stream_of(device));  \
      },                                                                                     \
      [](::fovea::Device device, const ::fovea::attention::ScoreCall& c) {                   \
        if (c.q.dtype == ::fovea::Dtype::f32)                                                \
          FOVEA_GPU_CALL(device, name##_backward_f32, c, ::fovea::stream_of(device));        \
        else if (c.D <= 96 && c.Dv <= 96)                                                    \
          FOVEA_GPU_CALL(device, name##_backward_bf16_small, c, ::fovea::stream_of(device)); \
        else                                                                                 \
          FOVEA_GPU_CALL(device, name##_backward_bf16_large, c, ::fovea::stream_of(device)); \
      })

namespace fovea::attention {

// Whether a call has a mask of positions alone, scores as products give them, and no dropout.
inline bool is_plain(const ScoreCall& c) {
  return !c.adjusts && c.drop_threshold == 0 && c.blocks == nullptr &&
         c.query_documents == nullptr && c.ranges == nullptr;
}

// Whether a forward call goes by the kernels of sm_90a: bf16 whose rows TMA can copy, past 128
// columns only if plain; no split keys, sums under way, packed heads or ranges of keys.
inline bool forward_by_wgmma(Device device, const ScoreCall& c) {
  const int most = is_plain(c) ? kWidestTile : 128;
  return runs_sm90(device) && c.q.dtype == Dtype::bf16 && !c.packed && c.splits == 1 &&
         c.ranges == nullptr && c.partial == nullptr && c.D <= most && c.Dv <= most && c.M > 0 &&
         in_tiles(c.q, c.B, c.H, c.N) && in_tiles(c.k, c.B, c.Hkv, c.M) &&
         in_tiles(c.v, c.B, c.Hkv, c.M) && in_tiles(c.out, c.B, c.H, c.N);
}

inline ScoreRule on_devices(ScoreRule rule, void (*forward)(Device, const ScoreCall&),
                            void (*backward)(Device, const ScoreCall&)) {
  rule.device_forward = forward;
  rule.device_backward = backward;
  return rule;
}

}  // namespace fovea::attention
