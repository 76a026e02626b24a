// SPDX-License-Identifier: Apache-2.0
#pragma once
// The scheduler of one block's fibers, for the interpreter's own files.

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <boost/context/fiber.hpp>
#include <cstring>
#include <memory>

#include "core/interpreter/machine.h"
#include "core/rng.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace fovea::interpreted {

// Frames grow under the sanitizers, which put room around every variable.
#if defined(__SANITIZE_ADDRESS__) || !defined(__OPTIMIZE__)
inline constexpr size_t kStack = size_t{512} << 10;
#else
inline constexpr size_t kStack = size_t{128} << 10;
#endif
inline constexpr int kBarriers = 16;

// The order of lanes: as numbered when empty.
std::optional<uint64_t>& seed();

// Stacks of a host thread's fibers, mapped once and kept: untouched pages cost nothing.
class Stacks {
 public:
  Stacks() = default;
  ~Stacks() {
    for (void* stack : stacks_) munmap(stack, kStack);
  }
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  boost::context::stack_context operator[](size_t i) {
    while (stacks_.size() <= i) {
      void* stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      FOVEA_CHECK(stack != MAP_FAILED, "interpreter: no memory for the stack of a thread");
      stacks_.push_back(stack);
    }
    boost::context::stack_context stack;
    stack.size = kStack;
    stack.sp = static_cast<char*>(stacks_[i]) + kStack;
    return stack;
  }

 private:
  std::vector<void*> stacks_;
};

// For fibers whose stacks outlive them.
struct Keep {
  void deallocate(boost::context::stack_context&) {}
};

std::string describe(const Dim3& d);
// "nn/cuda/norm.cu:42"
std::string short_file(const Where& where);

// A sanitizer must be told of every change of stack.
class StackSwitch {
 public:
#if defined(__SANITIZE_ADDRESS__)
  // Leaves for the stack [bottom, bottom + size).
  void leave(const void* bottom, size_t size) {
    __sanitizer_start_switch_fiber(&fake_, bottom, size);
  }
  void back() { __sanitizer_finish_switch_fiber(fake_, nullptr, nullptr); }
  static void leave_for_good(const void* bottom, size_t size) {
    __sanitizer_start_switch_fiber(nullptr, bottom, size);
  }
  static void arrive(const void** bottom, size_t* size) {
    __sanitizer_finish_switch_fiber(nullptr, bottom, size);
  }

 private:
  void* fake_ = nullptr;
#else
  void leave(const void*, size_t) {}
  void back() {}
  static void leave_for_good(const void*, size_t) {}
  static void arrive(const void**, size_t*) {}
#endif
};

// ---- a block ------------------------------------------------------------------------------------

// Runs the blocks that one host thread is given, one after another.
class Block {
 public:
  Block(const LaunchSpec& spec, const std::function<void()>& body)
      : spec_(spec), body_(body), dynamic_(spec.shared_bytes) {
    const Dim3& d = spec.block;
    threads_.resize(static_cast<size_t>(d.x) * d.y * d.z);
    fibers_.resize(threads_.size());
    warps_ = (static_cast<int>(threads_.size()) + kWarp - 1) / kWarp;
    clock_.resize(static_cast<size_t>(warps_));
    known_.resize(static_cast<size_t>(warps_ * warps_));
    prepare(dynamic_span_, dynamic_.data(), dynamic_.size(), "dynamic");
  }

  void run(const Dim3& index) {
    index_ = index;
    serial_ = ++serials();
    std::fill(clock_.begin(), clock_.end(), 1u);
    std::fill(known_.begin(), known_.end(), 0u);
    for (Barrier& barrier : barriers_) barrier = {};
    std::memset(dynamic_.data(), 0xFF, dynamic_.size());
    const Dim3& d = spec_.block;
    for (size_t i = 0; i < threads_.size(); ++i) {
      Thread& t = threads_[i];
      t = Thread{};
      t.id = static_cast<int>(i);
      t.index = Dim3(i % d.x, i / d.x % d.y, i / d.x / d.y);
      t.lane = t.id % kWarp;
      t.warp = t.id / kWarp;
      t.block = this;
      fibers_[i] = start(i);
    }
    // Its own draw, whatever host thread runs it.
    if (seed()) {
      random_.key = *seed();
      random_.high = (uint64_t{index.z} * spec_.grid.y + index.y) * spec_.grid.x + index.x + 1;
      draws_ = 0;
    }
    left_ = threads_.size();
    order_.resize(threads_.size());
    for (size_t i = 0; i < order_.size(); ++i) order_[i] = i;
    while (left_ > 0) {
      if (seed()) shuffle();
      bool moved = false;
      for (const size_t i : order_) {
        if (threads_[i].state != Thread::State::ready) continue;
        moved = true;
        resume(i);
        if (fault_) {
          const std::exception_ptr first = fault_;
          abandon();
          std::rethrow_exception(first);
        }
      }
      if (!moved) stuck();
    }
  }

  // ---- called by threads

