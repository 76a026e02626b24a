// SPDX-License-Identifier: Apache-2.0
#pragma once
// Communicator: one rank's end of a group of ranks that exchange tensors. Ranks are threads of this
// process (run_ranks in threads.h), processes (mpi.h) or cards (card/nccl.h): the calls, the bits
// they give and the bytes they move are the same.
//
// Every call has two modes. A blocking call returns when the results are there. An asynchronous
// one returns at once; its tensors belong to the call until Work::wait() has returned. All ranks of
// a communicator make the same collective calls in the same order; asynchronous collectives run in
// that order, one after another, beside the caller. Collectives are matched by their number, send
// and receive by (source, tag): what is in flight between two ranks is never mixed up.
//
// Algorithm: direct exchange. Every rank sends each other rank the part that is meant for it, so a
// collective moves the least bytes there are (n elements of e bytes, P ranks; sent by one rank):
//
//   all_reduce       2 (P-1)/P n e            reduce_scatter, all_to_all   (P-1)/P n e   n of `in`
//   all_gather         (P-1) n e   n of `in`  broadcast   (P-1) n e, summed over the ranks
//
// (reduce_scatter_v (n - n_r) e and all_gather_v (P-1) n_r e, where n_r elements are rank r's.)
//
// Sums are taken over ranks as a fixed balanced binary tree, ((x0 + x1) + (x2 + x3)) + ..., in f32
// for bf16 (rounded once, at the end): the bits depend on the values and the number of ranks, never
// on arrival; and ranks that hold sums of whole subtrees give the bits of one rank that sums all.
//
// A wait that passes the time limit throws TimedOut: rank, call and the ranks waited for. A failure
// of one rank ends the waits of the others with an Aborted that names it.

#include <array>
#include <memory>
#include <vector>

#include "core/tensor.h"

namespace fovea::distributed {

// NaN is passed on by all three.
enum class Reduce : uint8_t { sum, max, min };
enum class Mode : uint8_t { blocking, async };

class TimedOut : public Error {
 public:
  using Error::Error;
};
// Another rank failed first.
class Aborted : public Error {
 public:
  using Error::Error;
};

// An operation under way. One that is dropped unfinished still ends, but its error and, for tensors
// that go through a buffer (another device, strides), its results are lost.
class [[nodiscard]] Work {
 public:
  class State {
   public:
    virtual ~State() = default;
    virtual void wait() = 0;
    virtual bool test() = 0;
  };

  Work() = default;  // of an operation that is done
  explicit Work(std::shared_ptr<State> state) : state_(std::move(state)) {}

  // Returns when the outputs hold the results and the inputs may be changed. Throws what went
  // wrong. Only the first call waits.
  void wait() {
    if (const auto state = std::move(state_)) state->wait();
  }
  // True when wait() would not block; never blocks itself.
  bool test() const { return state_ == nullptr || state_->test(); }

 private:
  std::shared_ptr<State> state_;
};

enum class Operation : uint8_t {
  all_reduce,
  reduce_scatter,
  all_gather,
  all_to_all,
  broadcast,
  barrier,
  send,
  receive
};
inline constexpr size_t kOperations = 8;
std::string_view name(Operation operation);

// What one rank did, by operation. Bytes are payload that left for or came from another rank.
struct CommStats {
  struct Count {
    int64_t calls = 0, bytes_sent = 0, bytes_received = 0;
    double wait_seconds = 0.0;  // in which the caller stood still
  };
  std::array<Count, kOperations> by_operation{};

  Count& operator[](Operation operation) { return by_operation[static_cast<size_t>(operation)]; }
  const Count& operator[](Operation operation) const {
    return by_operation[static_cast<size_t>(operation)];
  }
  Count total() const;
};

class Transport;

// A handle: copies share the group, the order of calls and the counts. The calls of one rank come
// from one host thread at a time.
//
// Groups whose messages are matched by their order alone (NCCL's, and those of on()) share it with
// the groups split from them: a rank's messages of all these groups start in the order of its
// calls, asynchronous ones one after another, so that ranks which call in one order never wait for
// each other in a ring.
class Communicator {
 public:
  // A group of one rank, this one.
  Communicator();
  explicit Communicator(std::shared_ptr<Transport> transport);

