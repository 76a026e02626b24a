// SPDX-License-Identifier: Apache-2.0
#include "core/io/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>
#include <utility>
#include <vector>

#include "core/error.h"

namespace fovea {
namespace {

class Descriptor {
 public:
  // O_NONBLOCK: a pipe is refused by its type, not waited for.
  explicit Descriptor(const std::filesystem::path& path, int flags = O_RDONLY,
                      const std::filesystem::path& shown = {})
      : fd_(open(path.c_str(), flags | O_CLOEXEC | O_NONBLOCK, 0644)) {
    FOVEA_CHECK(fd_ >= 0, "file ", (shown.empty() ? path : shown).string(), ": ",
                std::strerror(errno));
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

// Removes what a process that was killed while it wrote left behind: PREFIX and its id.
void remove_abandoned(const std::filesystem::path& folder, const std::string& prefix) {
  namespace fs = std::filesystem;
  std::vector<fs::path> abandoned;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    const std::string name = at->path().filename().string();
    pid_t process = 0;
    if (!name.starts_with(prefix)) continue;
    const auto [rest, code] =
        std::from_chars(name.data() + prefix.size(), name.data() + name.size(), process);
    if (code != std::errc{} || rest != name.data() + name.size() || process <= 0) continue;
    if (kill(process, 0) != 0 && errno == ESRCH) abandoned.push_back(at->path());
  }
  for (const fs::path& path : abandoned) fs::remove_all(path, error);
}

void sync(const std::filesystem::path& path, int flags) {
  const Descriptor file(path, flags);
  FOVEA_CHECK(fsync(file.get()) == 0 || errno == EINVAL, "file ", path.string(), ": ",
              std::strerror(errno));
}

}  // namespace

std::string read_file(const std::filesystem::path& path) {
  const Descriptor file(path);
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

void replace_file(const std::filesystem::path& path,
                  const std::function<void(const std::filesystem::path&)>& write) {
  const std::filesystem::path folder =
      path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  const std::string prefix = path.filename().string() + ".writing.";
  const std::filesystem::path temporary = folder / (prefix + std::to_string(getpid()));
  remove_abandoned(folder, prefix);
  try {
    write(temporary);
    sync(temporary, O_RDONLY);
    FOVEA_CHECK(std::rename(temporary.c_str(), path.c_str()) == 0, "file ", path.string(), ": ",
                std::strerror(errno));
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(temporary, ignored);
    throw;
  }
  sync(folder, O_RDONLY | O_DIRECTORY);
}

void replace_file(const std::filesystem::path& path, std::string_view content) {
  replace_file(path, [&](const std::filesystem::path& temporary) {
    const Descriptor file(temporary, O_WRONLY | O_CREAT | O_TRUNC, path);
    size_t done = 0;
    while (done < content.size()) {
      const ssize_t put = ::write(file.get(), content.data() + done, content.size() - done);
      if (put < 0 && errno == EINTR) continue;
      FOVEA_CHECK(put > 0, "file ", path.string(), ": ", std::strerror(errno));
      done += static_cast<size_t>(put);
    }
  });
}

void replace_files(const std::filesystem::path& folder,
                   const std::function<void(const std::filesystem::path&)>& write) {
  namespace fs = std::filesystem;
  const fs::path temporary = folder / (".writing." + std::to_string(getpid()));
  remove_abandoned(folder, ".writing.");
  std::error_code error;
  fs::create_directory(temporary, error);
  FOVEA_CHECK(!error, "file ", folder.string(), ": cannot be written to: ", error.message());
  try {
    write(temporary);
    for (const fs::directory_entry& entry : fs::directory_iterator(temporary)) {
      const fs::path path = folder / entry.path().filename();
      FOVEA_CHECK(!fs::is_directory(path), "file ", path.string(), ": is a folder");
    }
    for (const fs::directory_entry& entry : fs::directory_iterator(temporary)) {
      const fs::path path = folder / entry.path().filename();
      FOVEA_CHECK(std::rename(entry.path().c_str(), path.c_str()) == 0, "file ", path.string(),
                  ": ", std::strerror(errno));
    }
  } catch (...) {
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
    throw;
  }
  fs::remove(temporary, error);
  sync(folder, O_RDONLY | O_DIRECTORY);
}

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
  const Descriptor file(path);
  size_ = size_of_file(file, path);
  if (size_ == 0) return;
  void* mapped = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.get(), 0);
  FOVEA_CHECK(mapped != MAP_FAILED, "file ", path.string(), ": ", std::strerror(errno));
  data_ = static_cast<const std::byte*>(mapped);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
}

}  // namespace fovea
