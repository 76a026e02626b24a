// SPDX-License-Identifier: Apache-2.0
#include "core/io/hdf5.h"

#include <gtest/gtest.h>
#include <hdf5.h>
#include <unistd.h>

#include <array>
#include <functional>

#include "core/io/file.h"
#include "core/rng.h"

namespace fovea {
namespace {

class Hdf5 : public testing::Test {
 protected:
  void SetUp() override {
    path = std::filesystem::temp_directory_path() / ("fovea_hdf5_test." + std::to_string(getpid()));
  }
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
  for (const Dtype dtype :
       {Dtype::f32, Dtype::bf16, Dtype::f64, Dtype::i64, Dtype::i32, Dtype::u8, Dtype::boolean}) {
    for (const Shape& shape :
         {Shape{}, Shape{1}, Shape{700, 801}, Shape{2, 3, 5, 7}, Shape{0, 4}}) {
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
  EXPECT_EQ(reader.read_rows("a/b/t3", 5, 9).to_vector<float>(),
            tensors[2].slice(0, 5, 9).to_vector<float>());
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
  // Required, the checksum must be there: without it nothing is known of the rest.
  replace_file(path, whole.substr(0, whole.size() - 12));
  EXPECT_EQ(error(), "");
  EXPECT_THROW(Hdf5Reader(path, Seal::required), Error);
  replace_file(path, whole);
  EXPECT_NO_THROW(Hdf5Reader(path, Seal::required));
  // One in the values of a file without the final checksum: the dataset's own finds it.
  const size_t value =
      whole.find(std::string(reinterpret_cast<const char*>("\x9a\x99\x99\x3e\x9a\x99\x99\x3e"), 8));
  ASSERT_NE(value, std::string::npos);
  std::string damaged = whole;
  damaged[value + 1000] = static_cast<char>(damaged[value + 1000] ^ 4);
  replace_file(path, damaged.substr(0, damaged.size() - 12));
  EXPECT_NE(error().find("dataset model/weights cannot be read, the file is damaged"),
            std::string::npos)
      << error();
  replace_file(path, "PK\3\4 something else");
  EXPECT_NE(error().find("is no HDF5 file"), std::string::npos) << error();
  std::filesystem::remove(path);
  EXPECT_NE(error().find("no such file"), std::string::npos) << error();
}

// Files that HDF5 finds in order, but that are not what they say.
class ForeignHdf5 : public Hdf5 {
 protected:
  // make(file) writes through the C API; identifiers close with the file.
  void foreign(const std::function<void(hid_t)>& make) {
    const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_fclose_degree(access, H5F_CLOSE_STRONG);
    const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access);
    make(file);
    H5Fclose(file);
    H5Pclose(access);
  }
  static hid_t dataset(hid_t file, hid_t type, const std::vector<hsize_t>& sizes,
                       const void* values, bool chunked = false) {
    const hid_t space =
        sizes.empty() ? H5Screate(H5S_NULL)
                      : H5Screate_simple(static_cast<int>(sizes.size()), sizes.data(), nullptr);
    const hid_t layout = H5Pcreate(H5P_DATASET_CREATE);
    const std::vector<hsize_t> chunk(sizes.size(), 1);
    if (chunked) H5Pset_chunk(layout, static_cast<int>(chunk.size()), chunk.data());
    const hid_t set = H5Dcreate2(file, "x", type, space, H5P_DEFAULT, layout, H5P_DEFAULT);
    if (values != nullptr) H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values);
    return set;
  }
  static void text(hid_t object, const char* name, const std::string& value) {
    const hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, value.size() + 1);
    const hid_t attribute =
        H5Acreate2(object, name, type, H5Screate(H5S_SCALAR), H5P_DEFAULT, H5P_DEFAULT);
    H5Awrite(attribute, type, value.c_str());
  }
  Tensor read() const { return Hdf5Reader(path).read("x"); }
  std::string failure() const {
    try {
      read();
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  }
};

TEST_F(ForeignHdf5, AListIsNoScalarWhateverItsShapeAttributeSays) {
  const std::vector<int32_t> values(1000, 5);
  foreign([&](hid_t file) {
    text(dataset(file, H5T_NATIVE_INT32, {1000}, values.data()), "shape", "[]");
  });
  EXPECT_EQ(read().shape(), (Shape{1000}));
  foreign([&](hid_t file) {
    text(dataset(file, H5T_NATIVE_INT32, {1}, values.data()), "shape", "[]");
  });
  EXPECT_EQ(read().shape(), Shape{});
}

TEST_F(ForeignHdf5, AnAttributeThatHoldsAListIsNotReadAsOneValue) {
  const std::vector<int64_t> values(4096, 7);
  const hsize_t size = values.size();
  foreign([&](hid_t file) {
    H5Awrite(H5Acreate2(file, "vocab_size", H5T_NATIVE_INT64, H5Screate_simple(1, &size, nullptr),
                        H5P_DEFAULT, H5P_DEFAULT),
             H5T_NATIVE_INT64, values.data());
    H5Awrite(
        H5Acreate2(file, "one", H5T_NATIVE_INT64, H5Screate(H5S_SCALAR), H5P_DEFAULT, H5P_DEFAULT),
        H5T_NATIVE_INT64, values.data());
  });
  const Hdf5Reader reader(path);
  EXPECT_FALSE(reader.attribute("/", "vocab_size").has_value());
  EXPECT_EQ(reader.attribute("/", "one"), "7");
}

TEST_F(ForeignHdf5, ClaimsThatTheFileCannotHoldAreRefusedBeforeRoomIsMade) {
  foreign([](hid_t file) {
    dataset(file, H5T_NATIVE_INT32, {hsize_t{1} << 33, hsize_t{1} << 33}, nullptr, true);
  });  // 2^68 bytes
  EXPECT_NE(
      failure().find("dataset x i32 [8589934592, 8589934592] is more than the whole file can hold"),
      std::string::npos)
      << failure();
  foreign([](hid_t file) { dataset(file, H5T_NATIVE_DOUBLE, {hsize_t{1} << 30}, nullptr, true); });
  EXPECT_NE(failure().find("is more than the whole file can hold"), std::string::npos) << failure();
  foreign([](hid_t file) { dataset(file, H5T_NATIVE_DOUBLE, {}, nullptr); });
  EXPECT_NE(failure().find("dataset x holds no values"), std::string::npos) << failure();
}

TEST_F(ForeignHdf5, TypesAreWhatIsStoredNotWhatTheAttributeSays) {
  const std::vector<int32_t> values(64, 1);
  foreign([&](hid_t file) {
    const hid_t type = H5Tenum_create(H5T_NATIVE_INT32);  // four bytes each
    const int32_t no = 0, yes = 1;
    H5Tenum_insert(type, "no", &no);
    H5Tenum_insert(type, "yes", &yes);
    text(dataset(file, type, {64}, values.data()), "dtype", "bool");
  });
  EXPECT_NE(failure().find("neither float nor integer"), std::string::npos) << failure();
  foreign([&](hid_t file) {
    text(dataset(file, H5T_NATIVE_INT32, {64}, values.data()), "dtype", "bf16");
  });
  EXPECT_NE(failure().find("is marked as bf16, but holds no 16-bit integers"), std::string::npos)
      << failure();
  const std::vector<uint8_t> bytes{0, 1, 7, 255};
  foreign([&](hid_t file) {
    text(dataset(file, H5T_NATIVE_UINT8, {4}, bytes.data()), "dtype", "bool");
  });
  EXPECT_EQ(read().to_vector<int64_t>(), (std::vector<int64_t>{0, 1, 1, 1}));
}

// Nested groups, text of both kinds, chunks with filters: the parts of the format where the library
// trusts what it reads.
TEST_F(ForeignHdf5, DamageThatTheLibraryDoesNotSurviveIsAnErrorHere) {
  std::vector<int32_t> values(600);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int32_t>(i * i);
  foreign([&](hid_t file) {
    const hid_t set = dataset(file, H5T_NATIVE_INT32, {30, 20}, values.data(), false);
    text(set, "units", "tokens");
    const hid_t variable = H5Tcopy(H5T_C_S1);
    H5Tset_size(variable, H5T_VARIABLE);
    const char* words = "a text that lives on the heap";
    H5Awrite(H5Acreate2(file, "config", variable, H5Screate(H5S_SCALAR), H5P_DEFAULT, H5P_DEFAULT),
             variable, &words);
    hid_t group = file;
    for (const char* name : {"train", "deep", "deeper"})
      group = H5Gcreate2(group, name, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    const std::array<hsize_t, 1> size{600}, chunk{50};
    const hid_t layout = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_chunk(layout, 1, chunk.data());
    H5Pset_shuffle(layout);
    H5Pset_deflate(layout, 6);
    const hid_t packed =
        H5Dcreate2(group, "packed", H5T_NATIVE_INT32, H5Screate_simple(1, size.data(), nullptr),
                   H5P_DEFAULT, layout, H5P_DEFAULT);
    H5Dwrite(packed, H5T_NATIVE_INT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data());
  });
  const std::string whole = read_file(path);
  const auto use = [&] {
    const Hdf5Reader reader(path);
    reader.attribute("/", "config");
    reader.members("train/deep");
    reader.attribute("x", "units");
    reader.read("train/deep/deeper/packed");
    return reader.read("x").to_vector<int64_t>();
  };
  EXPECT_EQ(use()[599], 599 * 599);
  int refused = 0, crashed = 0, tried = 0;
  for (size_t at = 8; at < whole.size(); at += 41) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(tried % 3 == 0 ? ~damaged[at] : tried % 3 == 1 ? 0x7f : 0xfe);
    replace_file(path, damaged);
    ++tried;
    try {
      use();
    } catch (const Error& e) {
      const std::string_view line = e.what();
      EXPECT_NE(line.find(path.string()), std::string::npos) << line;
      ++refused;
      crashed += line.find("crashes on it") != std::string::npos ? 1 : 0;
    }
  }
  EXPECT_GT(tried, 100);
  EXPECT_GT(refused, 5);
  RecordProperty("crashed", crashed);
}

TEST_F(Hdf5, NamesThatAreMissingOrTakenAreErrors) {
  const Hdf5Writer another;  // two at once
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
