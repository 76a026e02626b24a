// SPDX-License-Identifier: Apache-2.0
#include "core/io/file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "core/error.h"

namespace fovea {
namespace {

class File : public testing::Test {
 protected:
  void SetUp() override {
    folder = std::filesystem::temp_directory_path() / ("fovea_file_test." + std::to_string(getpid()));
    std::filesystem::create_directories(folder);
  }
  void TearDown() override { std::filesystem::remove_all(folder); }
  std::filesystem::path folder;
};

TEST_F(File, ReplacesAndReadsBack) {
  replace_file(folder / "a", "first");
  replace_file(folder / "a", "second");
  EXPECT_EQ(read_file(folder / "a"), "second");
  const MappedFile mapped(folder / "a");
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(mapped.bytes().data()), mapped.bytes().size()), "second");
}

TEST_F(File, AFailedWriteLeavesTheOldContentAndNoTemporary) {
  replace_file(folder / "a", "first");
  EXPECT_THROW(replace_file(folder / "a", [](const std::filesystem::path& temporary) {
    std::ofstream(temporary) << "half";
    throw Error("no space left");
  }), Error);
  EXPECT_EQ(read_file(folder / "a"), "first");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder), {}), 1);
}

TEST_F(File, MissingFilesAndFoldersAreNamed) {
  try {
    read_file(folder / "absent");
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("absent: No such file"), std::string::npos) << e.what();
  }
  EXPECT_THROW(MappedFile{folder}, Error);
  EXPECT_THROW(replace_file(folder / "no" / "a", "x"), Error);
}

}  // namespace
}  // namespace fovea
