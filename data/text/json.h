// SPDX-License-Identifier: Apache-2.0
#pragma once
// JSON of files that may be damaged or hostile.

#include <nlohmann/json.hpp>
#include <string_view>

#include "core/error.h"

namespace fovea::data {

// Throws for a syntax error, naming line and column, and for deep nesting, which the functions that
// walk a value recursively could not survive.
inline nlohmann::json parse_json(std::string_view text) {
  static constexpr int kDeepest = 32;
  try {
    return nlohmann::json::parse(
        text, [](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
          FOVEA_CHECK(depth < kDeepest, "is nested more than ", kDeepest, " deep");
          return true;
        });
  } catch (const nlohmann::json::exception& e) {
    throw Error(concat("is no JSON: ", e.what()));
  }
}

}  // namespace fovea::data
