// SPDX-License-Identifier: Apache-2.0
#include "distributed/communicator.h"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <numeric>
#include <optional>

#include "core/stream.h"
#include "distributed/collectives.h"
#include "distributed/queue.h"

namespace fovea::distributed {
namespace {

double limit_of_environment() {
  constexpr double kDefault = 120.0;
  const char* text = std::getenv("FOVEA_COMM_TIMEOUT");
  if (text == nullptr || *text == '\0') return kDefault;
  const std::string_view whole = text;
  double seconds = 0.0;
  const auto [rest, code] = std::from_chars(whole.data(), whole.data() + whole.size(), seconds);
  FOVEA_CHECK(code == std::errc{} && rest == whole.data() + whole.size() && seconds > 0.0,
              "FOVEA_COMM_TIMEOUT: expected seconds above 0, found \"", text, '"');
  return seconds;
}

// The one rank of a job without others.
class Alone : public Transport {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  std::string_view name() const override { return "alone"; }
  int job_rank(int) const override { return 0; }
  std::shared_ptr<InFlight> post(int64_t, std::vector<Message>, std::vector<Message>,
                                 bool) override {
    detail::fail("communicator: one rank has nobody to exchange with");
  }
  std::shared_ptr<Transport> split(int, const std::vector<int>&, int) override {
    return std::make_shared<Alone>();
  }
  void abort(const std::string&) noexcept override {}
};

// Messages that go to their places on a device when they have arrived.
class Landing : public InFlight {
 public:
  Landing(std::shared_ptr<InFlight> host, std::vector<Message> arriving,
          const std::vector<Message>& places)
      : host_(std::move(host)), arriving_(std::move(arriving)), places_(places) {}
  bool test() override { return land(host_->test()); }
  bool wait(Clock::time_point until) override { return land(host_->wait(until)); }
  std::vector<int> missing() override { return host_->missing(); }

 private:
  bool land(bool arrived) {
    if (!arrived) return false;
    for (size_t i = 0; i < arriving_.size(); ++i) places_[i].data.copy_(arriving_[i].data);
    arriving_.clear();
    return true;
  }

  const std::shared_ptr<InFlight> host_;
  std::vector<Message> arriving_;
  const std::vector<Message> places_;
};

// Messages of a device by way of the host's, matched as a card's are: by their order, without tags.
class InOrder : public Transport {
 public:
  InOrder(std::shared_ptr<Transport> host, Device home) : host_(std::move(host)), home_(home) {}

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }
  std::string_view name() const override { return host_->name(); }
  int job_rank(int rank) const override { return host_->job_rank(rank); }
  Device home() const override { return home_; }
  bool in_order() const override { return true; }
  std::shared_ptr<InFlight> post(int64_t, std::vector<Message> receives, std::vector<Message> sends,
                                 bool background) override {
    std::vector<Message> arriving, leaving;
    for (const Message& m : receives)
      arriving.push_back({m.peer, Tensor::empty(m.data.shape(), m.data.dtype())});
    for (const Message& m : sends) leaving.push_back({m.peer, m.data.to(kCpu)});
    return std::make_shared<Landing>(host_->post(0, arriving, std::move(leaving), background),
                                     arriving, receives);
  }
  std::shared_ptr<Transport> split(int color, const std::vector<int>& members,
                                   int number) override {
    return std::make_shared<InOrder>(host_->split(color, members, number), home_);
  }
  void abort(const std::string& why) noexcept override { host_->abort(why); }

 private:
  const std::shared_ptr<Transport> host_;
  const Device home_;
};

// Where asynchronous operations run: in a host thread, and on a stream beside the caller's.
struct Lane {
  explicit Lane(Device home) : side(home) {}
  SideStream side;
  Queue queue;
};

// Send and receive: posted where they were called.
class Posted : public Work::State {
 public:
  Posted(Call call, std::shared_ptr<InFlight> exchange, std::function<void()> finish)
      : call_(std::move(call)), exchange_(std::move(exchange)), finish_(std::move(finish)) {
    call_.caller_waits = true;
  }
  void wait() override {
    call_.wait(*exchange_);
    if (finish_) finish_();
  }
  bool test() override { return exchange_->test(); }

