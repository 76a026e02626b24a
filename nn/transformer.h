// SPDX-License-Identifier: Apache-2.0
#pragma once
// Pre-norm transformer blocks and their stack, shared by GPT and ViT. The sum of the residual
// stream and a sublayer's output is fused with the norm that follows it, so a block hands its MLP's
// output on unadded:
//   x, h = x + delta, norm1(x + delta);  a = mixer(h);  x, h = x + a, norm2(x + a);  delta' =
//   mlp(h)

#include <memory>
#include <string>
#include <vector>

#include "core/config/config.h"
#include "nn/mixer.h"
#include "nn/mlp.h"
#include "nn/norm.h"

namespace fovea::nn {

// What GPT and ViT have in common.
struct TransformerOptions : config::Options {
  int64_t layers = 6;
  int64_t dim = 384;
  std::string norm = "layer";  // layer | rms
  double norm_eps = 1e-5;
  bool bias = true;               // in linear layers and LayerNorm
  std::string mlp = "gelu_tanh";  // relu | gelu | gelu_tanh | silu | swiglu
  double mlp_ratio = 4.0;
  double dropout = 0.0;  // on the embedding and on each sublayer's output
  double drop_path =
      0.0;  // whole sublayers, per sample (1603.09382): rate of the last block, growing from 0
  double init_scale = 1.0;  // of the deviations of the initial weights (0.02)
  bool recompute = false;   // keep only block inputs for backward

  void describe(config::Fields& f) override;
};

// The residual stream x [B, N, C] and the last sublayer's output delta [B, N, C] (absent before the
// first block).
struct Residual {
  Variable x, delta;
};

class Block : public Module {
 public:
  Block(const TransformerOptions& options, int64_t layer, std::unique_ptr<Mixer> mixer);

  // `compute` is the dtype between norm and sublayer output (f32, bf16, f64); the residual stream
  // keeps its own.
  Residual forward(const Residual& in, const MixerContext& context, Dtype compute) const;
  // The next n tokens x [B, n, C], with the mixer's state; returns x after both sublayers.
  Tensor decode(const Tensor& x, MixerState& state, Dtype compute) const;

  Mixer& mixer() const { return *mixer_; }
  double forward_flops(int64_t batch, int64_t tokens) const;

 private:
  // Dropout and DropPath of one sublayer; `owner` names the random streams.
  Variable drop(const Variable& x, const Module& owner, const SequencePart* part) const;

  double dropout_, drop_path_;
  Norm norm1_, norm2_;
  std::unique_ptr<Mixer> mixer_;
  Mlp mlp_;
};

// The final or a block's norm, as the options say.
std::unique_ptr<Norm> make_norm(const TransformerOptions& options);

// blocks "0", "1", ... and the loop over them.
class Stack : public Module {
 public:
  Stack(const TransformerOptions& options, const MixerFactory& mixer);

  // x [B, N, C] before the first block -> the stream after the last, its delta not yet added.
  Residual forward(const Variable& x, const MixerContext& context, Dtype compute) const;
  // One decode step through every block: states holds one per layer.
  Tensor decode(Tensor x, const std::vector<std::unique_ptr<MixerState>>& states,
                Dtype compute) const;
  std::vector<std::unique_ptr<MixerState>> make_states(int64_t batch, int64_t max_tokens) const;

  // Why a block's mixer does not take such a part of a sequence; empty: all do.
  std::string refuses(const SequencePart& part) const;
  double forward_flops(int64_t batch, int64_t tokens) const;
  const Block& operator[](size_t layer) const { return *blocks_[layer]; }

 private:
  bool recompute_;
  std::vector<std::unique_ptr<Block>> blocks_;
};

}  // namespace fovea::nn
