// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/io/file.h"
#include "data/text/kinds.h"

namespace fovea::data {

std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& path) {
  const std::string text = read_file(path);
  const auto json = nlohmann::json::parse(text, nullptr, false);
  FOVEA_CHECK(!json.is_discarded() && json.is_object(), "tokenizer ", path.string(), ": is no JSON object");
  const std::string kind = json.contains("kind") && json["kind"].is_string() ? json["kind"].get<std::string>() : "";
  try {
    if (kind == "bytes") return byte_tokenizer();
    if (kind == "characters") return character_tokenizer(json.at("characters").get<std::vector<std::string>>());
  } catch (const nlohmann::json::exception& e) {
    throw Error(concat("tokenizer ", path.string(), ": ", e.what()));
  } catch (const Error& e) {
    throw Error(concat(path.string(), ": ", e.what()));
  }
  throw Error(concat("tokenizer ", path.string(), ": kind \"", kind, "\"; expected bytes or characters"));
}

}  // namespace fovea::data
