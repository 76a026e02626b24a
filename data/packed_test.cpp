// SPDX-License-Identifier: Apache-2.0
// Where documents of a batch come from: packed samples, separators, files.
#include "data/packed.h"

#include <algorithm>

#include "core/io/hdf5.h"
#include "data/hdf5.h"
#include "data/test_util.h"
#include "data/text/tokens.h"

namespace fovea::data {
namespace {

class Packed : public TestFolder {};

// Recall of 24 tokens.
struct Options : config::Options {
  PackedOptions packed;
  Options(int64_t context, int64_t shortest) {
    config::load_text(*this, "", "test",
                      {{"context", std::to_string(context)},
                       {"shortest", std::to_string(shortest)},
                       {"of.kind", "recall"},
                       {"of.context", "24"}});
  }
  void describe(config::Fields& f) override { packed.describe(f); }
};

TEST_F(Packed, DocumentsAreBeginningsOfSamplesAndTheRestIsPadding) {
  const Options all(100, 9);
  const PackedOptions& options = all.packed;
  const auto packed = make_packed(options, Split::train),
             of = make_source(options.of, Split::train);
  std::vector<int64_t> paddings;
  for (int64_t index = 0; index < 12; ++index) {
    const Sample sample{index, 0, 0};
    const Batch batch = packed->make({&sample, 1}, 1);
    const auto in = batch.inputs.to_vector<int64_t>(), out = batch.targets.to_vector<int64_t>();
    const auto ids = batch.documents.to_vector<int32_t>();
    size_t at = 0;
    for (int32_t d = 0; at < ids.size() && ids[at] >= 0; ++d) {
      const auto end =
          static_cast<size_t>(std::find_if(ids.begin() + static_cast<int64_t>(at), ids.end(),
                                           [&](int32_t id) { return id != d; }) -
                              ids.begin());
      ASSERT_GE(end - at, 9u);
      ASSERT_LE(end - at, 24u);
      // The sample that begins so; in order of index.
      const Sample inner{index * (2 * 100 / 33) + d, 0, 0};
      const Batch whole = of->make({&inner, 1}, 1);
      for (size_t t = at; t < end; ++t) {
        ASSERT_EQ(in[t], whole.inputs.data<int64_t>()[t - at]);
        ASSERT_EQ(out[t], whole.targets.data<int64_t>()[t - at]);
      }
      at = end;
    }
    for (size_t t = at; t < ids.size(); ++t)
      ASSERT_TRUE(ids[t] == -1 && in[t] == 0 && out[t] == kIgnore) << t;
    paddings.push_back(static_cast<int64_t>(ids.size() - at));
  }
  EXPECT_LT(*std::max_element(paddings.begin(), paddings.end()), 24);
  EXPECT_NE(*std::max_element(paddings.begin(), paddings.end()),
            *std::min_element(paddings.begin(), paddings.end()));
}

TEST_F(Packed, DocumentsThatDoNotFitAreRefused) {
  EXPECT_ERROR(make_packed(Options(20, 9).packed, Split::train),
               "packed: documents of 9 to 24 tokens in sequences of 20");
  EXPECT_ERROR(make_packed(Options(100, 25).packed, Split::train), "documents of 25 to 24 tokens");
  EXPECT_ERROR(PackedOptions().of.select("packed"), "packed");
}

TEST_F(Packed, ASeparatorEndsADocument) {
  const std::vector<int64_t> ids{3, 1, 0, 2, 0, 0, 1, 2, 3};
  write_token_file(folder / "train.bin", ids);
  write_token_file(folder / "val.bin", ids);
  TokensOptions options;
  options.path = folder.string();
  options.context = 8;
  options.vocab_size = 4;
  const Sample sample{0, 0, 0};
  EXPECT_FALSE(make_tokens(options, Split::val)->make({&sample, 1}, 1).documents.defined());
  options.separator = 0;
  EXPECT_EQ(make_tokens(options, Split::val)->make({&sample, 1}, 1).documents.to_vector<int32_t>(),
            (std::vector<int32_t>{0, 0, 0, 1, 1, 2, 3, 3}));
  options.separator = 4;
  EXPECT_ERROR(make_tokens(options, Split::val), "separator 4 is outside the vocabulary of 4");
}

TEST_F(Packed, FilesSayTheirDocuments) {
  const std::string path = (folder / "packed.h5").string();
  const auto write = [&](const Tensor& documents) {
    Hdf5Writer file;
    file.write("train/tokens", Tensor::from(std::vector<int64_t>{1, 2, 3, 1, 2, 3, 1, 2}, {2, 4}));
    file.write("train/documents", documents);
    file.save(path);
  };
  Hdf5Options options;
  options.path = path;
  options.vocab_size = 4;
  write(Tensor::from(std::vector<int64_t>{0, 1, -1, 5, 5, 5}, {2, 3}));
  const Sample samples[] = {{0, 0, 0}, {1, 0, 1}};
  const Batch batch = make_hdf5(options, Split::train)->make(samples, 1);
  EXPECT_EQ(batch.documents.to_vector<int32_t>(), (std::vector<int32_t>{0, 1, -1, 5, 5, 5}));
  EXPECT_EQ(batch.targets.to_vector<int64_t>(), (std::vector<int64_t>{2, 3, kIgnore, 3, 1, 2}));
  write(Tensor::from(std::vector<int64_t>{0, 1, -2, 5, 5, 5}, {2, 3}));
  EXPECT_ERROR(make_hdf5(options, Split::train)->make(samples, 1),
               "train/documents row 0 holds -2; expected a number of a document, or -1");
  write(Tensor::zeros({2, 4}, Dtype::i64));
  EXPECT_ERROR(make_hdf5(options, Split::train), "train/documents is [2, 4]; expected [2, 3]");
}

}  // namespace
}  // namespace fovea::data
