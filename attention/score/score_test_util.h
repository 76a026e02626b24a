// SPDX-License-Identifier: Apache-2.0
#pragma once
// What tests of the score engine share: its definition in double without tiles, and the cases.

#include <cmath>
#include <functional>

#include "attention/mask_shapes.h"
#include "attention/score/rows.h"
#include "attention/score/rows_simd.h"
#include "attention/score/score.h"

namespace fovea::attention {

inline Tensor random_tensor(const Shape& shape, const char* name, Dtype dtype = Dtype::f64) {
  const Tensor value = Tensor::empty(shape, Dtype::f64);
  fill_normal(value, RngKey(3, "test", name));
  return value.to(dtype);
}

inline double relative_error(const Tensor& x, const Tensor& reference) {
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

inline ScoreInputs inputs(const Sizes& z, Dtype dtype) {
  return {random_tensor({z.B, z.H, z.N, z.D}, "q", dtype),
          random_tensor({z.B, z.Hkv, z.M, z.D}, "k", dtype),
          random_tensor({z.B, z.Hkv, z.M, z.Dv}, "v", dtype), Tensor(), Tensor()};
}

// A rule without a normaliser and one with, beside softmax: w = sigmoid(s - 1) (2409.04431), and w
// = relu(s)^2 over its sum.
template <class V>
V number(float x) {
  if constexpr (std::is_same_v<V, double>)
    return static_cast<double>(x);
  else
    return avx2::splat(x);
}
inline double positive(double x) { return std::max(x, 0.0); }
inline avx2::Vec positive(avx2::Vec x) { return avx2::max(avx2::zero(), x); }

struct SigmoidRule {
  static constexpr bool kNormalised = false, kOnline = false;
  template <class V>
  V weight(V s, V) const {
    return number<V>(1.0f) / (number<V>(1.0f) + exp(number<V>(1.0f) - s));
  }
  template <class V>
  V derivative(V, V w) const {
    return w * (number<V>(1.0f) - w);
  }
};
struct SquaredReluRule {
  static constexpr bool kNormalised = true, kOnline = false;
  template <class V>
  V weight(V s, V) const {
    return positive(s) * positive(s);
  }
  template <class V>
  V derivative(V s, V) const {
    return number<V>(2.0f) * positive(s);
  }
};

inline const SigmoidRule kSigmoid;
inline const SquaredReluRule kSquaredRelu;
inline const ScoreRule kSigmoidRule = score_rule(kSigmoid, avx2::score_rows_forward<SigmoidRule>,
                                                 avx2::score_rows_backward<SigmoidRule>);
inline const ScoreRule kSquaredReluRule =
    score_rule(kSquaredRelu, avx2::score_rows_forward<SquaredReluRule>,
               avx2::score_rows_backward<SquaredReluRule>);

// The definition, in double and without tiles: returns out; every option of the engine.
inline Tensor reference(const ScoreInputs& in, const Mask& mask, const ScoreOptions& o,
                        const ScoreRule& rule = softmax_rule()) {
  const Tensor q = in.q.to(Dtype::f64).contiguous(), k = in.k.to(Dtype::f64).contiguous(),
               v = in.v.to(Dtype::f64).contiguous();
  const int64_t B = q.dim(0), H = q.dim(1), Hkv = k.dim(1), N = q.dim(2), M = k.dim(2),
                D = q.dim(3), Dv = v.dim(3);
  const double scale = o.scale != 0.0 ? o.scale : 1.0 / std::sqrt(static_cast<double>(D));
  const auto rotated = [&](const double* row, int64_t position) {
    std::vector<double> r(row, row + D);
    for (int64_t t = 0; t < D / 2 && o.rope != Rope::none; ++t) {
      const double angle =
          static_cast<double>(position) *
          std::pow(o.rope_base, -2.0 * static_cast<double>(t) / static_cast<double>(D));
      const auto x = static_cast<size_t>(o.rope == Rope::interleaved ? 2 * t : t),
                 y = static_cast<size_t>(o.rope == Rope::interleaved ? 2 * t + 1 : t + D / 2);
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
          if (in.alibi_slopes.defined())
            r -= static_cast<double>(in.alibi_slopes.data<float>()[h]) *
                 static_cast<double>(std::abs(i + M - N - j));
          if (in.bias.defined()) {
            const Tensor bias = in.bias.to(Dtype::f64).contiguous();
            r += bias.data<double>()
                     [(((bias.dim(0) == 1 ? 0 : b) * bias.dim(1) + (bias.dim(1) == 1 ? 0 : h)) * N +
                       i) *
                          M +
                      j];
          }
          s[static_cast<size_t>(j)] = r;
          if (rule.online) top = std::max(top, r);
        }
        if (top == -INFINITY) continue;
        const auto weight = [&](double r) {
          if (r == -INFINITY) return 0.0;
          return rule.online       ? std::exp(r - top)
                 : rule.normalised ? kSquaredRelu.weight(r, 0.0)
                                   : kSigmoid.weight(r, 0.0);
        };
        double total = in.sink.defined() ? std::exp(sink - top) : 0.0;
        for (double r : s) total += weight(r);
        if (!rule.normalised) total = 1.0;
        if (total == 0.0) continue;
        for (int64_t j = 0; j < M; ++j) {
          double p = weight(s[static_cast<size_t>(j)]) / total;
          if (p == 0.0) continue;  // a hidden key changes nothing, not even when it is NaN
          if (o.dropout > 0.0) {
            const auto index =
                static_cast<uint64_t>((((o.first_sample + b) * H + h) * N + i) * M + j);
            p *= random_word(o.rng, index) < dropout_threshold(o.dropout) ? 0.0
                                                                          : 1.0 / (1.0 - o.dropout);
          }
          for (int64_t d = 0; d < Dv; ++d)
            out.data<double>()[((b * H + h) * N + i) * Dv + d] +=
                p * v.data<double>()[(bk * M + j) * Dv + d];
        }
      }
    }
  }
  return out;
}

