// SPDX-License-Identifier: Apache-2.0
#include "data/text/bpe.h"

#include <algorithm>
#include <array>
#include <queue>
#include <unordered_map>

#include "core/error.h"
#include "data/text/utf8.h"

namespace fovea::data {

const std::vector<unsigned char>& byte_order() {
  static const std::vector<unsigned char> order = [] {
    std::vector<unsigned char> printable, others;
    for (int b = 0; b < 256; ++b) {
      const bool shown = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
      (shown ? printable : others).push_back(static_cast<unsigned char>(b));
    }
    printable.insert(printable.end(), others.begin(), others.end());
    return printable;
  }();
  return order;
}

const std::string& byte_letter(unsigned char byte) {
  static const std::array<std::string, 256> letters = [] {
    std::array<std::string, 256> made;
    for (size_t i = 0; i < 256; ++i) {
      const unsigned char b = byte_order()[i];
      append_utf8(made[b], i < 188 ? char32_t{b} : static_cast<char32_t>(0x100 + i - 188));
    }
    return made;
  }();
  return letters[byte];
}

namespace {

constexpr uint64_t pair_key(int32_t left, int32_t right) {
  return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) | static_cast<uint32_t>(right);
}

constexpr size_t kMaxPiece = size_t{1} << 30;  // positions in a piece are 32 bits

class BpeTokenizer final : public Tokenizer {
 public:
  explicit BpeTokenizer(BpeModel model) : model_(std::move(model)), splitter_(model_.split) {
    const auto count = static_cast<int32_t>(model_.tokens.size());
    for (int32_t id = 0; id < count; ++id) {
      const std::string& token = model_.tokens[static_cast<size_t>(id)];
      if (token.empty()) continue;
      const auto [other, fresh] = ids_.emplace(token, id);
      FOVEA_CHECK(fresh, "tokenizer: ids ", other->second, " and ", id, " have the same bytes");
    }
    bytes_.fill(-1);
    for (int b = 0; b < 256; ++b) {
      const char byte = static_cast<char>(b);
      if (const auto found = ids_.find(std::string_view(&byte, 1)); found != ids_.end())
        bytes_[static_cast<size_t>(b)] = found->second;
    }
    const auto bytes_of = [&](int32_t id) -> const std::string& {
      FOVEA_CHECK(id >= 0 && id < count && !model_.tokens[static_cast<size_t>(id)].empty(),
                  "tokenizer: a merge names id ", id, ", which has no token");
      return model_.tokens[static_cast<size_t>(id)];
    };
    pairs_.reserve(model_.merges.size());
    for (const BpeMerge& merge : model_.merges) {
      FOVEA_CHECK(bytes_of(merge.left) + bytes_of(merge.right) == bytes_of(merge.result),
                  "tokenizer: ids ", merge.left, " and ", merge.right, " do not make id ",
                  merge.result);
      pairs_.insert_or_assign(pair_key(merge.left, merge.right), Result{merge.rank, merge.result});
    }
    vocab_size_ = count;
    for (const auto& [text, id] : model_.added) {
      FOVEA_CHECK(!text.empty() && id >= 0, "tokenizer: added token \"", text, "\" with id ", id);
      vocab_size_ = std::max<int64_t>(vocab_size_, id + 1);
      FOVEA_CHECK(added_texts_.emplace(id, text).second, "tokenizer: two added tokens have id ",
                  id);
      const size_t round = model_.added_last.contains(text) ? 1 : 0;
      by_first_byte_[round][static_cast<unsigned char>(text[0])].emplace_back(text, id);
    }
    for (auto& round : by_first_byte_) {
      for (auto& candidates : round) {
        std::stable_sort(candidates.begin(), candidates.end(), [](const auto& a, const auto& b) {
          return a.first.size() > b.first.size();
        });
      }
    }
  }

  int64_t vocab_size() const override { return vocab_size_; }

  std::vector<int64_t> encode(std::string_view text) const override {
    std::vector<int64_t> ids;
    Seen seen;
    cut_added(text, 0, text.size(), 0, seen, ids);
    return ids;
  }

  std::string decode(std::span<const int64_t> ids) const override {
    std::string text;
    for (const int64_t id : ids) {
      FOVEA_CHECK(id >= 0 && id < vocab_size_, "tokenizer: id ", id, " of a vocabulary of ",
                  vocab_size_);
      if (const auto added = added_texts_.find(static_cast<int32_t>(id));
          added != added_texts_.end()) {
        text += added->second;
        continue;
      }
      FOVEA_CHECK(id < static_cast<int64_t>(model_.tokens.size()) &&
                      !model_.tokens[static_cast<size_t>(id)].empty(),
                  "tokenizer: id ", id, " has no token");
      text += model_.tokens[static_cast<size_t>(id)];
    }
    return text;
  }

  std::string to_json() const override { return write_huggingface(model_); }

 private:
  using Added = std::pair<std::string, int32_t>;
  // Where the ids of a piece met before lie in the output.
  using Seen = std::unordered_map<std::string_view, std::pair<size_t, size_t>>;
  struct Result {
    int32_t rank, id;
  };

