// SPDX-License-Identifier: Apache-2.0
#pragma once
// One softmax attention for tune_attention: its tensors on the device, its ScoreCall, and what the
// cpu says in f64.

#include <cmath>
#include <limits>

#include "attention/score/cuda/kernels.h"
#include "attention/score/score.h"
#include "core/stream.h"

namespace fovea::attention::tuning {

struct Sizes {
  int64_t B, H, Hkv, N, M, D;
  bool causal;
  int64_t left = -1;  // of a window; -1: none

  // Of a forward with N = M.
  double flop() const {
    return 4.0 * static_cast<double>(B * H * N * M * D) * (causal ? 0.5 : 1.0);
  }
};

// Standard normal bf16 values, [n] each, on the device.
struct RandomValues {
  Tensor q, k, v, dout;
  RandomValues(int64_t n, Device device)
      : q(make(n, "q", device)),
        k(make(n, "k", device)),
        v(make(n, "v", device)),
        dout(make(n, "dout", device)) {}

 private:
  static Tensor make(int64_t n, const char* name, Device device) {
    const Tensor x = Tensor::empty({n});
    fill_normal(x, RngKey(1, "tune", name));
    return x.to(Dtype::bf16).to(device);
  }
};

// |x - reference| / |reference|; NaN where x has one.
inline double relative_error(const Tensor& x, const Tensor& reference) {
  const auto a = x.to_vector<double>(), b = reference.to_vector<double>();
  FOVEA_CHECK(x.shape() == reference.shape(), "tune: ", x.shape(), " beside ", reference.shape());
  double difference = 0.0, norm = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference / norm);
}

// Queries [i0, i1) of heads [h0, h1) of samples [b0, b1).
struct Part {
  int64_t b0, b1, h0, h1, i0, i1;
  Tensor of(const Tensor& x) const { return x.slice(0, b0, b1).slice(1, h0, h1).slice(2, i0, i1); }
};

// The largest of each over several calls.
struct Errors {
  double out = 0.0, lse = 0.0, dq = 0.0, dk = 0.0, dv = 0.0;

  static constexpr double kMost = 1e-2;  // P and dS are rounded to bf16, as is what comes out
  static void widen(double& to, double error) {
    to = std::isnan(error) || std::isnan(to) ? std::numeric_limits<double>::quiet_NaN()
                                             : std::max(to, error);
  }
  void widen(const Errors& e) {
    for (double Errors::*x : {&Errors::out, &Errors::lse, &Errors::dq, &Errors::dk, &Errors::dv})
      widen(this->*x, e.*x);
  }
  bool small() const {
    for (const double x : {out, lse, dq, dk, dv})
      if (!(x < kMost)) return false;
    return true;
  }
};

struct Problem {
  Sizes sizes;
  Device device;
  Tensor q, k, v, dout;  // [B, H or Hkv, N or M, D]
  Tensor out, lse, suspect, suspect_keys, taken;
  Tensor dq, dk, dv, delta, sums, statistics, turns;
  ScoreCall call{};

  Problem(const Sizes& z, const RandomValues& random, Device on) : sizes(z), device(on) {
    const auto take = [](const Tensor& values, const Shape& shape) {
      return values.slice(0, 0, shape.numel()).view(shape);
    };
    const Shape queries{z.B, z.H, z.N, z.D}, keys{z.B, z.Hkv, z.M, z.D};
    q = take(random.q, queries);
    k = take(random.k, keys);
    v = take(random.v, keys);
    dout = take(random.dout, queries);
    out = Tensor::empty({z.B, z.N, z.H, z.D}, Dtype::bf16, device).transpose(1, 2);
    lse = Tensor::empty({z.B, z.H, z.N}, Dtype::f32, device);
    suspect = Tensor::zeros({z.B, z.H, z.N}, Dtype::u8, device);
    taken = Tensor::zeros({1}, Dtype::i32, device);
    call.B = static_cast<int>(z.B);
    call.H = static_cast<int>(z.H);
    call.Hkv = static_cast<int>(z.Hkv);
    call.N = static_cast<int>(z.N);
    call.M = static_cast<int>(z.M);
    call.D = call.Dv = static_cast<int>(z.D);
    call.scale = 1.0f / std::sqrt(static_cast<float>(z.D));
    call.causal = z.causal;
    call.offset = call.M - call.N;  // queries are the last of the keys
    call.left = static_cast<int>(z.left);
    call.rule = softmax_rule().rule;
    call.q = rows_of(q);
    call.k = rows_of(k);
    call.v = rows_of(v);
    call.out = rows_of(out);
    call.lse = lse.data<float>();
    call.suspect = suspect.data<uint8_t>();
  }

