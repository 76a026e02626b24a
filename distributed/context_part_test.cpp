// SPDX-License-Identifier: Apache-2.0
// A model called with parts of its sequences against the same called with all of them, in f64:
// logits where they belong, gradients as sums over ranks.
#include "distributed/context_part.h"

#include <gtest/gtest.h>

#include <cmath>

#include "attention/over_parts_cases.h"
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

std::unique_ptr<nn::Gpt> model(const nn::MixerFactory& mixer) {
  nn::GptOptions options;
  options.layers = 2;
  options.dim = 8;
  options.context = kN + 1;
  options.dropout = 0.2;
  options.drop_path = 0.2;
  auto gpt = std::make_unique<nn::Gpt>(options, kVocab, mixer);
  gpt->initialise(3, 8.0);  // so that what attention does matters
  gpt->to(Dtype::f64);
  gpt->set_compute(Dtype::f64);
  return gpt;
}
std::unique_ptr<nn::Gpt> model(const std::vector<config::Flag>& flags) {
  Attention attention;
  config::load_text(attention, "", "test", flags);
  return model([&](int64_t c, int64_t l, int64_t layers) {
    return attention::make_attention(attention.choice, c, l, layers);
  });
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
  for (const nn::NamedParameter& p : gpt.parameters()) {  // of the state before: rank 0 alone
    const Tensor& gradient = p.variable.grad();
    result.dparams.push_back(
        gradient.defined()
            ? gradient.to_vector<double>()
            : std::vector<double>(static_cast<size_t>(p.variable.value().numel()), 0.0));
  }
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

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double most = 0.0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    most = std::max(most, std::isfinite(a[i]) ? std::abs(a[i] - b[i]) : INFINITY);
  return most;
}

// On every rank of a mesh, of the same model called with all tokens.
void expect_whole(const ContextPart& part, const Mesh& mesh, nn::Gpt& gpt, const Batch& batch,
                  const Result& whole, double bound) {
  EXPECT_EQ(gpt.refuses(part), "");
  const Result mine = run(gpt, batch, &part);
  EXPECT_LT(largest_difference(mine.logits.to_vector<double>(),
                               part.take(whole.logits, 1).to_vector<double>()),
            bound);
  for (size_t p = 0; p < mine.dparams.size(); ++p) {
    const Tensor sum =
        Tensor::from(mine.dparams[p], {static_cast<int64_t>(mine.dparams[p].size())});
    mesh.all().all_reduce(sum).wait();
    EXPECT_LT(largest_difference(sum.to_vector<double>(), whole.dparams[p]), bound)
        << gpt.parameters()[p].name;
  }
}

TEST(ContextPart, LogitsAndGradientsAreThoseOfTheWhole) {
  const Batch batch;
  for (const auto& flags : kAttentions) {
    const Result whole = run(*model(flags), batch, nullptr);
    for (const MeshSizes& sizes : {MeshSizes{1, 3, 1}, MeshSizes{1, 1, 2}, MeshSizes{1, 2, 2}}) {
      for (const Order order : {Order::contiguous, Order::striped, Order::zigzag}) {
        run_ranks(sizes.ranks(), [&](const Communicator& world) {
          const Mesh mesh(world, sizes);
          const ContextPart part(mesh, order, kN);
          expect_whole(part, mesh, *model(flags), batch, whole, 1e-12);
        });
      }
    }
  }
}

// Mixers of every family that know nothing of ranks; sequences of two documents, and of one.
TEST(ContextPart, EveryEngineSeesTheWhole) {
  Batch packed, plain;
  plain.documents = Tensor();
  struct Expected {
    std::string name;
    nn::MixerFactory mixer;
    Result packed, plain;
  };
  std::vector<Expected> all;
  for (const auto& [name, mixer] : attention::part_mixers(4))
    all.push_back(
        {name, mixer, run(*model(mixer), packed, nullptr), run(*model(mixer), plain, nullptr)});
  for (const MeshSizes& sizes : {MeshSizes{1, 2, 1}, MeshSizes{1, 3, 1}, MeshSizes{1, 4, 1},
                                 MeshSizes{1, 1, 2}, MeshSizes{1, 2, 2}}) {
    run_ranks(sizes.ranks(), [&](const Communicator& world) {
      const Mesh mesh(world, sizes);
      for (const StateStrategy strategy :
           {StateStrategy::gather, StateStrategy::chain, StateStrategy::pipeline}) {
        const ContextPart part(mesh, Order::contiguous, kN, {}, {strategy, 3});
        for (const Expected& e : all) {
          SCOPED_TRACE(e.name);
          const bool state = e.name.starts_with("linear") || e.name.starts_with("delta");
          if (e.name == "sigmoid by heads" && sizes.ring > 1) continue;
          if (strategy != StateStrategy::gather && !(state && sizes.ring == 3)) continue;
          expect_whole(part, mesh, *model(e.mixer), packed, e.packed, 1e-9);
          if (strategy == StateStrategy::gather && sizes.ring * sizes.ulysses > 2)
            expect_whole(part, mesh, *model(e.mixer), plain, e.plain, 1e-9);
        }
      }
    });
  }
}

