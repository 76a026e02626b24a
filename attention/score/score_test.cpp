// SPDX-License-Identifier: Apache-2.0
#include "attention/score/score.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "attention/score/rows.h"
#include "attention/score/rows_simd.h"
#include "core/parallel.h"

namespace fovea::attention {
namespace {

Tensor random_tensor(const Shape& shape, const char* name, Dtype dtype = Dtype::f64) {
  const Tensor value = Tensor::empty(shape, Dtype::f64);
  fill_normal(value, RngKey(3, "test", name));
  return value.to(dtype);
}

double relative_error(const Tensor& x, const Tensor& reference) {
  const auto a = x.to_vector<double>(), b = reference.to_vector<double>();
  double difference = 0.0, norm = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return norm == 0.0 ? difference : std::sqrt(difference / norm);
}

struct Sizes {
  int64_t B = 1, H = 2, Hkv = 2, N = 5, M = 5, D = 4, Dv = 4;
};

ScoreInputs inputs(const Sizes& z, Dtype dtype) {
  return {random_tensor({z.B, z.H, z.N, z.D}, "q", dtype), random_tensor({z.B, z.Hkv, z.M, z.D}, "k", dtype),
          random_tensor({z.B, z.Hkv, z.M, z.Dv}, "v", dtype), Tensor(), Tensor()};
}

// A rule without a normaliser and one with, beside softmax: w = sigmoid(s - 1) (2409.04431), and w = relu(s)^2 over its sum.
template <class V>
V number(float x) {
  if constexpr (std::is_same_v<V, double>) return static_cast<double>(x);
  else return avx2::splat(x);
}
double positive(double x) { return std::max(x, 0.0); }
avx2::Vec positive(avx2::Vec x) { return avx2::max(avx2::zero(), x); }

struct SigmoidRule {
  static constexpr bool kNormalised = false, kOnline = false;
  template <class V>
  V weight(V s, V) const { return number<V>(1.0f) / (number<V>(1.0f) + exp(number<V>(1.0f) - s)); }
  template <class V>
  V derivative(V, V w) const { return w * (number<V>(1.0f) - w); }
};
struct SquaredReluRule {
  static constexpr bool kNormalised = true, kOnline = false;
  template <class V>
  V weight(V s, V) const { return positive(s) * positive(s); }
  template <class V>
  V derivative(V s, V) const { return number<V>(2.0f) * positive(s); }
};

const SigmoidRule kSigmoid;
const SquaredReluRule kSquaredRelu;
const ScoreRule kSigmoidRule = score_rule(kSigmoid, avx2::score_rows_forward<SigmoidRule>, avx2::score_rows_backward<SigmoidRule>);
const ScoreRule kSquaredReluRule = score_rule(kSquaredRelu, avx2::score_rows_forward<SquaredReluRule>, avx2::score_rows_backward<SquaredReluRule>);

// The definition, in double and without tiles: returns out; every option of the engine.
Tensor reference(const ScoreInputs& in, const Mask& mask, const ScoreOptions& o, const ScoreRule& rule = softmax_rule()) {
  const Tensor q = in.q.to(Dtype::f64).contiguous(), k = in.k.to(Dtype::f64).contiguous(), v = in.v.to(Dtype::f64).contiguous();
  const int64_t B = q.dim(0), H = q.dim(1), Hkv = k.dim(1), N = q.dim(2), M = k.dim(2), D = q.dim(3), Dv = v.dim(3);
  const double scale = o.scale != 0.0 ? o.scale : 1.0 / std::sqrt(static_cast<double>(D));
  const auto rotated = [&](const double* row, int64_t position) {
    std::vector<double> r(row, row + D);
    for (int64_t t = 0; t < D / 2 && o.rope != Rope::none; ++t) {
      const double angle = static_cast<double>(position) * std::pow(o.rope_base, -2.0 * static_cast<double>(t) / static_cast<double>(D));
      const auto x = static_cast<size_t>(o.rope == Rope::interleaved ? 2 * t : t), y = static_cast<size_t>(o.rope == Rope::interleaved ? 2 * t + 1 : t + D / 2);
      const double a = r[x], b = r[y];
      r[x] = a * std::cos(angle) - b * std::sin(angle);
      r[y] = a * std::sin(angle) + b * std::cos(angle);
    }
    return r;
  };
  const Tensor out = Tensor::zeros({B, H, N, Dv}, Dtype::f64);
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t h = 0; h < H; ++h) {
      const int64_t bk = b * Hkv + h / (H / Hkv);
      for (int64_t i = 0; i < N; ++i) {
        const auto qi = rotated(q.data<double>() + ((b * H + h) * N + i) * D, i + M - N);
        std::vector<double> s(static_cast<size_t>(M), -INFINITY);
        double top = in.sink.defined() ? in.sink.to(Dtype::f64).data<double>()[h] : -INFINITY;
        const double sink = top;
        for (int64_t j = 0; j < M; ++j) {
          if (!mask.allowed(b, h, i, j, N, M)) continue;
          if (!rule.online) top = 0.0;
          const auto kj = rotated(k.data<double>() + (bk * M + j) * D, j);
          double r = 0.0;
          for (size_t d = 0; d < static_cast<size_t>(D); ++d) r += qi[d] * kj[d];
          r *= scale;
          if (o.softcap > 0.0) r = o.softcap * std::tanh(r / o.softcap);
          if (in.alibi_slopes.defined()) r -= static_cast<double>(in.alibi_slopes.data<float>()[h]) * static_cast<double>(std::abs(i + M - N - j));
          if (in.bias.defined()) {
            const Tensor bias = in.bias.to(Dtype::f64).contiguous();
            r += bias.data<double>()[(((bias.dim(0) == 1 ? 0 : b) * bias.dim(1) + (bias.dim(1) == 1 ? 0 : h)) * N + i) * M + j];
          }
          s[static_cast<size_t>(j)] = r;
          if (rule.online) top = std::max(top, r);
        }
        if (top == -INFINITY) continue;
        const auto weight = [&](double r) {
          if (r == -INFINITY) return 0.0;
          return rule.online ? std::exp(r - top) : rule.normalised ? kSquaredRelu.weight(r, 0.0) : kSigmoid.weight(r, 0.0);
        };
        double total = in.sink.defined() ? std::exp(sink - top) : 0.0;
        for (double r : s) total += weight(r);
        if (!rule.normalised) total = 1.0;
        if (total == 0.0) continue;
        for (int64_t j = 0; j < M; ++j) {
          double p = weight(s[static_cast<size_t>(j)]) / total;
          if (p == 0.0) continue;  // a hidden key changes nothing, not even when it is NaN
          if (o.dropout > 0.0) {
            const auto index = static_cast<uint64_t>((((o.first_sample + b) * H + h) * N + i) * M + j);
            p *= random_word(o.rng, index) < dropout_threshold(o.dropout) ? 0.0 : 1.0 / (1.0 - o.dropout);
          }
          for (int64_t d = 0; d < Dv; ++d) out.data<double>()[((b * H + h) * N + i) * Dv + d] += p * v.data<double>()[(bk * M + j) * Dv + d];
        }
      }
    }
  }
  return out;
}

