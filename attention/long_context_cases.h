// SPDX-License-Identifier: Apache-2.0
#pragma once
// The golden files of long_context as problems, for tests that run them in other ways than as one
// operator on one rank.

#include <filesystem>
#include <nlohmann/json.hpp>

#include "attention/mask_options.h"
#include "core/io/hdf5.h"

namespace fovea::attention {

struct LongContextCase {
  std::string name;
  Mask mask;
  Tensor q, k, v, out, dout, dq, dk, dv;  // f64
};

inline std::vector<LongContextCase> long_context_cases() {
  std::vector<LongContextCase> cases;
  for (const auto& entry : std::filesystem::directory_iterator("tests/golden")) {
    if (!entry.path().filename().string().starts_with("long_context__")) continue;
    const Hdf5Reader file(entry.path());
    std::vector<config::Flag> flags;
    const auto json = nlohmann::json::parse(*file.attribute("/", "options"));
    for (const auto& [key, value] : json.items())
      flags.push_back({key, value.is_string() ? value.get<std::string>() : value.dump()});
    struct Root : config::Options {
      SequenceMaskOptions mask;
      void describe(config::Fields& f) override { mask.describe(f); }
    } options;
    config::load_text(options, "", entry.path().string(), flags);
    const Tensor q = file.read("inputs/q");
    cases.push_back({*file.attribute("/", "case"),
                     options.mask.mask(
                         q.dim(0), q.dim(2),
                         file.has("inputs/block_mask") ? file.read("inputs/block_mask") : Tensor()),
                     q, file.read("inputs/k"), file.read("inputs/v"), file.read("outputs/out"),
                     file.read("cotangents/out"), file.read("grads/q"), file.read("grads/k"),
                     file.read("grads/v")});
  }
  return cases;
}

}  // namespace fovea::attention