// Masks of 2510.17896 with the batch's documents, which the second sequence cuts elsewhere, in
// every layout; padding sees nothing and is seen by nothing.
TEST(ContextPart, MasksOfDocumentsAreTheBatchs) {
  Batch batch;
  for (int64_t i = 0; i < kN; ++i) batch.documents.data<int32_t>()[i] = i < 5 ? 0 : i < 9 ? 1 : -1;
  for (const char* mask : {"causal", "causal_document", "share_question", "causal_blockwise",
                           "block_causal_document", "global_sliding_window"}) {
    SCOPED_TRACE(mask);
    std::vector<config::Flag> flags{{"attention.kind", "long_context"}, {"attention.heads", "4"},
                                    {"attention.kv_heads", "2"},        {"attention.rope", "half"},
                                    {"attention.mask", mask},           {"attention.block", "2"},
                                    {"attention.global_tokens", "2"}};
    if (std::string(mask).ends_with("sliding_window"))
      flags.push_back({"attention.window", "[3, 0]"});
    const Result whole = run(*model(flags), batch, nullptr);
    for (const MeshSizes& sizes : {MeshSizes{1, 3, 1}, MeshSizes{1, 1, 2}, MeshSizes{1, 2, 2}}) {
      run_ranks(sizes.ranks(), [&](const Communicator& world) {
        const Mesh mesh(world, sizes);
        const auto gpt = model(flags);
        nn::MixerContext context;
        context.causal = true;
        context.documents = batch.documents;
        const auto& says = dynamic_cast<const attention::SaysMask&>(gpt->block(0).mixer());
        const Layout dispatched =
            Layout::dispatched(says.mask_of(kB, kN, context), kB, kN, 2, sizes.ring, sizes.ulysses);
        for (const Layout& layout :
             {dispatched, Layout(Order::zigzag, kN, sizes.ring, sizes.ulysses)})
          for (const Exchange exchange : {Exchange::ring, Exchange::gather})
            expect_whole(ContextPart(mesh, layout, {exchange}), mesh, *model(flags), batch, whole,
                         1e-12);
      });
    }
  }
}

// One that says nothing of parts.
class Silent final : public attention::PartMixer {
 public:
  explicit Silent(int64_t channels) : PartMixer(channels, 1, channels) {}
  Variable forward(const Variable& x, const nn::MixerContext&) override { return x; }
};

TEST(ContextPart, AMixerThatTakesWholeSequencesSaysSo) {
  run_ranks(2, [](const Communicator& world) {
    const Mesh mesh(world, {1, 2, 1});
    const ContextPart part(mesh, Order::zigzag, kN);
    const auto gpt = model([](int64_t channels, int64_t, int64_t) -> std::unique_ptr<nn::Mixer> {
      return std::make_unique<Silent>(channels);
    });
    EXPECT_EQ(gpt->refuses(part), "takes whole sequences only");
    EXPECT_THROW(run(*gpt, Batch(), &part), Error);
  });
}

TEST(ContextPart, WhatAnEngineCannotSeeIsSaidInOneLine) {
  const auto refusal = [](const MeshSizes& sizes, Order order, size_t mixer, int64_t heads) {
    std::string why;
    run_ranks(sizes.ranks(), [&](const Communicator& world) {
      const Mesh mesh(world, sizes);
      const std::string mine =
          model(attention::part_mixers(heads)[mixer].second)->refuses(ContextPart(mesh, order, kN));
      if (world.rank() == 0) why = mine;
    });
    return why;
  };
  const MeshSizes ring{1, 2, 1}, ulysses{1, 1, 4};
  EXPECT_EQ(refusal(ring, Order::zigzag, 0, 4),
            "hands states on and needs mesh.order = contiguous, found zigzag");
  EXPECT_EQ(refusal(ring, Order::striped, 3, 4),
            "hands states on and needs mesh.order = contiguous, found striped");
  EXPECT_EQ(refusal(ring, Order::zigzag, 4, 4),
            "sees the tokens before its own and needs mesh.order = contiguous, found zigzag");
  EXPECT_EQ(
      refusal(ring, Order::contiguous, 6, 4),
      "sees whole sequences of some heads and needs mesh.ring = 1, found 2; mesh.ulysses takes "
      "the ranks");
  EXPECT_EQ(refusal(ulysses, Order::zigzag, 0, 2), "has 2 heads, which ulysses 4 does not divide");
  EXPECT_EQ(refusal(ulysses, Order::zigzag, 0, 4), "");
}

}  // namespace
}  // namespace fovea::distributed
