// SPDX-License-Identifier: Apache-2.0
#include <atomic>
#include <queue>
#include <unordered_map>

#include "autograd/function.h"
#include "core/ops/elementwise.h"

namespace fovea {
namespace {

thread_local bool t_grad_enabled = true;

// target += gradient, without touching a tensor someone else may hold.
void accumulate(Tensor& target, Tensor gradient) {
  target = target.defined() ? add(target, gradient) : std::move(gradient);
}

}  // namespace

// ---- Variable -----------------------------------------------------------------------------------

Variable::Variable(Tensor value, bool requires_grad)
    : state_(std::make_shared<detail::VariableState>()) {
  FOVEA_CHECK(!requires_grad || is_floating(value.dtype()), "variable: a ", value.dtype(),
              " tensor has no gradient");
  state_->value = std::move(value);
  state_->requires_grad = requires_grad;
}

void Variable::set_grad(Tensor grad) const {
  if (grad.defined()) {
    FOVEA_CHECK(grad.shape() == shape() && grad.dtype() == dtype(), "set_grad: gradient is ",
                grad.dtype(), ' ', grad.shape(), " but the variable is ", dtype(), ' ', shape());
    FOVEA_CHECK(grad.device() == value().device(), "set_grad: gradient ", shape(), " is on ",
                grad.device(), " but the variable on ", value().device());
  }
  state_->grad = std::move(grad);
}

void Variable::set_value(Tensor value) const {
  FOVEA_CHECK(is_leaf(), "set_value: the variable is a result, not a leaf");
  FOVEA_CHECK(value.shape() == shape() && value.dtype() == dtype(), "set_value: value is ",
              value.dtype(), ' ', value.shape(), " but the variable is ", dtype(), ' ', shape());
  state_->value = std::move(value);
}

void Variable::backward(Tensor seed) const {
  FOVEA_CHECK(requires_grad(),
              "backward: the variable does not depend on anything that requires a gradient");
  if (!seed.defined()) {
    FOVEA_CHECK(value().numel() == 1, "backward: a seed gradient is needed for shape ", shape());
    seed = Tensor::full(shape(), 1.0, dtype(), value().device());
  }
  GraphAccess::run_backward({*this}, {std::move(seed)});
}

void backward(const Variables& roots, Tensors seeds) {
  GraphAccess::run_backward(roots, std::move(seeds));
}

EnableGrad::EnableGrad() : before_(std::exchange(t_grad_enabled, true)) {}
EnableGrad::~EnableGrad() { t_grad_enabled = before_; }
NoGrad::NoGrad() : before_(std::exchange(t_grad_enabled, false)) {}
NoGrad::~NoGrad() { t_grad_enabled = before_; }
bool grad_enabled() { return t_grad_enabled; }

// ---- recording ----------------------------------------------------------------------------------

bool Function::any_wanted() const {
  return std::find(wanted_.begin(), wanted_.end(), true) != wanted_.end();
}

void GraphAccess::attach_inputs(Function& fn, const Variable* const* inputs, size_t count) {
  static std::atomic<uint64_t> next_sequence{1};
  fn.wanted_.assign(count, false);
  fn.group_ = MemoryLabel::current();
  if (!t_grad_enabled) return;
  fn.inputs_.resize(count);
  for (size_t i = 0; i < count; ++i) {
    if (!inputs[i]->requires_grad()) continue;
    fn.wanted_[i] = true;
    fn.inputs_[i] = inputs[i]->state_;
  }
  fn.sequence_ = next_sequence++;
}

Variable GraphAccess::make_output(const std::shared_ptr<Function>& fn, Tensor value, int output) {
  Variable out(std::move(value));
  if (!fn->any_wanted() || !out.defined() || !is_floating(out.dtype())) {
    if (fn->any_wanted()) fn->output_shapes_.push_back(Shape{});
    return out;
  }
  fn->output_shapes_.push_back(out.shape());
  out.state_->requires_grad = true;
  out.state_->producer = fn;
  out.state_->output = output;
  return out;
}

// ---- the walk -----------------------------------------------------------------------------------
// A Function was created after everything it read, so running the newest pending Function first is
// a topological order: every consumer of its outputs has already delivered. Nothing recurses, and a
// Function's saved tensors, inputs and arrived gradients are dropped as soon as it has run.

void GraphAccess::run_backward(const std::vector<Variable>& roots, std::vector<Tensor> seeds) {
  FOVEA_CHECK(roots.size() == seeds.size(), "backward: ", roots.size(), " roots but ", seeds.size(),
              " seeds");
  NoGrad no_grad;
  struct Pending {
    std::shared_ptr<Function> fn;
    Tensors dout;
  };
  std::unordered_map<Function*, Pending> pending;
  const auto older = [](const Function* a, const Function* b) {
    return a->sequence_ < b->sequence_;
  };
  std::priority_queue<Function*, std::vector<Function*>, decltype(older)> newest(older);

  const auto deliver = [&](const detail::VariableState& to, Tensor gradient) {
    Pending& entry = pending[to.producer.get()];
    if (!entry.fn) {
      entry.fn = to.producer;
      entry.dout.resize(to.producer->output_shapes_.size());
      newest.push(to.producer.get());
    }
    accumulate(entry.dout[static_cast<size_t>(to.output)], std::move(gradient));
  };

  for (size_t i = 0; i < roots.size(); ++i) {
    if (!seeds[i].defined() || !roots[i].requires_grad()) continue;
    FOVEA_CHECK(seeds[i].shape() == roots[i].shape(), "backward: seed is ", seeds[i].shape(),
                " but the variable is ", roots[i].shape());
    FOVEA_CHECK(seeds[i].device() == roots[i].value().device(), "backward: seed ", seeds[i].shape(),
                " is on ", seeds[i].device(), " but the variable on ", roots[i].value().device());
    Tensor seed = seeds[i].to(roots[i].dtype());
    if (roots[i].is_leaf())
      accumulate(roots[i].state_->grad, std::move(seed));
    else
      deliver(*roots[i].state_, std::move(seed));
  }
  seeds.clear();
  while (!newest.empty()) {
    auto node = pending.extract(newest.top());
    newest.pop();
    Function& fn = *node.mapped().fn;
    FOVEA_CHECK(!fn.inputs_.empty(), fn.name(),
                ": backward ran twice over the same graph; its saved tensors are gone");
    const MemoryLabel label(fn.group_);
    Tensors gradients = fn.backward(node.mapped().dout);
    node.mapped().dout.clear();
    fn.saved_.clear();
    const auto inputs = std::exchange(fn.inputs_, {});
    FOVEA_CHECK(gradients.size() == inputs.size(), fn.name(), ": backward returned ",
                gradients.size(), " gradients for ", inputs.size(), " inputs");
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!inputs[i] || !gradients[i].defined()) continue;
      const detail::VariableState& input = *inputs[i];
      FOVEA_CHECK(gradients[i].shape() == input.value.shape(), fn.name(), ": gradient ", i, " is ",
                  gradients[i].shape(), " but the input is ", input.value.shape());
      FOVEA_CHECK(gradients[i].device() == input.value.device(), fn.name(), ": gradient ", i, ' ',
                  gradients[i].shape(), " is on ", gradients[i].device(), " but the input on ",
                  input.value.device());
      Tensor gradient = std::exchange(gradients[i], Tensor()).to(input.value.dtype());
      if (input.producer) {
        deliver(input, std::move(gradient));
      } else {
        accumulate(inputs[i]->grad, std::move(gradient));
        if (input.gradient_group != MemoryGroup())
          inputs[i]->grad.set_memory_group(input.gradient_group);
        if (input.on_gradient) input.on_gradient();
      }
    }
  }
}

}  // namespace fovea