 private:
  Call call_;
  std::shared_ptr<InFlight> exchange_;
  std::function<void()> finish_;
};

// Elements of x by rank.
void check_counts(const char* call, const char* which, const Tensor& x,
                  const std::vector<int64_t>& counts, int ranks) {
  FOVEA_CHECK(counts.size() == static_cast<size_t>(ranks), call, ": ", counts.size(), " counts of ",
              which, " for ", ranks, " ranks");
  int64_t sum = 0;
  for (const int64_t count : counts) {
    FOVEA_CHECK(count >= 0, call, ": a count of ", which, " is ", count);
    sum += count;
  }
  FOVEA_CHECK(sum == x.numel(), call, ": the counts of ", which, " sum to ", sum, ", its shape is ",
              x.shape());
}

}  // namespace

std::string_view name(Operation operation) {
  constexpr std::array<std::string_view, kOperations> kNames{
      "all_reduce", "reduce_scatter", "all_gather", "all_to_all",
      "broadcast",  "barrier",        "send",       "receive"};
  return kNames[static_cast<size_t>(operation)];
}

CommStats::Count CommStats::total() const {
  Count sum;
  for (const Count& count : by_operation) {
    sum.calls += count.calls;
    sum.bytes_sent += count.bytes_sent;
    sum.bytes_received += count.bytes_received;
    sum.wait_seconds += count.wait_seconds;
  }
  return sum;
}

// ---- operations
// -----------------------------------------------------------------------------------

class Communicator::Core {
 public:
  explicit Core(std::shared_ptr<Transport> transport, std::shared_ptr<Lane> lane = nullptr)
      : transport_(std::move(transport)),
        lane_(lane ? std::move(lane) : std::make_shared<Lane>(transport_->home())) {}
  // An operation under way cannot end where its rank is being left by an exception.
  ~Core() {
    if (std::uncaught_exceptions() > exceptions_ && !lane_->queue.idle())
      transport_->abort(concat("rank ", transport_->job_rank(rank()), " ended early"));
  }
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;

  int rank() const { return transport_->rank(); }
  int size() const { return transport_->size(); }

  // x as the transport takes it: flat, contiguous, at its home; the same memory where possible.
  Tensor flat(const Tensor& x) const {
    return x.to(transport_->home()).reshape({x.numel()}).contiguous();
  }
  // The same for what will be overwritten.
  Tensor room(const Tensor& x) const {
    if (x.device() == transport_->home() && x.is_contiguous()) return x.view({x.numel()});
    return Tensor::empty({x.numel()}, x.dtype(), transport_->home());
  }
  // What takes the values from there to x; nothing where they are there.
  static std::function<void()> landing(const Tensor& x, const Tensor& room) {
    if (x.shares_storage_with(room)) return nullptr;
    return [x, room] { x.copy_(room.view(x.shape())); };
  }

  Call call(Operation operation, const Tensor& x, Mode mode, std::optional<int> tag = {}) {
    counters_->add(operation, {1, 0, 0, 0.0});
    return {transport_, counters_, operation, tag ? *tag : number_++,
            limit,      x.dtype(), x.numel(), mode == Mode::blocking};
  }

  template <typename Body>
  Work collective(Call call, Body body, std::function<void()> finish) {
    if (call.caller_waits && !(transport_->in_order() && !lane_->queue.idle())) {
      body(call);
      if (finish) finish();
      return {};
    }
    const bool blocking = call.caller_waits;
    call.caller_waits = false;
    const auto ready = std::make_shared<Event>(transport_->home());
    ready->record();  // the tensors are there, whatever the caller queues next
    const auto beside = [call, body, ready, lane = lane_.get()] {
      const StreamScope scope(lane->side);
      ready->wait();
      body(call);
      synchronize(lane->side.device());  // nothing of it is queued when it is over
    };
    Work work = lane_->queue.push(beside, std::move(finish),
                                  [call](double seconds) { call.waited(seconds); });
    if (blocking) work.wait();
    return work;
  }

