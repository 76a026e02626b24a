// SPDX-License-Identifier: Apache-2.0
#pragma once
// What tests of the linear and the delta engine share: the recurrence token by token in double,
// random calls, and comparisons.

#include <gtest/gtest.h>

#include <cmath>

#include "attention/linear/linear.h"
#include "autograd/gradcheck.h"
#include "core/rng.h"

namespace fovea::attention {

enum class Gates { none, head, token, channel };

struct LinearCase {
  int64_t B = 1, H = 2, N = 5, Dk = 4, Dv = 3;
  Gates gates = Gates::none;
  bool documents = false, state = false;
};

inline Tensor normal(const Shape& shape, const char* name, double factor = 1.0,
                     double shift = 0.0) {
  const Tensor value = Tensor::empty(shape, Dtype::f64);
  fill_normal(value, RngKey(5, "test", name));
  double* x = value.data<double>();
  for (int64_t i = 0; i < value.numel(); ++i) x[i] = factor * x[i] + shift;
  return value;
}
inline Tensor negative(const Tensor& x) {
  double* v = x.data<double>();
  for (int64_t i = 0; i < x.numel(); ++i) v[i] = -std::abs(v[i]);
  return x;
}
// A document starts at about every ninth token, and never at the first.
inline Tensor some_starts(int64_t B, int64_t N) {
  std::vector<uint8_t> starts(static_cast<size_t>(B * N));
  for (int64_t i = 0; i < B * N; ++i)
    starts[static_cast<size_t>(i)] = i % N > 0 && (i * 7 + i / N) % 9 == 4;
  return Tensor::from(starts, {B, N});
}

// In f64 on the cpu. Gates are about -0.2 a token; some are large enough to underflow a product.
inline LinearInputs linear_case(const LinearCase& c) {
  LinearInputs in{normal({c.B, c.H, c.N, c.Dk}, "q"), normal({c.B, c.H, c.N, c.Dk}, "k", 0.5),
                  normal({c.B, c.H, c.N, c.Dv}, "v")};
  if (c.gates == Gates::head) in.g = negative(normal({c.H}, "g", 0.2));
  if (c.gates == Gates::token) in.g = negative(normal({c.B, c.H, c.N}, "g", 0.2));
  if (c.gates == Gates::channel) in.g = negative(normal({c.B, c.H, c.N, c.Dk}, "g", 0.2));
  if (c.documents) in.starts = some_starts(c.B, c.N);
  if (c.state) in.state = normal({c.B, c.H, c.Dk, c.Dv}, "state");
  return in;
}

// S_t = diag(a_t) S_{t-1} + beta_t k_t (v_t - (diag(a_t) S_{t-1})^T k_t)^T; without beta, plain
// S_t = diag(a_t) S_{t-1} + k_t v_t^T.
inline LinearResult recurrence(const LinearInputs& in, const Tensor& beta = {}) {
  const int64_t B = in.q.dim(0), H = in.q.dim(1), N = in.q.dim(2), Dk = in.q.dim(3),
                Dv = in.v.dim(3);
  const auto q = in.q.to_vector<double>(), k = in.k.to_vector<double>(),
             v = in.v.to_vector<double>(),
             g = in.g.defined() ? in.g.to_vector<double>() : std::vector<double>(),
             weights = beta.defined() ? beta.to_vector<double>() : std::vector<double>();
  const auto starts = in.starts.defined() ? in.starts.to_vector<uint8_t>() : std::vector<uint8_t>();
  std::vector<double> out(static_cast<size_t>(B * H * N * Dv)),
      states = in.state.defined() ? in.state.to_vector<double>()
                                  : std::vector<double>(static_cast<size_t>(B * H * Dk * Dv));
  const auto at = [](const std::vector<double>& x, int64_t i) { return x[static_cast<size_t>(i)]; };
  for (int64_t bh = 0; bh < B * H; ++bh) {
    double* S = states.data() + bh * Dk * Dv;
    for (int64_t t = bh * N; t < (bh + 1) * N; ++t) {
      const bool start =
          !starts.empty() && starts[static_cast<size_t>(bh / H * N + t - bh * N)] != 0;
      for (int64_t c = 0; c < Dk; ++c) {
        const double gate = g.empty()          ? 0.0
                            : in.g.rank() == 1 ? at(g, bh % H)
                            : in.g.rank() == 3 ? at(g, t)
                                               : at(g, t * Dk + c);
        for (int64_t d = 0; d < Dv; ++d) S[c * Dv + d] *= start ? 0.0 : std::exp(gate);
      }
      for (int64_t d = 0; d < Dv; ++d) {
        double u = at(v, t * Dv + d);
        if (beta.defined()) {
          for (int64_t c = 0; c < Dk; ++c) u -= S[c * Dv + d] * at(k, t * Dk + c);
          u *= at(weights, t);
        }
        double o = 0.0;
        for (int64_t c = 0; c < Dk; ++c) {
          S[c * Dv + d] += at(k, t * Dk + c) * u;
          o += at(q, t * Dk + c) * S[c * Dv + d];
        }
        out[static_cast<size_t>(t * Dv + d)] = o;
      }
    }
  }
  return {Tensor::from(out, {B, H, N, Dv}), Tensor::from(states, {B, H, Dk, Dv})};
}

inline double error_of(const Tensor& x, const Tensor& reference) {
  EXPECT_EQ(x.shape(), reference.shape());
  const auto a = x.to_vector<double>(), b = reference.to_vector<double>();
  double difference = 0.0, norm = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference / std::max(norm, 1e-30));
}

// q, k, v in the dtype, the rest in f32 (f64 for f64), on the device. Through bf16 where that is
// the dtype, so that references see the same numbers.
inline LinearInputs converted(const LinearInputs& in, Dtype dtype, Device device) {
  const Dtype state = dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32;
  const auto move = [&](const Tensor& t, Dtype to) {
    return t.defined() ? t.to(kCpu).to(to).to(device) : t;
  };
  return {move(in.q, dtype), move(in.k, dtype),          move(in.v, dtype),
          move(in.g, state), move(in.starts, Dtype::u8), move(in.state, state)};
}

inline LinearInputs tokens(const LinearInputs& in, int64_t begin, int64_t end) {
  LinearInputs part = in;
  part.q = in.q.slice(2, begin, end);
  part.k = in.k.slice(2, begin, end);
  part.v = in.v.slice(2, begin, end);
  if (in.g.defined() && in.g.rank() > 1) part.g = in.g.slice(2, begin, end);
  if (in.starts.defined()) part.starts = in.starts.slice(1, begin, end);
  return part;
}

// Cases at the edges of chunks and sub-chunks.
inline std::vector<LinearCase> edge_cases() {
  std::vector<LinearCase> cases;
  for (const Gates gates : {Gates::none, Gates::head, Gates::token, Gates::channel}) {
    for (const int64_t N : {1, 15, 63, 64, 65, 130})
      cases.push_back({1, 2, N, 5, 3, gates, N % 2 == 1, N != 64});
  }
  return cases;
}

}  // namespace fovea::attention
