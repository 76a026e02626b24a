// SPDX-License-Identifier: Apache-2.0
#include "nn/mlp.h"

#include <cmath>

namespace fovea::nn {

int64_t Mlp::hidden_channels(int64_t dim, const MlpOptions& options) {
  const double wanted = options.ratio * static_cast<double>(dim);
  if (options.activation != "swiglu") return static_cast<int64_t>(std::llround(wanted));
  return (static_cast<int64_t>(std::ceil(wanted * 2.0 / 3.0)) + 31) / 32 * 32;
}

Mlp::Mlp(int64_t dim, const MlpOptions& options, Init down_init)
    : activation_(options.activation),
      up_(dim, hidden_channels(dim, options) * (options.activation == "swiglu" ? 2 : 1),
          options.bias),
      down_(hidden_channels(dim, options), dim, options.bias, down_init) {
  if (activation_ != "swiglu") parse_activation(activation_);
  declare("up", up_);
  declare("down", down_);
}

Variable Mlp::forward(const Variable& x) const {
  const Variable hidden = up_.forward(x);
  return down_.forward(activation_ == "swiglu" ? swiglu(hidden)
                                               : activate(hidden, parse_activation(activation_)));
}

double Mlp::flops_per_token() const {
  return 2.0 * static_cast<double>(up_.weight.value().numel() + down_.weight.value().numel());
}

}  // namespace fovea::nn
