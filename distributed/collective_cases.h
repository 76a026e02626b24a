// SPDX-License-Identifier: Apache-2.0
#pragma once
// What every back end owes, as a function of its communicator: ranks that are threads run it in
// communicator_test.cpp, ranks that are processes in mpi_test.cpp. Each rank checks its own results
// against plain loops over what all ranks hold, which is a function of (rank, index).

#include <gtest/gtest.h>

#include <functional>
#include <numeric>

#include "distributed/agreement.h"
#include "distributed/communicator.h"

namespace fovea::distributed {

// Values that bf16 holds, whose sums over up to eight ranks it does not.
inline double value_of(int rank, int64_t i) {
  return static_cast<double>((i * 37 + rank * 101) % 251) - 125.0;
}

template <typename T>
Tensor of_rank(int rank, int64_t n, Device device = kCpu) {
  std::vector<T> values;
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (std::is_same_v<T, uint8_t>) {
      values.push_back(static_cast<T>(value_of(rank, i) + 125.0));
    } else {
      values.push_back(static_cast<T>(static_cast<float>(value_of(rank, i))));
    }
  }
  return Tensor::from(values, {n}, device);
}

// Elements by rank: n, 0, 2 n, n, ...
inline int64_t ragged_count(int rank, int64_t n) { return (1 + 2 * rank) % 3 * n; }
inline std::vector<int64_t> ragged_counts(int ranks, int64_t n) {
  std::vector<int64_t> counts;
  for (int r = 0; r < ranks; ++r) counts.push_back(ragged_count(r, n));
  return counts;
}

// The values as numbers, whatever the dtype.
inline std::vector<double> numbers(const Tensor& x) {
  return x.to(kCpu).to(Dtype::f64).to_vector<double>();
}

template <typename T>
void test_reductions(const Communicator& comm, int64_t n, Device device = kCpu) {
  const int P = comm.size(), rank = comm.rank();
  const auto rounded = [](double x) {
    return dtype_of<T> == Dtype::bf16 ? static_cast<double>(float(bf16(static_cast<float>(x)))) : x;
  };
  const auto expected = [&](Reduce op, int64_t i) {
    double total = value_of(0, i);
    for (int r = 1; r < P; ++r) {
      const double x = value_of(r, i);
      total = op == Reduce::sum   ? total + x
              : op == Reduce::max ? std::max(total, x)
                                  : std::min(total, x);
    }
    return rounded(total);
  };
  for (const Reduce op : {Reduce::sum, Reduce::max, Reduce::min}) {
    const Tensor x = of_rank<T>(rank, n, device);
    comm.all_reduce(x, op).wait();
    const std::vector<double> got = numbers(x);
    for (int64_t i = 0; i < n; ++i)
      ASSERT_EQ(got[static_cast<size_t>(i)], expected(op, i)) << "element " << i << " of " << n;

    const Tensor out = Tensor::empty({n}, dtype_of<T>, device);
    comm.reduce_scatter(out, of_rank<T>(rank, n * P, device), op).wait();
    const std::vector<double> part = numbers(out);
    for (int64_t i = 0; i < n; ++i)
      ASSERT_EQ(part[static_cast<size_t>(i)], expected(op, rank * n + i)) << "element " << i;

    const Tensor own = Tensor::empty({ragged_count(rank, n)}, dtype_of<T>, device);
    const std::vector<int64_t> counts = ragged_counts(P, n);
    const auto begin = [&](int r) {
      return std::accumulate(counts.begin(), counts.begin() + r, int64_t{0});
    };
    comm.reduce_scatter_v(own, of_rank<T>(rank, begin(P), device), counts, op).wait();
    const std::vector<double> ragged = numbers(own);
    for (size_t i = 0; i < ragged.size(); ++i)
      ASSERT_EQ(ragged[i], expected(op, begin(rank) + static_cast<int64_t>(i))) << "element " << i;
  }
}

