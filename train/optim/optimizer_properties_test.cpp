// SPDX-License-Identifier: Apache-2.0
// What optimizer_test.cpp leaves open: Muon step by step against its definition, thread
// independence where products are split, norms of extreme gradients, gradients that are absent or
// views, and bad input.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/parallel.h"
#include "core/rng.h"
#include "train/optim/cpu/kernels.h"
#include "train/optim/optimizer.h"

namespace fovea::train {
namespace {

Tensor random(const Shape& shape, const std::string& name, uint64_t step = 0) {
  const Tensor t = Tensor::empty(shape);
  fill_normal(t, RngKey(12, "test", name, step));
  return t;
}
Parameters one(const std::string& name, const Shape& shape) {
  return {{name, Variable(random(shape, name), true)}};
}

// Row-major matrices in double.
struct Matrix {
  int64_t rows, columns;
  std::vector<double> x;
  double& at(int64_t i, int64_t j) { return x[static_cast<size_t>(i * columns + j)]; }
  double at(int64_t i, int64_t j) const { return x[static_cast<size_t>(i * columns + j)]; }
};
Matrix transposed(const Matrix& a) {
  Matrix out{a.columns, a.rows, std::vector<double>(a.x.size())};
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < a.columns; ++j) out.at(j, i) = a.at(i, j);
  }
  return out;
}
Matrix product(const Matrix& a, const Matrix& b) {
  Matrix out{a.rows, b.columns, std::vector<double>(static_cast<size_t>(a.rows * b.columns), 0.0)};
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t k = 0; k < a.columns; ++k) {
      for (int64_t j = 0; j < b.columns; ++j) out.at(i, j) += a.at(i, k) * b.at(k, j);
    }
  }
  return out;
}

// X <- a X + b (X X^T) X + c (X X^T)^2 X from G / |G|, on the side that is shorter (Jordan et al.
// 2024).
Matrix newton_schulz(Matrix g, int64_t steps) {
  const bool tall = g.rows > g.columns;
  if (tall) g = transposed(g);
  double squares = 0.0;
  for (const double value : g.x) squares += value * value;
  for (double& value : g.x) value /= std::sqrt(squares) + 1e-7;
  for (int64_t s = 0; s < steps; ++s) {
    const Matrix gram = product(g, transposed(g)), cubic = product(gram, g),
                 quintic = product(gram, cubic);
    for (size_t i = 0; i < g.x.size(); ++i)
      g.x[i] = 3.4445 * g.x[i] - 4.7750 * cubic.x[i] + 2.0315 * quintic.x[i];
  }
  return tall ? transposed(g) : g;
}

TEST(Muon, FollowsItsDefinitionOnWideSquareAndTallMatrices) {
  for (const Shape& shape :
       {Shape{7, 33}, Shape{17, 17}, Shape{41, 5}, Shape{1, 15}, Shape{15, 1}}) {
    OptimizerOptions options;
    options.kind = "muon";
    options.momentum = 0.95;
    const Parameters parameters = one("blocks.0.up.weight", shape);
    const auto optimizer = make_optimizer(options, parameters);
    const Variable weight = parameters[0].variable;
    std::vector<double> p = weight.value().to_vector<double>(), m(p.size(), 0.0);
    const double rows = static_cast<double>(shape[0]), columns = static_cast<double>(shape[1]);
    for (uint64_t t = 1; t <= 4; ++t) {
      const double lr = 0.02 * static_cast<double>(t), factor = t == 2 ? 0.3 : 1.0;
      weight.set_grad(random(shape, "grad", t));
      const std::vector<double> g = weight.grad().to_vector<double>();
      Matrix direction{shape[0], shape[1], std::vector<double>(p.size())};
      for (size_t i = 0; i < p.size(); ++i) {
        m[i] = options.momentum * m[i] + factor * g[i];
        direction.x[i] = factor * g[i] + options.momentum * m[i];
      }
      const Matrix update = newton_schulz(direction, options.newton_schulz);
      for (size_t i = 0; i < p.size(); ++i)
        p[i] -= lr * options.weight_decay * p[i] +
                lr * std::sqrt(std::max(1.0, rows / columns)) * update.x[i];
      optimizer->step(lr, factor);
    }
    const std::vector<double> found = weight.value().to_vector<double>();
    for (size_t i = 0; i < p.size(); ++i)
      ASSERT_NEAR(found[i], p[i], 3e-5) << shape << " element " << i;
  }
}

TEST(Muon, LeavesEmbeddingsHeadsVectorsAndStacksToAdamw) {
  Parameters parameters;
  for (const auto& [name, shape] :
       std::vector<std::pair<std::string, Shape>>{{"token.weight", {5, 4}},
                                                  {"position.weight", {5, 4}},
                                                  {"pos_embed", {1, 3, 4}},
                                                  {"head.weight", {5, 4}},
                                                  {"blocks.0.norm1.weight", {4}},
                                                  {"blocks.0.attention.qkv.weight", {12, 4}}}) {
    parameters.push_back({name, Variable(random(shape, name), true)});
  }
  OptimizerOptions options;
  options.kind = "muon";
  std::vector<std::string> names;
  for (const auto& [name, tensor] : make_optimizer(options, parameters)->state())
    names.push_back(name);
  EXPECT_EQ(std::count_if(names.begin(), names.end(),
                          [](const std::string& n) { return n.starts_with("v."); }),
            5);
  EXPECT_EQ(std::count(names.begin(), names.end(), "v.blocks.0.attention.qkv.weight"), 0);
}

