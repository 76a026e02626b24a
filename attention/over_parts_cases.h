// SPDX-License-Identifier: Apache-2.0
#pragma once
// Mixers of each family that are no systems, written with the calls of over_parts.h: what tests
// train over ranks.

#include "attention/over_parts.h"
#include "attention/score/score_test_util.h"
#include "attention/score/softmax.h"
#include "autograd/ops.h"
#include "nn/linear.h"
#include "nn/norm.h"

namespace fovea::attention {

class PartMixer : public nn::Mixer {
 public:
  PartMixer(int64_t channels, int64_t heads, int64_t columns)
      : heads_(heads),
        dim_(channels / heads),
        in_(channels, columns, true),
        out_(channels, channels, true) {
    declare("in", in_);
    declare("out", out_);
  }
  double forward_flops(int64_t, int64_t) const override { return 0.0; }

 protected:
  // Columns [first, first + count D) of the projection as heads [B, count, n, D].
  static Variable split(const Variable& x, int64_t first, int64_t count, int64_t D) {
    return transpose(reshape(slice(x, 2, first, first + count * D), {x.dim(0), x.dim(1), count, D}),
                     1, 2);
  }
  Variable joined(const Variable& heads) const {
    return out_.forward(
        reshape(transpose(heads, 1, 2), {heads.dim(0), heads.dim(2), heads_ * dim_}));
  }
  static Variable plus(const Variable& x, double constant) {
    return add(x, Variable(Tensor::full({1}, constant, x.dtype(), x.value().device())));
  }
  // -(x + 0.3)^2: logarithms of decays.
  static Variable decays(const Variable& x) {
    const Variable shifted = plus(x, 0.3);
    return scale(mul(shifted, shifted), -1.0);
  }
  static Tensor starts(const nn::MixerContext& context) {
    return context.documents.defined() ? document_starts(context.documents) : Tensor();
  }

  int64_t heads_, dim_;
  nn::Linear in_, out_;
};

// Gated linear attention with decays per channel, per token or per head, a learned state before the
// sequence, and its input mixed with that of the token before (token shift of RWKV).
class GatedLinear final : public PartMixer {
 public:
  enum class Decay { channel, token, head };
  GatedLinear(int64_t channels, int64_t heads, Decay decay)
      : PartMixer(channels, heads, 4 * channels), decay_(decay) {
    mix_ = declare("mix", {channels}, nn::Init::normal(0.5));
    state_ = declare("state", {heads, dim_, dim_}, nn::Init::normal(0.5));
    if (decay == Decay::head) decays_ = declare("decays", {heads}, nn::Init::normal(0.3));
  }
  Variable forward(const Variable& x, const nn::MixerContext& context) override {
    const int64_t C = heads_ * dim_, B = x.dim(0), n = x.dim(1);
    const Variable before = slice(with_tokens_before(context.part, x, 1, 1), 1, 0, n);
    const Variable p = in_.forward(add(x, mul(sub(before, x), mix_)));
    const Variable rows = split(p, 3 * C, heads_, dim_),
                   g = decay_ == Decay::channel ? decays(rows)
                       : decay_ == Decay::token
                           ? decays(reshape(slice(rows, 3, 0, 1), {B, heads_, n}))
                           : decays(decays_);
    const Variable state =
        expand(reshape(state_, {1, heads_, dim_, dim_}), {B, heads_, dim_, dim_});
    return joined(linear_attention(context.part, split(p, 0, heads_, dim_),
                                   split(p, C, heads_, dim_), split(p, 2 * C, heads_, dim_), g,
                                   state, starts(context)));
  }
  std::string refuses(const nn::SequencePart& part) const override {
    return refusal(part, {Sees::state, Sees::before}, heads_);
  }

 private:
  Decay decay_;
  Variable mix_, state_, decays_;
};

// The gated delta rule behind a causal convolution of width 4 that stays within documents.
class GatedDelta final : public PartMixer {
 public:
  GatedDelta(int64_t channels, int64_t heads)
      : PartMixer(channels, heads, 3 * channels + 2 * heads),
        unit_(nn::NormKind::rms, dim_, 1e-6, false) {
    taps_ = declare("taps", {kWidth, channels}, nn::Init::normal(0.5));
    declare("unit", unit_);
  }
  Variable forward(const Variable& x, const nn::MixerContext& context) override {
    const int64_t C = heads_ * dim_;
    const Variable p = in_.forward(convolved(x, context));
    const auto gate = [&](int64_t first) {
      const Variable columns = split(p, first, heads_, 1);
      return reshape(columns, {columns.dim(0), heads_, columns.dim(2)});
    };
    const Variable k = scale(unit_.forward(split(p, C, heads_, dim_), x.dtype()),
                             1.0 / std::sqrt(static_cast<double>(dim_)));
    return joined(delta_rule(context.part, split(p, 0, heads_, dim_), k,
                             split(p, 2 * C, heads_, dim_), plus(gate(3 * C), 0.5),
                             decays(gate(3 * C + heads_)), Variable(), starts(context)));
  }
  std::string refuses(const nn::SequencePart& part) const override {
    return refusal(part, {Sees::state, Sees::before}, heads_);
  }

 private:
  static constexpr int64_t kWidth = 4;

