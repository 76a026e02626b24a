// SPDX-License-Identifier: Apache-2.0
// An Hdf5Source in a child process. Parent and child talk over a socket: a request is an Ask and
// texts, an answer a Tell and what was asked for, or the line of an error. Both ends are this
// program, so that values travel as they lie in memory.

#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fstream>
#include <mutex>

#include "core/io/hdf5_source.h"

namespace fovea {
namespace {

constexpr int kPatienceMs = 30'000;
constexpr int64_t kPiece = int64_t{64} << 20;  // bytes of rows read at a time
constexpr rlim_t kMemory = rlim_t{4} << 30;    // of the child, beside what it was born with

enum class Ask : char { opened, has, members, shape, dtype, read, attribute };
enum class Tell : char { answer, error };

// The other end is gone, or silent for too long.
struct Gone {
  bool silent;
};

class Channel {
 public:
  explicit Channel(int socket) : socket_(socket) {}
  ~Channel() {
    // Children born later hold copies of this end: only shutdown ends the conversation for sure.
    shutdown(socket_, SHUT_RDWR);
    close(socket_);
  }
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  void put(const void* data, size_t bytes) {
    for (auto* at = static_cast<const char*>(data); bytes > 0;) {
      const ssize_t n = send(socket_, at, bytes, MSG_NOSIGNAL);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) throw Gone{false};
      at += n;
      bytes -= static_cast<size_t>(n);
    }
  }
  void get(void* data, size_t bytes, int patience_ms) {
    for (auto* at = static_cast<char*>(data); bytes > 0;) {
      pollfd ready{socket_, POLLIN, 0};
      const int status = poll(&ready, 1, patience_ms);
      if (status == 0) throw Gone{true};
      const ssize_t n = status < 0 ? -1 : recv(socket_, at, bytes, 0);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) throw Gone{false};
      at += n;
      bytes -= static_cast<size_t>(n);
    }
  }
  template <typename T>
  void put(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    put(&value, sizeof value);
  }
  template <typename T>
  T get(int patience_ms) {
    static_assert(std::is_trivially_copyable_v<T>);
    T value;
    get(&value, sizeof value, patience_ms);
    return value;
  }
  void put(const std::string& text) {
    put(text.size());
    put(text.data(), text.size());
  }
  std::string get_text(int patience_ms) {
    std::string text(get<size_t>(patience_ms), '\0');
    get(text.data(), text.size(), patience_ms);
    return text;
  }

 private:
  int socket_;
};

// ---- the child ----------------------------------------------------------------------------------

// Bounds what this process may use, and leaves its end to the parent's closing of the socket: a
// trainer that was told to stop still reads what its last step needs. Under AddressSanitizer memory
// has no bound, its shadow alone is larger than any.
void settle() {
  const rlimit none{0, 0};
  setrlimit(RLIMIT_CORE, &none);
#ifndef __SANITIZE_ADDRESS__
  rlim_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  const rlim_t most = pages * static_cast<rlim_t>(sysconf(_SC_PAGESIZE)) + kMemory;
  const rlimit memory{most, most};
  setrlimit(RLIMIT_AS, &memory);
#endif
  for (const int signal : {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL}) std::signal(signal, SIG_DFL);
  for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, SIG_IGN);
  // What the C library or a sanitizer says of a crash is not for the terminal.
  if (std::freopen("/dev/null", "w", stderr) == nullptr) close(STDERR_FILENO);
}

void answer(Hdf5Source& file, Ask ask, Channel& channel) {
  const std::string name = ask == Ask::opened ? "" : channel.get_text(-1);
  switch (ask) {
    case Ask::opened:
      return channel.put(Tell::answer);
    case Ask::has: {
      const bool has = file.has(name);
      channel.put(Tell::answer);
      return channel.put(has);
    }
    case Ask::members: {
      const auto members = file.members(name);
      channel.put(Tell::answer);
      channel.put(members.size());
      for (const std::string& member : members) channel.put(member);
      return;
    }
    case Ask::shape: {
      const Shape shape = file.shape(name);
      channel.put(Tell::answer);
      return channel.put(shape);
    }
    case Ask::dtype: {
      const Dtype dtype = file.dtype(name);
      channel.put(Tell::answer);
      return channel.put(dtype);
    }
    case Ask::read: {
      const auto rows = channel.get<std::optional<Hdf5Source::Rows>>(-1);
      const Tensor values = file.read(name, rows);
      channel.put(Tell::answer);
      channel.put(values.shape());
      channel.put(values.dtype());
      return channel.put(values.raw(), static_cast<size_t>(values.bytes()));
    }
    case Ask::attribute: {
      const auto text = file.attribute(name, channel.get_text(-1));
      channel.put(Tell::answer);
      channel.put(text.has_value());
      if (text) channel.put(*text);
      return;
    }
  }
}

[[noreturn]] void serve(const std::string& path, int socket) {
  settle();
  try {
    Channel channel(socket);
    std::unique_ptr<Hdf5Source> file;
    while (true) {
      const Ask ask = channel.get<Ask>(-1);
      alarm(kPatienceMs / 1000);  // an endless loop ends even when nobody is left to end it
      try {
        if (ask == Ask::opened) file = open_hdf5(path);
        answer(*file, ask, channel);
      } catch (const std::bad_alloc&) {
        channel.put(Tell::error);
        channel.put(concat("hdf5 ", path, ": is damaged, it asks for gigabytes to read a part"));
      } catch (const std::exception& error) {
        channel.put(Tell::error);
        channel.put(std::string(error.what()));
      }
      alarm(0);
    }
  } catch (const Gone&) {  // the parent has what it wanted
  }
  _exit(0);
}

