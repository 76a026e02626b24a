// SPDX-License-Identifier: Apache-2.0
// Sums of gradients over ranks against plain sums: buckets, order, absent gradients, shards, bytes.
#include "distributed/data_parallel.h"

#include <gtest/gtest.h>

#include <mutex>
#include <numeric>

#include "autograd/ops.h"
#include "core/ops/elementwise.h"
#include "core/rng.h"
#include "core/testing/devices.h"
#include "distributed/device_group.h"
#include "distributed/threads.h"

namespace fovea::distributed {
namespace {

Tensor normal(const Shape& shape, const std::string& name, uint64_t step = 0) {
  const Tensor x = Tensor::empty(shape);
  fill_normal(x, RngKey(1, "test", name, step));
  return x;
}

// Two layers, one matrix used twice, and a parameter that the model never uses.
struct Net {
  std::vector<nn::NamedParameter> parameters;
  explicit Net(Device device = kCpu) {
    const std::vector<std::pair<std::string, Shape>> shapes{
        {"shared", {7, 7}}, {"gain", {7}}, {"unused", {5}}, {"hidden", {7, 11}}, {"last", {11, 3}}};
    for (const auto& [name, shape] : shapes)
      parameters.push_back({name, Variable(normal(shape, name).to(device), true)});
  }
  const Variable& operator[](size_t i) const { return parameters[i].variable; }
  // Of its matrices, by elements.
  static std::vector<int64_t> whole() { return {49, 0, 0, 77, 33}; }
  Device device() const { return parameters[0].variable.value().device(); }
  // Backward of the loss of rank `rank`'s samples.
  void backward(int rank, uint64_t step) const {
    const Variable x(normal({4, 7}, concat("x", rank), step).to(device()));
    Variable y = matmul(mul(matmul(x, (*this)[0]), (*this)[1]), (*this)[0]);
    y = matmul(matmul(y, (*this)[3]), (*this)[4]);
    sum_all(mul(y, y)).backward();
  }
  void zero_grad() const {
    for (const nn::NamedParameter& p : parameters) p.variable.zero_grad();
  }
};

// What P ranks' gradients sum to, ranks in `idle` left out.
std::vector<Tensor> plain_sum(const Net& net, int P, int idle, uint64_t step) {
  net.zero_grad();
  for (int r = 0; r < P; ++r)
    if (r != idle) net.backward(r, step);
  std::vector<Tensor> sums;
  for (const nn::NamedParameter& p : net.parameters) sums.push_back(p.variable.grad());
  net.zero_grad();
  return sums;
}

void expect_near(const Tensor& found, const Tensor& expected, const std::string& what) {
  ASSERT_TRUE(found.defined()) << what;
  const std::vector<float> a = found.to_vector<float>(), b = expected.to_vector<float>();
  ASSERT_EQ(a.size(), b.size()) << what;
  double largest = 0.0, error = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(b[i])));
    error = std::max(error, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  }
  EXPECT_LE(error, 2e-6 * largest) << what;
}

// What this rank has of a whole tensor.
Tensor piece(const DataParallel& parallel, const std::string& name, const Tensor& whole) {
  const auto [shape, from] = parallel.place(name);
  for (const nn::NamedParameter& p : parallel.own()) {
    const int64_t n = p.variable.value().numel();
    if (p.name == name)
      return whole.view({whole.numel()}).slice(0, from, from + n).view(p.variable.shape());
  }
  return {};
}

// All sums everywhere, in shards, and in shards that keep matrices whole.
std::vector<DataParallelOptions> ways(bool overlap = true) {
  return {{128, false, overlap}, {128, true, overlap}, {128, true, overlap, Net::whole()}};
}

class DataParallelRanks : public testing::TestWithParam<int> {};

