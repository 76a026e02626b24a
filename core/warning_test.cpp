// SPDX-License-Identifier: Apache-2.0
#include "core/warning.h"

#include <gtest/gtest.h>

#include <vector>

namespace fovea {
namespace {

TEST(Warnings, EachLineIsSaidOnceToTheHandlerThatIsSet) {
  const WarningHandler before = set_warning_handler(nullptr);
  warn_once("to nobody");
  std::vector<std::string> lines;
  set_warning_handler([&](const std::string& line) { lines.push_back(line); });
  for (const char* line : {"slow", "slower", "slow", "to nobody"}) warn_once(line);
  set_warning_handler(before);
  EXPECT_EQ(lines, (std::vector<std::string>{"slow", "slower", "to nobody"}));
}

}  // namespace
}  // namespace fovea