  // Cuts the added tokens of a round out of text[begin, end), and goes on with the next round in
  // what is left.
  void cut_added(std::string_view text, size_t begin, size_t end, size_t round, Seen& seen,
                 std::vector<int64_t>& ids) const {
    if (round == by_first_byte_.size()) return encode_plain(text, begin, end, seen, ids);
    for (size_t at = begin; at < end;) {
      const std::string_view rest = text.substr(at, end - at);
      const auto& candidates = by_first_byte_[round][static_cast<unsigned char>(rest[0])];
      const auto added =
          std::find_if(candidates.begin(), candidates.end(),
                       [&](const Added& candidate) { return rest.starts_with(candidate.first); });
      if (added == candidates.end()) {
        ++at;
        continue;
      }
      cut_added(text, begin, at, round + 1, seen, ids);
      ids.push_back(added->second);
      at += added->first.size();
      begin = at;
    }
    cut_added(text, begin, end, round + 1, seen, ids);
  }

  void encode_plain(std::string_view text, size_t begin, size_t end, Seen& seen,
                    std::vector<int64_t>& ids) const {
    splitter_.split(text.substr(begin, end - begin), [&](std::string_view piece) {
      const auto [place, fresh] = seen.try_emplace(piece, ids.size(), 0);
      if (fresh) {
        encode_piece(piece, static_cast<size_t>(piece.data() - text.data()), ids);
        place->second.second = ids.size() - place->second.first;
        return;
      }
      const auto [from, count] = place->second;
      for (size_t i = 0; i < count; ++i) ids.push_back(ids[from + i]);
    });
  }

  // The merges of one piece that starts at byte `offset`: a linked list of tokens, and a queue of
  // the pairs that may merge.
  void encode_piece(std::string_view piece, size_t offset, std::vector<int64_t>& ids) const {
    if (model_.whole_pieces) {
      if (const auto found = ids_.find(piece); found != ids_.end())
        return ids.push_back(found->second);
    }
    struct Part {
      int32_t id, before, after;
    };
    struct Candidate {
      int32_t rank, at, left, right, result;
      bool operator<(const Candidate& other) const {
        return rank != other.rank ? rank > other.rank : at > other.at;
      }
    };
    FOVEA_CHECK(piece.size() <= kMaxPiece, "tokenizer: a piece of ", piece.size(),
                " bytes without a cut at byte ", offset, "; at most ", kMaxPiece, " can be merged");
    const auto count = static_cast<int32_t>(piece.size());
    std::vector<Part> parts;
    parts.reserve(piece.size());
    for (int32_t i = 0; i < count; ++i) {
      const auto byte = static_cast<unsigned char>(piece[static_cast<size_t>(i)]);
      FOVEA_CHECK(bytes_[byte] >= 0, "tokenizer: byte ", offset + static_cast<size_t>(i),
                  " (value ", static_cast<int>(byte), ") has no token in the vocabulary");
      parts.push_back({bytes_[byte], i - 1, i + 1 < count ? i + 1 : -1});
    }
    std::priority_queue<Candidate> queue;
    const auto offer = [&](int32_t at) {
      if (at < 0 || parts[static_cast<size_t>(at)].after < 0) return;
      const Part& part = parts[static_cast<size_t>(at)];
      const int32_t right = parts[static_cast<size_t>(part.after)].id;
      const auto found = pairs_.find(pair_key(part.id, right));
      if (found != pairs_.end())
        queue.push({found->second.rank, at, part.id, right, found->second.id});
    };
    for (int32_t i = 0; i < count; ++i) offer(i);
    while (!queue.empty()) {
      const Candidate best = queue.top();
      queue.pop();
      Part& part = parts[static_cast<size_t>(best.at)];
      // Stale: one of the two has merged with another meanwhile (a part that is gone has id -1).
      if (part.id != best.left || part.after < 0 ||
          parts[static_cast<size_t>(part.after)].id != best.right)
        continue;
      Part& gone = parts[static_cast<size_t>(part.after)];
      part.id = best.result;
      part.after = gone.after;
      if (gone.after >= 0) parts[static_cast<size_t>(gone.after)].before = best.at;
      gone.id = -1;
      offer(part.before);
      offer(best.at);
    }
    for (int32_t at = 0; at >= 0; at = parts[static_cast<size_t>(at)].after)
      ids.push_back(parts[static_cast<size_t>(at)].id);
  }

  BpeModel model_;
  Splitter splitter_;
  std::unordered_map<std::string_view, int32_t> ids_;  // views into model_.tokens
  std::array<int32_t, 256> bytes_{};
  std::unordered_map<uint64_t, Result> pairs_;
  std::unordered_map<int32_t, std::string> added_texts_;
  std::array<std::array<std::vector<Added>, 256>, 2> by_first_byte_;  // by round, longest first
  int64_t vocab_size_ = 0;
};

}  // namespace

std::unique_ptr<Tokenizer> make_bpe(BpeModel model) {
  return std::make_unique<BpeTokenizer>(std::move(model));
}

}  // namespace fovea::data