TEST_P(DataParallelRanks, GradientsAreTheSumsOfAllRanks) {
  const int P = GetParam();
  for (const bool overlap : {false, true})
    for (const DataParallelOptions& options : ways(overlap))
      run_ranks(P, [&](const Communicator& comm) {
        const Net net, other;
        DataParallel parallel(comm, comm, net.parameters, options);
        EXPECT_GE(parallel.buckets(), 3u);
        for (uint64_t step = 0; step < 4; ++step) {
          const int idle = step == 2 && P > 1 ? 1 : -1;
          const std::vector<Tensor> expected = plain_sum(other, P, idle, step);
          comm.reset_stats();
          net.zero_grad();
          if (comm.rank() != idle) {
            parallel.arm();
            net.backward(comm.rank(), step);
          }
          parallel.finish();
          // Two uses of "shared" and none of "unused": known from the second step on.
          EXPECT_EQ(parallel.early_buckets(),
                    overlap && step > 0 && comm.rank() != idle ? parallel.buckets() : 0u)
              << step;
          const std::vector<double> sums = parallel.sum({0.5, comm.rank() + 1.0});
          EXPECT_EQ(sums, (std::vector<double>{0.5 * P, P * (P + 1) / 2.0}));
          for (size_t i = 0; i < net.parameters.size(); ++i) {
            const bool has = !options.shard && i != 2;
            EXPECT_EQ(net[i].grad().defined(), has);
            if (has) expect_near(net[i].grad(), expected[i], net.parameters[i].name);
          }
          for (const nn::NamedParameter& p : parallel.own()) {
            if (p.name == "unused") {
              EXPECT_FALSE(p.variable.grad().defined());
              continue;
            }
            for (size_t i = 0; i < net.parameters.size(); ++i)
              if (net.parameters[i].name == p.name)
                expect_near(p.variable.grad(), piece(parallel, p.name, expected[i]), p.name);
          }
          parallel.gather();
          // Bytes: every rank sends what is not its own, then its own to all others.
          const auto bytes = [&](int64_t n, int64_t own) { return n - own + (P - 1) * own; };
          const int64_t K = 2 + static_cast<int64_t>(net.parameters.size()),
                        n = parallel.elements(), own = parallel.own_elements();
          EXPECT_EQ(comm.stats().total().bytes_sent,
                    4 * bytes(n, own) + 8 * bytes(K, K / P + (comm.rank() < K % P ? 1 : 0)));
          EXPECT_TRUE(!options.whole.empty() || own * P == n) << own;
        }
      });
}

// Every rank moves its pieces; then all hold the weights that one rank would.
TEST_P(DataParallelRanks, ShardsMoveAsTheWholeWould) {
  const int P = GetParam();
  std::mutex mutex;
  std::vector<float> first;
  for (const DataParallelOptions& options : ways())
    run_ranks(P, [&](const Communicator& comm) {
      const Net net;
      DataParallel parallel(comm, comm, net.parameters, options);
      std::vector<std::pair<std::string, Tensor>> moments;
      for (const nn::NamedParameter& p : parallel.own())
        moments.emplace_back("m." + p.name, Tensor::zeros_like(p.variable.value()));
      for (uint64_t step = 0; step < 3; ++step) {
        net.zero_grad();
        parallel.arm();
        net.backward(comm.rank(), step);
        parallel.finish();
        parallel.sum({});
        for (size_t i = 0; i < moments.size(); ++i) {
          const Variable& p = parallel.own()[i].variable;
          if (!p.grad().defined()) continue;
          axpy_(moments[i].second, 1.0, p.grad());
          axpy_(p.value(), -1e-5, moments[i].second);
        }
        parallel.gather();
      }
      std::vector<float> all;
      for (const nn::NamedParameter& p : net.parameters) {
        const std::vector<float> values = p.variable.value().to_vector<float>();
        all.insert(all.end(), values.begin(), values.end());
      }
      // The ranks' places cover every tensor, each element once.
      std::vector<float> state;
      for (const nn::NamedParameter& p : net.parameters) {
        const Tensor whole = Tensor::zeros({p.variable.value().numel()});
        for (const auto& [name, tensor] : moments) {
          if (name != "m." + p.name) continue;
          const auto [shape, from] = parallel.place(p.name);
          EXPECT_EQ(shape, p.variable.shape());
          whole.slice(0, from, from + tensor.numel()).copy_(tensor.view({tensor.numel()}));
        }
        if (options.shard) comm.all_reduce(whole).wait();
        const std::vector<float> values = whole.to_vector<float>();
        state.insert(state.end(), values.begin(), values.end());
      }
      all.insert(all.end(), state.begin(), state.end());
      const std::lock_guard lock(mutex);
      if (comm.rank() == 0 && first.empty()) first = all;
      for (size_t i = 0; comm.rank() == 0 && i < all.size(); ++i) ASSERT_EQ(all[i], first[i]) << i;
    });
}

INSTANTIATE_TEST_SUITE_P(Of, DataParallelRanks, testing::Values(1, 2, 3, 4),
                         testing::PrintToStringParamName());

