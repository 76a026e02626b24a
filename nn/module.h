// SPDX-License-Identifier: Apache-2.0
#pragma once
// Module: named parameters, buffers and children, in the order in which they were declared.

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "autograd/variable.h"
#include "core/random_scope.h"
#include "core/rng.h"

namespace fovea::nn {

// How a parameter starts. Values depend on (seed, the parameter's full name) alone.
struct Init {
  enum class Kind { zeros, ones, normal, uniform };
  Kind kind = Kind::zeros;
  double scale = 0.0;  // normal: standard deviation (mean 0); uniform: values in (-scale, scale)

  static Init zeros() { return {Kind::zeros, 0.0}; }
  static Init ones() { return {Kind::ones, 0.0}; }
  static Init normal(double deviation) { return {Kind::normal, deviation}; }
  static Init uniform(double bound) { return {Kind::uniform, bound}; }
};

struct NamedParameter {
  std::string name;  // dotted path from the root: "blocks.0.mlp.up.weight"
  Variable variable;
};
struct NamedBuffer {
  std::string name;
  Tensor* tensor;  // state that is saved but not trained (running statistics)
};

class Module {
 public:
  Module() = default;
  virtual ~Module() = default;
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  // All parameters and buffers below this module, depth first in declaration order.
  std::vector<NamedParameter> parameters() const;
  std::vector<NamedBuffer> buffers();
  int64_t parameter_count() const;

  // Gives every parameter its starting value and tells every module its path. Called once, on the
  // root, before use. `scale` multiplies the deviation of the normal ones.
  void initialise(uint64_t seed, double scale = 1.0);
  // Dotted path from the root ("" for the root): names random streams and error messages.
  const std::string& path() const { return path_; }
  // What a forward pass of this module makes counts to: "activations of blocks.0.mlp".
  MemoryGroup activations() const { return activations_; }

  // Dropout, DropPath and BatchNorm behave differently in training.
  bool training() const { return training_; }
  void train(bool on = true);

  void zero_grad() const;
  // Converts every floating parameter and buffer (gradcheck uses f64).
  void to(Dtype dtype);
  // Moves every parameter, buffer and constant to a device. Variables stay the same; their
  // gradients go.
  void to(Device device);

 protected:
  // A parameter of this module; lives as long as the module. The value is allocated now and filled
  // by initialise().
  Variable declare(std::string name, const Shape& shape, Init init);
  void declare_buffer(std::string name, Tensor& tensor);
  // A table that is neither trained nor saved, but moves with the module.
  void declare_constant(Tensor& tensor);
  // A child; the caller keeps it alive (a member or a unique_ptr member).
  void declare(std::string name, Module& child);

 private:
  void visit(const std::string& prefix, const std::function<void(const std::string&, Module&)>& f);

  struct Parameter {
    std::string name;
    Variable variable;
    Init init;
  };
  struct Buffer {
    std::string name;
    Tensor* tensor;
  };
  struct Child {
    std::string name;
    Module* module;
  };
  std::vector<Parameter> parameters_;
  std::vector<Buffer> buffers_;
  std::vector<Tensor*> constants_;
  std::vector<Child> children_;
  std::string path_;
  MemoryGroup activations_;
  bool training_ = true;
};

// Randomness inside a forward pass: core/random_scope.h.
using fovea::RandomScope;

// The stream of the module at `path` for `purpose` ("dropout"), at the current step.
RngKey current_rng(std::string_view purpose, std::string_view path);

}  // namespace fovea::nn
