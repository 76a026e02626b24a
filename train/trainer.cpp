// SPDX-License-Identifier: Apache-2.0
#include "train/trainer.h"

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstring>
#include <sstream>

#include "autograd/function.h"
#include "core/cuda/device.h"
#include "core/fixed_point.h"
#include "core/ops/matmul.h"
#include "core/version.h"
#include "core/warning.h"
#include "distributed/agreement.h"
#include "distributed/device_group.h"
#include "nn/token_blocks.h"
#include "nn/weight_casts.h"
#include "train/blocks.h"
#include "train/sampler.h"

namespace fovea::train {
namespace {

// Rows [begin, end) of every tensor of a batch.
data::Batch slice(const data::Batch& batch, int64_t begin, int64_t end) {
  const auto cut = [&](const Tensor& t) { return t.defined() ? t.slice(0, begin, end) : t; };
  return {cut(batch.inputs), cut(batch.targets), cut(batch.soft_targets), cut(batch.documents)};
}

// What models compute with. Ids and labels stay: they are checked and counted on the host, and a
// GPU gets them from there without its host waiting for it.
data::Batch moved(const data::Batch& batch, Device device) {
  const bool values = is_floating(batch.inputs.dtype());
  return {values ? batch.inputs.to(device) : batch.inputs, batch.targets,
          batch.soft_targets.to(device), batch.documents};
}

// Of this build, and there: a card that does not answer is an error before anything is made.
Device device_of(const TrainOptions& train) {
  const Device device = parse_device(train.device);
  if (!device.is_cpu()) FOVEA_GPU_CALL(device, device_info, device.index);
  return device;
}

// A config's lines as "section.key = value".
std::string keys_of(const std::string& toml) {
  std::istringstream lines(toml);
  std::string keys, section;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with('['))
      section = line.substr(1, line.size() - 2) + '.';
    else if (!line.empty())
      keys += section + line + '\n';
  }
  return keys;
}

// The mesh of a job. Ranks of another version or config are refused before they do anything.
distributed::Mesh mesh_of(Experiment& experiment, const distributed::Communicator& ranks,
                          Device device) {
  distributed::check_agree(ranks, "version of fovea", version());
  distributed::check_agree(ranks, "config", keys_of(config::resolved_toml(experiment)));
  return {distributed::device_group(ranks, device), mesh_sizes(experiment.mesh, ranks.size())};
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

// What ranks that read the same data agree on, for a path may lead to other files on another
// machine: sizes, and samples over all of it.
std::string describe(const data::Source& source, const std::string& split) {
  constexpr int64_t kSamples = 8;
  const data::Description& d = source.description();
  uint64_t hash = 0;
  for (int64_t i = 0; i < kSamples; ++i) {
    const data::Sample sample{i * source.size() / kSamples, 0, 0};
    const Tensor x = source.make({&sample, 1}, 0).inputs.contiguous();
    hash = mix64(hash ^ distributed::hash_of(
                            {static_cast<const char*>(x.raw()), static_cast<size_t>(x.bytes())}));
  }
  return concat(split, " of ", source.size(), " samples, vocabulary ", d.vocab_size, ", ",
                d.classes, " classes\n", split, " with samples of hash ", std::hex, hash, '\n');
}

}  // namespace

