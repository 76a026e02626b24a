// SPDX-License-Identifier: Apache-2.0
#include "data/text/bpe.h"

#include <gtest/gtest.h>

#include <sstream>

#include "core/rng.h"
#include "data/prepare.h"
#include "data/text/bpe_test_util.h"
#include "data/text/tokens.h"

namespace fovea::data {
namespace {

class Bpe : public TestFolder {};

TEST_F(Bpe, Gpt2SplitCutsAsPublished) {
  const Splitter splitter({std::string(kGpt2Split)});
  EXPECT_EQ(pieces(splitter, "Hello world, it's 2024!"),
            (Words{"Hello", " world", ",", " it", "'s", " 2024", "!"}));
  EXPECT_EQ(pieces(splitter, "a   b\n\n c"), (Words{"a", "  ", " b", "\n\n", " c"}));
  EXPECT_EQ(pieces(splitter, "naïve Ωmega٣x  "), (Words{"naïve", " Ωmega", "٣", "x", "  "}));
  EXPECT_EQ(pieces(splitter, ""), Words{});
}

TEST_F(Bpe, SplitKeepsGapsAndBytesThatAreNoUtf8) {
  EXPECT_EQ(pieces(Splitter({"b+"}), "abbac"), (Words{"a", "bb", "ac"}));
  EXPECT_EQ(pieces(Splitter({"b*"}), "abb"), (Words{"a", "bb"}));  // empty matches cut nothing
  EXPECT_EQ(pieces(Splitter({R"(\p{N})", std::string(kGpt2Split)}), "a12 b"),
            (Words{"a", "1", "2", " b"}));
  const Splitter gpt2({std::string(kGpt2Split)});
  EXPECT_EQ(pieces(gpt2,
                   "ab\xff\xfe"
                   "cd"),
            (Words{"ab", "\xff\xfe", "cd"}));
  EXPECT_EQ(pieces(gpt2, "\xc3"), (Words{"\xc3"}));  // cut inside a character
  EXPECT_EQ(pieces(gpt2, "x\xed\xa0\x80y"), (Words{"x", "\xed\xa0\x80", "y"}));  // a surrogate
  EXPECT_EQ(pieces(gpt2, "\xc0\xaf"), (Words{"\xc0\xaf"}));                      // overlong
  EXPECT_ERROR(Splitter({"a("}),
               "\"a(\" does not compile: missing closing parenthesis at offset 2");
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
  const auto tokenizer =
      make_bpe(model_of({{"h", "e"}, {"l", "l"}, {"ll", "o"}, {"he", "llo"}, {"a", "a"}}));
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
  const auto tokenizer =
      train_bpe("the cat and the hat and the rat \xff\xff\xfe \xff\xff\xfe", 264);
  std::string bytes;
  for (uint64_t i = 0; i < 20000; ++i)
    bytes += static_cast<char>(random_below(RngKey(3, "bytes", ""), i, 256));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(bytes)), bytes);
  const std::string mixed = "the \xf0\x9f\x98\x80 naïve \xf0\x9f\x98 end\xff";
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(mixed)), mixed);
}

TEST_F(Bpe, TrainingMergesByCountThenById) {
  // Pieces: "low" 1, " low" 2, " lower" 1, " newest" 2. Counts: lo 4, ow 4; of the two, l < o, so
  // "lo" first, then "low" 4.
  const BpeModel model = train_bpe_model("low low low lower newest newest", 259);
  ASSERT_EQ(model.merges.size(), 3u);
  EXPECT_EQ(model.tokens[256], "lo");
  EXPECT_EQ(model.tokens[257], "low");
  EXPECT_EQ(model.tokens[258],
            " low");  // 3 times; "we" (lower, newest, newest) too, but its ids are higher
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
  EXPECT_ERROR(train_bpe("abab", 300),
               "after 257 tokens no pair of the text stands twice; ask for at most 257");
  EXPECT_ERROR(train_bpe("", 257), "ask for at most 256");
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
