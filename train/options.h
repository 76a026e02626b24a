// SPDX-License-Identifier: Apache-2.0
#pragma once
// The sections of an experiment's TOML file. Every key is also a flag: --optimizer.lr=3e-4.

#include <algorithm>
#include <cstdint>
#include <string>

#include "core/config/config.h"
#include "core/dtype.h"
#include "train/optim/options.h"

namespace fovea::train {

// [train]
struct TrainOptions : config::Options {
  int64_t steps = 1000;     // optimizer steps
  int64_t batch = 32;       // samples (sequences or images) of one step, over all ranks
  int64_t micro_batch = 0;  // a rank's samples in one forward pass, at most; 0: all at once.
                            // Gradients accumulate
  double clip = 1.0;        // largest global gradient norm; 0: no clipping
  double ema = 0.0;         // decay of the averaged weights used for evaluation; 0: none
  double label_smoothing = 0.0;
  double z_loss = 0.0;  // weight of (log Z)^2 (2204.02311 section 5)
  int64_t seed = 1;
  std::string precision = "f32";  // activations: f32 | bf16; master weights and statistics stay f32
  bool tf32 = false;              // f32 products on a GPU device may round to tf32
  std::string device = "cpu";
  int64_t threads = 0;         // of a rank; 0: its share of the cores
  std::string graph = "auto";  // whether steps are CUDA graphs: train/step_graph.h
  int64_t zero = 0;  // 1: optimizer state and averaged weights are spread over the ranks (ZeRO-1)

  int64_t log_every = 10;      // steps between metrics lines
  int64_t eval_every = 200;    // steps between evaluations; 0: only at the end
  int64_t eval_samples = 512;  // held-out samples of an evaluation during training; the last one
                               // uses all (0: all, always)
  int64_t save_every = 500;    // steps between checkpoints; 0: only at the end
  int64_t keep_last = 2;       // checkpoints kept beside the best
  int64_t sample_tokens =
      200;  // GPT on text: length of the text generated at the end, for the report; 0: none
  std::string runs = "runs";  // folder in which the run folder is made

  void describe(config::Fields& f) override;
  Dtype compute() const { return precision == "bf16" ? Dtype::bf16 : Dtype::f32; }
};

// [mesh]: how the ranks of a job divide the work (distributed/mesh.h).
struct MeshOptions : config::Options {
  int64_t data = 0;  // ranks with samples of their own; 0: all that ring and ulysses leave
  int64_t ring = 1, ulysses = 1;   // ranks that share samples, cut along the sequence:
  std::string order = "zigzag";    // which tokens a rank of the ring has (distributed/layout.h);
  int64_t chunk = 0;               // tokens given out at once (dispatched); 0: four times a rank
  std::string strategy = "ring";   // how it gets to see the keys of others (context_attention.h)
  int64_t window = 0;              // ranks of an inner ring; 0: one ring of all
  int64_t heads_per_gather = 1;    // key heads
  std::string state = "gather";    // how states are handed on (distributed/state.h)
  int64_t bucket_bytes = 8 << 20;  // gradients are summed in pieces of about this size ...
  bool overlap = true;             // ... while backward computes the next ones
  int64_t block = 0;               // tokens of a unit of work, for the same bits on every mesh
                                   // (train/blocks.h); 0: off

  void describe(config::Fields& f) override;
  // Ranks of a program that is started alone and not told how many.
  int64_t ranks() const { return std::max<int64_t>(data, 1) * ring * ulysses; }
};

// A whole experiment.
struct Experiment : config::Options {
  Experiment();

  std::string name = "run";  // of the run folder
  config::Choice data;       // [data] kind = "tokens" | ...: data/source.h
  config::Choice
      model;  // [model] kind = "gpt" | "vit"; [model.attention] kind = a folder under attention/
  OptimizerOptions optimizer;  // [optimizer]
  ScheduleOptions schedule;    // [schedule]
  TrainOptions train;          // [train]
  MeshOptions mesh;            // [mesh]

  void describe(config::Fields& f) override;
};

}  // namespace fovea::train
