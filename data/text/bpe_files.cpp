// SPDX-License-Identifier: Apache-2.0
// Tokenizer files of other programs.
#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <set>
#include <unordered_map>

#include "core/error.h"
#include "data/text/bpe.h"
#include "data/text/json.h"
#include "data/text/utf8.h"

namespace fovea::data {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxId = (int64_t{1} << 24) - 1;

// The bytes that letters of the byte alphabet stand for; absent when one is not of the alphabet.
std::optional<std::string> bytes_of_letters(std::string_view letters) {
  static const std::unordered_map<std::string, char> bytes = [] {
    std::unordered_map<std::string, char> made;
    for (int b = 0; b < 256; ++b)
      made[byte_letter(static_cast<unsigned char>(b))] = static_cast<char>(b);
    return made;
  }();
  std::string out;
  for (size_t at = 0; at < letters.size();) {
    const size_t length = strict_utf8_length(letters, at);
    const auto found =
        length == 0 ? bytes.end() : bytes.find(std::string(letters.substr(at, length)));
    if (found == bytes.end()) return std::nullopt;
    out += found->second;
    at += length;
  }
  return out;
}

std::string letters_of_bytes(std::string_view bytes) {
  std::string out;
  for (const char c : bytes) out += byte_letter(static_cast<unsigned char>(c));
  return out;
}

int32_t checked_id(const Json& id, const std::string& token) {
  FOVEA_CHECK(id.is_number_integer() && id.get<int64_t>() >= 0 && id.get<int64_t>() <= kMaxId,
              "token \"", token, "\" has id ", id.dump(), "; expected 0 to ", kMaxId);
  return id.get<int32_t>();
}

// Token strings (in the byte alphabet) and their ids, as the files write them.
class Vocabulary {
 public:
  Vocabulary(const Json& vocab, BpeModel& model) : model_(model) {
    FOVEA_CHECK(vocab.is_object() && !vocab.empty(),
                "its vocabulary is no object of tokens and ids");
    for (const auto& [letters, id_json] : vocab.items()) {
      const int32_t id = checked_id(id_json, letters);
      const std::optional<std::string> bytes = bytes_of_letters(letters);
      if (!bytes && model.added.contains(letters))
        continue;  // special tokens may stand here as they are
      FOVEA_CHECK(bytes && !bytes->empty(), "token \"", letters, "\" (id ", id,
                  ") is not written in the byte alphabet; only byte-level BPE can be read");
      if (static_cast<size_t>(id) >= model.tokens.size())
        model.tokens.resize(static_cast<size_t>(id) + 1);
      FOVEA_CHECK(model.tokens[static_cast<size_t>(id)].empty(), "two tokens have id ", id,
                  "; one is \"", letters, '"');
      model.tokens[static_cast<size_t>(id)] = *bytes;
      ids_[letters] = id;
    }
  }
  void merge(const std::string& left, const std::string& right) {
    const auto id = [&](const std::string& token) {
      const auto found = ids_.find(token);
      FOVEA_CHECK(found != ids_.end(), "merge ", model_.merges.size(), " (\"", left, "\" and \"",
                  right, "\"): \"", token, "\" is not in the vocabulary");
      return found->second;
    };
    model_.merges.push_back(
        {id(left), id(right), id(left + right), static_cast<int32_t>(model_.merges.size())});
  }
  void merge(const std::string& line) {
    const size_t space = line.find(' ');
    FOVEA_CHECK(space != std::string::npos && line.find(' ', space + 1) == std::string::npos,
                "merge ", model_.merges.size(), " is \"", line, "\"; expected two tokens");
    merge(line.substr(0, space), line.substr(space + 1));
  }

