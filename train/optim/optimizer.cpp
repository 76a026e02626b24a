// SPDX-License-Identifier: Apache-2.0
#include "train/optim/optimizer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <span>

#include "core/ops/elementwise.h"
#include "core/ops/matmul.h"
#include "core/parallel.h"
#include "train/optim/cpu/kernels.h"
#include "train/optim/cuda/kernels.h"

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

// ---- on a GPU device: one launch over all pieces ------------------------------------------------

// The table of pieces on the device; sent again only when an address or a number has changed.
class PieceTable {
 public:
  // Adds `count` elements in pieces; pointers that are null stay so.
  void add(float* value, const float* gradient, float* first, float* second, int64_t count,
           float shrink) {
    const auto at = [](auto* p, int64_t i) { return p == nullptr ? nullptr : p + i; };
    for (int64_t begin = 0; begin < count; begin += kOptimizerPiece) {
      OptimizerPiece piece{};  // with its padding, which is compared too
      piece.value = at(value, begin);
      piece.gradient = at(gradient, begin);
      piece.first = at(first, begin);
      piece.second = at(second, begin);
      piece.count = std::min(kOptimizerPiece, count - begin);
      piece.shrink = shrink;
      next_.push_back(piece);
    }
  }
  // What was added since the last call, on the device.
  const OptimizerPiece* send(Device device) {
    const auto bytes = next_.size() * sizeof(OptimizerPiece);
    if (next_.size() != now_.size() || std::memcmp(next_.data(), now_.data(), bytes) != 0) {
      const auto* begin = reinterpret_cast<const uint8_t*>(next_.data());
      table_ = Tensor::from(std::span<const uint8_t>(begin, bytes), {static_cast<int64_t>(bytes)},
                            device);
    }
    now_.swap(next_);
    next_.clear();
    return reinterpret_cast<const OptimizerPiece*>(table_.raw());
  }
  int64_t count() const { return static_cast<int64_t>(now_.size()); }

 private:
  std::vector<OptimizerPiece> next_, now_;
  Tensor table_;
};

float* floats(const Tensor& t) { return t.defined() ? t.data<float>() : nullptr; }

// All slots that have a gradient.
const OptimizerPiece* send_slots(PieceTable& table, const std::vector<Slot>& slots, float shrink,
                                 Device device) {
  for (const Slot& slot : slots) {
    const Tensor& gradient = slot.variable.grad();
    if (!gradient.defined()) continue;
    table.add(floats(slot.variable.value()), floats(gradient), floats(slot.first),
              floats(slot.second), gradient.numel(), slot.decays ? shrink : 1.0f);
  }
  return table.send(device);
}

Device device_of(const std::vector<Slot>& slots) {
  return slots.empty() ? kCpu : slots[0].variable.value().device();
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

void adamw(const std::vector<Slot>& slots, PieceTable& table, const OptimizerOptions& o, int64_t t,
           double lr, double factor) {
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
  if (const Device device = device_of(slots); !device.is_cpu()) {
    const OptimizerPiece* pieces = send_slots(table, slots, shrink, device);
    FOVEA_GPU_CALL(device, adamw_pieces, pieces, table.count(), s, stream_of(device));
    return;
  }
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
  void update(double lr, double factor) override {
    adamw(slots_, table_, options_, steps(), lr, factor);
  }
  OptimizerOptions options_;
  std::vector<Slot> slots_;
  PieceTable table_;
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
    if (const Device device = device_of(slots_); !device.is_cpu()) {
      MomentumStep step{};
      step.factor = static_cast<float>(factor);
      step.lr = static_cast<float>(lr);
      step.beta1 = static_cast<float>(lion ? options_.beta1 : options_.momentum);
      step.beta2 = static_cast<float>(options_.beta2);
      step.nesterov = options_.nesterov;
      const OptimizerPiece* pieces =
          send_slots(table_, slots_, static_cast<float>(1.0 - lr * options_.weight_decay), device);
      if (lion)
        FOVEA_GPU_CALL(device, lion_pieces, pieces, table_.count(), step, stream_of(device));
      else
        FOVEA_GPU_CALL(device, sgd_pieces, pieces, table_.count(), step, stream_of(device));
      return;
    }
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
  PieceTable table_;
};

// Root of the sum of squares of contiguous f32 tensors on one device.
double norm_of(const std::vector<Tensor>& tensors) {
  if (tensors.empty()) return 0.0;
  if (const Device device = tensors[0].device(); !device.is_cpu()) {
    PieceTable table;
    for (const Tensor& t : tensors)
      table.add(nullptr, floats(t), nullptr, nullptr, t.numel(), 1.0f);
    const OptimizerPiece* pieces = table.send(device);
    const Tensor partial = Tensor::empty({std::max<int64_t>(1, table.count())}, Dtype::i64, device),
                 total = Tensor::empty({}, Dtype::f32, device);
    FOVEA_GPU_CALL(device, norm_of_pieces, floats(total), partial.raw(), pieces, table.count(),
                   stream_of(device));
    return total.item();
  }
  std::vector<std::pair<const float*, int64_t>> pieces;
  for (const Tensor& t : tensors) {
    const int64_t n = t.numel();
    for (int64_t begin = 0; begin < n; begin += kBlock)
      pieces.emplace_back(t.data<float>() + begin, std::min(kBlock, n - begin));
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
    adamw(rest_, table_, options_, steps(), options_.adam_lr * lr / options_.lr, factor);
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
    const double norm = norm_of({g});
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
  PieceTable table_;
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
  std::vector<Tensor> gradients;
  for (const nn::NamedParameter& p : parameters) {
    if (p.variable.grad().defined()) gradients.push_back(p.variable.grad().contiguous());
  }
  return norm_of(gradients);
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

namespace {

Device device_of(const NamedTensors& tensors) {
  return tensors.empty() ? kCpu : tensors[0].second.device();
}

const OptimizerPiece* send_averages(PieceTable& table, const NamedTensors& averages,
                                    const Parameters& parameters, Device device) {
  for (size_t i = 0; i < parameters.size(); ++i)
    table.add(floats(parameters[i].variable.value()), nullptr, floats(averages[i].second), nullptr,
              averages[i].second.numel(), 1.0f);
  return table.send(device);
}

}  // namespace

Ema::Ema(const Parameters& parameters, double decay) : parameters_(parameters), decay_(decay) {
  for (const nn::NamedParameter& p : parameters)
    averages_.emplace_back(p.name, p.variable.value().clone());
}

void Ema::update() {
  FOVEA_CHECK(!swapped_,
              "ema: update while the averages stand in the parameters; end the Swap first");
  const auto rest = static_cast<float>(1.0 - decay_);
  if (const Device device = device_of(averages_); !device.is_cpu()) {
    PieceTable table;
    const OptimizerPiece* pieces = send_averages(table, averages_, parameters_, device);
    FOVEA_GPU_CALL(device, ema_pieces, pieces, table.count(), rest, stream_of(device));
    return;
  }
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
  if (const Device device = device_of(averages_); !device.is_cpu()) {
    PieceTable table;
    const OptimizerPiece* pieces = send_averages(table, averages_, parameters_, device);
    FOVEA_GPU_CALL(device, swap_pieces, pieces, table.count(), stream_of(device));
    return;
  }
  for (size_t i = 0; i < parameters_.size(); ++i) {
    float* average = averages_[i].second.data<float>();
    std::swap_ranges(average, average + averages_[i].second.numel(),
                     parameters_[i].variable.value().data<float>());
  }
}

}  // namespace fovea::train
