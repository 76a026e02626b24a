// SPDX-License-Identifier: Apache-2.0
#include "distributed/card/nccl.h"

#if __has_include(<nccl.h>)
#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>

#include "core/card/library.h"
#include "core/card/runtime.h"
#include "core/cuda/stream.h"
#include "distributed/transport.h"

namespace fovea::distributed {
namespace {

struct Api {
  cuda::Library library{"libnccl.so.2"};
  FOVEA_LIBRARY_FUNCTION(ncclGetErrorString);
  FOVEA_LIBRARY_FUNCTION(ncclGetUniqueId);
  FOVEA_LIBRARY_FUNCTION(ncclCommInitRank);
  FOVEA_LIBRARY_FUNCTION(ncclCommSplit);
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

void check(ncclResult_t status, const char* call) {
  FOVEA_CHECK(status == ncclSuccess, "nccl ", call, ": ", api().ncclGetErrorString(status));
}

// One rank's end of an NCCL communicator, and its stream.
class Link {
 public:
  Link(ncclComm_t comm, Device device, Communicator job)
      : device_(device), job_(std::move(job)), comm_(comm) {
    FOVEA_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  ~Link() {
    if (!aborted_.exchange(true)) api().ncclCommDestroy(comm_);
    cudaStreamDestroy(stream_);
  }
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  // Ends what waits on the stream, and the other ranks' waits.
  void abort(const std::string& why) noexcept {
    if (aborted_.exchange(true)) return;
    api().ncclCommAbort(comm_);
    job_.abort(why);
  }
  // Throws once the communicator is gone, or where NCCL has met an error beside us.
  void check_alive() const {
    if (aborted_) throw Aborted("nccl: the group was ended");
    ncclResult_t status = ncclSuccess;
    check(api().ncclCommGetAsyncError(comm_, &status), "ask for errors");
    check(status, "communication");
  }

  ncclComm_t comm() const { return comm_; }
  cudaStream_t stream() const { return stream_; }
  Device device() const { return device_; }
  const Communicator& job() const { return job_; }

 private:
  const Device device_;
  const Communicator job_;
  const ncclComm_t comm_;
  cudaStream_t stream_ = nullptr;
  std::atomic<bool> aborted_ = false;
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
class Queued : public Exchange {
 public:
  Queued(std::shared_ptr<Link> link, std::vector<Message> receives, std::vector<Message> sends)
      : link_(std::move(link)), receives_(std::move(receives)), sends_(std::move(sends)) {
    link_->check_alive();
    const cudaStream_t stream = link_->stream();
    const Event ready;
    const Stream compute =
        stream_of(link_->device());  // the caller's, also where a Queue's thread posts
    if (cuda::is_capturing(compute)) fail_in_capture("a message between ranks");
    FOVEA_CUDA_CHECK(cudaEventRecord(ready.get(), static_cast<cudaStream_t>(compute.handle)));
    FOVEA_CUDA_CHECK(cudaStreamWaitEvent(stream, ready.get(), 0));
    check(api().ncclGroupStart(), "group start");
    for (const Message& m : receives_)
      check(api().ncclRecv(m.data.raw(), static_cast<size_t>(m.data.bytes()), ncclUint8, m.peer,
                           link_->comm(), stream),
            "receive");
    for (const Message& m : sends_)
      check(api().ncclSend(m.data.raw(), static_cast<size_t>(m.data.bytes()), ncclUint8, m.peer,
                           link_->comm(), stream),
            "send");
    check(api().ncclGroupEnd(), "group end");
    FOVEA_CUDA_CHECK(cudaEventRecord(done_.get(), stream));
  }

  bool test() override {
    const cudaError_t status = cudaEventQuery(done_.get());
    if (status == cudaErrorNotReady) {
      link_->check_alive();
      return false;
    }
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
};

class Nccl : public Transport {
 public:
  Nccl(std::shared_ptr<Link> link, int rank, std::vector<int> ranks)
      : link_(std::move(link)), rank_(rank), ranks_(std::move(ranks)) {}

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(ranks_.size()); }
  int job_rank(int rank) const override { return ranks_[static_cast<size_t>(rank)]; }
  Device home() const override { return link_->device(); }
  bool in_order() const override { return true; }

  std::shared_ptr<Exchange> post(int64_t, std::vector<Message> receives, std::vector<Message> sends,
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
    ncclComm_t part = nullptr;
    // The first member stands for the color, which NCCL wants to be none below 0.
    check(api().ncclCommSplit(link_->comm(), members.front(), key, &part, nullptr), "split");
    return std::make_shared<Nccl>(std::make_shared<Link>(part, link_->device(), link_->job()), key,
                                  std::move(ranks));
  }

  void abort(const std::string& why) noexcept override { link_->abort(why); }

 private:
  const std::shared_ptr<Link> link_;
  const int rank_;
  const std::vector<int> ranks_;  // of the job
};

}  // namespace

Communicator nccl_group(const Communicator& job, Device device) {
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
  ncclComm_t comm = nullptr;
  check(api().ncclCommInitRank(&comm, job.size(), id, job.rank()), "init");
  std::vector<int> ranks;
  for (int r = 0; r < job.size(); ++r) ranks.push_back(r);
  return Communicator(std::make_shared<Nccl>(std::make_shared<Link>(comm, device, job), job.rank(),
                                             std::move(ranks)));
}

}  // namespace fovea::distributed

#else

namespace fovea::distributed {

Communicator nccl_group(const Communicator&, Device) {
  detail::fail("nccl: this build has no NCCL; install libnccl-dev and build again");
}

}  // namespace fovea::distributed

#endif