  Work messages(const Call& call, std::vector<Message> receives, std::vector<Message> sends,
                std::function<void()> finish) {
    if (transport_->in_order())
      return collective(
          call, [receives, sends](const Call& c) { c.exchange(receives, sends); },
          std::move(finish));
    Work work(std::make_shared<Posted>(call, call.post(std::move(receives), std::move(sends)),
                                       std::move(finish)));
    if (call.caller_waits) work.wait();
    return work;
  }

  std::shared_ptr<Core> split(int color, const std::vector<int>& members) {
    return std::make_shared<Core>(transport_->split(color, members, splits_++),
                                  transport_->in_order() ? lane_ : nullptr);
  }
  std::shared_ptr<Core> on(Device device) {
    std::vector<int> all(static_cast<size_t>(size()));
    std::iota(all.begin(), all.end(), 0);
    return std::make_shared<Core>(
        std::make_shared<InOrder>(transport_->split(0, all, splits_++), device));
  }

  std::atomic<double> limit = limit_of_environment();
  Counters& counters() { return *counters_; }
  Transport& transport() { return *transport_; }

 private:
  const std::shared_ptr<Transport> transport_;
  const std::shared_ptr<Counters> counters_ = std::make_shared<Counters>();
  const int exceptions_ = std::uncaught_exceptions();
  int64_t number_ = 0;
  int splits_ = 0;
  const std::shared_ptr<Lane> lane_;
};

Communicator::Communicator() : Communicator(std::make_shared<Alone>()) {}
Communicator::Communicator(std::shared_ptr<Transport> transport)
    : core_(std::make_shared<Core>(std::move(transport))) {}

int Communicator::rank() const { return core_->rank(); }
int Communicator::size() const { return core_->size(); }

std::vector<int64_t> Communicator::equal_counts(int64_t n) const {
  return std::vector<int64_t>(static_cast<size_t>(size()), n);
}

Work Communicator::all_reduce(const Tensor& x, Reduce op, Mode mode) const {
  const Dtype dtype = x.dtype();
  FOVEA_CHECK(is_floating(dtype) || dtype == Dtype::i64,
              "all_reduce: expected f32, f64, bf16 or i64, found ", dtype);
  const Call call = core_->call(Operation::all_reduce, x, mode);
  if (size() == 1) return {};
  const Tensor flat = core_->flat(x);
  return core_->collective(
      call,
      [flat, op](const Call& c) {
        const Cut cut = Cut::even(flat.numel(), c.size());
        reduce_scatter_parts(c, cut.part(flat, c.rank()), flat, cut, op);
        gather_parts(c, flat, cut);
      },
      Core::landing(x, flat));
}

Work Communicator::reduce_scatter(const Tensor& out, const Tensor& in, Reduce op, Mode mode) const {
  FOVEA_CHECK(out.dtype() == in.dtype() && in.numel() == size() * out.numel(),
              "reduce_scatter: out ", out.dtype(), ' ', out.shape(), " is not a ", size(),
              "th of in ", in.dtype(), ' ', in.shape());
  return reduce_scatter_v(out, in, equal_counts(out.numel()), op, mode);
}

Work Communicator::reduce_scatter_v(const Tensor& out, const Tensor& in,
                                    const std::vector<int64_t>& counts, Reduce op,
                                    Mode mode) const {
  const Dtype dtype = in.dtype();
  FOVEA_CHECK(is_floating(dtype) || dtype == Dtype::i64,
              "reduce_scatter: expected f32, f64, bf16 or i64, found ", dtype);
  check_counts("reduce_scatter", "in", in, counts, size());
  const int64_t own = counts[static_cast<size_t>(rank())];
  FOVEA_CHECK(out.dtype() == dtype && out.numel() == own, "reduce_scatter: out is ", out.dtype(),
              ' ', out.shape(), "; expected ", own, " elements of ", dtype);
  const Call call = core_->call(Operation::reduce_scatter, in, mode);
  const Tensor from = core_->flat(in), to = core_->room(out);
  return core_->collective(
      call,
      [from, to, op, cut = Cut::of(counts)](const Call& c) {
        reduce_scatter_parts(c, to, from, cut, op);
      },
      Core::landing(out, to));
}