struct Case {
  const char* name;
  Sizes sizes;
  std::function<void(Mask&, ScoreInputs&, ScoreOptions&)> set;
};

std::vector<Case> cases() {
  const auto documents = [](int64_t B, int64_t N, bool padded) {
    const Tensor ids = Tensor::empty({B, N}, Dtype::i32);
    for (int64_t i = 0; i < B * N; ++i) ids.data<int32_t>()[i] = padded && i % N > N - 4 ? -1 : static_cast<int32_t>(i % N / 7);
    return ids;
  };
  return {
      {"full", {2, 3, 3, 33, 33, 16, 16}, [](Mask&, ScoreInputs&, ScoreOptions&) {}},
      {"causal", {2, 3, 3, 67, 67, 16, 16}, [](Mask& m, ScoreInputs&, ScoreOptions&) { m.causal(); }},
      {"one token", {1, 1, 1, 1, 1, 3, 2}, [](Mask& m, ScoreInputs&, ScoreOptions&) { m.causal(); }},
      {"query tile edges", {1, 2, 2, 129, 130, 8, 8}, [](Mask& m, ScoreInputs&, ScoreOptions&) { m.causal(); }},
      {"tile edges", {1, 2, 2, 64, 65, 8, 17}, [](Mask&, ScoreInputs&, ScoreOptions&) {}},
      {"fewer queries than keys", {1, 4, 2, 3, 130, 8, 8}, [](Mask& m, ScoreInputs&, ScoreOptions&) { m.causal(); }},
      {"grouped heads", {2, 6, 2, 40, 40, 8, 12}, [](Mask& m, ScoreInputs&, ScoreOptions&) { m.causal(); }},
      {"window", {1, 2, 2, 150, 150, 8, 8}, [](Mask& m, ScoreInputs&, ScoreOptions&) { m.window(9, 3); }},
      {"causal window", {1, 2, 2, 150, 150, 8, 8}, [](Mask& m, ScoreInputs&, ScoreOptions&) { m.causal().window(70, -1); }},
      {"prefix", {1, 2, 2, 80, 80, 8, 8}, [](Mask& m, ScoreInputs&, ScoreOptions&) { m.causal().prefix(11); }},
      {"documents", {2, 2, 1, 70, 70, 8, 8}, [=](Mask& m, ScoreInputs&, ScoreOptions&) { m.causal().documents(documents(2, 70, false), documents(2, 70, false)); }},
      {"padding sees nothing", {2, 2, 2, 70, 70, 8, 8}, [=](Mask& m, ScoreInputs&, ScoreOptions&) { m.documents(documents(2, 70, true), documents(2, 70, true)); }},
      {"block sparse", {1, 2, 2, 70, 70, 8, 8}, [](Mask& m, ScoreInputs&, ScoreOptions&) {
         m.block_sparse(Tensor::from(std::vector<uint8_t>{1, 0, 0, 0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 1}, {2, 3, 3}), 24, 24);
       }},
      {"softcap and alibi", {1, 3, 3, 66, 66, 8, 8}, [](Mask& m, ScoreInputs& in, ScoreOptions& o) {
         m.causal();
         o.softcap = 1.5;
         in.alibi_slopes = alibi_slopes(3);
       }},
      {"sink", {2, 2, 2, 66, 66, 8, 8}, [](Mask& m, ScoreInputs& in, ScoreOptions&) {
         m.causal();
         in.sink = Tensor::from(std::vector<double>{0.5, -1.0}, {2});
       }},
      {"rope interleaved", {1, 2, 1, 66, 70, 8, 8}, [](Mask& m, ScoreInputs&, ScoreOptions& o) {
         m.causal();
         o.rope = Rope::interleaved;
       }},
      {"rope half", {1, 2, 2, 30, 30, 8, 8}, [](Mask&, ScoreInputs&, ScoreOptions& o) { o.rope = Rope::half; }},
      {"dropout and scale", {2, 2, 2, 66, 66, 8, 8}, [](Mask& m, ScoreInputs&, ScoreOptions& o) {
         m.causal();
         o.dropout = 0.3;
         o.rng = RngKey(1, "dropout", "x");
         o.first_sample = 5;
         o.scale = 0.7;
       }},
      {"few queries", {2, 6, 2, 2, 2100, 8, 12}, [](Mask& m, ScoreInputs& in, ScoreOptions& o) {
         m.causal().window(1500, -1);
         o.rope = Rope::half;
         o.softcap = 2.0;
         in.alibi_slopes = alibi_slopes(6);
         in.sink = Tensor::from(std::vector<double>{0.5, -1.0, 1.0, 0.0, 2.0, 0.3}, {6});
       }},
      {"one query, grouped heads", {1, 4, 2, 1, 1030, 8, 8}, [](Mask& m, ScoreInputs&, ScoreOptions&) { m.causal(); }},
      {"odd sizes", {1, 2, 1, 71, 75, 7, 5}, [](Mask& m, ScoreInputs&, ScoreOptions&) { m.causal(); }},
      {"bias of every head", {2, 3, 3, 66, 70, 8, 8}, [](Mask& m, ScoreInputs& in, ScoreOptions& o) {
         m.causal();
         o.softcap = 3.0;
         in.bias = random_tensor({1, 3, 66, 70}, "bias");
       }},
      {"bias of every sample", {2, 4, 2, 34, 34, 8, 8}, [](Mask&, ScoreInputs& in, ScoreOptions&) { in.bias = random_tensor({2, 1, 34, 34}, "bias"); }},
      {"bias of few queries", {2, 2, 1, 3, 70, 8, 8}, [](Mask&, ScoreInputs& in, ScoreOptions&) { in.bias = random_tensor({1, 1, 3, 70}, "bias"); }},
      {"negative scale", {1, 2, 2, 40, 40, 8, 8}, [](Mask& m, ScoreInputs&, ScoreOptions& o) {
         m.causal();
         o.scale = -0.4;
       }},
      {"no batch", {0, 2, 2, 4, 4, 8, 8}, [](Mask&, ScoreInputs&, ScoreOptions&) {}},
      {"no keys", {1, 2, 2, 4, 0, 8, 8}, [](Mask&, ScoreInputs&, ScoreOptions&) {}},
  };
}

