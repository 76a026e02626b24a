// SPDX-License-Identifier: Apache-2.0
#include "attention/long_context/long_context.h"

#include <cmath>

#include "autograd/ops.h"

namespace fovea::attention {
namespace {

Rope parse_rope(const std::string& name) {
  return name == "interleaved" ? Rope::interleaved : name == "half" ? Rope::half : Rope::none;
}

// The operator's options: what golden files may set.
struct OperatorOptions : config::Options {
  SequenceMaskOptions mask;
  double scale = 0.0;
  void describe(config::Fields& f) override {
    mask.describe(f);
    f.add("scale", scale, "of q.k; 0: D^-1/2", config::at_least(0.0));
  }
};

NamedVariables run_operator(const NamedVariables& tensors, const config::Options& any) {
  const auto& o = dynamic_cast<const OperatorOptions&>(any);
  ScoreOptions options;
  options.scale = o.scale;
  const Variable& q = tensors.at("q");
  const auto blocks = tensors.find("block_mask");
  const Mask mask = o.mask.mask(
      q.dim(0), q.dim(2), blocks == tensors.end() ? Tensor() : blocks->second.value().to(kCpu));
  return {{"out", softmax_attention(q, tensors.at("k"), tensors.at("v"), Variable(), Tensor(),
                                    mask.to(q.value().device()), options)}};
}

int64_t kv_heads_of(const LongContextOptions& o) {
  const int64_t kv_heads = o.kv_heads > 0 ? o.kv_heads : o.heads;
  FOVEA_CHECK(o.heads % kv_heads == 0, "long_context: ", kv_heads, " key heads do not divide ",
              o.heads, " heads");
  return kv_heads;
}

}  // namespace

void LongContextOptions::describe(config::Fields& f) {
  f.add("heads", heads, "query heads", config::at_least(1));
  f.add("kv_heads", kv_heads,
        "key and value heads, each shared by heads / kv_heads query heads; 0: as many as heads",
        config::at_least(0));
  f.add("bias", bias, "in both projections");
  mask.describe(f);
  f.add("rope", rope, "rotary positions", config::one_of({"none", "interleaved", "half"}));
  f.add("rope_base", rope_base, "of the rotary angles", config::positive());
}

LongContext::LongContext(const LongContextOptions& options, int64_t channels, int64_t layers)
    : options_(options),
      heads_(options.heads),
      kv_heads_(kv_heads_of(options)),
      head_dim_(channels / options.heads),
      qkv_(channels, (heads_ + 2 * kv_heads_) * head_dim_, options.bias),
      out_(heads_ * head_dim_, channels, options.bias,
           nn::Init::normal(0.02 / std::sqrt(2.0 * static_cast<double>(layers)))) {
  FOVEA_CHECK(channels % heads_ == 0, "long_context: ", heads_, " heads do not divide ", channels,
              " channels");
  FOVEA_CHECK(options.rope == "none" || head_dim_ % 2 == 0,
              "long_context: rotary positions need an even head dim, found ", head_dim_);
  declare("qkv", qkv_);
  declare("out", out_);
}

Mask LongContext::mask_of(int64_t B, int64_t N, const nn::MixerContext& context) const {
  FOVEA_CHECK(!context.causal || !options_.mask.kind.starts_with("prefix_lm"),
              "long_context: mask ", options_.mask.kind,
              " lets tokens see later ones, in a model that predicts them");
  const Tensor documents =
      context.documents.defined() ? context.documents : Tensor::zeros({B, N}, Dtype::i32);
  Mask seen = options_.mask.mask(N, documents);
  if (!options_.mask.of_documents() && context.documents.defined())
    seen.documents(documents, documents);
  if (context.causal) seen.causal();
  return seen;
}

Variable LongContext::forward(const Variable& x, const nn::MixerContext& context) {
  FOVEA_CHECK(x.value().rank() == 3, "long_context: expected x [B, N, C], found ", x.shape());
  const int64_t B = x.dim(0), n = x.dim(1);
  const Mask seen = mask_of(B, context.part != nullptr ? context.part->whole() : n, context)
                        .to(x.value().device());
  ScoreOptions score;
  score.rope = parse_rope(options_.rope);
  score.rope_base = options_.rope_base;
  const Variable qkv = qkv_.forward(x);
  if (context.part == nullptr)
    return out_.forward(
        softmax_attention_packed(qkv, heads_, kv_heads_, Variable(), Tensor(), seen, score));
  const auto heads = [&](int64_t first, int64_t count) {
    return transpose(reshape(slice(qkv, 2, first * head_dim_, (first + count) * head_dim_),
                             {B, n, count, head_dim_}),
                     1, 2);
  };
  const Variable mixed =
      attend(context.part, softmax_rule(), heads(0, heads_), heads(heads_, kv_heads_),
             heads(heads_ + kv_heads_, kv_heads_), Variable(), Tensor(), seen, score);
  return out_.forward(reshape(transpose(mixed, 1, 2), {B, n, heads_ * head_dim_}));
}

std::string LongContext::refuses(const nn::SequencePart& part) const {
  return refusal(part, {Sees::scores}, heads_, kv_heads_);
}

double LongContext::forward_flops(int64_t batch, int64_t tokens) const {
  const auto rows = static_cast<double>(batch * tokens);
  const int64_t left = options_.mask.window[0], right = options_.mask.window[1];
  int64_t reach = tokens;
  if (options_.mask.kind == "sliding_window")
    reach = std::min(tokens, (left < 0 ? tokens : left) + 1 + (right < 0 ? tokens : right));
  return 2.0 * rows *
             static_cast<double>(qkv_.weight.value().numel() + out_.weight.value().numel()) +
         4.0 * rows * static_cast<double>(reach) * static_cast<double>(heads_ * head_dim_);
}

System register_long_context() {
  System system;
  system.name = "long_context";
  system.title = "softmax attention under the masks of the long-context benchmark";
  system.paper = "2510.17896";
  system.family = "score";
  system.parts = true;
  system.options = [] { return std::make_unique<LongContextOptions>(); };
  system.make = [](const config::Options& options, int64_t channels, int64_t,
                   int64_t layers) -> std::unique_ptr<nn::Mixer> {
    return std::make_unique<LongContext>(dynamic_cast<const LongContextOptions&>(options), channels,
                                         layers);
  };
  system.op.options = [] { return std::make_unique<OperatorOptions>(); };
  system.op.inputs = {{"q", "[B, H, N, D]"},
                      {"k", "[B, Hkv, N, D]"},
                      {"v", "[B, Hkv, N, Dv]"},
                      {"block_mask", "[H, rows, cols]", true}};
  system.op.outputs = {{"out", "[B, H, N, Dv]"}};
  system.op.run = run_operator;
  return system;
}

}  // namespace fovea::attention
