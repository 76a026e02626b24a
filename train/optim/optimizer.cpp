// SPDX-License-Identifier: Apache-2.0
#include "train/optim/optimizer.h"

#include <algorithm>
#include <cmath>
#include <functional>
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

Device device_of(const Parameters& parameters) {
  return parameters.empty() ? kCpu : parameters.front().variable.value().device();
}
bool on_gpu(const std::vector<Slot>& slots) {
  return !slots.empty() && !slots.front().first.device().is_cpu();
}

std::vector<Slot> make_slots(const Parameters& parameters, const OptimizerOptions& options,
                             bool second) {
  std::vector<Slot> slots;
  for (const nn::NamedParameter& p : parameters) {
    const Tensor& value = p.variable.value();
    FOVEA_CHECK(value.device() == device_of(parameters), "optimizer: ", p.name, " is on ",
                value.device(), " but ", parameters.front().name, " on ", device_of(parameters));
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

// ---- on a GPU device ----------------------------------------------------------------------------

std::vector<DeviceRow> device_rows(const std::vector<Slot>& slots) {
  std::vector<DeviceRow> rows;
  for (const Slot& slot : slots)
    if (slot.variable.grad().defined())
      rows.push_back(
          {slot.variable.value(), slot.variable.grad(), slot.first, slot.second, slot.decays});
  return rows;
}

// The gradients alone, contiguous.
std::vector<DeviceRow> gradient_rows(const Parameters& parameters) {
  std::vector<DeviceRow> rows;
  for (const nn::NamedParameter& p : parameters)
    if (p.variable.grad().defined()) rows.push_back({{}, p.variable.grad().contiguous(), {}, {}});
  return rows;
}

GradientFactor on_device(const Clip& clip) {
  GradientFactor factor;
  factor.value = static_cast<float>(clip.factor);
  factor.norm = clip.norm.defined() ? clip.norm.data<float>() : nullptr;
  factor.most = static_cast<float>(clip.most);
  return factor;
}

// ---- rules --------------------------------------------------------------------------------------

double on_host(const Clip& clip) {
  if (!clip.norm.defined()) return clip.factor;
  const double norm = clip.norm.item();
  return norm > clip.most ? clip.most / norm : 1.0;
}

AdamwStep adamw_step(const OptimizerOptions& o, int64_t t, double lr) {
  AdamwStep s{};
  s.beta1 = static_cast<float>(o.beta1);
  s.beta2 = static_cast<float>(o.beta2);
  s.step_size = static_cast<float>(lr / (1.0 - std::pow(o.beta1, static_cast<double>(t))));
  s.root_scale =
      static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(o.beta2, static_cast<double>(t))));
  s.eps = static_cast<float>(o.eps);
  s.shrink = static_cast<float>(1.0 - lr * o.weight_decay);
  return s;
}

