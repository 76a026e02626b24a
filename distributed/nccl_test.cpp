// SPDX-License-Identifier: Apache-2.0
// NCCL with the one rank that a card may have: what starts and ends groups, and messages of a rank
// to itself.
#include <gtest/gtest.h>

#if defined(FOVEA_CUDA)
#include "core/testing/devices.h"
#include "distributed/card/nccl.h"
#include "distributed/collective_cases.h"
#include "distributed/device_group.h"
#include "distributed/transport.h"

namespace fovea::distributed {
namespace {

class NcclOn : public testing::TestWithParam<Device> {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(NcclOn);

std::vector<Device> cards() {
  std::vector<Device> found = devices_to_test();
  std::erase_if(found, [](Device device) { return device.kind != Device::Kind::cuda; });
  return found;
}

TEST_P(NcclOn, AMessageToItselfArrives) {
  const auto transport = nccl_transport(Communicator(), GetParam());
  EXPECT_EQ(transport->home(), GetParam());
  const auto until = Clock::now() + std::chrono::seconds(20);
  for (const int64_t n : {1, 1000, 1 << 22}) {
    const Tensor x = of_rank<float>(3, n, GetParam()),
                 y = Tensor::empty({n}, Dtype::f32, GetParam());
    const auto exchange = transport->post(0, {{0, y}}, {{0, x}}, false);
    ASSERT_TRUE(exchange->wait(until));
    EXPECT_EQ(numbers(y), numbers(x));
  }
}

TEST_P(NcclOn, CollectivesOfOneRankAndGroupsSplitFromIt) {
  const Communicator group(nccl_transport(Communicator(), GetParam()));
  EXPECT_EQ(group.transport(), "nccl");
  for (const Communicator& comm : {group, group.split(3, 0), group.split(0, 0).split(1, 1)}) {
    test_reductions<float>(comm, 37, GetParam());
    test_moves<bf16>(comm, 37, GetParam());
    const Tensor x = of_rank<float>(0, 5, GetParam());
    comm.all_reduce(x, Reduce::sum, Mode::async).wait();
    comm.reduce_scatter(x, x.clone(), Reduce::sum, Mode::async).wait();
    EXPECT_EQ(numbers(x), numbers(of_rank<float>(0, 5)));
  }
}

TEST_P(NcclOn, AGroupThatWasEndedTakesNoMoreMessages) {
  const auto transport = nccl_transport(Communicator(), GetParam());
  const auto part = transport->split(0, {0}, 0);
  transport->abort("no room");
  const Tensor x = Tensor::zeros({1}, Dtype::f32, GetParam()), y = x.clone();
  EXPECT_THROW(transport->post(0, {{0, y}}, {{0, x}}, false), Aborted);
}
INSTANTIATE_TEST_SUITE_P(Devices, NcclOn, testing::ValuesIn(cards()), device_name);

TEST(NcclLibrary, SaysItsVersionWithoutACard) {
  const Nccl found = find_nccl();
  if (!found.why.empty()) GTEST_SKIP() << found.why;
  int major = 0, minor = 0, patch = 0;
  ASSERT_EQ(std::sscanf(found.version.c_str(), "%d.%d.%d", &major, &minor, &patch), 3)
      << found.version;
  EXPECT_EQ(major, 2);
}

}  // namespace
}  // namespace fovea::distributed
#endif
