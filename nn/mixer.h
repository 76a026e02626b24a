// SPDX-License-Identifier: Apache-2.0
#pragma once
// Mixer: a layer that lets tokens see one another. nn/ builds models around it and knows no
// attention kind; attention/ implements it and is looked up by name.

#include <memory>
#include <string>

#include "nn/module.h"
#include "nn/sequence_part.h"

namespace fovea::nn {

// What a model tells every layer about the batch at hand.
struct MixerContext {
  bool causal = false;
  // Token grid, row-major, for systems that need one (0 x 0: a plain sequence). N = grid_h * grid_w
  // (+ prefix tokens).
  int64_t grid_h = 0, grid_w = 0;
  int64_t prefix_tokens = 0;  // tokens in front of the grid that are not part of it (a class token)
  // i32 [B, N] document of each token, -1 = padding (absent: one document).
  Tensor documents;
  // x is this part of a sequence, of which everything above tells (absent: x is all of it). It
  // outlives the backward pass.
  const SequencePart* part = nullptr;
};

// What a layer remembers between decode steps (keys and values, a recurrent state).
class MixerState {
 public:
  virtual ~MixerState() = default;
  virtual int64_t bytes() const = 0;
};

class Mixer : public Module {
 public:
  // x [B, N, C] -> [B, N, C]
  virtual Variable forward(const Variable& x, const MixerContext& context) = 0;
  // Why forward does not take such a part of a sequence; empty: it does.
  virtual std::string refuses(const SequencePart& part) const;

  // Decoding: a fresh state for `batch` sequences of at most max_tokens, and one call for the next
  // n >= 1 tokens x [B, n, C] -> [B, n, C]. The default says that this mixer cannot decode.
  virtual std::unique_ptr<MixerState> make_state(int64_t batch, int64_t max_tokens);
  virtual Tensor decode(const Tensor& x, MixerState& state);

  // Multiply-adds count two; forward over [B, N, C], projections included.
  virtual double forward_flops(int64_t batch, int64_t tokens) const = 0;
};

// Makes the mixer of layer `layer` of `layers` for channels C.
using MixerFactory =
    std::function<std::unique_ptr<Mixer>(int64_t channels, int64_t layer, int64_t layers)>;

}  // namespace fovea::nn
