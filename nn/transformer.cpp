// SPDX-License-Identifier: Apache-2.0
#include "nn/transformer.h"

#include <cmath>

#include "autograd/recompute.h"
#include "core/ops/elementwise.h"
#include "nn/dropout.h"

namespace fovea::nn {

void TransformerOptions::describe(config::Fields& f) {
  f.add("layers", layers, "transformer blocks", config::from_to(1, 4096));
  f.add("dim", dim, "channels of the residual stream", config::from_to(1, 1 << 20));
  f.add("norm", norm, "normalisation before each sublayer", config::one_of({"layer", "rms"}));
  f.add("norm_eps", norm_eps, "added to the variance", config::positive());
  f.add("bias", bias, "biases in linear layers and LayerNorm");
  f.add("mlp", mlp, "activation of the feed-forward half",
        config::one_of({"relu", "gelu", "gelu_tanh", "silu", "swiglu"}));
  f.add("mlp_ratio", mlp_ratio, "hidden channels per channel (swiglu: 2/3 of it)",
        config::positive());
  f.add("dropout", dropout, "rate on embeddings and sublayer outputs", config::fraction());
  f.add("drop_path", drop_path,
        "rate of dropped sublayers at the last block, growing linearly from 0", config::fraction());
  f.add("init_scale", init_scale, "multiplies the deviations of the initial weights (0.02)",
        config::positive());
  f.add("recompute", recompute, "keep only block inputs and recompute the rest in backward");
}

namespace {

NormKind norm_kind(const TransformerOptions& options) {
  return options.norm == "rms" ? NormKind::rms : NormKind::layer;
}

}  // namespace

std::unique_ptr<Norm> make_norm(const TransformerOptions& options) {
  return std::make_unique<Norm>(norm_kind(options), options.dim, options.norm_eps, options.bias);
}

// ---- Block --------------------------------------------------------------------------------------

Block::Block(const TransformerOptions& options, int64_t layer, std::unique_ptr<Mixer> mixer)
    : dropout_(options.dropout),
      drop_path_(options.layers > 1 ? options.drop_path * static_cast<double>(layer) /
                                          static_cast<double>(options.layers - 1)
                                    : 0.0),
      norm1_(norm_kind(options), options.dim, options.norm_eps, options.bias),
      norm2_(norm_kind(options), options.dim, options.norm_eps, options.bias),
      mixer_(std::move(mixer)),
      mlp_(options.dim, {options.mlp, options.mlp_ratio, options.bias},
           Init::normal(0.02 / std::sqrt(2.0 * static_cast<double>(options.layers)))) {
  FOVEA_CHECK(mixer_ != nullptr, "block: no mixer given");
  declare("norm1", norm1_);
  declare("attention", *mixer_);
  declare("norm2", norm2_);
  declare("mlp", mlp_);
}

Variable Block::drop(const Variable& x, const Module& owner, const SequencePart* part) const {
  return nn::drop_path(dropout(x, dropout_, owner, part), drop_path_, owner);
}

Residual Block::forward(const Residual& in, const MixerContext& context, Dtype compute) const {
  const MemoryLabel label(activations());
  if (context.part != nullptr) {
    const std::string why = mixer_->refuses(*context.part);
    FOVEA_CHECK(why.empty(), mixer_->path(), ": ", why);
  }
  const auto attend = [&](const Variable& to) {
    const MemoryLabel inner(mixer_->activations());
    return drop(mixer_->forward(to, context), *mixer_, context.part);
  };
  const auto feed_forward = [&](const Variable& to) {
    const MemoryLabel inner(mlp_.activations());
    return drop(mlp_.forward(to), mlp_, context.part);
  };
  Variable x = in.x, h;
  if (in.delta.defined()) {
    const Variables sum_and_norm = norm1_.add_forward(x, in.delta, compute);
    x = sum_and_norm[0];
    h = sum_and_norm[1];
  } else {
    h = norm1_.forward(x, compute);
  }
  const Variables sum_and_norm = norm2_.add_forward(x, attend(h), compute);
  return {sum_and_norm[0], feed_forward(sum_and_norm[1])};
}

Tensor Block::decode(const Tensor& x, MixerState& state, Dtype compute) const {
  const NoGrad no_grad;
  const Variable in(x);
  const Tensor mixed = mixer_->decode(norm1_.forward(in, compute).value(), state);
  const Variables sum_and_norm = norm2_.add_forward(in, Variable(mixed), compute);
  return add(sum_and_norm[0].value(), mlp_.forward(sum_and_norm[1]).value());
}

double Block::forward_flops(int64_t batch, int64_t tokens) const {
  return mixer_->forward_flops(batch, tokens) +
         mlp_.flops_per_token() * static_cast<double>(batch * tokens);
}

// ---- Stack --------------------------------------------------------------------------------------

Stack::Stack(const TransformerOptions& options, const MixerFactory& mixer)
    : recompute_(options.recompute) {
  for (int64_t layer = 0; layer < options.layers; ++layer) {
    blocks_.push_back(
        std::make_unique<Block>(options, layer, mixer(options.dim, layer, options.layers)));
    declare(std::to_string(layer), *blocks_.back());
  }
}

Residual Stack::forward(const Variable& x, const MixerContext& context, Dtype compute) const {
  Residual stream{x, Variable()};
  for (const auto& block : blocks_) {
    // By value: with recompute the closure is run again in backward.
    const auto run = [block = block.get(), context, compute](const Variables& in) -> Variables {
      const Residual out =
          block->forward({in[0], in.size() > 1 ? in[1] : Variable()}, context, compute);
      return {out.x, out.delta};
    };
    Variables in{stream.x};
    if (stream.delta.defined()) in.push_back(stream.delta);
    const Variables out = recompute_ && grad_enabled() ? recompute(run, in) : run(in);
    stream = {out[0], out[1]};
  }
  return stream;
}

Tensor Stack::decode(Tensor x, const std::vector<std::unique_ptr<MixerState>>& states,
                     Dtype compute) const {
  for (size_t layer = 0; layer < blocks_.size(); ++layer)
    x = blocks_[layer]->decode(x, *states[layer], compute);
  return x;
}

std::vector<std::unique_ptr<MixerState>> Stack::make_states(int64_t batch,
                                                            int64_t max_tokens) const {
  std::vector<std::unique_ptr<MixerState>> states;
  for (const auto& block : blocks_) states.push_back(block->mixer().make_state(batch, max_tokens));
  return states;
}

std::string Stack::refuses(const SequencePart& part) const {
  std::string why;
  for (const auto& block : blocks_)
    if (why.empty()) why = block->mixer().refuses(part);
  return why;
}

double Stack::forward_flops(int64_t batch, int64_t tokens) const {
  double flops = 0.0;
  for (const auto& block : blocks_) flops += block->forward_flops(batch, tokens);
  return flops;
}

}  // namespace fovea::nn
