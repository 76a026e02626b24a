// SPDX-License-Identifier: Apache-2.0
#include "data/text/bpe.h"

#include <gtest/gtest.h>

#include <sstream>

#include "core/rng.h"
#include "data/prepare.h"
#include "data/test_util.h"
#include "data/text/tokens.h"

namespace fovea::data {
namespace {

using Ids = std::vector<int64_t>;

class Bpe : public TestFolder {};

std::vector<std::string> pieces(const Splitter& splitter, const std::string& text) {
  std::vector<std::string> found;
  splitter.split(text, [&](std::string_view piece) { found.emplace_back(piece); });
  return found;
}

// A model over bytes in GPT-2's order and the given merges, as bytes.
BpeModel model_of(const std::vector<std::pair<std::string, std::string>>& merges) {
  BpeModel model;
  std::map<std::string, int32_t> ids;
  for (const unsigned char b : byte_order()) {
    ids[std::string(1, static_cast<char>(b))] = static_cast<int32_t>(model.tokens.size());
    model.tokens.emplace_back(1, static_cast<char>(b));
  }
  for (const auto& [left, right] : merges) {
    const auto rank = static_cast<int32_t>(model.merges.size()), id = static_cast<int32_t>(model.tokens.size());
    model.merges.push_back({ids.at(left), ids.at(right), id, rank});
    model.tokens.push_back(left + right);
    ids[left + right] = id;
  }
  return model;
}

std::vector<std::string> words(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<std::string> found;
  for (const int64_t id : tokenizer.encode(text)) found.push_back(tokenizer.decode(Ids{id}));
  return found;
}
using Words = std::vector<std::string>;

TEST_F(Bpe, Gpt2SplitCutsAsPublished) {
  const Splitter splitter({std::string(kGpt2Split)});
  EXPECT_EQ(pieces(splitter, "Hello world, it's 2024!"), (Words{"Hello", " world", ",", " it", "'s", " 2024", "!"}));
  EXPECT_EQ(pieces(splitter, "a   b\n\n c"), (Words{"a", "  ", " b", "\n\n", " c"}));
  EXPECT_EQ(pieces(splitter, "naïve Ωmega٣x  "), (Words{"naïve", " Ωmega", "٣", "x", "  "}));
  EXPECT_EQ(pieces(splitter, ""), Words{});
}

TEST_F(Bpe, SplitKeepsGapsAndBytesThatAreNoUtf8) {
  EXPECT_EQ(pieces(Splitter({"b+"}), "abbac"), (Words{"a", "bb", "ac"}));
  EXPECT_EQ(pieces(Splitter({"b*"}), "abb"), (Words{"a", "bb"}));  // empty matches cut nothing
  EXPECT_EQ(pieces(Splitter({R"(\p{N})", std::string(kGpt2Split)}), "a12 b"), (Words{"a", "1", "2", " b"}));
  const Splitter gpt2({std::string(kGpt2Split)});
  EXPECT_EQ(pieces(gpt2,
                   "ab\xff\xfe"
                   "cd"),
            (Words{"ab", "\xff\xfe", "cd"}));
  EXPECT_EQ(pieces(gpt2, "\xc3"), (Words{"\xc3"}));                              // cut inside a character
  EXPECT_EQ(pieces(gpt2, "x\xed\xa0\x80y"), (Words{"x", "\xed\xa0\x80", "y"}));  // a surrogate
  EXPECT_EQ(pieces(gpt2, "\xc0\xaf"), (Words{"\xc0\xaf"}));                      // overlong
  EXPECT_ERROR(Splitter({"a("}), "\"a(\" does not compile: missing closing parenthesis at offset 2");
}

TEST_F(Bpe, ByteAlphabetIsThatOfGpt2) {
  EXPECT_EQ(byte_letter('!'), "!");
  EXPECT_EQ(byte_letter(' '), "\u0120");
  EXPECT_EQ(byte_letter('\n'), "\u010a");
  EXPECT_EQ(byte_letter(0), "\u0100");
  EXPECT_EQ(byte_letter(255), "ÿ");
  EXPECT_EQ(byte_letter(173), "\u0143");
  EXPECT_EQ(byte_order()[0], '!');
  EXPECT_EQ(byte_order()[187], 255);
  EXPECT_EQ(byte_order()[188], 0);
}

TEST_F(Bpe, MergesTheLowestRankFirstAndOfEqualOnesTheLeftmost) {
  // Ranks: he, ll, llo, hello needs he + llo.
  const auto tokenizer = make_bpe(model_of({{"h", "e"}, {"l", "l"}, {"ll", "o"}, {"he", "llo"}, {"a", "a"}}));
  EXPECT_EQ(tokenizer->vocab_size(), 261);
  EXPECT_EQ(tokenizer->encode("hello"), (Ids{259}));
  EXPECT_EQ(words(*tokenizer, "hell helo"), (Words{"he", "ll", " ", "he", "l", "o"}));
  EXPECT_EQ(words(*tokenizer, "aaaaa"), (Words{"aa", "aa", "a"}));
  // "ab" has a lower rank than "bc", so "abc" is never a + bc; with the ranks turned round it is.
  EXPECT_EQ(words(*make_bpe(model_of({{"a", "b"}, {"b", "c"}})), "abc"), (Words{"ab", "c"}));
  EXPECT_EQ(words(*make_bpe(model_of({{"b", "c"}, {"a", "b"}})), "abc"), (Words{"a", "bc"}));
  EXPECT_EQ(tokenizer->encode(""), Ids{});
}

TEST_F(Bpe, LongPiecesTakeNoQuadraticTime) {
  const auto tokenizer = make_bpe(model_of({{"a", "a"}, {"aa", "aa"}, {"aaaa", "aaaa"}}));
  EXPECT_EQ(tokenizer->encode(std::string(1 << 20, 'a')).size(), (size_t{1} << 20) / 8);
}

TEST_F(Bpe, AnyBytesRoundTrip) {
  const auto tokenizer = train_bpe("the cat and the hat and the rat \xff\xff\xfe \xff\xff\xfe", 264);
  std::string bytes;
  for (uint64_t i = 0; i < 20000; ++i) bytes += static_cast<char>(random_below(RngKey(3, "bytes", ""), i, 256));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(bytes)), bytes);
  const std::string mixed = "the \xf0\x9f\x98\x80 naïve \xf0\x9f\x98 end\xff";
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(mixed)), mixed);
}

