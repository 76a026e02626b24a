// SPDX-License-Identifier: Apache-2.0
#include "nn/loss.h"

#include <cmath>
#include <cstring>

#include "autograd/ops.h"
#include "core/cuda/device.h"
#include "core/graph.h"
#include "core/ops/elementwise.h"
#include "core/parallel.h"
#include "nn/cpu/kernels.h"
#include "nn/cuda/loss.h"
#include "nn/operands.h"

namespace fovea::nn {
namespace {

void* row_of(const Tensor& rows, int64_t r) {
  return static_cast<char*>(rows.raw()) + r * rows.dim(1) * size_of(rows.dtype());
}

double log_sum_exp_f64(const double* l, int64_t count, double& total) {
  double largest = -INFINITY, mass = 0.0;
  total = 0.0;
  for (int64_t j = 0; j < count; ++j) {
    largest = std::max(largest, l[j]);
    total += l[j];
  }
  for (int64_t j = 0; j < count; ++j) mass += std::exp(l[j] - largest);
  return largest + std::log(mass);
}

double element(const Tensor& rows, int64_t r, int64_t j) {
  const int64_t at = r * rows.dim(1) + j;
  switch (rows.dtype()) {
    case Dtype::f64:
      return rows.data<double>()[at];
    case Dtype::bf16:
      return static_cast<double>(rows.data<bf16>()[at]);
    default:
      return static_cast<double>(rows.data<float>()[at]);
  }
}

void set_element(const Tensor& rows, int64_t r, int64_t j, double value) {
  const int64_t at = r * rows.dim(1) + j;
  switch (rows.dtype()) {
    case Dtype::f64:
      rows.data<double>()[at] = value;
      return;
    case Dtype::bf16:
      rows.data<bf16>()[at] = bf16(static_cast<float>(value));
      return;
    default:
      rows.data<float>()[at] = static_cast<float>(value);
  }
}

// How many of labels [R] are scored. Throws for one that is no class.
int64_t count_scored(const int64_t* labels, int64_t rows, int64_t classes, int64_t ignore) {
  int64_t scored = 0;
  for (int64_t r = 0; r < rows; ++r) {
    FOVEA_CHECK(labels[r] == ignore || (labels[r] >= 0 && labels[r] < classes),
                "cross_entropy: row ", r, " has label ", labels[r], ", outside the ", classes,
                " classes");
    scored += labels[r] != ignore;
  }
  return scored;
}

// Forward computes the gradient too, where one is wanted.
class CrossEntropyFn final : public Function {
 public:
  // targets: i64 [R], or f32 [R, V] when soft. overwrite: nobody else sees the logits. divergence:
  // less the entropy of soft targets, on GPU devices.
  CrossEntropyFn(const Tensor& targets, const CrossEntropyOptions& options, bool soft,
                 bool overwrite, bool divergence = false)
      : targets_(soft ? targets : targets.to(kCpu)),
        options_(options),
        soft_(soft),
        overwrite_(overwrite),
        divergence_(divergence) {}
  const char* name() const override { return "cross_entropy"; }

  Tensor forward(const Tensor& logits) {
    check_operands(name(), logits, {{"the gradient of the loss", options_.dloss}});
    shape_ = logits.shape();
    const int64_t v = logits.dim(-1);
    const Tensor rows = logits.reshape({-1, v}).contiguous();
    const int64_t count = rows.dim(0);
    FOVEA_CHECK(targets_.numel() == (soft_ ? count * v : count), "cross_entropy: logits are ",
                logits.shape(), " but targets are ", targets_.shape());
    if (soft_) targets_ = targets_.to(logits.device());
    Tensor d;
    if (any_wanted()) d = overwrite_ ? rows : Tensor::empty_like(rows);
    const Tensor loss = rows.device().is_cpu() ? forward_cpu(rows, d) : forward_gpu(rows, d);
    save(d);
    targets_ = Tensor();
    return loss;
  }

  Tensors backward(const Tensors& dout) override {
    const auto [d] = saved<1>();
    const Tensor& assumed = options_.dloss;
    if (d.device().is_cpu()) {
      const double was = assumed.defined() ? assumed.item() : 1.0, is = dout[0].item();
      if (is != was) scale_(d, is / was);
    } else {
      FOVEA_GPU_CALL(d.device(), scale_gradient, d.raw(), d.dtype(), d.numel(),
                     dout[0].data<float>(), assumed.defined() ? assumed.data<float>() : nullptr,
                     stream_of(d.device()));
    }
    return {d.view(shape_)};
  }

