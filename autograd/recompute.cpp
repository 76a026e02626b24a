// SPDX-License-Identifier: Apache-2.0
#include "autograd/recompute.h"

#include <optional>

#include "core/random_scope.h"

namespace fovea {
namespace {

class RecomputeFn final : public Function {
 public:
  explicit RecomputeFn(std::function<Variables(const Variables&)> f) : f_(std::move(f)) {
    if (const auto* state = RandomScope::current_or_null()) random_ = *state;
  }
  const char* name() const override { return "recompute"; }

  Tensors forward(const Tensors& values) {
    inputs_ = values;
    const NoGrad no_grad;
    Variables leaves;
    for (const Tensor& value : values) leaves.emplace_back(value);
    Tensors out;
    for (const Variable& result : f_(leaves)) out.push_back(result.value());
    return out;
  }

  Tensors backward(const Tensors& dout) override {
    const EnableGrad enable;
    std::optional<RandomScope> scope;
    if (random_) scope.emplace(*random_);
    Variables leaves;
    for (size_t i = 0; i < inputs_.size(); ++i) leaves.emplace_back(inputs_[i], wanted(i));
    inputs_.clear();
    fovea::backward(f_(leaves), dout);
    Tensors gradients;
    for (const Variable& leaf : leaves) gradients.push_back(leaf.grad());
    return gradients;
  }

 private:
  std::function<Variables(const Variables&)> f_;
  std::optional<RandomScope::State> random_;
  Tensors inputs_;
};

}  // namespace

Variables recompute(std::function<Variables(const Variables&)> f, const Variables& inputs) {
  return record_list(make<RecomputeFn>(std::move(f)), inputs);
}

}  // namespace fovea
