// SPDX-License-Identifier: Apache-2.0
#pragma once
// What every back end owes, as a function of its communicator: ranks that are threads run it in
// communicator_test.cpp, ranks that are processes in mpi_test.cpp. Each rank checks its own results
// against plain loops over what all ranks hold, which is a function of (rank, index).

#include <gtest/gtest.h>

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

}  // namespace fovea::distributed
