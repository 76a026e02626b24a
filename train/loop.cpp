// SPDX-License-Identifier: Apache-2.0
// Trainer::train: steps, evaluations and checkpoints in turn, and what is said about them.
#include <cstdio>

#include "train/bench/roof.h"
#include "train/trainer.h"

namespace fovea::train {
namespace {

std::string fixed(double value, int digits) {
  char text[40];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

}  // namespace

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

void Trainer::log_evaluation(const EvalSums& sums, MetricsWriter& metrics, Progress& progress,
                             bool better) {
  const double loss = sums.loss / sums.scored, accuracy = sums.correct / sums.scored;
  metrics.write({step_,
                 units(),
                 seconds_,
                 "val",
                 {{"loss", loss}, {"accuracy", accuracy}, {"scored", sums.scored}}});
  progress.message(concat("  step ", step_, ": held-out loss ", fixed(loss, 4), ", accuracy ",
                          fixed(100.0 * accuracy, 2), " %", better ? "  (best)" : ""));
}

Outcome Trainer::train(const RunFolder* folder, const std::atomic<int>& stop, std::ostream& out,
                       bool terminal) {
  const TrainOptions& train = experiment_.train;
  FOVEA_CHECK((folder != nullptr) == root(), "train: rank ", ranks().rank(),
              folder != nullptr ? " has" : " lacks", " a run folder; it is rank 0's alone");
  std::optional<MetricsWriter> metrics;
  std::optional<Progress> progress;
  if (folder != nullptr) metrics.emplace(folder->path(), step_), progress.emplace(out, terminal);
  Clock clock;
  const bool alone = ranks().size() == 1;
  if (device_.is_cpu() && alone) clock.peak_flops = measured(product_roof(train.compute()));
  Outcome outcome;
  const int64_t first = step_;
  int64_t saved = -1;
  const std::optional<RunFolder> shared = shared_folder(folder);
  const RunFolder* const writes = shared ? &*shared : folder;
  const auto save_now = [&] {
    if (saved == step_) return;
    save(writes != nullptr ? writes->step(step_) : "");
    if (folder != nullptr) folder->prune(train.keep_last);
    saved = step_;
  };
  // A sample that cannot be made (a damaged image, say) ends the run, but costs none of the steps
  // before it; of several ranks, those since the last checkpoint.
  const auto next_batch = [&] {
    try {
      return loader_->next();
    } catch (const std::exception&) {
      if (step_ > first && alone) save_now();
      throw;
    }
  };
  stop_ = &stop;
  const auto stopped = [&] { return parallel_ ? stopped_ : stop.load(); };
  while (step_ < train.steps && stopped() == 0) {
    clock.begin();
    const StepResult result = step(next_batch());
    seconds_ += clock.end();
    outcome.train_loss = result.loss;
    if (folder != nullptr) log_step(result, clock, *metrics, *progress);
    const bool last = step_ == train.steps;
    if (last || (train.eval_every > 0 && step_ % train.eval_every == 0)) {
      outcome.held_out = evaluate(last ? 0 : train.eval_samples);
      const double loss = outcome.held_out->loss / outcome.held_out->scored;
      const bool better = !best_ || loss < *best_;
      if (folder != nullptr) log_evaluation(*outcome.held_out, *metrics, *progress, better);
      if (better) {
        best_ = loss;
        save(writes != nullptr ? writes->best() : "");
      }
    }
    if (last || (train.save_every > 0 && step_ % train.save_every == 0)) save_now();
  }
  if (stopped() != 0) save_now();
  outcome.stopped_by = step_ < train.steps ? stopped() : 0;
  outcome.step = step_;
  outcome.seconds = seconds_;
  return outcome;
}

}  // namespace fovea::train