  void wait() { yield(); }

  void barrier(Thread& t, int id, int count, bool waits, const Where& where) {
    Barrier& b = barriers_[static_cast<size_t>(id)];
    const int needed = id == 0 ? static_cast<int>(threads_.size()) : count;
    if (b.arrived > 0 && id == 0 && b.where.line() != where.line())
      fault(concat("the barrier of the block diverges: thread ", describe(b.first),
                   " waits for it at ", short_file(b.where)),
            where);
    if (b.arrived > 0 && b.needed != needed)
      fault(concat("barrier ", id, " is for ", needed, " threads here but for ", b.needed, " at ",
                   short_file(b.where)),
            where);
    if (b.arrived == 0) {
      b.needed = needed;
      b.where = where;
      b.first = t.index;
    }
    ++b.arrived;
    b.warps |= uint64_t{1} << t.warp;
    if (b.arrived < needed) {
      if (!waits) return;
      t.state = Thread::State::at_barrier;
      t.barrier = id;
      t.what = "a barrier";
      t.where = where;
      yield();
      return;
    }
    join(b.warps);
    b = {};
    const auto met = [&](const Thread& other) {
      return &other == &t || (other.state == Thread::State::at_barrier && other.barrier == id);
    };
    uint32_t meetings = 0;
    for (const Thread& other : threads_)
      if (met(other)) meetings = std::max(meetings, other.warp_meetings);
    for (Thread& other : threads_) {
      if (!met(other)) continue;
      other.warp_meetings = meetings + 1;
      other.state = Thread::State::ready;
    }
  }

  void meet(Thread& t, const char* what, unsigned mask, void* deposit,
            void (*act)(void*, void* const*), void* context, const Where& where) {
    if (((mask >> t.lane) & 1u) == 0)
      fault(concat(what, ": lane ", t.lane, " is not in its own mask ", mask), where);
    t.deposit = deposit;
    t.mask = mask;
    std::array<void*, kWarp> lanes{};
    for (int lane = 0; lane < kWarp; ++lane) {
      if (((mask >> lane) & 1u) == 0) continue;
      const size_t i = static_cast<size_t>(t.warp * kWarp + lane);
      if (i >= threads_.size()) {
        if (mask != kAllLanes)
          fault(concat(what, ": lane ", lane, " of the mask does not exist"), where);
        continue;  // the last warp of a block that is no multiple of 32
      }
      Thread& other = threads_[i];
      const bool here = &other == &t || (other.state == Thread::State::in_warp &&
                                         other.what == what && other.mask == mask);
      if (!here) {
        if (other.state == Thread::State::done)
          fault(concat(what, ": lane ", lane, " has left the kernel"), where);
        if (other.state == Thread::State::in_warp && (other.mask & mask) != 0)
          fault(concat(what, ": lane ", lane, " of the warp is at ", other.what, " at ",
                       short_file(other.where)),
                where);
        t.state = Thread::State::in_warp;
        t.what = what;
        t.where = where;
        yield();
        return;
      }
      lanes[static_cast<size_t>(lane)] = other.deposit;
    }
    act(context, lanes.data());
    uint32_t meetings = 0;
    for (const bool count : {true, false}) {
      for (int lane = 0; lane < kWarp; ++lane) {
        const size_t i = static_cast<size_t>(t.warp * kWarp + lane);
        if (((mask >> lane) & 1u) == 0 || i >= threads_.size()) continue;
        if (count) {
          meetings = std::max(meetings, threads_[i].warp_meetings);
        } else {
          threads_[i].state = Thread::State::ready;
          threads_[i].warp_meetings = meetings + 1;
        }
      }
    }
  }

  [[noreturn]] void fault_at(const Thread& t, const std::string& words, const Where& where) const {
    throw Error(concat("kernel ", spec_.kernel, ", block ", describe(index_), ", thread ",
                       describe(t.index), ", ", short_file(where), ": ", words));
  }

  // ---- order of accesses to shared memory

  // Whether an access of another thread is before everything that t does now: t has met it since.
  bool ordered(const Thread& t, int other, uint32_t clock, uint32_t meetings) const {
    if (other == t.id) return true;
    const int warp = other / kWarp;
    if (warp == t.warp && t.warp_meetings > meetings) return true;
    return known_[static_cast<size_t>(t.warp * warps_ + warp)] >= clock;
  }
  uint32_t clock(const Thread& t) const { return clock_[static_cast<size_t>(t.warp)]; }

  const LaunchSpec& spec() const { return spec_; }
  const Dim3& index() const { return index_; }
  uint64_t serial() const { return serial_; }
  Span& dynamic_span() { return dynamic_span_; }
  const Thread& at(int id) const { return threads_[static_cast<size_t>(id)]; }
  static Thread*& current() {
    static thread_local Thread* thread = nullptr;
    return thread;
  }

 private:
  struct Abandoned {};
  struct Barrier {
    int arrived = 0, needed = 0;
    uint64_t warps = 0;
    Where where{};
    Dim3 first;
  };