TEST_F(Bpe, TrainingMergesByCountThenById) {
  // Pieces: "low" 1, " low" 2, " lower" 1, " newest" 2. Counts: lo 4, ow 4; of the two, l < o, so "lo" first, then
  // "low" 4.
  const BpeModel model = train_bpe_model("low low low lower newest newest", 259);
  ASSERT_EQ(model.merges.size(), 3u);
  EXPECT_EQ(model.tokens[256], "lo");
  EXPECT_EQ(model.tokens[257], "low");
  EXPECT_EQ(model.tokens[258], " low");  // 3 times; "we" (lower, newest, newest) too, but its ids are higher
  EXPECT_EQ(model.split, std::vector<std::string>{std::string(kGpt2Split)});
  EXPECT_EQ(words(*make_bpe(model), "lowest low"), (Words{"low", "e", "s", "t", " low"}));
}

TEST_F(Bpe, TrainingCountsRunsOfOneByteAsItMerges) {
  const BpeModel model = train_bpe_model("aaaa aaaa", 258);
  EXPECT_EQ(model.tokens[256], "aa");
  EXPECT_EQ(model.tokens[257], "aaaa");
}

TEST_F(Bpe, TrainingRefusesSizesItCannotReach) {
  EXPECT_ERROR(train_bpe("text", 255), "a vocabulary of 255");
  EXPECT_ERROR(train_bpe("abab", 300), "after 257 tokens no pair of the text stands twice; ask for at most 257");
  EXPECT_ERROR(train_bpe("", 257), "ask for at most 256");
}

