// SPDX-License-Identifier: Apache-2.0
#include "train/trainer.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "core/cuda/device.h"
#include "core/parallel.h"
#include "train/bench/roof.h"
#include "train/sampler.h"

namespace fovea::train {
namespace {

// Rows [begin, end) of every tensor of a batch.
data::Batch slice(const data::Batch& batch, int64_t begin, int64_t end) {
  const auto cut = [&](const Tensor& t) { return t.defined() ? t.slice(0, begin, end) : t; };
  return {cut(batch.inputs), cut(batch.targets), cut(batch.soft_targets)};
}

// What models compute with. Ids and labels stay: they are checked and counted on the host, and a
// GPU gets them from there without its host waiting for it.
data::Batch moved(const data::Batch& batch, Device device) {
  const bool values = is_floating(batch.inputs.dtype());
  return {values ? batch.inputs.to(device) : batch.inputs, batch.targets,
          batch.soft_targets.to(device)};
}

// Of this build, and there: a card that does not answer is an error before anything is made.
Device device_of(const TrainOptions& train) {
  const Device device = parse_device(train.device);
  if (!device.is_cpu()) FOVEA_GPU_CALL(device, device_info, device.index);
  return device;
}

// Evaluations come late in a run: held-out data that the model cannot take are refused at its
// start.
void check_held_out(const data::Description& train, const data::Description& val) {
  FOVEA_CHECK(
      val.channels == train.channels && val.height == train.height && val.width == train.width,
      "data ", train.name, ": held-out images are ", val.channels, " x ", val.height, " x ",
      val.width, ", but training images are ", train.channels, " x ", train.height, " x ",
      train.width);
  FOVEA_CHECK(val.classes <= train.classes, "data ", train.name, ": held-out labels go up to ",
              val.classes - 1, ", but training has ", train.classes, " classes");
  FOVEA_CHECK(val.vocab_size <= train.vocab_size, "data ", train.name,
              ": the held-out vocabulary of ", val.vocab_size, " passes that of training, ",
              train.vocab_size);
  FOVEA_CHECK(val.context <= train.context, "data ", train.name, ": held-out sequences of ",
              val.context, " tokens are longer than the ", train.context, " of training");
}

std::string exact(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.17g", value);
  return text;
}

std::string fixed(double value, int digits) {
  char text[40];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

}  // namespace

Trainer::Trainer(Experiment& experiment)
    : experiment_(experiment), device_(device_of(experiment.train)) {
  const TrainOptions& train = experiment.train;
  if (train.threads > 0) set_num_threads(static_cast<int>(train.threads));
  FOVEA_CHECK(train.micro_batch == 0 || train.batch % train.micro_batch == 0, "train: micro_batch ",
              train.micro_batch, " does not divide batch ", train.batch);
  const auto seed = static_cast<uint64_t>(train.seed);
  train_source_ = data::make_source(experiment.data, data::Split::train);
  val_source_ = data::make_source(experiment.data, data::Split::val);
  check_held_out(train_source_->description(), val_source_->description());
  data::LoaderOptions loader;
  loader.batch = train.batch;
  loader.seed = seed;
  loader_ = std::make_unique<data::Loader>(*train_source_, loader);
  model_ = make_model(experiment, data());
  model_->initialise(seed);
  model_->set_compute(train.compute());
  model_->module().to(device_);
  parameters_ = model_->module().parameters();
  optimizer_ = make_optimizer(experiment.optimizer, parameters_);
  if (train.ema > 0.0) ema_ = std::make_unique<Ema>(parameters_, train.ema);
  graph_ =
      std::make_unique<StepGraph>(StepGraph::parse(train.graph, device_), device_, parameters_,
                                  [this](const data::Batch& batch) { return queue_step(batch); });
}

// ---- one step -----------------------------------------------------------------------------------

Trainer::StepResult Trainer::step() { return step(loader_->next()); }

Trainer::StepResult Trainer::step(const data::Batch& batch) {
  const TrainOptions& train = experiment_.train;
  const int64_t samples = batch.inputs.dim(0);
  const auto scored = static_cast<double>(scored_positions(batch));
  FOVEA_CHECK(scored > 0, "train: step ", step_ + 1, ": no position of the batch has a target");
  // Means over parts are weighted by their scored positions, so that accumulation changes nothing.
  weights_.clear();
  const int64_t micro = micro_batch(samples);
  for (int64_t begin = 0; begin < samples; begin += micro)
    weights_.push_back(static_cast<double>(scored_positions(
                           slice(batch, begin, std::min(samples, begin + micro)))) /
                       scored);

  StepResult result;
  result.lr = learning_rate(experiment_.optimizer.lr, experiment_.schedule, step_, train.steps);
  model_->module().train();
  std::vector<Tensor> losses;
  if (device_.is_cpu()) {
    step_on_cpu(batch, result, losses);
  } else {
    // A GPU is asked for the whole step before the host waits for its numbers.
    optimizer_->advance(result.lr);
    // A part that nobody scores is left out, which a graph cannot do.
    const bool whole = std::find(weights_.begin(), weights_.end(), 0.0) == weights_.end();
    const StepWork work = whole ? graph_->run(batch) : queue_step(batch);
    result.grad_norm = work.norm.item();
    losses = work.losses;
  }
  for (size_t i = 0; i < losses.size(); ++i) {
    if (weights_[i] == 0.0) continue;
    const double loss = losses[i].item();
    check_loss(loss);
    result.loss += weights_[i] * loss;
  }
  check_norm(result.grad_norm);
  if (ema_) ema_->update();
  ++step_;
  return result;
}

// A bad loss or gradient ends the run before the weights move.
void Trainer::step_on_cpu(const data::Batch& batch, StepResult& result,
                          std::vector<Tensor>& losses) {
  losses = accumulate(batch);
  result.grad_norm = global_norm(parameters_);
  check_norm(result.grad_norm);
  const double most = experiment_.train.clip;
  optimizer_->step(result.lr,
                   most > 0.0 && result.grad_norm > most ? most / result.grad_norm : 1.0);
}

// On a GPU device: captured and replayed, or done each time.
StepWork Trainer::queue_step(const data::Batch& batch) {
  StepWork work;
  work.losses = accumulate(batch);
  work.norm = gradient_norm(parameters_);
  Clip clip;
  if (experiment_.train.clip > 0.0) {
    clip.norm = work.norm;
    clip.most = experiment_.train.clip;
  }
  optimizer_->update(clip);
  return work;
}

// Forward and backward of every part that has a weight; the losses of all.
std::vector<Tensor> Trainer::accumulate(const data::Batch& batch) {
  const TrainOptions& train = experiment_.train;
  const MemoryLabel label("batch and loss");
  model_->module().zero_grad();
  RandomScope::State random{static_cast<uint64_t>(train.seed), static_cast<uint64_t>(step_)};
  Tensor step_there;
  if (is_capturing(device_)) {
    step_there = host_input({1}, Dtype::i64, device_, [this](void* to) {
      const uint64_t step = mix64(static_cast<uint64_t>(step_));
      std::memcpy(to, &step, sizeof step);
    });
    random.step_at = reinterpret_cast<const uint64_t*>(step_there.data<int64_t>());
  }
  const int64_t samples = batch.inputs.dim(0), micro = micro_batch(samples);
  std::vector<Tensor> losses(weights_.size());
  for (size_t part = 0; part < losses.size(); ++part) {
    if (weights_[part] == 0.0) continue;
    random.first_sample = static_cast<int64_t>(part) * micro;
    const RandomScope scope(random);
    const int64_t end = std::min(samples, random.first_sample + micro);
    const Variable loss =
        model_->loss(moved(slice(batch, random.first_sample, end), device_), train);
    losses[part] = loss.value();
    if (device_.is_cpu()) check_loss(losses[part].item());
    loss.backward(host_input(loss.shape(), Dtype::f32, device_, [this, part](void* to) {
      *static_cast<float*>(to) = static_cast<float>(weights_[part]);
    }));
  }
  return losses;
}

void Trainer::check_loss(double loss) const {
  FOVEA_CHECK(
      std::isfinite(loss), "train: the loss of step ", step_ + 1, " is ", loss,
      "; first bad tensor: ",
      first_nonfinite(parameters_)
          .value_or("none of the parameters (activations overflowed; lower the learning rate)"));
}

void Trainer::check_norm(double norm) const {
  FOVEA_CHECK(std::isfinite(norm), "train: the gradient of step ", step_ + 1,
              " is not finite; first bad tensor: ",
              first_nonfinite(parameters_).value_or("none (the norm overflowed)"));
}

// ---- evaluation ---------------------------------------------------------------------------------

EvalSums Trainer::evaluate(int64_t samples) {
  const int64_t all = val_source_->size();
  const int64_t count = samples > 0 ? std::min(samples, all) : all;
  const int64_t batch =
      experiment_.train.micro_batch > 0 ? experiment_.train.micro_batch : experiment_.train.batch;
  std::optional<Ema::Swap> averaged;
  if (ema_) averaged.emplace(*ema_);
  model_->module().train(false);
  EvalSums sums;
  for (int64_t begin = 0; begin < count; begin += batch) {
    std::vector<data::Sample> part;
    for (int64_t i = begin; i < std::min(count, begin + batch); ++i)
      part.push_back({i, 0, static_cast<uint64_t>(i)});
    sums += model_->evaluate(moved(val_source_->make(part, 0), device_));
  }
  model_->module().train(true);
  FOVEA_CHECK(sums.scored > 0, "evaluate: no held-out position has a target");
  return sums;
}

std::string Trainer::sample_text(int64_t tokens) {
  const std::shared_ptr<const data::Tokenizer> tokenizer = data().tokenizer;
  if (model_->gpt() == nullptr || !tokenizer || tokens == 0) return "";
  std::optional<Ema::Swap> averaged;
  if (ema_) averaged.emplace(*ema_);
  model_->module().train(false);
  SamplerOptions options;
  options.temperature = 0.8;
  options.seed = static_cast<uint64_t>(experiment_.train.seed);
  std::vector<int64_t> prompt{0};
  std::string written;
  try {
    prompt = tokenizer->encode("\n");
  } catch (const Error&) {  // a vocabulary without line breaks: its first token opens the text
  }
  generate(*model_->gpt(), prompt, tokens, options, [&](int64_t token) {
    written += text_of(*tokenizer, token);
    return true;
  });
  model_->module().train(true);
  return written;
}

// ---- state --------------------------------------------------------------------------------------

Checkpoint Trainer::save() const {
  Checkpoint checkpoint;
  for (const nn::NamedParameter& p : parameters_)
    checkpoint.tensors.emplace_back("model." + p.name, p.variable.value());
  for (const nn::NamedBuffer& b : model_->module().buffers())
    checkpoint.tensors.emplace_back("model." + b.name, *b.tensor);
  for (const auto& [name, tensor] : optimizer_->state())
    checkpoint.tensors.emplace_back("optimizer." + name, tensor);
  if (ema_) {
    for (const auto& [name, tensor] : ema_->state())
      checkpoint.tensors.emplace_back("ema." + name, tensor);
  }
  checkpoint.attributes = {{"config", config::resolved_toml(experiment_)},
                           {"optimizer", experiment_.optimizer.kind},
                           {"step", std::to_string(step_)},
                           {"samples", std::to_string(loader_->position())},
                           {"seconds", exact(seconds_)}};
  if (best_) checkpoint.attributes["best"] = exact(*best_);
  return checkpoint;
}

void Trainer::load(const Checkpoint& checkpoint) {
  // Optimizers share names for their states, but not what they keep in them.
  const auto kind = checkpoint.attributes.find("optimizer");
  FOVEA_CHECK(kind == checkpoint.attributes.end() || kind->second == experiment_.optimizer.kind,
              "checkpoint ", checkpoint.source, ": holds the state of optimizer ", kind->second,
              ", but the config says ", experiment_.optimizer.kind);
  for (const nn::NamedParameter& p : parameters_)
    checkpoint.restore("model." + p.name, p.variable.value());
  for (const nn::NamedBuffer& b : model_->module().buffers())
    checkpoint.restore("model." + b.name, *b.tensor);
  for (const auto& [name, tensor] : optimizer_->state())
    checkpoint.restore("optimizer." + name, tensor);
  if (ema_) {
    for (const auto& [name, tensor] : ema_->state()) checkpoint.restore("ema." + name, tensor);
  }
  step_ = checkpoint.integer("step");
  optimizer_->set_steps(step_);
  loader_->seek(checkpoint.integer("samples"));
  seconds_ = checkpoint.number("seconds");
  if (checkpoint.attributes.contains("best")) best_ = checkpoint.number("best");
}

void Trainer::load_weights(const Checkpoint& checkpoint) {
  const std::string from = ema_ ? "ema." : "model.";
  for (const nn::NamedParameter& p : parameters_)
    checkpoint.restore(from + p.name, p.variable.value());
  for (const nn::NamedBuffer& b : model_->module().buffers())
    checkpoint.restore("model." + b.name, *b.tensor);
  ema_.reset();
  step_ = checkpoint.integer("step");
}

// ---- the loop -----------------------------------------------------------------------------------

// Training time: evaluations, samples and checkpoints are not counted.
struct Trainer::Clock {
  using Steady = std::chrono::steady_clock;
  Steady::time_point start = Steady::now();
  double window_s = 0.0;  // since the last metrics line
  int64_t window_steps = 0;
  double step_s = 0.0;      // of one step, smoothed for the display
  double peak_flops = 0.0;  // 0: the device's is not known

