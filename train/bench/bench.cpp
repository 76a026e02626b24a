// SPDX-License-Identifier: Apache-2.0
#include "train/bench/bench.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>

#include "attention/registry.h"
#include "attention/score/score.h"
#include "core/allocator.h"
#include "core/ops/matmul.h"
#include "nn/gpt.h"
#include "nn/loss.h"
#include "nn/norm.h"
#include "train/bench/roof.h"
#include "train/model_options.h"
#include "train/optim/optimizer.h"
#include "train/step_graph.h"

namespace fovea::train {
namespace {

using Clock = std::chrono::steady_clock;
double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double quartile(std::vector<double>& values, size_t number) {
  std::sort(values.begin(), values.end());
  return values[values.size() * number / 4];
}

// Times f for about `seconds` (at least 5 calls, after 2 to warm up), with
// samples of the limit in between: `work` a call over the median is the rate, and its share of the
// limit's median is `of_limit`. scale: units of the rate in one unit of the limit. prepare, where
// given, runs before each call and is not timed. On a card a timing is of several calls, so that
// the wait at its end does not count; with prepare, of one.
BenchRow measure(const std::string& name, double seconds, double work, const std::string& unit,
                 double scale, const RoofSample& limit, Device device,
                 const std::function<void()>& f, const std::function<void()>& prepare = nullptr) {
  const auto ready = [&] {
    if (prepare) prepare();
    wait_for(device);
  };
  ready(), f(), ready();
  const int64_t live = memory_stats(device).live_bytes;
  reset_peak(device);
  const auto once = Clock::now();
  f();
  wait_for(device);
  constexpr double kLeast = 2e-3;  // seconds of a timing on a card
  const int calls = device.kind == Device::Kind::cuda && !prepare
                        ? static_cast<int>(std::clamp(kLeast / since(once), 1.0, 1000.0))
                        : 1;
  BenchRow row{name, 0.0, 0.0, 0.0, unit, 0.0, memory_stats(device).peak_bytes - live};
  std::vector<double> times, limits;
  constexpr double kBetweenLimits = 0.02;  // seconds of f, at least: a sample takes about as long
  double spent = 0.0, sampled = -kBetweenLimits;
  while (times.size() < 5 || spent < seconds) {
    ready();
    const auto start = Clock::now();
    for (int i = 0; i < calls; ++i) f();
    wait_for(device);
    const double took = since(start);
    times.push_back(took / calls);
    spent += took;
    if (spent - sampled >= kBetweenLimits) {
      sampled = spent;
      limits.push_back(limit() * scale);
    }
  }
  const MemoryStats memory = memory_stats(device);
  row.reserved_bytes = memory.reserved_bytes;
  row.fragmentation = memory.fragmentation();
  row.median_ms = 1e3 * quartile(times, 2);
  row.iqr_ms = 1e3 * (quartile(times, 3) - quartile(times, 1));
  row.rate = work / (row.median_ms * 1e-3);
  row.of_limit = row.rate / quartile(limits, 2);
  return row;
}

// Rows or elements: a card gets four times the cpu's, more than its L2 holds; the interpreted
// device a small part.
int64_t sized(int64_t n, Device device) {
  switch (device.kind) {
    case Device::Kind::cuda:
      return 4 * n;
    case Device::Kind::interpreted:
      return std::max<int64_t>(1, n / 512);
    case Device::Kind::cpu:
      break;
  }
  return n;
}

Tensor random(const Shape& shape, Dtype dtype, const std::string& name, Device device) {
  const Tensor t = Tensor::empty(shape);
  fill_normal(t, RngKey(1, "bench", name));
  return t.to(dtype).to(device);
}

Tensor random_ids(const Shape& shape, int64_t vocab) {
  const Tensor ids = Tensor::empty(shape, Dtype::i64);
  for (int64_t i = 0; i < ids.numel(); ++i)
    ids.data<int64_t>()[i] = static_cast<int64_t>(random_below(
        RngKey(1, "bench", "ids"), static_cast<uint64_t>(i), static_cast<uint64_t>(vocab)));
  return ids;
}

}  // namespace

std::vector<BenchRow> bench_gemm(bool tf32, double seconds, Device device) {
  const Tf32Scope products(tf32);
  std::vector<BenchRow> rows;
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const bool multiply_adds = dtype == Dtype::f32 && !tf32;
    const RoofSample limit = multiply_adds ? fma_roof(device) : product_roof(dtype, device);
    const std::string kind = concat(name(dtype), tf32 && dtype == Dtype::f32 ? " as tf32 " : " ");
    for (const auto& [m, n, k] : {std::array<int64_t, 3>{2048, 1152, 384},
                                  {2048, 1536, 384},
                                  {2048, 384, 1536},
                                  {1024, 1024, 1024},
                                  {64, 64, 64}}) {
      const Tensor a = random({m, k}, dtype, "a", device), b = random({n, k}, dtype, "b", device),
                   c = Tensor::empty({m, n}, dtype, device);
      rows.push_back(measure(concat("gemm ", kind, m, "x", n, "x", k, ", x W^T"), seconds,
                             2e-9 * static_cast<double>(m * n * k), "GFLOP/s", 1e-9, limit, device,
                             [&] { matmul_into(c, a, b.transpose(0, 1), false); }));
    }
  }
  return rows;
}