// ---- the parent ---------------------------------------------------------------------------------

class Hdf5Apart final : public Hdf5Source {
  // One question and its answer.
  template <typename T>
  T get() {
    return channel_->get<T>(kPatienceMs);
  }
  template <typename Send, typename Receive>
  auto call(Ask ask, const Send& send, const Receive& receive) {
    const std::lock_guard<std::mutex> one_at_a_time(mutex_);
    FOVEA_CHECK(channel_ != nullptr, "hdf5 ", path_, ": was given up, it is damaged");
    try {
      channel_->put(ask);
      send();
      if (get<Tell>() == Tell::error) throw Error(channel_->get_text(kPatienceMs));
      return receive();
    } catch (const Gone& gone) {
      if (gone.silent) kill(child_, SIGKILL);
      const int status = end();
      const bool endless = gone.silent || (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM);
      throw Error(
          concat("hdf5 ", path_, ": is damaged so that the HDF5 library ",
                 endless ? "comes to no end with it" : "crashes on it",
                 WIFSIGNALED(status) ? concat(" (", strsignal(WTERMSIG(status)), ")") : ""));
    }
  }

 public:
  explicit Hdf5Apart(const std::string& path) : path_(path) {
    std::array<int, 2> ends{};
    FOVEA_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0, "hdf5 ",
                path_, ": no socket for the process that reads it: ", std::strerror(errno));
    child_ = fork();
    if (child_ == 0) {
      close(ends[0]);
      serve(path, ends[1]);
    }
    const int failed = errno;
    close(ends[1]);
    channel_ = std::make_unique<Channel>(ends[0]);
    FOVEA_CHECK(child_ > 0, "hdf5 ", path_, ": no process to read it: ", std::strerror(failed));
    try {
      call(
          Ask::opened, [] {}, [] { return true; });
    } catch (...) {
      end();
      throw;
    }
  }
  ~Hdf5Apart() override { end(); }

  bool has(const std::string& name) override {
    return call(
        Ask::has, [&] { channel_->put(name); }, [&] { return get<bool>(); });
  }
  std::vector<std::string> members(const std::string& group) override {
    return call(
        Ask::members, [&] { channel_->put(group); },
        [&] {
          std::vector<std::string> names(get<size_t>());
          for (std::string& name : names) name = channel_->get_text(kPatienceMs);
          return names;
        });
  }
  Shape shape(const std::string& name) override {
    return call(
        Ask::shape, [&] { channel_->put(name); }, [&] { return get<Shape>(); });
  }
  Dtype dtype(const std::string& name) override {
    return call(
        Ask::dtype, [&] { channel_->put(name); }, [&] { return get<Dtype>(); });
  }
  // In pieces, so that the child needs little memory.
  Tensor read(const std::string& name, std::optional<Rows> rows) override {
    const Shape whole = shape(name);
    // A damaged header may claim more than an int64 counts.
    auto claimed = static_cast<double>(size_of(dtype(name)));
    for (const int64_t size : whole) claimed *= static_cast<double>(size);
    // The child refuses what the file cannot hold.
    if (claimed < 1 || claimed > 1e15 || whole.rank() == 0) return read_piece(name, rows);
    const int64_t begin = rows ? rows->begin : 0, end = rows ? rows->end : whole[0],
                  row_bytes = static_cast<int64_t>(claimed) / whole[0],
                  step = std::max<int64_t>(1, kPiece / row_bytes);
    if (end - begin <= step) return read_piece(name, rows);
    Tensor out;
    for (int64_t row = begin; row < end; row += step) {
      const Tensor piece = read_piece(name, Rows{row, std::min(end, row + step)});
      if (!out.defined()) {
        Shape all = piece.shape();
        all[0] = end - begin;
        out = Tensor::empty(all, piece.dtype());
      }
      std::memcpy(static_cast<char*>(out.raw()) + (row - begin) * row_bytes, piece.raw(),
                  static_cast<size_t>(piece.bytes()));
    }
    return out;
  }
  std::optional<std::string> attribute(const std::string& object,
                                       const std::string& name) override {
    return call(
        Ask::attribute,
        [&] {
          channel_->put(object);
          channel_->put(name);
        },
        [&]() -> std::optional<std::string> {
          if (!get<bool>()) return std::nullopt;
          return channel_->get_text(kPatienceMs);
        });
  }

 private:
  Tensor read_piece(const std::string& name, std::optional<Rows> rows) {
    return call(
        Ask::read,
        [&] {
          channel_->put(name);
          channel_->put(rows);
        },
        [&] {
          const auto shape = get<Shape>();
          const Tensor out = Tensor::empty(shape, get<Dtype>());
          channel_->get(out.raw(), static_cast<size_t>(out.bytes()), kPatienceMs);
          return out;
        });
  }
  // Ends the conversation and with it the child; its status. A second call finds nothing to do.
  int end() {
    channel_.reset();
    int status = 0;
    while (child_ > 0 && waitpid(child_, &status, 0) < 0 && errno == EINTR) {
    }
    child_ = -1;
    return status;
  }

  std::string path_;
  std::unique_ptr<Channel> channel_;
  pid_t child_ = -1;
  std::mutex mutex_;
};

}  // namespace

std::unique_ptr<Hdf5Source> open_hdf5_apart(const std::string& path) {
  return std::make_unique<Hdf5Apart>(path);
}

}  // namespace fovea