Trainer::Trainer(Experiment& experiment, const distributed::Communicator& ranks,
                 const nn::MixerFactory& mixer)
    : experiment_(experiment),
      job_(ranks),
      device_(device_of(experiment.train)),
      mesh_(mesh_of(experiment, ranks, device_)),
      parts_(mesh_, experiment.mesh) {
  const TrainOptions& train = experiment.train;
  const bool alone = ranks.size() == 1;
  if (train.threads > 0) {
    const auto threads = static_cast<int>(train.threads);
    alone ? set_num_threads(threads) : void(threads_.emplace(threads));
  }
  FOVEA_CHECK(train.micro_batch == 0 || train.batch % train.micro_batch == 0, "train: micro_batch ",
              train.micro_batch, " does not divide batch ", train.batch);
  const auto seed = static_cast<uint64_t>(train.seed);
  train_source_ = data::make_source(experiment.data, data::Split::train);
  val_source_ = data::make_source(experiment.data, data::Split::val);
  check_held_out(train_source_->description(), val_source_->description());
  if (!alone)
    distributed::check_agree(this->ranks(), "data",
                             describe(*train_source_, "train") + describe(*val_source_, "val"));
  data::LoaderOptions loader;
  loader.batch = train.batch;
  loader.seed = seed;
  loader.rank = mesh_.place().data;
  loader.ranks = mesh_.sizes().data;
  first_sample_ = loader.begin(loader.rank);
  loader_ = std::make_unique<data::Loader>(*train_source_, loader);
  for (const data::Source* source : {train_source_.get(), val_source_.get()})
    if (experiment.mesh.block > 0)
      check_blocks(experiment, mesh_.sizes(), source->description().context);
  model_ = make_model(experiment, data(), mixer);
  for (const data::Source* source : {train_source_.get(), val_source_.get()})
    parts_.check(*model_, source->description().context);
  model_->initialise(seed);
  model_->set_compute(train.compute());
  model_->module().to(device_);
  parameters_ = model_->module().parameters();
  if (!alone || experiment.mesh.block > 0) join_ranks();
  const Parameters& own = parallel_ ? parallel_->own() : parameters_;
  optimizer_ = make_optimizer(experiment.optimizer, own);
  if (train.ema > 0.0) ema_ = std::make_unique<Ema>(own, train.ema);
  graph_ =
      std::make_unique<StepGraph>(StepGraph::parse(train.graph, device_), device_, parameters_,
                                  [this](const data::Batch& batch) { return queue_step(batch); });
}

// Refuses what several ranks would not do as one does.
void Trainer::join_ranks() {
  const TrainOptions& train = experiment_.train;
  const auto buffers = model_->module().buffers();
  FOVEA_CHECK(buffers.empty(), "train: ", buffers.empty() ? "" : buffers.front().name,
              " is a running statistic, which each of ", ranks().size(),
              " ranks would take of its own samples; use another norm or one rank");
  FOVEA_CHECK(train.graph != "on",
              "train.graph is on, but steps of several ranks cannot be graphs "
              "yet; use auto");
  if (root() && StepGraph::parse(train.graph, device_) != StepGraph::Use::off)
    warn_once("train.graph: steps run without a graph: sums over ranks cannot be part of one yet");
  distributed::DataParallelOptions options;
  options.bucket_bytes = experiment_.mesh.bucket_bytes;
  options.overlap = experiment_.mesh.overlap;
  options.shard = train.zero == 1;
  for (const nn::NamedParameter& p : parameters_)
    options.whole.push_back(whole_cost(experiment_.optimizer, p.name, p.variable.shape()));
  options.exact = experiment_.mesh.block > 0;
  parallel_ = std::make_unique<distributed::DataParallel>(mesh_.all(), job_, parameters_, options);
}

// ---- one step -----------------------------------------------------------------------------------

Trainer::StepResult Trainer::step() { return step(loader_->next()); }

Trainer::StepResult Trainer::step(const data::Batch& whole) {
  const TrainOptions& train = experiment_.train;
  const Tf32Scope products(train.tf32);
  const nn::TokenBlocks blocks(experiment_.mesh.block);
  const SequenceParts::Cut cut = parts_.cut(whole, *model_);
  const data::Batch& batch = cut.batch;
  const int64_t samples = batch.inputs.dim(0);
  const double scored = agree_on_step(batch);
  FOVEA_CHECK(scored > 0, "train: step ", step_ + 1, ": no position of the batch has a target");
  // Means over parts are weighted by their scored positions, so that neither accumulation nor ranks
  // change anything.
  weights_.clear();
  scored_.clear();
  const int64_t micro = micro_batch(samples);
  for (int64_t begin = 0; begin < samples; begin += micro) {
    const int64_t end = std::min(samples, begin + micro);
    for (const data::Batch& piece : pieces(slice(batch, begin, end)))
      weights_.push_back(static_cast<double>(scored_positions(piece)) / scored);
    scored_.push_back(scored_positions(slice(whole, begin, end)) > 0);
  }

  StepResult result;
  result.lr = learning_rate(experiment_.optimizer.lr, experiment_.schedule, step_, train.steps);
  model_->module().train();
  if (parallel_)
    step_with_others(cut, result);
  else if (device_.is_cpu())
    step_on_cpu(batch, result);
  else
    step_on_device(batch, result);
  if (ema_) ema_->update();
  ++step_;
  return result;
}