// A case's tensors and mask on another device, with the dtypes that a GPU device holds.
inline ScoreInputs on(Device device, const ScoreInputs& in) {
  const auto move = [&](const Tensor& t) {
    if (!t.defined() || device.is_cpu()) return t;
    return (t.dtype() == Dtype::f64 ? t.to(Dtype::f32) : t).to(device);
  };
  return {move(in.q), move(in.k), move(in.v), move(in.alibi_slopes), move(in.sink), move(in.bias)};
}

struct Case {
  const char* name;
  Sizes sizes;
  std::function<void(Mask&, ScoreInputs&, ScoreOptions&)> set;
};

inline std::vector<Case> cases() {
  const auto documents = [](int64_t B, int64_t N, bool padded) {
    const Tensor ids = Tensor::empty({B, N}, Dtype::i32);
    for (int64_t i = 0; i < B * N; ++i)
      ids.data<int32_t>()[i] = padded && i % N > N - 4 ? -1 : static_cast<int32_t>(i % N / 7);
    return ids;
  };
  return {
      {"full", {2, 3, 3, 33, 33, 16, 16}, [](Mask&, ScoreInputs&, ScoreOptions&) {}},
      {"causal",
       {2, 3, 3, 67, 67, 16, 16},
       [](Mask& m, ScoreInputs&, ScoreOptions&) { m.causal(); }},
      {"one token",
       {1, 1, 1, 1, 1, 3, 2},
       [](Mask& m, ScoreInputs&, ScoreOptions&) { m.causal(); }},
      {"query tile edges",
       {1, 2, 2, 129, 130, 8, 8},
       [](Mask& m, ScoreInputs&, ScoreOptions&) { m.causal(); }},
      {"tile edges", {1, 2, 2, 64, 65, 8, 17}, [](Mask&, ScoreInputs&, ScoreOptions&) {}},
      {"fewer queries than keys",
       {1, 4, 2, 3, 130, 8, 8},
       [](Mask& m, ScoreInputs&, ScoreOptions&) { m.causal(); }},
      {"grouped heads",
       {2, 6, 2, 40, 40, 8, 12},
       [](Mask& m, ScoreInputs&, ScoreOptions&) { m.causal(); }},
      {"window",
       {1, 2, 2, 150, 150, 8, 8},
       [](Mask& m, ScoreInputs&, ScoreOptions&) { m.window(9, 3); }},
      {"causal window",
       {1, 2, 2, 150, 150, 8, 8},
       [](Mask& m, ScoreInputs&, ScoreOptions&) { m.causal().window(70, -1); }},
      {"prefix",
       {1, 2, 2, 80, 80, 8, 8},
       [](Mask& m, ScoreInputs&, ScoreOptions&) { m.causal().prefix(11); }},
      {"documents",
       {2, 2, 1, 70, 70, 8, 8},
       [=](Mask& m, ScoreInputs&, ScoreOptions&) {
         m.causal().documents(documents(2, 70, false), documents(2, 70, false));
       }},
      {"padding sees nothing",
       {2, 2, 2, 70, 70, 8, 8},
       [=](Mask& m, ScoreInputs&, ScoreOptions&) {
         m.documents(documents(2, 70, true), documents(2, 70, true));
       }},
      {"block sparse",
       {1, 2, 2, 70, 70, 8, 8},
       [](Mask& m, ScoreInputs&, ScoreOptions&) {
         m.block_sparse(Tensor::from(std::vector<uint8_t>{1, 0, 0, 0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1,
                                                          0, 0, 0, 1},
                                     {2, 3, 3}),
                        24, 24);
       }},
      {"ranges of keys",
       {2, 2, 1, 70, 70, 8, 8},
       [](Mask& m, ScoreInputs&, ScoreOptions&) {
         const Tensor both = Tensor::empty({2, 70, 4}, Dtype::i32);
         both.slice(0, 0, 1).copy_(
             packed_documents(document_ids({9, 30, 28}, 70), Packed::question).parts().ranges);
         both.slice(0, 1, 2).copy_(global_window(70, 5, 12, 3).parts().ranges);
         m.ranges(both);
       }},
      {"softcap and alibi",
       {1, 3, 3, 66, 66, 8, 8},
       [](Mask& m, ScoreInputs& in, ScoreOptions& o) {
         m.causal();
         o.softcap = 1.5;
         in.alibi_slopes = alibi_slopes(3);
       }},
      {"sink",
       {2, 2, 2, 66, 66, 8, 8},
       [](Mask& m, ScoreInputs& in, ScoreOptions&) {
         m.causal();
         in.sink = Tensor::from(std::vector<double>{0.5, -1.0}, {2});
       }},
      {"rope interleaved",
       {1, 2, 1, 66, 70, 8, 8},
       [](Mask& m, ScoreInputs&, ScoreOptions& o) {
         m.causal();
         o.rope = Rope::interleaved;
       }},
      {"rope half",
       {1, 2, 2, 30, 30, 8, 8},
       [](Mask&, ScoreInputs&, ScoreOptions& o) { o.rope = Rope::half; }},
      {"dropout and scale",
       {2, 2, 2, 66, 66, 8, 8},
       [](Mask& m, ScoreInputs&, ScoreOptions& o) {
         m.causal();
         o.dropout = 0.3;
         o.rng = RngKey(1, "dropout", "x");
         o.first_sample = 5;
         o.scale = 0.7;
       }},
      {"few queries",
       {2, 6, 2, 2, 1100, 8, 12},
       [](Mask& m, ScoreInputs& in, ScoreOptions& o) {
         m.causal().window(900, -1);
         o.rope = Rope::half;
         o.softcap = 2.0;
         in.alibi_slopes = alibi_slopes(6);
         in.sink = Tensor::from(std::vector<double>{0.5, -1.0, 1.0, 0.0, 2.0, 0.3}, {6});
       }},
      {"one query, grouped heads",
       {1, 4, 2, 1, 1030, 8, 8},
       [](Mask& m, ScoreInputs&, ScoreOptions&) { m.causal(); }},
      {"odd sizes",
       {1, 2, 1, 71, 75, 7, 5},
       [](Mask& m, ScoreInputs&, ScoreOptions&) { m.causal(); }},
      {"bias of every head",
       {2, 3, 3, 66, 70, 8, 8},
       [](Mask& m, ScoreInputs& in, ScoreOptions& o) {
         m.causal();
         o.softcap = 3.0;
         in.bias = random_tensor({1, 3, 66, 70}, "bias");
       }},
      {"bias of every sample",
       {2, 4, 2, 34, 34, 8, 8},
       [](Mask&, ScoreInputs& in, ScoreOptions&) {
         in.bias = random_tensor({2, 1, 34, 34}, "bias");
       }},
      {"bias of few queries",
       {2, 2, 1, 3, 70, 8, 8},
       [](Mask&, ScoreInputs& in, ScoreOptions&) {
         in.bias = random_tensor({1, 1, 3, 70}, "bias");
       }},
      {"negative scale",
       {1, 2, 2, 40, 40, 8, 8},
       [](Mask& m, ScoreInputs&, ScoreOptions& o) {
         m.causal();
         o.scale = -0.4;
       }},
      {"no batch", {0, 2, 2, 4, 4, 8, 8}, [](Mask&, ScoreInputs&, ScoreOptions&) {}},
      {"no keys", {1, 2, 2, 4, 0, 8, 8}, [](Mask&, ScoreInputs&, ScoreOptions&) {}},
  };
}

}  // namespace fovea::attention
