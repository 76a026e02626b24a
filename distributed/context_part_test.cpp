// SPDX-License-Identifier: Apache-2.0
// A model called with parts of its sequences against the same called with all of them, in f64:
// logits where they belong, gradients as sums over ranks.
#include "distributed/context_part.h"

#include <gtest/gtest.h>

#include "attention/registry.h"
#include "distributed/threads.h"
#include "nn/gpt.h"
#include "nn/loss.h"

namespace fovea::distributed {
namespace {

constexpr int64_t kB = 2, kN = 13, kVocab = 11;

struct Attention : config::Options {
  config::Choice choice = attention::attention_choice();
  void describe(config::Fields& f) override { f.choice("attention", choice, "of the model"); }
};

std::unique_ptr<nn::Gpt> model(const std::vector<config::Flag>& flags) {
  Attention attention;
  config::load_text(attention, "", "test", flags);
  nn::GptOptions options;
  options.layers = 2;
  options.dim = 8;
  options.context = kN + 1;
  options.dropout = 0.2;
  options.drop_path = 0.2;
  auto gpt = std::make_unique<nn::Gpt>(options, kVocab, [&](int64_t c, int64_t l, int64_t layers) {
    return attention::make_attention(attention.choice, c, l, layers);
  });
  gpt->initialise(3);
  gpt->to(Dtype::f64);
  gpt->set_compute(Dtype::f64);
  return gpt;
}

struct Batch {
  Tensor ids = Tensor::empty({kB, kN}, Dtype::i64), targets = Tensor::empty({kB, kN}, Dtype::i64),
         documents = Tensor::empty({kB, kN}, Dtype::i32);
  Batch() {
    for (int64_t i = 0; i < kB * kN; ++i) {
      ids.data<int64_t>()[i] = i * i % kVocab;
      targets.data<int64_t>()[i] = i % 5 == 0 ? -100 : (i * 7 + 1) % kVocab;
      documents.data<int32_t>()[i] = static_cast<int32_t>(i % kN < 4 + i / kN ? 0 : 1);
    }
  }
  int64_t scored(const Tensor& t) const {
    int64_t n = 0;
    for (const int64_t label : t.to_vector<int64_t>()) n += label >= 0;
    return n;
  }
};

struct Result {
  Tensor logits;                             // [B, N, V]
  std::vector<std::vector<double>> dparams;  // by parameter
};

// Of `part` (null: of all), its gradients of the mean over all scored positions.
Result run(nn::Gpt& gpt, const Batch& batch, const ContextPart* part) {
  const RandomScope random(7, 1, 4);
  const auto cut = [&](const Tensor& whole) {
    return part != nullptr ? part->take(whole, 1) : whole;
  };
  const Tensor targets = cut(batch.targets);
  const Variable logits = gpt.forward(cut(batch.ids), batch.documents, part);
  const double share =
      static_cast<double>(batch.scored(targets)) / static_cast<double>(batch.scored(batch.targets));
  nn::cross_entropy(logits, targets).backward(Tensor::full({}, share, Dtype::f64));
  Result result{logits.value(), {}};
  for (const nn::NamedParameter& p : gpt.parameters())
    result.dparams.push_back(p.variable.grad().to_vector<double>());
  return result;
}

const std::vector<std::vector<config::Flag>> kAttentions{{{"attention.kind", "softmax_attention"},
                                                          {"attention.heads", "4"},
                                                          {"attention.dropout", "0.3"},
                                                          {"attention.sink", "true"}},
                                                         {{"attention.kind", "softmax_attention"},
                                                          {"attention.heads", "4"},
                                                          {"attention.kv_heads", "2"},
                                                          {"attention.rope", "half"},
                                                          {"attention.qk_norm", "rms"},
                                                          {"attention.window", "5"}}};

TEST(ContextPart, LogitsAndGradientsAreThoseOfTheWhole) {
  const Batch batch;
  for (const auto& flags : kAttentions) {
    const Result whole = run(*model(flags), batch, nullptr);
    for (const MeshSizes& sizes : {MeshSizes{1, 3, 1}, MeshSizes{1, 1, 2}, MeshSizes{1, 2, 2}}) {
      for (const Order order : {Order::contiguous, Order::striped, Order::zigzag}) {
        run_ranks(sizes.ranks(), [&](const Communicator& world) {
          const Mesh mesh(world, sizes);
          const ContextPart part(mesh, order, kN);
          const auto gpt = model(flags);
          ASSERT_EQ(gpt->refuses(part), "");
          const Result mine = run(*gpt, batch, &part);
          const std::vector<double> found = mine.logits.to_vector<double>(),
                                    expected = part.take(whole.logits, 1).to_vector<double>();
          ASSERT_EQ(found.size(), expected.size());
          for (size_t i = 0; i < found.size(); ++i) ASSERT_NEAR(found[i], expected[i], 1e-12) << i;
          for (size_t p = 0; p < mine.dparams.size(); ++p) {
            const Tensor sum =
                Tensor::from(mine.dparams[p], {static_cast<int64_t>(mine.dparams[p].size())});
            mesh.all().all_reduce(sum).wait();
            for (size_t i = 0; i < mine.dparams[p].size(); ++i)
              ASSERT_NEAR(sum.data<double>()[i], whole.dparams[p][i], 1e-12) << p << ' ' << i;
          }
        });
      }
    }
  }
}

TEST(ContextPart, AMixerThatTakesWholeSequencesSaysSo) {
  run_ranks(2, [](const Communicator& world) {
    const Mesh mesh(world, {1, 2, 1});
    const ContextPart part(mesh, Order::zigzag, kN);
    const auto gpt = model({{"attention.kind", "long_context"}, {"attention.heads", "2"}});
    EXPECT_EQ(gpt->refuses(part), "takes whole sequences only");
    EXPECT_THROW(run(*gpt, Batch(), &part), Error);
  });
}

}  // namespace
}  // namespace fovea::distributed