// ---- files -------------------------------------------------------------------------------------------------------

TEST_F(Bpe, HuggingFaceFilesRoundTrip) {
  BpeModel model = model_of({{"h", "e"}, {"l", "l"}, {" ", "he"}});
  model.added = {{"<|end|>", 259}, {"<|end|>more", 260}};
  const auto tokenizer = make_bpe(model);
  EXPECT_EQ(tokenizer->vocab_size(), 261);
  EXPECT_EQ(words(*tokenizer, "he<|end|> he<|end|>more"), (Words{"he", "<|end|>", " he", "<|end|>more"}));
  put("tokenizer.json", tokenizer->to_json());
  const auto again = load_tokenizer(folder / "tokenizer.json");
  EXPECT_EQ(again->to_json(), tokenizer->to_json());
  EXPECT_EQ(again->encode(" hello<|end|>\xff"), tokenizer->encode(" hello<|end|>\xff"));
  model.split = {R"(\p{N}{1,3})", std::string(kGpt2Split)};
  model.whole_pieces = true;
  const std::string json = write_huggingface(model);
  const BpeModel read = read_huggingface(json, "memory");
  EXPECT_EQ(read.split, model.split);
  EXPECT_TRUE(read.whole_pieces);
  EXPECT_EQ(write_huggingface(read), json);
}

TEST_F(Bpe, IgnoreMergesTakesAPieceThatIsATokenWhole) {
  BpeModel model = model_of({{"a", "b"}, {"b", "c"}});
  model.tokens.push_back("abc");  // no merge reaches it from ab + c
  EXPECT_EQ(words(*make_bpe(model), "abc"), (Words{"ab", "c"}));
  model.whole_pieces = true;
  EXPECT_EQ(words(*make_bpe(model), "abc"), (Words{"abc"}));
}

// A small tokenizer.json in the older style (merges as text, "Ġ" for a space) with `pre` and members before and inside
// the model.
std::string hugging_face(const std::string& pre, const std::string& members = "", const std::string& inside = "") {
  return R"({"version": "1.0", "added_tokens": [{"id": 6, "content": "<s>", "special": true}], )" + members +
         R"("pre_tokenizer": )" + pre + R"(, "model": {"type": "BPE", )" + inside +
         R"("vocab": {"a": 0, "b": 1, "Ġ": 2, "1": 3, "ab": 4, "Ġab": 5, "<s>": 6}, "merges": ["a b", "Ġ ab"]}})";
}

TEST_F(Bpe, HuggingFaceFilesOfOtherStylesAreRead) {
  const std::string byte_level = R"({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true})";
  const auto plain = make_bpe(read_huggingface(hugging_face(byte_level), "x"));
  EXPECT_EQ(plain->encode("ab ab<s>b"), (Ids{4, 5, 6, 1}));
  EXPECT_EQ(plain->vocab_size(), 7);
  EXPECT_EQ(plain->decode(Ids{5, 6, 4}), " ab<s>ab");
  EXPECT_ERROR(plain->encode("ab c"), "byte 3 (value 99) has no token");
  const std::string llama =
      R"re({"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "(?i:b)| ?\\p{L}"},
      "behavior": "Isolated", "invert": false}, {"type": "ByteLevel", "use_regex": false, "add_prefix_space": false}]})re";
  EXPECT_EQ(make_bpe(read_huggingface(hugging_face(llama), "x"))->encode("ab ab"), (Ids{0, 1, 2, 0, 1}));
  const std::string digits =
      R"({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, )" + byte_level + "]}";
  EXPECT_EQ(make_bpe(read_huggingface(hugging_face(digits), "x"))->encode("ab11"), (Ids{4, 3, 3}));
}

