// SPDX-License-Identifier: Apache-2.0
#include "nn/token_blocks.h"

#include "autograd/ops.h"
#include "nn/embedding.h"
#include "nn/linear.h"
#include "nn/mlp.h"
#include "nn/norm.h"
#include "nn/test_util.h"

namespace fovea::nn {
namespace {

constexpr int64_t kTokens = 8, kChannels = 33;

// Gradients of `parameter` as they arrive.
struct Arrivals {
  explicit Arrivals(const Variable& parameter) : parameter_(parameter) {
    parameter.zero_grad();
    parameter.on_gradient([this] {
      all.push_back(parameter_.grad().to_vector<float>());
      parameter_.zero_grad();
    });
  }
  ~Arrivals() { parameter_.on_gradient(nullptr); }
  Arrivals(const Arrivals&) = delete;
  Arrivals& operator=(const Arrivals&) = delete;

  std::vector<std::vector<float>> all;

 private:
  const Variable parameter_;
};

using Layer = std::function<Variable(const Variable&)>;

struct Run {
  std::vector<float> out, dx;
  std::vector<std::vector<float>> gradients;  // of the parameter, as they arrive
};
// `layer` on tokens [begin, end) of sequences x [2, 32, C], in blocks.
Run run(const Layer& layer, const Variable& parameter, int64_t begin, int64_t end) {
  const TokenBlocks blocks(kTokens);
  const Arrivals arrivals(parameter);
  const Variable x(random_tensor({2, 32, kChannels}, "x", Dtype::f32).slice(1, begin, end), true);
  const Variable out = layer(x);
  out.backward(random_tensor({2, 32, out.dim(-1)}, "dout", Dtype::f32).slice(1, begin, end));
  return {out.value().to_vector<float>(), x.grad().to_vector<float>(), arrivals.all};
}

// Halves of two sequences, each of two blocks: what they give is in the whole, to the bit.
void expect_same_blocks(const char* what, const Layer& layer, const Variable& parameter) {
  const Run whole = run(layer, parameter, 0, 32), left = run(layer, parameter, 0, 16),
            right = run(layer, parameter, 16, 32);
  const auto joined = [](const std::vector<float>& a, const std::vector<float>& b) {
    std::vector<float> all;  // [2, 16, C] and [2, 16, C] -> [2, 32, C]
    const auto half = static_cast<int64_t>(a.size() / 2);
    for (const int64_t sample : {0, 1}) {
      all.insert(all.end(), a.begin() + sample * half, a.begin() + (sample + 1) * half);
      all.insert(all.end(), b.begin() + sample * half, b.begin() + (sample + 1) * half);
    }
    return all;
  };
  EXPECT_EQ(whole.out, joined(left.out, right.out)) << what;
  EXPECT_EQ(whole.dx, joined(left.dx, right.dx)) << what;
  ASSERT_EQ(whole.gradients.size(), 8u) << what;
  auto parts = left.gradients;
  parts.insert(parts.end(), right.gradients.begin(), right.gradients.end());
  auto all = whole.gradients;
  std::sort(parts.begin(), parts.end());
  std::sort(all.begin(), all.end());
  EXPECT_EQ(all, parts) << what;
  // And is what the layer gives without blocks.
  const Variable x(random_tensor({2, 32, kChannels}, "x", Dtype::f32));
  EXPECT_LT(relative_error(Tensor::from(whole.out, layer(x).shape()), layer(x).value()), 1e-6)
      << what;
}

TEST(TokenBlocks, ALayerGivesThoseOfItsPartOfASequence) {
  Linear linear(kChannels, 20);
  Norm norm(NormKind::layer, kChannels, 1e-5, true);
  Mlp mlp(kChannels, {}, Init::normal(0.02));
  for (Module* module : std::initializer_list<Module*>{&linear, &norm, &mlp})
    module->initialise(1, 10.0);
  const Layer apply = [&](const Variable& x) { return linear.forward(x); };
  expect_same_blocks("weight", apply, linear.weight);
  expect_same_blocks("bias", apply, linear.bias);
  expect_same_blocks(
      "norm", [&](const Variable& x) { return norm.forward(x, Dtype::f32); }, norm.weight);
  expect_same_blocks(
      "add_norm",
      [&](const Variable& x) {
        const Variables both = norm.add_forward(x, scale(x, 0.5), Dtype::f32);
        return concat(both, -1);
      },
      norm.bias);
  for (const NamedParameter& p : mlp.parameters())
    expect_same_blocks(
        p.name.c_str(), [&](const Variable& x) { return mlp.forward(x); }, p.variable);
  const auto names = mlp.parameters();
  expect_same_blocks(
      "gelu_mlp",
      [&](const Variable& x) {
        return gelu_mlp(x, names[0].variable, names[1].variable, names[2].variable,
                        names[3].variable);
      },
      names[0].variable);
}

TEST(TokenBlocks, AnEmbeddingHasAGradientOfEachBlock) {
  const Variable table = leaf({5, 3}, "table", Dtype::f32);
  const Tensor ids = Tensor::from(std::vector<int64_t>{0, 1, 1, 4, 0, 0, 2, 3}, {2, 4});
  const Variable whole = embedding(table, ids);
  const Arrivals arrivals(table);
  const TokenBlocks blocks(2);
  const Variable out = embedding(table, ids);
  EXPECT_EQ(out.shape(), (Shape{2, 4, 3}));
  EXPECT_EQ(out.value().to_vector<float>(), whole.value().to_vector<float>());
  out.backward(Tensor::full({2, 4, 3}, 1.0));
  ASSERT_EQ(arrivals.all.size(), 4u);
  // The last block's first: ids 2 and 3.
  EXPECT_EQ(arrivals.all[0], (std::vector<float>{0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0}));
  EXPECT_EQ(arrivals.all[1], (std::vector<float>{2, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}));
}

TEST(TokenBlocks, EndWithTheirScopeAndTakeWholeBlocks) {
  EXPECT_EQ(TokenBlocks::current(), 0);
  {
    const TokenBlocks outer(8);
    const TokenBlocks inner(0);
    EXPECT_EQ(TokenBlocks::current(), 0);
  }
  const TokenBlocks blocks(3);
  const Variable weight = leaf({2, 4}, "w");
  EXPECT_EQ(error_of([&] {
              linear(leaf({2, 4, 4}, "x"), weight, Variable());
            }),
            "token blocks: the rows of [2, 4, 4] are no multiple of 3");
  EXPECT_NE(error_of([&] {
              embedding(weight, Tensor::zeros({2, 4}, Dtype::i64));
            }).find("are no multiple of 3 tokens"),
            std::string::npos);
}

}  // namespace
}  // namespace fovea::nn
