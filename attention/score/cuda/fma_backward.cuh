// SPDX-License-Identifier: Apache-2.0
#pragma once
// Backward in f32. A block owns a tile of keys (dk, dv) or of queries (dq) and walks the tiles of
// the others; both make the scores again:
//   P = weight(S, lse),  dP = dout v^T,  dS = P' (dP - delta)
//   owners of keys:     dk = scale dS^T q,  dv = P^T dout
//   owners of queries:  dq = scale dS k,    dbias = dS (before the soft-cap's derivative)
// Owners' rows x1, x2 are k, v or q, dout; the others' rows y1, y2 are q, dout or k, v.

#include "attention/score/cuda/fma.cuh"

namespace FOVEA_GPU {

template <class Rule, int kD, bool kKeys>
__global__ void __launch_bounds__(kFmaThreads, 1)
    fma_backward_kernel(Rule rule, Arguments<float> a) {
  using F = Fma<kD>;
  constexpr int kT = F::backward_tile(), kR = kT / 16, kTile = kT * F::kStride;
  const Shared<float> x1 = dynamic_shared<float>(), x2 = x1 + kTile, y1 = x2 + kTile,
                      y2 = y1 + kTile, ds = y2 + kTile, p = ds + kT * (kT + 4);
  const int ty = static_cast<int>(threadIdx.x) / 16, tx = static_cast<int>(threadIdx.x) % 16;
  const int heads = kKeys ? a.Hkv : a.H, owners = kKeys ? a.M : a.N, partners = kKeys ? a.N : a.M,
            tiles = (owners + kT - 1) / kT, bh = static_cast<int>(blockIdx.x) % (a.B * heads),
            tile = static_cast<int>(blockIdx.x) / (a.B * heads), b = bh / heads, head = bh % heads,
            owner0 = (kKeys ? tile : tiles - 1 - tile) * kT;
  const auto load_tile = [&](Shared<float> to, const Rows<const float>& rows, int h, int first,
                             int end, int d) {
    load_rows<kT>(to, F::kStride, d, is_wide(rows, d), [&](int r) {
      return first + r < end ? rows.at(b, h) + (first + r) * rows.row
                             : Global<const float>(nullptr);
    });
  };
  load_tile(x1, kKeys ? a.k : a.q, head, owner0, owners, a.D);
  load_tile(x2, kKeys ? a.v : a.dout, head, owner0, owners, a.Dv);
  float first[kR][F::kColumns], second[kKeys ? kR : 1][F::kColumns];
  FOVEA_UNROLL
  for (int r = 0; r < kR; ++r) {
    FOVEA_UNROLL
    for (int c = 0; c < F::kColumns; ++c) {
      first[r][c] = 0.0f;
      if (kKeys) second[r][c] = 0.0f;
    }
  }
  // Of queries: the owners' rows, or a step's columns.
  float lse[kR], delta[kR];
  const auto load_statistics = [&](int h, int first_query, int stride) {
    FOVEA_UNROLL
    for (int n = 0; n < kR; ++n) {
      const int64_t row = a.row(b, h, smaller(first_query + n * stride, a.N - 1));
      lse[n] = a.lse[row];
      delta[n] = 0.0f;
      if constexpr (Rule::kNormalised) delta[n] = a.delta[row];
    }
  };
  if (!kKeys) load_statistics(head, owner0 + ty * kR, 1);
  BackwardStep step = next_step<kKeys>(a, b, head, owner0, kT, kT, {0, 0, Tile::skip});
  while (step.g < (kKeys ? a.group() : 1)) {
    const int h = kKeys ? head * a.group() + step.g : head, partner0 = step.tile * kT,
              columns = smaller(kT, partners - partner0);
    sync_block();
    load_tile(y1, kKeys ? a.q : a.k, kKeys ? h : h / a.group(), partner0, partners, a.D);
    load_tile(y2, kKeys ? a.dout : a.v, kKeys ? h : h / a.group(), partner0, partners, a.Dv);
    sync_block();
    if (kKeys) load_statistics(h, partner0 + tx, 16);
    float s[kR][kR], dp[kR][kR];
    products<kR>(s, x1, y1, F::kStride, a.D, columns);
    products<kR>(dp, x2, y2, F::kStride, a.Dv, columns);
    FOVEA_UNROLL
    for (int r = 0; r < kR; ++r) {
      FOVEA_UNROLL
      for (int c = 0; c < kR; ++c) {
        const int owner = owner0 + ty * kR + r, partner = partner0 + tx + 16 * c,
                  i = kKeys ? partner : owner, j = kKeys ? owner : partner;
        const bool seen = i < a.N && j < a.M && (step.what == Tile::full || allowed(a, b, h, i, j));
        float weight = 0.0f, gradient = 0.0f;
        if (seen) {
          float cap = 1.0f;
          const Statistic statistic = statistic_of<Rule>(lse[kKeys ? c : r]);
          const float score = score_of<Rule>(a, b, h, i, j, s[r][c], &cap);
          if (!statistic.empty && !(score == -INFINITY)) {
            const float keep = a.drop_threshold > 0 ? keep_of(a, b, h, i, j) : 1.0f;
            const float w = weight_of(rule, score, statistic.reference);
            gradient = derivative_of(rule, score, w) * statistic.inverse *
                       (dp[r][c] * keep - delta[kKeys ? c : r]);
            if (!kKeys && !(a.dbias == nullptr)) a.dbias[a.row(b, h, i) * a.M + j] = gradient;
            gradient *= cap;
            weight = w * statistic.inverse * keep;
          }
        }
        const int at = (ty * kR + r) * (kT + 4) + tx + 16 * c;
        ds[at] = gradient;
        if (kKeys) p[at] = weight;
      }
    }
    sync_warp();
    add_products<kR, kT>(first, ds, y1, F::kStride, a.D, columns);
    if constexpr (kKeys) add_products<kR, kT>(second, p, y2, F::kStride, a.Dv, columns);
    sync_warp();
    ++step.tile;
    step = next_step<kKeys>(a, b, head, owner0, kT, kT, step);
  }
  const Outputs<float>& to = kKeys ? a.dk : a.dq;
  FOVEA_UNROLL
  for (int r = 0; r < kR; ++r) {
    const int owner = owner0 + ty * kR + r;
    float broken = 0.0f;
    FOVEA_UNROLL
    for (int c = 0; c < F::kColumns; ++c) {
      const int d = tx + 16 * c;
      if (owner >= owners) break;
      if (!finite(first[r][c]) || (kKeys && !finite(second[r][c]))) broken = 1.0f;
      if (d < a.D)
        to.put(b * to.batch + head * to.head + owner * to.row + d, first[r][c] * a.scale);
      if (kKeys && d < a.Dv)
        a.dv.put(b * a.dv.batch + head * a.dv.head + owner * a.dv.row + d, second[r][c]);
    }
    broken = row_max(broken);
    if (tx == 0 && owner < owners && broken > 0.0f)
      (kKeys ? a.suspect_keys : a.suspect)[(int64_t{b} * heads + head) * owners + owner] = 1;
  }
}

template <class Rule, int kD, bool kKeys>
void fma_backward_of(const attention::ScoreCall& call, Stream stream) {
  constexpr int kT = Fma<kD>::backward_tile();
  const int64_t tiles = ceil_div(kKeys ? call.M : call.N, kT);
  if (tiles == 0) return;
  launch<fma_backward_kernel<Rule, kD, kKeys>>(
      tiles * call.B * (kKeys ? call.Hkv : call.H), kFmaThreads,
      (4 * kT * Fma<kD>::kStride + (kKeys ? 2 : 1) * kT * (kT + 4)) * sizeof(float), stream,
      *static_cast<const Rule*>(call.rule), arguments<float, Rule>(call));
}

template <class Rule>
void fma_backward(const attention::ScoreCall& call, Stream stream) {
  if (is_wide(call)) return wide_backward<Rule, float>(call, stream);
  const int d = call.D > call.Dv ? call.D : call.Dv;
  if (d <= 64) {
    fma_backward_of<Rule, 64, true>(call, stream);
    fma_backward_of<Rule, 64, false>(call, stream);
  } else if (d <= 128) {
    fma_backward_of<Rule, 128, true>(call, stream);
    fma_backward_of<Rule, 128, false>(call, stream);
  } else {
    fma_backward_of<Rule, 256, true>(call, stream);
    fma_backward_of<Rule, 256, false>(call, stream);
  }
  exact_rows<Rule, float>(call, Exact::keys, stream);
  exact_rows<Rule, float>(call, Exact::dq, stream);
}

}  // namespace FOVEA_GPU
