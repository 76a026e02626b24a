// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <zlib.h>

#include <fstream>
#include <set>
#include <sstream>

#include "data/gzip.h"
#include "data/image/images.h"
#include "data/loader.h"
#include "data/prepare.h"
#include "data/test_util.h"
#include "data/text/tokens.h"

namespace fovea::data {
namespace {

class Data : public TestFolder {};

// ---- tokenizers ---------------------------------------------------------------------------------

TEST_F(Data, TokenizersRoundTripAndReload) {
  const std::string text = "naïve Ωmega — the end\n";
  for (const auto& make : {+[](const std::string&) { return byte_tokenizer(); },
                           +[](const std::string& t) { return character_tokenizer(t); }}) {
    const auto tokenizer = make(text);
    put("tokenizer.json", tokenizer->to_json());
    const auto again = load_tokenizer(folder / "tokenizer.json");
    EXPECT_EQ(again->vocab_size(), tokenizer->vocab_size());
    EXPECT_EQ(again->encode(text), tokenizer->encode(text));
    EXPECT_EQ(again->decode(again->encode(text)), text);
  }
  EXPECT_EQ(character_tokenizer("banana")->encode("nab"), (std::vector<int64_t>{2, 0, 1}));
}

TEST_F(Data, TokenizersNameWhatTheyCannotRead) {
  EXPECT_ERROR(character_tokenizer("abc")->encode("abx"), "\"x\" at byte 2");
  EXPECT_ERROR(character_tokenizer("ab\xff"), "byte 2 (value 255) is not UTF-8");
  EXPECT_ERROR(byte_tokenizer()->decode(std::vector<int64_t>{300}), "id 300");
  EXPECT_ERROR(character_tokenizer(""), "empty");
  put("t.json", "{\"kind\": \"wordz\"}");
  EXPECT_ERROR(load_tokenizer(folder / "t.json"), "wordz");
  put("t.json", "not json");
  EXPECT_ERROR(load_tokenizer(folder / "t.json"), "t.json: is no JSON");
}

// ---- token files --------------------------------------------------------------------------------

TEST_F(Data, TokenSamplesAreConsecutiveAndTargetsAreTheNextToken) {
  std::vector<int64_t> ids(1000);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int64_t>(i);
  write_token_file(folder / "train.bin", ids);
  write_token_file(folder / "val.bin", ids);
  TokensOptions options;
  options.path = folder.string();
  options.context = 64;
  options.vocab_size = 1000;
  const auto val = make_tokens(options, Split::val);
  EXPECT_EQ(val->size(), 15);
  const Sample samples[] = {{0, 0, 0}, {14, 3, 77}};
  const Batch batch = val->make(samples, 1);
  EXPECT_EQ(batch.inputs.shape(), (Shape{2, 64}));
  EXPECT_EQ(batch.inputs.select(0, 1).to_vector<int64_t>()[0], 14 * 64);
  EXPECT_EQ(batch.targets.select(0, 1).to_vector<int64_t>()[63], 15 * 64);
  const auto train = make_tokens(options, Split::train);
  std::set<int64_t> starts;
  for (uint64_t epoch = 0; epoch < 40; ++epoch) {
    const Sample sample{train->size() - 1, epoch, 0};
    const std::vector<int64_t> first = train->make({&sample, 1}, 1).inputs.to_vector<int64_t>();
    starts.insert(first[0]);
    EXPECT_LT(first[63], 999);
  }
  EXPECT_GT(starts.size(), 10u);  // the offset changes with the epoch
}

TEST_F(Data, TokenFilesOfLlmCAreRecognised) {
  std::string content(1024, '\0');
  const int32_t header[3] = {20240520, 1, 5};
  std::memcpy(content.data(), header, sizeof header);
  for (const uint16_t id : std::initializer_list<uint16_t>{7, 8, 9, 50256, 11})
    content.append(reinterpret_cast<const char*>(&id), 2);
  put("a.bin", content);
  const TokenFile file(folder / "a.bin");
  EXPECT_EQ(file.size(), 5);
  EXPECT_EQ(file[3], 50256);
  EXPECT_EQ(file.implied_vocab(), 50257);
  put("a.bin", content.substr(0, content.size() - 2));
  EXPECT_ERROR(TokenFile(folder / "a.bin"), "1034 bytes, but the file has 1032");
  // Cut inside the header, another version, other kinds of llm.c's files, and counts that no file
  // has.
  const auto with = [&](int32_t magic, int32_t version, int32_t count) {
    std::string changed = content;
    const int32_t words[3] = {magic, version, count};
    std::memcpy(changed.data(), words, sizeof words);
    return changed;
  };
  for (const size_t keep : {size_t{4}, size_t{10}, size_t{512}, size_t{1022}}) {
    put("a.bin", content.substr(0, keep));
    EXPECT_ERROR(TokenFile(folder / "a.bin"),
                 "a.bin: " + std::to_string(keep) + " bytes are less than the header of 1024");
  }
  put("a.bin", with(20240520, 2, 5));
  EXPECT_ERROR(TokenFile(folder / "a.bin"), "magic 20240520 with version 2; expected version 1");
  for (const int32_t magic : {20240522, 20240326, 20240327, 20240328}) {
    put("a.bin", with(magic, 1, 5));
    EXPECT_ERROR(TokenFile(folder / "a.bin"),
                 "is a file of llm.c that holds no tokens (magic " + std::to_string(magic) + ")");
  }
  for (const int32_t count : {-1, -5, 0, 6, 2147483647, -2147483647}) {
    put("a.bin", with(20240520, 1, count));
    EXPECT_ERROR(TokenFile(folder / "a.bin"), "a.bin: the header says");
  }
}

TEST_F(Data, TokenFilesThatCannotBeUsedAreRefused) {
  TokensOptions options;
  options.path = folder.string();
  options.context = 4;
  EXPECT_ERROR(make_tokens(options, Split::train), "train.bin");
  put("train.bin", "");
  EXPECT_ERROR(make_tokens(options, Split::train), "holds no tokens");
  put("train.bin", "abc");
  EXPECT_ERROR(make_tokens(options, Split::train), "3 bytes are no whole number");
  put("train.bin", std::string("\1\0", 2));
  EXPECT_ERROR(make_tokens(options, Split::train), "set data.vocab_size");
  options.vocab_size = 5;
  EXPECT_ERROR(make_tokens(options, Split::train), "1 tokens are too few for a context of 4");
  put("train.bin", std::string("\1\0\2\0\3\0\4\0\5\0", 10));
  // When it is opened: not a thousand steps later.
  EXPECT_ERROR(make_tokens(options, Split::train),
               "id 5 at position 4 is outside the vocabulary of 5");
}

TEST_F(Data, PreparesATextAndRefusesAnEmptyOne) {
  std::string text;
  for (int i = 0; i < 100; ++i) text += "line " + std::to_string(i) + "\n";
  put("text.txt", text);
  std::ostringstream log;
  prepare_text(folder / "text.txt", folder / "set", {}, log);
  TokensOptions options;
  options.path = (folder / "set").string();
  options.context = 16;
  const auto val = make_tokens(options, Split::val);
  const Sample sample{0, 0, 0};
  const std::string shown =
      val->description().tokenizer->decode(val->make({&sample, 1}, 1).inputs.to_vector<int64_t>());
  const size_t held_out = text.size() / 10;
  EXPECT_EQ(shown, text.substr(text.size() - held_out, 16));
  put("empty.txt", "");
  EXPECT_ERROR(prepare_text(folder / "empty.txt", folder / "none", {}, log), "empty.txt is empty");
  put("one.txt", "x");
  EXPECT_ERROR(prepare_text(folder / "one.txt", folder / "none", {}, log), "too short");
  EXPECT_FALSE(std::filesystem::exists(folder / "none"));
}

TEST_F(Data, AFailedPreparationLeavesTheOldSetWhole) {
  put("text.txt", "aaaa bbbb cccc dddd eeee ffff gggg hhhh");
  std::ostringstream log;
  prepare_text(folder / "text.txt", folder / "set", {}, log);
  const std::string train = read_file(folder / "set" / "train.bin"),
                    letters = read_file(folder / "set" / "tokenizer.json");
  std::filesystem::remove(folder / "set" / "val.bin");
  std::filesystem::create_directory(folder / "set" / "val.bin");  // cannot be replaced by a file
  PrepareOptions other;
  other.tokenizer = "bytes";
  EXPECT_ERROR(prepare_text(folder / "text.txt", folder / "set", other, log),
               "val.bin: is a folder");
  EXPECT_EQ(read_file(folder / "set" / "train.bin"), train);
  EXPECT_EQ(read_file(folder / "set" / "tokenizer.json"), letters);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder / "set"), {}), 3);
  // Bytes that a lenient reader takes for UTF-8, but JSON could not hold: overlong forms and
  // surrogates.
  for (const std::string bad : {"abcdefgh\xc0\xaf", "abcdefgh\xed\xa0\x80",
                                "abcdefgh\xf4\x90\x80\x80", "abcdefgh\xe0\x80\xaf"}) {
    put("text.txt", bad);
    EXPECT_ERROR(prepare_text(folder / "text.txt", folder / "none", {}, log), "text: byte 8 ");
  }
  EXPECT_FALSE(std::filesystem::exists(folder / "none"));
}

