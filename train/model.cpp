// SPDX-License-Identifier: Apache-2.0
#include "train/model.h"

#include <algorithm>

#include "attention/over_parts.h"
#include "attention/registry.h"
#include "nn/loss.h"
#include "train/model_options.h"

namespace fovea::train {
namespace {

nn::MixerFactory mixer_factory(const config::Choice& attention) {
  return [&attention](int64_t channels, int64_t layer, int64_t layers) {
    return attention::make_attention(attention, channels, layer, layers);
  };
}

nn::CrossEntropyOptions loss_options(const TrainOptions& options) {
  nn::CrossEntropyOptions loss;
  loss.label_smoothing = options.label_smoothing;
  loss.z_loss = options.z_loss;
  return loss;
}

// Loss and argmax against targets over rows of logits [R, V]; targets i64 [R], -100 = not scored.
EvalSums score(const Variable& logits, const Tensor& targets) {
  const int64_t classes = logits.dim(-1);
  const Tensor rows = logits.value().to(kCpu).reshape({-1, classes}).to(Dtype::f32).contiguous();
  const Tensor labels = targets.to(kCpu).contiguous();
  EvalSums sums;
  for (int64_t r = 0; r < labels.numel(); ++r) {
    const int64_t label = labels.data<int64_t>()[r];
    if (label < 0) continue;
    const float* row = rows.data<float>() + r * classes;
    sums.correct += std::max_element(row, row + classes) - row == label ? 1.0 : 0.0;
    sums.scored += 1.0;
  }
  if (sums.scored > 0)
    sums.loss = nn::cross_entropy(logits, targets, {}).value().item() * sums.scored;
  return sums;
}

// With the systems that take parts of sequences, where `attention` is none of them.
std::string refusal(const std::string& attention, const std::string& why) {
  if (why.empty()) return why;
  const auto known = attention::systems().find(attention);
  std::string others;
  for (const auto& [name, system] : attention::systems())
    if (system.parts) others += (others.empty() ? "; parts of them: " : ", ") + name;
  const bool takes_parts = known != attention::systems().end() && known->second.parts;
  return concat("attention ", attention, ' ', why, takes_parts ? "" : others);
}

// Next-token prediction: inputs i64 [B, N], targets i64 [B, N].
class LanguageModel final : public Model {
 public:
  LanguageModel(const nn::GptOptions& options, int64_t vocab, const nn::MixerFactory& mixer,
                std::string attention)
      : gpt_(options, vocab, mixer), attention_(std::move(attention)) {}
  nn::Module& module() override { return gpt_; }
  void initialise(uint64_t seed) override { gpt_.initialise(seed, gpt_.options().init_scale); }
  void set_compute(Dtype compute) override { gpt_.set_compute(compute); }
  Variable loss(const data::Batch& batch, const TrainOptions& options,
                const nn::SequencePart* part) override {
    return nn::cross_entropy(gpt_.forward(batch.inputs, batch.documents, part), batch.targets,
                             loss_options(options));
  }
  EvalSums evaluate(const data::Batch& batch, const nn::SequencePart* part) override {
    const NoGrad no_grad;
    return score(gpt_.forward(batch.inputs, batch.documents, part), batch.targets);
  }
  int64_t tokens(int64_t context) const override { return context; }
  std::string refuses(const nn::SequencePart& part) const override {
    return refusal(attention_, gpt_.refuses(part));
  }
  std::optional<attention::Mask> mask(int64_t batch, int64_t tokens,
                                      const Tensor& documents) const override {
    const auto* says = dynamic_cast<const attention::SaysMask*>(&gpt_.block(0).mixer());
    if (says == nullptr) return {};
    return says->mask_of(batch, tokens, nn::Gpt::context_of(documents));
  }
  double step_flops(int64_t samples) const override {
    return 3.0 * gpt_.forward_flops(samples, gpt_.options().context);
  }
  int64_t units_per_sample() const override { return gpt_.options().context; }
  const char* unit() const override { return "tok"; }
  nn::Gpt* gpt() override { return &gpt_; }

