// SPDX-License-Identifier: Apache-2.0
#include "train/plan/machine.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>

#include "attention/score/score.h"
#include "attention/score/softmax.h"
#include "core/cuda/device.h"
#include "core/ops/matmul.h"
#include "train/bench/roof.h"

namespace fovea::train {
namespace {

// The median of several calls, after one: a shared machine's best is not what a step gets.
double seconds_of(Device device, const std::function<void()>& f) {
  f();
  std::vector<double> times;
  for (double spent = 0.0; times.size() < 7 || (spent < 0.5 && times.size() < 500);
       spent += times.back()) {
    wait_for(device);
    const auto start = std::chrono::steady_clock::now();
    f();
    wait_for(device);
    times.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::nth_element(times.begin(), times.begin() + static_cast<int64_t>(times.size() / 2),
                   times.end());
  return times[times.size() / 2];
}

Tensor random(const Shape& shape, Dtype dtype, Device device) {
  const Tensor x = Tensor::empty(shape);
  fill_normal(x, RngKey(1, "plan", "x"));
  return x.to(dtype).to(device);
}

// Forward, and both products of backward, of a block's four matrices.
double product_rate(const GptSizes& z, int64_t rows, Device device) {
  double flops = 0.0, seconds = 0.0;
  for (const auto& [in, out] : {std::pair<int64_t, int64_t>{z.dim, z.qkv_columns()},
                                {z.heads * z.head_dim, z.dim},
                                {z.dim, z.up_columns()},
                                {z.hidden, z.dim}}) {
    const Tensor x = random({rows, in}, z.compute, device),
                 w = random({out, in}, z.compute, device),
                 y = random({rows, out}, z.compute, device),
                 dw = Tensor::empty({out, in}, Dtype::f32, device), dx = Tensor::empty_like(x);
    seconds += seconds_of(device, [&] {
      matmul_into(y, x, w.transpose(0, 1), false);
      matmul_into(dx, y, w, false);
      matmul_into(dw, y.transpose(0, 1), x, false);
    });
    flops += 6.0 * static_cast<double>(rows * in * out);
  }
  return flops / seconds;
}

}  // namespace

double parse_quantity(const std::string& option, const std::string& text, const std::string& unit) {
  double value = 0.0;
  const char* const end = text.data() + text.size();
  const auto [at, code] = std::from_chars(text.data(), end, value);
  const std::string rest(at, end);
  const auto scale = [&]() -> double {
    if (!rest.ends_with(unit)) return 0.0;
    const std::string prefix = rest.substr(0, rest.size() - unit.size());
    if (prefix.empty()) return 1.0;
    const std::string_view letters = unit == "s" ? "num" : "kMGT";
    const bool binary = prefix.size() == 2 && prefix[1] == 'i' && unit != "s";
    const size_t number = prefix == "Ki" ? 0 : letters.find(prefix[0]);
    if (number == std::string_view::npos || (prefix.size() != 1 && !binary)) return 0.0;
    const auto power = static_cast<double>(number);
    return unit == "s" ? std::pow(1e3, power - 3.0) : std::pow(binary ? 1024.0 : 1e3, power + 1.0);
  }();
  if (code != std::errc{} || !std::isfinite(value) || value <= 0.0 || scale == 0.0)
    throw config::ConfigError(concat("plan: ", option, " is \"", text,
                                     "\"; expected a positive number of ", unit, ", as in ",
                                     unit == "B"     ? "141GiB"
                                     : unit == "B/s" ? "450GB/s"
                                     : unit == "s"   ? "5us"
                                                     : "600TFLOP/s"));
  return value * scale;
}

Machine measure_machine(const GptSizes& z, int64_t rows, Device device, int64_t devices) {
  FOVEA_CHECK(
      device.kind != Device::Kind::interpreted,
      "plan: the speed of the interpreted device means nothing; describe a device (--flops, "
      "--memory, ...) or set train.device");
  const auto share = 1.0 / static_cast<double>(devices);
  Machine m;
  m.measured = true;
  if (device.kind == Device::Kind::cuda) {
    m.memory = static_cast<double>(FOVEA_GPU_CALL(device, device_info, device.index).memory_bytes);
  } else {
    m.memory = share * static_cast<double>(sysconf(_SC_PHYS_PAGES)) *
               static_cast<double>(sysconf(_SC_PAGE_SIZE));
  }
  m.memory_bandwidth = share * measured(memory_roof(device));
  m.products = share * product_rate(z, std::clamp<int64_t>(rows, 1, 4096), device);
  const int64_t n = std::min<int64_t>(z.tokens, 2048), b = std::clamp<int64_t>(rows / n, 1, 8);
  const attention::Mask mask = z.mask_of(n).to(device);
  const attention::ScoreInputs in{random({b, z.heads, n, z.head_dim}, z.compute, device),
                                  random({b, z.kv_heads, n, z.head_dim}, z.compute, device),
                                  random({b, z.kv_heads, n, z.head_dim}, z.compute, device),
                                  {},
                                  {}};
  const Tensor dout = random({b, z.heads, n, z.head_dim}, z.compute, device);
  const attention::ScoreResult saved = attention::softmax_forward(in, mask, {});
  double pairs = 0.0;
  const attention::Mask here = z.mask_of(n);
  for (int64_t i = 0; i < n; ++i) {
    int64_t first, last;
    here.limits(i, n, n, first, last);
    for (int64_t j = first; j < last && !here.is_interval(); ++j)
      pairs += here.allowed(0, 0, i, j, n, n) ? 1.0 : 0.0;
    if (here.is_interval()) pairs += static_cast<double>(last - first);
  }
  const double flops = 4.0 * pairs * static_cast<double>(b * z.heads * z.head_dim);
  m.attention =
      share * flops / seconds_of(device, [&] { attention::softmax_forward(in, mask, {}); });
  m.attention_backward = share * 2.5 * flops / seconds_of(device, [&] {
                           attention::softmax_backward(dout, saved, in, mask, {});
                         });
  // A message between threads is one copy: a read and a write.
  m.bandwidth = m.network = m.memory_bandwidth / 2.0;
  m.latency = 20e-6;
  return m;
}

}  // namespace fovea::train
