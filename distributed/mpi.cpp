// SPDX-License-Identifier: Apache-2.0
#include "distributed/mpi.h"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <thread>

#include "distributed/transport.h"

namespace fovea::distributed {
namespace {

// The first that is set.
const char* variable(std::initializer_list<const char*> names) {
  for (const char* name : names)
    if (const char* value = std::getenv(name)) return value;
  return nullptr;
}

bool mpi_runs = false;  // in this process

const char* rank_of_process() {
  return variable({"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"});
}

}  // namespace

bool started_by_mpi() {
  return variable({"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"}) != nullptr;
}

std::string name_of_process() {
  const char* rank = rank_of_process();
  if (!started_by_mpi() || rank == nullptr) return "";
  const char* size = variable({"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS"});
  return concat("rank ", rank, size == nullptr ? "" : concat(" of ", size));
}

void let_lower_ranks_speak() noexcept {
  const char* rank = rank_of_process();
  if (!started_by_mpi() || rank == nullptr) return;
  std::signal(SIGTERM, SIG_DFL);
  // Before MPI runs mpirun sees an exit, and sends SIGTERM a second later.
  const int r = std::clamp(std::atoi(rank), 0, 10), first_ms = mpi_runs || r == 0 ? 0 : 1200;
  std::this_thread::sleep_for(std::chrono::milliseconds(first_ms + 300 * r));
}

}  // namespace fovea::distributed

#if defined(FOVEA_MPI)
#define OMPI_SKIP_MPICXX 1
#include <dlfcn.h>
#include <mpi.h>

#include <condition_variable>
#include <mutex>

namespace fovea::distributed {
namespace {

// Counts of MPI are ints: longer messages go in pieces.
constexpr int64_t kPiece = int64_t{1} << 30;  // bytes

void* open_library() {
  // Global: the library's own plugins look for its symbols.
  for (const char* name : {FOVEA_MPI_SONAME, FOVEA_MPI_LIBRARY})
    if (void* handle = dlopen(name, RTLD_NOW | RTLD_GLOBAL)) return handle;
  fovea::detail::fail("mpi: found neither " FOVEA_MPI_SONAME " nor " FOVEA_MPI_LIBRARY
                      "; install the MPI library that fovea was built with");
}

void* symbol(const char* name) {
  static void* library = open_library();  // stays open
  void* at = dlsym(library, name);
  FOVEA_CHECK(at != nullptr, "mpi: the library has no ", name);
  return at;
}

#define FOVEA_MPI_FUNCTION(name) \
  decltype(&::name) name = reinterpret_cast<decltype(&::name)>(symbol(#name))
struct Api {
  FOVEA_MPI_FUNCTION(MPI_Init_thread);
  FOVEA_MPI_FUNCTION(MPI_Finalize);
  FOVEA_MPI_FUNCTION(MPI_Abort);
  FOVEA_MPI_FUNCTION(MPI_Comm_rank);
  FOVEA_MPI_FUNCTION(MPI_Comm_size);
  FOVEA_MPI_FUNCTION(MPI_Comm_split);
  FOVEA_MPI_FUNCTION(MPI_Comm_free);
  FOVEA_MPI_FUNCTION(MPI_Comm_set_errhandler);
  FOVEA_MPI_FUNCTION(MPI_Error_string);
  FOVEA_MPI_FUNCTION(MPI_Get_count);
  FOVEA_MPI_FUNCTION(MPI_Irecv);
  FOVEA_MPI_FUNCTION(MPI_Isend);
  FOVEA_MPI_FUNCTION(MPI_Test);
#if defined(OPEN_MPI)
  // Handles are the addresses of objects in the library, which is not linked.
  MPI_Comm world = static_cast<MPI_Comm>(symbol("ompi_mpi_comm_world"));
  MPI_Datatype byte = static_cast<MPI_Datatype>(symbol("ompi_mpi_byte"));
  MPI_Errhandler errors_return = static_cast<MPI_Errhandler>(symbol("ompi_mpi_errors_return"));
#else
  MPI_Comm world = MPI_COMM_WORLD;
  MPI_Datatype byte = MPI_BYTE;
  MPI_Errhandler errors_return = MPI_ERRORS_RETURN;
#endif
};

class Requests;

// MPI in this process. One thread at a time is inside the library.
class Process {
 public:
  static Process& one() {
    static auto* process = new Process;  // the library may be gone before it could be destroyed
    return *process;
  }
  std::string text(int status) const {
    std::string text(MPI_MAX_ERROR_STRING, ' ');
    int length = 0;
    api.MPI_Error_string(status, text.data(), &length);
    return text.substr(0, static_cast<size_t>(length));
  }
  void check(int status, const char* call) const {
    FOVEA_CHECK(status == MPI_SUCCESS, "mpi ", call, ": ", text(status));
  }

  // Goes on testing until it is done.
  void watch(std::shared_ptr<Requests> requests);
  void end(int status) noexcept;

  const Api api;
  std::mutex mutex;     // of every call into the library, and of what follows
  std::string aborted;  // why waits end; empty: they do not
  int rank = 0;
  std::vector<Tensor> left_behind;  // the library may still read or write them

 private:
  Process() {
    int provided = 0;
    check(api.MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided), "init");
    FOVEA_CHECK(provided >= MPI_THREAD_SERIALIZED,
                "mpi: the library takes calls of one thread only");
    check(api.MPI_Comm_set_errhandler(api.world, api.errors_return), "set error handler");
    check(api.MPI_Comm_rank(api.world, &rank), "rank");
    mpi_runs = true;
  }
  void serve();

  std::condition_variable changed_;
  std::vector<std::shared_ptr<Requests>> watched_;
  bool ending_ = false;
  std::thread thread_;  // started with the first that is watched
};

class Requests : public InFlight {
 public:
  // A message in pieces.
  struct Part {
    Message message;
    int peer_of_job;
    bool arrives;
    std::vector<MPI_Request> pieces;
    size_t done = 0;
  };

  explicit Requests(std::vector<Part> parts) : parts_(std::move(parts)) {}
  ~Requests() override {
    const std::lock_guard lock(process_.mutex);
    for (Part& part : parts_)
      if (part.done < part.pieces.size())
        process_.left_behind.push_back(std::move(part.message.data));
  }

  bool test() override {
    const std::lock_guard lock(process_.mutex);
    const bool done = advance();
    FOVEA_CHECK(error_.empty(), error_);
    if (!done && !process_.aborted.empty()) throw Aborted(process_.aborted);
    return done;
  }

  bool wait(Clock::time_point until) override {
    constexpr int kEager = 2000;  // looks before it sleeps in between
    for (int looks = 0; !test(); ++looks) {
      if (Clock::now() >= until) return false;
      if (looks < kEager) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(50));
      }
    }
    return true;
  }

