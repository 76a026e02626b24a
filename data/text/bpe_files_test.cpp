// SPDX-License-Identifier: Apache-2.0
// Tokenizer files of other programs: the same ids, and no crash for what is damaged.
#include <gtest/gtest.h>

#include "data/text/bpe_test_util.h"

namespace fovea::data {
namespace {

class BpeFiles : public TestFolder {};

TEST_F(BpeFiles, HuggingFaceFilesRoundTrip) {
  BpeModel model = model_of({{"h", "e"}, {"l", "l"}, {" ", "he"}});
  model.added = {{"<|end|>", 259}, {"<|end|>more", 260}};
  const auto tokenizer = make_bpe(model);
  EXPECT_EQ(tokenizer->vocab_size(), 261);
  EXPECT_EQ(words(*tokenizer, "he<|end|> he<|end|>more"),
            (Words{"he", "<|end|>", " he", "<|end|>more"}));
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

TEST_F(BpeFiles, IgnoreMergesTakesAPieceThatIsATokenWhole) {
  BpeModel model = model_of({{"a", "b"}, {"b", "c"}});
  model.tokens.push_back("abc");  // no merge reaches it from ab + c
  EXPECT_EQ(words(*make_bpe(model), "abc"), (Words{"ab", "c"}));
  model.whole_pieces = true;
  EXPECT_EQ(words(*make_bpe(model), "abc"), (Words{"abc"}));
}

// A small tokenizer.json in the older style (merges as text, "Ġ" for a space) with `pre` and
// members before and inside the model.
std::string hugging_face(const std::string& pre, const std::string& members = "",
                         const std::string& inside = "") {
  return R"({"version": "1.0", "added_tokens": [{"id": 6, "content": "<s>", "special": true}], )" +
         members + R"("pre_tokenizer": )" + pre + R"(, "model": {"type": "BPE", )" + inside +
         R"("vocab": {"a": 0, "b": 1, "Ġ": 2, "1": 3, "ab": 4, "Ġab": 5, "<s>": 6}, "merges": ["a b", "Ġ ab"]}})";
}

TEST_F(BpeFiles, HuggingFaceFilesOfOtherStylesAreRead) {
  const std::string byte_level =
      R"({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true})";
  const auto plain = make_bpe(read_huggingface(hugging_face(byte_level), "x"));
  EXPECT_EQ(plain->encode("ab ab<s>b"), (Ids{4, 5, 6, 1}));
  EXPECT_EQ(plain->vocab_size(), 7);
  EXPECT_EQ(plain->decode(Ids{5, 6, 4}), " ab<s>ab");
  EXPECT_ERROR(plain->encode("ab c"), "byte 3 (value 99) has no token");
  const std::string llama =
      R"re({"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "(?i:b)| ?\\p{L}"},
      "behavior": "Isolated", "invert": false}, {"type": "ByteLevel", "use_regex": false, "add_prefix_space": false}]})re";
  EXPECT_EQ(make_bpe(read_huggingface(hugging_face(llama), "x"))->encode("ab ab"),
            (Ids{0, 1, 2, 0, 1}));
  const std::string digits =
      R"({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, )" +
      byte_level + "]}";
  EXPECT_EQ(make_bpe(read_huggingface(hugging_face(digits), "x"))->encode("ab11"), (Ids{4, 3, 3}));
}

