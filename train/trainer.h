// SPDX-License-Identifier: Apache-2.0
#pragma once
// The training loop. One step: for every micro-batch forward and backward, clip by the global norm,
// update, average. Everything a step does is a function of (checkpoint, config, step): resuming
// gives the same bits as not stopping.
//
// Several ranks train as one: the batch is cut over mesh.data, its sequences over mesh.ring and
// mesh.ulysses, the loss is the mean over the scored positions of all, and gradients are summed
// over all ranks (distributed/data_parallel.h), with mesh.block to the same bits (train/blocks.h).
// Tensors of the device go by its group (distributed/device_group.h), numbers of the host by the
// job. Constructor, save, load, train, evaluate, sample_text and step are then calls of all ranks
// at once.

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <ostream>

#include "core/parallel.h"
#include "data/loader.h"
#include "data/source.h"
#include "distributed/data_parallel.h"
#include "distributed/mesh.h"
#include "train/checkpoint.h"
#include "train/metrics.h"
#include "train/model.h"
#include "train/optim/optimizer.h"
#include "train/progress.h"
#include "train/run_folder.h"
#include "train/sequence_parts.h"
#include "train/step_graph.h"

namespace fovea::train {

// What a run reports when it ends.
struct Outcome {
  int64_t step = 0;
  int stopped_by = 0;                // signal, or 0: it reached the last step
  double train_loss = 0.0;           // of the last step
  std::optional<EvalSums> held_out;  // of the last evaluation
  double seconds = 0.0;              // training time over all sittings of this run
};

class Trainer {
 public:
  // Builds data, model and optimizer; touches no file of the run folder. The experiment outlives
  // the trainer. Refuses ranks that differ in version or config. mixer: instead of the attention
  // that the experiment names; or empty.
  explicit Trainer(Experiment& experiment, const distributed::Communicator& ranks = {},
                   const nn::MixerFactory& mixer = {});

  // The state: with train.zero = 1 this rank's part of what the optimizer and the averages have, of
  // which all ranks' make the whole, on any number of ranks. Throws unless the ranks hold the same
  // weights. load() throws naming the tensor that is missing or does not fit.
  Checkpoint save() const;
  void load(const Checkpoint& checkpoint);
  // Writes save(): rank 0 the file, after the parts of all ranks where there are any. All see the
  // folder.
  void save(const std::filesystem::path& path) const;
  // Only the weights (averaged ones where there are any): what evaluation and sampling need.
  void load_weights(const Checkpoint& checkpoint);

  // Trains to the last step, or until `stop` holds a signal's number on some rank; rank 0 logs to
  // its run folder (null on others) and the terminal.
  Outcome train(const RunFolder* folder, const std::atomic<int>& stop, std::ostream& out,
                bool terminal);

  // Held-out sums, with the averaged weights if there are any. samples 0: all.
  EvalSums evaluate(int64_t samples);

  // Text that the (averaged) model writes after a line break; empty for models that are not about
  // text, and on ranks but 0.
  std::string sample_text(int64_t tokens);

  // One optimizer step. Throws naming the first bad tensor when loss or gradient is not finite.
  struct StepResult {
    double loss = 0.0;       // mean over scored positions
    double grad_norm = 0.0;  // before clipping
    double lr = 0.0;
  };
  StepResult step();

  Model& model() { return *model_; }
  bool captured() const { return graph_->captured(); }
  const data::Description& data() const { return train_source_->description(); }
  int64_t completed_steps() const { return step_; }
  const distributed::Communicator& ranks() const { return job_; }
  const distributed::Mesh& mesh() const { return mesh_; }  // of the device's group
  const distributed::DataParallel* data_parallel() const { return parallel_.get(); }

 private:
  struct Clock;
  bool root() const { return ranks().rank() == 0; }
  // Whether ranks hold parts of the state.
  bool sharded() const { return parallel_ && experiment_.train.zero == 1; }
  StepResult step(const data::Batch& batch);
  void join_ranks();
  double agree_on_step(const data::Batch& batch);
  // Samples of a forward pass.
  int64_t micro_batch(int64_t samples) const {
    return experiment_.train.micro_batch > 0 ? experiment_.train.micro_batch : samples;
  }
  std::vector<data::Batch> pieces(const data::Batch& pass) const;
  std::vector<Tensor> accumulate(const data::Batch& batch, const nn::SequencePart* part = nullptr);
  void step_on_cpu(const data::Batch& batch, StepResult& result);
  void step_on_device(const data::Batch& batch, StepResult& result);
  void step_with_others(const SequenceParts::Cut& cut, StepResult& result);
  StepWork queue_step(const data::Batch& batch);
  double own_loss(const std::vector<Tensor>& losses) const;
  double factor(double norm) const;
  template <typename F>
  auto with_averages(F&& f);
  void check_loss(double loss) const;
  void check_norm(double norm) const;
  std::optional<RunFolder> shared_folder(const RunFolder* folder) const;
  void log_step(const StepResult& result, Clock& clock, MetricsWriter& metrics, Progress& progress);
  void log_evaluation(const EvalSums& sums, MetricsWriter& metrics, Progress& progress,
                      bool better);
  int64_t units() const { return step_ * experiment_.train.batch * model_->units_per_sample(); }

  Experiment& experiment_;
  const distributed::Communicator job_;
  const Device device_;
  const distributed::Mesh mesh_;
  SequenceParts parts_;
  std::optional<ThreadShare> threads_;
  std::unique_ptr<data::Source> train_source_, val_source_;
  std::unique_ptr<data::Loader> loader_;
  std::unique_ptr<Model> model_;
  Parameters parameters_;
  std::unique_ptr<distributed::DataParallel> parallel_;  // null of one rank that has no blocks
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<Ema> ema_;
  std::unique_ptr<StepGraph> graph_;
  int64_t step_ = 0;
  int64_t first_sample_ = 0;  // of this rank's part of a batch
  // This rank's shares of scored positions, of the pieces of the step; and, of its micro-batches,
  // whether a rank that has the same samples scores any.
  std::vector<double> weights_;
  std::vector<bool> scored_;
  const std::atomic<int>* stop_ = nullptr;
  int stopped_ = 0;  // what the ranks agreed on
  double seconds_ = 0.0;
  std::optional<double> best_;  // lowest held-out loss
};

}  // namespace fovea::train