template <typename T>
void test_moves(const Communicator& comm, int64_t n, Device device = kCpu) {
  const int P = comm.size(), rank = comm.rank();
  const auto slice = [](const Tensor& x, int64_t from, int64_t length) {
    return numbers(x.slice(0, from, from + length));
  };
  const Tensor mine = of_rank<T>(rank, n * P, device);
  const Tensor all = Tensor::empty({n * P}, dtype_of<T>, device);
  comm.all_gather(all, of_rank<T>(rank, n, device)).wait();
  for (int r = 0; r < P; ++r) ASSERT_EQ(slice(all, r * n, n), numbers(of_rank<T>(r, n)));

  const std::vector<int64_t> counts = ragged_counts(P, n);
  const Tensor parts = Tensor::empty({std::accumulate(counts.begin(), counts.end(), int64_t{0})},
                                     dtype_of<T>, device);
  comm.all_gather_v(parts, of_rank<T>(rank, ragged_count(rank, n), device), counts).wait();
  for (int64_t r = 0, begin = 0; r < P; begin += counts[static_cast<size_t>(r++)]) {
    const int64_t length = counts[static_cast<size_t>(r)];
    ASSERT_EQ(slice(parts, begin, length), numbers(of_rank<T>(static_cast<int>(r), length)));
  }

  comm.all_to_all(all, mine).wait();
  for (int r = 0; r < P; ++r)
    ASSERT_EQ(slice(all, r * n, n), slice(of_rank<T>(r, n * P), rank * n, n));

  // Rank a sends rank b (a + 2 b) % 3 * n elements.
  const auto count = [n](int a, int b) { return (a + 2 * b) % 3 * n; };
  std::vector<int64_t> in_counts, out_counts;
  int64_t in_size = 0, out_size = 0;
  for (int r = 0; r < P; ++r) {
    in_counts.push_back(count(rank, r)), in_size += in_counts.back();
    out_counts.push_back(count(r, rank)), out_size += out_counts.back();
  }
  const Tensor ragged = Tensor::empty({out_size}, dtype_of<T>, device);
  comm.all_to_all_v(ragged, out_counts, of_rank<T>(rank, in_size, device), in_counts).wait();
  int64_t at = 0;
  for (int r = 0; r < P; ++r) {
    int64_t from = 0;
    for (int b = 0; b < rank; ++b) from += count(r, b);
    const int64_t length = count(r, rank);
    ASSERT_EQ(slice(ragged, at, length), slice(of_rank<T>(r, from + length), from, length));
    at += length;
  }

  for (int root = 0; root < P; ++root) {
    const Tensor x = of_rank<T>(rank, n, device);
    comm.broadcast(x, root).wait();
    ASSERT_EQ(numbers(x), numbers(of_rank<T>(root, n)));
  }

  const int next = (rank + 1) % P, before = (rank + P - 1) % P;
  const Tensor arrived = Tensor::empty({n}, dtype_of<T>, device);
  comm.send_recv(arrived, before, of_rank<T>(rank, n, device), next).wait();
  ASSERT_EQ(numbers(arrived), numbers(of_rank<T>(before, n)));
}

// Every collective with every dtype that it takes.
inline void test_collectives(const Communicator& comm) {
  for (const int64_t n : {0, 1, 2, 33, 1021}) {
    test_reductions<float>(comm, n);
    test_reductions<double>(comm, n);
    test_reductions<bf16>(comm, n);
    test_reductions<int64_t>(comm, n);
    test_moves<float>(comm, n);
    test_moves<double>(comm, n);
    test_moves<bf16>(comm, n);
    test_moves<int64_t>(comm, n);
    test_moves<uint8_t>(comm, n);
  }
  comm.barrier();
}

