// SPDX-License-Identifier: Apache-2.0
#include "train/bench/comm.h"

#include <algorithm>
#include <chrono>
#include <functional>

#include "core/stream.h"

namespace fovea::train {
namespace {

using distributed::Communicator;
using distributed::Operation;
using distributed::Reduce;

// What all ranks send in one call with a tensor of `bytes`.
int64_t formula(Operation operation, int64_t bytes, int64_t P) {
  switch (operation) {
    case Operation::all_reduce:
      return 2 * (P - 1) * bytes;
    case Operation::barrier:
      return P * (P - 1);
    case Operation::send:  // a shift by one
      return P == 1 ? 0 : P * bytes;
    default:
      return (P - 1) * bytes;
  }
}

double largest(const Communicator& comm, double value) {
  const Tensor x = Tensor::from(std::vector<double>{value}, {1});
  comm.all_reduce(x, Reduce::max).wait();
  return x.item();
}

// job: in which the ranks agree; comm: of f.
CommRow measure(const Communicator& job, const Communicator& comm, Operation operation,
                int64_t bytes, double seconds, Device device, const std::function<void()>& f) {
  const auto time = [&] {
    job.barrier();
    const auto start = std::chrono::steady_clock::now();
    f();
    synchronize(device);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  time();
  constexpr double kMost = 1000.0;  // calls; the ranks agree on them
  const auto calls = static_cast<int64_t>(std::clamp(seconds / largest(job, time()), 5.0, kMost));
  const int64_t before = comm.stats()[operation].bytes_sent;
  f();
  const Tensor sent =
      Tensor::from(std::vector<int64_t>{comm.stats()[operation].bytes_sent - before}, {1});
  job.all_reduce(sent).wait();
  std::vector<double> times;
  for (int64_t i = 0; i < calls; ++i) times.push_back(time());
  std::sort(times.begin(), times.end());
  const double median = largest(job, times[times.size() / 2]);
  CommRow row{operation,
              bytes,
              1e3 * median,
              0.0,
              sent.data<int64_t>()[0],
              formula(operation, bytes, comm.size())};
  row.gb_per_s = static_cast<double>(row.sent_bytes) / comm.size() / median * 1e-9;
  return row;
}

}  // namespace

std::vector<CommRow> bench_comm(const Communicator& job, const Communicator& comm,
                                const std::vector<int64_t>& sizes, Dtype dtype, double seconds,
                                Device device) {
  const int P = comm.size(), rank = comm.rank();
  std::vector<CommRow> rows;
  rows.push_back(
      measure(job, comm, Operation::barrier, 0, seconds, device, [&] { comm.barrier(); }));
  for (const int64_t size : sizes) {
    const int64_t part = std::max<int64_t>(1, size / size_of(dtype) / P), n = part * P;
    const Tensor x = Tensor::zeros({n}, dtype, device), y = Tensor::zeros({n}, dtype, device);
    const Tensor own = Tensor::zeros({part}, dtype, device);
    const auto add = [&](Operation operation, const std::function<void()>& f) {
      rows.push_back(measure(job, comm, operation, x.bytes(), seconds, device, f));
    };
    add(Operation::all_reduce, [&] { comm.all_reduce(x).wait(); });
    add(Operation::reduce_scatter, [&] { comm.reduce_scatter(own, x).wait(); });
    add(Operation::all_gather, [&] { comm.all_gather(x, own).wait(); });
    add(Operation::all_to_all, [&] { comm.all_to_all(y, x).wait(); });
    add(Operation::broadcast, [&] { comm.broadcast(x, 0).wait(); });
    add(Operation::send, [&] { comm.send_recv(y, (rank + P - 1) % P, x, (rank + 1) % P).wait(); });
  }
  return rows;
}

}  // namespace fovea::train