void adamw(const std::vector<Slot>& slots, const std::function<AdamwStep()>& step, const Clip& clip,
           DeviceTable& table) {
  make_gradients_contiguous(slots);
  if (on_gpu(slots)) {
    const Device device = slots.front().first.device();
    const Tensor there = made_on_host<AdamwStep>(device, step);
    FOVEA_GPU_CALL(device, adamw_step, table(device_rows(slots)), on_device(clip),
                   struct_in<AdamwStep>(there), stream_of(device));
    return;
  }
  AdamwStep s = step();
  s.factor = static_cast<float>(on_host(clip));
  for_blocks(slots, [&](const Slot& slot, int64_t begin, int64_t n) {
    AdamwStep mine = s;
    if (!slot.decays) mine.shrink = 1.0f;
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
  void update(const Clip& clip) override {
    adamw(
        slots_, [this] { return adamw_step(options_, steps(), lr()); }, clip, table_);
  }

 private:
  OptimizerOptions options_;
  std::vector<Slot> slots_;
  DeviceTable table_;
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
  void update(const Clip& clip) override {
    make_gradients_contiguous(slots_);
    const bool lion = options_.kind == "lion";
    if (on_gpu(slots_)) return lion ? lion_on_device(clip) : sgd_on_device(clip);
    const double factor = on_host(clip);
    for_blocks(slots_, [&](const Slot& slot, int64_t begin, int64_t n) {
      float* p = slot.variable.value().data<float>() + begin;
      const float* g = gradient(slot) + begin;
      float* m = slot.first.data<float>() + begin;
      const float kept = slot.decays ? shrink() : 1.0f;
      const auto f = static_cast<float>(factor), rate = static_cast<float>(lr());
      if (lion)
        FOVEA_SIMD_CALL(lion_update, p, g, m, n, f, rate, static_cast<float>(options_.beta1),
                        static_cast<float>(options_.beta2), kept);
      else
        FOVEA_SIMD_CALL(sgd_update, p, g, m, n, f, rate, static_cast<float>(options_.momentum),
                        options_.nesterov, kept);
    });
  }

 private:
  float shrink() const { return static_cast<float>(1.0 - lr() * options_.weight_decay); }
  void sgd_on_device(const Clip& clip) {
    const Device device = slots_.front().first.device();
    const Tensor there = made_on_host<SgdStep>(device, [this] {
      return SgdStep{static_cast<float>(lr()), static_cast<float>(options_.momentum),
                     options_.nesterov, shrink()};
    });
    FOVEA_GPU_CALL(device, sgd_step, table_(device_rows(slots_)), on_device(clip),
                   struct_in<SgdStep>(there), stream_of(device));
  }
  void lion_on_device(const Clip& clip) {
    const Device device = slots_.front().first.device();
    const Tensor there = made_on_host<LionStep>(device, [this] {
      return LionStep{static_cast<float>(lr()), static_cast<float>(options_.beta1),
                      static_cast<float>(options_.beta2), shrink()};
    });
    FOVEA_GPU_CALL(device, lion_step, table_(device_rows(slots_)), on_device(clip),
                   struct_in<LionStep>(there), stream_of(device));
  }
  OptimizerOptions options_;
  std::vector<Slot> slots_;
  DeviceTable table_;
};

// Muon (Jordan et al. 2024): momentum, made nearly orthogonal by a quintic Newton-Schulz iteration.
// For hidden matrices; embeddings, heads and vectors take AdamW with adam_lr under the same
// schedule.
class Muon final : public Optimizer {
 public:
  Muon(const OptimizerOptions& options, const Parameters& parameters) : options_(options) {
    Parameters matrices, rest;
    for (const nn::NamedParameter& p : parameters)
      (whole_cost(options, p.name, p.variable.shape()) > 0 ? matrices : rest).push_back(p);
    matrices_ = make_slots(matrices, options, false);
    rest_ = make_slots(rest, options, true);
  }
  NamedTensors state() const override {
    NamedTensors out;
    append_state(out, matrices_, "m", "");
    append_state(out, rest_, "m", "v");
    return out;
  }
  void update(const Clip& clip) override {
    adamw(
        rest_,
        [this] { return adamw_step(options_, steps(), options_.adam_lr * lr() / options_.lr); },
        clip, rest_table_);
    const std::vector<Tensor> directions = nesterov(clip);
    std::vector<DeviceRow> moves;
    size_t next = 0;
    for (const Slot& slot : matrices_) {
      if (!slot.variable.grad().defined()) continue;
      const Tensor& p = slot.variable.value();
      const Tensor direction = orthogonalised(directions[next++]);
      const double aspect =
          std::sqrt(std::max(1.0, static_cast<double>(p.dim(0)) / static_cast<double>(p.dim(1))));
      if (on_gpu(matrices_)) {
        moves.push_back(
            {p, (aspect == 1.0 ? direction : scale(direction, aspect)).contiguous(), {}, {}});
        continue;
      }
      scale_(p, 1.0 - lr() * options_.weight_decay);
      axpy_(p, -lr() * aspect, direction);
    }
    if (!moves.empty()) move_on_device(moves);
  }

 private:
  void move_on_device(const std::vector<DeviceRow>& moves) {
    const Device device = matrices_.front().first.device();
    const Tensor there = made_on_host<MuonStep>(device, [this] {
      return MuonStep{static_cast<float>(lr()),
                      static_cast<float>(1.0 - lr() * options_.weight_decay)};
    });
    FOVEA_GPU_CALL(device, muon_step, moves_table_(moves), struct_in<MuonStep>(there),
                   stream_of(device));
  }
  // Of each matrix with a gradient: m <- mu m + g, and mu m + g.
  std::vector<Tensor> nesterov(const Clip& clip) {
    make_gradients_contiguous(matrices_);
    std::vector<Tensor> directions;
    if (on_gpu(matrices_)) {
      std::vector<DeviceRow> rows = device_rows(matrices_);
      for (DeviceRow& row : rows) directions.push_back(row.p = Tensor::empty_like(row.p));
      const Device device = matrices_.front().first.device();
      FOVEA_GPU_CALL(device, momentum_step, table_(rows), on_device(clip),
                     static_cast<float>(options_.momentum), stream_of(device));
      return directions;
    }
    const double factor = on_host(clip);
    for (const Slot& slot : matrices_) {
      if (!slot.variable.grad().defined()) continue;
      scale_(slot.first, options_.momentum);
      axpy_(slot.first, factor, slot.variable.grad());
      directions.push_back(scale(slot.first, options_.momentum));
      axpy_(directions.back(), factor, slot.variable.grad());
    }
    return directions;
  }
  // x / |x|
  static Tensor normalised(const Tensor& x) {
    if (x.device().is_cpu()) {
      const double norm = std::sqrt(FOVEA_SIMD_CALL(sum_of_squares, x.data<float>(), x.numel()));
      return scale(x, 1.0 / (norm + 1e-7));
    }
    const Tensor out = Tensor::empty_like(x);
    DeviceTable one;
    const UpdateTable table = one({{out, x, {}, {}}});
    const Tensor norm = norm_on_device(table, x.device());
    FOVEA_GPU_CALL(x.device(), scale_step, table, on_device({.norm = norm}), stream_of(x.device()));
    return out;
  }
  // X <- a X + (b A + c A A) X with A = X X^T, from X / |X|, over the shorter side.
  Tensor orthogonalised(const Tensor& g) const {
    constexpr double a = 3.4445, b = -4.7750, c = 2.0315;
    const bool tall = g.dim(0) > g.dim(1);
    Tensor x = normalised(g);
    if (tall) x = x.transpose(0, 1).contiguous();
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
  DeviceTable table_, rest_table_, moves_table_;
};

}  // namespace

// An iteration on [s, l], s <= l: X X^T and its polynomial times X, 2 s s l each, and A A, 2 s s s.
int64_t whole_cost(const OptimizerOptions& options, const std::string& name, const Shape& shape) {
  if (options.kind != "muon" || shape.rank() != 2 || is_embedding(name) || is_head(name)) return 0;
  const int64_t s = std::min(shape[0], shape[1]), l = std::max(shape[0], shape[1]);
  return options.newton_schulz * (4 * s * s * l + 2 * s * s * s);
}

std::unique_ptr<Optimizer> make_optimizer(const OptimizerOptions& options,
                                          const Parameters& parameters) {
  const MemoryLabel label("optimizer state");
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

Tensor gradient_norm(const Parameters& parameters) {
  const Device device = device_of(parameters);
  if (device.is_cpu()) return Tensor::full({1}, global_norm(parameters));
  DeviceTable table;
  return norm_on_device(table(gradient_rows(parameters)), device);
}

double global_norm(const Parameters& parameters) {
  if (!device_of(parameters).is_cpu()) return gradient_norm(parameters).item();
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
  const MemoryLabel label("averaged weights");
  for (const nn::NamedParameter& p : parameters)
    averages_.emplace_back(p.name, p.variable.value().clone());
}

void Ema::update() {
  FOVEA_CHECK(!swapped_,
              "ema: update while the averages stand in the parameters; end the Swap first");
  const auto rest = static_cast<float>(1.0 - decay_);
  if (const Device device = device_of(parameters_); !device.is_cpu()) {
    std::vector<DeviceRow> rows;
    for (size_t i = 0; i < parameters_.size(); ++i)
      rows.push_back({averages_[i].second, parameters_[i].variable.value(), {}, {}});
    FOVEA_GPU_CALL(device, ema_step, table_(rows), rest, stream_of(device));
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
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const Tensor average = averages_[i].second.clone();
    averages_[i].second.copy_(parameters_[i].variable.value());
    parameters_[i].variable.value().copy_(average);
  }
}

}  // namespace fovea::train
