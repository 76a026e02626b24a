// SPDX-License-Identifier: Apache-2.0
#include "train/plan/gpt_sizes.h"

#include <algorithm>

#include "data/source.h"
#include "nn/mlp.h"
#include "train/model_options.h"

namespace fovea::train {
namespace {

// The value of a key, where the options have it.
template <typename T>
std::optional<T> value_of(config::Options& options, const std::string& key) {
  config::Fields fields;
  options.describe(fields);
  for (const config::Field& field : fields.fields())
    if (T* const* value = std::get_if<T*>(&field.target); value != nullptr && field.key == key)
      return **value;
  return {};
}

// What of `options` a mask's options have too.
void copy_mask(attention::MaskOptions& mask, config::Options& options) {
  config::Fields to, from;
  mask.describe(to);
  options.describe(from);
  for (const config::Field& a : to.fields()) {
    for (const config::Field& b : from.fields()) {
      if (a.key != b.key || a.target.index() != b.target.index()) continue;
      std::visit(
          [&](auto* target) { *target = *std::get<std::remove_cv_t<decltype(target)>>(b.target); },
          a.target);
    }
  }
}

void read_attention(GptSizes& z, const config::Choice& attention) {
  config::Options& options = attention.options();
  const auto heads = value_of<int64_t>(options, "heads");
  FOVEA_CHECK(attention.kind() == "softmax_attention" || attention.kind() == "long_context",
              "plan: the cost of attention \"", attention.kind(),
              "\" is not known; expected softmax_attention or long_context");
  z.heads = *heads;
  z.kv_heads = value_of<int64_t>(options, "kv_heads").value_or(0);
  if (z.kv_heads == 0) z.kv_heads = z.heads;
  z.head_dim = value_of<int64_t>(options, "head_dim").value_or(0);
  FOVEA_CHECK(z.head_dim > 0 || z.dim % z.heads == 0, "plan: ", z.heads, " heads do not divide ",
              z.dim, " channels");
  FOVEA_CHECK(z.heads % z.kv_heads == 0, "plan: ", z.kv_heads, " key heads do not divide ", z.heads,
              " heads");
  if (z.head_dim == 0) z.head_dim = z.dim / z.heads;
  z.attention_bias = value_of<bool>(options, "bias").value_or(true);
  z.sink = value_of<bool>(options, "sink").value_or(false);
  z.norms_of_heads = value_of<std::string>(options, "qk_norm").value_or("none") == "rms";
  if (attention.kind() == "long_context") {
    copy_mask(z.mask, options);
  } else if (const int64_t window = value_of<int64_t>(options, "window").value_or(0); window > 0) {
    z.mask.kind = "sliding_window";
    z.mask.window = {window, 0};
  }
}

}  // namespace

attention::Mask GptSizes::mask_of(int64_t n) const {
  attention::MaskOptions small = mask;
  const auto shrink = [&](int64_t x) { return x <= 0 ? x : std::max<int64_t>(1, x * n / tokens); };
  for (int64_t& reach : small.window) reach = shrink(reach);
  small.global_tokens = shrink(small.global_tokens);
  small.prefix = shrink(small.prefix);
  small.block = shrink(small.block);
  return small.mask(n, Tensor::zeros({1, n}, Dtype::i32)).causal();
}

int64_t GptSizes::block_matrices() const {
  return dim * qkv_columns() + heads * head_dim * dim + dim * up_columns() + hidden * dim;
}

int64_t GptSizes::block_parameters() const {
  const int64_t norm = dim * (layer_norm && bias ? 2 : 1);
  return block_matrices() + 2 * norm + (attention_bias ? qkv_columns() + dim : 0) +
         (bias ? up_columns() + dim : 0) + (sink ? heads : 0) + (norms_of_heads ? 2 * head_dim : 0);
}

int64_t GptSizes::parameters() const {
  return vocab * dim * (tied_head ? 1 : 2) + positions * dim + layers * block_parameters() +
         dim * (layer_norm && bias ? 2 : 1);
}

GptSizes gpt_sizes(Experiment& experiment, std::optional<int64_t> vocab) {
  auto* gpt = dynamic_cast<GptModelOptions*>(&experiment.model.options());
  FOVEA_CHECK(gpt != nullptr, "plan: expected a model of kind \"gpt\", found \"",
              experiment.model.kind(), "\", whose cost is not known");
  GptSizes z;
  z.layers = gpt->layers;
  z.dim = gpt->dim;
  z.bias = gpt->bias;
  z.layer_norm = gpt->norm != "rms";
  z.swiglu = gpt->mlp == "swiglu";
  z.hidden = nn::Mlp::hidden_channels(gpt->dim, {gpt->mlp, gpt->mlp_ratio, gpt->bias});
  z.tied_head = gpt->tied_head;
  z.recompute = gpt->recompute;
  z.positions = gpt->positions == "learned" ? gpt->context : 0;
  z.position_added = gpt->positions != "none";
  z.compute = experiment.train.compute();
  read_attention(z, gpt->attention);
  if (vocab) {
    z.vocab = *vocab;
    z.tokens = value_of<int64_t>(experiment.data.options(), "context").value_or(gpt->context);
  } else {
    const auto source = data::make_source(experiment.data, data::Split::train);
    const data::Description& data = source->description();
    FOVEA_CHECK(data.is_tokens, "plan: a gpt learns from tokens, but data kind \"",
                experiment.data.kind(), "\" gives images");
    z.vocab = data.vocab_size;
    z.tokens = data.context;
  }
  FOVEA_CHECK(z.tokens >= 1 && z.tokens <= gpt->context, "plan: samples of ", z.tokens,
              " tokens, but model.context is ", gpt->context);
  return z;
}

}  // namespace fovea::train
