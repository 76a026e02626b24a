// SPDX-License-Identifier: Apache-2.0
#include "train/optim/optimizer.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "core/ops/elementwise.h"
#include "core/ops/matmul.h"
#include "core/parallel.h"
#include "train/optim/cpu/kernels.h"

namespace fovea::train {
namespace {

constexpr int64_t kBlock = 16384;  // elements: 64 KiB of each stream

bool is_embedding(const std::string& name) {
  return name == "token.weight" || name == "position.weight" || name == "pos_embed" ||
         name == "cls_token";
}
bool is_head(const std::string& name) { return name.starts_with("head."); }

// A parameter with its state tensors and its own decay.
struct Slot {
  std::string name;
  Variable variable;
  Tensor first, second;
  bool decays = true;
};

// f(slot, begin, end) over blocks of all slots that have a gradient.
template <typename F>
void for_blocks(const std::vector<Slot>& slots, F&& f) {
  struct Piece {
    const Slot* slot;
    int64_t begin, end;
  };
  std::vector<Piece> pieces;
  for (const Slot& slot : slots) {
    if (!slot.variable.grad().defined()) continue;
    const int64_t n = slot.variable.value().numel();
    for (int64_t begin = 0; begin < n; begin += kBlock)
      pieces.push_back({&slot, begin, std::min(n, begin + kBlock)});
  }
  parallel_for(0, static_cast<int64_t>(pieces.size()), 1, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const Piece& piece = pieces[static_cast<size_t>(i)];
      f(*piece.slot, piece.begin, piece.end - piece.begin);
    }
  });
}

std::vector<Slot> make_slots(const Parameters& parameters, const OptimizerOptions& options,
                             bool second) {
  std::vector<Slot> slots;
  for (const nn::NamedParameter& p : parameters) {
    const Tensor& value = p.variable.value();
    FOVEA_CHECK(value.dtype() == Dtype::f32 && value.is_contiguous(), "optimizer: ", p.name, " is ",
                value.dtype(), "; expected contiguous f32");
    const bool decays = is_embedding(p.name) ? options.decay_embeddings
                                             : value.rank() >= 2 || options.decay_vectors;
    slots.push_back({p.name, p.variable, Tensor::zeros_like(value),
                     second ? Tensor::zeros_like(value) : Tensor(), decays});
  }
  return slots;
}

// Contiguous gradients with the values' layout: backward gives them so, but for rare views.
const float* gradient(const Slot& slot) { return slot.variable.grad().data<float>(); }

void make_gradients_contiguous(const std::vector<Slot>& slots) {
  for (const Slot& slot : slots) {
    const Tensor& g = slot.variable.grad();
    if (g.defined() && !g.is_contiguous()) slot.variable.set_grad(g.contiguous());
  }
}

void append_state(NamedTensors& out, const std::vector<Slot>& slots, const std::string& first,
                  const std::string& second) {
  for (const Slot& slot : slots) {
    out.emplace_back(first + "." + slot.name, slot.first);
    if (slot.second.defined()) out.emplace_back(second + "." + slot.name, slot.second);
  }
}

void adamw(const std::vector<Slot>& slots, const OptimizerOptions& o, int64_t t, double lr,
           double factor) {
  make_gradients_contiguous(slots);
  AdamwStep s{};
  s.factor = static_cast<float>(factor);
  s.beta1 = static_cast<float>(o.beta1);
  s.beta2 = static_cast<float>(o.beta2);
  s.step_size = static_cast<float>(lr / (1.0 - std::pow(o.beta1, static_cast<double>(t))));
  s.root_scale =
      static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(o.beta2, static_cast<double>(t))));
  s.eps = static_cast<float>(o.eps);
  const auto shrink = static_cast<float>(1.0 - lr * o.weight_decay);
  for_blocks(slots, [&](const Slot& slot, int64_t begin, int64_t n) {
    AdamwStep mine = s;
    mine.shrink = slot.decays ? shrink : 1.0f;
    FOVEA_SIMD_CALL(adamw_update, slot.variable.value().data<float>() + begin,
                    gradient(slot) + begin, slot.first.data<float>() + begin,
                    slot.second.data<float>() + begin, n, mine);
  });
}

