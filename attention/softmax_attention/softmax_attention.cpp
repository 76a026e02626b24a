// SPDX-License-Identifier: Apache-2.0
#include "attention/softmax_attention/softmax_attention.h"

#include <cmath>

#include "autograd/ops.h"

namespace fovea::attention {
namespace {

Rope parse_rope(const std::string& name) {
  return name == "interleaved" ? Rope::interleaved : name == "half" ? Rope::half : Rope::none;
}

int64_t head_dim_of(const SoftmaxAttentionOptions& o, int64_t channels) {
  FOVEA_CHECK(o.head_dim > 0 || channels % o.heads == 0, "softmax_attention: ", o.heads,
              " heads do not divide ", channels,
              " channels; set head_dim or another number of heads");
  return o.head_dim > 0 ? o.head_dim : channels / o.heads;
}
int64_t kv_heads_of(const SoftmaxAttentionOptions& o) {
  const int64_t kv_heads = o.kv_heads > 0 ? o.kv_heads : o.heads;
  FOVEA_CHECK(o.heads % kv_heads == 0, "softmax_attention: ", kv_heads, " key heads do not divide ",
              o.heads, " heads");
  return kv_heads;
}

// Keys and values of the last tokens, in buffers of `capacity` tokens. With a window, tokens out of
// reach are dropped by moving the rest to the front once the buffer is full: positions enter scores
// only as differences.
class KeyValueState final : public nn::MixerState {
 public:
  KeyValueState(int64_t batch, int64_t kv_heads, int64_t head_dim, int64_t capacity, int64_t keep)
      : shape_{batch, kv_heads, capacity, head_dim}, keep_(keep) {}
  int64_t bytes() const override { return keys_.defined() ? keys_.bytes() + values_.bytes() : 0; }

  // Appends k, v [B, Hkv, n, D] and returns views of all that is held.
  std::pair<Tensor, Tensor> append(const Tensor& k, const Tensor& v) {
    const int64_t n = k.dim(2);
    if (!keys_.defined() || shape_[2] < n + std::min(count_, keep_)) {
      shape_[2] = std::max(shape_[2], n + std::min(count_, keep_));
      grow(k.dtype(), k.device());
    }
    if (count_ + n > shape_[2]) keep_last(std::min(count_, keep_));
    keys_.slice(2, count_, count_ + n).copy_(k);
    values_.slice(2, count_, count_ + n).copy_(v);
    count_ += n;
    return {keys_.slice(2, 0, count_), values_.slice(2, 0, count_)};
  }

 private:
  void grow(Dtype dtype, Device device) {
    const Tensor keys = Tensor::empty(shape_, dtype, device),
                 values = Tensor::empty(shape_, dtype, device);
    if (keys_.defined()) {
      keys.slice(2, 0, count_).copy_(keys_.slice(2, 0, count_));
      values.slice(2, 0, count_).copy_(values_.slice(2, 0, count_));
    }
    keys_ = keys;
    values_ = values;
  }
  void keep_last(int64_t kept) {
    for (const Tensor& t : {keys_, values_}) {
      const Tensor last = t.slice(2, count_ - kept, count_).contiguous().clone();
      t.slice(2, 0, kept).copy_(last);
    }
    count_ = kept;
  }