  // What each warp of the set has done is now before what any of them does next.
  void join(uint64_t warps) {
    const auto in = [&](int w) { return ((warps >> w) & 1u) != 0; };
    for (int w = 0; w < warps_; ++w) {
      if (in(w)) known_[static_cast<size_t>(w * warps_ + w)] = clock_[static_cast<size_t>(w)];
    }
    std::vector<uint32_t> most(static_cast<size_t>(warps_), 0u);
    for (int w = 0; w < warps_; ++w) {
      for (int v = 0; in(w) && v < warps_; ++v) {
        most[static_cast<size_t>(v)] =
            std::max(most[static_cast<size_t>(v)], known_[static_cast<size_t>(w * warps_ + v)]);
      }
    }
    for (int w = 0; w < warps_; ++w) {
      if (!in(w)) continue;
      std::copy(most.begin(), most.end(), known_.begin() + w * warps_);
      ++clock_[static_cast<size_t>(w)];
    }
  }

  boost::context::fiber start(size_t i) {
    const boost::context::stack_context stack = stacks()[i];
    return boost::context::fiber(std::allocator_arg,
                                 boost::context::preallocated(stack.sp, stack.size, stack), Keep{},
                                 [this, i](boost::context::fiber&& scheduler) {
                                   StackSwitch::arrive(&scheduler_bottom_, &scheduler_size_);
                                   back_ = std::move(scheduler);
                                   try {
                                     if (!abandoned_) body_();
                                   } catch (const Abandoned&) {
                                   } catch (...) {
                                     fault_ = std::current_exception();
                                   }
                                   threads_[i].state = Thread::State::done;
                                   --left_;
                                   StackSwitch::leave_for_good(scheduler_bottom_, scheduler_size_);
                                   return std::move(back_);
                                 });
  }

  void resume(size_t i) {
    Thread* before = current();
    current() = &threads_[i];
    StackSwitch change;
    change.leave(static_cast<char*>(stacks()[i].sp) - kStack, kStack);
    fibers_[i] = std::move(fibers_[i]).resume();
    change.back();
    current() = before;
  }

  // Back to the scheduler until the thread is ready again.
  void yield() {
    StackSwitch change;
    change.leave(scheduler_bottom_, scheduler_size_);
    back_ = std::move(back_).resume();
    change.back();
    if (abandoned_) throw Abandoned{};
  }

  // Nobody can go on: some wait for others that have left or wait elsewhere.
  [[noreturn]] void stuck() {
    const Thread* waiting = nullptr;
    const Thread* other = nullptr;
    size_t waits = 0;
    for (const Thread& t : threads_) {
      if (t.state == Thread::State::done) continue;
      ++waits;
      if (waiting == nullptr) waiting = &t;
      if (other == nullptr && waiting != nullptr &&
          (t.state != waiting->state || t.where.line() != waiting->where.line()))
        other = &t;
    }
    const Thread first = *waiting;
    std::string words = concat("waits at ", first.what, " for threads that never come: ");
    if (other != nullptr)
      words += concat("thread ", describe(other->index), " waits at ", other->what, " at ",
                      short_file(other->where));
    else
      words +=
          concat(threads_.size() - waits, " of ", threads_.size(), " threads have left the kernel");
    abandon();
    fault_at(first, words, first.where);
  }

  // Unwinds the fibers that have not ended.
  void abandon() {
    abandoned_ = true;
    for (size_t i = 0; i < threads_.size(); ++i) {
      if (threads_[i].state != Thread::State::done) resume(i);
    }
  }

  void shuffle() {
    for (size_t i = order_.size(); i > 1; --i)
      std::swap(order_[i - 1], order_[random_below(random_, draws_++, i)]);
  }

  // Blocks of one host thread never repeat a serial: the shadow of a static array outlives them.
  static uint64_t& serials() {
    static thread_local uint64_t count = 0;
    return count;
  }
  static Stacks& stacks() {
    static thread_local Stacks one;
    return one;
  }

  const LaunchSpec& spec_;
  const std::function<void()>& body_;
  Dim3 index_;
  std::vector<Thread> threads_;
  std::vector<boost::context::fiber> fibers_;
  boost::context::fiber back_;  // the scheduler, while a thread runs
  const void* scheduler_bottom_ = nullptr;
  size_t scheduler_size_ = 0;
  std::vector<size_t> order_;
  size_t left_ = 0;
  std::exception_ptr fault_;
  bool abandoned_ = false;
  std::array<Barrier, kBarriers> barriers_{};
  int warps_ = 0;
  // Vector clocks: clock_[w] counts the meetings of warp w with others, known_[w][v] says up to
  // which of them warp v's accesses are before what warp w does.
  std::vector<uint32_t> clock_, known_;
  uint64_t serial_ = 0;
  std::vector<std::byte> dynamic_;
  Span dynamic_span_;
  RngKey random_;
  uint64_t draws_ = 0;
};

}  // namespace fovea::interpreted