TEST(Score, ForwardIsTheDefinitionInEveryDtype) {
  for (const Case& c : cases()) {
    for (Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
      ScoreInputs in = inputs(c.sizes, dtype);
      Mask mask;
      ScoreOptions options;
      c.set(mask, in, options);
      const double bound = dtype == Dtype::f64 ? 1e-12 : dtype == Dtype::f32 ? 1e-6 : 1e-2;
      EXPECT_LT(relative_error(softmax_forward(in, mask, options).out, reference(in, mask, options)), bound) << c.name << ' ' << dtype;
    }
  }
}

TEST(Score, GradientsMatchCentralDifferencesOfTheDefinition) {
  for (const Case& c : cases()) {
    ScoreInputs in = inputs(c.sizes, Dtype::f64);
    Mask mask;
    ScoreOptions options;
    c.set(mask, in, options);
    const Tensor dout = random_tensor({c.sizes.B, c.sizes.H, c.sizes.N, c.sizes.Dv}, "dout");
    const auto objective = [&] {
      const auto out = reference(in, mask, options).to_vector<double>(), d = dout.to_vector<double>();
      double total = 0.0;
      for (size_t i = 0; i < out.size(); ++i) total += out[i] * d[i];
      return total;
    };
    const ScoreGrads grads = softmax_backward(dout, softmax_forward(in, mask, options), in, mask, options);
    const auto compare = [&](const Tensor& x, const Tensor& gradient, const char* name) {
      const auto found = gradient.to_vector<double>();
      double* values = x.data<double>();
      const int64_t step = std::max<int64_t>(1, x.numel() / 7);  // a few elements of each: the rest is the f32 test's
      for (int64_t e = 0; e < x.numel(); e += step) {
        const double before = values[e];
        values[e] = before + 1e-5;
        const double above = objective();
        values[e] = before - 1e-5;
        const double below = objective();
        values[e] = before;
        const double numeric = (above - below) / 2e-5;
        EXPECT_NEAR(found[static_cast<size_t>(e)], numeric, 1e-6 * std::max(1.0, std::abs(numeric))) << c.name << ' ' << name << " element " << e;
      }
    };
    compare(in.q, grads.dq, "dq");
    compare(in.k, grads.dk, "dk");
    compare(in.v, grads.dv, "dv");
    if (in.sink.defined()) compare(in.sink, grads.dsink, "dsink");
    if (in.bias.defined()) compare(in.bias, grads.dbias, "dbias");
  }
}

