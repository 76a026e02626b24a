// SPDX-License-Identifier: Apache-2.0
#include "train/options.h"

#include "core/device.h"
#include "data/source.h"
#include "train/model_options.h"

namespace fovea::train {

namespace {

std::vector<std::string> device_names() {
  std::vector<std::string> names;
  for (const Device device : devices_of_build()) names.emplace_back(fovea::name(device.kind));
  return names;
}

}  // namespace

void TrainOptions::describe(config::Fields& f) {
  f.add("steps", steps, "optimizer steps", config::at_least(1));
  f.add("batch", batch, "samples (sequences or images) of one step, over all ranks",
        config::from_to(1, 1 << 24));
  f.add("micro_batch", micro_batch,
        "a rank's samples in one forward pass, gradients accumulate; 0: all at once",
        config::from_to(0, 1 << 24));
  f.add("clip", clip, "largest global gradient norm; 0: no clipping", config::at_least(0.0));
  f.add("ema", ema, "decay of the averaged weights that evaluations use; 0: none",
        config::between(0.0, 1.0));
  f.add("label_smoothing", label_smoothing, "share of the target spread over all classes",
        config::fraction());
  f.add("z_loss", z_loss, "weight of the squared log-normaliser", config::at_least(0.0));
  f.add("seed", seed, "of initial values, data order, dropout and augmentation",
        config::at_least(0));
  f.add("precision", precision, "activations; master weights and statistics stay f32",
        config::one_of({"f32", "bf16"}));
  f.add("tf32", tf32, "f32 products on a card by tensor cores, operands rounded to 10 bits");
  f.add("device", device, "where the step runs", config::one_of(device_names()));
  f.add("threads", threads, "of a rank; 0: its share of the cores", config::from_to(0, 1024));
  f.add("graph", graph, "a step as one CUDA graph; auto: on a card, where the step can be captured",
        config::one_of({"auto", "on", "off"}));
  f.add("zero", zero, "1: optimizer state and averages are spread over the ranks (ZeRO-1); 0: not",
        config::from_to(0, 1));
  f.add("log_every", log_every, "steps between metrics lines", config::at_least(1));
  f.add("eval_every", eval_every, "steps between evaluations; 0: only at the end",
        config::at_least(0));
  f.add("eval_samples", eval_samples,
        "held-out samples of an evaluation during training (the last one uses all); 0: all",
        config::at_least(0));
  f.add("save_every", save_every, "steps between checkpoints; 0: only at the end",
        config::at_least(0));
  f.add("keep_last", keep_last, "checkpoints kept beside the best", config::at_least(1));
  f.add("sample_tokens", sample_tokens,
        "length of the text written at the end of a run on text; 0: none",
        config::from_to(0, 1 << 24), "tokens");
  f.add("runs", runs, "folder in which the run folder is made", config::non_empty());
}

void MeshOptions::describe(config::Fields& f) {
  constexpr double kMost = 1 << 16;
  f.add("data", data, "ranks with samples of their own; 0: all that ring and ulysses leave",
        config::from_to(0, kMost));
  f.add("ring", ring, "ranks that share a sequence by its tokens", config::from_to(1, kMost));
  f.add("ulysses", ulysses, "ranks that share a sequence by its heads", config::from_to(1, kMost));
  f.add("order", order, "which tokens of a sequence the ranks of a ring have",
        config::one_of({"zigzag", "contiguous", "striped", "dispatched"}));
  f.add("chunk", chunk,
        "of order dispatched: given out at once, by the model's mask; 0: four chunks a rank",
        config::from_to(0, 1 << 24), "tokens");
  f.add("strategy", strategy,
        "how ranks of a ring see each other's keys: passed on, or all at once",
        config::one_of({"ring", "gather"}));
  f.add("window", window,
        "of strategy ring: ranks of an inner ring, between which keys are passed on less often; "
        "0: one ring of all",
        config::from_to(0, kMost));
  f.add("heads_per_gather", heads_per_gather, "of strategy gather: key heads gathered at once",
        config::from_to(1, kMost));
  f.add("state", state, "how ranks of a ring hand states on, of layers that have one",
        config::one_of({"gather", "chain", "pipeline"}));
  f.add("bucket_bytes", bucket_bytes, "gradients that are summed over ranks at once",
        config::from_to(1, 1 << 30), "bytes");
  f.add("overlap", overlap, "sum gradients while backward computes the next ones");
  f.add("block", block,
        "work in blocks of so many tokens, which gives the same bits on any mesh; 0: off",
        config::from_to(0, 1 << 24), "tokens");
}

Experiment::Experiment() : data(data::data_choice()), model(model_choice()) {}

void Experiment::describe(config::Fields& f) {
  f.add("name", name, "of the run folder", config::file_name());
  f.choice("data", data, "what is learned from");
  f.choice("model", model, "what learns");
  f.section("optimizer", optimizer, "how weights move");
  f.section("schedule", schedule, "learning rate over steps");
  f.section("train", train, "the loop");
  f.section("mesh", mesh, "how several ranks divide the work");
}

}  // namespace fovea::train
