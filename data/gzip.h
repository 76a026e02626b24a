// SPDX-License-Identifier: Apache-2.0
#pragma once
// Whole files, decompressed when they are gzip.

#include <filesystem>
#include <string>

namespace fovea::data {

// The bytes of `path`, inflated when it starts with 1F 8B. Throws naming the file when the stream
// is damaged or cut short.
std::string read_maybe_gzip(const std::filesystem::path& path);

}  // namespace fovea::data
