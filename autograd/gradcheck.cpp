// SPDX-License-Identifier: Apache-2.0
#include "autograd/gradcheck.h"

#include <cmath>

#include "core/ops/elementwise.h"
#include "core/ops/reduce.h"
#include "core/rng.h"

namespace fovea {

void gradcheck(const std::function<Variables(const Variables&)>& f, const Variables& inputs,
               const GradcheckOptions& options) {
  for (const Variable& x : inputs) {
    FOVEA_CHECK(x.dtype() == Dtype::f64 && x.is_leaf() && x.requires_grad() &&
                    x.value().is_contiguous() && x.value().device().is_cpu(),
                "gradcheck: inputs must be contiguous f64 leaves on the cpu that require a "
                "gradient, found ",
                x.dtype(), ' ', x.shape(), " on ", x.value().device());
    x.zero_grad();
  }
  const Variables outputs = f(inputs);
  Tensors cotangents;
  for (size_t k = 0; k < outputs.size(); ++k) {
    cotangents.push_back(Tensor::empty(outputs[k].shape(), Dtype::f64));
    fill_normal(cotangents.back(), RngKey(options.seed, "gradcheck", "cotangent", k));
  }
  const auto objective = [&] {
    const NoGrad no_grad;
    const Variables results = f(inputs);
    double total = 0.0;
    for (size_t k = 0; k < results.size(); ++k)
      total += sum_all(mul(results[k].value(), cotangents[k])).item();
    return total;
  };
  backward(outputs, cotangents);

  struct Worst {
    double error = -1.0, analytic = 0.0, numeric = 0.0;
    size_t input = 0;
    int64_t element = 0;
  } worst;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Tensor analytic = inputs[i].grad().defined()
                                ? inputs[i].grad().contiguous()
                                : Tensor::zeros(inputs[i].shape(), Dtype::f64);
    double* x = inputs[i].value().data<double>();
    for (int64_t e = 0; e < inputs[i].value().numel(); ++e) {
      const double before = x[e], step = options.step * std::max(1.0, std::abs(before));
      x[e] = before + step;
      const double above = objective();
      x[e] = before - step;
      const double below = objective();
      x[e] = before;
      const double numeric = (above - below) / (2.0 * step), found = analytic.data<double>()[e];
      double error =
          std::abs(found - numeric) / std::max({1.0, std::abs(found), std::abs(numeric)});
      if (std::isnan(error)) error = INFINITY;
      if (error > worst.error) worst = {error, found, numeric, i, e};
    }
  }
  FOVEA_CHECK(worst.error <= options.tolerance, "gradcheck: input ", worst.input, ' ',
              inputs.empty() ? Shape{} : inputs[worst.input].shape(), ", element ", worst.element,
              ": the gradient is ", worst.analytic, " but central differences say ", worst.numeric,
              " (error ", worst.error, ", allowed ", options.tolerance, ")");
}

void gradcheck(const std::function<Variable(const Variables&)>& f, const Variables& inputs,
               const GradcheckOptions& options) {
  gradcheck(std::function<Variables(const Variables&)>(
                [&](const Variables& x) { return Variables{f(x)}; }),
            inputs, options);
}

}  // namespace fovea
