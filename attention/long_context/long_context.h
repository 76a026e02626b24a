// SPDX-License-Identifier: Apache-2.0
#pragma once
// Softmax attention under every mask of the long-context benchmark (2510.17896): windows, global
// tokens, prefixes, packed documents, slices and blocks (attention/mask_options.h). A query that
// sees nothing gives 0.

#include "attention/mask_options.h"
#include "attention/over_parts.h"
#include "attention/registry.h"
#include "attention/score/softmax.h"
#include "nn/linear.h"

namespace fovea::attention {

struct LongContextOptions : config::Options {
  int64_t heads = 6, kv_heads = 0;  // kv_heads 0: as many as heads
  bool bias = true;                 // of both projections
  MaskOptions mask;
  std::string rope = "none";  // none | interleaved | half
  double rope_base = 10000.0;

  void describe(config::Fields& f) override;
};

// Parameters: qkv.weight [(H + 2 Hkv) D, C], qkv.bias, out.weight [C, H D], out.bias. Documents are
// the batch's (MixerContext), which no mask joins that does not say so; without them a sequence is
// one. Where the model is causal no query sees a later key, whatever the mask; one of prefixes is
// refused.
class LongContext final : public nn::Mixer, public SaysMask {
 public:
  LongContext(const LongContextOptions& options, int64_t channels, int64_t layers);
  Variable forward(const Variable& x, const nn::MixerContext& context) override;
  std::string refuses(const nn::SequencePart& part) const override;
  Mask mask_of(int64_t batch, int64_t tokens, const nn::MixerContext& context) const override;
  double forward_flops(int64_t batch, int64_t tokens) const override;

 private:
  LongContextOptions options_;
  int64_t heads_, kv_heads_, head_dim_;
  nn::Linear qkv_, out_;
};

System register_long_context();

}  // namespace fovea::attention