// What has a loss of its own: a pass, or its blocks of tokens.
std::vector<data::Batch> Trainer::pieces(const data::Batch& pass) const {
  const int64_t block = experiment_.mesh.block;
  if (block == 0) return {pass};
  std::vector<data::Batch> blocks;
  const Tensor targets = pass.targets.reshape({-1});
  for (int64_t at = 0; at < targets.numel(); at += block)
    blocks.emplace_back().targets = targets.slice(0, at, at + block);
  return blocks;
}

// Scored positions of all ranks' parts of the batch. The ranks learn here of each other's signals.
double Trainer::agree_on_step(const data::Batch& batch) {
  const int64_t scored = scored_positions(batch);
  if (!parallel_) return static_cast<double>(scored);
  const int signal = stop_ != nullptr ? stop_->load() : 0;
  const Tensor all = Tensor::from(
      std::vector<int64_t>{scored, signal == SIGINT ? 1 : 0, signal == SIGTERM ? 1 : 0}, {3});
  ranks().all_reduce(all).wait();
  const int64_t* sums = all.data<int64_t>();
  stopped_ = sums[2] > 0 ? SIGTERM : sums[1] > 0 ? SIGINT : 0;
  return static_cast<double>(sums[0]);
}

// A bad loss or gradient ends the run before the weights move.
void Trainer::step_on_cpu(const data::Batch& batch, StepResult& result) {
  result.loss = own_loss(accumulate(batch));
  result.grad_norm = global_norm(parameters_);
  check_norm(result.grad_norm);
  optimizer_->step(result.lr, factor(result.grad_norm));
}

// A GPU is asked for the whole step before the host waits for its numbers.
void Trainer::step_on_device(const data::Batch& batch, StepResult& result) {
  optimizer_->advance(result.lr);
  // A part that nobody scores is left out, which a graph cannot do.
  const bool whole = std::find(scored_.begin(), scored_.end(), false) == scored_.end();
  const StepWork work = whole ? graph_->run(batch) : queue_step(batch);
  result.grad_norm = work.norm.item();
  result.loss = own_loss(work.losses);
  check_norm(result.grad_norm);
}

// With other ranks, on every device alike: the host waits for the sums over ranks.
void Trainer::step_with_others(const SequenceParts::Cut& cut, StepResult& result) {
  const double loss = own_loss(accumulate(cut.batch, cut.part));
  parallel_->finish();
  const Parameters& own = parallel_->own();
  const bool shard = experiment_.train.zero == 1;
  const double norm = shard ? global_norm(own) : 0.0;
  const std::vector<double> sums = parallel_->sum({loss, norm * norm});
  result.loss = sums[0];
  result.grad_norm = shard ? std::sqrt(sums[1]) : global_norm(own);
  check_norm(result.grad_norm);
  optimizer_->step(result.lr, factor(result.grad_norm));
  parallel_->gather();
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

// Forward and backward of every micro-batch that is scored; the losses of all pieces, absent where
// none is. Ranks that share samples go through the same ones, which are exchanges of theirs.
std::vector<Tensor> Trainer::accumulate(const data::Batch& batch, const nn::SequencePart* part) {
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
  const size_t each = losses.size() / scored_.size();  // pieces of a pass
  size_t last = scored_.size();
  while (last > 0 && !scored_[last - 1]) --last;
  std::optional<nn::WeightCasts> casts;
  if (last > 1 || each > 1) casts.emplace();
  for (size_t i = 0; i < last; ++i) {
    if (!scored_[i]) continue;
    const int64_t begin = static_cast<int64_t>(i) * micro;
    random.first_sample = first_sample_ + begin;
    const RandomScope scope(random);
    const data::Batch micro_batch = slice(batch, begin, std::min(samples, begin + micro));
    Tensors dlosses;
    for (size_t k = 0; k < each; ++k)
      dlosses.push_back(host_input({}, Dtype::f32, device_, [this, piece = i * each + k](void* to) {
        *static_cast<float*>(to) = static_cast<float>(weights_[piece]);
      }));
    const Variables found = model_->losses(moved(micro_batch, device_), train, dlosses, part);
    for (size_t k = 0; k < each; ++k) {
      losses[i * each + k] = found[k].value();
      if (device_.is_cpu()) check_loss(found[k].value().item());
    }
    if (parallel_ && i + 1 == last) parallel_->arm();
    backward(found, std::move(dlosses));
  }
  return losses;
}

// This rank's part of the mean over the batch.
double Trainer::own_loss(const std::vector<Tensor>& losses) const {
  double sum = 0.0;
  for (size_t i = 0; i < losses.size(); ++i) {
    if (!losses[i].defined()) continue;
    const double loss = losses[i].item();
    check_loss(loss);
    const double share = weights_[i] * loss;
    sum += experiment_.mesh.block > 0 ? to_grid(share, 36) : share;  // sums have no order
  }
  return sum;
}

// What clips a gradient of this norm.
double Trainer::factor(double norm) const {
  const double most = experiment_.train.clip;
  return most > 0.0 && norm > most ? most / norm : 1.0;
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
              first_nonfinite(parallel_ ? parallel_->own() : parameters_)
                  .value_or("none here (the norm overflowed, or another rank's part is bad)"));
}

