// SPDX-License-Identifier: Apache-2.0
#include "core/interpreter/block.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <thread>
#include <utility>

#include "core/interpreter/async.h"
#include "core/rng.h"

namespace fovea::interpreted {

constinit thread_local Thread* running = nullptr;

namespace {

// Blocks of one host thread never repeat a serial: the shadow of a static array outlives them.
uint32_t next_serial() {
  static thread_local uint32_t count = 0;
  return ++count;
}

boost::context::stack_context stack_of_host_thread(size_t i) {
  static thread_local Stacks stacks;
  return stacks[i];
}

bool same_place(const Where& a, const Where& b) {
  return a.line() == b.line() && a.column() == b.column();
}

constexpr unsigned bit(int i) { return 1u << i; }

template <typename F>
void for_lanes(unsigned lanes, F f) {
  for (; lanes != 0; lanes &= lanes - 1) f(std::countr_zero(lanes));
}

std::string hexadecimal(unsigned mask) {
  std::string digits = "0x";
  for (int shift = 28; shift >= 0; shift -= 4) digits += "0123456789abcdef"[(mask >> shift) & 15u];
  return digits;
}

constexpr const char* kBlockBarrier = "the barrier of the block";

}  // namespace

void Knowledge::learn(const Knowledge& other) {
  for (size_t w = 0; w < warps.size(); ++w) warps[w] = std::max(warps[w], other.warps[w]);
  if (other.threads.empty()) return;
  if (threads.empty()) threads.resize(other.threads.size());
  for (size_t t = 0; t < threads.size(); ++t) threads[t] = std::max(threads[t], other.threads[t]);
}

void Knowledge::learn(size_t thread, uint32_t clock, size_t of) {
  if (threads.empty()) threads.resize(of);
  threads[thread] = std::max(threads[thread], clock);
}

Block::~Block() = default;

Block::Block(const LaunchSpec& spec, const std::function<void()>& body, Waits& waits,
             int64_t worker)
    : spec_(spec), body_(body), waits_(waits), worker_(worker) {
  const Dim3& d = spec.block;
  threads_.resize(static_cast<size_t>(d.x) * d.y * d.z);
  fibers_.resize(threads_.size());
  for (size_t i = 0; i < threads_.size(); ++i) stacks_.push_back(stack_of_host_thread(i));
  heard_.resize(threads_.size());
  lanes_known_.resize(threads_.size());
  order_.resize(threads_.size());
  warps_.resize((threads_.size() + kWarp - 1) / kWarp);
  dynamic_.resize((spec.shared_bytes + sizeof(Line) - 1) / sizeof(Line));
  prepare(dynamic_span_, reinterpret_cast<std::byte*>(dynamic_.data()), spec.shared_bytes,
          "dynamic");
}

void Block::run(const Dim3& index) {
  index_ = index;
  serial_ = next_serial();
  std::fill(barriers_.begin(), barriers_.end(), Barrier{});
  std::fill(known_.begin(), known_.end(), Knowledge{});
  async_.reset();
  std::fill(warps_.begin(), warps_.end(), Warp{});
  const Dim3& d = spec_.block;
  for (size_t i = 0; i < threads_.size(); ++i) {
    Thread& t = threads_[i];
    t = Thread{};
    t.id = static_cast<int>(i);
    t.index = Dim3(i % d.x, i / d.x % d.y, i / d.x / d.y);
    t.block_index = index;
    t.block_dim = d;
    t.grid_dim = spec_.grid;
    t.lane = t.id % kWarp;
    t.warp = t.id / kWarp;
    t.block = this;
    warps_[i / kWarp].exist |= bit(t.lane);
    fibers_[i] = start(i);
  }
  for (Warp& w : warps_) w.ready = w.exist;
  // Its own draw, whatever host thread runs it.
  if (seed()) {
    RngKey key;
    key.key = *seed();
    key.high = (uint64_t{index.z} * spec_.grid.y + index.y) * spec_.grid.x + index.x + 1;
    random_ = (uint64_t{random_word(key, 0)} << 32) | random_word(key, 1);
    std::iota(order_.begin(), order_.end(), uint16_t{0});
  }
  left_ = threads_.size();
  bool idle = false;
  while (left_ > 0) {
    bool spins = false;
    for (Warp& w : warps_) {
      spins |= w.spinning != 0;
      w.ready |= std::exchange(w.spinning, 0u);
    }
    if (resume_ready()) {
      idle = false;
      continue;
    }
    if (!std::exchange(idle, true)) waits_.changed();
    if (!spins || waits_.spun(worker_)) stuck();
    std::this_thread::yield();
  }
}

// One round. Whether any thread did more than spin.
bool Block::resume_ready() {
  bool moved = false;
  const auto go = [&](size_t i) {
    resume(i);
    if (fault_) {
      const std::exception_ptr first = fault_;
      abandon();
      std::rethrow_exception(first);
    }
    moved |= (warps_[i / kWarp].spinning & bit(threads_[i].lane)) == 0;
  };
  if (seed()) {
    shuffle();
    for (const uint16_t i : order_)
      if ((warps_[i / kWarp].ready & bit(threads_[i].lane)) != 0) go(i);
    return moved;
  }
  for (size_t w = 0; w < warps_.size(); ++w)
    while (warps_[w].ready != 0)
      go(w * kWarp + static_cast<size_t>(std::countr_zero(warps_[w].ready)));
  return moved;
}

// ---- what threads call --------------------------------------------------------------------------

void Block::spin(Thread& t, const char* what, const Where& where) {
  Warp& w = warps_[static_cast<size_t>(t.warp)];
  w.ready &= ~bit(t.lane);
  w.spinning |= bit(t.lane);
  t.what = what;
  t.where = where;
  t.polled = nullptr;
  yield();
}

void Block::meet(Thread& t, const char* what, unsigned mask, void* deposit,
                 bool (*act)(void*, void* const*), void* context, const Where& where) {
  Warp& w = warps_[static_cast<size_t>(t.warp)];
  // The last warp of a block that is no multiple of 32 has fewer lanes.
  const unsigned lanes = mask == kAllLanes ? w.exist : mask;
  t.what = what;
  t.mask = mask;
  t.act = act;
  t.deposit = deposit;
  t.where = where;
  t.polled = nullptr;
  if ((mask & bit(t.lane)) == 0 || (lanes & (~w.exist | w.left)) != 0) cannot_meet(t, lanes);
  // Whether a waiting lane waits for this meeting.
  const auto is_here = [&](int lane) {
    const Thread& other = threads_[static_cast<size_t>(t.warp * kWarp + lane)];
    if (other.act == act && other.mask == mask &&
        (what != kBlockBarrier || same_place(other.where, where)))
      return true;
    check_apart(t, other);
    return false;
  };
  const unsigned there = w.meeting & lanes;
  if (w.meeting == 0)
    w.mixed = false;
  else if (there == 0 || !is_here(std::countr_zero(there)))
    w.mixed = true;
  unsigned here = bit(t.lane);
  if (w.mixed)
    for_lanes(there, [&](int lane) { here |= is_here(lane) ? bit(lane) : 0u; });
  else
    here |= there;
  w.meeting |= bit(t.lane);
  if (here != lanes) {
    w.ready &= ~bit(t.lane);
    yield();
    return;
  }
  complete(t, lanes, act, context);
}

[[gnu::cold]] void Block::cannot_meet(const Thread& t, unsigned lanes) const {
  const Warp& w = warps_[static_cast<size_t>(t.warp)];
  if ((lanes & bit(t.lane)) == 0)
    fault(concat(t.what, ": lane ", t.lane, " is not in its own mask ", hexadecimal(t.mask)),
          t.where);
  if ((lanes & ~w.exist) != 0)
    fault(concat(t.what, ": lane ", std::countr_zero(lanes & ~w.exist),
                 " of the mask does not exist"),
          t.where);
  fault(concat(t.what, ": lane ", std::countr_zero(lanes & w.left), " has left the kernel"),
        t.where);
}

// Of two lanes at different meetings: one that waits for the other elsewhere waits in vain.
[[gnu::cold]] void Block::check_apart(const Thread& t, const Thread& other) const {
  if ((other.mask & bit(t.lane)) == 0) return;
  if (t.what == kBlockBarrier && other.what == kBlockBarrier)
    fault(concat("the barrier of the block diverges: thread ", describe(other.index),
                 " waits for it at ", short_file(other.where)),
          t.where);
  fault(concat(t.what, ": lane ", other.lane, " of the warp is at ", other.what, " at ",
               short_file(other.where), other.act == t.act ? " with another mask" : ""),
        t.where);
}

// All lanes are here. Apart from meet, whose frame stands on every stack that waits.
[[gnu::noinline]] void Block::complete(Thread& t, unsigned lanes, bool (*act)(void*, void* const*),
                                       void* context) {
  Warp& w = warps_[static_cast<size_t>(t.warp)];
  const Thread* const first = &threads_[static_cast<size_t>(t.warp) * kWarp];
  std::array<void*, kWarp> deposits{};
  for_lanes(lanes, [&](int lane) { deposits[static_cast<size_t>(lane)] = first[lane].deposit; });
  join(t.warp, lanes);
  w.meeting &= ~lanes;
  if (act(context, deposits.data())) {
    w.ready |= lanes;
  } else {
    w.ready &= ~lanes;
    yield();
  }
}

void Block::barrier(Thread& t, int id, int count, bool waits, const Where& where) {
  // Warps come to a barrier as a whole.
  Arrival mine{id, id == 0 ? static_cast<int>(warps_.size()) * kWarp : count, waits};
  struct Context {
    Block& block;
    const Thread& t;
    const Where& where;
  } context{*this, t, where};
  meet(
      t,
      id == 0 ? kBlockBarrier
      : waits ? "sync_named"
              : "arrive_named",
      kAllLanes, &mine,
      [](void* given, void* const* lanes) {
        const auto& [block, last, place] = *static_cast<Context*>(given);
        const Arrival& one = *static_cast<Arrival*>(lanes[last.lane]);
        for (int lane = 0; lane < kWarp; ++lane) {
          const auto* other = static_cast<const Arrival*>(lanes[lane]);
          if (other != nullptr &&
              (other->id != one.id || other->count != one.count || other->waits != one.waits))
            fault(
                concat("lane ", lane, " of the warp is at barrier ", other->id, " for ",
                       other->count, " threads, this lane at barrier ", one.id, " for ", one.count),
                place);
        }
        return block.arrive(last, one, place);
      },
      &context, where);
}

// A whole warp comes to a barrier. Whether it goes on at once.
bool Block::arrive(const Thread& t, const Arrival& arrival, const Where& where) {
  Barrier& b = barriers_[static_cast<size_t>(arrival.id)];
  if (b.arrived == 0) {
    b.needed = arrival.count;
    b.where = where;
    b.first = t.id;
  }
  if (arrival.id == 0 && !same_place(b.where, where))
    fault(concat("the barrier of the block diverges: thread ",
                 describe(threads_[static_cast<size_t>(b.first)].index), " waits for it at ",
                 short_file(b.where)),
          where);
  if (b.needed != arrival.count)
    fault(concat("barrier ", arrival.id, " is for ", arrival.count, " threads here but for ",
                 b.needed, " at ", short_file(b.where)),
          where);
  b.arrived += kWarp;
  b.known.learn(known_[static_cast<size_t>(t.warp)]);
  if (arrival.waits) b.waiting |= bit(t.warp);
  if (b.arrived < b.needed) return !arrival.waits;
  for_lanes(b.waiting, [&](int warp) {
    const auto i = static_cast<size_t>(warp);
    known_[i].learn(b.known);
    warps_[i].ready = warps_[i].exist;
  });
  b = {};
  return true;
}

// What these lanes have done is now before what any of them does next.
void Block::join(int warp, unsigned lanes) {
  const Warp& w = warps_[static_cast<size_t>(warp)];
  Thread* const first = &threads_[static_cast<size_t>(warp) * kWarp];
  Knowledge& known = known_[static_cast<size_t>(warp)];
  if (lanes == w.exist) {
    uint32_t most = 0;
    for_lanes(lanes, [&](int lane) {
      most = std::max(most, first[lane].clock);
      if (first[lane].heard) known.learn(heard_[static_cast<size_t>(first[lane].id)]);
      first[lane].heard = false;
    });
    known.warps[static_cast<size_t>(warp)] = most;
    for_lanes(lanes, [&](int lane) {
      first[lane].clock = most + 1;
      first[lane].met_some = false;
    });
    return;
  }
  Knowledge together;
  bool heard = false;
  for_lanes(lanes, [&](int lane) {
    if (!first[lane].heard) return;
    together.learn(heard_[static_cast<size_t>(first[lane].id)]);
    heard = true;
  });
  if (heard) for_lanes(lanes, [&](int lane) { hear(first[lane], together); });
  Clocks most{};
  Clocks* const lanes_known = &lanes_known_[static_cast<size_t>(warp) * kWarp];
  for_lanes(lanes, [&](int lane) {
    if (!first[lane].met_some) return;
    for (size_t i = 0; i < most.size(); ++i) most[i] = std::max(most[i], lanes_known[lane][i]);
  });
  for_lanes(lanes, [&](int lane) { most[static_cast<size_t>(lane)] = first[lane].clock; });
  for_lanes(lanes, [&](int lane) {
    lanes_known[lane] = most;
    first[lane].met_some = true;
    ++first[lane].clock;
  });
}

void Block::hear(Thread& t, const Knowledge& published) {
  Knowledge& heard = heard_[static_cast<size_t>(t.id)];
  if (!std::exchange(t.heard, true))
    heard = published;
  else
    heard.learn(published);
}

void Block::publish(Thread& t, Knowledge& to) {
  to.learn(known_[static_cast<size_t>(t.warp)]);
  if (t.heard) to.learn(heard_[static_cast<size_t>(t.id)]);
  if (t.met_some) {
    const Clocks& lanes = lanes_known_[static_cast<size_t>(t.id)];
    for (int lane = 0; lane < kWarp && t.id - t.lane + lane < static_cast<int>(threads()); ++lane)
      to.learn(static_cast<size_t>(t.id - t.lane + lane), lanes[static_cast<size_t>(lane)],
               threads());
  }
  to.learn(static_cast<size_t>(t.id), t.clock++, threads());
}

Async& Block::async() {
  if (!async_)
    async_ =
        std::make_unique<Async>(*this, threads(), seed() ? std::optional(random_) : std::nullopt);
  return *async_;
}

void Block::fault_at(const Thread& t, const std::string& words, const Where& where) const {
  throw Error(concat("kernel ", spec_.kernel, ", block ", describe(index_), ", thread ",
                     describe(t.index), ", ", short_file(where), ": ", words));
}

// ---- fibers -------------------------------------------------------------------------------------

boost::context::fiber Block::start(size_t i) {
  const boost::context::stack_context& stack = stacks_[i];
  return boost::context::fiber(std::allocator_arg,
                               boost::context::preallocated(stack.sp, stack.size, stack), Keep{},
                               [this, i](boost::context::fiber&& scheduler) {
                                 StackSwitch::arrive(&scheduler_bottom_, &scheduler_size_);
                                 back_ = std::move(scheduler);
                                 try {
                                   if (!abandoned_) {
                                     body_();
                                     if (async_) async_->leave(threads_[i], left_ == 1);
                                   }
                                 } catch (const Abandoned&) {
                                 } catch (...) {
                                   fault_ = std::current_exception();
                                 }
                                 Thread& t = threads_[i];
                                 Warp& w = warps_[i / kWarp];
                                 t.left = true;
                                 w.left |= bit(t.lane);
                                 w.ready &= ~bit(t.lane);
                                 --left_;
                                 StackSwitch::leave_for_good(scheduler_bottom_, scheduler_size_);
                                 return std::move(back_);
                               });
}

void Block::resume(size_t i) {
  Thread* before = std::exchange(running, &threads_[i]);
  const boost::context::stack_context& stack = stacks_[i];
  StackSwitch change;
  change.leave(static_cast<char*>(stack.sp) - stack.size, stack.size);
  fibers_[i] = std::move(fibers_[i]).resume();
  change.back();
  running = before;
}

// Back to the scheduler until the thread is ready again.
void Block::yield() {
  StackSwitch change;
  change.leave(scheduler_bottom_, scheduler_size_);
  back_ = std::move(back_).resume();
  change.back();
  if (abandoned_) throw Abandoned{};
}

// Nobody can go on: some wait for others that have left or wait elsewhere, or all spin.
void Block::stuck() {
  const auto spins = [&](const Thread& t) {
    return (warps_[static_cast<size_t>(t.warp)].spinning & bit(t.lane)) != 0;
  };
  const Thread* first = nullptr;
  const Thread* other = nullptr;
  for (const Thread& t : threads_)
    if (!t.left && (first == nullptr || (spins(t) && !spins(*first)))) first = &t;
  for (const Thread& t : threads_)
    if (!t.left && other == nullptr && !same_place(t.where, first->where)) other = &t;
  std::string words =
      concat("waits at ", first->what,
             spins(*first) ? " for what no thread will do: " : " for threads that never come: ",
             async_ ? async_->missing(*first) : "");
  if (other != nullptr)
    words += concat("thread ", describe(other->index), " waits at ", other->what, " at ",
                    short_file(other->where));
  else
    words +=
        concat(threads_.size() - left_, " of ", threads_.size(), " threads have left the kernel");
  const Where where = first->where;
  abandon();
  fault_at(*first, words, where);
}

// Unwinds the fibers that have not ended.
void Block::abandon() {
  abandoned_ = true;
  for (size_t i = 0; i < threads_.size(); ++i)
    if (!threads_[i].left) resume(i);
}

void Block::shuffle() {
  for (size_t i = order_.size(); i > 1; --i) {
    random_ = random_ * 6364136223846793005u + 1442695040888963407u;  // Knuth's MMIX generator
    std::swap(order_[i - 1], order_[((random_ >> 32) * i) >> 32]);
  }
}

// ---- machine.h ----------------------------------------------------------------------------------

void block_barrier(const Where& where) {
  Thread& t = thread();
  t.block->barrier(t, 0, 0, true, where);
}

void named_barrier(int id, int count, bool waits, const Where& where) {
  if (id < 1 || id >= kBarriers) fault(concat("barrier ", id, " is not one of 1 to 15"), where);
  if (count <= 0 || count % kWarp != 0)
    fault(concat("barrier ", id, " counts ", count, " threads; expected a multiple of 32"), where);
  Thread& t = thread();
  t.block->barrier(t, id, count, waits, where);
}

void pause(const Where& where, const char* what) {
  Thread& t = thread();
  t.block->spin(t, what, where);
}

void meet(const char* what, unsigned mask, void* deposit, bool (*act)(void*, void* const*),
          void* context, const Where& where) {
  Thread& t = thread();
  t.block->meet(t, what, mask, deposit, act, context, where);
}

}  // namespace fovea::interpreted