 private:
  BpeModel& model_;
  std::unordered_map<std::string, int32_t> ids_;
};

// Everything in `object` but `known` keys must be null, false, 0 or empty: what we do not know may
// not change the result.
void refuse_other(const Json& object, const std::string& what, const std::set<std::string>& known) {
  for (const auto& [key, value] : object.items()) {
    const bool idle =
        value.is_null() || value == Json(false) || value == Json(0) || value == Json(0.0) ||
        ((value.is_string() || value.is_array() || value.is_object()) && value.empty());
    FOVEA_CHECK(known.contains(key) || idle, what, " has ", key, " = ", value.dump(),
                ", which is not supported");
  }
}

// Adds the split patterns of one pre-tokenizer; true when it is (or ends in) ByteLevel.
bool read_pre_tokenizer(const Json& json, std::vector<std::string>& split) {
  const std::string type = json.at("type").get<std::string>();
  if (type == "Sequence") {
    bool byte_level = false;
    for (const Json& part : json.at("pretokenizers")) {
      FOVEA_CHECK(!byte_level, "pre-tokenizers follow ByteLevel; it must be the last");
      byte_level = read_pre_tokenizer(part, split);
    }
    return byte_level;
  }
  if (type == "ByteLevel") {
    refuse_other(json, "pre-tokenizer ByteLevel", {"type", "trim_offsets", "use_regex"});
    if (json.value("use_regex", true)) split.emplace_back(kGpt2Split);
    return true;
  }
  if (type == "Digits") {
    split.emplace_back(json.value("individual_digits", false) ? R"(\p{N})" : R"(\p{N}+)");
    return false;
  }
  FOVEA_CHECK(type == "Split", "pre-tokenizer ", type,
              " is not supported; expected ByteLevel, Split, Digits or a Sequence of them");
  FOVEA_CHECK(json.at("pattern").contains("Regex"), "pre-tokenizer Split has pattern ",
              json.at("pattern").dump(), "; expected a Regex");
  const std::string behavior = json.value("behavior", "");
  const bool invert = json.value("invert", false);
  // Removed with invert keeps the matches, which is the same where the pattern matches everything,
  // as it does in practice.
  FOVEA_CHECK(behavior == "Isolated" || (behavior == "Removed" && invert),
              "pre-tokenizer Split has behavior ", behavior, "; expected Isolated");
  split.push_back(json.at("pattern").at("Regex").get<std::string>());
  return false;
}

void read_added(const Json& list, BpeModel& model) {
  for (const Json& token : list) {
    const std::string content = token.at("content").get<std::string>();
    const std::string what = concat("added token \"", content, '"');
    refuse_other(token, what, {"id", "content", "special", "normalized"});
    FOVEA_CHECK(!content.empty(), "an added token is empty");
    FOVEA_CHECK(model.added.emplace(content, checked_id(token.at("id"), content)).second, what,
                " stands twice");
    if (token.value("normalized", false)) model.added_last.insert(content);
  }
}

BpeModel parse_huggingface(const Json& json) {
  BpeModel model;
  if (json.contains("added_tokens")) read_added(json["added_tokens"], model);
  FOVEA_CHECK(!json.contains("normalizer") || json["normalizer"].is_null(), "normalizer ",
              json["normalizer"].value("type", "of unknown type"), " is not supported");
  FOVEA_CHECK(json.contains("pre_tokenizer") && json["pre_tokenizer"].is_object(),
              "has no pre_tokenizer; only byte-level BPE can be read");
  model.split.clear();
  FOVEA_CHECK(read_pre_tokenizer(json["pre_tokenizer"], model.split),
              "its pre_tokenizer has no ByteLevel; only byte-level BPE can be read");
  const Json& bpe = json.at("model");
  FOVEA_CHECK(bpe.value("type", "BPE") == "BPE", "model type ", bpe.value("type", ""),
              "; only BPE can be read");
  refuse_other(bpe, "model", {"type", "vocab", "merges", "ignore_merges", "fuse_unk", "unk_token"});
  model.whole_pieces = bpe.value("ignore_merges", false);
  Vocabulary vocabulary(bpe.at("vocab"), model);
  for (const Json& merge : bpe.at("merges")) {
    if (merge.is_string())
      vocabulary.merge(merge.get<std::string>());
    else
      vocabulary.merge(merge.at(0).get<std::string>(), merge.at(1).get<std::string>());
  }
  return model;
}

// f(), with `path` before its errors.
template <typename F>
BpeModel with_path(const std::string& path, F&& f) {
  try {
    return f();
  } catch (const Json::exception& e) {
    throw Error(concat("tokenizer ", path, ": ", e.what()));
  } catch (const Error& e) {
    throw Error(concat("tokenizer ", path, ": ", e.what()));
  }
}

std::optional<std::string> decode_base64(std::string_view text) {
  static constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  if (text.size() % 4 != 0 || text.empty()) return std::nullopt;
  const size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
  std::string out;
  uint32_t bits = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const size_t digit = i + padding >= text.size() ? 0 : kDigits.find(text[i]);
    if (digit == std::string_view::npos) return std::nullopt;
    bits = (bits << 6) | static_cast<uint32_t>(digit);
    if (i % 4 != 3) continue;
    for (const int shift : {16, 8, 0}) out += static_cast<char>(bits >> shift);
    bits = 0;
  }
  out.resize(out.size() - padding);
  return out;
}