namespace {

// What every row of bench_memory is measured with.
struct MemoryBench {
  double seconds;
  Dtype dtype;  // of activations and logits
  Device device;
  RoofSample limit = memory_roof(device);

  double bytes(double count) const { return 1e-9 * count * static_cast<double>(size_of(dtype)); }
  BenchRow row(const std::string& what, double gigabytes, const std::function<void()>& f,
               const std::function<void()>& prepare = nullptr) const {
    return measure(what, seconds, gigabytes, "GB/s", 1e-9, limit, device, f, prepare);
  }
};

// Reads p, g, m, v and writes p, m, v, all f32.
BenchRow bench_adamw(const MemoryBench& bench) {
  const int64_t n = sized(16 << 20, bench.device);
  Parameters parameters{{"weights", Variable(random({n}, Dtype::f32, "p", bench.device), true)}};
  parameters[0].variable.set_grad(random({n}, Dtype::f32, "g", bench.device));
  const auto optimizer = make_optimizer(OptimizerOptions(), parameters);
  return bench.row(concat("AdamW, ", n, " parameters"), 28e-9 * static_cast<double>(n),
                   [&] { optimizer->step(1e-3, 0.5); });
}

// Forward reads x and writes y; backward reads x and dy and writes dx.
void bench_norm(std::vector<BenchRow>& rows, const MemoryBench& bench, nn::NormKind kind) {
  const int64_t r = sized(16384, bench.device), c = 1024;
  const auto values = static_cast<double>(r * c);
  const bool layer = kind == nn::NormKind::layer;
  const std::string size = concat(", ", r, " x ", c, ", ", name(bench.dtype)),
                    what = layer ? "LayerNorm " : "RMSNorm ";
  nn::NormOptions options;
  options.kind = kind;
  options.out_dtype = bench.dtype;
  const Variable x(random({r, c}, bench.dtype, "x", bench.device), true),
      gamma(Tensor::full({c}, 1.0, Dtype::f32, bench.device), true),
      beta = layer ? Variable(Tensor::zeros({c}, Dtype::f32, bench.device), true) : Variable();
  rows.push_back(bench.row(what + "forward" + size, bench.bytes(2 * values), [&] {
    const NoGrad no_grad;
    nn::norm(x, gamma, beta, options);
  }));
  const Tensor dy = random({r, c}, bench.dtype, "dy", bench.device);
  Variable y;
  rows.push_back(bench.row(
      what + "backward" + size, bench.bytes(3 * values), [&] { y.backward(dy); },
      [&] {
        x.zero_grad();
        y = nn::norm(x, gamma, beta, options);
      }));
}

// Reads the logits; with a backward, writes their gradient too, in their place.
void bench_cross_entropy(std::vector<BenchRow>& rows, const MemoryBench& bench) {
  const int64_t r = sized(2048, bench.device), v = 16384;
  const auto count = static_cast<double>(r * v);
  const std::string size = concat(", ", r, " x ", v, ", ", name(bench.dtype));
  const Tensor values = random({r, v}, bench.dtype, "l", bench.device);
  const Tensor targets = random_ids({r}, v);
  rows.push_back(bench.row("cross-entropy forward" + size, bench.bytes(count), [&] {
    const NoGrad no_grad;
    nn::cross_entropy(Variable(values), targets);
  }));
  Variable logits;
  rows.push_back(bench.row(
      "cross-entropy forward + backward" + size, bench.bytes(2 * count),
      [&] { nn::cross_entropy(std::move(logits), targets).backward(); },
      [&] {
        logits = Variable();
        logits = Variable(values.clone(), true);
      }));
}

}  // namespace

