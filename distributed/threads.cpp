// SPDX-License-Identifier: Apache-2.0
#include "distributed/threads.h"

#include <algorithm>
#include <array>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>

#include "core/parallel.h"
#include "distributed/transport.h"

namespace fovea::distributed {
namespace {

constexpr auto kGrace = std::chrono::seconds(5);  // for ranks to return after a failure

// One side of a message. Everything but the tensor is guarded by the world's mutex.
struct Half {
  int rank, peer;  // of the group: whose it is, and who the other one is
  int owner;       // of the job: who waits for it
  Tensor data;
  bool done = false;
  std::string error;  // why it will never be
};

// A message's address: the group, from and to (ranks of the group), the tag.
struct Address {
  int64_t group;
  int from, to;
  int64_t tag;
  auto operator<=>(const Address&) const = default;
};

// Halves that wait for their other one; of one kind, for a pair would have met.
struct Meeting {
  std::deque<std::shared_ptr<Half>> sends, receives;
};

// What the ranks of a job share.
class World {
 public:
  explicit World(int ranks) : changed_(static_cast<size_t>(ranks)), away_(ranks) {}

  void post(const Address& address, const std::shared_ptr<Half>& half, bool sends) {
    std::shared_ptr<Half> other;
    {
      const std::lock_guard lock(mutex_);
      Meeting& meeting = meetings_[address];
      auto& waiting = sends ? meeting.receives : meeting.sends;
      if (waiting.empty()) {
        (sends ? meeting.sends : meeting.receives).push_back(half);
        return;
      }
      other = waiting.front();
      waiting.pop_front();
      if (meeting.sends.empty() && meeting.receives.empty()) meetings_.erase(address);
    }
    const Half& from = sends ? *half : *other;
    const Half& to = sends ? *other : *half;
    std::string error;
    if (from.data.dtype() != to.data.dtype() || from.data.numel() != to.data.numel()) {
      error = concat("rank ", from.owner, " sent ", from.data.dtype(), ' ', from.data.shape(),
                     ", but rank ", to.owner, " receives ", to.data.dtype(), ' ', to.data.shape());
    } else {
      to.data.copy_(from.data);
    }
    const std::lock_guard lock(mutex_);
    for (const auto& one : {half, other}) {
      one->error = error;
      one->done = error.empty();
      one->data = {};
      changed_[static_cast<size_t>(one->owner)].notify_all();
    }
  }

  // All done; throws when one of them never will be.
  bool all_done(const std::vector<std::shared_ptr<Half>>& halves) {
    const std::lock_guard lock(mutex_);
    return check(halves);
  }
  bool wait(const std::vector<std::shared_ptr<Half>>& halves, Clock::time_point until) {
    if (halves.empty()) return true;
    std::unique_lock lock(mutex_);
    return changed_[static_cast<size_t>(halves[0]->owner)].wait_until(
        lock, until, [&] { return check(halves); });
  }
  std::vector<int> missing(const std::vector<std::shared_ptr<Half>>& halves) {
    const std::lock_guard lock(mutex_);
    std::vector<int> peers;
    for (const auto& half : halves)
      if (!half->done) peers.push_back(half->peer);
    std::sort(peers.begin(), peers.end());
    peers.erase(std::unique(peers.begin(), peers.end()), peers.end());
    return peers;
  }

  void abort(const std::string& why) {
    const std::lock_guard lock(mutex_);
    if (why_.empty()) {
      why_ = why.empty() ? "aborted" : why;
      for (auto& changed : changed_) changed.notify_all();
    }
  }

  // A new number for each (parent, split, color), the same for all who ask.
  int64_t group(int64_t parent, int split, int color) {
    const std::lock_guard lock(mutex_);
    const auto next = static_cast<int64_t>(groups_.size()) + 1;
    return groups_.try_emplace({parent, split, color}, next).first->second;
  }

  // A rank has returned from its function, with an error or none. The job's error is the first that
  // is not about another rank's.
  void returned(int rank, std::exception_ptr error, bool aborted) {
    const std::lock_guard lock(mutex_);
    if (error && (!error_ || (aborted_ && !aborted)))
      error_ = error, aborted_ = aborted, failed_ = rank;
    --away_;
    finished_.notify_all();
  }
  // Waits for all ranks, after a failure no longer than the grace. True when all have returned.
  bool wait_for_all() {
    std::unique_lock lock(mutex_);
    const auto over = [&] { return away_ == 0; };
    while (!over() && why_.empty()) finished_.wait_for(lock, std::chrono::milliseconds(50));
    return finished_.wait_for(lock, kGrace, over);
  }
  std::pair<int, std::exception_ptr> error() {
    const std::lock_guard lock(mutex_);
    return {failed_, error_};
  }

