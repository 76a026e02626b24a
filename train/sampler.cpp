// SPDX-License-Identifier: Apache-2.0
#include "train/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace fovea::train {

void SamplerOptions::validate() const {
  FOVEA_CHECK(std::isfinite(temperature) && temperature >= 0.0,
              "sample: temperature must be 0 or more, found ", temperature);
  FOVEA_CHECK(top_k >= 0, "sample: top-k must be 0 (all) or more, found ", top_k);
  FOVEA_CHECK(top_p > 0.0 && top_p <= 1.0, "sample: top-p must be in (0, 1], found ", top_p);
}

int64_t choose_token(const Tensor& logits, const SamplerOptions& options, uint64_t position) {
  const std::vector<float> values = logits.to_vector<float>();
  FOVEA_CHECK(!values.empty(), "sample: no logits");
  for (size_t i = 0; i < values.size(); ++i) {
    FOVEA_CHECK(!std::isnan(values[i]), "sample: the logit of token ", i,
                " is NaN; the model is broken");
  }
  if (options.temperature == 0.0)
    return std::max_element(values.begin(), values.end()) - values.begin();

  // Most likely first; equal logits in order of id, so that the choice is unique.
  std::vector<int64_t> order(values.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  const auto likelier = [&](int64_t a, int64_t b) {
    const float x = values[static_cast<size_t>(a)], y = values[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  };
  size_t kept = order.size();
  if (options.top_k > 0) kept = std::min(kept, static_cast<size_t>(options.top_k));
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(kept), order.end(),
                    likelier);

  const double largest = values[static_cast<size_t>(order[0])];
  std::vector<double> weight(kept);
  double total = 0.0;
  for (size_t i = 0; i < kept; ++i) {
    weight[i] = std::exp((values[static_cast<size_t>(order[i])] - largest) / options.temperature);
    total += weight[i];
  }
  double mass = 0.0;
  for (size_t i = 0; i < kept; ++i) {
    mass += weight[i];
    if (mass >= options.top_p * total) {
      kept = i + 1;
      break;
    }
  }
  const double u =
      static_cast<double>(to_uniform(random_word(RngKey(options.seed, "sample", ""), position))) *
      mass;
  double reached = 0.0;
  for (size_t i = 0; i < kept; ++i) {
    reached += weight[i];
    if (u < reached) return order[i];
  }
  return order[kept - 1];
}

std::string text_of(const data::Tokenizer& tokenizer, int64_t token) {
  try {
    return tokenizer.decode({&token, 1});
  } catch (const Error&) {
    return "\xef\xbf\xbd";
  }
}

void generate(const nn::Gpt& model, std::vector<int64_t> tokens, int64_t count,
              const SamplerOptions& options, const std::function<bool(int64_t token)>& emit) {
  options.validate();
  FOVEA_CHECK(!tokens.empty(), "sample: the prompt has no tokens");
  const auto context = model.options().context;
  const auto feed = [&](nn::GptState& state, int64_t last) {
    const std::vector<int64_t> ids(tokens.end() - last, tokens.end());
    return model.decode(Tensor::from(ids, {1, last}), state);
  };
  const auto size = [&] { return static_cast<int64_t>(tokens.size()); };

  nn::GptState state = model.make_state(1, context);
  Tensor logits = feed(state, std::min(size(), context));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t next =
        choose_token(logits.view({model.vocab()}), options, static_cast<uint64_t>(i));
    tokens.push_back(next);
    if (!emit(next) || i + 1 == count) return;
    if (state.tokens == context) {
      state = model.make_state(1, context);
      logits = feed(state, std::max<int64_t>(1, context / 2));
    } else {
      logits = feed(state, 1);
    }
  }
}

}  // namespace fovea::train