TEST(Optimizer, LargeMatricesMoveAlikeOnOneAndTwoThreads) {
  const int threads = num_threads();
  for (const std::string kind : {"adamw", "muon"}) {
    for (const Shape& shape : {Shape{256, 1024}, Shape{1024, 256}, Shape{384, 384}}) {
      OptimizerOptions options;
      options.kind = kind;
      const Parameters a = one("w", shape), b = one("w", shape);
      const auto single = make_optimizer(options, a), pair = make_optimizer(options, b);
      for (uint64_t t = 1; t <= 2; ++t) {
        a[0].variable.set_grad(random(shape, "grad", t));
        b[0].variable.set_grad(random(shape, "grad", t));
        set_num_threads(1);
        const double norm = global_norm(a);
        single->step(0.02, 1.0);
        set_num_threads(2);
        EXPECT_EQ(norm, global_norm(b));
        pair->step(0.02, 1.0);
      }
      set_num_threads(threads);
      EXPECT_EQ(a[0].variable.value().to_vector<float>(), b[0].variable.value().to_vector<float>())
          << kind << ' ' << shape;
    }
  }
}

TEST(GlobalNorm, HoldsForGradientsWhoseSquaresLeaveF32) {
  for (const double size : {1e-30, 1e-22, 1.0, 1e19, 1e30}) {
    const Parameters parameters = one("w", {70001});
    parameters[0].variable.set_grad(Tensor::full({70001}, size));
    const double expected = static_cast<double>(static_cast<float>(size)) * std::sqrt(70001.0);
    EXPECT_NEAR(global_norm(parameters) / expected, 1.0, 1e-12) << size;
  }
}

TEST(GlobalNorm, HasTheSameBitsUnderBothInstructionSets) {
  for (const int64_t n : {1, 15, 17, 70001}) {
    const Tensor x = random({n}, "x");
    double expected = 0.0;
    for (const double value : x.to_vector<double>()) expected += value * value;
    const double narrow = avx2::sum_of_squares(x.data<float>(), n);
    EXPECT_NEAR(narrow, expected, 1e-12 * expected);
    if (cpu_isa() != Isa::avx2) {
      EXPECT_EQ(avx512::sum_of_squares(x.data<float>(), n), narrow) << n;
    }
  }
}

TEST(Muon, TheSizeOfTheGradientDoesNotMatter) {
  for (const float size : {1e-3f, 1e20f}) {
    OptimizerOptions options;
    options.kind = "muon";
    const Parameters parameters = one("w", {9, 9}), scaled = one("w", {9, 9});
    for (const Parameters* which : {&parameters, &scaled}) {
      const Tensor g = random({9, 9}, "grad");
      if (which == &scaled)
        for (int64_t i = 0; i < g.numel(); ++i) g.data<float>()[i] *= size;
      (*which)[0].variable.set_grad(g);
      make_optimizer(options, *which)->step(0.02, 1.0);
    }
    const auto a = parameters[0].variable.value().to_vector<float>(),
               b = scaled[0].variable.value().to_vector<float>();
    for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 1e-5) << size;
  }
}

TEST(Optimizer, AbsentGradientsLeaveAParameterAndItsStateAlone) {
  for (const std::string kind : {"adamw", "sgd", "lion", "muon"}) {
    OptimizerOptions options;
    options.kind = kind;
    Parameters parameters = one("a", {3, 5});
    parameters.push_back(one("b", {3, 5})[0]);
    const auto before = parameters[0].variable.value().to_vector<float>();
    parameters[1].variable.set_grad(random({3, 5}, "grad"));
    const auto optimizer = make_optimizer(options, parameters);
    optimizer->step(0.1, 1.0);
    EXPECT_EQ(parameters[0].variable.value().to_vector<float>(), before) << kind;
    for (const auto& [name, tensor] : optimizer->state()) {
      if (name.ends_with(".a")) {
        EXPECT_EQ(tensor.to_vector<float>(), std::vector<float>(15, 0.0f)) << kind;
      }
    }
  }
}

TEST(Optimizer, AGradientThatIsATransposedViewCountsElementByElement) {
  for (const std::string kind : {"adamw", "sgd", "lion", "muon"}) {
    OptimizerOptions options;
    options.kind = kind;
    const Parameters a = one("w", {17, 5}), b = one("w", {17, 5});
    const Tensor view = random({5, 17}, "grad").transpose(0, 1);
    a[0].variable.set_grad(view);
    b[0].variable.set_grad(view.contiguous());
    EXPECT_EQ(global_norm(a), global_norm(b));
    make_optimizer(options, a)->step(0.1, 0.5);
    make_optimizer(options, b)->step(0.1, 0.5);
    EXPECT_EQ(a[0].variable.value().to_vector<float>(), b[0].variable.value().to_vector<float>())
        << kind;
  }
}

TEST(Optimizer, RefusesWhatItCannotMove) {
  OptimizerOptions options;
  const Parameters half = {{"half", Variable(Tensor::zeros({3}, Dtype::bf16), true)}};
  EXPECT_THROW(make_optimizer(options, half), Error);
  options.kind = "adam";
  EXPECT_THROW(make_optimizer(options, one("w", {3})), Error);
  ScheduleOptions schedule;
  schedule.kind = "cosin";
  EXPECT_THROW(learning_rate(1.0, schedule, 5, 10), Error);
}

TEST(Optimizer, RefusesOneParameterUnderTwoNames) {
  Parameters parameters = one("token.weight", {3, 5});
  parameters.push_back({"head.weight", parameters[0].variable});
  EXPECT_THROW(make_optimizer(OptimizerOptions(), parameters), Error);
}

TEST(Ema, RefusesToAverageWhileSwapped) {
  const Parameters parameters = one("w", {3, 5});
  Ema ema(parameters, 0.9);
  const Ema::Swap swap(ema);
  EXPECT_THROW(ema.update(), Error);
  EXPECT_THROW(Ema::Swap{ema}, Error);
}

}  // namespace
}  // namespace fovea::train