// What left and came, against the formulas of communicator.h.
inline void test_counts(const Communicator& comm) {
  const int64_t P = comm.size();
  const int rank = comm.rank();
  const auto expect = [&](Operation operation, int64_t calls, int64_t sent, int64_t received) {
    const CommStats::Count count = comm.stats()[operation];
    EXPECT_EQ(count.calls, calls) << name(operation);
    EXPECT_EQ(count.bytes_sent, sent) << name(operation);
    EXPECT_EQ(count.bytes_received, received) << name(operation);
  };
  const int64_t n = 24 * P;  // divides
  comm.reset_stats();
  comm.all_reduce(Tensor::zeros({n}, Dtype::f32)).wait();
  comm.all_reduce(Tensor::zeros({n}, Dtype::bf16), Reduce::max, Mode::async).wait();
  expect(Operation::all_reduce, 2, 2 * (P - 1) * n / P * (4 + 2), 2 * (P - 1) * n / P * (4 + 2));
  comm.reduce_scatter(Tensor::zeros({24}), Tensor::zeros({n})).wait();
  expect(Operation::reduce_scatter, 1, (P - 1) * 24 * 4, (P - 1) * 24 * 4);
  comm.all_gather(Tensor::zeros({n}, Dtype::f64), Tensor::zeros({24}, Dtype::f64)).wait();
  expect(Operation::all_gather, 1, (P - 1) * 24 * 8, (P - 1) * 24 * 8);
  comm.all_to_all(Tensor::zeros({n}), Tensor::zeros({n})).wait();
  expect(Operation::all_to_all, 1, (P - 1) * 24 * 4, (P - 1) * 24 * 4);
  comm.broadcast(Tensor::zeros({n}), 0).wait();
  const int64_t part = 24 * 4;
  expect(Operation::broadcast, 1,
         rank == 0 ? (P - 1) * part + (P - 1) * part : std::max<int64_t>(0, P - 2) * part,
         rank == 0 ? 0 : P * part);
  comm.barrier();
  expect(Operation::barrier, 1, P - 1, P - 1);
  const int next = static_cast<int>((rank + 1) % P), before = static_cast<int>((rank + P - 1) % P);
  comm.send_recv(Tensor::zeros({5}), before, Tensor::zeros({5}), next).wait();
  expect(Operation::send, 1, P > 1 ? 20 : 0, 0);
  expect(Operation::receive, 1, 0, P > 1 ? 20 : 0);
  // A size that does not divide: rank r holds one element more for r < n % P.
  comm.reset_stats();
  const int64_t odd = 2 * P + 1, own = rank == 0 ? 3 : 2;
  comm.all_reduce(Tensor::zeros({odd})).wait();
  expect(Operation::all_reduce, 1, P == 1 ? 0 : 4 * ((odd - own) + (P - 1) * own),
         P == 1 ? 0 : 4 * ((P - 1) * own + (odd - own)));
  EXPECT_EQ(comm.stats().total().bytes_sent, comm.stats()[Operation::all_reduce].bytes_sent);
  // Unequal parts.
  comm.reset_stats();
  const std::vector<int64_t> counts = ragged_counts(static_cast<int>(P), 5);
  const int64_t sum = std::accumulate(counts.begin(), counts.end(), int64_t{0}),
                mine = ragged_count(rank, 5);
  comm.reduce_scatter_v(Tensor::zeros({mine}), Tensor::zeros({sum}), counts).wait();
  expect(Operation::reduce_scatter, 1, (sum - mine) * 4, (P - 1) * mine * 4);
  comm.all_gather_v(Tensor::zeros({sum}), Tensor::zeros({mine}), counts).wait();
  expect(Operation::all_gather, 1, (P - 1) * mine * 4, (sum - mine) * 4);
}