// ---- what a .tiktoken file does not say ---------------------------------------------------------

struct Encoding {
  std::string_view name;
  std::string split;
  std::map<std::string, int32_t> added;
};

const std::array<Encoding, 5>& encodings() {
  static const std::string contraction = R"((?i:'s|'t|'re|'ve|'m|'ll|'d))";
  static const std::string r50k(kGpt2Split);
  static const std::string cl100k =
      contraction +
      R"(|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s++\z|\s*[\r\n]+|\s+(?!\S)|\s+)";
  static const std::string upper = R"([\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}])",
                           lower = R"([\p{Ll}\p{Lm}\p{Lo}\p{M}])";
  static const std::string before = R"([^\r\n\p{L}\p{N}]?)";
  static const std::string o200k =
      before + upper + "*" + lower + "+" + contraction + "?|" + before + upper + "+" + lower + "*" +
      contraction + R"(?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  static const std::array<Encoding, 5> table{{
      {"r50k_base", r50k, {{"<|endoftext|>", 50256}}},
      {"p50k_base", r50k, {{"<|endoftext|>", 50256}}},
      {"p50k_edit",
       r50k,
       {{"<|endoftext|>", 50256},
        {"<|fim_prefix|>", 50281},
        {"<|fim_middle|>", 50282},
        {"<|fim_suffix|>", 50283}}},
      {"cl100k_base",
       cl100k,
       {{"<|endoftext|>", 100257},
        {"<|fim_prefix|>", 100258},
        {"<|fim_middle|>", 100259},
        {"<|fim_suffix|>", 100260},
        {"<|endofprompt|>", 100276}}},
      {"o200k_base", o200k, {{"<|endoftext|>", 199999}, {"<|endofprompt|>", 200018}}},
  }};
  return table;
}

// All pairs of tokens that make a token: its id is the rank.
void add_all_merges(BpeModel& model) {
  std::unordered_map<std::string_view, int32_t> ids;
  for (size_t id = 0; id < model.tokens.size(); ++id) {
    if (!model.tokens[id].empty()) ids.emplace(model.tokens[id], static_cast<int32_t>(id));
  }
  for (size_t id = 0; id < model.tokens.size(); ++id) {
    const std::string_view token = model.tokens[id];
    for (size_t cut = 1; cut < token.size(); ++cut) {
      const auto left = ids.find(token.substr(0, cut)), right = ids.find(token.substr(cut));
      if (left == ids.end() || right == ids.end()) continue;
      model.merges.push_back(
          {left->second, right->second, static_cast<int32_t>(id), static_cast<int32_t>(id)});
    }
  }
}

}  // namespace

BpeModel read_huggingface(std::string_view json, const std::string& path) {
  return with_path(path, [&] { return parse_huggingface(parse_json(json)); });
}

BpeModel read_gpt2(std::string_view encoder, std::string_view merges, const std::string& path) {
  return with_path(path, [&] {
    BpeModel model;
    constexpr const char* kEnd = "<|endoftext|>";
    Json vocab = parse_json(encoder);
    FOVEA_CHECK(vocab.is_object(), "its vocabulary is no object of tokens and ids");
    if (vocab.contains(kEnd)) {
      model.added.emplace(kEnd, checked_id(vocab[kEnd], kEnd));
      vocab.erase(kEnd);
    }
    Vocabulary vocabulary(vocab, model);
    for (size_t begin = 0; begin < merges.size();) {
      const size_t end = std::min(merges.find('\n', begin), merges.size());
      std::string line(merges.substr(begin, end - begin));
      if (line.ends_with('\r')) line.pop_back();
      if (!line.empty() && !(begin == 0 && line.starts_with("#version"))) vocabulary.merge(line);
      begin = end + 1;
    }
    return model;
  });
}

