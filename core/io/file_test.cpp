// SPDX-License-Identifier: Apache-2.0
#include "core/io/file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

#include "core/error.h"

namespace fovea {
namespace {

class File : public testing::Test {
 protected:
  void SetUp() override {
    folder =
        std::filesystem::temp_directory_path() / ("fovea_file_test." + std::to_string(getpid()));
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
  EXPECT_EQ(
      std::string(reinterpret_cast<const char*>(mapped.bytes().data()), mapped.bytes().size()),
      "second");
}

TEST_F(File, AFailedWriteLeavesTheOldContentAndNoTemporary) {
  replace_file(folder / "a", "first");
  EXPECT_THROW(replace_file(folder / "a",
                            [](const std::filesystem::path& temporary) {
                              std::ofstream(temporary) << "half";
                              throw Error("no space left");
                            }),
               Error);
  EXPECT_EQ(read_file(folder / "a"), "first");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder), {}), 1);
}

TEST_F(File, WhatAKilledWriterLeftGoesWithTheNextWrite) {
  const pid_t child = fork();
  if (child == 0) _exit(0);
  waitpid(child, nullptr, 0);  // an id that no process has
  const auto temporary = [&](const std::string& name, const std::string& process) {
    return folder / (name + ".writing." + process);
  };
  for (const auto& path :
       {temporary("a", std::to_string(child)), temporary("b", std::to_string(child)),
        temporary("a", std::to_string(getppid())), temporary("a", "x")}) {
    std::ofstream(path) << "half";
  }
  replace_file(folder / "a", "whole");
  EXPECT_FALSE(std::filesystem::exists(temporary("a", std::to_string(child))));
  EXPECT_TRUE(std::filesystem::exists(temporary("b", std::to_string(child))));  // another file's
  EXPECT_TRUE(
      std::filesystem::exists(temporary("a", std::to_string(getppid()))));  // its writer lives
  EXPECT_TRUE(std::filesystem::exists(temporary("a", "x")));                // nobody's
}

TEST_F(File, SeveralFilesTakeTheirPlacesTogetherOrNotAtAll) {
  replace_file(folder / "a", "old");
  const auto write = [&](bool fail) {
    replace_files(folder, [&](const std::filesystem::path& temporary) {
      replace_file(temporary / "a", "new");
      if (fail) throw Error("no space left");
      replace_file(temporary / "b", "new");
    });
  };
  EXPECT_THROW(write(true), Error);
  EXPECT_EQ(read_file(folder / "a"), "old");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder), {}), 1);
  std::filesystem::create_directory(folder / "b");  // in the way
  EXPECT_THROW(write(false), Error);
  EXPECT_EQ(read_file(folder / "a"), "old");
  std::filesystem::remove(folder / "b");
  write(false);
  EXPECT_EQ(read_file(folder / "a"), "new");
  EXPECT_EQ(read_file(folder / "b"), "new");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder), {}), 2);
}

TEST_F(File, APipeIsRefusedAndNotWaitedFor) {
  ASSERT_EQ(mkfifo((folder / "pipe").c_str(), 0600), 0);
  EXPECT_THROW(read_file(folder / "pipe"), Error);
  EXPECT_THROW(MappedFile{folder / "pipe"}, Error);
}

TEST_F(File, MissingFilesAndFoldersAreNamed) {
  try {
    read_file(folder / "absent");
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("absent: No such file"), std::string::npos) << e.what();
  }
  EXPECT_THROW(MappedFile{folder}, Error);
  try {
    replace_file(folder / "no" / "a", "x");
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("no/a: No such file"), std::string::npos)
        << e.what();  // not the temporary's name
  }
}

}  // namespace
}  // namespace fovea
