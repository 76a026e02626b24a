// SPDX-License-Identifier: Apache-2.0
#pragma once
// GPT: token (and position) embedding, pre-norm blocks, final norm, output head (tied to the
// embedding or its own). Radford et al. 2019 with options for RMSNorm, SwiGLU, GQA and rotary
// positions (the last two belong to the mixer).

#include <memory>
#include <string>
#include <vector>

#include "nn/transformer.h"

namespace fovea::nn {

struct GptOptions : TransformerOptions {
  int64_t context = 256;  // longest sequence, in tokens
  std::string positions =
      "learned";  // learned | sinusoidal | none (the mixer brings its own: RoPE, ALiBi)
  bool tied_head = true;

  void describe(config::Fields& f) override;
};

// Keys and values (or states) of every layer, and how many tokens were seen.
struct GptState {
  std::vector<std::unique_ptr<MixerState>> layers;
  int64_t batch = 0, tokens = 0, capacity = 0;
  int64_t bytes() const;
};

class Gpt : public Module {
 public:
  // Throws when context, vocabulary or a size does not fit.
  Gpt(const GptOptions& options, int64_t vocab, const MixerFactory& mixer);

  // ids i64 [B, N], N <= context -> logits [B, N, vocab] in the compute dtype. documents: i32 [B,
  // N] or absent. part: ids [B, n] and the logits are this part of the sequences; documents are of
  // all their tokens.
  Variable forward(const Tensor& ids, const Tensor& documents = Tensor(),
                   const SequencePart* part = nullptr);
  // What forward tells its blocks.
  static MixerContext context_of(const Tensor& documents, const SequencePart* part = nullptr);
  // Why not; empty: forward takes such a part.
  std::string refuses(const SequencePart& part) const { return blocks_.refuses(part); }

  GptState make_state(int64_t batch, int64_t max_tokens) const;
  // ids i64 [B, n], the next n tokens -> f32 logits [B, vocab] after the last of them.
  Tensor decode(const Tensor& ids, GptState& state) const;

  // dtype of activations between norms and sublayers: f32 (default), bf16, f64 (all parameters must
  // be f64 then).
  void set_compute(Dtype compute) { compute_ = compute; }
  Dtype compute() const { return compute_; }
  const GptOptions& options() const { return options_; }
  int64_t vocab() const { return vocab_; }
  // Forward over [B, N], head included; multiply-adds count two.
  double forward_flops(int64_t batch, int64_t tokens) const;
  const Block& block(size_t layer) const { return blocks_[layer]; }

 private:
  Variable embed(const Tensor& ids, int64_t first_position,
                 const SequencePart* part = nullptr) const;
  Variable head(const Variable& h) const;

  GptOptions options_;
  int64_t vocab_;
  Dtype compute_ = Dtype::f32;
  Variable token_;     // [vocab, dim]
  Variable position_;  // [context, dim], learned; or absent
  Tensor sinusoids_;   // [context, dim], or absent
  Stack blocks_;
  std::unique_ptr<Norm> norm_;
  std::unique_ptr<Linear> head_;  // absent when tied
};

// Rows of sin and cos (1706.03762 section 3.5): [positions, dim], column 2t sin(p /
// 10000^(2t/dim)), 2t+1 cos.
Tensor sinusoidal_positions(int64_t positions, int64_t dim);

}  // namespace fovea::nn