  // Room for backward, of a forward that the engine computes.
  void prepare_backward() {
    const Sizes& z = sizes;
    const ScoreResult result = softmax_forward({q, k, v, {}, {}}, mask(), {});
    out.copy_(result.out);
    lse.copy_(result.lse);
    dq = Tensor::empty(q.shape(), Dtype::bf16, device);
    dk = Tensor::empty(k.shape(), Dtype::bf16, device);
    dv = Tensor::empty(v.shape(), Dtype::bf16, device);
    delta = Tensor::empty(lse.shape(), Dtype::f32, device);
    suspect_keys = Tensor::zeros({z.B, z.Hkv, z.M}, Dtype::u8, device);
    const HopperBackward need = hopper_backward(call);
    sums = Tensor::empty({need.sums()}, Dtype::f32, device);
    statistics = Tensor::empty({need.statistics()}, Dtype::f32, device);
    turns = Tensor::empty({need.turns()}, Dtype::i32, device);
    call.dout = rows_of(dout);
    call.dq = rows_of(dq);
    call.dk = rows_of(dk);
    call.dv = rows_of(dv);
    call.delta = delta.data<float>();
    call.suspect_keys = suspect_keys.data<uint8_t>();
    call.sums = sums.data<float>();
    call.statistics = statistics.data<float>();
  }

  Mask mask() const {
    Mask mask;
    if (sizes.causal) mask.causal();
    if (sizes.left >= 0) mask.window(sizes.left, -1);
    return mask;
  }
  // Every query; or, of a large problem, sixteen in each of three heads.
  std::vector<Part> parts() const {
    const Sizes& z = sizes;
    if (z.N <= 1024 && z.B * z.H <= 8) return {{0, z.B, 0, z.H, 0, z.N}};
    const int64_t b = z.B / 2, h = z.H / 2, i = z.N / 2 - 5;
    return {{0, 1, 0, 1, 0, 16},
            {b, b + 1, h, h + 1, i, i + 16},
            {z.B - 1, z.B, z.H - 1, z.H, z.N - 16, z.N}};
  }

 private:
  static ScoreRows rows_of(const Tensor& t) {
    return {t.raw(), t.stride(0), t.stride(1), t.stride(2), t.dtype()};
  }
};

// What the cpu says of some queries of a problem and the keys that they see.
class Answer {
 public:
  Answer(const Problem& p, const Part& part, bool backward) : part_(part), backward_(backward) {
    const int64_t group = p.sizes.H / p.sizes.Hkv, past = p.sizes.M - p.sizes.N;
    const auto wide = [](const Tensor& x) { return x.to(kCpu).to(Dtype::f64); };
    // Queries are the last of the keys that they are given.
    keys_ = {part.b0,
             part.b1,
             part.h0 / group,
             (part.h1 + group - 1) / group,
             0,
             p.sizes.causal ? part.i1 + past : p.sizes.M};
    const ScoreInputs in{wide(part.of(p.q)), wide(keys_.of(p.k)), wide(keys_.of(p.v)), {}, {}};
    result_ = softmax_forward(in, p.mask(), {});
    if (!backward) return;
    grads_ = softmax_backward(wide(part.of(p.dout)), result_, in, p.mask(), {});
    // Keys that no other query sees.
    const bool whole = part.i0 == 0 && part.i1 == p.sizes.N;
    const int64_t last = p.sizes.causal && part.i1 == p.sizes.N ? part.i1 - part.i0 : 0;
    done_ = {0, part.b1 - part.b0, 0, keys_.h1 - keys_.h0, whole ? 0 : keys_.i1 - last, keys_.i1};
  }

  Errors errors(const Problem& p) const {
    Errors e;
    if (!backward_) {
      e.out = relative_error(part_.of(p.out), result_.out);
      e.lse = relative_error(part_.of(p.lse), result_.lse);
      return e;
    }
    e.dq = relative_error(part_.of(p.dq), grads_.dq);
    if (done_.i0 == done_.i1) return e;
    e.dk = relative_error(done_.of(keys_.of(p.dk)), done_.of(grads_.dk));
    e.dv = relative_error(done_.of(keys_.of(p.dv)), done_.of(grads_.dv));
    return e;
  }

 private:
  Part part_, keys_{}, done_{};
  bool backward_;
  ScoreResult result_;
  ScoreGrads grads_;
};

class Answers {
 public:
  Answers(const Problem& p, bool backward) {
    for (const Part& part : p.parts()) all_.emplace_back(p, part, backward);
  }
  Errors errors(const Problem& p) const {
    Errors e;
    for (const Answer& answer : all_) e.widen(answer.errors(p));
    return e;
  }

 private:
  std::vector<Answer> all_;
};

}  // namespace fovea::attention::tuning
