// SPDX-License-Identifier: Apache-2.0
#include "core/io/hdf5.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "core/io/file.h"
#include "core/rng.h"

namespace fovea {
namespace {

class Hdf5 : public testing::Test {
 protected:
  void SetUp() override { path = std::filesystem::temp_directory_path() / ("fovea_hdf5_test." + std::to_string(getpid())); }
  void TearDown() override { std::filesystem::remove(path); }
  std::string error() {
    try {
      const Hdf5Reader reader(path);
      reader.read("model/weights");
      reader.attribute("/", "config");
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  }
  std::filesystem::path path;
};

TEST_F(Hdf5, EveryDtypeAndRankComesBackBitForBit) {
  Hdf5Writer writer;
  std::vector<Tensor> tensors;
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f64, Dtype::i64, Dtype::i32, Dtype::u8, Dtype::boolean}) {
    for (const Shape& shape : {Shape{}, Shape{1}, Shape{700, 801}, Shape{2, 3, 5, 7}, Shape{0, 4}}) {
      const Tensor values = Tensor::empty(shape);
      fill_uniform(values, RngKey(1, "test", "x"), -3.0, 3.0);
      tensors.push_back(values.to(dtype));
      writer.write("a/b/t" + std::to_string(tensors.size()), tensors.back());
    }
  }
  writer.attribute("/", "config", "line 1\nline 2");
  writer.save(path);
  const Hdf5Reader reader(path);
  EXPECT_EQ(reader.attribute("/", "config"), "line 1\nline 2");
  EXPECT_FALSE(reader.attribute("/", "absent").has_value());
  EXPECT_EQ(reader.members("a/b").size(), tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor back = reader.read("a/b/t" + std::to_string(i + 1));
    EXPECT_EQ(back.shape(), tensors[i].shape());
    EXPECT_EQ(back.dtype(), tensors[i].dtype());
    if (back.numel() > 0) {
      EXPECT_EQ(std::memcmp(back.raw(), tensors[i].raw(), static_cast<size_t>(back.bytes())), 0);
    }
  }
  EXPECT_EQ(reader.read_rows("a/b/t3", 5, 9).to_vector<float>(), tensors[2].slice(0, 5, 9).to_vector<float>());
}

TEST_F(Hdf5, TruncatedDamagedAndForeignFilesAreRefusedByName) {
  Hdf5Writer writer;
  writer.write("model/weights", Tensor::full({300, 300}, 0.3));
  writer.attribute("/", "config", "x");
  writer.save(path);
  EXPECT_EQ(error(), "");
  const std::string whole = read_file(path);
  int refused = 0;
  for (size_t keep = 0; keep < whole.size(); keep += whole.size() / 23 + 1) {
    replace_file(path, whole.substr(0, keep));
    refused += error().find(path.string()) != std::string::npos ? 1 : 0;
  }
  EXPECT_EQ(refused, 23);
  // One flipped bit anywhere.
  for (size_t at = 0; at < whole.size(); at += whole.size() / 41 + 1) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 4);
    replace_file(path, damaged);
    EXPECT_NE(error().find(path.string()), std::string::npos) << "byte " << at;
  }
  // One in the values of a file without the final checksum: the dataset's own finds it.
  const size_t value = whole.find(std::string(reinterpret_cast<const char*>("\x9a\x99\x99\x3e\x9a\x99\x99\x3e"), 8));
  ASSERT_NE(value, std::string::npos);
  std::string damaged = whole;
  damaged[value + 1000] = static_cast<char>(damaged[value + 1000] ^ 4);
  replace_file(path, damaged.substr(0, damaged.size() - 12));
  EXPECT_NE(error().find("dataset model/weights cannot be read, the file is damaged"), std::string::npos) << error();
  replace_file(path, "PK\3\4 something else");
  EXPECT_NE(error().find("is no HDF5 file"), std::string::npos) << error();
  std::filesystem::remove(path);
  EXPECT_NE(error().find("no such file"), std::string::npos) << error();
}

TEST_F(Hdf5, NamesThatAreMissingOrTakenAreErrors) {
  Hdf5Writer writer;
  writer.write("x", Tensor::zeros({2}));
  EXPECT_THROW(writer.write("x", Tensor::zeros({2})), Error);
  writer.save(path);
  const Hdf5Reader reader(path);
  EXPECT_THROW(reader.read("y"), Error);
  EXPECT_THROW(reader.members("z"), Error);
  EXPECT_THROW(reader.read_rows("x", 1, 3), Error);
}

}  // namespace
}  // namespace fovea
