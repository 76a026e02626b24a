// SPDX-License-Identifier: Apache-2.0
#pragma once
// Whole files, decompressed when they are gzip.

#include <cstddef>
#include <filesystem>
#include <string>

namespace fovea::data {

// The bytes of `path`, inflated when it starts with 1F 8B. Throws naming the file when the stream
// is damaged or cut short, or inflates to more than `most` bytes.
std::string read_maybe_gzip(const std::filesystem::path& path, size_t most = size_t{2} << 30);

}  // namespace fovea::data
