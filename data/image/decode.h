// SPDX-License-Identifier: Apache-2.0
#pragma once
// PNG and JPEG files through their libraries.

#include <cstdint>
#include <filesystem>
#include <vector>

namespace fovea::data {

struct Rgb {
  int64_t height = 0, width = 0;
  std::vector<uint8_t> values;  // [H, W, 3]
};

// By the first bytes of the file; grey becomes RGB, transparency lies on black. Throws naming the
// file.
Rgb decode_image(const std::filesystem::path& path);

}  // namespace fovea::data
