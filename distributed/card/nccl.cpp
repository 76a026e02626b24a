// SPDX-License-Identifier: Apache-2.0
#include "distributed/card/nccl.h"

#if __has_include(<nccl.h>)
#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <thread>

#include "core/card/library.h"
#include "core/card/runtime.h"
#include "core/cuda/stream.h"
#include "distributed/transport.h"

namespace fovea::distributed {
namespace {

struct Api {
  cuda::Library library{"libnccl.so.2"};
  FOVEA_LIBRARY_FUNCTION(ncclGetVersion);
  FOVEA_LIBRARY_FUNCTION(ncclGetErrorString);
  FOVEA_LIBRARY_FUNCTION(ncclGetUniqueId);
  FOVEA_LIBRARY_FUNCTION(ncclCommInitRankConfig);
  FOVEA_LIBRARY_FUNCTION(ncclCommSplit);
  FOVEA_LIBRARY_FUNCTION(ncclCommFinalize);
  FOVEA_LIBRARY_FUNCTION(ncclCommDestroy);
  FOVEA_LIBRARY_FUNCTION(ncclCommAbort);
  FOVEA_LIBRARY_FUNCTION(ncclCommGetAsyncError);
  FOVEA_LIBRARY_FUNCTION(ncclGroupStart);
  FOVEA_LIBRARY_FUNCTION(ncclGroupEnd);
  FOVEA_LIBRARY_FUNCTION(ncclSend);
  FOVEA_LIBRARY_FUNCTION(ncclRecv);
};

const Api& api() {
  static const auto* loaded = new Api;  // never destroyed: the library stays open
  return *loaded;
}

// Calls on a communicator only start what they do.
void check(ncclResult_t status, const char* call) {
  FOVEA_CHECK(status == ncclSuccess || status == ncclInProgress, "nccl ", call, ": ",
              api().ncclGetErrorString(status));
}

ncclConfig_t not_blocking() {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  return config;
}

// How the call that was started last has ended, or ncclInProgress at `until`.
ncclResult_t end_of_call(ncclComm_t comm, Clock::time_point until) {
  while (true) {
    ncclResult_t state = ncclInProgress;
    if (const ncclResult_t status = api().ncclCommGetAsyncError(comm, &state);
        status != ncclSuccess)
      return status;
    if (state != ncclInProgress || Clock::now() >= until) return state;
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

Clock::time_point after(double seconds) {
  return Clock::now() +
         std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

// Throws unless it has ended well within the job's time limit.
void finish_call(ncclComm_t comm, const Communicator& job, const char* call) {
  const ncclResult_t state = end_of_call(comm, after(std::min(job.time_limit(), 1e9)));
  if (state == ncclInProgress)
    throw TimedOut(concat("rank ", job.rank(), ": nccl ", call, " waited ", job.time_limit(),
                          " s for the other ranks"));
  check(state, call);
}

// What the groups of one job share.
struct Family {
  explicit Family(Communicator of) : job(std::move(of)) {}
  const Communicator job;
  std::atomic<bool> ended = false;  // all of them are aborted
};

// One rank's end of an NCCL communicator, and its stream.
class Link {
 public:
  // comm null: of a group of this rank alone, which sends nothing.
  Link(ncclComm_t comm, Device device, std::shared_ptr<Family> family)
      : device_(device), family_(std::move(family)), comm_(comm) {
    FOVEA_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  ~Link() {
    constexpr double kGrace = 10.0;  // seconds; an idle communicator needs none
    if (comm_ != nullptr && !aborted_) {
      const bool failed = family_->ended || std::uncaught_exceptions() > exceptions_;
      if (!failed) api().ncclCommFinalize(comm_);  // an error is its state
      if (!failed && end_of_call(comm_, after(kGrace)) == ncclSuccess)
        api().ncclCommDestroy(comm_);
      else
        api().ncclCommAbort(comm_);
    }
    cudaStreamDestroy(stream_);
  }
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  // Ends what waits on the stream, and the other ranks' waits.
  void abort(const std::string& why) noexcept {
    {
      const std::lock_guard lock(mutex_);
      family_->ended = true;
      if (aborted_) return;
      aborted_ = true;
      if (comm_ != nullptr) api().ncclCommAbort(comm_);
    }
    family_->job.abort(why);
  }

  // Starts messages.
  void start(const std::vector<Message>& receives, const std::vector<Message>& sends) {
    const std::lock_guard lock(mutex_);
    check_alive();
    check(api().ncclGroupStart(), "group start");
    for (const Message& m : receives)
      check(api().ncclRecv(m.data.raw(), static_cast<size_t>(m.data.bytes()), ncclUint8, m.peer,
                           comm_, stream_),
            "receive");
    for (const Message& m : sends)
      check(api().ncclSend(m.data.raw(), static_cast<size_t>(m.data.bytes()), ncclUint8, m.peer,
                           comm_, stream_),
            "send");
    check(api().ncclGroupEnd(), "group end");
  }
  // Whether what was started is on the stream. Throws once the communicator is gone, or where NCCL
  // has met an error beside us.
  bool is_queued() const {
    const std::lock_guard lock(mutex_);
    check_alive();
    const ncclResult_t state = end_of_call(comm_, Clock::time_point());
    check(state, "communication");
    return state == ncclSuccess;
  }
  // The same ranks that give the same color; null for one that gives NCCL_SPLIT_NOCOLOR.
  ncclComm_t split(int color, int key) {
    ncclConfig_t config = not_blocking();
    ncclComm_t part = nullptr;
    const std::lock_guard lock(mutex_);
    check_alive();
    check(api().ncclCommSplit(comm_, color, key, &part, &config), "split");
    finish_call(comm_, family_->job, "split");
    if (part != nullptr) finish_call(part, family_->job, "split");
    return part;
  }

  cudaStream_t stream() const { return stream_; }
  Device device() const { return device_; }
  const std::shared_ptr<Family>& family() const { return family_; }

 private:
  void check_alive() const {
    if (family_->ended) throw Aborted("nccl: the group was ended");
  }

  const Device device_;
  const std::shared_ptr<Family> family_;
  const int exceptions_ = std::uncaught_exceptions();
  mutable std::mutex mutex_;  // of every call on comm_
  const ncclComm_t comm_;
  bool aborted_ = false;
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  Event() { FOVEA_CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming)); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

// Messages between two points of the stream.
class Queued : public InFlight {
 public:
  Queued(std::shared_ptr<Link> link, std::vector<Message> receives, std::vector<Message> sends)
      : link_(std::move(link)), receives_(std::move(receives)), sends_(std::move(sends)) {
    const Event ready;
    const Stream caller = stream_of(link_->device());
    if (cuda::is_capturing(caller)) fail_in_capture("a message between ranks");
    FOVEA_CUDA_CHECK(cudaEventRecord(ready.get(), static_cast<cudaStream_t>(caller.handle)));
    FOVEA_CUDA_CHECK(cudaStreamWaitEvent(link_->stream(), ready.get(), 0));
    link_->start(receives_, sends_);
  }

  bool test() override {
    const bool queued = link_->is_queued();
    if (!marked_) {
      if (!queued) return false;
      FOVEA_CUDA_CHECK(cudaEventRecord(done_.get(), link_->stream()));
      marked_ = true;
    }
    const cudaError_t status = cudaEventQuery(done_.get());
    if (status == cudaErrorNotReady) return false;
    FOVEA_CUDA_CHECK(status);
    return true;
  }

  bool wait(Clock::time_point until) override {
    while (!test()) {
      if (Clock::now() >= until) return false;
      std::this_thread::yield();
    }
    return true;
  }

  // NCCL does not say whose.
  std::vector<int> missing() override {
    std::vector<int> peers;
    for (const auto* messages : {&receives_, &sends_})
      for (const Message& m : *messages) peers.push_back(m.peer);
    std::sort(peers.begin(), peers.end());
    peers.erase(std::unique(peers.begin(), peers.end()), peers.end());
    return peers;
  }

 private:
  const std::shared_ptr<Link> link_;
  const std::vector<Message> receives_, sends_;
  const Event done_;
  bool marked_ = false;  // done_ is behind them
};

class Nccl : public Transport {
 public:
  Nccl(std::shared_ptr<Link> link, int rank, std::vector<int> ranks)
      : link_(std::move(link)), rank_(rank), ranks_(std::move(ranks)) {}

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(ranks_.size()); }
  std::string_view name() const override { return "nccl"; }
  int job_rank(int rank) const override { return ranks_[static_cast<size_t>(rank)]; }
  Device home() const override { return link_->device(); }
  bool in_order() const override { return true; }

  std::shared_ptr<InFlight> post(int64_t, std::vector<Message> receives, std::vector<Message> sends,
                                 bool) override {
    FOVEA_CUDA_CHECK(cudaSetDevice(link_->device().index));  // of this host thread
    return std::make_shared<Queued>(link_, std::move(receives), std::move(sends));
  }

  std::shared_ptr<Transport> split(int, const std::vector<int>& members, int) override {
    std::vector<int> ranks;
    int key = 0;
    for (const int member : members) {
      if (member == rank_) key = static_cast<int>(ranks.size());
      ranks.push_back(job_rank(member));
    }
    // The first member stands for the color, which NCCL wants to be none below 0. All ranks call; a
    // group of one needs no communicator.
    ncclComm_t part = nullptr;
    if (size() > 1)
      part = link_->split(ranks.size() > 1 ? members.front() : NCCL_SPLIT_NOCOLOR, key);
    return std::make_shared<Nccl>(std::make_shared<Link>(part, link_->device(), link_->family()),
                                  key, std::move(ranks));
  }

  void abort(const std::string& why) noexcept override { link_->abort(why); }

 private:
  const std::shared_ptr<Link> link_;
  const int rank_;
  const std::vector<int> ranks_;  // of the job
};

}  // namespace

std::shared_ptr<Transport> nccl_transport(const Communicator& job, Device device) {
  FOVEA_CHECK(device.kind == Device::Kind::cuda, "nccl: expected a card, found device ", device);
  FOVEA_CUDA_CHECK(cudaSetDevice(device.index));
  ncclUniqueId id;
  const Tensor bytes = Tensor::zeros({static_cast<int64_t>(sizeof id)}, Dtype::u8);
  if (job.rank() == 0) {
    check(api().ncclGetUniqueId(&id), "id");
    std::memcpy(bytes.raw(), &id, sizeof id);
  }
  job.broadcast(bytes, 0).wait();
  std::memcpy(&id, bytes.raw(), sizeof id);
  ncclConfig_t config = not_blocking();
  ncclComm_t comm = nullptr;
  check(api().ncclCommInitRankConfig(&comm, job.size(), id, job.rank(), &config), "init");
  try {
    finish_call(comm, job, "init");
  } catch (...) {
    api().ncclCommAbort(comm);
    throw;
  }
  std::vector<int> ranks;
  for (int r = 0; r < job.size(); ++r) ranks.push_back(r);
  const auto family = std::make_shared<Family>(job);
  return std::make_shared<Nccl>(std::make_shared<Link>(comm, device, family), job.rank(),
                                std::move(ranks));
}

std::string nccl_version() {
  int code = 0;
  check(api().ncclGetVersion(&code), "version");
  // 2.8 and before: 1000 a major version
  const int major = code < 10000 ? code / 1000 : code / 10000,
            rest = code - major * (code < 10000 ? 1000 : 10000);
  return concat(major, '.', rest / 100, '.', rest % 100);
}

}  // namespace fovea::distributed

#else

namespace fovea::distributed {
namespace {

[[noreturn]] void fail_without_nccl() {
  detail::fail("nccl: this build has no NCCL; install libnccl-dev and build again");
}

}  // namespace

std::shared_ptr<Transport> nccl_transport(const Communicator&, Device) { fail_without_nccl(); }
std::string nccl_version() { fail_without_nccl(); }

}  // namespace fovea::distributed

#endif