// Two messages each way between neighbours, received in another order than sent, under way together
// with collectives that both ranks start in one order and wait for in another.
inline void test_messages_in_flight(const Communicator& comm) {
  const int P = comm.size(), rank = comm.rank();
  const int next = (rank + 1) % P, before = (rank + P - 1) % P;
  if (P == 1) return;
  for (int round = 0; round < 10; ++round) {
    const Tensor keys = of_rank<float>(rank, 40), sums = of_rank<float>(rank + 10, 40);
    const Tensor keys_in = Tensor::empty({40}), sums_in = Tensor::empty({40});
    const Tensor total = of_rank<double>(rank, 33), all = Tensor::empty({P * 7});
    Work reduce = comm.all_reduce(total, Reduce::sum, Mode::async);
    Work receive_sums = comm.recv(sums_in, before, 2, Mode::async);
    Work gather = comm.all_gather(all, of_rank<float>(rank, 7), Mode::async);
    Work receive_keys = comm.recv(keys_in, before, 1, Mode::async);
    Work send_keys = comm.send(keys, next, 1, Mode::async);
    Work send_sums = comm.send(sums, next, 2, Mode::async);
    comm.barrier();  // passes what is queued
    for (Work* work : {&gather, &receive_keys, &send_sums, &receive_sums, &send_keys, &reduce})
      work->wait();
    EXPECT_EQ(numbers(keys_in), numbers(of_rank<float>(before, 40)));
    EXPECT_EQ(numbers(sums_in), numbers(of_rank<float>(before + 10, 40)));
    EXPECT_EQ(numbers(all.slice(0, 7 * before, 7 * before + 7)),
              numbers(of_rank<float>(before, 7)));
    double expected = 0.0;
    for (int r = 0; r < P; ++r) expected += value_of(r, 32);
    EXPECT_EQ(numbers(total)[32], expected);
  }
}

// Groups by parity, in reverse order; their calls run against each other.
inline void test_split(const Communicator& comm) {
  const int P = comm.size(), rank = comm.rank();
  const Communicator half = comm.split(rank % 2, -rank);
  EXPECT_EQ(half.size(), rank % 2 == 0 ? (P + 1) / 2 : P / 2);
  EXPECT_EQ(half.rank(), half.size() - 1 - rank / 2);
  const Communicator same = comm.split(7, rank);
  EXPECT_EQ(same.size(), P);
  EXPECT_EQ(same.rank(), rank);
  const Tensor x = of_rank<float>(rank, 11), y = of_rank<float>(rank, 11);
  Work first = same.all_reduce(y, Reduce::sum, Mode::async);
  half.all_reduce(x).wait();
  first.wait();
  for (int64_t i = 0; i < 11; ++i) {
    double in_half = 0.0, in_all = 0.0;
    for (int r = 0; r < P; ++r) {
      in_all += value_of(r, i);
      in_half += r % 2 == rank % 2 ? value_of(r, i) : 0.0;
    }
    EXPECT_EQ(numbers(x)[static_cast<size_t>(i)], in_half);
    EXPECT_EQ(numbers(y)[static_cast<size_t>(i)], in_all);
  }
  EXPECT_EQ(half.split(0, 0).size(), half.size());  // of a part, once more
}

inline void test_agreement(const Communicator& comm) {
  const auto text_of = [](int rank) { return std::string(static_cast<size_t>(rank % 3), 'x'); };
  const std::vector<std::string> texts = gather_text(comm, text_of(comm.rank()));
  ASSERT_EQ(texts.size(), static_cast<size_t>(comm.size()));
  for (int r = 0; r < comm.size(); ++r) EXPECT_EQ(texts[static_cast<size_t>(r)], text_of(r));
  EXPECT_EQ(gather_text(comm, "").back(), "");
  check_agree(comm, "config", "the same\nlines\n");
  check_agree(comm, "weights", hash_of("the same"));
  const int last = comm.size() - 1;
  if (last == 0) return;
  const bool odd = comm.rank() == last;
  const auto expect = [&](const std::function<void()>& check, const std::string& expected) {
    try {
      check();
      ADD_FAILURE() << "rank " << comm.rank() << " saw no difference";
    } catch (const Error& error) {
      EXPECT_TRUE(std::string(error.what()).starts_with(expected)) << error.what();
    }
  };
  expect([&] { check_agree(comm, "config", odd ? "a = 1\nb = 3\n" : "a = 1\nb = 2\nc = 0\n"); },
         concat("config: rank ", last, " differs from rank 0: b = 3, not b = 2; start every"));
  expect([&] { check_agree(comm, "config", odd ? "a = 1\n" : "a = 1\nb = 2\n"); },
         concat("config: rank ", last, " differs from rank 0: nothing, not b = 2; start every"));
  expect([&] { check_agree(comm, "weights", hash_of(odd ? "one" : "another")); },
         concat("weights: rank ", last, " differs from rank 0 (hash "));
}

}  // namespace fovea::distributed