Work Communicator::all_gather(const Tensor& out, const Tensor& in, Mode mode) const {
  FOVEA_CHECK(out.dtype() == in.dtype() && out.numel() == size() * in.numel(), "all_gather: out ",
              out.dtype(), ' ', out.shape(), " is not ", size(), " times in ", in.dtype(), ' ',
              in.shape());
  return all_gather_v(out, in, equal_counts(in.numel()), mode);
}

Work Communicator::all_gather_v(const Tensor& out, const Tensor& in,
                                const std::vector<int64_t>& counts, Mode mode) const {
  check_counts("all_gather", "out", out, counts, size());
  const int64_t own = counts[static_cast<size_t>(rank())];
  FOVEA_CHECK(in.dtype() == out.dtype() && in.numel() == own, "all_gather: in is ", in.dtype(), ' ',
              in.shape(), "; expected ", own, " elements of ", out.dtype());
  const Call call = core_->call(Operation::all_gather, in, mode);
  const Tensor from = core_->flat(in), to = core_->room(out);
  return core_->collective(
      call,
      [from, to, cut = Cut::of(counts)](const Call& c) {
        cut.part(to, c.rank()).copy_(from);
        gather_parts(c, to, cut);
      },
      Core::landing(out, to));
}

Work Communicator::all_to_all(const Tensor& out, const Tensor& in, Mode mode) const {
  FOVEA_CHECK(in.numel() % size() == 0, "all_to_all: in ", in.shape(),
              " does not divide into parts for ", size(), " ranks");
  const std::vector<int64_t> counts = equal_counts(in.numel() / size());
  return all_to_all_v(out, counts, in, counts, mode);
}

Work Communicator::all_to_all_v(const Tensor& out, const std::vector<int64_t>& out_counts,
                                const Tensor& in, const std::vector<int64_t>& in_counts,
                                Mode mode) const {
  check_counts("all_to_all", "out", out, out_counts, size());
  check_counts("all_to_all", "in", in, in_counts, size());
  FOVEA_CHECK(out.dtype() == in.dtype(), "all_to_all: out is ", out.dtype(), ", in is ",
              in.dtype());
  const auto r = static_cast<size_t>(rank());
  FOVEA_CHECK(out_counts[r] == in_counts[r], "all_to_all: rank ", r, " sends itself ", in_counts[r],
              " elements and expects ", out_counts[r]);
  const Call call = core_->call(Operation::all_to_all, in, mode);
  const Tensor from = core_->flat(in), to = core_->room(out);
  FOVEA_CHECK(size() == 1 || !from.shares_storage_with(to) || from.raw() != to.raw(),
              "all_to_all: out and in are the same memory");
  return core_->collective(
      call,
      [from, to, in_cut = Cut::of(in_counts), out_cut = Cut::of(out_counts)](const Call& c) {
        exchange_parts(c, to, out_cut, from, in_cut);
      },
      Core::landing(out, to));
}

Work Communicator::broadcast(const Tensor& x, int root, Mode mode) const {
  FOVEA_CHECK(root >= 0 && root < size(), "broadcast: root ", root, " is no rank of ", size());
  const Call call = core_->call(Operation::broadcast, x, mode);
  if (size() == 1) return {};
  const Tensor flat = rank() == root ? core_->flat(x) : core_->room(x);
  return core_->collective(
      call, [flat, root](const Call& c) { broadcast_parts(c, flat, root); },
      rank() == root ? nullptr : Core::landing(x, flat));
}