  int rank() const;
  int size() const;

  // Tensors: any dtype (reductions: f32, f64, bf16, i64), any strides, on any device; inputs and
  // outputs agree in dtype and in numel as written. Sizes count elements and may pass 2^31.

  // x [any] = op over the ranks' x; the same bits everywhere.
  Work all_reduce(const Tensor& x, Reduce op = Reduce::sum, Mode mode = Mode::blocking) const;
  // in [P n] -> out [n] = op over the ranks of their part `rank` of `in`.
  Work reduce_scatter(const Tensor& out, const Tensor& in, Reduce op = Reduce::sum,
                      Mode mode = Mode::blocking) const;
  // The same with parts of counts[r] elements for rank r, which sum to the size of `in`.
  Work reduce_scatter_v(const Tensor& out, const Tensor& in, const std::vector<int64_t>& counts,
                        Reduce op = Reduce::sum, Mode mode = Mode::blocking) const;
  // in [n] -> out [P n], by rank.
  Work all_gather(const Tensor& out, const Tensor& in, Mode mode = Mode::blocking) const;
  // The same with parts of counts[r] elements from rank r, which sum to the size of `out`.
  Work all_gather_v(const Tensor& out, const Tensor& in, const std::vector<int64_t>& counts,
                    Mode mode = Mode::blocking) const;
  // in [P n] -> out [P n]: part b of rank a's `in` becomes part a of rank b's `out`.
  Work all_to_all(const Tensor& out, const Tensor& in, Mode mode = Mode::blocking) const;
  // The same with parts of in_counts[b] and out_counts[a] elements, which sum to the sizes.
  Work all_to_all_v(const Tensor& out, const std::vector<int64_t>& out_counts, const Tensor& in,
                    const std::vector<int64_t>& in_counts, Mode mode = Mode::blocking) const;
  // x of rank `root` becomes everyone's.
  Work broadcast(const Tensor& x, int root, Mode mode = Mode::blocking) const;
  // Returns when every rank has called it.
  void barrier() const;

  // One message; both sides give the same numel, dtype and tag (0 <= tag < 2^30). Messages of one
  // (source, tag) arrive in the order sent. On cards, messages that cross belong in one send_recv.
  Work send(const Tensor& x, int to, int tag = 0, Mode mode = Mode::blocking) const;
  Work recv(const Tensor& x, int from, int tag = 0, Mode mode = Mode::blocking) const;
  // Both at once, which cannot deadlock.
  Work send_recv(const Tensor& out, int from, const Tensor& in, int to, int tag = 0,
                 Mode mode = Mode::blocking) const;

  // A group for each color, its ranks ordered by (key, rank here). A collective call.
  Communicator split(int color, int key) const;
  // The same ranks, for tensors of a device: messages begin and end in its memory, by way of the
  // host, and are summed there, as NCCL's are on a card. A collective call.
  Communicator on(Device device) const;

  // What moves the messages: "threads", "mpi", "nccl", "alone".
  std::string_view transport() const;
  // Where tensors are exchanged; those of another device go through a copy there.
  Device home() const;

  // Of this handle's group alone, not of groups split from it.
  CommStats stats() const;
  void reset_stats() const;

  // How long one wait may take; 120 s, or the environment variable FOVEA_COMM_TIMEOUT (seconds).
  // Groups split later inherit it.
  void set_time_limit(double seconds) const;
  double time_limit() const;

  // Ends the waits of all ranks of the whole job, now and later, with an Aborted that says `why`.
  void abort(const std::string& why) const;

 private:
  class Core;
  explicit Communicator(std::shared_ptr<Core> core) : core_(std::move(core)) {}
  std::vector<int64_t> equal_counts(int64_t n) const;

  std::shared_ptr<Core> core_;
};

}  // namespace fovea::distributed