class Adamw final : public Optimizer {
 public:
  Adamw(const OptimizerOptions& options, const Parameters& parameters)
      : options_(options), slots_(make_slots(parameters, options, true)) {}
  NamedTensors state() const override {
    NamedTensors out;
    append_state(out, slots_, "m", "v");
    return out;
  }

 private:
  void update(double lr, double factor) override { adamw(slots_, options_, steps(), lr, factor); }
  OptimizerOptions options_;
  std::vector<Slot> slots_;
};

// SGD with momentum, and Lion: one state tensor each.
class OneMoment final : public Optimizer {
 public:
  OneMoment(const OptimizerOptions& options, const Parameters& parameters)
      : options_(options), slots_(make_slots(parameters, options, false)) {}
  NamedTensors state() const override {
    NamedTensors out;
    append_state(out, slots_, "m", "");
    return out;
  }

 private:
  void update(double lr, double factor) override {
    make_gradients_contiguous(slots_);
    const bool lion = options_.kind == "lion";
    for_blocks(slots_, [&](const Slot& slot, int64_t begin, int64_t n) {
      float* p = slot.variable.value().data<float>() + begin;
      const float* g = gradient(slot) + begin;
      float* m = slot.first.data<float>() + begin;
      const float shrink =
          slot.decays ? static_cast<float>(1.0 - lr * options_.weight_decay) : 1.0f;
      const auto f = static_cast<float>(factor), rate = static_cast<float>(lr);
      if (lion)
        FOVEA_SIMD_CALL(lion_update, p, g, m, n, f, rate, static_cast<float>(options_.beta1),
                        static_cast<float>(options_.beta2), shrink);
      else
        FOVEA_SIMD_CALL(sgd_update, p, g, m, n, f, rate, static_cast<float>(options_.momentum),
                        options_.nesterov, shrink);
    });
  }
  OptimizerOptions options_;
  std::vector<Slot> slots_;
};

// Muon (Jordan et al. 2024): momentum, made nearly orthogonal by a quintic Newton-Schulz iteration.
// For hidden matrices; embeddings, heads and vectors take AdamW with adam_lr under the same
// schedule.
class Muon final : public Optimizer {
 public:
  Muon(const OptimizerOptions& options, const Parameters& parameters) : options_(options) {
    Parameters matrices, rest;
    for (const nn::NamedParameter& p : parameters) {
      (p.variable.value().rank() == 2 && !is_embedding(p.name) && !is_head(p.name) ? matrices
                                                                                   : rest)
          .push_back(p);
    }
    matrices_ = make_slots(matrices, options, false);
    rest_ = make_slots(rest, options, true);
  }
  NamedTensors state() const override {
    NamedTensors out;
    append_state(out, matrices_, "m", "");
    append_state(out, rest_, "m", "v");
    return out;
  }

 private:
  void update(double lr, double factor) override {
    adamw(rest_, options_, steps(), options_.adam_lr * lr / options_.lr, factor);
    for (const Slot& slot : matrices_) {
      if (!slot.variable.grad().defined()) continue;
      const Tensor& p = slot.variable.value();
      scale_(slot.first, options_.momentum);
      axpy_(slot.first, factor, slot.variable.grad());
      Tensor direction = scale(slot.first, options_.momentum);  // Nesterov
      axpy_(direction, factor, slot.variable.grad());
      const double aspect =
          std::sqrt(std::max(1.0, static_cast<double>(p.dim(0)) / static_cast<double>(p.dim(1))));
      scale_(p, 1.0 - lr * options_.weight_decay);
      axpy_(p, -lr * aspect, orthogonalised(direction));
    }
  }
  // X <- a X + (b A + c A A) X with A = X X^T, from X / |X|, over the shorter side.
  Tensor orthogonalised(const Tensor& g) const {
    constexpr double a = 3.4445, b = -4.7750, c = 2.0315;
    const bool tall = g.dim(0) > g.dim(1);
    const double norm = std::sqrt(FOVEA_SIMD_CALL(sum_of_squares, g.data<float>(), g.numel()));
    Tensor x = scale(tall ? g.transpose(0, 1).contiguous() : g, 1.0 / (norm + 1e-7));
    for (int64_t i = 0; i < options_.newton_schulz; ++i) {
      const Tensor gram = matmul(x, x.transpose(0, 1));
      const Tensor polynomial = scale(gram, b);
      axpy_(polynomial, c, matmul(gram, gram));
      const Tensor next = matmul(polynomial, x);
      axpy_(next, a, x);
      x = next;
    }
    return tall ? x.transpose(0, 1) : x;
  }
  OptimizerOptions options_;
  std::vector<Slot> matrices_, rest_;
};

}  // namespace