TEST_F(Data, CharactersOfAFileAreSingle) {
  for (const std::string entry : {"ab", "", "\\u0061\\u0301"}) {
    put("t.json", R"({"kind": "characters", "characters": ["x", ")" + entry + R"("]})");
    EXPECT_ERROR(load_tokenizer(folder / "t.json"), "t.json: entry 1 of the characters is");
  }
  put("t.json", R"({"kind": "characters", "characters": ["x", "x"]})");
  EXPECT_ERROR(load_tokenizer(folder / "t.json"), "stands twice");
  put("t.json", R"({"kind": "characters", "characters": 3})");
  EXPECT_ERROR(load_tokenizer(folder / "t.json"), "t.json");
}

// ---- IDX ----------------------------------------------------------------------------------------

std::string idx(const std::vector<uint32_t>& sizes, const std::string& values) {
  std::string out{'\0', '\0', '\x08', static_cast<char>(sizes.size())};
  for (const uint32_t size : sizes) {
    for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(size >> shift);
  }
  return out + values;
}

std::string gzip(const std::string& content) {
  z_stream stream{};
  deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  std::string out(content.size() + 100, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(content.data()));
  stream.avail_in = static_cast<uInt>(content.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

TEST_F(Data, IdxReadsPlainAndGzipAndRefusesDamage) {
  put("train-images-idx3-ubyte",
      idx({2, 2, 3}, std::string("\0\1\2\3\4\5\x06\x07\x08\x09\x0a\xff", 12)));
  put("train-labels-idx1-ubyte.gz", gzip(idx({2}, "\3\7")));
  ImageOptions options({0.5}, {0.5});
  options.path = folder.string();
  const auto source = make_idx(options, Split::train);
  EXPECT_EQ(source->size(), 2);
  const Sample sample{1, 0, 0};
  const Batch batch = source->make({&sample, 1}, 1);
  EXPECT_EQ(batch.inputs.shape(), (Shape{1, 1, 2, 3}));
  EXPECT_FLOAT_EQ(batch.inputs.to_vector<float>()[5], 1.0f);
  EXPECT_EQ(batch.targets.item(), 7);

  const std::string packed = gzip(idx({2}, "\3\7"));
  put("train-labels-idx1-ubyte.gz", packed.substr(0, packed.size() - 12));
  EXPECT_ERROR(make_idx(options, Split::train),
               "train-labels-idx1-ubyte.gz: the file is cut short");
  put("train-labels-idx1-ubyte.gz", gzip(idx({2}, "\3")));
  EXPECT_ERROR(make_idx(options, Split::train), "promises 2 values, the file holds 1");
  put("train-labels-idx1-ubyte.gz", gzip(idx({3}, "\3\3\3")));
  EXPECT_ERROR(make_idx(options, Split::train), "2 images, but");
  put("train-labels-idx1-ubyte.gz", gzip(idx({2}, "\3\xc8")));
  EXPECT_ERROR(make_idx(options, Split::train), "label 200");
  // Sizes whose product passes 64 bits, and a size of none.
  for (const auto& sizes : {std::vector<uint32_t>{1u << 20, 1u << 19, 2147483647u},
                            {2147483647u, 2147483647u, 2147483647u},
                            {1u << 22, 1u << 22, 1u << 20}}) {
    put("train-images-idx3-ubyte", idx(sizes, "abc"));
    EXPECT_ERROR(make_idx(options, Split::train),
                 "the sizes in the header pass 64 bits, the file holds 3 values");
  }
  put("train-images-idx3-ubyte", idx({2147483647u, 2147483647u, 1}, "abc"));
  EXPECT_ERROR(make_idx(options, Split::train),
               "promises 4611686014132420609 values, the file holds 3");
  put("train-images-idx3-ubyte", idx({2, 0, 3}, ""));
  EXPECT_ERROR(make_idx(options, Split::train), "axis 1 has size 0");
  put("train-images-idx3-ubyte", "garbage of some length here");
  EXPECT_ERROR(make_idx(options, Split::train), "does not start with 00 00 08 03");
  EXPECT_ERROR(make_idx(options, Split::val), "has no t10k-images-idx3-ubyte");
}

TEST_F(Data, GzipFilesMayHoldSeveralMembersAndNothingElse) {
  put("a.gz", gzip("one ") + gzip("two"));
  EXPECT_EQ(read_maybe_gzip(folder / "a.gz"), "one two");
  put("a.gz", gzip("one ") + "junk after it");
  EXPECT_ERROR(read_maybe_gzip(folder / "a.gz"), "gzip " + (folder / "a.gz").string());
  const std::string whole = gzip(std::string(5000, 'x') + "end");
  for (size_t keep = 2; keep < whole.size(); ++keep) {
    put("a.gz", whole.substr(0, keep));
    EXPECT_ERROR(read_maybe_gzip(folder / "a.gz"), "the file is cut short");
  }
  std::string damaged = whole;
  damaged[whole.size() - 6] = static_cast<char>(damaged[whole.size() - 6] ^ 1);  // its CRC-32
  put("a.gz", damaged);
  EXPECT_ERROR(read_maybe_gzip(folder / "a.gz"), "incorrect data check");
  put("a.gz", whole);
  EXPECT_EQ(read_maybe_gzip(folder / "a.gz", 5003).size(), 5003U);
  EXPECT_ERROR(read_maybe_gzip(folder / "a.gz", 5002), "unpacks to more than 5002 bytes");
}

TEST(Augment, FlipsAndShiftsByTheDraw) {
  AugmentOptions options;
  options.flip = true;
  options.crop_padding = 2;
  int flipped = 0;
  std::set<int64_t> places;
  for (uint64_t i = 0; i < 400; ++i) {
    std::vector<float> image(7 * 7, 0.0f);
    image[3 * 7 + 3] = 1.0f;
    image[3 * 7 + 4] = 2.0f;
    Draw draw(RngKey(1, "augment", "", i));
    augment(image.data(), 1, 7, 7, options, draw);
    const auto at = std::find(image.begin(), image.end(), 1.0f) - image.begin();
    flipped += at % 7 > 0 && image[static_cast<size_t>(at - 1)] == 2.0f ? 1 : 0;
    places.insert(at);
  }
  EXPECT_NEAR(flipped, 200, 50);
  EXPECT_EQ(places.size(), 25u);
}

// ---- loader -------------------------------------------------------------------------------------

// Samples whose only content is their number.
class Numbers final : public Source {
 public:
  explicit Numbers(int64_t count, int64_t broken = -1) : count_(count), broken_(broken) {}
  int64_t size() const override { return count_; }
  Batch make(std::span<const Sample> samples, uint64_t) const override {
    std::vector<int64_t> index;
    for (const Sample& s : samples) {
      FOVEA_CHECK(s.index != broken_, "sample ", broken_, " is broken");
      index.push_back(s.index);
    }
    return {Tensor::from(index, {static_cast<int64_t>(index.size())}), {}, {}};
  }

 private:
  int64_t count_, broken_;
};

TEST(Loader, AnEpochIsAPermutationAndTheNextOneDiffers) {
  for (const int64_t size : {1, 2, 5, 64, 1000}) {
    std::vector<int64_t> first, second;
    for (int64_t i = 0; i < size; ++i) {
      first.push_back(shuffled(i, size, 3, 0));
      second.push_back(shuffled(i, size, 3, 1));
    }
    if (size > 5) {
      EXPECT_NE(first, second);
    }
    std::sort(first.begin(), first.end());
    for (int64_t i = 0; i < size; ++i) EXPECT_EQ(first[static_cast<size_t>(i)], i);
  }
}

TEST(Loader, SeekingGivesTheSameBatchesWithAnyPrefetchAndShards) {
  const Numbers source(37);
  LoaderOptions options;
  options.batch = 8;
  Loader whole(source, options);
  std::vector<std::vector<int64_t>> batches;
  batches.reserve(12);
  for (int i = 0; i < 12; ++i) batches.push_back(whole.next().inputs.to_vector<int64_t>());
  EXPECT_EQ(whole.position(), 96);
  options.prefetch = 0;
  Loader later(source, options);
  later.seek(40);
  EXPECT_EQ(later.next().inputs.to_vector<int64_t>(), batches[5]);
  whole.seek(16);
  EXPECT_EQ(whole.next().inputs.to_vector<int64_t>(), batches[2]);
  for (const int64_t ranks : {1, 2, 3, 5, 8}) {
    std::vector<int64_t> all;
    for (int64_t rank = 0; rank < ranks; ++rank) {
      options.rank = rank;
      options.ranks = ranks;
      Loader part(source, options);
      const std::vector<int64_t> share = part.next().inputs.to_vector<int64_t>();
      EXPECT_LE(static_cast<int64_t>(share.size()), (8 + ranks - 1) / ranks);
      all.insert(all.end(), share.begin(), share.end());
      EXPECT_EQ(part.position(), 8);
    }
    EXPECT_EQ(all, batches[0]) << ranks;
  }
  EXPECT_ERROR(later.seek(3), "no multiple of the batch of 8");
  options.ranks = 9;
  EXPECT_ERROR(Loader(source, options), "a batch of 8 leaves some of 9 ranks without a sample");
}

TEST(Loader, AnErrorOfTheWorkerReachesTheCaller) {
  const Numbers source(10, 7);
  Loader loader(source, {});
  EXPECT_ERROR(loader.next(), "sample 7 is broken");
}

}  // namespace
}  // namespace fovea::data