  Shape shape_;
  int64_t keep_;
  int64_t count_ = 0;
  Tensor keys_, values_;
};

// The operator's options: what golden files may set.
struct OperatorOptions : config::Options {
  bool causal = false;
  double scale = 0.0, softcap = 0.0;
  int64_t window = 0;
  std::string rope = "none";
  double rope_base = 10000.0;
  bool alibi = false;
  void describe(config::Fields& f) override {
    f.add("causal", causal, "queries see no later keys");
    f.add("scale", scale, "of q.k; 0: D^-1/2", config::at_least(0.0));
    f.add("softcap", softcap, "c tanh(s / c) on scores; 0: none", config::at_least(0.0));
    f.add("window", window, "keys at most this far away; 0: all", config::at_least(0), "tokens");
    f.add("rope", rope, "rotary positions", config::one_of({"none", "interleaved", "half"}));
    f.add("rope_base", rope_base, "of the rotary angles", config::positive());
    f.add("alibi", alibi, "linear biases by distance");
  }
};

Mask make_mask(bool causal, int64_t window) {
  Mask mask;
  if (causal) mask.causal();
  if (window > 0) mask.window(window, causal ? -1 : window);
  return mask;
}

NamedVariables run_operator(const NamedVariables& tensors, const config::Options& any) {
  const auto& o = dynamic_cast<const OperatorOptions&>(any);
  ScoreOptions options;
  options.scale = o.scale;
  options.softcap = o.softcap;
  options.rope = parse_rope(o.rope);
  options.rope_base = o.rope_base;
  const Variable& q = tensors.at("q");
  const auto optional = [&](const char* name) {
    const auto found = tensors.find(name);
    return found == tensors.end() ? Variable() : found->second;
  };
  return {
      {"out", softmax_attention(q, tensors.at("k"), tensors.at("v"), optional("sink"),
                                o.alibi ? alibi_slopes(q.dim(1)).to(q.value().device()) : Tensor(),
                                make_mask(o.causal, o.window), options, optional("bias"))}};
}

}  // namespace

void SoftmaxAttentionOptions::describe(config::Fields& f) {
  f.add("heads", heads, "query heads", config::at_least(1));
  f.add("kv_heads", kv_heads,
        "key and value heads, each shared by heads / kv_heads query heads; 0: as many as heads",
        config::at_least(0));
  f.add("head_dim", head_dim, "channels of a head; 0: dim / heads", config::at_least(0));
  f.add("bias", bias, "in both projections");
  f.add("qk_norm", qk_norm, "normalise queries and keys head by head",
        config::one_of({"none", "rms", "l2"}));
  f.add("softcap", softcap, "c tanh(s / c) on scores; 0: none", config::at_least(0.0));
  f.add("window", window, "keys at most this far away; 0: all", config::at_least(0), "tokens");
  f.add("sink", sink, "a learned score per head that takes weight and gives no value");
  f.add("rope", rope, "rotary positions", config::one_of({"none", "interleaved", "half"}));
  f.add("rope_base", rope_base, "of the rotary angles", config::positive());
  f.add("alibi", alibi, "linear biases by distance");
  f.add("dropout", dropout, "rate, of attention probabilities", config::fraction());
  f.add("deterministic", deterministic,
        "the same bits in every run; false: a faster backward in bf16 on a GPU device");
}

SoftmaxAttention::SoftmaxAttention(const SoftmaxAttentionOptions& options, int64_t channels,
                                   int64_t, int64_t layers)
    : options_(options),
      heads_(options.heads),
      kv_heads_(kv_heads_of(options)),
      head_dim_(head_dim_of(options, channels)),
      qkv_(channels, (heads_ + 2 * kv_heads_) * head_dim_, options.bias),
      out_(heads_ * head_dim_, channels, options.bias,
           nn::Init::normal(0.02 / std::sqrt(2.0 * static_cast<double>(layers)))) {
  FOVEA_CHECK(options.rope == "none" || head_dim_ % 2 == 0,
              "softmax_attention: rotary positions need an even head_dim, found ", head_dim_);
  declare("qkv", qkv_);
  declare("out", out_);
  if (options.sink) sink_ = declare("sink", {heads_}, nn::Init::zeros());
  if (options.qk_norm == "rms") {
    q_norm_ = std::make_unique<nn::Norm>(nn::NormKind::rms, head_dim_, 1e-6, false);
    k_norm_ = std::make_unique<nn::Norm>(nn::NormKind::rms, head_dim_, 1e-6, false);
    declare("q_norm", *q_norm_);
    declare("k_norm", *k_norm_);
  }
  // x / |x| is RMSNorm with weight D^-1/2.
  if (options.qk_norm == "l2")
    ones_ = Tensor::full({head_dim_}, 1.0 / std::sqrt(static_cast<double>(head_dim_)));
  if (options.alibi) slopes_ = alibi_slopes(heads_);
  declare_constant(ones_);
  declare_constant(slopes_);
}

ScoreOptions SoftmaxAttention::score_options() const {
  ScoreOptions score;
  if (options_.qk_norm == "l2") score.scale = std::sqrt(static_cast<double>(head_dim_));
  score.softcap = options_.softcap;
  score.rope = parse_rope(options_.rope);
  score.rope_base = options_.rope_base;
  score.deterministic = options_.deterministic;
  if (training() && options_.dropout > 0.0) {
    score.dropout = options_.dropout;
    score.rng = nn::current_rng("attention", path());
    score.first_sample = nn::RandomScope::current().first_sample;
  }
  return score;
}

Mask SoftmaxAttention::mask_of(int64_t, int64_t, const nn::MixerContext& context) const {
  Mask mask = make_mask(context.causal, options_.window);
  if (context.documents.defined()) mask.documents(context.documents, context.documents);
  return mask;
}

Variable SoftmaxAttention::normalised(const Variable& x,
                                      const std::unique_ptr<nn::Norm>& norm) const {
  if (norm) return norm->forward(x, x.dtype());
  return nn::norm(x, Variable(x.dtype() == Dtype::f64 ? ones_.to(Dtype::f64) : ones_), Variable(),
                  {nn::NormKind::rms, 1e-12, x.dtype()});
}

Variable SoftmaxAttention::forward(const Variable& x, const nn::MixerContext& context) {
  FOVEA_CHECK(x.value().rank() == 3, "softmax_attention: expected x [B, N, C], found ", x.shape());
  const Mask seen = mask_of(x.dim(0), x.dim(1), context);
  const Variable qkv = qkv_.forward(x);
  if (options_.qk_norm == "none" && context.part == nullptr)
    return out_.forward(
        softmax_attention_packed(qkv, heads_, kv_heads_, sink_, slopes_, seen, score_options()));

  const int64_t batch = x.dim(0), tokens = x.dim(1), query = heads_ * head_dim_,
                key = kv_heads_ * head_dim_;
  const auto part = [&](int64_t begin, int64_t end, int64_t heads) {
    return reshape(slice(qkv, 2, begin, end), {batch, tokens, heads, head_dim_});
  };
  Variable q = part(0, query, heads_), k = part(query, query + key, kv_heads_);
  if (options_.qk_norm != "none") q = normalised(q, q_norm_), k = normalised(k, k_norm_);
  q = transpose(q, 1, 2), k = transpose(k, 1, 2);
  const Variable v = transpose(part(query + key, query + 2 * key, kv_heads_), 1, 2);
  const Variable mixed =
      attend(context.part, softmax_rule(), q, k, v, sink_, slopes_, seen, score_options());
  return out_.forward(reshape(transpose(mixed, 1, 2), {batch, tokens, query}));
}

std::string SoftmaxAttention::refuses(const nn::SequencePart& part) const {
  return refusal(part, {Sees::scores}, heads_, kv_heads_);
}

std::unique_ptr<nn::MixerState> SoftmaxAttention::make_state(int64_t batch, int64_t max_tokens) {
  const int64_t keep = options_.window > 0 ? std::min(options_.window, max_tokens) : max_tokens;
  return std::make_unique<KeyValueState>(batch, kv_heads_, head_dim_,
                                         std::min(max_tokens, 2 * keep), keep);
}

Tensor SoftmaxAttention::decode(const Tensor& x, nn::MixerState& state) {
  const NoGrad no_grad;
  auto [q, k, v] = unpack_qkv(qkv_.forward(Variable(x)).value(), heads_, kv_heads_);
  if (options_.qk_norm != "none") {
    q = normalised(Variable(q.contiguous()), q_norm_).value();
    k = normalised(Variable(k.contiguous()), k_norm_).value();
  }
  const auto [keys, values] = dynamic_cast<KeyValueState&>(state).append(k, v);
  ScoreOptions score = score_options();
  const ScoreResult result =
      softmax_forward({q, keys, values, slopes_, sink_.defined() ? sink_.value() : Tensor()},
                      make_mask(true, options_.window), score);
  return out_
      .forward(Variable(result.out.transpose(1, 2).view({x.dim(0), x.dim(1), heads_ * head_dim_})))
      .value();
}

double SoftmaxAttention::forward_flops(int64_t batch, int64_t tokens) const {
  const auto rows = static_cast<double>(batch * tokens);
  const auto reach =
      static_cast<double>(options_.window > 0 ? std::min(tokens, options_.window) : tokens);
  return 2.0 * rows *
             static_cast<double>(qkv_.weight.value().numel() + out_.weight.value().numel()) +
         4.0 * rows * reach * static_cast<double>(heads_ * head_dim_);
}

System register_softmax_attention() {
  System system;
  system.name = "softmax_attention";
  system.title = "scaled dot-product softmax attention, in tiles";
  system.paper = "1706.03762, 2205.14135";
  system.family = "score";
  system.parts = true;
  system.options = [] { return std::make_unique<SoftmaxAttentionOptions>(); };
  system.make = [](const config::Options& options, int64_t channels, int64_t layer,
                   int64_t layers) -> std::unique_ptr<nn::Mixer> {
    return std::make_unique<SoftmaxAttention>(dynamic_cast<const SoftmaxAttentionOptions&>(options),
                                              channels, layer, layers);
  };
  system.op.options = [] { return std::make_unique<OperatorOptions>(); };
  system.op.inputs = {{"q", "[B, H, N, D]"}, {"k", "[B, Hkv, M, D]"}, {"v", "[B, Hkv, M, Dv]"}};
  system.op.params = {{"sink", "[H]", true}, {"bias", "[B or 1, H or 1, N, M]", true}};
  system.op.outputs = {{"out", "[B, H, N, Dv]"}};
  system.op.run = run_operator;
  return system;
}

}  // namespace fovea::attention