std::unique_ptr<Optimizer> make_optimizer(const OptimizerOptions& options,
                                          const Parameters& parameters) {
  std::map<const void*, std::string> names;
  for (const nn::NamedParameter& p : parameters) {
    const auto [other, is_new] = names.emplace(p.variable.state(), p.name);
    FOVEA_CHECK(is_new, "optimizer: ", other->second, " and ", p.name,
                " are one parameter, which would move twice a step; list it once");
  }
  if (options.kind == "adamw") return std::make_unique<Adamw>(options, parameters);
  if (options.kind == "muon") return std::make_unique<Muon>(options, parameters);
  FOVEA_CHECK(options.kind == "sgd" || options.kind == "lion", "optimizer: unknown kind ",
              options.kind);
  return std::make_unique<OneMoment>(options, parameters);
}

double global_norm(const Parameters& parameters) {
  std::vector<Tensor> keep;
  std::vector<std::pair<const float*, int64_t>> pieces;
  for (const nn::NamedParameter& p : parameters) {
    if (!p.variable.grad().defined()) continue;
    keep.push_back(p.variable.grad().contiguous());
    const int64_t n = keep.back().numel();
    for (int64_t begin = 0; begin < n; begin += kBlock)
      pieces.emplace_back(keep.back().data<float>() + begin, std::min(kBlock, n - begin));
  }
  std::vector<double> sums(pieces.size());
  parallel_for(0, static_cast<int64_t>(pieces.size()), 4, [&](int64_t from, int64_t to) {
    for (auto i = static_cast<size_t>(from); i < static_cast<size_t>(to); ++i)
      sums[i] = FOVEA_SIMD_CALL(sum_of_squares, pieces[i].first, pieces[i].second);
  });
  double total = 0.0;
  for (const double sum : sums) total += sum;
  return std::sqrt(total);
}

std::optional<std::string> first_nonfinite(const Parameters& parameters) {
  for (const bool gradients : {true, false}) {
    for (const nn::NamedParameter& p : parameters) {
      const Tensor& t = gradients ? p.variable.grad() : p.variable.value();
      if (!t.defined()) continue;
      const std::vector<float> values = t.to_vector<float>();
      for (size_t i = 0; i < values.size(); ++i) {
        if (!std::isfinite(values[i]))
          return concat(gradients ? "gradient of " : "value of ", p.name, ' ', t.shape(),
                        ", element ", i, ": ", values[i]);
      }
    }
  }
  return std::nullopt;
}

// ---- EMA ----------------------------------------------------------------------------------------

Ema::Ema(const Parameters& parameters, double decay) : parameters_(parameters), decay_(decay) {
  for (const nn::NamedParameter& p : parameters)
    averages_.emplace_back(p.name, p.variable.value().clone());
}

void Ema::update() {
  FOVEA_CHECK(!swapped_,
              "ema: update while the averages stand in the parameters; end the Swap first");
  const auto rest = static_cast<float>(1.0 - decay_);
  for (size_t i = 0; i < parameters_.size(); ++i) {
    float* average = averages_[i].second.data<float>();
    const float* value = parameters_[i].variable.value().data<float>();
    parallel_for(0, averages_[i].second.numel(), kBlock, [&](int64_t begin, int64_t end) {
      FOVEA_SIMD_CALL(ema_update, average + begin, value + begin, end - begin, rest);
    });
  }
}

Ema::Swap::Swap(Ema& ema) : ema_(ema) {
  FOVEA_CHECK(!ema.swapped_,
              "ema: the averages stand in the parameters already; end the other Swap first");
  ema_.exchange();
}

void Ema::exchange() {
  swapped_ = !swapped_;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    float* average = averages_[i].second.data<float>();
    std::swap_ranges(average, average + averages_[i].second.numel(),
                     parameters_[i].variable.value().data<float>());
  }
}

}  // namespace fovea::train
