// SPDX-License-Identifier: Apache-2.0
#include "distributed/collectives.h"

#include <algorithm>
#include <numeric>

#include "distributed/reduce_pieces.h"

namespace fovea::distributed {
namespace {

// Bytes of a reduction that are received from a rank at a time: what stays in a processor's caches;
// what on a card takes longer than to start it and to see it end.
int64_t slice_bytes(Device device) { return int64_t{1} << (device.is_cpu() ? 20 : 24); }

// Of no messages.
class Nothing : public InFlight {
 public:
  bool test() override { return true; }
  bool wait(Clock::time_point) override { return true; }
  std::vector<int> missing() override { return {}; }
};

// Without the empty ones; returns the bytes.
int64_t count(std::vector<Message>& messages) {
  std::erase_if(messages, [](const Message& m) { return m.data.numel() == 0; });
  return std::accumulate(messages.begin(), messages.end(), int64_t{0},
                         [](int64_t sum, const Message& m) { return sum + m.data.bytes(); });
}

std::string describe(const Call& call) {
  return concat(name(call.operation), call.collective() ? " " : " of tag ", call.number, " (",
                call.dtype, ", ", call.numel, " elements)");
}

// f(to, from) for every other pair of partners, each rank starting with its neighbours.
template <typename F>
void for_each_partner(const Call& call, F&& f) {
  const int P = call.size(), rank = call.rank();
  for (int step = 1; step < P; ++step) f((rank + step) % P, (rank - step + P) % P);
}

}  // namespace

void Counters::add(Operation operation, const CommStats::Count& more) {
  const std::lock_guard lock(mutex_);
  CommStats::Count& count = stats_[operation];
  count.calls += more.calls;
  count.bytes_sent += more.bytes_sent;
  count.bytes_received += more.bytes_received;
  count.wait_seconds += more.wait_seconds;
}

CommStats Counters::stats() {
  const std::lock_guard lock(mutex_);
  return stats_;
}

void Counters::reset() {
  const std::lock_guard lock(mutex_);
  stats_ = {};
}

std::shared_ptr<InFlight> Call::post(std::vector<Message> receives,
                                     std::vector<Message> sends) const {
  const int64_t received = count(receives), sent = count(sends);
  if (receives.empty() && sends.empty()) return std::make_shared<Nothing>();
  counters->add(collective() ? operation : Operation::send, {0, sent, 0, 0.0});
  counters->add(collective() ? operation : Operation::receive, {0, 0, received, 0.0});
  const int64_t tag = number % (kTags / 2) * 2 + (collective() ? 1 : 0);
  return transport->post(tag, std::move(receives), std::move(sends), !caller_waits);
}

void Call::wait(InFlight& exchange) const {
  const auto start = Clock::now();
  const std::chrono::duration<double> most(std::min(limit, 1e9));
  const bool arrived = exchange.wait(start + std::chrono::duration_cast<Clock::duration>(most));
  if (caller_waits) waited(std::chrono::duration<double>(Clock::now() - start).count());
  if (arrived) return;
  std::string ranks;
  for (const int peer : exchange.missing())
    ranks += concat(ranks.empty() ? "" : ", ", transport->job_rank(peer));
  const std::string why = concat("rank ", transport->job_rank(rank()), ": ", describe(*this),
                                 " waited ", limit, " s for rank ", ranks);
  transport->abort(why);
  throw TimedOut(why);
}

void Call::exchange(std::vector<Message> receives, std::vector<Message> sends) const {
  wait(*post(std::move(receives), std::move(sends)));
}

Cut Cut::even(int64_t n, int ranks) {
  Cut cut;
  for (int r = 0; r <= ranks; ++r)
    cut.begins.push_back(n / ranks * r + std::min<int64_t>(r, n % ranks));
  return cut;
}

Cut Cut::of(const std::vector<int64_t>& counts) {
  Cut cut{{0}};
  for (const int64_t count : counts) cut.begins.push_back(cut.begins.back() + count);
  return cut;
}

void reduce_scatter_parts(const Call& call, const Tensor& out, const Tensor& in, const Cut& cut,
                          Reduce op) {
  const int rank = call.rank();
  const int64_t slice = slice_bytes(in.device()) / size_of(in.dtype()), own = cut.length(rank);
  int64_t longest = 0;
  for (int p = 0; p < call.size(); ++p) longest = std::max(longest, cut.length(p));
  const Tensor arriving =
      Tensor::empty({call.size(), std::min(slice, own)}, in.dtype(), in.device());
  for (int64_t from = 0; from < longest; from += slice) {
    const int64_t to = from + slice, length = std::clamp<int64_t>(own - from, 0, slice);
    std::vector<Message> receives, sends;
    for_each_partner(call, [&](int next, int before) {
      sends.push_back({next, cut.part(in, next, from, to)});
      receives.push_back({before, arriving.select(0, before).slice(0, 0, length)});
    });
    call.exchange(std::move(receives), std::move(sends));
    if (length == 0) continue;
    std::vector<Tensor> pieces;
    for (int p = 0; p < call.size(); ++p)
      pieces.push_back(p == rank ? cut.part(in, rank, from, to)
                                 : arriving.select(0, p).slice(0, 0, length));
    reduce_pieces(out.slice(0, from, from + length), pieces, op);
  }
}

void gather_parts(const Call& call, const Tensor& x, const Cut& cut) {
  std::vector<Message> receives, sends;
  for_each_partner(call, [&](int next, int before) {
    sends.push_back({next, cut.part(x, call.rank())});
    receives.push_back({before, cut.part(x, before)});
  });
  call.exchange(std::move(receives), std::move(sends));
}

void exchange_parts(const Call& call, const Tensor& out, const Cut& out_cut, const Tensor& in,
                    const Cut& in_cut) {
  std::vector<Message> receives, sends;
  for_each_partner(call, [&](int next, int before) {
    sends.push_back({next, in_cut.part(in, next)});
    receives.push_back({before, out_cut.part(out, before)});
  });
  const int rank = call.rank();
  out_cut.part(out, rank).copy_(in_cut.part(in, rank));
  call.exchange(std::move(receives), std::move(sends));
}

// The root deals its parts out, then every part goes from its holder to those who lack it.
void broadcast_parts(const Call& call, const Tensor& x, int root) {
  const int rank = call.rank();
  const Cut cut = Cut::even(x.numel(), call.size());
  std::vector<Message> receives, sends;
  if (rank != root) receives.push_back({root, cut.part(x, rank)});
  if (rank == root)
    for_each_partner(call, [&](int next, int) { sends.push_back({next, cut.part(x, next)}); });
  call.exchange(std::move(receives), std::move(sends));
  receives.clear(), sends.clear();
  for_each_partner(call, [&](int next, int before) {
    if (next != root) sends.push_back({next, cut.part(x, rank)});
    if (rank != root) receives.push_back({before, cut.part(x, before)});
  });
  call.exchange(std::move(receives), std::move(sends));
}

}  // namespace fovea::distributed
