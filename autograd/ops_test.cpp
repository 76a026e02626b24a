// SPDX-License-Identifier: Apache-2.0
#include "autograd/ops.h"

#include <cmath>

#include "autograd/gradcheck.h"
#include "core/rng.h"
#include "core/testing/devices.h"

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
  gradcheck(
      [](const Variables& x) {
        const Variables halves = split(x[0], -1, 2);
        return concat({mul(halves[1], halves[1]), halves[0]}, 2);
      },
      {a});
  gradcheck([](const Variables& x) { return split(x[0], 1, 1)[2]; }, {a});  // two get no gradient
  EXPECT_THROW(split(a, 1, 2), Error);
}

class OpsOn : public OnDevices {
 protected:
  using Graph = std::function<Variable(const Variables&)>;
  // Value and gradients of f in dtype on this device against those in f64 on the cpu, for inputs
  // and a seed that dtype holds exactly.
  static void expect_close(const char* what, Dtype dtype, const Graph& f,
                           const std::vector<Shape>& shapes) {
    const auto run = [&](Dtype type, Device where) {
      Variables inputs;
      for (size_t i = 0; i < shapes.size(); ++i)
        inputs.emplace_back(normal(shapes[i], i).to(dtype).to(type).to(where), true);
      const Variable out = f(inputs);
      out.backward(normal(out.shape(), 99).to(dtype).to(type).to(where));
      Tensors results{out.value()};
      for (const Variable& input : inputs) results.push_back(input.grad());
      return results;
    };
    const Tensors want = run(Dtype::f64, kCpu), found = run(dtype, device());
    for (size_t k = 0; k < want.size(); ++k) {
      ASSERT_EQ(found[k].device(), device()) << what << " tensor " << k;
      const auto a = found[k].to_vector<double>(), b = want[k].to_vector<double>();
      double difference = 0.0, size = 0.0;
      for (size_t i = 0; i < b.size(); ++i) {
        difference += (a[i] - b[i]) * (a[i] - b[i]);
        size += b[i] * b[i];
      }
      EXPECT_LE(std::sqrt(difference), (dtype == Dtype::bf16 ? 2e-2 : 1e-5) * std::sqrt(size))
          << what << ' ' << dtype << " tensor " << k;
    }
  }

 private:
  static Tensor normal(const Shape& shape, size_t step) {
    const Tensor t = Tensor::empty(shape);
    fill_normal(t, RngKey(1, "test", "ops", step));
    return t;
  }
};
FOVEA_ON_DEVICES(OpsOn);

TEST_P(OpsOn, ValuesAndGradientsFollowF64) {
  const Shape a{2, 3, 4}, column{3, 1}, m{4, 5}, c{2, 4, 5}, middle{2, 1, 4};
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const auto check = [&](const char* what, std::vector<Shape> shapes, const Graph& f) {
      expect_close(what, dtype, f, shapes);
    };
    check("add", {a, column}, [](const Variables& x) { return add(x[0], x[1]); });
    check("sub", {column, a}, [](const Variables& x) { return sub(x[0], x[1]); });
    check("mul", {a, column}, [](const Variables& x) { return mul(x[0], x[1]); });
    check("square", {a}, [](const Variables& x) { return mul(x[0], x[0]); });
    check("scale", {a}, [](const Variables& x) { return scale(x[0], -2.5); });
    check("matmul, one b", {a, m}, [](const Variables& x) { return matmul(x[0], x[1]); });
    check("matmul", {a, c}, [](const Variables& x) { return matmul(x[0], x[1]); });
    check("sum_all", {a}, [](const Variables& x) { return sum_all(mul(x[0], x[0])); });
    check("mean", {a}, [](const Variables& x) { return mean(mul(x[0], x[0]), 1); });
    check("mean_all", {a}, [](const Variables& x) { return mean_all(mul(x[0], x[0])); });
    check("sum", {a}, [](const Variables& x) { return sum(x[0], -1); });
    check("reshape, transpose", {a}, [](const Variables& x) {
      return mul(reshape(transpose(x[0], 0, 2), {2, 12}), reshape(x[0], {2, 12}));
    });
    check("slice", {a},
          [](const Variables& x) { return mul(slice(x[0], 1, 1, 3), slice(x[0], 1, 0, 2)); });
    check("expand", {middle, a}, [](const Variables& x) {
      return mul(expand(x[0], {2, 3, 4}), x[1]);
    });
    check("concat", {a, middle}, [](const Variables& x) { return concat({x[0], x[1], x[0]}, 1); });
  }
}

TEST_P(OpsOn, CastRoundsForwardAndReturnsTheGradientInTheOldDtype) {
  const Variable a(Tensor::from(std::vector<float>{1.0f, 1.00390625f}, {2}, device()), true);
  const Variable rounded = cast(a, Dtype::bf16);
  EXPECT_EQ(rounded.value().to_vector<float>(), (std::vector<float>{1.0f, 1.0f}));
  rounded.backward(Tensor::full({2}, 3.0, Dtype::bf16, device()));
  EXPECT_EQ(a.grad().dtype(), Dtype::f32);
  EXPECT_EQ(a.grad().device(), device());
  EXPECT_EQ(a.grad().to_vector<float>(), (std::vector<float>{3.0f, 3.0f}));
}

TEST_P(OpsOn, TheSeedOfALossIsMadeOnItsDevice) {
  const Variable a(Tensor::from(std::vector<float>{1.0f, -2.0f}, {2}, device()), true);
  sum_all(mul(a, a)).backward();
  EXPECT_EQ(a.grad().to_vector<float>(), (std::vector<float>{2.0f, -4.0f}));
}

TEST(Ops, ConcatRefusesPartsThatDoNotFit) {
  EXPECT_THROW(concat({leaf({2, 3}, "a"), leaf({3, 3}, "b")}, 1), Error);
}

}  // namespace
}  // namespace fovea
