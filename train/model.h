// SPDX-License-Identifier: Apache-2.0
#pragma once
// What the trainer knows of a model: a module, the loss of a batch, and what an evaluation counts.
// Gpt and Vit are wrapped here; a new kind of model is one more class and one line in make_model.

#include <memory>
#include <optional>
#include <string>

#include "attention/mask.h"
#include "autograd/function.h"
#include "data/source.h"
#include "nn/gpt.h"
#include "nn/vit.h"
#include "train/options.h"

namespace fovea::train {

// Sums over a piece of an evaluation; pieces add up in order.
struct EvalSums {
  double loss = 0.0;     // nats, summed over scored positions
  double correct = 0.0;  // argmax equals target
  double scored = 0.0;   // positions (tokens or images)
  EvalSums& operator+=(const EvalSums& other);
};

class Model {
 public:
  virtual ~Model() = default;
  virtual nn::Module& module() = 0;
  // Starting values, as the model's options say.
  virtual void initialise(uint64_t seed) = 0;
  virtual void set_compute(Dtype compute) = 0;
  // Mean loss over the scored positions of `batch`, a scalar; where tokens are taken in blocks
  // (nn/token_blocks.h) one of each block, in order.
  // dlosses: what their backward will be given; empty: 1 (nn::CrossEntropyOptions).
  // part: the batch holds this part of its sequences, or images of which this part is computed.
  virtual Variables losses(const data::Batch& batch, const TrainOptions& options,
                           const Tensors& dlosses, const nn::SequencePart* part) = 0;
  // Without gradient, in evaluation mode: no smoothing, no dropout. Images count where their first
  // token is.
  virtual EvalSums evaluate(const data::Batch& batch, const nn::SequencePart* part) = 0;
  // Tokens of the sequence that a sample is: `context` of them, or an image's.
  virtual int64_t tokens(int64_t context) const = 0;
  // Why the model does not take such a part; empty: it does.
  virtual std::string refuses(const nn::SequencePart& part) const = 0;
  // What the tokens of whole samples see; absent: the model does not say. documents as in Batch.
  virtual std::optional<attention::Mask> mask(int64_t batch, int64_t tokens,
                                              const Tensor& documents) const = 0;
  // Forward and backward (twice the forward) of `samples` samples.
  virtual double step_flops(int64_t samples) const = 0;
  // Tokens (GPT) or images (ViT) in one sample; and what the progress bar calls them.
  virtual int64_t units_per_sample() const = 0;
  virtual const char* unit() const = 0;
  // The language model behind this, or null.
  virtual nn::Gpt* gpt() { return nullptr; }
};

// How many positions of the batch carry a target (all that are not -100).
int64_t scored_positions(const data::Batch& batch);

// The model of an experiment, with parameters initialised from the seed. Throws when data and model
// do not fit. mixer: instead of the attention that the experiment names; or empty.
std::unique_ptr<Model> make_model(Experiment& experiment, const data::Description& data,
                                  const nn::MixerFactory& mixer = {});

}  // namespace fovea::train
