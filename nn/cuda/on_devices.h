// SPDX-License-Identifier: Apache-2.0
#pragma once
// Layers on every device against the definition: f64 on the cpu, of the same values.

#include <functional>

#include "autograd/function.h"
#include "core/testing/devices.h"
#include "nn/test_util.h"

namespace fovea::nn {

// Values that bf16 holds, so that a run in any dtype starts from the same ones.
inline Tensor exact_tensor(const Shape& shape, const char* name) {
  return random_tensor(shape, name, Dtype::bf16).to(Dtype::f64);
}

struct Ran {
  std::vector<Tensor> outputs, gradients;  // on the cpu
};

// The outputs of f, and the gradients of the inputs for random seeds of the outputs. A dtype for
// each input.
inline Ran run_layer(const std::function<Variables(const Variables&)>& f, const Tensors& inputs,
                     const std::vector<Dtype>& dtypes, Device device) {
  Variables leaves;
  for (size_t i = 0; i < inputs.size(); ++i)
    leaves.emplace_back(inputs[i].to(dtypes[i]).to(device), true);
  const Variables results = f(leaves);
  Tensors seeds;
  for (const Variable& result : results)
    seeds.push_back(exact_tensor(result.shape(), "seed").to(result.dtype()).to(device));
  backward(results, seeds);
  Ran ran;
  for (const Variable& result : results) {
    EXPECT_EQ(result.value().device(), device);
    ran.outputs.push_back(result.value().to(kCpu));
  }
  for (const Variable& x : leaves) {
    EXPECT_EQ(x.grad().device(), device);
    ran.gradients.push_back(x.grad().to(kCpu));
  }
  return ran;
}

inline Ran run_exactly(const std::function<Variables(const Variables&)>& f, const Tensors& inputs) {
  return run_layer(f, inputs, std::vector<Dtype>(inputs.size(), Dtype::f64), kCpu);
}

// f32: 1e-5 on outputs, 1e-4 on gradients; bf16: 2e-2. `skip`: gradients without a direction.
inline void expect_close(const Ran& ran, const Ran& exact, Dtype dtype, const std::string& what,
                         const std::vector<size_t>& skip = {}) {
  const bool narrow = dtype == Dtype::bf16;
  ASSERT_EQ(ran.outputs.size(), exact.outputs.size());
  for (size_t i = 0; i < ran.outputs.size(); ++i)
    EXPECT_LE(relative_error(ran.outputs[i], exact.outputs[i]), narrow ? 2e-2 : 1e-5)
        << what << ", output " << i << ' ' << dtype;
  for (size_t i = 0; i < ran.gradients.size(); ++i) {
    if (std::find(skip.begin(), skip.end(), i) != skip.end()) continue;
    EXPECT_LE(relative_error(ran.gradients[i], exact.gradients[i]), narrow ? 2e-2 : 1e-4)
        << what << ", gradient " << i << ' ' << dtype;
  }
}

inline void expect_same_bits(const Ran& a, const Ran& b) {
  for (size_t i = 0; i < a.outputs.size(); ++i)
    EXPECT_EQ(a.outputs[i].to_vector<float>(), b.outputs[i].to_vector<float>()) << i;
  for (size_t i = 0; i < a.gradients.size(); ++i)
    EXPECT_EQ(a.gradients[i].to_vector<float>(), b.gradients[i].to_vector<float>()) << i;
}

}  // namespace fovea::nn
