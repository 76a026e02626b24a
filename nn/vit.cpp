// SPDX-License-Identifier: Apache-2.0
#include "nn/vit.h"

#include "autograd/ops.h"
#include "nn/dropout.h"
#include "nn/embedding.h"
#include "nn/gpt.h"

namespace fovea::nn {
namespace {

class PatchifyFn final : public Function {
 public:
  explicit PatchifyFn(int64_t patch) : patch_(patch) {}
  const char* name() const override { return "patchify"; }

  Tensor forward(const Tensor& images) {
    FOVEA_CHECK(images.rank() == 4, "patchify: expected images [B, C, H, W], found ",
                images.shape());
    FOVEA_CHECK(images.dim(2) % patch_ == 0 && images.dim(3) % patch_ == 0, "patchify: patches of ",
                patch_, " pixels do not divide images ", images.shape());
    shape_ = images.shape();
    const Tensor cut = images.contiguous().view(cut_shape()).permute({0, 2, 4, 1, 3, 5});
    return cut.contiguous().view(
        {shape_[0], (shape_[2] / patch_) * (shape_[3] / patch_), shape_[1] * patch_ * patch_});
  }
  Tensors backward(const Tensors& dout) override {
    const Tensor dx = Tensor::empty(shape_, dout[0].dtype(), dout[0].device());
    const Shape c = cut_shape();
    dx.view(c)
        .permute({0, 2, 4, 1, 3, 5})
        .copy_(dout[0].reshape({c[0], c[2], c[4], c[1], c[3], c[5]}));
    return {dx};
  }

 private:
  Shape cut_shape() const {
    return {shape_[0], shape_[1], shape_[2] / patch_, patch_, shape_[3] / patch_, patch_};
  }

  int64_t patch_;
  Shape shape_;
};

}  // namespace

Variable patchify(const Variable& images, int64_t patch) {
  return record(make<PatchifyFn>(patch), images);
}

void VitOptions::describe(config::Fields& f) {
  TransformerOptions::describe(f);
  f.add("patch", patch, "side of a patch; must divide the image", config::from_to(1, 1 << 14),
        "pixels");
  f.add("pool", pool, "what the head reads: a class token, or the mean over tokens",
        config::one_of({"class", "mean"}));
  f.add("positions", positions, "absolute positions added to the patches",
        config::one_of({"learned", "sinusoidal", "none"}));
}

Vit::Vit(const VitOptions& options, int64_t channels, int64_t height, int64_t width,
         int64_t classes, const MixerFactory& mixer)
    : options_(options),
      channels_(channels),
      grid_h_(height / options.patch),
      grid_w_(width / options.patch),
      classes_(classes),
      blocks_(options, mixer) {
  FOVEA_CHECK(height % options.patch == 0 && width % options.patch == 0, "vit: patches of ",
              options.patch, " x ", options.patch, " pixels do not divide images of ", height,
              " x ", width);
  FOVEA_CHECK(classes >= 1, "vit: expected at least one class, found ", classes);
  if (options.pool == "class")
    class_token_ = declare("cls_token", {1, 1, options.dim}, Init::normal(0.02));
  if (options.positions == "learned")
    position_ = declare("pos_embed", {1, tokens(), options.dim}, Init::normal(0.02));
  if (options.positions == "sinusoidal") sinusoids_ = sinusoidal_positions(tokens(), options.dim);
  declare_constant(sinusoids_);
  patch_embed_ =
      std::make_unique<Linear>(channels * options.patch * options.patch, options.dim, true);
  declare("patch_embed", *patch_embed_);
  declare("blocks", blocks_);
  norm_ = make_norm(options);
  declare("norm", *norm_);
  head_ = std::make_unique<Linear>(options.dim, classes, true);
  declare("head", *head_);
}

Variable Vit::embed(const Variable& images, const SequencePart* part) const {
  Variable x = patchify(images, options_.patch);
  const Variable first =
      class_token_.defined() ? expand(class_token_, {x.dim(0), 1, options_.dim}) : Variable();
  if (part == nullptr) {
    x = patch_embed_->forward(x);
    if (first.defined()) x = concat({first, x}, 1);
    if (position_.defined()) x = add(x, position_);
    if (sinusoids_.defined()) x = add(x, Variable(sinusoids_.to(x.dtype())));
    return x;
  }
  // The part's patches, behind the class token where it has that.
  const auto blank = [&] {
    return Variable(Tensor::zeros({x.dim(0), 1, x.dim(2)}, x.dtype(), x.value().device()));
  };
  const Tensor own = part->take((first.defined() ? concat({blank(), x}, 1) : x).value(), 1);
  if (!first.defined() || !part->holds_first()) {
    x = patch_embed_->forward(Variable(own));
  } else if (own.dim(1) == 1) {
    x = first;
  } else {
    x = concat({first, patch_embed_->forward(Variable(own.slice(1, 1, own.dim(1)).contiguous()))},
               1);
  }
  if (position_.defined())
    x = add(x, embedding(reshape(position_, {tokens(), options_.dim}), part->positions()));
  if (sinusoids_.defined())
    x = add(x, embedding(Variable(sinusoids_.to(x.dtype())), part->positions()));
  return x;
}

// h [B, n, dim] -> [B, dim]. A part without the class token adds zeros of its own tokens, so that
// its backward pass is as long as the others'.
Variable Vit::pooled(const Variable& h, const SequencePart* part) const {
  const bool of_class = class_token_.defined();
  const auto token = [&] { return reshape(slice(h, 1, 0, 1), {h.dim(0), options_.dim}); };
  if (part == nullptr) return of_class ? token() : mean(h, 1);
  const Dtype wide = h.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32;
  const Variable own = of_class ? scale(cast(token(), wide), part->holds_first() ? 1.0 : 0.0)
                                : scale(sum(cast(h, wide), 1), 1.0 / static_cast<double>(tokens()));
  return cast(part->summed(own), h.dtype());
}

Variable Vit::forward(const Variable& images, const SequencePart* part) {
  FOVEA_CHECK(images.value().rank() == 4 && images.dim(1) == channels_ &&
                  images.dim(2) == grid_h_ * options_.patch &&
                  images.dim(3) == grid_w_ * options_.patch,
              "vit: expected images [B, ", channels_, ", ", grid_h_ * options_.patch, ", ",
              grid_w_ * options_.patch, "], found ", images.shape());
  FOVEA_CHECK(part == nullptr || part->whole() == tokens(), "vit: a part of ",
              part != nullptr ? part->whole() : 0, " tokens, but an image has ", tokens());
  const MemoryLabel label(activations());
  MixerContext context;
  context.grid_h = grid_h_;
  context.grid_w = grid_w_;
  context.prefix_tokens = class_token_.defined() ? 1 : 0;
  context.part = part;
  const Residual stream = blocks_.forward(
      dropout(embed(images, part), options_.dropout, *this, part), context, compute_);
  return head_->forward(pooled(norm_->add_forward(stream.x, stream.delta, compute_)[1], part));
}

double Vit::forward_flops(int64_t batch) const {
  const double rows = static_cast<double>(batch * grid_h_ * grid_w_);
  return blocks_.forward_flops(batch, tokens()) +
         2.0 * rows * static_cast<double>(patch_embed_->weight.value().numel()) +
         2.0 * static_cast<double>(batch * options_.dim * classes_);
}

}  // namespace fovea::nn
