// SPDX-License-Identifier: Apache-2.0
#pragma once
// Vision Transformer (2010.11929): patches, a class token or mean pooling, pre-norm blocks, a
// linear head. Parameter names follow timm where the layers are the same.

#include <memory>
#include <string>

#include "nn/transformer.h"

namespace fovea::nn {

struct VitOptions : TransformerOptions {
  VitOptions() {
    dim = 192;
    norm_eps = 1e-6;
    mlp = "gelu";
  }
  int64_t patch = 4;                  // pixels; must divide height and width
  std::string pool = "mean";          // class | mean
  std::string positions = "learned";  // learned | sinusoidal | none

  void describe(config::Fields& f) override;
};

class Vit : public Module {
 public:
  // Images [B, channels, height, width]. Throws when the patch does not divide them.
  Vit(const VitOptions& options, int64_t channels, int64_t height, int64_t width, int64_t classes,
      const MixerFactory& mixer);

  // images f32 (f64) [B, C, H, W] -> logits [B, classes] in the compute dtype. part: of the
  // sequence of tokens(), the class token first; the logits are those of the whole images, the same
  // on every part, and images take no gradient.
  Variable forward(const Variable& images, const SequencePart* part = nullptr);
  // Why not; empty: forward takes such a part.
  std::string refuses(const SequencePart& part) const { return blocks_.refuses(part); }

  void set_compute(Dtype compute) { compute_ = compute; }
  Dtype compute() const { return compute_; }
  const VitOptions& options() const { return options_; }
  int64_t classes() const { return classes_; }
  int64_t tokens() const { return grid_h_ * grid_w_ + (options_.pool == "class" ? 1 : 0); }
  double forward_flops(int64_t batch) const;

 private:
  Variable embed(const Variable& images, const SequencePart* part) const;
  Variable pooled(const Variable& h, const SequencePart* part) const;

  VitOptions options_;
  int64_t channels_, grid_h_, grid_w_, classes_;
  Dtype compute_ = Dtype::f32;
  Variable class_token_;  // [1, 1, dim], or absent
  Variable position_;     // [1, tokens, dim], or absent
  Tensor sinusoids_;      // [tokens, dim], or absent
  std::unique_ptr<Linear> patch_embed_;
  Stack blocks_;
  std::unique_ptr<Norm> norm_;
  std::unique_ptr<Linear> head_;
};

// images [B, C, H, W] -> [B, (H/P)(W/P), C P P], patches row by row, each as [C, P, P]: a
// convolution with kernel and stride P is this times its weight [dim, C P P].
Variable patchify(const Variable& images, int64_t patch);

}  // namespace fovea::nn