  // sum_d taps[d] x_(t - d) over tokens t - d of t's document.
  Variable convolved(const Variable& x, const nn::MixerContext& context) const {
    const int64_t n = x.dim(1), before = kWidth - 1;
    const Variable around = with_tokens_before(context.part, x, 1, before);
    const Tensor ids = context.documents.defined()
                           ? documents_before(context.part, context.documents, before)
                           : Tensor();
    Variable sum;
    for (int64_t d = 0; d < kWidth; ++d) {
      Variable tap = mul(slice(around, 1, before - d, before - d + n), slice(taps_, 0, d, d + 1));
      if (ids.defined())
        tap = mul(tap, Variable(same_document(ids, d, n).to(x.dtype()).to(x.value().device())));
      sum = sum.defined() ? add(sum, tap) : tap;
    }
    return sum;
  }
  // f32 [B, n, 1]: whether a token and the one d before it are of one document.
  static Tensor same_document(const Tensor& ids, int64_t d, int64_t n) {
    const std::vector<int32_t> all = ids.to_vector<int32_t>();
    const int64_t B = ids.dim(0), width = ids.dim(1);
    std::vector<float> same;
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t t = width - n; t < width; ++t) {
        const auto at = static_cast<size_t>(b * width + t);
        same.push_back(all[at] == all[at - static_cast<size_t>(d)] ? 1.0f : 0.0f);
      }
    }
    return Tensor::from(same, {B, n, 1});
  }

  Variable taps_;
  nn::Norm unit_;
};

// Softmax attention to the `reach` tokens before, whose keys and values are borrowed.
class Windowed final : public PartMixer {
 public:
  Windowed(int64_t channels, int64_t heads, int64_t reach)
      : PartMixer(channels, heads, 3 * channels), reach_(reach) {}
  Variable forward(const Variable& x, const nn::MixerContext& context) override {
    const int64_t C = heads_ * dim_;
    const Variable p = in_.forward(x);
    const auto borrowed = [&](int64_t first) {
      return with_tokens_before(context.part, split(p, first, heads_, dim_), 2, reach_,
                                Edge::absent);
    };
    const Variable k = borrowed(C), v = borrowed(2 * C);
    Mask mask = Mask().causal().window(reach_, -1);
    if (context.documents.defined())
      mask.documents(documents_before(context.part, context.documents, 0),
                     documents_before(context.part, context.documents, reach_, Edge::absent));
    ScoreOptions options;
    options.rope = Rope::half;
    return joined(softmax_attention(split(p, 0, heads_, dim_), k, v, Variable(), Tensor(),
                                    mask.to(x.value().device()), options));
  }
  std::string refuses(const nn::SequencePart& part) const override {
    return refusal(part, {Sees::before});
  }

 private:
  int64_t reach_;
};

// sum_j sigmoid(q_i . k_j - 1) v_j with half as many key heads: keys anywhere, or on whole
// sequences of some heads.
class Sigmoid final : public PartMixer {
 public:
  Sigmoid(int64_t channels, int64_t heads, bool by_heads)
      : PartMixer(channels, heads, 2 * channels), by_heads_(by_heads) {}
  Variable forward(const Variable& x, const nn::MixerContext& context) override {
    const int64_t C = heads_ * dim_, G = heads_ / 2;
    const Variable p = in_.forward(x);
    const Variables qkv{split(p, 0, heads_, dim_), split(p, C, G, dim_),
                        split(p, C + G * dim_, G, dim_)};
    Mask mask = Mask().causal();
    if (context.documents.defined()) mask.documents(context.documents, context.documents);
    mask = mask.to(x.value().device());
    const auto seen_by = [&](const nn::SequencePart* part, const Variables& heads,
                             const Tensor& slopes) {
      return attend(part, kSigmoidRule, heads[0], heads[1], heads[2], Variable(), slopes, mask, {});
    };
    const Tensor slopes = alibi_slopes(heads_);
    if (!by_heads_) return joined(seen_by(context.part, qkv, slopes));
    return joined(
        attention::by_heads(context.part, qkv, [&](const Variables& whole, int64_t first) {
          return seen_by(nullptr, whole,
                         slopes.slice(0, first, first + whole[0].dim(1)).contiguous());
        }));
  }
  std::string refuses(const nn::SequencePart& part) const override {
    return refusal(part, {by_heads_ ? Sees::heads : Sees::scores}, heads_, heads_ / 2);
  }

 private:
  bool by_heads_;
};

// By name, each family's, of so many heads.
inline std::vector<std::pair<std::string, nn::MixerFactory>> part_mixers(int64_t heads) {
  const auto of = [](auto make) -> nn::MixerFactory {
    return [make](int64_t channels, int64_t, int64_t) { return make(channels); };
  };
  using Decay = GatedLinear::Decay;
  return {{"linear, decay a channel",
           of([=](int64_t C) { return std::make_unique<GatedLinear>(C, heads, Decay::channel); })},
          {"linear, decay a token",
           of([=](int64_t C) { return std::make_unique<GatedLinear>(C, heads, Decay::token); })},
          {"linear, decay a head",
           of([=](int64_t C) { return std::make_unique<GatedLinear>(C, heads, Decay::head); })},
          {"delta behind a convolution",
           of([=](int64_t C) { return std::make_unique<GatedDelta>(C, heads); })},
          {"window", of([=](int64_t C) { return std::make_unique<Windowed>(C, heads, 5); })},
          {"sigmoid", of([=](int64_t C) { return std::make_unique<Sigmoid>(C, heads, false); })},
          {"sigmoid by heads",
           of([=](int64_t C) { return std::make_unique<Sigmoid>(C, heads, true); })}};
}

}  // namespace fovea::attention
