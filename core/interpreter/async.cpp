// SPDX-License-Identifier: Apache-2.0
// Barriers of transactions, and the copies that they and bulk groups wait for.
#include "core/interpreter/async.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace fovea::interpreted {
namespace {

constexpr int64_t kRegisters = 65536;  // of an SM
constexpr int kLeastRegisters = 24;    // of a thread

std::byte* bytes_of(const Shared<Barrier>& b) { return reinterpret_cast<std::byte*>(b.address()); }

}  // namespace

Async::Async(Block& block, size_t threads, std::optional<uint64_t> seed)
    : block_(block),
      seeded_(seed.has_value()),
      random_(seed.value_or(0)),
      started_(threads),
      counts_((threads + kWarp - 1) / kWarp) {
  calls_.resize((counts_.size() + kWarpsOfGroup - 1) / kWarpsOfGroup);
  registers_.resize(calls_.size());
}

uint32_t Async::draw(uint32_t below) {
  random_ = random_ * 6364136223846793005u + 1442695040888963407u;  // Knuth's MMIX generator
  return static_cast<uint32_t>(((random_ >> 32) * below) >> 32);
}
bool Async::coin() { return !seeded_ || draw(2) == 0; }

// ---- barriers -----------------------------------------------------------------------------------

void Async::make_barrier(const Shared<Barrier>& b, int count, const Where& where) {
  if (count < 1) fault(concat("barrier_init: ", count, " arrivals; expected 1 or more"), where);
  check_shared_write(*b.span(), bytes_of(b), sizeof(Barrier), where);
  mark_barrier(*b.span(), bytes_of(b), sizeof(Barrier));
  Thread& t = thread();
  Transactions made;
  made.count = made.pending = count;
  made.thread = t.id;
  made.clock = t.clock;
  barriers_[bytes_of(b)] = std::move(made);
}

void Async::fence_barriers(const Thread& t) {
  for (auto& [at, b] : barriers_)
    if (b.thread == t.id) b.fenced = true;
}

Transactions& Async::barrier(const Shared<Barrier>& b, const Thread& t, const char* verb,
                             const Where& where) {
  const auto found = barriers_.find(bytes_of(b));
  if (found == barriers_.end())
    fault(concat(verb, " where no barrier_init was: shared memory \"", b.span()->name, "\", byte ",
                 bytes_of(b) - b.span()->begin),
          where);
  Transactions& made = found->second;
  if (!block_.ordered(t, static_cast<unsigned>(made.thread), made.clock))
    fault(concat(verb, " of a barrier that thread ",
                 describe(block_.at(static_cast<unsigned>(made.thread)).index),
                 " initialises, with no meeting in between"),
          where);
  return made;
}

bool Transactions::try_to_end() {
  if (pending > 0 || !loads.empty() || bytes != expected_bytes) return false;
  ++phase;
  pending = count;
  bytes = expected_bytes = 0;
  published = now;
  return true;
}

void Async::arrive(Transactions& b, Thread& t, int64_t bytes, const Where& where) {
  if (b.pending == 0)
    fault(concat("barrier_arrive, the ", b.count + 1, "th of a phase of ", b.count, " arrivals"),
          where);
  b.expected_bytes += bytes;
  --b.pending;
  block_.publish(t, b.now);
  b.try_to_end();
}

void Async::deliver(Transactions& b, size_t i) {
  const Load load = std::move(b.loads[i]);
  b.loads.erase(b.loads.begin() + static_cast<ptrdiff_t>(i));
  load.copy();
  end_async_write(*load.to.span, load.to.at, static_cast<size_t>(load.bytes));
  b.bytes += load.bytes;
  b.now.learn(static_cast<size_t>(load.thread), load.clock, block_.threads());
  if (b.pending == 0 && b.bytes > b.expected_bytes) {
    const Thread& issuer = block_.at(static_cast<unsigned>(load.thread));
    block_.fault_at(issuer,
                    concat("a phase of the barrier expects ", b.expected_bytes, " bytes and gets ",
                           b.bytes, " with this copy"),
                    load.where);
  }
}

void Async::wait(Transactions& b, Thread& t, unsigned parity, const Where& where) {
  const auto ended = [&] { return (b.phase & 1u) != (parity & 1u); };
  while (!ended()) {
    while (!b.loads.empty() && coin())
      deliver(b, seeded_ ? draw(static_cast<uint32_t>(b.loads.size())) : 0);
    b.try_to_end();
    if (ended()) break;
    waiting_[&t] = &b;
    pause(where, "barrier_wait");
    waiting_.erase(&t);
  }
  block_.hear(t, b.published);
}

std::string Async::missing(const Thread& t) const {
  const auto found = waiting_.find(&t);
  if (found == waiting_.end()) return "";
  const Transactions& b = *found->second;
  return concat("phase ", b.phase, " of the barrier has ", b.count - b.pending, " of ", b.count,
                " arrivals and ", b.bytes, " of ", b.expected_bytes, " bytes; ");
}

// ---- copies -------------------------------------------------------------------------------------

void Async::load(Transactions& b, Thread& t, SharedTile to, int64_t bytes, const char* verb,
                 std::function<void()> copy, const Where& where) {
  if (!b.fenced)
    fault(concat(verb, " for a barrier whose thread ",
                 describe(block_.at(static_cast<unsigned>(b.thread)).index),
                 " called no fence_barrier_init() after barrier_init"),
          where);
  check_shared_write(*to.span, to.at, static_cast<size_t>(bytes), where, Write::bulk);
  b.loads.push_back({t.id, t.clock++, to, bytes, std::move(copy), where});
}