TEST(Score, OtherRulesAreTheirDefinitionToo) {
  const Sizes sizes{2, 4, 2, 70, 75, 8, 12};
  for (const ScoreRule* rule : {&kSigmoidRule, &kSquaredReluRule}) {
    for (const bool few : {false, true}) {
      Sizes z = sizes;
      if (few) z.N = 3;
      ScoreInputs in = inputs(z, Dtype::f64);
      const Mask mask = Mask().causal().window(40, -1);
      const Tensor wanted = reference(in, mask, {}, *rule);
      EXPECT_LT(relative_error(score_forward(*rule, in, mask, {}).out, wanted), 1e-12) << rule->normalised << few;
      for (Dtype dtype : {Dtype::f32, Dtype::bf16}) {
        EXPECT_LT(relative_error(score_forward(*rule, inputs(z, dtype), mask, {}).out, wanted), dtype == Dtype::f32 ? 1e-6 : 1e-2) << rule->normalised << few;
      }
      const Tensor dout = random_tensor({z.B, z.H, z.N, z.Dv}, "dout");
      const ScoreGrads grads = score_backward(*rule, dout, score_forward(*rule, in, mask, {}), in, mask, {});
      const auto objective = [&] {
        const auto out = reference(in, mask, {}, *rule).to_vector<double>(), d = dout.to_vector<double>();
        double total = 0.0;
        for (size_t i = 0; i < out.size(); ++i) total += out[i] * d[i];
        return total;
      };
      for (const auto& [x, gradient] : {std::pair{in.q, grads.dq}, std::pair{in.k, grads.dk}, std::pair{in.v, grads.dv}}) {
        const auto found = gradient.to_vector<double>();
        for (int64_t e = 0; e < x.numel(); e += x.numel() / 5) {
          double& value = x.data<double>()[e];
          const double before = value;
          value = before + 1e-5;
          const double above = objective();
          value = before - 1e-5;
          const double below = objective();
          value = before;
          EXPECT_NEAR(found[static_cast<size_t>(e)], (above - below) / 2e-5, 1e-6 * std::max(1.0, std::abs(found[static_cast<size_t>(e)])));
        }
      }
    }
  }
  ScoreInputs with_sink = inputs(sizes, Dtype::f32);
  with_sink.sink = Tensor::zeros({4});
  EXPECT_THROW(score_forward(kSigmoidRule, with_sink, {}, {}), Error);
}