 private:
  bool check(const std::vector<std::shared_ptr<Half>>& halves) const {
    for (const auto& half : halves) FOVEA_CHECK(half->error.empty(), half->error);
    if (std::all_of(halves.begin(), halves.end(), [](const auto& half) { return half->done; }))
      return true;
    if (!why_.empty()) throw Aborted(why_);
    return false;
  }

  std::mutex mutex_;
  std::map<Address, Meeting> meetings_;
  std::vector<std::condition_variable> changed_;  // by rank
  std::map<std::array<int64_t, 3>, int64_t> groups_;
  std::string why_;  // the job ends; empty: it does not
  std::condition_variable finished_;
  int away_;  // ranks still to return
  int failed_ = -1;
  bool aborted_ = false;  // the error is an Aborted
  std::exception_ptr error_;
};

class Halves : public InFlight {
 public:
  Halves(std::shared_ptr<World> world, std::vector<std::shared_ptr<Half>> halves)
      : world_(std::move(world)), halves_(std::move(halves)) {}
  bool test() override { return world_->all_done(halves_); }
  bool wait(Clock::time_point until) override { return world_->wait(halves_, until); }
  std::vector<int> missing() override { return world_->missing(halves_); }

 private:
  const std::shared_ptr<World> world_;
  const std::vector<std::shared_ptr<Half>> halves_;
};

class Threads : public Transport {
 public:
  // ranks: those of the job that are this group's.
  Threads(std::shared_ptr<World> world, int64_t group, std::vector<int> ranks, int rank)
      : world_(std::move(world)), group_(group), ranks_(std::move(ranks)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(ranks_.size()); }
  std::string_view name() const override { return "threads"; }
  int job_rank(int rank) const override { return ranks_[static_cast<size_t>(rank)]; }

  std::shared_ptr<InFlight> post(int64_t tag, std::vector<Message> receives,
                                 std::vector<Message> sends, bool) override {
    std::vector<std::shared_ptr<Half>> halves;
    const auto post = [&](Message& message, bool is_send) {
      const auto half = std::make_shared<Half>(
          Half{rank_, message.peer, job_rank(rank_), std::move(message.data), false, {}});
      halves.push_back(half);
      const Address address = is_send ? Address{group_, rank_, message.peer, tag}
                                      : Address{group_, message.peer, rank_, tag};
      world_->post(address, half, is_send);
    };
    for (Message& message : receives) post(message, false);
    for (Message& message : sends) post(message, true);
    return std::make_shared<Halves>(world_, std::move(halves));
  }

  std::shared_ptr<Transport> split(int color, const std::vector<int>& members,
                                   int number) override {
    std::vector<int> ranks;
    int mine = 0;
    for (const int member : members) {
      if (member == rank_) mine = static_cast<int>(ranks.size());
      ranks.push_back(job_rank(member));
    }
    return std::make_shared<Threads>(world_, world_->group(group_, number, color), std::move(ranks),
                                     mine);
  }

  void abort(const std::string& why) noexcept override { world_->abort(why); }

 private:
  const std::shared_ptr<World> world_;
  const int64_t group_;
  const std::vector<int> ranks_;
  const int rank_;
};

std::string what_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "an exception that is no std::exception";
  }
}

void run_rank(const std::shared_ptr<World>& world, int ranks, int rank,
              const std::function<void(const Communicator&)>& f) {
  std::exception_ptr error;
  bool aborted = false;
  try {
    const ThreadShare share(std::max(1, num_threads() / ranks));
    std::vector<int> all;
    for (int r = 0; r < ranks; ++r) all.push_back(r);
    f(Communicator(std::make_shared<Threads>(world, 0, all, rank)));
  } catch (const Aborted&) {
    error = std::current_exception();
    aborted = true;
  } catch (...) {
    error = std::current_exception();
  }
  if (error) world->abort(concat("rank ", rank, " ended: ", what_of(error)));
  world->returned(rank, error, aborted);
}

}  // namespace

void run_ranks(int ranks, const std::function<void(const Communicator&)>& f) {
  FOVEA_CHECK(ranks >= 1, "ranks: expected at least 1, found ", ranks);
  if (ranks == 1) return f(Communicator());
  const auto world = std::make_shared<World>(ranks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank)
    threads.emplace_back([world, ranks, rank, f] { run_rank(world, ranks, rank, f); });
  const bool all = world->wait_for_all();
  for (std::thread& thread : threads) all ? thread.join() : thread.detach();
  const auto [failed, error] = world->error();
  if (!error) return;
  const std::string what = what_of(error);
  const std::string who = concat("rank ", failed);
  // A time limit's line names the rank already.
  throw Error(what.starts_with(who + ':') ? what : concat(who, " of ", ranks, ": ", what));
}

}  // namespace fovea::distributed