 private:
  Tensor forward_cpu(const Tensor& rows, const Tensor& d) const {
    const int64_t count = rows.dim(0), v = rows.dim(1);
    const int64_t scored =
        soft_ ? count : count_scored(targets_.data<int64_t>(), count, v, options_.ignore_index);
    const Tensor loss = Tensor::zeros({count}, Dtype::f64);
    const double dloss = options_.dloss.defined() ? options_.dloss.item() : 1.0,
                 g = scored > 0 ? dloss / static_cast<double>(scored) : 0.0;
    const bool stream = d.defined() && d.raw() != rows.raw() && d.bytes() > kCacheBytes;
    parallel_for(0, count, std::max<int64_t>(1, 8192 / std::max<int64_t>(1, v)),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t r = begin; r < end; ++r) {
                     if (!soft_ && targets_.data<int64_t>()[r] == options_.ignore_index) {
                       if (d.defined())
                         std::memset(row_of(d, r), 0, static_cast<size_t>(v * size_of(d.dtype())));
                       continue;
                     }
                     const Row row = loss_of(rows, r);
                     loss.data<double>()[r] = row.loss;
                     if (d.defined()) gradient_of(d, rows, r, row, g, stream);
                   }
                 });
    double mean = 0.0;
    for (int64_t r = 0; r < count; ++r) mean += loss.data<double>()[r];
    return Tensor::full({}, scored > 0 ? mean / static_cast<double>(scored) : 0.0,
                        rows.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32);
  }

  struct Row {
    double loss, lse, mass;  // mass: sum of the targets
  };
  Row loss_of(const Tensor& rows, int64_t r) const {
    const int64_t v = rows.dim(1);
    const double e = options_.label_smoothing;
    double total = 0.0, z = 0.0;
    if (rows.dtype() == Dtype::f64) {
      z = log_sum_exp_f64(rows.data<double>() + r * v, v, total);
    } else {
      float sum = 0.0f;
      z = static_cast<double>(FOVEA_SIMD_CALL(row_log_sum_exp, row_of(rows, r), rows.dtype(), v,
                                              e > 0.0 ? &sum : nullptr));
      total = static_cast<double>(sum);
    }
    double hit = 0.0, mass = 1.0;
    if (soft_) {
      mass = 0.0;
      const float* t = targets_.data<float>() + r * v;
      for (int64_t j = 0; j < v; ++j) {
        mass += static_cast<double>(t[j]);
        hit += static_cast<double>(t[j]) * element(rows, r, j);
      }
    } else {
      hit = element(rows, r, targets_.data<int64_t>()[r]);
    }
    return {(1.0 - e) * (z * mass - hit) +
                (e > 0.0 ? e * (z - total / static_cast<double>(v)) : 0.0) +
                options_.z_loss * z * z,
            z, mass};
  }

  // dl_j = g (p_j (mass (1 - e) + e + 2 z_loss lse) - e / V - (1 - e) t_j); d may be the logits,
  // where targets are labels.
  void gradient_of(const Tensor& d, const Tensor& rows, int64_t r, const Row& row, double g,
                   bool stream) const {
    const int64_t v = rows.dim(1);
    const double e = options_.label_smoothing,
                 scale = g * ((1.0 - e) * row.mass + e + 2.0 * options_.z_loss * row.lse),
                 shift = -g * e / static_cast<double>(v);
    const auto value = [&](int64_t j, double t) {
      return scale * std::exp(element(rows, r, j) - row.lse) + shift - g * (1.0 - e) * t;
    };
    const int64_t label = soft_ ? 0 : targets_.data<int64_t>()[r];
    const double at_label = soft_ ? 0.0 : value(label, 1.0);
    if (rows.dtype() == Dtype::f64) {
      for (int64_t j = 0; j < v; ++j) set_element(d, r, j, value(j, 0.0));
    } else {
      FOVEA_SIMD_CALL(row_softmax_gradient, row_of(d, r), row_of(rows, r), rows.dtype(), v,
                      static_cast<float>(row.lse), static_cast<float>(scale),
                      static_cast<float>(shift), stream);
    }
    if (!soft_) return set_element(d, r, label, at_label);
    const float* t = targets_.data<float>() + r * v;
    for (int64_t j = 0; j < v; ++j) {
      if (t[j] != 0.0f) set_element(d, r, j, value(j, static_cast<double>(t[j])));
    }
  }

