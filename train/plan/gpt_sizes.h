// SPDX-License-Identifier: Apache-2.0
#pragma once
// What the cost of a GPT depends on, read from its experiment without building it.

#include <optional>

#include "attention/mask.h"
#include "attention/mask_options.h"
#include "train/options.h"

namespace fovea::train {

struct GptSizes {
  int64_t layers = 0, dim = 0;
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  int64_t hidden = 0;  // F: inputs of the MLP's second product; its first gives F, swiglu's 2 F
  int64_t vocab = 0;
  int64_t tokens = 0;     // N of a sample
  int64_t positions = 0;  // rows of a learned table; 0: none
  bool bias = true, attention_bias = true, layer_norm = true, swiglu = false, tied_head = true;
  bool position_added = false;  // learned or sinusoidal
  bool recompute = false, sink = false, norms_of_heads = false;
  Dtype compute = Dtype::f32;
  attention::MaskOptions mask;  // the model is causal beside it

  // Of n tokens standing for N: windows, prefixes and blocks shrink with them.
  attention::Mask mask_of(int64_t n) const;

  int64_t qkv_columns() const { return (heads + 2 * kv_heads) * head_dim; }
  int64_t up_columns() const { return swiglu ? 2 * hidden : hidden; }
  // Elements of a block's matrices; of the output head; of everything that is learned.
  int64_t block_matrices() const;
  int64_t head_matrix() const { return dim * vocab; }
  int64_t block_parameters() const;
  int64_t parameters() const;
};

// vocab: of the data, which are opened to ask them where it is absent. Throws for a model that is
// no GPT, and for a mixer whose cost is not known.
GptSizes gpt_sizes(Experiment& experiment, std::optional<int64_t> vocab = {});

}  // namespace fovea::train