std::vector<BenchRow> bench_memory(Dtype dtype, double seconds, Device device) {
  const MemoryBench bench{seconds, dtype, device};
  std::vector<BenchRow> rows{bench_adamw(bench)};
  bench_norm(rows, bench, nn::NormKind::layer);
  bench_norm(rows, bench, nn::NormKind::rms);
  bench_cross_entropy(rows, bench);
  return rows;
}

std::vector<BenchRow> bench_attention(const std::vector<std::string>& shapes, Dtype dtype,
                                      bool causal, double seconds, Device device) {
  std::vector<BenchRow> rows;
  const RoofSample limit = device.is_cpu() ? fma_roof() : product_roof(dtype, device);
  for (const std::string& shape : shapes) {
    long long b = 0, h = 0, n = 0, d = 0;
    char rest = 0;
    FOVEA_CHECK(std::sscanf(shape.c_str(), "%lldx%lldx%lldx%lld%c", &b, &h, &n, &d, &rest) == 4 &&
                    b > 0 && h > 0 && n > 0 && d > 0,
                "bench: shape \"", shape, "\"; expected BxHxNxD, as in 1x4x4096x64");
    const attention::ScoreInputs in{random({b, h, n, d}, dtype, "q", device),
                                    random({b, h, n, d}, dtype, "k", device),
                                    random({b, h, n, d}, dtype, "v", device),
                                    {},
                                    {}};
    const Tensor dout = random({b, h, n, d}, dtype, "dout", device);
    attention::Mask mask;
    if (causal) mask.causal();
    const double work = 4e-9 * static_cast<double>(b * h * n * n * d) * (causal ? 0.5 : 1.0);
    const std::string what = concat(name(dtype), causal ? " causal " : " full ", shape);
    const auto row = [&](const char* pass, double flops, const std::function<void()>& f) {
      rows.push_back(measure(what + pass, seconds, flops, "GFLOP/s", 1e-9, limit, device, f));
    };
    const attention::ScoreResult saved = attention::softmax_forward(in, mask, {});
    row(", forward", work, [&] { attention::softmax_forward(in, mask, {}); });
    row(", backward", 2.5 * work, [&] { attention::softmax_backward(dout, saved, in, mask, {}); });
    if (!device.is_cpu()) {
      attention::ScoreOptions any_order;
      any_order.deterministic = false;
      row(", backward in any order", 2.5 * work,
          [&] { attention::softmax_backward(dout, saved, in, mask, any_order); });
    }
    row(", forward + backward", 3.5 * work, [&] {
      const attention::ScoreResult result = attention::softmax_forward(in, mask, {});
      attention::softmax_backward(dout, result, in, mask, {});
    });
  }
  return rows;
}

std::vector<BenchRow> bench_step(const StepBench& z, Dtype dtype, double seconds, Device device) {
  GptModelOptions options;
  options.layers = z.layers;
  options.dim = z.dim;
  options.context = z.context;
  config::load_text(options, "", "bench", {{"attention.heads", std::to_string(z.heads)}});
  nn::Gpt gpt(options, z.vocab, [&](int64_t channels, int64_t layer, int64_t layers) {
    return attention::make_attention(options.attention, channels, layer, layers);
  });
  gpt.initialise(1);
  gpt.set_compute(dtype);
  gpt.to(device);
  const Parameters parameters = gpt.parameters();
  const auto optimizer = make_optimizer(OptimizerOptions(), parameters);
  const Tensor ids = random_ids({z.batch, z.context}, z.vocab),
               targets = random_ids({z.batch, z.context}, z.vocab);
  StepGraph step(
      StepGraph::parse(z.graph, device), device, parameters, [&](const data::Batch& batch) {
        gpt.zero_grad();
        const Variable loss = nn::cross_entropy(gpt.forward(batch.inputs), batch.targets);
        loss.backward();
        StepWork work{{loss.value()}, gradient_norm(parameters)};
        Clip clip;
        clip.norm = work.norm;
        clip.most = 1.0;
        optimizer->update(clip);
        return work;
      });
  const auto run = [&] {
    optimizer->advance(1e-4);
    step.run({ids, targets, {}});
  };
  while (step.wanted() && !step.captured()) run();
  const double flops = 3.0 * gpt.forward_flops(z.batch, z.context),
               tokens = static_cast<double>(z.batch * z.context);
  BenchRow row = measure(concat("GPT ", z.layers, " x ", z.dim, ", context ", z.context, ", batch ",
                                z.batch, ", ", name(dtype), step.captured() ? ", graph" : ""),
                         std::max(seconds, 5.0), tokens, "tokens/s", tokens / flops,
                         product_roof(dtype, device), device, run);
  row.peak_bytes += step.bytes();
  return {row};
}

}  // namespace fovea::train