  Tensor forward_gpu(const Tensor& rows, const Tensor& d) {
    const Device device = rows.device();
    bring_targets(rows.dim(0), rows.dim(1), device);
    const Tensor loss = Tensor::empty({}, Dtype::f32, device),
                 row_loss = Tensor::empty({rows.dim(0)}, Dtype::f32, device);
    [[maybe_unused]] const CrossEntropyCall call{
        rows.raw(),
        rows.dtype(),
        soft_ ? nullptr : targets_.data<int64_t>(),
        soft_ ? targets_.data<float>() : nullptr,
        rows.dim(0),
        rows.dim(1),
        options_.ignore_index,
        static_cast<float>(options_.label_smoothing),
        static_cast<float>(options_.z_loss),
        divergence_,
        scored_there_.data<float>(),
        d.raw(),
        options_.dloss.defined() ? options_.dloss.data<float>() : nullptr,
        known_device(device).shared_bytes};
    FOVEA_GPU_CALL(device, cross_entropy, loss.data<float>(), row_loss.data<float>(), call,
                   stream_of(device));
    return loss;
  }
  // Labels go to the device with the number of those that are scored behind them.
  void bring_targets(int64_t rows, int64_t classes, Device device) {
    if (soft_) {
      scored_there_ = Tensor::full({1}, static_cast<double>(rows), Dtype::f32, device);
      return;
    }
    const int64_t bytes = targets_.bytes();
    const auto fill = [labels = targets_, rows, classes, ignore = options_.ignore_index,
                       bytes](void* to) {
      const auto scored =
          static_cast<float>(count_scored(labels.data<int64_t>(), rows, classes, ignore));
      std::memcpy(to, labels.raw(), static_cast<size_t>(bytes));
      std::memcpy(static_cast<char*>(to) + bytes, &scored, sizeof scored);
    };
    const Tensor both =
        host_input({bytes + static_cast<int64_t>(sizeof(float))}, Dtype::u8, device, fill);
    targets_ = both.slice(0, 0, bytes).as(Dtype::i64);
    scored_there_ = both.slice(0, bytes, both.numel()).as(Dtype::f32);
  }

  Tensor targets_;
  CrossEntropyOptions options_;
  bool soft_, overwrite_, divergence_;
  Shape shape_;
  Tensor scored_there_;  // [1] f32 on a GPU device
};

// Means over elements, on GPU devices.
class PointLossFn final : public Function {
 public:
  PointLossFn(const char* name, const Tensor& target, PointLoss kind)
      : name_(name), target_(target), kind_(kind) {}
  const char* name() const override { return name_; }

  Tensor forward(const Tensor& x_in) {
    check_operands(name(), x_in);
    check_same_shape(name(), "the input", x_in, "the target", target_);
    FOVEA_CHECK(x_in.numel() > 0, name(), ": the input ", x_in.shape(), " is empty");
    const Tensor x = x_in.contiguous();
    const Device device = x.device();
    target_ = target_.to(Dtype::f32).to(device).contiguous();
    const Tensor loss = Tensor::empty({}, Dtype::f32, device),
                 partial = Tensor::empty({point_loss_parts(x.numel())}, Dtype::f32, device);
    FOVEA_GPU_CALL(device, point_loss_forward, loss.data<float>(), partial.data<float>(), x.raw(),
                   x.dtype(), target_.data<float>(), x.numel(), kind_, stream_of(device));
    save(x);
    return loss;
  }
  Tensors backward(const Tensors& dout) override {
    const auto [x] = saved<1>();
    const Tensor dx = Tensor::empty_like(x);
    FOVEA_GPU_CALL(x.device(), point_loss_backward, dx.raw(), dout[0].data<float>(), x.raw(),
                   x.dtype(), target_.data<float>(), x.numel(), kind_, stream_of(x.device()));
    return {dx};
  }

 private:
  const char* name_;
  Tensor target_;
  PointLoss kind_;
};