// Blocks of a GPT: each matrix on one rank, costs and elements in balance, buckets of matrices of
// several ranks; fewer matrices than ranks leave some without.
TEST(DataParallel, WholeParametersAreOwnedInBalance) {
  for (const int blocks : {6, 1})
    for (const int P : {1, 2, 3, 4, 8}) {
      std::mutex mutex;
      std::vector<int> owners(static_cast<size_t>(5 * blocks));
      std::vector<int64_t> costs;
      run_ranks(P, [&](const Communicator& comm) {
        std::vector<nn::NamedParameter> parameters;
        DataParallelOptions options{4 * 256, true, true};
        for (int b = 0; b < blocks; ++b)
          for (const int64_t rows : {0, 24, 8, 32, 32}) {
            const Shape shape = rows > 0 ? Shape{rows, 8} : Shape{8};
            parameters.push_back(
                {concat(b, '.', parameters.size()), Variable(Tensor::zeros(shape), true)});
            options.whole.push_back(rows > 0 ? 256 * rows + 1024 : 0);
          }
        const DataParallel parallel(comm, comm, parameters, options);
        int64_t cost = 0;
        const std::lock_guard lock(mutex);
        for (const nn::NamedParameter& own : parallel.own()) {
          for (size_t i = 0; i < parameters.size(); ++i) {
            if (own.name != parameters[i].name || options.whole[i] == 0) continue;
            EXPECT_EQ(own.variable.shape(), parameters[i].variable.shape());
            ++owners[i];
            cost += options.whole[i];
          }
        }
        costs.push_back(cost);
        // A bucket has a matrix of more than one rank, and is not much larger than it must be.
        const size_t matrices = static_cast<size_t>(4 * blocks);
        EXPECT_LE(parallel.buckets(), P == 1 ? matrices + 1 : matrices / 2 + 1);
        EXPECT_GE(parallel.buckets(), matrices / static_cast<size_t>(2 * P) + 1);
        const auto n = static_cast<double>(parallel.elements());
        EXPECT_NEAR(static_cast<double>(P * parallel.own_elements()), n,
                    blocks == 6 ? 0.15 * n : 4 * n);
      });
      for (size_t i = 0; i < owners.size(); ++i) EXPECT_EQ(owners[i], i % 5 > 0 ? 1 : 0) << i;
      const int64_t all = std::accumulate(costs.begin(), costs.end(), int64_t{0}),
                    most = *std::max_element(costs.begin(), costs.end());
      EXPECT_LE(most * P, all + (P - 1) * 9216) << P;
      EXPECT_LE(10 * most * P, (blocks == 6 ? 11 : 10 * P) * all) << P;
    }
}

class DataParallelOn : public OnDevices {};

TEST_P(DataParallelOn, GradientsOfADevice) {
  const Device device = this->device();
  for (const DataParallelOptions& options : ways())
    run_ranks(2, [&](const Communicator& comm) {
      const Net net(device), other(device);
      DataParallel parallel(comm, comm, net.parameters, options);
      for (uint64_t step = 0; step < 2; ++step) {
        const std::vector<Tensor> expected = plain_sum(other, 2, -1, step);
        net.zero_grad();
        parallel.arm();
        net.backward(comm.rank(), step);
        parallel.finish();
        parallel.sum({});
        for (const nn::NamedParameter& p : parallel.own())
          for (size_t i = 0; i < net.parameters.size(); ++i)
            if (net.parameters[i].name == p.name && i != 2)
              expect_near(p.variable.grad(), piece(parallel, p.name, expected[i]), p.name);
      }
    });
}

// Gradients go by the group of the device, numbers by the job; the bits are those through the host.
TEST_P(DataParallelOn, SumsOfItsGroupAreThoseThroughTheHost) {
  const Device device = this->device();
  const int64_t P = 3;
  for (const bool shard : {false, true})
    run_ranks(static_cast<int>(P), [&](const Communicator& job) {
      std::vector<std::vector<float>> results;
      for (const bool by_group : {false, true}) {
        const Communicator group = by_group ? device_group(job, device) : job.split(0, job.rank());
        const Net net(device);
        DataParallel parallel(group, job, net.parameters, {128, shard, true});
        std::vector<float> all;
        for (uint64_t step = 0; step < 2; ++step) {
          for (const Communicator& comm : {group, job}) comm.reset_stats();
          net.zero_grad();
          parallel.arm();
          net.backward(job.rank(), step);
          parallel.finish();
          parallel.gather();
          if (group.home() == device && !device.is_cpu()) {
            EXPECT_EQ(job.stats().total().bytes_sent, 0);
          }
          EXPECT_EQ(group.stats().total().bytes_sent, 2 * (P - 1) * parallel.elements() / P * 4);
          parallel.sum({});
          for (const nn::NamedParameter& p : parallel.own()) {
            if (!p.variable.grad().defined()) continue;
            const std::vector<float> values = p.variable.grad().to_vector<float>();
            all.insert(all.end(), values.begin(), values.end());
          }
        }
        results.push_back(all);
      }
      EXPECT_FALSE(results[0].empty());
      EXPECT_EQ(results[1], results[0]);
    });
}
FOVEA_ON_DEVICES(DataParallelOn);

