// SPDX-License-Identifier: Apache-2.0
// Forward over several tiles of queries and keys, on every device and by every set of kernels that
// it has: tile edges, and every feature in every class of tile.
#include <gtest/gtest.h>

#include "attention/score/cuda/kernels.h"
#include "attention/score/score_test_util.h"
#include "core/testing/devices.h"
#if defined(FOVEA_INTERPRETED)
#include "core/interpreter/machine.h"
#endif

FOVEA_SCORE_KERNELS_DECLARE(softmax)

namespace fovea::attention {
namespace {

// Softmax by the kernels that every card has.
ScoreRule by_sm80() {
  ScoreRule rule = softmax_rule();
  rule.device_forward = [](Device device, const ScoreCall& c) {
    if (c.q.dtype == Dtype::f32)
      FOVEA_GPU_CALL(device, softmax_forward_f32, c, stream_of(device));
    else if (c.D <= 96 && c.Dv <= 96)
      FOVEA_GPU_CALL(device, softmax_forward_bf16_small, c, stream_of(device));
    else
      FOVEA_GPU_CALL(device, softmax_forward_bf16_large, c, stream_of(device));
  };
  return rule;
}

class ForwardOn : public OnDevices {
 protected:
  struct Kernels {
    const char* name;
    ScoreRule rule;
  };
  static std::vector<Kernels> kernels() {
    std::vector<Kernels> all{{"default", softmax_rule()}};
    if (runs_sm90(device())) all.push_back({"sm_80", by_sm80()});
    return all;
  }
  // Against f64 on the cpu, of the same inputs, and in lse what sees nothing.
  static void check(const ScoreInputs& low, const Mask& mask, const ScoreOptions& options,
                    const std::string& name) {
    ScoreInputs wide = low;
    for (Tensor* t : {&wide.q, &wide.k, &wide.v, &wide.sink, &wide.bias})
      if (t->defined()) *t = t->to(Dtype::f64);
    const ScoreResult wanted = softmax_forward(wide, mask, options);
    const auto lse = wanted.lse.to_vector<double>();
    for (const Kernels& k : kernels()) {
      const ScoreResult found =
          score_forward(k.rule, on(device(), low), mask.to(device()), options);
      EXPECT_LT(relative_error(found.out, wanted.out), 1e-2) << name << ", " << k.name;
      const auto found_lse = found.lse.to_vector<double>();
      double error = 0.0;
      for (size_t i = 0; i < lse.size(); ++i) {
        if (lse[i] == -INFINITY || found_lse[i] == -INFINITY)
          EXPECT_EQ(found_lse[i], lse[i]) << name << ", " << k.name << ", lse of row " << i;
        else
          error = std::max(error, std::abs(found_lse[i] - lse[i]));
      }
      EXPECT_LT(error, 2e-2) << name << ", " << k.name;
    }
  }
};

TEST_P(ForwardOn, TileEdges) {
  const auto run = [](int64_t N, int64_t M, int64_t D, int64_t Dv) {
    for (const bool causal : {false, true}) {
      if (causal && N > M) continue;
      Mask mask;
      if (causal) mask.causal();
      check(inputs({1, 1, 1, N, M, D, Dv}, Dtype::bf16), mask, {},
            concat(N, " x ", M, ", ", D, " and ", Dv, causal ? " causal" : ""));
    }
  };
  for (const int64_t N : {63, 65, 128, 129})
    for (const int64_t M : {127, 128, 257}) run(N, M, 64, 64);
  for (const int64_t M : {128, 255}) {
    run(130, M, 128, 128);
    run(70, M, 72, 120);
    run(70, M, 32, 16);
  }
  run(66, 129, 256, 256);
  run(66, 64, 136, 200);
}

// Tiles that are whole, at an edge and skipped, in every mask's way, for grouped heads.
TEST_P(ForwardOn, Masks) {
  std::vector<int32_t> ids(400);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = i > 380 ? -1 : static_cast<int32_t>(i / 150);
  const Tensor documents = Tensor::from(ids, {1, 400});
  std::vector<uint8_t> on(2 * 5 * 5, 0);
  for (size_t i = 0; i < on.size(); ++i) on[i] = i % 3 == 0 || i % 7 == 2;
  const Tensor blocks = Tensor::from(on, {2, 5, 5});
  const Sizes square{1, 2, 1, 400, 400, 64, 64}, fewer{2, 2, 1, 150, 400, 64, 64},
      more{1, 2, 1, 400, 150, 64, 64};
  const struct {
    const char* name;
    Sizes sizes;
    Mask mask;
  } all[] = {{"causal", square, Mask().causal()},
             {"fewer queries", fewer, Mask().causal()},
             {"queries that see nothing", more, Mask().window(30, 20)},
             {"causal window", square, Mask().causal().window(150, -1)},
             {"narrow window", square, Mask().window(20, 10)},
             {"window from the left", square, Mask().window(-1, 5)},
             {"prefix", square, Mask().causal().prefix(200)},
             {"documents", square, Mask().documents(documents, documents)},
             {"causal documents", square, Mask().causal().documents(documents, documents)},
             {"blocks", square, Mask().block_sparse(blocks, 80, 80)},
             {"blocks and all else", square,
              Mask()
                  .causal()
                  .window(300, -1)
                  .documents(documents, documents)
                  .block_sparse(blocks, 80, 80)}};
  bool sink = false;
  for (const auto& c : all) {
    ScoreInputs in = inputs(c.sizes, Dtype::bf16);
    if (sink) in.sink = Tensor::from(std::vector<float>{0.5f, -1.0f}, {2});
    check(in, c.mask, {}, concat(c.name, sink ? " and a sink" : ""));
    sink = !sink;
  }
}

TEST_P(ForwardOn, ScoresAndDropout) {
  for (const int64_t D : {64, 128, 160}) {
    ScoreInputs in = inputs({D == 64 ? 2 : 1, 2, 1, 140, 200, D, D}, Dtype::bf16);
    const auto run = [&](const char* name, const ScoreOptions& options) {
      check(in, Mask().causal(), options, concat(name, ", D = ", D));
    };
    ScoreOptions softcap, dropout, all;
    softcap.softcap = 1.5;
    dropout.dropout = 0.3;
    dropout.rng = RngKey(1, "dropout", "x");
    dropout.first_sample = 5;
    all = dropout;
    all.softcap = 2.0;
    all.scale = -0.1;
    all.rope = Rope::half;
    if (D == 64) {
      run("softcap", softcap);
      run("dropout", dropout);
      in.alibi_slopes = alibi_slopes(2);
      run("alibi", {});
      in.alibi_slopes = Tensor();
    }
    in.bias = random_tensor({1, 2, 140, 200}, "bias", Dtype::f32);
    if (D == 64) run("bias", {});
    in.alibi_slopes = alibi_slopes(2);
    in.sink = Tensor::from(std::vector<float>{0.5f, -1.0f}, {2});
    run("all", all);
  }
}

TEST_P(ForwardOn, PackedViewsOfSeveralTiles) {
  const int64_t B = 2, H = 2, N = 150, D = 64;
  const Tensor packed = random_tensor({B, N, 3 * H * D}, "qkv", Dtype::bf16);
  const auto part = [&](int64_t n) {
    return packed.slice(2, n * H * D, (n + 1) * H * D).view({B, N, H, D}).transpose(1, 2);
  };
  const Tensor on_device = packed.to(device());
  const auto there = [&](int64_t n) {
    return on_device.slice(2, n * H * D, (n + 1) * H * D).view({B, N, H, D}).transpose(1, 2);
  };
  const ScoreResult wanted = softmax_forward(
      {part(0).to(Dtype::f64), part(1).to(Dtype::f64), part(2).to(Dtype::f64), {}, {}},
      Mask().causal(), {});
  for (const Kernels& k : kernels()) {
    const ScoreResult found =
        score_forward(k.rule, {there(0), there(1), there(2), {}, {}}, Mask().causal(), {});
    EXPECT_LT(relative_error(found.out, wanted.out), 1e-2) << k.name;
  }
}

// A NaN of a key that a tile holds but a row does not see, and one of a query.
TEST_P(ForwardOn, ANanReachesOnlyWhoSeesIt) {
  for (const bool query : {false, true}) {
    ScoreInputs in = inputs({1, 1, 1, 200, 200, 64, 64}, Dtype::bf16);
    (query ? in.q : in.v).slice(2, 150, 151).fill_(std::nan(""));
    for (const Kernels& k : kernels()) {
      const auto out =
          score_forward(k.rule, on(device(), in), Mask().causal(), {}).out.to_vector<float>();
      for (size_t i = 0; i < 200; ++i)
        EXPECT_EQ(std::isnan(out[i * 64]), query ? i == 150 : i >= 150)
            << k.name << (query ? ", q" : ", v") << ", row " << i;
    }
  }
}

#if defined(FOVEA_INTERPRETED)
TEST_P(ForwardOn, AnyOrderOfThreadsGivesTheSameBits) {
  if (device().kind != Device::Kind::interpreted) return;
  std::vector<int32_t> ids(300);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i / 130);
  const Tensor documents = Tensor::from(ids, {1, 300});
  for (const bool plain : {true, false}) {
    Mask mask;
    mask.causal();
    if (!plain) mask.documents(documents, documents);
    const ScoreInputs in = on(device(), inputs({1, 2, 1, 300, 300, 64, 64}, Dtype::bf16));
    const auto run = [&] {
      const ScoreResult result = softmax_forward(in, mask.to(device()), {});
      auto values = result.out.to_vector<float>(), lse = result.lse.to_vector<float>();
      values.insert(values.end(), lse.begin(), lse.end());
      return values;
    };
    const auto expected = run();
    for (const uint64_t seed : {1, 2}) {
      const auto before = interpreted::set_seed(seed);
      EXPECT_EQ(run(), expected) << "lanes in order " << seed;
      interpreted::set_seed(before);
    }
  }
}
#endif

FOVEA_ON_DEVICES(ForwardOn);

}  // namespace
}  // namespace fovea::attention