  void begin() { start = Steady::now(); }
  double end() {
    const double seconds = std::chrono::duration<double>(Steady::now() - start).count();
    window_s += seconds;
    ++window_steps;
    step_s = step_s == 0.0 ? seconds : 0.9 * step_s + 0.1 * seconds;
    return seconds;
  }
};

void Trainer::log_step(const StepResult& result, Clock& clock, MetricsWriter& metrics,
                       Progress& progress) {
  const TrainOptions& train = experiment_.train;
  const double units_a_step = static_cast<double>(train.batch * model_->units_per_sample());
  const auto mfu = [&](double seconds) {
    return clock.peak_flops > 0.0 ? model_->step_flops(train.batch) / seconds / clock.peak_flops
                                  : -1.0;
  };
  ProgressState state{step_,
                      train.steps,
                      result.loss,
                      result.lr,
                      units_a_step / clock.step_s,
                      model_->unit(),
                      mfu(clock.step_s),
                      clock.step_s * static_cast<double>(train.steps - step_),
                      memory_stats(device_).live_bytes};
  if (step_ % train.log_every == 0 || step_ == train.steps) {
    const double a_step = clock.window_s / static_cast<double>(clock.window_steps);
    Metrics record{step_,
                   units(),
                   seconds_,
                   "train",
                   {{"loss", result.loss},
                    {"lr", result.lr},
                    {"grad_norm", result.grad_norm},
                    {"units_per_s", units_a_step / a_step},
                    {"memory_bytes", static_cast<double>(memory_stats(device_).peak_bytes)}}};
    if (mfu(a_step) >= 0.0) record.values.emplace_back("mfu", mfu(a_step));
    metrics.write(record);
    clock.window_s = 0.0;
    clock.window_steps = 0;
  }
  state.bytes = memory_stats(device_).peak_bytes;
  progress.update(state);
}

void Trainer::log_evaluation(const EvalSums& sums, const RunFolder& folder, MetricsWriter& metrics,
                             Progress& progress) {
  const double loss = sums.loss / sums.scored, accuracy = sums.correct / sums.scored;
  metrics.write({step_,
                 units(),
                 seconds_,
                 "val",
                 {{"loss", loss}, {"accuracy", accuracy}, {"scored", sums.scored}}});
  const bool better = !best_ || loss < *best_;
  progress.message(concat("  step ", step_, ": held-out loss ", fixed(loss, 4), ", accuracy ",
                          fixed(100.0 * accuracy, 2), " %", better ? "  (best)" : ""));
  if (!better) return;
  best_ = loss;
  folder.save_best(save());
}

Outcome Trainer::train(const RunFolder& folder, const std::atomic<int>& stop, std::ostream& out,
                       bool terminal) {
  const TrainOptions& train = experiment_.train;
  MetricsWriter metrics(folder.path(), step_);
  Progress progress(out, terminal);
  Clock clock;
  if (device_.is_cpu()) clock.peak_flops = measured(product_roof(train.compute()));
  Outcome outcome;
  const int64_t first = step_;
  int64_t saved = -1;
  const auto save_now = [&] {
    if (saved != step_) folder.save(save(), step_, train.keep_last);
    saved = step_;
  };
  // A sample that cannot be made (a damaged image, say) ends the run, but costs none of the steps
  // before it.
  const auto next_batch = [&] {
    try {
      return loader_->next();
    } catch (const std::exception&) {
      if (step_ > first) save_now();
      throw;
    }
  };
  while (step_ < train.steps && stop == 0) {
    clock.begin();
    const StepResult result = step(next_batch());
    seconds_ += clock.end();
    outcome.train_loss = result.loss;
    log_step(result, clock, metrics, progress);
    const bool last = step_ == train.steps;
    if (last || (train.eval_every > 0 && step_ % train.eval_every == 0)) {
      outcome.held_out = evaluate(last ? 0 : train.eval_samples);
      log_evaluation(*outcome.held_out, folder, metrics, progress);
    }
    if (last || (train.save_every > 0 && step_ % train.save_every == 0)) save_now();
  }
  if (stop != 0) save_now();
  outcome.stopped_by = step_ < train.steps ? stop.load() : 0;
  outcome.step = step_;
  outcome.seconds = seconds_;
  return outcome;
}

}  // namespace fovea::train