void Communicator::barrier() const {
  const Tensor bytes = core_->flat(Tensor::zeros({size()}, Dtype::u8));
  const Call call = core_->call(Operation::barrier, bytes, Mode::blocking);
  if (size() == 1) return;
  core_
      ->collective(
          call, [bytes](const Call& c) { gather_parts(c, bytes, Cut::even(c.size(), c.size())); },
          nullptr)
      .wait();
}

Work Communicator::send(const Tensor& x, int to, int tag, Mode mode) const {
  FOVEA_CHECK(to >= 0 && to < size() && to != rank(), "send: rank ", rank(), " of ", size(),
              " cannot send to rank ", to);
  FOVEA_CHECK(tag >= 0 && tag < kTags / 2, "send: tag ", tag, " is negative or passes 2^30");
  const Call call = core_->call(Operation::send, x, mode, tag);
  return core_->messages(call, {}, {{to, core_->flat(x)}}, nullptr);
}

Work Communicator::recv(const Tensor& x, int from, int tag, Mode mode) const {
  FOVEA_CHECK(from >= 0 && from < size() && from != rank(), "recv: rank ", rank(), " of ", size(),
              " cannot receive from rank ", from);
  FOVEA_CHECK(tag >= 0 && tag < kTags / 2, "recv: tag ", tag, " is negative or passes 2^30");
  const Call call = core_->call(Operation::receive, x, mode, tag);
  const Tensor room = core_->room(x);
  return core_->messages(call, {{from, room}}, {}, Core::landing(x, room));
}

Work Communicator::send_recv(const Tensor& out, int from, const Tensor& in, int to, int tag,
                             Mode mode) const {
  FOVEA_CHECK(
      from >= 0 && from < size() && to >= 0 && to < size() && (from == rank()) == (to == rank()),
      "send_recv: rank ", rank(), " of ", size(), " cannot receive from rank ", from,
      " and send to rank ", to);
  FOVEA_CHECK(tag >= 0 && tag < kTags / 2, "send_recv: tag ", tag, " is negative or passes 2^30");
  core_->counters().add(Operation::send, {1, 0, 0, 0.0});
  const Call call = core_->call(Operation::receive, out, mode, tag);
  if (to == rank()) {
    out.copy_(in);
    return {};
  }
  const Tensor room = core_->room(out);
  return core_->messages(call, {{from, room}}, {{to, core_->flat(in)}}, Core::landing(out, room));
}

Communicator Communicator::split(int color, int key) const {
  const Tensor mine = Tensor::from(std::vector<int64_t>{color, key}, {2});
  const Tensor all = Tensor::empty({size(), 2}, Dtype::i64);
  all_gather(all, mine).wait();
  std::vector<std::pair<int64_t, int>> order;  // (key, rank)
  for (int r = 0; r < size(); ++r) {
    const int64_t* given = all.data<int64_t>() + 2 * r;
    if (given[0] == color) order.emplace_back(given[1], r);
  }
  std::sort(order.begin(), order.end());
  std::vector<int> members;
  for (const auto& [_, r] : order) members.push_back(r);
  Communicator part(core_->split(color, members));
  part.set_time_limit(core_->limit);
  return part;
}

Communicator Communicator::on(Device device) const {
  Communicator there(core_->on(device));
  there.set_time_limit(core_->limit);
  return there;
}

std::string_view Communicator::transport() const { return core_->transport().name(); }
Device Communicator::home() const { return core_->transport().home(); }

CommStats Communicator::stats() const { return core_->counters().stats(); }

void Communicator::reset_stats() const { core_->counters().reset(); }

void Communicator::set_time_limit(double seconds) const {
  FOVEA_CHECK(seconds > 0.0, "communicator: expected a time limit above 0 s, found ", seconds);
  core_->limit = seconds;
}

double Communicator::time_limit() const { return core_->limit; }

void Communicator::abort(const std::string& why) const { core_->transport().abort(why); }

}  // namespace fovea::distributed
