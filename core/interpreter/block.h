// SPDX-License-Identifier: Apache-2.0
#pragma once
// The scheduler of one block's fibers, for the interpreter's own files.

#include <algorithm>
#include <array>
#include <atomic>
#include <exception>
#include <memory>

#include "core/interpreter/machine.h"
#include "core/interpreter/stacks.h"

namespace fovea::interpreted {

inline constexpr int kBarriers = 16;
inline constexpr int kWarpsMost = 32;  // of a block

class Async;

// Vector clocks: what is before all that someone does next: accesses of warp w up to its clock
// warps[w], of thread t up to threads[t].
struct Knowledge {
  std::array<uint32_t, kWarpsMost> warps{};
  std::vector<uint32_t> threads;  // empty: of no single one

  void learn(const Knowledge& other);
  void learn(size_t thread, uint32_t clock, size_t of);
};

// The order of lanes: as numbered when empty.
std::optional<uint64_t>& seed();
std::string describe(const Dim3& d);
// "train/optim/cuda/update.cu:42"
std::string short_file(const Where& where);

// For how many rounds each host thread of a launch has only seen threads that spin. When all have
// for long, each since the last of them did anything else, nothing will ever change.
class Waits {
 public:
  explicit Waits(int64_t workers) : rounds_(static_cast<size_t>(workers)) {}
  // A worker did something that others may wait for.
  void changed() {
    for (std::atomic<int>& rounds : rounds_)
      if (rounds.load() < kEnded) rounds.store(0);
  }
  // A round of nothing but spinning; whether the wait is endless.
  bool spun(int64_t worker) {
    if (++rounds_[static_cast<size_t>(worker)] < kRounds) return false;
    return std::all_of(rounds_.begin(), rounds_.end(),
                       [](const std::atomic<int>& rounds) { return rounds.load() >= kRounds; });
  }
  void ended(int64_t worker) {
    changed();
    rounds_[static_cast<size_t>(worker)].store(kEnded);
  }

 private:
  static constexpr int kRounds = 1000, kEnded = 1 << 30;
  std::vector<std::atomic<int>> rounds_;
};

// Runs the blocks that one host thread is given, one after another.
class Block {
 public:
  Block(const LaunchSpec& spec, const std::function<void()>& body, Waits& waits, int64_t worker);
  ~Block();
  void run(const Dim3& index);

  // ---- called by threads

  void spin(Thread& t, const char* what, const Where& where);
  void barrier(Thread& t, int id, int count, bool waits, const Where& where);
  void meet(Thread& t, const char* what, unsigned mask, void* deposit,
            bool (*act)(void*, void* const*), void* context, const Where& where);
  [[noreturn]] void fault_at(const Thread& t, const std::string& words, const Where& where) const;

  // Whether an access of another thread, at its clock, is before all that t does now.
  bool ordered(const Thread& t, unsigned other, uint32_t clock) const {
    if (other == static_cast<unsigned>(t.id)) return true;
    const unsigned warp = other / kWarp, mine = static_cast<unsigned>(t.warp);
    const Knowledge& known = known_[mine];
    if (known.warps[warp] >= clock) return true;
    if (!known.threads.empty() && known.threads[other] >= clock) return true;
    if (t.heard) {
      const Knowledge& heard = heard_[static_cast<size_t>(t.id)];
      if (heard.warps[warp] >= clock) return true;
      if (!heard.threads.empty() && heard.threads[other] >= clock) return true;
    }
    return warp == mine && t.met_some &&
           lanes_known_[static_cast<size_t>(t.id)][other % kWarp] >= clock;
  }
  // What t does from now on is after what others have published; what t has done, before what those
  // do that learn `to`.
  void hear(Thread& t, const Knowledge& published);
  void publish(Thread& t, Knowledge& to);

  uint32_t serial() const { return serial_; }
  Span& dynamic_span() { return dynamic_span_; }
  const Thread& at(unsigned id) const { return threads_[id]; }
  size_t threads() const { return threads_.size(); }
  // What the block has started with Hopper's instructions; made when first asked for.
  Async& async();

 private:
  struct Abandoned {};
  using Clocks = std::array<uint32_t, kWarpsMost>;
  // Lanes, a bit each.
  struct Warp {
    unsigned exist = 0, ready = 0, spinning = 0, meeting = 0, left = 0;
    bool mixed = false;  // those in `meeting` wait for more than one meeting
  };
  struct Barrier {
    int arrived = 0, needed = 0;
    unsigned waiting = 0;  // warps
    Where where{};
    int first = 0;      // thread
    Knowledge known{};  // of all that have arrived
  };
  struct Arrival {
    int id, count;
    bool waits;
  };

  boost::context::fiber start(size_t i);
  void resume(size_t i);
  void yield();
  bool resume_ready();
  [[noreturn]] void cannot_meet(const Thread& t, unsigned lanes) const;
  void check_apart(const Thread& t, const Thread& other) const;
  void complete(Thread& t, unsigned lanes, bool (*act)(void*, void* const*), void* context);
  [[noreturn]] void stuck();
  void abandon();
  void shuffle();
  void join(int warp, unsigned lanes);
  bool arrive(const Thread& t, const Arrival& arrival, const Where& where);

  const LaunchSpec& spec_;
  const std::function<void()>& body_;
  Waits& waits_;
  const int64_t worker_;
  Dim3 index_;
  std::vector<Thread> threads_;
  std::vector<boost::context::stack_context> stacks_;
  std::vector<boost::context::fiber> fibers_;
  boost::context::fiber back_;  // the scheduler, while a thread runs
  const void* scheduler_bottom_ = nullptr;
  size_t scheduler_size_ = 0;
  std::vector<uint16_t> order_;  // of threads, when there is a seed
  size_t left_ = 0;              // threads that have not ended
  std::exception_ptr fault_;
  bool abandoned_ = false;
  std::vector<Warp> warps_;
  std::array<Barrier, kBarriers> barriers_{};
  std::array<Knowledge, kWarpsMost> known_{};  // by warp
  // By thread: what it alone has heard since its warp met.
  std::vector<Knowledge> heard_;
  // Within a warp, of threads that have met some of its lanes: by thread, then lane.
  std::vector<Clocks> lanes_known_;
  uint32_t serial_ = 0;
  struct alignas(1024) Line {
    std::byte bytes[1024];
  };
  std::vector<Line> dynamic_;
  Span dynamic_span_;
  uint64_t random_ = 0;
  std::unique_ptr<Async> async_;
};

}  // namespace fovea::interpreted
