// SPDX-License-Identifier: Apache-2.0
// Learning byte pair merges. Words (the pieces of the pre-split) are counted once; then each step
// takes the pair with the highest count from a heap, rewrites the words that hold it, and adjusts
// only the counts of their pairs. A heap entry whose count has fallen since is put back with its
// present count when it comes up.
#include <algorithm>
#include <array>
#include <queue>
#include <unordered_map>
#include <unordered_set>

#include "core/error.h"
#include "data/text/bpe.h"

namespace fovea::data {
namespace {

struct Pair {
  int32_t left, right;
  // NOLINTNEXTLINE(modernize-use-nullptr): clang-tidy 14 takes the 0 that a <=> is compared with
  // for a pointer
  auto operator<=>(const Pair&) const = default;
};
struct HashPair {
  size_t operator()(const Pair& p) const {
    return std::hash<uint64_t>{}((static_cast<uint64_t>(static_cast<uint32_t>(p.left)) << 32) |
                                 static_cast<uint32_t>(p.right));
  }
};
struct Word {
  std::vector<int32_t> ids;
  int64_t count;
};
struct Occurrences {
  int64_t count = 0;
  std::vector<int32_t> words;  // that hold the pair, or did
};
struct Entry {
  int64_t count;
  Pair pair;
  bool operator<(const Entry& other) const {
    return count != other.count ? count < other.count : pair > other.pair;
  }
};

std::vector<Word> count_words(std::string_view text, const std::array<int32_t, 256>& byte_ids) {
  std::unordered_map<std::string_view, size_t> index;
  std::vector<Word> words;
  const Splitter splitter({std::string(kGpt2Split)});
  splitter.split(text, [&](std::string_view piece) {
    const auto [place, fresh] = index.try_emplace(piece, words.size());
    if (fresh) {
      Word word{{}, 0};
      for (const char c : piece) word.ids.push_back(byte_ids[static_cast<unsigned char>(c)]);
      words.push_back(std::move(word));
    }
    ++words[place->second].count;
  });
  return words;
}

class Trainer {
 public:
  explicit Trainer(std::vector<Word> words) : words_(std::move(words)) {
    for (size_t w = 0; w < words_.size(); ++w) add_pairs(static_cast<int32_t>(w), -1);
    for (const auto& [pair, found] : pairs_) heap_.push({found.count, pair});
  }

  // The pair with the highest count, if any stands at least twice.
  const Pair* best() {
    while (!heap_.empty()) {
      const Entry top = heap_.top();
      heap_.pop();
      const int64_t count = pairs_.at(top.pair).count;
      if (count < 2) continue;
      if (count == top.count) return &(best_ = top.pair);
      heap_.push({count, top.pair});
    }
    return nullptr;
  }

  void merge(const Pair& pair, int32_t id) {
    const std::vector<int32_t> affected = std::move(pairs_.at(pair).words);
    std::vector<Pair> fresh;
    for (const int32_t w : affected) {
      Word& word = words_[static_cast<size_t>(w)];
      std::vector<int32_t>& ids = word.ids;
      for (size_t i = 0; i + 1 < ids.size(); ++i)
        pairs_.at({ids[i], ids[i + 1]}).count -= word.count;
      size_t kept = 0;
      for (size_t i = 0; i < ids.size(); ++kept) {
        const bool here = i + 1 < ids.size() && ids[i] == pair.left && ids[i + 1] == pair.right;
        ids[kept] = here ? id : ids[i];
        i += here ? 2 : 1;
      }
      ids.resize(kept);
      add_pairs(w, id);
      for (size_t i = 0; i + 1 < kept; ++i) {
        if (ids[i] == id || ids[i + 1] == id) fresh.push_back({ids[i], ids[i + 1]});
      }
    }
    std::sort(fresh.begin(), fresh.end());
    fresh.erase(std::unique(fresh.begin(), fresh.end()), fresh.end());
    for (const Pair& p : fresh) heap_.push({pairs_.at(p).count, p});
  }

 private:
  // Counts the pairs of a word; those with id `fresh` (or all, for -1) also learn that the word
  // holds them.
  void add_pairs(int32_t w, int32_t fresh) {
    const Word& word = words_[static_cast<size_t>(w)];
    for (size_t i = 0; i + 1 < word.ids.size(); ++i) {
      Occurrences& found = pairs_[{word.ids[i], word.ids[i + 1]}];
      found.count += word.count;
      const bool tell = fresh < 0 || word.ids[i] == fresh || word.ids[i + 1] == fresh;
      if (tell && (found.words.empty() || found.words.back() != w)) found.words.push_back(w);
    }
  }

  std::vector<Word> words_;
  std::unordered_map<Pair, Occurrences, HashPair> pairs_;
  std::priority_queue<Entry> heap_;
  Pair best_{};
};

}  // namespace

BpeModel train_bpe_model(std::string_view text, int64_t vocab_size) {
  FOVEA_CHECK(vocab_size >= 256, "bpe: a vocabulary of ", vocab_size,
              "; the 256 bytes are always part of it");
  BpeModel model;
  std::array<int32_t, 256> byte_ids{};
  for (const unsigned char b : byte_order()) {
    byte_ids[b] = static_cast<int32_t>(model.tokens.size());
    model.tokens.emplace_back(1, static_cast<char>(b));
  }
  std::unordered_map<std::string, int32_t> ids;
  for (size_t id = 0; id < model.tokens.size(); ++id)
    ids[model.tokens[id]] = static_cast<int32_t>(id);
  std::unordered_set<Pair, HashPair> merged;
  Trainer trainer(count_words(text, byte_ids));
  while (static_cast<int64_t>(model.tokens.size()) < vocab_size) {
    const Pair* best = trainer.best();
    FOVEA_CHECK(best != nullptr, "bpe: a vocabulary of ", vocab_size, ", but after ",
                model.tokens.size(), " tokens no pair of the text stands twice; ask for at most ",
                model.tokens.size());
    const Pair pair = *best;
    // Two ways to the same bytes ("ab" "c", "a" "bc") share the id; a pair whose left part was made
    // anew keeps its merge.
    std::string bytes = model.tokens[static_cast<size_t>(pair.left)] +
                        model.tokens[static_cast<size_t>(pair.right)];
    const auto [place, fresh] = ids.try_emplace(bytes, static_cast<int32_t>(model.tokens.size()));
    if (fresh) model.tokens.push_back(std::move(bytes));
    if (merged.insert(pair).second) {
      model.merges.push_back(
          {pair.left, pair.right, place->second, static_cast<int32_t>(model.merges.size())});
    }
    trainer.merge(pair, place->second);
  }
  return model;
}

std::unique_ptr<Tokenizer> train_bpe(std::string_view text, int64_t vocab_size) {
  return make_bpe(train_bpe_model(text, vocab_size));
}

}  // namespace fovea::data