// ---- evaluation ---------------------------------------------------------------------------------

// f() with the averaged weights in the model, if there are any.
template <typename F>
auto Trainer::with_averages(F&& f) {
  const Tf32Scope products(experiment_.train.tf32);
  std::optional<Ema::Swap> averaged;
  const auto gather = [&] {
    if (ema_ && parallel_) parallel_->gather();
  };
  if (ema_) averaged.emplace(*ema_);
  gather();
  model_->module().train(false);
  auto result = f();
  model_->module().train(true);
  averaged.reset();
  gather();
  return result;
}

EvalSums Trainer::evaluate(int64_t samples) {
  const int64_t all = val_source_->size(), P = mesh_.sizes().data;
  const int64_t count = samples > 0 ? std::min(samples, all) : all;
  const int64_t batch = experiment_.train.micro_batch > 0 ? experiment_.train.micro_batch
                                                          : (experiment_.train.batch + P - 1) / P;
  EvalSums sums = with_averages([&] {
    const nn::TokenBlocks blocks(experiment_.mesh.block);
    EvalSums own;
    for (int64_t begin = mesh_.place().data * batch; begin < count; begin += P * batch) {
      std::vector<data::Sample> part;
      for (int64_t i = begin; i < std::min(count, begin + batch); ++i)
        part.push_back({i, 0, static_cast<uint64_t>(i)});
      const SequenceParts::Cut cut = parts_.cut(val_source_->make(part, 0), *model_);
      own += model_->evaluate(moved(cut.batch, device_), cut.part);
    }
    return own;
  });
  const Tensor total = Tensor::from(std::vector<double>{sums.loss, sums.correct, sums.scored}, {3});
  ranks().all_reduce(total).wait();
  const double* numbers = total.data<double>();
  sums = {numbers[0], numbers[1], numbers[2]};
  FOVEA_CHECK(sums.scored > 0, "evaluate: no held-out position has a target");
  return sums;
}

std::string Trainer::sample_text(int64_t tokens) {
  const std::shared_ptr<const data::Tokenizer> tokenizer = data().tokenizer;
  if (model_->gpt() == nullptr || !tokenizer || tokens == 0) return "";
  SamplerOptions options;
  options.temperature = 0.8;
  options.seed = static_cast<uint64_t>(experiment_.train.seed);
  std::vector<int64_t> prompt{0};
  try {
    prompt = tokenizer->encode("\n");
  } catch (const Error&) {  // a vocabulary without line breaks: its first token opens the text
  }
  return with_averages([&] {
    std::string written;
    if (!root()) return written;
    generate(*model_->gpt(), prompt, tokens, options, [&](int64_t token) {
      written += text_of(*tokenizer, token);
      return true;
    });
    return written;
  });
}

}  // namespace fovea::train
