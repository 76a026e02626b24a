// SPDX-License-Identifier: Apache-2.0
#pragma once
// Variable: a Tensor that remembers how it was computed. A handle: copies share value and gradient.

#include <functional>
#include <memory>
#include <vector>

#include "core/tensor.h"

namespace fovea {

class Function;

namespace detail {
// What the handles share. A leaf has no producer; a result has one, and is its output number
// `output`.
struct VariableState {
  Tensor value;
  Tensor grad;
  bool requires_grad = false;
  std::shared_ptr<Function> producer;
  int output = 0;
  MemoryGroup gradient_group;         // of a leaf: what its gradients count to, if they have a name
  std::function<void()> on_gradient;  // of a leaf
};
}  // namespace detail

class Variable {
 public:
  Variable() = default;
  // A leaf. With requires_grad, backward() leaves its gradient in grad().
  explicit Variable(Tensor value, bool requires_grad = false);

  bool defined() const { return state_ != nullptr && state_->value.defined(); }
  const Tensor& value() const { return state_->value; }
  const Shape& shape() const { return value().shape(); }
  int64_t dim(int axis) const { return value().dim(axis); }
  Dtype dtype() const { return value().dtype(); }
  bool requires_grad() const { return state_ != nullptr && state_->requires_grad; }
  bool is_leaf() const { return state_ == nullptr || state_->producer == nullptr; }
  // Whether nobody else sees the value: no other handle, no other tensor. Who is given such a
  // Variable for good may overwrite it.
  bool is_sole() const { return state_.use_count() == 1 && state_->value.is_sole(); }

  // Gradient of a leaf: same shape and dtype as value(); absent until a backward reaches it, and
  // after zero_grad().
  const Tensor& grad() const { return state_->grad; }
  void set_grad(Tensor grad) const;
  void zero_grad() const { state_->grad = Tensor(); }
  // Of a leaf: backward() calls f each time it has added to grad(), which is once for every use of
  // the leaf in the graph. An empty f ends that.
  void on_gradient(std::function<void()> f) const { state_->on_gradient = std::move(f); }
  // Replaces the value of a leaf (shape and dtype must stay).
  void set_value(Tensor value) const;

  // Adds d(this)/d(leaf) to the gradient of every leaf it depends on. `seed` is the gradient of
  // this Variable itself (absent: 1, for which the Variable must hold one element). What the graph
  // saved is freed on the way.
  void backward(Tensor seed = Tensor()) const;

  // The same value without history.
  Variable detach() const { return Variable(value()); }

  detail::VariableState* state() const { return state_.get(); }

 private:
  friend class Function;
  friend struct GraphAccess;
  std::shared_ptr<detail::VariableState> state_;
};

using Variables = std::vector<Variable>;

// While one lives, nothing is recorded on this thread.
class NoGrad {
 public:
  NoGrad();
  ~NoGrad();
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool before_;
};
bool grad_enabled();

// While one lives, recording is on again (recomputation inside a backward).
class EnableGrad {
 public:
  EnableGrad();
  ~EnableGrad();
  EnableGrad(const EnableGrad&) = delete;
  EnableGrad& operator=(const EnableGrad&) = delete;

 private:
  bool before_;
};

}  // namespace fovea