  std::vector<int> missing() override {
    const std::lock_guard lock(process_.mutex);
    std::vector<int> peers;
    for (const Part& part : parts_)
      if (part.done < part.pieces.size()) peers.push_back(part.message.peer);
    std::sort(peers.begin(), peers.end());
    peers.erase(std::unique(peers.begin(), peers.end()), peers.end());
    return peers;
  }

  // With the lock held: looks at every message; true when all are done, or one is lost.
  bool advance() {
    bool all = true;
    for (Part& part : parts_) {
      while (part.done < part.pieces.size() && error_.empty() && advance(part)) ++part.done;
      all = all && part.done == part.pieces.size();
    }
    return all || !error_.empty();
  }

 private:
  bool advance(const Part& part) {
    int done = 0;
    MPI_Status status;
    MPI_Request request = part.pieces[part.done];
    const int code = process_.api.MPI_Test(&request, &done, &status);
    if (code != MPI_SUCCESS) {
      error_ = concat("mpi: message of ", part.message.data.bytes(), " bytes with rank ",
                      part.peer_of_job, ": ", process_.text(code));
    } else if (done != 0 && part.arrives) {
      check_size(part, status);
    }
    return done != 0;
  }

  void check_size(const Part& part, const MPI_Status& status) {
    int bytes = 0;
    process_.api.MPI_Get_count(&status, process_.api.byte, &bytes);
    const int64_t expected =
        std::min(kPiece, part.message.data.bytes() - static_cast<int64_t>(part.done) * kPiece);
    if (bytes != expected)
      error_ =
          concat("rank ", part.peer_of_job, " sent ", part.message.data.bytes() - expected + bytes,
                 " bytes, but rank ", process_.rank, " receives ", part.message.data.bytes());
  }