TEST(Score, LowerPrecisionGradientsFollowF64) {
  for (const Case& c : cases()) {
    for (Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      ScoreInputs low = inputs(c.sizes, dtype);
      Mask mask;
      ScoreOptions options;
      c.set(mask, low, options);
      ScoreInputs wide = low;
      for (Tensor* t : {&wide.q, &wide.k, &wide.v}) *t = t->to(Dtype::f64);
      const Tensor dout = random_tensor({c.sizes.B, c.sizes.H, c.sizes.N, c.sizes.Dv}, "dout", dtype);
      const ScoreGrads got = softmax_backward(dout, softmax_forward(low, mask, options), low, mask, options);
      const ScoreGrads want = softmax_backward(dout, softmax_forward(wide, mask, options), wide, mask, options);
      const double bound = dtype == Dtype::f32 ? 1e-5 : 2e-2;
      EXPECT_LT(relative_error(got.dq, want.dq), bound) << c.name << ' ' << dtype;
      EXPECT_LT(relative_error(got.dk, want.dk), bound) << c.name << ' ' << dtype;
      EXPECT_LT(relative_error(got.dv, want.dv), bound) << c.name << ' ' << dtype;
    }
  }
}

TEST(Score, TheNumberOfThreadsDoesNotChangeTheBits) {
  // One thread packs and takes heads whole, three take heads whole, seven share them by tiles.
  const auto run = [](int threads, Dtype dtype) {
    const int before = num_threads();
    set_num_threads(threads);
    ScoreInputs in = inputs({2, 4, 2, 200, 200, 16, 16}, dtype);
    in.sink = Tensor::full({4}, 0.5);
    ScoreOptions options;
    options.rope = Rope::half;
    const ScoreResult result = softmax_forward(in, Mask().causal(), options);
    const ScoreGrads grads = softmax_backward(in.q, result, in, Mask().causal(), options);
    set_num_threads(before);
    return std::vector<std::vector<float>>{result.out.to_vector<float>(), grads.dq.to_vector<float>(), grads.dk.to_vector<float>(), grads.dv.to_vector<float>(),
                                           grads.dsink.to_vector<float>()};
  };
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const auto one = run(1, dtype);
    EXPECT_EQ(one, run(3, dtype)) << dtype;
    EXPECT_EQ(one, run(7, dtype)) << dtype;
  }
}

TEST(Score, LargeLogitsDoNotOverflow) {
  ScoreInputs in = inputs({1, 1, 1, 70, 70, 4, 4}, Dtype::f32);
  for (int64_t i = 0; i < in.q.numel(); ++i) in.q.data<float>()[i] *= 1e4f;
  for (float x : softmax_forward(in, Mask().causal(), {}).out.to_vector<float>()) EXPECT_TRUE(std::isfinite(x));
}