// Six samples over any number of ranks, in any order.
TEST_P(DataParallelOn, ExactSumsAreTheSameBitsOnAnyNumberOfRanks) {
  const Device device = this->device();
  const std::vector<Tensor> expected = plain_sum(Net(device), 6, -1, 0);
  std::vector<std::vector<float>> first;
  for (const int P : {1, 2, 3, 7})  // of seven, one has no sample
    run_ranks(P, [&](const Communicator& comm) {
      const Net net(device);
      DataParallel parallel(comm, comm, net.parameters, {.exact = true});
      for (int step = 0; step < 2; ++step) {  // the sums of a step are gone in the next
        net.zero_grad();
        for (int sample = 5 - comm.rank(); sample >= 0; sample -= P) net.backward(sample, 0);
        comm.reset_stats();
        parallel.finish();
        int64_t sent = 0;  // parts of every parameter's 2 n numbers: all but its own, then its own
        for (const nn::NamedParameter& p : net.parameters) {
          const int64_t n = 2 * p.variable.value().numel(),
                        own = n / P + (comm.rank() < n % P ? 1 : 0);
          sent += 8 * (n - own + (P - 1) * own);
        }
        EXPECT_EQ(comm.stats().total().bytes_sent, sent);
        EXPECT_EQ(parallel.sum({1.0}), std::vector<double>{static_cast<double>(P)});
        EXPECT_FALSE(net[2].grad().defined());
        if (comm.rank() != P - 1) continue;
        for (const size_t i : {0, 1, 3, 4}) {
          if (first.size() < 5) first.resize(5);
          if (first[i].empty()) first[i] = net[i].grad().to_vector<float>();
          EXPECT_EQ(net[i].grad().to_vector<float>(), first[i]) << P << ' ' << i;
          expect_near(net[i].grad(), expected[i], net.parameters[i].name);
        }
      }
    });
}

TEST(DataParallel, RefusesWhatItWouldSumWrongly) {
  const auto error = [](int ranks, const std::function<void(const Communicator&)>& f) {
    try {
      run_ranks(ranks, f);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  EXPECT_NE(error(2,
                  [](const Communicator& comm) {
                    Net net;
                    if (comm.rank() == 1) net.parameters.pop_back();
                    DataParallel(comm, comm, net.parameters, {});
                  })
                .find("parameters: rank 1 differs from rank 0"),
            std::string::npos);
  EXPECT_NE(error(2,
                  [](const Communicator& comm) {
                    const Net net;
                    DataParallelOptions options{128, true, true, Net::whole()};
                    options.whole[3] += comm.rank();
                    DataParallel(comm, comm, net.parameters, options);
                  })
                .find("parameters: rank 1 differs from rank 0"),
            std::string::npos);
  EXPECT_NE(error(1,
                  [](const Communicator& comm) {
                    DataParallel(comm, comm, Net().parameters, {128, true, true, {1, 2}});
                  })
                .find("2 costs of whole parameters for 5 parameters"),
            std::string::npos);
  // Once more than in the first step, after the sum was sent.
  EXPECT_NE(error(1,
                  [](const Communicator& comm) {
                    const Net net;
                    DataParallel parallel(comm, comm, net.parameters, {});
                    for (int uses = 1; uses < 3; ++uses) {
                      parallel.arm();
                      for (int i = 0; i < uses; ++i) sum_all(net[1]).backward();
                      if (uses == 1) parallel.finish();
                    }
                  })
                .find("gain got gradient 2 of a step after its sum was sent; the first step gave "
                      "it 1"),
            std::string::npos);
  // Known to one rank, said by all.
  const std::string large = error(2, [](const Communicator& comm) {
    const Net net;
    DataParallel parallel(comm, comm, net.parameters, {.exact = true});
    sum_all(scale(net[1], comm.rank() == 0 ? 1.0 : 1e7)).backward();
    parallel.finish();
    parallel.sum({});
  });
  EXPECT_NE(large.find("a gradient of gain is not finite, or not below 8.38861e+06 in magnitude"),
            std::string::npos)
      << large;
  EXPECT_NE(error(1,
                  [](const Communicator& comm) {
                    DataParallel(comm, comm, Net().parameters, {.shard = true, .exact = true});
                  })
                .find("exact sums of shards are not offered"),
            std::string::npos);
}

}  // namespace
}  // namespace fovea::distributed
