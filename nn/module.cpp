// SPDX-License-Identifier: Apache-2.0
#include "nn/module.h"

#include <utility>

namespace fovea::nn {
namespace {

std::string join(const std::string& prefix, const std::string& name) {
  return prefix.empty() ? name : prefix + '.' + name;
}

void fill(const Tensor& value, const Init& init, const RngKey& rng) {
  switch (init.kind) {
    case Init::Kind::zeros:
      return value.zero_();
    case Init::Kind::ones:
      return value.fill_(1.0);
    case Init::Kind::normal:
      return fill_normal(value, rng, 0.0, init.scale);
    case Init::Kind::uniform:
      return fill_uniform(value, rng, -init.scale, init.scale);
  }
}

constexpr std::string_view kParameters = "parameters";  // a memory group

}  // namespace

Variable Module::declare(std::string name, const Shape& shape, Init init) {
  for (const Parameter& other : parameters_)
    FOVEA_CHECK(other.name != name, "module: parameter ", name, " declared twice");
  const MemoryLabel label(kParameters);
  parameters_.push_back({std::move(name), Variable(Tensor::zeros(shape), true), init});
  return parameters_.back().variable;
}

void Module::declare_buffer(std::string name, Tensor& tensor) {
  buffers_.push_back({std::move(name), &tensor});
}

void Module::declare_constant(Tensor& tensor) { constants_.push_back(&tensor); }

void Module::declare(std::string name, Module& child) {
  children_.push_back({std::move(name), &child});
}

void Module::visit(const std::string& prefix,
                   const std::function<void(const std::string&, Module&)>& f) {
  f(prefix, *this);
  for (const Child& child : children_) child.module->visit(join(prefix, child.name), f);
}

std::vector<NamedParameter> Module::parameters() const {
  std::vector<NamedParameter> all;
  const_cast<Module*>(this)->visit("", [&](const std::string& prefix, Module& module) {
    for (const Parameter& p : module.parameters_) all.push_back({join(prefix, p.name), p.variable});
  });
  return all;
}

std::vector<NamedBuffer> Module::buffers() {
  std::vector<NamedBuffer> all;
  visit("", [&](const std::string& prefix, Module& module) {
    for (const Buffer& b : module.buffers_) all.push_back({join(prefix, b.name), b.tensor});
  });
  return all;
}

int64_t Module::parameter_count() const {
  int64_t count = 0;
  for (const NamedParameter& p : parameters()) count += p.variable.value().numel();
  return count;
}

void Module::initialise(uint64_t seed, double scale) {
  visit("", [&](const std::string& prefix, Module& module) {
    module.path_ = prefix;
    module.activations_ = MemoryGroup(prefix.empty() ? "activations" : "activations of " + prefix);
    for (const Parameter& p : module.parameters_) {
      p.variable.state()->gradient_group = MemoryGroup("gradients of " + join(prefix, p.name));
      Init init = p.init;
      if (init.kind == Init::Kind::normal) init.scale *= scale;
      fill(p.variable.value(), init, RngKey(seed, "init", join(prefix, p.name)));
    }
  });
}

void Module::train(bool on) {
  visit("", [&](const std::string&, Module& module) { module.training_ = on; });
}

void Module::zero_grad() const {
  for (const NamedParameter& p : parameters()) p.variable.zero_grad();
}

void Module::to(Dtype dtype) {
  const MemoryLabel label(kParameters);
  visit("", [&](const std::string&, Module& module) {
    for (const Parameter& p : module.parameters_) {
      p.variable.zero_grad();
      p.variable.state()->value = p.variable.value().to(dtype);
    }
    for (const Buffer& b : module.buffers_) {
      if (is_floating(b.tensor->dtype())) *b.tensor = b.tensor->to(dtype);
    }
  });
}

void Module::to(Device device) {
  const MemoryLabel label(kParameters);
  visit("", [&](const std::string&, Module& module) {
    for (const Parameter& p : module.parameters_) {
      p.variable.zero_grad();
      p.variable.state()->value = p.variable.value().to(device);
    }
    for (const Buffer& b : module.buffers_) *b.tensor = b.tensor->to(device);
    for (Tensor* constant : module.constants_) *constant = constant->to(device);
  });
}

RngKey current_rng(std::string_view purpose, std::string_view path) {
  const RandomScope::State& state = RandomScope::current();
  RngKey key(state.seed, purpose, path, state.step);
  key.step_at = state.step_at;
  return key;
}

}  // namespace fovea::nn
