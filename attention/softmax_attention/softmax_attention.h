// SPDX-License-Identifier: Apache-2.0
#pragma once
// Scaled dot-product softmax attention (1706.03762 section 3.2), with the options that later models
// added: grouped keys (2305.13245), window, rotary positions (2104.09864), ALiBi (2108.12409),
// soft-capped scores (2408.00118 section 2), attention sinks, normalised queries and keys
// (2302.05442).

#include "attention/over_parts.h"
#include "attention/registry.h"
#include "attention/score/softmax.h"
#include "nn/linear.h"
#include "nn/norm.h"

namespace fovea::attention {

struct SoftmaxAttentionOptions : config::Options {
  int64_t heads = 6;
  int64_t kv_heads = 0;  // 0: as many as heads
  int64_t head_dim = 0;  // 0: C / heads
  bool bias = true;      // of both projections
  std::string qk_norm =
      "none";  // none | rms (with a learned weight) | l2 (unit length; scale is then sqrt(D))
  double softcap = 0.0;
  int64_t window = 0;  // keys at most this far away; 0: all
  bool sink = false;
  std::string rope = "none";  // none | interleaved | half
  double rope_base = 10000.0;
  bool alibi = false;
  double dropout = 0.0;       // of probabilities
  bool deterministic = true;  // backward, see ScoreOptions

  void describe(config::Fields& f) override;
};

// Parameters: qkv.weight [(H + 2 Hkv) D, C], qkv.bias, out.weight [C, H D], out.bias; sink [H],
// q_norm.weight and k_norm.weight [D] when asked for.
class SoftmaxAttention final : public nn::Mixer, public SaysMask {
 public:
  // Throws when heads do not divide the channels or kv_heads the heads.
  SoftmaxAttention(const SoftmaxAttentionOptions& options, int64_t channels, int64_t layer,
                   int64_t layers);

  Variable forward(const Variable& x, const nn::MixerContext& context) override;
  std::string refuses(const nn::SequencePart& part) const override;
  Mask mask_of(int64_t batch, int64_t tokens, const nn::MixerContext& context) const override;
  // Keys and values of the tokens so far [B, Hkv, M, D] in the activations' dtype; with a window
  // only what it reaches.
  std::unique_ptr<nn::MixerState> make_state(int64_t batch, int64_t max_tokens) override;
  Tensor decode(const Tensor& x, nn::MixerState& state) override;
  double forward_flops(int64_t batch, int64_t tokens) const override;

 private:
  ScoreOptions score_options() const;
  // Queries and keys normalised head by head: [B, N, H, D] -> the same.
  Variable normalised(const Variable& x, const std::unique_ptr<nn::Norm>& norm) const;

  SoftmaxAttentionOptions options_;
  int64_t heads_, kv_heads_, head_dim_;
  nn::Linear qkv_, out_;
  Variable sink_;
  std::unique_ptr<nn::Norm> q_norm_, k_norm_;
  Tensor ones_;  // [D], the weight of l2 normalisation
  Tensor slopes_;
};

System register_softmax_attention();

}  // namespace fovea::attention
