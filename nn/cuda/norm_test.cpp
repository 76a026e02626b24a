// SPDX-License-Identifier: Apache-2.0
#include "nn/norm.h"

#include "nn/channel_norm.h"
#include "nn/cuda/on_devices.h"

namespace fovea::nn {
namespace {

class NormOn : public OnDevices {};

// A warp a row, with whole and cut vectors; a block a row; what passes its registers.
const std::vector<Shape> kShapes = {{1, 1},    {5, 3},    {3, 63},   {9, 65},   {2, 3, 127},
                                    {9, 64},   {2, 1000}, {3, 1024}, {2, 1025}, {2, 2056},
                                    {1, 8200}, {3, 256},  {9, 257},  {1, 6144}, {2, 6145}};

std::string describe(const Shape& shape, NormKind kind) {
  std::ostringstream out;
  out << (kind == NormKind::rms ? "rms " : "layer ") << shape;
  return out.str();
}

TEST_P(NormOn, FollowsTheDefinition) {
  for (const NormKind kind : {NormKind::layer, NormKind::rms}) {
    for (const Shape& shape : kShapes) {
      const int64_t c = shape[-1];
      for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
        const auto f = [&](Dtype out) {
          return [kind, out](const Variables& in) {
            return Variables{norm(in[0], in[1], in[2], {kind, 1e-5, out})};
          };
        };
        const Tensors inputs{exact_tensor(shape, "x"), exact_tensor({c}, "g"),
                             exact_tensor({c}, "b")};
        expect_close(
            run_layer(f(dtype), inputs, {dtype, Dtype::f32, Dtype::f32}, device()),
            run_exactly(f(Dtype::f64), inputs), dtype, describe(shape, kind),
            c == 1 && kind == NormKind::layer ? std::vector<size_t>{0, 1} : std::vector<size_t>{});
      }
    }
  }
}

TEST_P(NormOn, TheResidualSumIsFused) {
  for (const NormKind kind : {NormKind::layer, NormKind::rms}) {
    for (const Shape& shape : {Shape{5, 3}, Shape{9, 72}, Shape{3, 127}, Shape{2, 1032}}) {
      const int64_t c = shape[-1];
      for (const Dtype x : {Dtype::f32, Dtype::bf16}) {
        for (const Dtype delta : {Dtype::f32, Dtype::bf16}) {
          for (const Dtype out : {Dtype::f32, Dtype::bf16}) {
            const auto f = [kind](Dtype to) {
              return [kind, to](const Variables& in) {
                return add_norm(in[0], in[1], in[2], in[3], {kind, 1e-5, to});
              };
            };
            const Tensors inputs{exact_tensor(shape, "x"), exact_tensor(shape, "d"),
                                 exact_tensor({c}, "g"), exact_tensor({c}, "b")};
            const bool wide = x == Dtype::f32 && delta == Dtype::f32 && out == Dtype::f32;
            expect_close(run_layer(f(out), inputs, {x, delta, Dtype::f32, Dtype::f32}, device()),
                         run_exactly(f(Dtype::f64), inputs), wide ? Dtype::f32 : Dtype::bf16,
                         describe(shape, kind));
          }
        }
      }
    }
  }
}

TEST_P(NormOn, ViewsOffTheBoundariesNoRowsAndManyRows) {
  const auto f = [](const Variables& in) { return Variables{norm(in[0], in[1], Variable(), {})}; };
  const Tensor weight = exact_tensor({16}, "g").to(Dtype::f32).to(device());
  const Tensor all = exact_tensor({5 * 16 + 1}, "x").to(Dtype::f32);
  const Tensor odd = all.to(device()).slice(0, 1, 81).view({5, 16});
  EXPECT_LE(relative_error(norm(Variable(odd), Variable(weight), Variable(), {}).value(),
                           norm(Variable(all.slice(0, 1, 81).view({5, 16})),
                                Variable(weight.to(kCpu)), Variable(), {})
                               .value()),
            1e-6);
  const std::vector<Dtype> f32{Dtype::f32, Dtype::f32};
  const Ran none =
      run_layer(f, {exact_tensor({0, 16}, "x"), exact_tensor({16}, "g")}, f32, device());
  EXPECT_EQ(none.outputs[0].shape(), (Shape{0, 16}));
  EXPECT_EQ(none.gradients[1].to_vector<float>(), std::vector<float>(16, 0.0f));
  const Tensors many{exact_tensor({3300, 4}, "x"), exact_tensor({4}, "g")};
  const Ran first = run_layer(f, many, f32, device());
  expect_close(
      first,
      run_exactly(
          [](const Variables& in) {
            return Variables{norm(in[0], in[1], Variable(), {NormKind::layer, 1e-5, Dtype::f64})};
          },
          many),
      Dtype::f32, "3300 rows");
  expect_same_bits(first, run_layer(f, many, f32, device()));
}

TEST_P(NormOn, ANanStaysInItsRow) {
  for (const int64_t c : {20, 1200}) {
    std::vector<float> x(static_cast<size_t>(3 * c), 0.5f);
    for (size_t i = 0; i < x.size(); ++i) x[i] += static_cast<float>(i % 7);
    x[static_cast<size_t>(c + 5)] = std::nanf("");
    const auto y = norm(Variable(Tensor::from(x, {3, c}, device())),
                        Variable(Tensor::full({c}, 1.0, Dtype::f32, device())), Variable(), {})
                       .value()
                       .to_vector<float>();
    for (size_t i = 0; i < x.size(); ++i)
      EXPECT_EQ(std::isnan(y[i]), i / static_cast<size_t>(c) == 1) << i;
  }
}

TEST_P(NormOn, OperandsElsewhereAndF64AreNamed) {
  if (has_f64()) return;
  const Variable x(Tensor::zeros({2, 4}, Dtype::f32, device())), on_cpu(Tensor::zeros({4}));
  EXPECT_EQ(error_of([&] { norm(x, on_cpu, Variable(), {}); }),
            concat("layer_norm: the input is on ", device(), " but weight is on cpu"));
  EXPECT_NE(error_of([&] {
              norm(Variable(Tensor::empty({2, 4}, Dtype::f64, device())),
                   Variable(Tensor::zeros({4}, Dtype::f32, device())), Variable(), {});
            }).find("computes in f32 and bf16"),
            std::string::npos);
}

TEST_P(NormOn, ChannelNormsFollowTheDefinition) {
  for (const Shape& shape : {Shape{2, 4, 3, 5}, Shape{1, 4, 1, 2}, Shape{5, 6}, Shape{3, 2, 7, 9},
                             Shape{2, 2, 64, 70}, Shape{40, 2, 3}}) {
    for (const int64_t groups : {0, 1, 2}) {
      for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
        if (shape[0] == 1 && groups != 1) continue;  // a set of few values has no direction
        const int64_t c = shape[1];
        const auto f = [groups](const Variables& in) {
          return Variables{groups > 0 ? group_norm(in[0], in[1], in[2], groups)
                                      : batch_norm(in[0], in[1], in[2])};
        };
        const Tensors inputs{exact_tensor(shape, "x"), exact_tensor({c}, "g"),
                             exact_tensor({c}, "b")};
        std::ostringstream what;
        what << shape << " in " << groups << " groups";
        expect_close(run_layer(f, inputs, {dtype, Dtype::f32, Dtype::f32}, device()),
                     run_exactly(f, inputs), dtype, what.str());
      }
    }
  }
}