TEST_F(BpeFiles, HuggingFaceFilesThatCannotBeReproducedAreRefused) {
  const std::string byte_level = R"({"type": "ByteLevel"})";
  const auto read = [&](const std::string& json) {
    return make_bpe(read_huggingface(json, "t.json"));
  };
  EXPECT_ERROR(read("{"), "tokenizer t.json: ");
  EXPECT_ERROR(read("{}"), "has no pre_tokenizer");
  EXPECT_ERROR(read(hugging_face(byte_level, R"("normalizer": {"type": "NFC"}, )")),
               "normalizer NFC is not supported");
  EXPECT_ERROR(read(hugging_face(R"({"type": "Metaspace"})")),
               "pre-tokenizer Metaspace is not supported");
  EXPECT_ERROR(read(hugging_face(R"({"type": "ByteLevel", "add_prefix_space": true})")),
               "add_prefix_space = true, which is not supported");
  EXPECT_ERROR(read(hugging_face(R"({"type": "Digits"})")), "has no ByteLevel");
  EXPECT_ERROR(read(hugging_face(R"({"type": "Split", "pattern": {"String": "a"}})")),
               "expected a Regex");
  EXPECT_ERROR(read(hugging_face(byte_level, "", R"("dropout": 0.1, )")),
               "model has dropout = 0.1");
  EXPECT_ERROR(read(hugging_face(byte_level, "", R"("byte_fallback": true, )")),
               "model has byte_fallback = true");
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

TEST_F(BpeFiles, Gpt2FilesAreRead) {
  put("encoder.json", R"({"a": 0, "b": 1, "Ġ": 2, "ab": 3, "Ġab": 4, "<|endoftext|>": 5})");
  EXPECT_ERROR(load_tokenizer(folder / "encoder.json"), "needs vocab.bpe or merges.txt beside it");
  put("vocab.bpe", "#version: 0.2\na b\nĠ ab\n");
  const auto tokenizer = load_tokenizer(folder / "encoder.json");
  EXPECT_EQ(tokenizer->encode("ab ab<|endoftext|>a"), (Ids{3, 4, 5, 0}));
  put("vocab.bpe", "#version: 0.2\r\na b\r\nĠ ab\r\n");
  EXPECT_EQ(load_tokenizer(folder / "encoder.json")->encode("ab ab"), (Ids{3, 4}));
  put("vocab.bpe", "#version: 0.2\na b c\n");
  EXPECT_ERROR(load_tokenizer(folder / "encoder.json"), "encoder.json: merge 0 is \"a b c\"");
}

TEST_F(BpeFiles, TiktokenFilesAreRead) {
  // a b c ab bc abc " " "a1": ranks are ids.
  const std::string ranks =
      "YQ== 0\nYg== 1\nYw== 2\nYWI= 3\nYmM= 4\nYWJj 5\nIA== 6\nMQ== 7\nIGE= 8\n";
  put("cl100k_base.tiktoken", ranks);
  const auto tokenizer = load_tokenizer(folder / "cl100k_base.tiktoken");
  EXPECT_EQ(tokenizer->vocab_size(), 100277);
  EXPECT_EQ(tokenizer->encode("abc bc<|endoftext|>"), (Ids{5, 6, 4, 100257}));
  EXPECT_EQ(tokenizer->encode("1111"), (Ids{7, 7, 7, 7}));
  // cl100k keeps " abca" one piece: ab (rank 3) merges before bc (4) and " a" (8), then abc; r50k
  // would cut it the same way.
  EXPECT_EQ(tokenizer->encode(" abca"), (Ids{6, 5, 0}));
  EXPECT_ERROR(tokenizer->decode(Ids{50}), "id 50 has no token");
  EXPECT_ERROR(tokenizer->decode(Ids{100277}), "id 100277 of a vocabulary of 100277");
  for (const std::string name : {"r50k_base", "p50k_base", "p50k_edit", "o200k_base"}) {
    put(name + ".tiktoken", ranks);
    EXPECT_EQ(load_tokenizer(folder / (name + ".tiktoken"))->encode("abc"), (Ids{5})) << name;
  }
  put("mine.tiktoken", ranks);
  EXPECT_ERROR(load_tokenizer(folder / "mine.tiktoken"),
               "the name \"mine\" tells no split pattern");
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

// ---- the same ids as other programs -------------------------------------------------------------

// Base64, as .tiktoken files hold tokens.
std::string base64(std::string_view bytes) {
  static constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t at = 0; at < bytes.size(); at += 3) {
    uint32_t bits = 0;
    for (size_t i = 0; i < 3; ++i)
      bits = (bits << 8) | (at + i < bytes.size() ? static_cast<unsigned char>(bytes[at + i]) : 0u);
    for (size_t i = 0; i < 4; ++i)
      out += at + i <= bytes.size() ? kDigits[(bits >> (18 - 6 * i)) & 63] : '=';
  }
  return out;
}

// Ids that tokenizers 0.23.3 gives with the splits of GPT-2 and of Llama-3 (with ignore_merges),
// and tiktoken 0.14.0 with those of r50k_base, cl100k_base and o200k_base, over these merges.
TEST_F(BpeFiles, IdsAreThoseOfOtherPrograms) {
  const BpeModel model =
      model_of({{" ", "t"},       {"h", "e"},           {"i", "n"},       {" t", "he"},
                {"'", "s"},       {"'", "l"},           {"'l", "l"},      {"l", "l"},
                {" ", " "},       {"  ", "  "},         {"\n", "\n"},     {"\n", " "},
                {"0", "1"},       {"2", "3"},           {"01", "2"},      {"1", "2"},
                {"12", "3"},      {"D", "o"},           {"n", "'"},       {"'", "t"},
                {"\xe4", "\xbd"}, {"\xe4\xbd", "\xa0"}, {"\xf0", "\x9f"}, {"\xf0\x9f", "\x98"},
                {"\xcc", "\x81"}, {"e", "\xcc\x81"},    {"\xc2", "\xa0"}, {"\xe1", "\xa0"},
                {"!", "!"},       {" ", "\xe1\xa0"},    {"a", "b"},       {"ab", "c"},
                {"b", "c"},       {"a", "bc"},          {"a", "b"}});
  struct Row {
    std::string text;
    Ids gpt2, llama3, r50k, cl100k, o200k;
  };
  const std::vector<Row> rows{
      {"the the  in",
       {83, 257, 259, 220, 220, 258},
       {83, 257, 259, 220, 220, 258},
       {83, 257, 259, 220, 220, 258},
       {83, 257, 259, 220, 220, 258},
       {83, 257, 259, 220, 220, 258}},
      {"  \n\n  x \n",
       {264, 266, 220, 220, 87, 220, 198},
       {264, 266, 220, 220, 87, 220, 198},
       {264, 266, 220, 220, 87, 220, 198},
       {264, 266, 220, 220, 87, 220, 198},
       {264, 266, 220, 220, 87, 220, 198}},
      {"I'll DON'T don't it's 'S '",
       {40, 262, 220, 35, 46, 45,  6,   51, 220, 67,  78,
        77, 275, 220, 72, 83, 260, 220, 6,  50,  220, 6},
       {40, 262, 220, 35, 46, 45,  6,   51, 220, 67,  78,
        77, 275, 220, 72, 83, 260, 220, 6,  50,  220, 6},
       {40, 262, 220, 35, 46, 45,  6,   51, 220, 67,  78,
        77, 275, 220, 72, 83, 260, 220, 6,  50,  220, 6},
       {40, 262, 220, 35, 46, 45,  6,   51, 220, 67,  78,
        77, 275, 220, 72, 83, 260, 220, 6,  50,  220, 6},
       {40,  262, 220, 35, 46, 45,  6,   51, 220, 67,  78,
        274, 83,  220, 72, 83, 260, 220, 6,  50,  220, 6}},
      {"0123 01234567 \xc2\xbd\xd9\xa3",
       {268, 269, 220, 268, 269, 19, 20, 21, 22, 220, 126, 121, 149, 96},
       {270, 18, 220, 270, 18, 19, 20, 21, 22, 220, 126, 121, 149, 96},
       {268, 269, 220, 268, 269, 19, 20, 21, 22, 220, 126, 121, 149, 96},
       {270, 18, 220, 270, 18, 19, 20, 21, 22, 220, 126, 121, 149, 96},
       {270, 18, 220, 270, 18, 19, 20, 21, 22, 220, 126, 121, 149, 96}},
      {"\xe4\xbd\xa0\xe5\xa5\xbd \xe4\xbd\xa0 \xf0\x9f\x98\x80\xf0\x9f\x98\x81",
       {277, 161, 98, 121, 220, 277, 220, 279, 222, 279, 223},
       {277, 161, 98, 121, 220, 277, 220, 279, 222, 279, 223},
       {277, 161, 98, 121, 220, 277, 220, 279, 222, 279, 223},
       {277, 161, 98, 121, 220, 277, 220, 279, 222, 279, 223},
       {277, 161, 98, 121, 220, 277, 220, 279, 222, 279, 223}},
      {"cafe\xcc\x81 \xcc\x81 e\xcc\x81",
       {66, 64, 69, 68, 280, 220, 280, 220, 68, 280},
       {66, 64, 69, 68, 280, 220, 280, 220, 68, 280},
       {66, 64, 69, 68, 280, 220, 280, 220, 68, 280},
       {66, 64, 69, 68, 280, 220, 280, 220, 68, 280},
       {66, 64, 69, 281, 220, 280, 220, 281}},
      {"a\xc2\xa0\xc2\xa0"
       "b\xe1\xa0\x8e"
       "c \xe1\xa0\x8e \xe2\x80\xa8"
       "d\xc2\x85",
       {64, 282, 282, 65, 283, 236, 66, 285, 236, 220, 158, 222, 101, 67, 126, 227},
       {64, 282, 282, 65, 283, 236, 66, 285, 236, 220, 158, 222, 101, 67, 126, 227},
       {64, 282, 282, 65, 283, 236, 66, 285, 236, 220, 158, 222, 101, 67, 126, 227},
       {64, 282, 282, 65, 283, 236, 66, 285, 236, 220, 158, 222, 101, 67, 126, 227},
       {64, 282, 282, 65, 283, 236, 66, 285, 236, 220, 158, 222, 101, 67, 126, 227}},
      {"!!! !\n\n!/",
       {284, 0, 220, 0, 198, 198, 0, 14},
       {284, 0, 220, 0, 266, 0, 14},
       {284, 0, 220, 0, 198, 198, 0, 14},
       {284, 0, 220, 0, 266, 0, 14},
       {284, 0, 220, 0, 266, 0, 14}},
      {"abc aabc bcab",
       {287, 220, 64, 287, 220, 288, 286},
       {287, 220, 64, 287, 220, 288, 286},
       {287, 220, 64, 287, 220, 288, 286},
       {287, 220, 64, 287, 220, 288, 286},
       {287, 220, 64, 287, 220, 288, 286}},
      {"\r\n\r\n  ",
       {201, 198, 201, 198, 264},
       {201, 198, 201, 198, 264},
       {201, 198, 201, 198, 264},
       {201, 198, 201, 198, 264},
       {201, 198, 201, 198, 264}},
      {"x\n ", {87, 267}, {87, 198, 220}, {87, 267}, {87, 267}, {87, 198, 220}},
      {"c \xe1\xa0\x8ex",
       {66, 285, 236, 87},
       {66, 285, 236, 87},
       {66, 285, 236, 87},
       {66, 285, 236, 87},
       {66, 285, 236, 87}},
      {"\xc5\xbf's '\xc5\xbf \xc7\x85\xca\xb0"
       "a",
       {129, 123, 260, 220, 6, 129, 123, 220, 131, 227, 134, 108, 64},
       {129, 123, 260, 220, 6, 129, 123, 220, 131, 227, 134, 108, 64},
       {129, 123, 260, 220, 6, 129, 123, 220, 131, 227, 134, 108, 64},
       {129, 123, 260, 220, 6, 129, 123, 220, 131, 227, 134, 108, 64},
       {129, 123, 260, 220, 6, 129, 123, 220, 131, 227, 134, 108, 64}},
      {"    ", {265}, {265}, {265}, {265}, {265}},
      {"a\tb\t\tc",
       {64, 197, 65, 197, 197, 66},
       {64, 197, 65, 197, 197, 66},
       {64, 197, 65, 197, 197, 66},
       {64, 197, 65, 197, 197, 66},
       {64, 197, 65, 197, 197, 66}},
  };
  BpeModel llama = model;
  llama.split = {
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"};
  llama.whole_pieces = true;
  std::string ranks;
  for (size_t id = 0; id < model.tokens.size(); ++id)
    ranks += base64(model.tokens[id]) + ' ' + std::to_string(id) + '\n';
  const auto tiktoken = [&](const std::string& name) {
    put(name + ".tiktoken", ranks);
    return load_tokenizer(folder / (name + ".tiktoken"));
  };
  // Through files, as they are used.
  put("gpt2.json", write_huggingface(model));
  put("llama3.json", write_huggingface(llama));
  const auto gpt2 = load_tokenizer(folder / "gpt2.json"),
             llama3 = load_tokenizer(folder / "llama3.json");
  const auto r50k = tiktoken("r50k_base"), cl100k = tiktoken("cl100k_base"),
             o200k = tiktoken("o200k_base");
  for (const Row& row : rows) {
    EXPECT_EQ(gpt2->encode(row.text), row.gpt2) << row.text;
    EXPECT_EQ(llama3->encode(row.text), row.llama3) << row.text;
    EXPECT_EQ(r50k->encode(row.text), row.r50k) << row.text;
    EXPECT_EQ(cl100k->encode(row.text), row.cl100k) << row.text;
    EXPECT_EQ(o200k->encode(row.text), row.o200k) << row.text;
    EXPECT_EQ(cl100k->decode(row.cl100k), row.text);
  }
}

TEST_F(BpeFiles, WhitespaceIsThatOfUnicodeAndLinesEndAtDollar) {
  // U+180E is white space for PCRE2 but not for Unicode; U+0085 and U+3000 are for both.
  const Splitter gpt2({std::string(kGpt2Split)});
  EXPECT_EQ(pieces(gpt2, "a \u180e b"), (Words{"a", " \u180e", " b"}));
  EXPECT_EQ(pieces(gpt2, "a\u3000\u0085b"), (Words{"a", "\u3000", "\u0085", "b"}));
  EXPECT_EQ(pieces(Splitter({R"([\s!]+)"}), "a! \u180e"),
            (Words{"a", "! ", "\u180e"}));  // also inside a class
  EXPECT_EQ(pieces(Splitter({R"(\\s+)"}), R"(a\ssb)"),
            (Words{"a", R"(\ss)", "b"}));  // an escaped backslash, then s
  EXPECT_EQ(pieces(Splitter({"a$|^b"}), "aa\nba\nb"), (Words{"a", "a", "\n", "b", "a", "\n", "b"}));
}

TEST_F(BpeFiles, NormalizedAddedTokensAreLookedForInWhatTheOthersLeave) {
  BpeModel model = model_of({{"a", "b"}});
  model.added = {{"ab", 300}, {"bc", 301}, {"c d", 302}};
  model.added_last = {"ab"};
  put("tokenizer.json", write_huggingface(model));
  const auto tokenizer =
      load_tokenizer(folder / "tokenizer.json");        // the difference survives the file
  EXPECT_EQ(tokenizer->encode("abc"), (Ids{64, 301}));  // not "ab", "c": "bc" goes first
  EXPECT_EQ(tokenizer->encode("xab"), (Ids{87, 300}));
  EXPECT_EQ(tokenizer->encode("abc dab"), (Ids{64, 301, 220, 67, 300}));
}

TEST_F(BpeFiles, OfAMergeListedTwiceTheLastRankCounts) {
  BpeModel model = model_of({{"a", "b"}, {"b", "c"}});
  EXPECT_EQ(words(*make_bpe(model), "abc"), (Words{"ab", "c"}));
  BpeMerge again = model.merges[0];
  again.rank = 2;
  model.merges.push_back(again);
  EXPECT_EQ(words(*make_bpe(model), "abc"), (Words{"a", "bc"}));
}

// ---- damage -------------------------------------------------------------------------------------

// Files cut at every byte, and with a bit turned over in every byte: an error that names the file,
// or a tokenizer that still does its work.
TEST_F(BpeFiles, TokenizerFilesCutOrDamagedAnywhereNeverCrash) {
  BpeModel model = model_of({});
  model.tokens.resize(1);
  model.tokens[0] = "a";
  model.tokens.insert(model.tokens.end(), {"b", "ab", " "});
  model.merges = {{0, 1, 2, 0}};
  model.added = {{"<s>", 4}};
  const std::map<std::string, std::string> files{
      {"hf.json", write_huggingface(model)},
      {"characters.json", character_tokenizer("abé ")->to_json()},
      {"r50k_base.tiktoken", "YQ== 0\nYg== 1\nYWI= 2\nIA== 3\n"}};
  for (const auto& [name, whole] : files) {
    const auto use = [&](const std::string& content) {
      put(name, content);
      try {
        const auto tokenizer = load_tokenizer(folder / name);
        try {
          const Ids ids = tokenizer->encode("ab ab<s>b");
          static_cast<void>(tokenizer->decode(ids));
          static_cast<void>(tokenizer->to_json());
        } catch (const Error&) {  // a letter went missing
        }
      } catch (const Error& e) {
        EXPECT_TRUE(std::string_view(e.what()).starts_with("tokenizer " + (folder / name).string()))
            << e.what();
        EXPECT_EQ(std::string_view(e.what()).find('\n'), std::string_view::npos) << e.what();
        return false;
      }
      return true;
    };
    EXPECT_TRUE(use(whole));
    size_t refused = 0;
    for (size_t at = 0; at < whole.size(); ++at) {
      refused += use(whole.substr(0, at)) ? 0 : 1;
      std::string damaged = whole;
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << (at % 8)));
      use(damaged);
    }
    // JSON that lacks anything but its last line break is refused; lines of a .tiktoken file may be
    // fewer.
    if (name.ends_with(".json")) {
      EXPECT_EQ(refused, whole.size() - 1) << name;
    }
  }
}

TEST_F(BpeFiles, DeepNestingIsRefusedAndNotFollowed) {
  const std::string depth(200000, '['),
      nested = R"({"pre_tokenizer": {"type": "ByteLevel", "x": )" + depth +
               std::string(200000, ']') + R"(}, "model": {}})";
  put("deep.json", nested);
  EXPECT_ERROR(load_tokenizer(folder / "deep.json"), "deep.json: is nested more than 32 deep");
  put("deep.json", depth);
  EXPECT_ERROR(load_tokenizer(folder / "deep.json"), "deep.json: is nested more than 32 deep");
}

}  // namespace
}  // namespace fovea::data