  Process& process_ = Process::one();
  std::vector<Part> parts_;
  std::string error_;
};

void Process::watch(std::shared_ptr<Requests> requests) {
  const std::lock_guard lock(mutex);
  watched_.push_back(std::move(requests));
  if (!thread_.joinable()) thread_ = std::thread([this] { serve(); });
  changed_.notify_all();
}

void Process::serve() {
  std::unique_lock lock(mutex);
  while (true) {
    changed_.wait(lock, [&] { return ending_ || !watched_.empty(); });
    if (ending_) return;
    std::vector<std::shared_ptr<Requests>> over;  // let go of without the lock
    std::erase_if(watched_, [&](const std::shared_ptr<Requests>& requests) {
      if (!requests->advance()) return false;
      over.push_back(requests);
      return true;
    });
    lock.unlock();
    if (over.empty()) std::this_thread::sleep_for(std::chrono::microseconds(50));
    over.clear();
    lock.lock();
  }
}

void Process::end(int status) noexcept {
  if (status != 0) api.MPI_Abort(api.world, status);
  {
    const std::lock_guard lock(mutex);
    ending_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
  api.MPI_Finalize();
}

class Mpi : public Transport {
 public:
  Mpi(MPI_Comm comm, std::vector<int> ranks) : comm_(comm), ranks_(std::move(ranks)) {
    const std::lock_guard lock(process_.mutex);
    process_.check(process_.api.MPI_Comm_rank(comm_, &rank_), "rank");
  }
  ~Mpi() override {
    const std::lock_guard lock(process_.mutex);
    if (comm_ != process_.api.world && process_.aborted.empty()) process_.api.MPI_Comm_free(&comm_);
  }
  Mpi(const Mpi&) = delete;
  Mpi& operator=(const Mpi&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(ranks_.size()); }
  std::string_view name() const override { return "mpi"; }
  int job_rank(int rank) const override { return ranks_[static_cast<size_t>(rank)]; }

  std::shared_ptr<InFlight> post(int64_t tag, std::vector<Message> receives,
                                 std::vector<Message> sends, bool background) override {
    std::vector<Requests::Part> parts;
    {
      const std::lock_guard lock(process_.mutex);
      for (Message& message : receives)
        parts.push_back(start(std::move(message), static_cast<int>(tag), true));
      for (Message& message : sends)
        parts.push_back(start(std::move(message), static_cast<int>(tag), false));
    }
    const auto requests = std::make_shared<Requests>(std::move(parts));
    if (background) process_.watch(requests);
    return requests;
  }

  std::shared_ptr<Transport> split(int, const std::vector<int>& members, int) override {
    std::vector<int> ranks;
    int key = 0;
    for (const int member : members) {
      if (member == rank_) key = static_cast<int>(ranks.size());
      ranks.push_back(job_rank(member));
    }
    MPI_Comm part;
    {
      const std::lock_guard lock(process_.mutex);
      // The first member stands for the color, which MPI wants to be none below 0.
      process_.check(process_.api.MPI_Comm_split(comm_, members.front(), key, &part), "split");
    }
    return std::make_shared<Mpi>(part, std::move(ranks));
  }

  void abort(const std::string& why) noexcept override {
    const std::lock_guard lock(process_.mutex);
    if (process_.aborted.empty()) process_.aborted = why;
  }

 private:
  Requests::Part start(Message message, int tag, bool arrives) {
    Requests::Part part{std::move(message), 0, arrives, {}, 0};
    part.peer_of_job = job_rank(part.message.peer);
    auto* at = static_cast<std::byte*>(part.message.data.raw());
    const Api& api = process_.api;
    for (int64_t left = part.message.data.bytes(); left > 0; left -= kPiece, at += kPiece) {
      const auto bytes = static_cast<int>(std::min(left, kPiece));
      MPI_Request request;
      process_.check(
          arrives ? api.MPI_Irecv(at, bytes, api.byte, part.message.peer, tag, comm_, &request)
                  : api.MPI_Isend(at, bytes, api.byte, part.message.peer, tag, comm_, &request),
          arrives ? "receive" : "send");
      part.pieces.push_back(request);
    }
    return part;
  }

  Process& process_ = Process::one();
  MPI_Comm comm_;
  const std::vector<int> ranks_;  // of the job
  int rank_ = 0;
};

}  // namespace

Communicator mpi_world() {
  const Process& process = Process::one();
  int size = 0;
  process.check(process.api.MPI_Comm_size(process.api.world, &size), "size");
  std::vector<int> ranks;
  for (int r = 0; r < size; ++r) ranks.push_back(r);
  return Communicator(std::make_shared<Mpi>(process.api.world, std::move(ranks)));
}

void end_mpi(int status) noexcept {
  if (mpi_runs) Process::one().end(status);
}

}  // namespace fovea::distributed

#else

namespace fovea::distributed {

Communicator mpi_world() {
  detail::fail("mpi: this build has no MPI; install libopenmpi-dev and build with FOVEA_MPI=on");
}
void end_mpi(int) noexcept {}

}  // namespace fovea::distributed

#endif