BpeModel read_tiktoken(std::string_view content, const std::filesystem::path& path) {
  return with_path(path.string(), [&] {
    const std::string name = path.stem().string();
    const auto encoding = std::find_if(encodings().begin(), encodings().end(),
                                       [&](const Encoding& e) { return e.name == name; });
    FOVEA_CHECK(encoding != encodings().end(), "the name \"", name,
                "\" tells no split pattern; expected r50k_base, p50k_base, p50k_edit, "
                "cl100k_base or o200k_base before .tiktoken");
    BpeModel model;
    model.split = {encoding->split};
    model.added = encoding->added;
    model.whole_pieces = true;
    size_t line_number = 0;
    for (size_t begin = 0; begin < content.size();) {
      const size_t end = std::min(content.find('\n', begin), content.size());
      std::string_view line = content.substr(begin, end - begin);
      begin = end + 1;
      ++line_number;
      if (line.ends_with('\r')) line.remove_suffix(1);
      if (line.empty()) continue;
      const size_t space = line.find(' ');
      int64_t rank = -1;
      std::optional<std::string> bytes;
      if (space != std::string_view::npos) {
        bytes = decode_base64(line.substr(0, space));
        const auto [rest, code] =
            std::from_chars(line.data() + space + 1, line.data() + line.size(), rank);
        if (code != std::errc{} || rest != line.data() + line.size()) rank = -1;
      }
      FOVEA_CHECK(bytes && !bytes->empty() && rank >= 0 && rank <= kMaxId, "line ", line_number,
                  " is \"", line, "\"; expected base64 of a token, a space, and its rank");
      if (static_cast<size_t>(rank) >= model.tokens.size())
        model.tokens.resize(static_cast<size_t>(rank) + 1);
      FOVEA_CHECK(model.tokens[static_cast<size_t>(rank)].empty(), "line ", line_number, ": rank ",
                  rank, " stands twice");
      model.tokens[static_cast<size_t>(rank)] = std::move(*bytes);
    }
    FOVEA_CHECK(!model.tokens.empty(), "holds no tokens");
    add_all_merges(model);
    return model;
  });
}

std::string write_huggingface(const BpeModel& model) {
  Json vocab = Json::object(), merges = Json::array(), added = Json::array(),
       pre_tokenizers = Json::array();
  for (size_t id = 0; id < model.tokens.size(); ++id) {
    if (!model.tokens[id].empty()) vocab[letters_of_bytes(model.tokens[id])] = id;
  }
  const auto letters = [&](int32_t id) {
    return letters_of_bytes(model.tokens[static_cast<size_t>(id)]);
  };
  for (const BpeMerge& merge : model.merges)
    merges.push_back({letters(merge.left), letters(merge.right)});
  std::vector<std::pair<int32_t, std::string>> by_id;
  for (const auto& [text, id] : model.added) by_id.emplace_back(id, text);
  std::sort(by_id.begin(), by_id.end());
  for (const auto& [id, text] : by_id) {
    added.push_back({{"id", id},
                     {"content", text},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", model.added_last.contains(text)},
                     {"special", true}});
  }
  const auto byte_level = [](bool use_regex) {
    return Json{{"type", "ByteLevel"},
                {"add_prefix_space", false},
                {"trim_offsets", true},
                {"use_regex", use_regex}};
  };
  for (const std::string& pattern : model.split) {
    pre_tokenizers.push_back({{"type", "Split"},
                              {"pattern", {{"Regex", pattern}}},
                              {"behavior", "Isolated"},
                              {"invert", false}});
  }
  pre_tokenizers.push_back(byte_level(false));
  const bool gpt2 = model.split == std::vector<std::string>{std::string(kGpt2Split)};
  const Json whole{
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", added},
      {"normalizer", nullptr},
      {"pre_tokenizer",
       gpt2 ? byte_level(true) : Json{{"type", "Sequence"}, {"pretokenizers", pre_tokenizers}}},
      {"post_processor", nullptr},
      {"decoder", byte_level(true)},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"ignore_merges", model.whole_pieces},
        {"vocab", vocab},
        {"merges", merges}}},
  };
  return whole.dump(1) + "\n";
}

}  // namespace fovea::data
