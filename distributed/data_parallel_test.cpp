// SPDX-License-Identifier: Apache-2.0
// Sums of gradients over ranks against plain sums: buckets, order, absent gradients, shards, bytes.
#include "distributed/data_parallel.h"

#include <gtest/gtest.h>

#include <mutex>

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

class DataParallelRanks : public testing::TestWithParam<int> {};

TEST_P(DataParallelRanks, GradientsAreTheSumsOfAllRanks) {
  const int P = GetParam();
  for (const bool shard : {false, true})
    for (const bool overlap : {false, true})
      run_ranks(P, [&](const Communicator& comm) {
        const Net net, other;
        DataParallel parallel(comm, comm, net.parameters, {128, shard, overlap});
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
            const bool has = !shard && i != 2;
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
                expect_near(p.variable.grad(), parallel.piece(p.name, expected[i]), p.name);
          }
          parallel.gather();
          // Bytes: every rank sends what is not its own, then its own to all others.
          const int64_t K = 2 + static_cast<int64_t>(net.parameters.size());
          const int64_t own = K / P + (comm.rank() < K % P ? 1 : 0);
          EXPECT_EQ(comm.stats().total().bytes_sent,
                    2 * (P - 1) * parallel.elements() / P * 4 + 8 * (K - own + (P - 1) * own));
        }
      });
}

// Every rank moves its pieces; then all hold the weights that one rank would.
TEST_P(DataParallelRanks, ShardsMoveAsTheWholeWould) {
  const int P = GetParam();
  std::mutex mutex;
  std::vector<float> first;
  for (const bool shard : {false, true})
    run_ranks(P, [&](const Communicator& comm) {
      const Net net;
      DataParallel parallel(comm, comm, net.parameters, {128, shard, true});
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
      const auto whole = parallel.whole(moments);
      EXPECT_EQ(whole.size(), !shard || comm.rank() == 0 ? net.parameters.size() : 0u);
      for (const auto& [name, tensor] : whole) {
        const std::vector<float> values = tensor.to_vector<float>();
        if (comm.rank() == 0) all.insert(all.end(), values.begin(), values.end());
      }
      const std::lock_guard lock(mutex);
      if (comm.rank() == 0 && first.empty()) first = all;
      for (size_t i = 0; comm.rank() == 0 && i < all.size(); ++i) ASSERT_EQ(all[i], first[i]) << i;
    });
}

INSTANTIATE_TEST_SUITE_P(Of, DataParallelRanks, testing::Values(1, 2, 3, 4),
                         testing::PrintToStringParamName());

class DataParallelOn : public OnDevices {};

TEST_P(DataParallelOn, GradientsOfADevice) {
  const Device device = this->device();
  for (const bool shard : {false, true})
    run_ranks(2, [&](const Communicator& comm) {
      const Net net(device), other(device);
      DataParallel parallel(comm, comm, net.parameters, {128, shard, true});
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
              expect_near(p.variable.grad(), parallel.piece(p.name, expected[i]), p.name);
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
}

}  // namespace
}  // namespace fovea::distributed
