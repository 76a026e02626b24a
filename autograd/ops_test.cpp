// SPDX-License-Identifier: Apache-2.0
#include "autograd/ops.h"

#include <gtest/gtest.h>

#include "autograd/gradcheck.h"
#include "core/rng.h"

namespace fovea {
namespace {

Variable leaf(const Shape& shape, const char* name) {
  const Tensor value = Tensor::empty(shape, Dtype::f64);
  fill_normal(value, RngKey(1, "test", name));
  return Variable(value, true);
}

TEST(Ops, GradientsMatchCentralDifferences) {
  const Variable a = leaf({2, 3, 4}, "a"), b = leaf({3, 1}, "b"), m = leaf({4, 5}, "m"),
                 c = leaf({2, 4, 5}, "c");
  gradcheck([](const Variables& x) { return add(x[0], x[1]); }, {a, b});
  gradcheck([](const Variables& x) { return sub(x[0], x[1]); }, {b, a});
  gradcheck([](const Variables& x) { return mul(x[0], x[1]); }, {a, b});
  gradcheck([](const Variables& x) { return mul(x[0], x[0]); }, {a});
  gradcheck([](const Variables& x) { return scale(x[0], -2.5); }, {a});
  gradcheck([](const Variables& x) { return matmul(x[0], x[1]); }, {a, m});
  gradcheck([](const Variables& x) { return matmul(x[0], x[1]); }, {a, c});
  gradcheck([](const Variables& x) { return sum_all(mul(x[0], x[0])); }, {a});
  gradcheck([](const Variables& x) { return mean(mul(x[0], x[0]), 1); }, {a});
  gradcheck([](const Variables& x) { return mean_all(mul(x[0], x[0])); }, {a});
  gradcheck([](const Variables& x) { return sum(x[0], -1); }, {a});
}

TEST(Ops, ShapeChangesCarryGradients) {
  const Variable a = leaf({2, 3, 4}, "a"), b = leaf({2, 1, 4}, "b");
  gradcheck(
      [](const Variables& x) {
        return mul(reshape(transpose(x[0], 0, 2), {2, 12}), reshape(x[0], {2, 12}));
      },
      {a});
  gradcheck([](const Variables& x) { return mul(slice(x[0], 1, 1, 3), slice(x[0], 1, 0, 2)); },
            {a});
  gradcheck([](const Variables& x) { return mul(expand(x[1], {2, 3, 4}), x[0]); }, {a, b});
  gradcheck([](const Variables& x) { return concat({x[0], x[1], x[0]}, 1); }, {a, b});
}

TEST(Ops, CastRoundsForwardAndReturnsTheGradientInTheOldDtype) {
  const Variable a(Tensor::from(std::vector<float>{1.0f, 1.00390625f}, {2}), true);
  const Variable rounded = cast(a, Dtype::bf16);
  EXPECT_EQ(rounded.value().to_vector<float>(), (std::vector<float>{1.0f, 1.0f}));
  rounded.backward(Tensor::full({2}, 3.0, Dtype::bf16));
  EXPECT_EQ(a.grad().dtype(), Dtype::f32);
  EXPECT_EQ(a.grad().to_vector<float>(), (std::vector<float>{3.0f, 3.0f}));
}

TEST(Ops, ConcatRefusesPartsThatDoNotFit) {
  EXPECT_THROW(concat({leaf({2, 3}, "a"), leaf({3, 3}, "b")}, 1), Error);
}

}  // namespace
}  // namespace fovea
