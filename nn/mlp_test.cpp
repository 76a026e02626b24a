// SPDX-License-Identifier: Apache-2.0
#include "nn/mlp.h"

#include "autograd/gradcheck.h"
#include "nn/cuda/on_devices.h"

namespace fovea::nn {
namespace {

class GeluMlp : public OnDevices {};
FOVEA_ON_DEVICES(GeluMlp);

Variables composed(const Variables& in) {
  const Variable hidden = linear(in[0], in[1], in[2]);
  return {linear(activate(hidden, Activation::gelu_tanh), in[3], in[4])};
}
Variables fused(const Variables& in) { return {gelu_mlp(in[0], in[1], in[2], in[3], in[4])}; }

// Widths that a card's fused products take, and one that they do not (F % 8 != 0).
TEST_P(GeluMlp, IsTwoLinearLayersAndAnActivation) {
  for (const int64_t hidden : {32, 64, 13}) {
    const Tensors inputs{exact_tensor({2, 9, 16}, "x"), exact_tensor({hidden, 16}, "up"),
                         exact_tensor({hidden}, "up_bias"), exact_tensor({24, hidden}, "down"),
                         exact_tensor({24}, "down_bias")};
    const Ran exact = run_exactly(composed, inputs);
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      const std::vector<Dtype> dtypes{dtype, Dtype::f32, Dtype::f32, Dtype::f32, Dtype::f32};
      const Ran one = run_layer(fused, inputs, dtypes, device());
      expect_close(one, exact, dtype, concat("gelu_mlp, F = ", hidden));
      // Where the products carry nothing the kernels are the same.
      if (device().kind != Device::Kind::cuda)
        expect_same_bits(one, run_layer(composed, inputs, dtypes, device()));
    }
  }
}

TEST(GeluMlpCpu, HasTheGradientsOfDifferences) {
  gradcheck(fused, {leaf({2, 3, 5}, "x"), leaf({7, 5}, "up"), leaf({7}, "up_bias"),
                    leaf({4, 7}, "down"), leaf({4}, "down_bias")});
  gradcheck([](const Variables& in) { return gelu_mlp(in[0], in[1], in[2], in[3], Variable()); },
            {leaf({3, 5}, "x"), leaf({7, 5}, "up"), leaf({7}, "up_bias"), leaf({4, 7}, "down")});
}

TEST(GeluMlpCpu, ShapesThatDoNotFitAreNamed) {
  const auto zeros = [](const Shape& shape) { return Variable(Tensor::zeros(shape)); };
  EXPECT_EQ(error_of([&] {
              gelu_mlp(zeros({2, 5}), zeros({8, 4}), zeros({8}), zeros({4, 8}), zeros({4}));
            }),
            "gelu_mlp: x is [2, 5], up [8, 4], its bias [8], down [4, 8]; expected [..., in], [F, "
            "in], [F] and [out, F]");
}

// ---- names of memory ----------------------------------------------------------------------------

TEST_P(GeluMlp, MemoryIsNamedByModuleAndParameter) {
  const auto live = [](const std::string& name) {
    for (const MemoryUse& use : memory_use(device()))
      if (use.name == name) return use.bytes;
    return int64_t{0};
  };
  const int64_t before = live("parameters");
  Mlp mlp(16, {}, Init::normal(0.02));
  mlp.initialise(1);
  mlp.to(device());
  EXPECT_EQ(live("parameters") - before, 4 * mlp.parameter_count());
  const Variable x(exact_tensor({8, 16}, "x").to(Dtype::f32).to(device()));
  const MemoryLabel label(mlp.activations());
  const Variable y = mlp.forward(x);
  EXPECT_EQ(mlp.activations().name(), "activations");
  EXPECT_GE(live("activations"), 4 * 8 * (2 * 64 + 16));  // before and after the GELU; y
  y.backward(Tensor::full(y.shape(), 1.0, Dtype::f32, device()));
  EXPECT_EQ(live("gradients of up.weight"), 4 * 16 * 64);
  EXPECT_EQ(live("gradients of down.bias"), 4 * 16);
  mlp.zero_grad();
  EXPECT_EQ(live("gradients of up.weight"), 0);
}

}  // namespace
}  // namespace fovea::nn
