// SPDX-License-Identifier: Apache-2.0
#include "nn/activation.h"
#include "nn/cuda/on_devices.h"
#include "nn/dropout.h"
#include "nn/embedding.h"
#include "nn/gpt.h"
#include "nn/linear.h"
#include "nn/vit.h"

namespace fovea::nn {
namespace {

class LayersOn : public OnDevices {};

TEST_P(LayersOn, ActivationsFollowTheDefinition) {
  for (const Activation kind :
       {Activation::relu, Activation::gelu, Activation::gelu_tanh, Activation::silu}) {
    for (const int64_t n : {0, 1, 3, 63, 65, 127, 1000, 4096, 8195}) {
      for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
        const auto f = [kind](const Variables& in) { return Variables{activate(in[0], kind)}; };
        const Tensors inputs{exact_tensor({n}, "x")};
        expect_close(run_layer(f, inputs, {dtype}, device()), run_exactly(f, inputs), dtype,
                     concat("activation ", static_cast<int>(kind), " of ", n));
      }
    }
  }
}

TEST_P(LayersOn, SwigluFollowsTheDefinition) {
  const auto f = [](const Variables& in) { return Variables{swiglu(in[0])}; };
  for (const Shape& shape :
       {Shape{3, 2}, Shape{0, 8}, Shape{5, 126}, Shape{2, 3, 64}, Shape{9, 2000}, Shape{33, 512}}) {
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      const Tensors inputs{exact_tensor(shape, "x")};
      expect_close(run_layer(f, inputs, {dtype}, device()), run_exactly(f, inputs), dtype,
                   concat("swiglu ", shape));
    }
  }
}

TEST_P(LayersOn, DropoutDropsTheSameElementsAsOnTheCpu) {
  Linear owner(1, 1);
  owner.initialise(1);
  for (const int64_t first : {0, 1, 6}) {
    for (const Shape& shape :
         {Shape{3, 1}, Shape{3, 7}, Shape{5, 64}, Shape{2, 4100}, Shape{4, 3, 8}}) {
      for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
        for (const bool per_sample : {false, true}) {
          const auto draw = [&](Device where) {
            const RandomScope random(5, 2, first);
            const Variable x(exact_tensor(shape, "x").to(dtype).to(where), true);
            const Variable y = per_sample ? drop_path(x, 0.4, owner) : dropout(x, 0.4, owner);
            y.backward(Tensor::full(shape, 1.0, dtype, where));
            return std::make_pair(y.value().to_vector<float>(), x.grad().to_vector<float>());
          };
          EXPECT_EQ(draw(device()), draw(kCpu)) << shape << ' ' << first << ' ' << dtype;
        }
      }
    }
  }
}

TEST_P(LayersOn, DropoutOfPartsOfSequencesDropsTheSameElementsAsOnTheCpu) {
  Linear owner(1, 1);
  owner.initialise(1);
  const SequencePart part(9, {{2, 1, 2}, {7, 1, 1}, {0, 4, 3}});
  for (const int64_t channels : {1, 7, 64}) {
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      const Tensor x = exact_tensor({2, 6, channels}, "x").to(dtype);
      const RandomScope random(5, 2, 1);
      EXPECT_EQ(dropout(Variable(x.to(device())), 0.4, owner, &part).value().to_vector<float>(),
                dropout(Variable(x), 0.4, owner, &part).value().to_vector<float>())
          << channels << ' ' << dtype;
    }
  }
}

TEST_P(LayersOn, EmbeddingGathersAndAddsTheBitsOfTheCpu) {
  for (const int64_t c : {1, 3, 64, 100, 127}) {
    std::vector<int64_t> ids;  // id 1 often: longer than a piece
    for (int64_t i = 0; i < 420; ++i) ids.push_back(i % 3 == 0 ? 1 : i * 13 % 40);
    const Tensor index = Tensor::from(ids, {2, 210});
    const Tensors inputs{exact_tensor({41, c}, "w")};
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      for (const bool ids_there : {false, true}) {
        const auto f = [&](const Variables& in) {
          return Variables{embedding(in[0], index.to(ids_there ? in[0].value().device() : kCpu))};
        };
        const Ran ran = run_layer(f, inputs, {dtype}, device());
        expect_close(ran, run_exactly(f, inputs), dtype, concat("embedding of ", c),
                     dtype == Dtype::bf16 && device().is_cpu() ? std::vector<size_t>{0}
                                                               : std::vector<size_t>{});
        EXPECT_EQ(ran.outputs[0].to_vector<float>(),
                  run_layer(f, inputs, {dtype}, kCpu).outputs[0].to_vector<float>());
      }
    }
  }
  const Variable w(Tensor::zeros({2, 3}, Dtype::f32, device()), true);
  for (const Device at : {kCpu, device()}) {
    EXPECT_EQ(error_of([&] {
                embedding(w, Tensor::from(std::vector<int64_t>{0, 2}, {2}, at));
              }),
              "embedding: id 2 at position 1 is outside the table of 2 rows");
  }
  embedding(w, Tensor::empty({0}, Dtype::i64))
      .backward(Tensor::zeros({0, 3}, Dtype::f32, device()));
  EXPECT_EQ(w.grad().to_vector<float>(), std::vector<float>(6, 0.0f));
}

TEST_P(LayersOn, PatchesAreCutAndPutBack) {
  const auto f = [](const Variables& in) { return Variables{patchify(in[0], 3)}; };
  const Tensors inputs{exact_tensor({2, 2, 6, 9}, "x")};
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
    expect_close(run_layer(f, inputs, {dtype}, device()), run_exactly(f, inputs), dtype, "patches");
}

class NoMixer final : public Mixer {
 public:
  Variable forward(const Variable& x, const MixerContext&) override { return x; }
  double forward_flops(int64_t, int64_t) const override { return 0.0; }
};

TEST_P(LayersOn, AModuleMovesInPlace) {
  GptOptions options;
  options.layers = 1;
  options.dim = 8;
  options.context = 4;
  options.positions = "sinusoidal";
  const MixerFactory mixer = [](int64_t, int64_t, int64_t) { return std::make_unique<NoMixer>(); };
  Gpt here(options, 5, mixer), there(options, 5, mixer);
  here.initialise(7);
  there.initialise(7);
  const std::vector<NamedParameter> before = there.parameters();
  before[0].variable.set_grad(Tensor::zeros(before[0].variable.shape()));
  there.to(device());
  for (size_t i = 0; i < before.size(); ++i) {
    const Variable& moved = before[i].variable;  // the handle from before
    EXPECT_EQ(moved.value().device(), device()) << before[i].name;
    EXPECT_FALSE(moved.grad().defined());
    EXPECT_TRUE(moved.requires_grad());
    EXPECT_EQ(moved.value().to_vector<float>(),
              here.parameters()[i].variable.value().to_vector<float>());
  }
  there.initialise(7);  // the same values wherever they are made
  EXPECT_EQ(before[0].variable.value().to_vector<float>(),
            here.parameters()[0].variable.value().to_vector<float>());
  there.to(kCpu);
  const Tensor ids = Tensor::from(std::vector<int64_t>{1, 4, 0}, {1, 3});
  EXPECT_EQ(there.forward(ids).value().to_vector<float>(),
            here.forward(ids).value().to_vector<float>());
}

FOVEA_ON_DEVICES(LayersOn);

}  // namespace
}  // namespace fovea::nn