void Async::store(Thread& t, SharedTile from, int64_t bytes, const char* verb,
                  std::function<void(const std::byte*)> write, const Where& where) {
  begin_async_read(*from.span, from.at, static_cast<size_t>(bytes), verb, where);
  Started& mine = of(t);
  mine.stores.push_back({from, bytes, mine.store_group, {}, std::move(write), where});
}

void finish_bulk(int left, bool landed) {
  Thread& t = thread();
  Started& mine = t.block->async().of(t);
  const auto open = [&](const Store& s) { return s.group >= mine.store_group - left; };
  size_t kept = 0;
  for (Store& s : mine.stores) {
    if (open(s)) {
      if (&s != &mine.stores[kept]) mine.stores[kept] = std::move(s);
      ++kept;
      continue;
    }
    s.values.assign(s.from.at, s.from.at + s.bytes);
    end_async_read(*s.from.span, s.from.at, static_cast<size_t>(s.bytes), t.id, t.clock);
    mine.landing.push_back(std::move(s));
  }
  mine.stores.resize(kept);
  if (!landed) return;
  const auto lands = std::stable_partition(mine.landing.begin(), mine.landing.end(), open);
  for (auto s = lands; s != mine.landing.end(); ++s) s->write(s->values.data());
  mine.landing.erase(lands, mine.landing.end());
}

bool Async::visible(const Thread& t, unsigned writer, uint32_t clock) const {
  const std::vector<uint32_t>& fences = started_[writer].fences;
  const auto fence = std::lower_bound(fences.begin(), fences.end(), clock);
  return fence != fences.end() && block_.ordered(t, writer, *fence);
}

std::string Async::reader_of(const std::byte* at, size_t bytes) const {
  for (size_t i = 0; i < started_.size(); ++i)
    for (const Store& s : started_[i].stores)
      if (s.from.at < at + bytes && at < s.from.at + s.bytes)
        return concat("a store of thread ", describe(block_.at(static_cast<unsigned>(i)).index),
                      " at ", short_file(s.where), " reads until its wait_bulk_read");
  for (size_t i = 0; i < started_.size(); ++i)
    for (const Product& p : started_[i].products)
      if (reads(p, static_cast<int>(i) / kWarp % kWarpsOfGroup, at, bytes))
        return concat("a wgmma of thread ", describe(block_.at(static_cast<unsigned>(i)).index),
                      " at ", short_file(p.where), " reads until its wgmma_wait");
  return "a copy or product under way reads";
}

// ---- warpgroups ---------------------------------------------------------------------------------

void Async::count_product(const Thread& t, const Product& product) {
  const auto warp = static_cast<size_t>(t.warp), group = warp / kWarpsOfGroup;
  if ((group + 1) * kWarpsOfGroup > counts_.size())
    fault(concat("wgmma of warp ", warp, ", whose warpgroup is not whole: the block has ",
                 counts_.size(), " warps"),
          product.where);
  std::vector<Call>& calls = calls_[group];
  const size_t i = counts_[warp]++;
  const Call mine{product.n, product.in_registers ? nullptr : product.a.at, product.b.at,
                  product.where};
  if (i == calls.size()) {
    calls.push_back(mine);
    return;
  }
  const Call& first = calls[i];
  if (first.n != mine.n || first.a != mine.a || first.b != mine.b)
    fault(concat("wgmma of warp ", warp, " is not the one of the warpgroup's other warps at ",
                 short_file(first.where)),
          product.where);
}

void Async::set_registers(const Thread& t, int n, const Where& where) {
  registers_[static_cast<size_t>(t.warp) / kWarpsOfGroup] = n;
  int64_t sum = 0;
  for (const int registers : registers_)
    sum += int64_t{kWarp * kWarpsOfGroup} * std::max(registers, kLeastRegisters);
  // What a launch gives a block: a multiple of 8 a thread.
  const int64_t threads = std::ssize(registers_) * kWarp * kWarpsOfGroup,
                pool = kRegisters / threads / 8 * 8 * threads;
  if (sum > pool)
    fault(concat("increase_registers to ", n, ": the block's warpgroups take ", sum,
                 " registers, of ", pool),
          where);
}

void Async::leave(const Thread& t, bool last) {
  Started& mine = of(t);
  if (!mine.stores.empty())
    fault("leaves the kernel with no wait_bulk_read for this store", mine.stores.front().where);
  if (!mine.products.empty())
    fault("leaves the kernel with no wgmma_wait for this wgmma", mine.products.front().where);
  for (const Store& s : mine.landing) s.write(s.values.data());
  mine.landing.clear();
  if (!last) return;
  for (const auto& [at, b] : barriers_)
    for (const Load& load : b.loads)
      block_.fault_at(block_.at(static_cast<unsigned>(load.thread)),
                      "the block ends with no barrier_wait for this copy", load.where);
  for (size_t warp = 0; warp < counts_.size(); ++warp) {
    const std::vector<Call>& calls = calls_[warp / kWarpsOfGroup];
    if (counts_[warp] < calls.size())
      fault(concat("wgmma of warpgroup ", warp / kWarpsOfGroup, " (warps ",
                   warp / kWarpsOfGroup * kWarpsOfGroup, " to ",
                   warp / kWarpsOfGroup * kWarpsOfGroup + kWarpsOfGroup - 1, "): warp ", warp,
                   " does not take part"),
            calls[counts_[warp]].where);
  }
}

}  // namespace fovea::interpreted
