// SPDX-License-Identifier: Apache-2.0
#include "core/io/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/error.h"

namespace fovea {
namespace {

class Descriptor {
 public:
  Descriptor(const std::filesystem::path& path, int flags, mode_t mode = 0644) : fd_(open(path.c_str(), flags | O_CLOEXEC, mode)) {
    FOVEA_CHECK(fd_ >= 0, "file ", path.string(), ": ", std::strerror(errno));
  }
  ~Descriptor() { close(fd_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

size_t size_of_file(const Descriptor& file, const std::filesystem::path& path) {
  struct stat status {};
  FOVEA_CHECK(fstat(file.get(), &status) == 0, "file ", path.string(), ": ", std::strerror(errno));
  FOVEA_CHECK(S_ISREG(status.st_mode), "file ", path.string(), ": is not a regular file");
  return static_cast<size_t>(status.st_size);
}

void sync(const std::filesystem::path& path, int flags) {
  const Descriptor file(path, flags);
  FOVEA_CHECK(fsync(file.get()) == 0 || errno == EINVAL, "file ", path.string(), ": ", std::strerror(errno));
}

}  // namespace

std::string read_file(const std::filesystem::path& path) {
  const Descriptor file(path, O_RDONLY);
  std::string content(size_of_file(file, path), '\0');
  size_t done = 0;
  while (done < content.size()) {
    const ssize_t got = read(file.get(), content.data() + done, content.size() - done);
    if (got < 0 && errno == EINTR) continue;
    FOVEA_CHECK(got >= 0, "file ", path.string(), ": ", std::strerror(errno));
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  content.resize(done);
  return content;
}

void replace_file(const std::filesystem::path& path, const std::function<void(const std::filesystem::path&)>& write) {
  const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  const std::filesystem::path temporary = folder / (path.filename().string() + ".writing." + std::to_string(getpid()));
  try {
    write(temporary);
    sync(temporary, O_RDONLY);
    FOVEA_CHECK(std::rename(temporary.c_str(), path.c_str()) == 0, "file ", path.string(), ": ", std::strerror(errno));
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(temporary, ignored);
    throw;
  }
  sync(folder, O_RDONLY | O_DIRECTORY);
}

void replace_file(const std::filesystem::path& path, std::string_view content) {
  replace_file(path, [&](const std::filesystem::path& temporary) {
    const Descriptor file(temporary, O_WRONLY | O_CREAT | O_TRUNC);
    size_t done = 0;
    while (done < content.size()) {
      const ssize_t put = ::write(file.get(), content.data() + done, content.size() - done);
      if (put < 0 && errno == EINTR) continue;
      FOVEA_CHECK(put > 0, "file ", path.string(), ": ", std::strerror(errno));
      done += static_cast<size_t>(put);
    }
  });
}

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
  const Descriptor file(path, O_RDONLY);
  size_ = size_of_file(file, path);
  if (size_ == 0) return;
  void* mapped = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.get(), 0);
  FOVEA_CHECK(mapped != MAP_FAILED, "file ", path.string(), ": ", std::strerror(errno));
  data_ = static_cast<const std::byte*>(mapped);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)), data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
}

}  // namespace fovea