void check_probabilities(const char* op, const std::vector<double>& targets) {
  for (size_t i = 0; i < targets.size(); ++i) {
    FOVEA_CHECK(targets[i] >= 0.0 && targets[i] <= 1.0, op, ": target ", i, " is ", targets[i],
                "; expected a probability");
  }
}

class BceFn final : public Function {
 public:
  explicit BceFn(const Tensor& targets) : targets_(targets) {}
  const char* name() const override { return "bce_with_logits"; }

  Tensor forward(const Tensor& logits) {
    check_same_shape(name(), "logits", logits, "targets", targets_);
    FOVEA_CHECK(logits.numel() > 0, name(), ": logits ", logits.shape(), " are empty");
    const std::vector<double> x = logits.to_vector<double>(), t = targets_.to_vector<double>();
    check_probabilities(name(), t);
    double total = 0.0;
    for (size_t i = 0; i < x.size(); ++i) {
      total += std::max(x[i], 0.0) - x[i] * t[i] + std::log1p(std::exp(-std::abs(x[i])));
    }
    save(logits);
    return Tensor::full({}, total / static_cast<double>(x.size()),
                        logits.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32);
  }
  Tensors backward(const Tensors& dout) override {
    const auto [logits] = saved<1>();
    std::vector<double> d = logits.to_vector<double>();
    const std::vector<double> t = targets_.to_vector<double>();
    const double g = dout[0].item() / static_cast<double>(d.size());
    for (size_t i = 0; i < d.size(); ++i) d[i] = g * (1.0 / (1.0 + std::exp(-d[i])) - t[i]);
    return {Tensor::from(d, logits.shape()).to(logits.dtype())};
  }

 private:
  Tensor targets_;
};

void check_targets(const Variable& logits, const Tensor& targets) {
  FOVEA_CHECK(!is_capturing(logits.value().device()) || targets.is_contiguous(),
              "cross_entropy: targets ", targets.shape(), " with strides ", targets.strides(),
              " in a captured region; expected contiguous ones, which can be written again");
}

// Mean over rows of sum_j t_j log t_j
double mean_negative_entropy(const Tensor& targets) {
  double total = 0.0;
  for (double t : targets.to_vector<double>()) total += t > 0.0 ? t * std::log(t) : 0.0;
  return total * static_cast<double>(targets.dim(-1)) /
         static_cast<double>(std::max<int64_t>(1, targets.numel()));
}

}  // namespace

Variable cross_entropy(const Variable& logits, const Tensor& targets,
                       const CrossEntropyOptions& options) {
  check_targets(logits, targets);
  return record(make<CrossEntropyFn>(targets.contiguous(), options, false, false), logits);
}
Variable cross_entropy(Variable&& logits, const Tensor& targets,
                       const CrossEntropyOptions& options) {
  check_targets(logits, targets);
  return record(make<CrossEntropyFn>(targets.contiguous(), options, false, logits.is_sole()),
                logits);
}
Variable cross_entropy_soft(const Variable& logits, const Tensor& targets,
                            const CrossEntropyOptions& options) {
  return record(make<CrossEntropyFn>(targets.contiguous(), options, true, false), logits);
}

Variable kl_divergence(const Variable& logits, const Tensor& targets) {
  if (!logits.value().device().is_cpu()) {
    return record(
        make<CrossEntropyFn>(targets.contiguous(), CrossEntropyOptions{}, true, false, true),
        logits);
  }
  const Variable crossed = cross_entropy_soft(logits, targets);
  return add(crossed, Variable(Tensor::full({}, mean_negative_entropy(targets), crossed.dtype())));
}

Variable bce_with_logits(const Variable& logits, const Tensor& targets) {
  if (!logits.value().device().is_cpu()) {
    check_probabilities("bce_with_logits", targets.to_vector<double>());
    return record(make<PointLossFn>("bce_with_logits", targets, PointLoss::binary_cross_entropy),
                  logits);
  }
  return record(make<BceFn>(targets), logits);
}

Variable mse(const Variable& x, const Tensor& target) {
  if (!x.value().device().is_cpu())
    return record(make<PointLossFn>("mse", target, PointLoss::squared_error), x);
  const Variable difference = sub(x, Variable(target));
  return mean_all(mul(difference, difference));
}

}  // namespace fovea::nn