TEST_F(Bpe, HuggingFaceFilesThatCannotBeReproducedAreRefused) {
  const std::string byte_level = R"({"type": "ByteLevel"})";
  const auto read = [&](const std::string& json) { return make_bpe(read_huggingface(json, "t.json")); };
  EXPECT_ERROR(read("{"), "tokenizer t.json: ");
  EXPECT_ERROR(read("{}"), "has no pre_tokenizer");
  EXPECT_ERROR(read(hugging_face(byte_level, R"("normalizer": {"type": "NFC"}, )")), "normalizer NFC is not supported");
  EXPECT_ERROR(read(hugging_face(R"({"type": "Metaspace"})")), "pre-tokenizer Metaspace is not supported");
  EXPECT_ERROR(read(hugging_face(R"({"type": "ByteLevel", "add_prefix_space": true})")),
               "add_prefix_space = true, which is not supported");
  EXPECT_ERROR(read(hugging_face(R"({"type": "Digits"})")), "has no ByteLevel");
  EXPECT_ERROR(read(hugging_face(R"({"type": "Split", "pattern": {"String": "a"}})")), "expected a Regex");
  EXPECT_ERROR(read(hugging_face(byte_level, "", R"("dropout": 0.1, )")), "model has dropout = 0.1");
  EXPECT_ERROR(read(hugging_face(byte_level, "", R"("byte_fallback": true, )")), "model has byte_fallback = true");
  std::string json = hugging_face(byte_level);
  json.replace(json.find("\"BPE\""), 5, "\"Unigram\"");
  EXPECT_ERROR(read(json), "model type Unigram; only BPE");
  json = hugging_face(byte_level);
  json.replace(json.find("\"a b\""), 5, "\"a c\"");
  EXPECT_ERROR(read(json), "merge 0 (\"a\" and \"c\"): \"c\" is not in the vocabulary");
  json = hugging_face(byte_level);
  json.replace(json.find("\"a b\""), 5, "\"ab\"");
  EXPECT_ERROR(read(json), "merge 0 is \"ab\"; expected two tokens");
  json = hugging_face(byte_level);
  json.replace(json.find("\"b\": 1"), 6, "\"b\": 0");
  EXPECT_ERROR(read(json), "two tokens have id 0");
  json.replace(json.find("\"b\": 0"), 6, "\"b\": -");
  EXPECT_ERROR(read(json), "t.json");
  json = hugging_face(byte_level);
  json.replace(json.find("\"1\": 3"), 6, "\"▁\": 3");
  EXPECT_ERROR(read(json), "token \"▁\" (id 3) is not written in the byte alphabet");
  json = hugging_face(byte_level);
  json.replace(json.find("\"special\": true"), 15, "\"lstrip\": true");
  EXPECT_ERROR(read(json), "added token \"<s>\" has lstrip = true");
  json = hugging_face(byte_level);
  json.replace(json.find("\"b\": 1"), 6, "\"b\": 9999999999");
  EXPECT_ERROR(read(json), "token \"b\" has id 9999999999");
}

TEST_F(Bpe, Gpt2FilesAreRead) {
  put("encoder.json", R"({"a": 0, "b": 1, "Ġ": 2, "ab": 3, "Ġab": 4, "<|endoftext|>": 5})");
  EXPECT_ERROR(load_tokenizer(folder / "encoder.json"), "needs vocab.bpe or merges.txt beside it");
  put("vocab.bpe", "#version: 0.2\na b\nĠ ab\n");
  const auto tokenizer = load_tokenizer(folder / "encoder.json");
  EXPECT_EQ(tokenizer->encode("ab ab<|endoftext|>a"), (Ids{3, 4, 5, 0}));
  put("vocab.bpe", "#version: 0.2\na b c\n");
  EXPECT_ERROR(load_tokenizer(folder / "encoder.json"), "encoder.json: merge 0 is \"a b c\"");
}