TEST(Score, ANanReachesOnlyWhoSeesIt) {
  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
    for (const int64_t queries : {70, 3}) {
      for (const bool documents : {false, true}) {
        ScoreInputs clean = inputs({1, 1, 1, queries, 70, 4, 4}, dtype);
        Mask mask;
        mask.causal();
        if (documents) {  // of 35 tokens
          const Tensor ids = Tensor::empty({1, 70}, Dtype::i32);
          for (int64_t j = 0; j < 70; ++j) ids.data<int32_t>()[j] = static_cast<int32_t>(j / 35);
          mask.documents(ids.slice(1, 70 - queries, 70), ids);
        }
        for (const char* where : {"q", "k", "v"}) {
          ScoreInputs in{clean.q.clone(), clean.k.clone(), clean.v.clone(), {}, {}};
          const int64_t bad = *where == 'q' ? queries - 2 : 69;  // the key that only the last query sees
          const Tensor& t = *where == 'q' ? in.q : *where == 'k' ? in.k : in.v;
          t.slice(2, bad, bad + 1).fill_(std::nan(""));
          const ScoreResult result = softmax_forward(in, mask, {});
          const auto out = result.out.to_vector<double>();
          const int64_t broken = *where == 'q' ? bad : queries - 1;
          for (int64_t i = 0; i < queries; ++i) EXPECT_EQ(std::isnan(out[static_cast<size_t>(i * 4)]), i == broken) << dtype << ' ' << where << ' ' << queries << " row " << i;
          const ScoreGrads grads = softmax_backward(random_tensor({1, 1, queries, 4}, "dout", dtype), result, in, mask, {});
          const auto dq = grads.dq.to_vector<double>(), dv = grads.dv.to_vector<double>();
          for (int64_t i = 0; i < queries; ++i) EXPECT_EQ(std::isnan(dq[static_cast<size_t>(i * 4)]), i == broken) << dtype << ' ' << where << " dq of row " << i;
          for (int64_t j = 0; j < 70; ++j) {
            const bool seen = mask.allowed(0, 0, broken, j, queries, 70);
            if (*where == 'v') continue;
            EXPECT_EQ(std::isnan(dv[static_cast<size_t>(j * 4)]), seen) << dtype << ' ' << where << " dv of key " << j;
          }
        }
      }
    }
  }
}

TEST(Score, ExtraMemoryGrowsWithNNotWithNSquared) {
  const auto peak = [](int64_t n) {
    const ScoreInputs in = inputs({1, 2, 2, n, n, 8, 8}, Dtype::f32);
    const int64_t before = memory_stats().live_bytes;
    reset_peak();
    const ScoreResult result = softmax_forward(in, Mask().causal(), {});
    softmax_backward(in.q, result, in, Mask().causal(), {});
    return memory_stats().peak_bytes - before;
  };
  EXPECT_LE(peak(1024), 4 * peak(256) + 4096);
}

TEST(Score, TileClassesAreNeverWrong) {
  const int64_t n = 30;
  for (const Case& c : cases()) {
    if (c.sizes.N != 70 && c.sizes.N != 150 && c.sizes.N != 80) continue;
    ScoreInputs in = inputs(c.sizes, Dtype::f32);
    Mask mask;
    ScoreOptions options;
    c.set(mask, in, options);
    for (int64_t size : {1, 5, 16}) {
      for (int64_t i0 = 0; i0 + size <= n; i0 += 3) {
        for (int64_t j0 = 0; j0 + size <= n; j0 += 2) {
          int64_t seen = 0;
          for (int64_t i = i0; i < i0 + size; ++i) {
            for (int64_t j = j0; j < j0 + size; ++j) seen += mask.allowed(0, 1, i, j, c.sizes.N, c.sizes.M);
          }
          const TileClass cls = mask.classify(0, 1, i0, i0 + size, j0, j0 + size, c.sizes.N, c.sizes.M);
          if (cls == TileClass::skip) { EXPECT_EQ(seen, 0) << c.name; }
          if (cls == TileClass::full) { EXPECT_EQ(seen, size * size) << c.name; }
        }
      }
    }
  }
}

TEST(Score, ShapesThatDoNotFitAreNamed) {
  const auto message = [](const ScoreInputs& in, const Mask& mask) -> std::string {
    try {
      softmax_forward(in, mask, {});
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  const Sizes z;
  ScoreInputs in = inputs(z, Dtype::f32);
  in.k = random_tensor({1, 2, 5, 3}, "k", Dtype::f32);
  EXPECT_EQ(message(in, {}), "softmax: q [1, 2, 5, 4] and k [1, 2, 5, 3] differ in D (4 and 3)");
  EXPECT_EQ(message(inputs({1, 3, 2, 5, 5, 4, 4}, Dtype::f32), {}), "softmax: 3 query heads are no multiple of 2 key heads");
  EXPECT_EQ(message(inputs({1, 2, 2, 6, 5, 4, 4}, Dtype::f32), Mask().causal()), "mask: causal attention needs N <= M, found N 6, M 5");
}

}  // namespace
}  // namespace fovea::attention