 private:
  nn::Gpt gpt_;
  std::string attention_;  // its kind
};

// Classification: inputs f32 [B, C, H, W], targets i64 [B] or soft targets f32 [B, classes].
class ImageModel final : public Model {
 public:
  ImageModel(const nn::VitOptions& options, const data::Description& data,
             const nn::MixerFactory& mixer, std::string attention)
      : vit_(options, data.channels, data.height, data.width, data.classes, mixer),
        attention_(std::move(attention)) {}
  nn::Module& module() override { return vit_; }
  void initialise(uint64_t seed) override { vit_.initialise(seed, vit_.options().init_scale); }
  void set_compute(Dtype compute) override { vit_.set_compute(compute); }
  Variable loss(const data::Batch& batch, const TrainOptions& options,
                const nn::SequencePart* part) override {
    const Variable logits = vit_.forward(Variable(batch.inputs), part);
    if (batch.soft_targets.defined())
      return nn::cross_entropy_soft(logits, batch.soft_targets, loss_options(options));
    return nn::cross_entropy(logits, batch.targets, loss_options(options));
  }
  EvalSums evaluate(const data::Batch& batch, const nn::SequencePart* part) override {
    const NoGrad no_grad;
    const Variable logits = vit_.forward(Variable(batch.inputs), part);
    return part == nullptr || part->holds_first() ? score(logits, batch.targets) : EvalSums();
  }
  int64_t tokens(int64_t) const override { return vit_.tokens(); }
  std::string refuses(const nn::SequencePart& part) const override {
    return refusal(attention_, vit_.refuses(part));
  }
  std::optional<attention::Mask> mask(int64_t, int64_t, const Tensor&) const override { return {}; }
  double step_flops(int64_t samples) const override { return 3.0 * vit_.forward_flops(samples); }
  int64_t units_per_sample() const override { return 1; }
  const char* unit() const override { return "img"; }

 private:
  nn::Vit vit_;
  std::string attention_;  // its kind
};

}  // namespace

EvalSums& EvalSums::operator+=(const EvalSums& other) {
  loss += other.loss;
  correct += other.correct;
  scored += other.scored;
  return *this;
}

int64_t scored_positions(const data::Batch& batch) {
  if (batch.soft_targets.defined()) return batch.soft_targets.dim(0);
  const Tensor targets = batch.targets.to(kCpu).contiguous();
  const int64_t* labels = targets.data<int64_t>();
  return std::count_if(labels, labels + targets.numel(), [](int64_t label) { return label >= 0; });
}

// ---- options and factory ------------------------------------------------------------------------

GptModelOptions::GptModelOptions() : attention(attention::attention_choice()) {}
void GptModelOptions::describe(config::Fields& f) {
  nn::GptOptions::describe(f);
  f.choice("attention", attention, "token mixer: a folder under attention/");
}

VitModelOptions::VitModelOptions() : attention(attention::attention_choice()) {}
void VitModelOptions::describe(config::Fields& f) {
  nn::VitOptions::describe(f);
  f.choice("attention", attention, "token mixer: a folder under attention/");
}

config::Choice model_choice() {
  return config::Choice({{"gpt", [] { return std::make_unique<GptModelOptions>(); }},
                         {"vit", [] { return std::make_unique<VitModelOptions>(); }}},
                        "gpt");
}

std::unique_ptr<Model> make_model(Experiment& experiment, const data::Description& data,
                                  const nn::MixerFactory& mixer) {
  const std::string given = "given by the program";
  if (auto* gpt = dynamic_cast<GptModelOptions*>(&experiment.model.options())) {
    FOVEA_CHECK(data.is_tokens, "model: kind \"gpt\" learns from tokens, but data kind \"",
                experiment.data.kind(), "\" gives images");
    FOVEA_CHECK(data.context <= gpt->context, "model: context ", gpt->context,
                " is shorter than the data's sequences of ", data.context, " tokens");
    return std::make_unique<LanguageModel>(*gpt, data.vocab_size,
                                           mixer ? mixer : mixer_factory(gpt->attention),
                                           mixer ? given : gpt->attention.kind());
  }
  auto* vit = dynamic_cast<VitModelOptions*>(&experiment.model.options());
  FOVEA_CHECK(vit != nullptr, "model: unknown kind \"", experiment.model.kind(), '"');
  FOVEA_CHECK(!data.is_tokens, "model: kind \"vit\" learns from images, but data kind \"",
              experiment.data.kind(), "\" gives tokens");
  return std::make_unique<ImageModel>(*vit, data, mixer ? mixer : mixer_factory(vit->attention),
                                      mixer ? given : vit->attention.kind());
}

}  // namespace fovea::train