TEST_P(NormOn, BatchNormKeepsRunningStatistics) {
  const auto train = [](Device where) {
    BatchNorm2d layer(3);
    layer.initialise(1);
    layer.to(where);
    const Variable x(random_tensor({4, 3, 5, 3}, "x", Dtype::f32).to(where));
    layer.forward(x);
    layer.forward(x);
    layer.train(false);
    return Tensors{layer.running_mean, layer.running_variance, layer.forward(x).value()};
  };
  const Tensors here = train(kCpu), there = train(device());
  for (size_t i = 0; i < here.size(); ++i) EXPECT_LE(relative_error(there[i], here[i]), 1e-5) << i;
  EXPECT_EQ(there[0].device(), device());
  const auto fixed = [&](Dtype dtype) {
    return [this, dtype](const Variables& in) {
      const Device where = dtype == Dtype::f64 ? kCpu : device();
      return Variables{batch_norm_fixed(in[0], in[1], in[2], Tensor::full({3}, 0.25, dtype, where),
                                        Tensor::full({3}, 2.0, dtype, where))};
    };
  };
  const Tensors inputs{exact_tensor({2, 3, 4, 4}, "x"), exact_tensor({3}, "g"),
                       exact_tensor({3}, "b")};
  expect_close(run_layer(fixed(Dtype::f32), inputs, {Dtype::f32, Dtype::f32, Dtype::f32}, device()),
               run_exactly(fixed(Dtype::f64), inputs), Dtype::f32, "fixed");
}

FOVEA_ON_DEVICES(NormOn);

}  // namespace
}  // namespace fovea::nn
