// SPDX-License-Identifier: Apache-2.0
#pragma once
// What the tests of data sets share: a folder for files, and errors as text.

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "core/error.h"
#include "core/io/file.h"
#include "core/testing/error_of.h"

namespace fovea::data {

#define EXPECT_ERROR(expression, part)                                          \
  do {                                                                          \
    const std::string error = error_of([&] { static_cast<void>(expression); }); \
    EXPECT_NE(error.find(part), std::string::npos) << error;                    \
  } while (false)

// An empty folder for each test.
class TestFolder : public testing::Test {
 protected:
  void SetUp() override {
    folder =
        std::filesystem::temp_directory_path() / ("fovea_data_test." + std::to_string(getpid()));
    std::filesystem::remove_all(folder);
    std::filesystem::create_directories(folder);
  }
  void TearDown() override { std::filesystem::remove_all(folder); }
  void put(const std::string& name, const std::string& content) {
    std::filesystem::create_directories((folder / name).parent_path());
    std::ofstream(folder / name, std::ios::binary) << content;
  }
  std::filesystem::path folder;
};

}  // namespace fovea::data
