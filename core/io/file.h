// SPDX-License-Identifier: Apache-2.0
#pragma once
// Whole files: read, mapped, and written so that a reader sees the old content or the new one and
// never a part.

#include <cstddef>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace fovea {

// The bytes of a file. Throws naming the path and the system's reason.
std::string read_file(const std::filesystem::path& path);

// Calls write(temporary path) beside `path`, syncs what it wrote, renames it over `path` and syncs
// the folder. When write throws or the disk is full, the temporary file is removed and `path` is as
// before; what a killed process left of its own temporary file goes with the next call.
void replace_file(const std::filesystem::path& path,
                  const std::function<void(const std::filesystem::path& temporary)>& write);
// The same for content at hand.
void replace_file(const std::filesystem::path& path, std::string_view content);
// Several files of one folder that belong together: write(temporary folder) makes them; only when
// all are on the disk do they take their places. An exception leaves what was there.
void replace_files(const std::filesystem::path& folder,
                   const std::function<void(const std::filesystem::path&)>& write);

// Bytes of a file, paged in as they are touched. Not copyable; movable.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace fovea