TEST_F(Bpe, TiktokenFilesAreRead) {
  // a b c ab bc abc " " "a1": ranks are ids.
  const std::string ranks = "YQ== 0\nYg== 1\nYw== 2\nYWI= 3\nYmM= 4\nYWJj 5\nIA== 6\nMQ== 7\nIGE= 8\n";
  put("cl100k_base.tiktoken", ranks);
  const auto tokenizer = load_tokenizer(folder / "cl100k_base.tiktoken");
  EXPECT_EQ(tokenizer->vocab_size(), 100277);
  EXPECT_EQ(tokenizer->encode("abc bc<|endoftext|>"), (Ids{5, 6, 4, 100257}));
  EXPECT_EQ(tokenizer->encode("1111"), (Ids{7, 7, 7, 7}));
  // cl100k keeps " abca" one piece: ab (rank 3) merges before bc (4) and " a" (8), then abc; r50k would cut it the same
  // way.
  EXPECT_EQ(tokenizer->encode(" abca"), (Ids{6, 5, 0}));
  EXPECT_ERROR(tokenizer->decode(Ids{50}), "id 50 has no token");
  EXPECT_ERROR(tokenizer->decode(Ids{100277}), "id 100277 of a vocabulary of 100277");
  for (const std::string name : {"r50k_base", "p50k_base", "p50k_edit", "o200k_base"}) {
    put(name + ".tiktoken", ranks);
    EXPECT_EQ(load_tokenizer(folder / (name + ".tiktoken"))->encode("abc"), (Ids{5})) << name;
  }
  put("mine.tiktoken", ranks);
  EXPECT_ERROR(load_tokenizer(folder / "mine.tiktoken"), "the name \"mine\" tells no split pattern");
  const auto damaged = [&](const std::string& content) {
    put("r50k_base.tiktoken", content);
    return load_tokenizer(folder / "r50k_base.tiktoken");
  };
  EXPECT_ERROR(damaged("YQ== 0\nYg= 1\n"), "line 2 is \"Yg= 1\"; expected base64");
  EXPECT_ERROR(damaged("YQ== 0\nYg==\n"), "line 2 is \"Yg==\"");
  EXPECT_ERROR(damaged("YQ== x\n"), "line 1 is");
  EXPECT_ERROR(damaged("YQ== 0\nYg== 0\n"), "line 2: rank 0 stands twice");
  EXPECT_ERROR(damaged("YQ== 0\nYQ== 1\n"), "ids 0 and 1 have the same bytes");
  EXPECT_ERROR(damaged(""), "holds no tokens");
}

TEST_F(Bpe, PreparesATextWithALearnedOrAGivenTokenizer) {
  std::string text;
  for (int i = 0; i < 200; ++i) text += "the number " + std::to_string(i) + " and the next\n";
  put("text.txt", text);
  std::ostringstream log;
  PrepareOptions options;
  options.tokenizer = "bpe";
  options.vocab_size = 280;
  prepare_text(folder / "text.txt", folder / "set", options, log);
  EXPECT_NE(log.str().find("vocabulary of 280 (bpe)"), std::string::npos) << log.str();
  TokensOptions tokens;
  tokens.path = (folder / "set").string();
  tokens.context = 8;
  const auto source = make_tokens(tokens, Split::train);
  EXPECT_EQ(source->description().vocab_size, 280);
  options.tokenizer = (folder / "set" / "tokenizer.json").string();
  prepare_text(folder / "text.txt", folder / "again", options, log);
  EXPECT_EQ(read_file(folder / "set" / "train.bin"), read_file(folder / "again" / "train.bin"));
  options.tokenizer = "wordz";
  EXPECT_ERROR(prepare_text(folder / "text.txt", folder / "none", options, log),
               "\"wordz\"; expected bytes, characters, bpe, or a tokenizer file");
}

TEST_F(Bpe, TokenFilesHoldIdsBeyond16Bits) {
  write_token_file(folder / "wide.bin", Ids{1, 65536, 200018});
  const TokenFile file(folder / "wide.bin");
  EXPECT_EQ(file.size(), 3);
  EXPECT_EQ(file[2], 200018);
  EXPECT_ERROR(write_token_file(folder / "bad.bin", Ids{0, -1}), "ids from -1 to 0");
}

}  // namespace
}  // namespace fovea::data
