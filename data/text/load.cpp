// SPDX-License-Identifier: Apache-2.0
#include "core/error.h"
#include "core/io/file.h"
#include "data/text/bpe.h"
#include "data/text/json.h"
#include "data/text/kinds.h"

namespace fovea::data {
namespace {

// The merges that belong to an encoder.json or vocab.json.
std::filesystem::path merges_beside(const std::filesystem::path& encoder) {
  for (const char* name : {"vocab.bpe", "merges.txt"}) {
    const std::filesystem::path merges = encoder.parent_path() / name;
    if (std::filesystem::exists(merges)) return merges;
  }
  throw Error(concat("tokenizer ", encoder.string(),
                     ": neither one of our kinds nor a tokenizer.json, and as a GPT-2 vocabulary "
                     "it needs vocab.bpe or "
                     "merges.txt beside it"));
}

}  // namespace

std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& path) {
  const std::string text = read_file(path);
  const std::string where = concat("tokenizer ", path.string(), ": ");
  try {
    if (path.extension() == ".tiktoken") return make_bpe(read_tiktoken(text, path));
    const nlohmann::json json = parse_json(text);
    FOVEA_CHECK(json.is_object(), "is no JSON object");
    if (json.contains("model") && json["model"].is_object())
      return make_bpe(read_huggingface(text, path.string()));
    if (!json.contains("kind") || !json["kind"].is_string())
      return make_bpe(read_gpt2(text, read_file(merges_beside(path)), path.string()));
    const std::string kind = json["kind"].get<std::string>();
    if (kind == "bytes") return byte_tokenizer();
    if (kind == "characters")
      return character_tokenizer(json.at("characters").get<std::vector<std::string>>());
    throw Error(concat("kind \"", kind, "\"; expected bytes or characters"));
  } catch (const nlohmann::json::exception& e) {
    throw Error(where + e.what());
  } catch (const Error& e) {
    std::string_view what = e.what();
    if (what.starts_with("tokenizer " + path.string())) throw;
    if (what.starts_with("tokenizer: ")) what.remove_prefix(std::string_view("tokenizer: ").size());
    throw Error(concat(where, what));
  }
}

}  // namespace fovea::data
