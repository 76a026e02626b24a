// SPDX-License-Identifier: Apache-2.0
#pragma once
// Function: one recorded operation, made anew for each call. forward() computes and saves;
// backward() returns one gradient per input. What it saves is its whole memory cost, and is freed
// as soon as its backward has run.
//
//   class ScaleFn final : public Function {
//    public:
//     explicit ScaleFn(double factor) : factor_(factor) {}
//     const char* name() const override { return "scale"; }
//     Tensor forward(const Tensor& x) { return mul_scalar(x, factor_); }
//     Tensors backward(const Tensors& dout) override { return {mul_scalar(dout[0], factor_)}; }
//    private:
//     double factor_;
//   };
//   Variable scale(const Variable& x, double factor) { return record(make<ScaleFn>(factor), x); }

#include <memory>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "autograd/variable.h"

namespace fovea {

using Tensors = std::vector<Tensor>;

class Function {
 public:
  virtual ~Function() = default;
  virtual const char* name() const = 0;
  // dout: one per output, absent where no gradient arrived (a Function with one output always gets
  // it). Returns one per input; absent where !wanted(i) or where the gradient is zero.
  virtual Tensors backward(const Tensors& dout) = 0;

 protected:
  // Whether input i needs a gradient: skip work that nobody asked for.
  bool wanted(size_t input) const { return input < wanted_.size() && wanted_[input]; }
  bool any_wanted() const;
  // Keeps tensors for backward; does nothing when no gradient will be asked for.
  template <typename... T>
  void save(const T&... tensors) {
    if (any_wanted()) saved_ = {tensors...};
  }
  // What save() kept, in that order:  const auto& [x, mean, rstd] = saved<3>();
  template <size_t kCount>
  const std::array<Tensor, kCount> saved() const {
    FOVEA_CHECK(saved_.size() == kCount, name(), ": backward ran twice, or saved ", saved_.size(),
                " tensors and reads ", kCount);
    std::array<Tensor, kCount> out;
    std::copy(saved_.begin(), saved_.end(), out.begin());
    return out;
  }

 private:
  friend struct GraphAccess;
  std::vector<std::shared_ptr<detail::VariableState>> inputs_;  // null where no gradient is wanted
  std::vector<bool> wanted_;
  Tensors saved_;
  std::vector<Shape> output_shapes_;  // to refuse a gradient of the wrong shape by name
  uint64_t sequence_ = 0;             // order of creation: backward runs newest first
  MemoryGroup group_;                 // label of the forward; what backward makes counts to it too
};

// The engine's door into Function and Variable; not for use elsewhere.
struct GraphAccess {
  static void attach_inputs(Function& fn, const Variable* const* inputs, size_t count);
  static Variable make_output(const std::shared_ptr<Function>& fn, Tensor value, int output);
  static void run_backward(const std::vector<Variable>& roots, std::vector<Tensor> seeds);
  static bool records(const Function& fn) { return fn.any_wanted(); }
};

// Backward from several results of one graph at once; seeds[i] is the gradient of roots[i] (absent:
// none arrives there).
void backward(const Variables& roots, Tensors seeds);

// Runs fn->forward(values...) and records it. An absent Variable is passed on as an absent Tensor.
// forward returns Tensor (result: Variable) or Tensors (result: Variables).
template <typename F, typename... V>
auto record(std::shared_ptr<F> fn, const V&... inputs) {
  static_assert((std::is_same_v<V, Variable> && ...), "record takes Variables");
  const std::array<const Variable*, sizeof...(V)> list{&inputs...};
  GraphAccess::attach_inputs(*fn, list.data(), list.size());
  static const Tensor absent;
  auto result = fn->forward((inputs.defined() ? inputs.value() : absent)...);
  if constexpr (std::is_same_v<decltype(result), Tensor>) {
    return GraphAccess::make_output(fn, std::move(result), 0);
  } else {
    Variables outputs;
    for (size_t i = 0; i < result.size(); ++i) {
      outputs.push_back(GraphAccess::make_output(fn, std::move(result[i]), static_cast<int>(i)));
    }
    return outputs;
  }
}

// The same for a Function whose forward takes a list: Tensors forward(const Tensors&) or Tensor
// forward(const Tensors&).
template <typename F>
auto record_list(std::shared_ptr<F> fn, const Variables& inputs) {
  std::vector<const Variable*> list;
  Tensors values;
  for (const Variable& input : inputs) {
    list.push_back(&input);
    values.push_back(input.defined() ? input.value() : Tensor());
  }
  GraphAccess::attach_inputs(*fn, list.data(), list.size());
  auto result = fn->forward(values);
  if constexpr (std::is_same_v<decltype(result), Tensor>) {
    return GraphAccess::make_output(fn, std::move(result), 0);
  } else {
    Variables outputs;
    for (size_t i = 0; i < result.size(); ++i) {
      outputs.push_back(GraphAccess::make_output(fn, std::move(result[i]), static_cast<int>(i)));
    }
    return outputs;
  }
}

// A Function from its constructor's arguments:  return record(make<LayerNormFn>(eps), x, gamma,
// beta);
template <typename F, typename... Args>
std::shared_ptr<F> make(Args&&... args) {
  return std::make_shared<F>(std::forward<Args>(args)...);
}

}  // namespace fovea
