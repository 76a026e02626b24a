// SPDX-License-Identifier: Apache-2.0
// Ranks as processes: ctest runs this program under mpirun. Started alone it has none of these
// tests.
#include "distributed/mpi.h"

#include <csignal>
#include <cstdlib>
#include <thread>

#include "core/testing/devices.h"
#include "distributed/collective_cases.h"
#include "distributed/context_cases.h"
#include "distributed/device_group.h"
#include "distributed/state_cases.h"

namespace fovea::distributed {
namespace {

const Communicator& world() {
  static const Communicator comm = mpi_world();
  return comm;
}

class EndOfJob : public testing::Environment {
 public:
  void TearDown() override { end_mpi(testing::UnitTest::GetInstance()->Failed() ? 1 : 0); }
};
[[maybe_unused]] const auto* const kEnd = testing::AddGlobalTestEnvironment(new EndOfJob);

// One instance under mpirun, none without.
std::vector<int> processes() { return started_by_mpi() ? std::vector<int>{0} : std::vector<int>{}; }

class Mpi : public testing::TestWithParam<int> {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Mpi);

TEST_P(Mpi, CollectivesGiveWhatPlainLoopsGive) { test_collectives(world()); }
TEST_P(Mpi, CountBytesAsTheFormulasSay) { test_counts(world()); }
TEST_P(Mpi, MessagesInFlightTogetherAreNotMixedUp) { test_messages_in_flight(world()); }
TEST_P(Mpi, SplitGroupsKeepToThemselves) { test_split(world()); }
TEST_P(Mpi, DisagreementIsRefusedNamingBoth) { test_agreement(world()); }

TEST_P(Mpi, TensorsOfADevice) {
  for (const Device device : devices_to_test()) {
    test_reductions<float>(world(), 37, device);
    test_moves<bf16>(world(), 5, device);
  }
}

TEST_P(Mpi, TensorsOfADeviceByItsGroup) {
  for (const Device device : devices_to_test()) {
    const Communicator group = device_group(world(), device);
    test_reductions<float>(group, 37, device);
    test_moves<bf16>(group, 5, device);
    test_split(group);
    Work work;
    const Communicator part = group.split(world().rank() % 2, world().rank());
    const Tensor x = Tensor::full({50}, 1.0, Dtype::f32, device), y = x.clone();
    work = group.all_reduce(x, Reduce::sum, Mode::async);
    part.all_reduce(y).wait();
    work.wait();
    EXPECT_EQ(x.to_vector<float>(), std::vector<float>(50, static_cast<float>(group.size())));
    EXPECT_EQ(y.to_vector<float>(), std::vector<float>(50, static_cast<float>(part.size())));
  }
}

// Long enough that the library needs both sides' help to move it.
TEST_P(Mpi, LongMessagesMoveWhileNobodyWaits) {
  const int P = world().size(), rank = world().rank();
  const Tensor in = Tensor::full({1 << 20}, rank + 1.0), out = Tensor::zeros({1 << 20});
  Work work = world().send_recv(out, (rank + 1) % P, in, (rank + P - 1) % P, 3, Mode::async);
  for (int i = 0; i < 2000 && !work.test(); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_TRUE(work.test());
  work.wait();
  EXPECT_EQ(out.to_vector<float>().back(), static_cast<float>((rank + 1) % P + 1));
}

TEST_P(Mpi, StatesPassFromRankToRank) {
  for (const StateCase& c : state_cases(world().size())) {
    const Whole whole = whole_of(c);
    for (const StateOptions& options : all_strategies())
      compare_to_whole(world(), c, whole, options, Dtype::f64, kCpu, 1e-9);
  }
}

TEST_P(Mpi, KeysAndTheirGradientsTravel) {
  for (const MeshSizes& sizes : meshes(world().size())) {
    const Mesh mesh(world(), sizes);
    const auto [H, G] = heads_for(sizes.ulysses);
    const ContextCase p = context_case(2, H, G, 33, Mask().causal());
    const ContextResults whole = whole_of(p);
    for (const Order order : kOrders) {
      for (const ContextOptions& options : all_options(sizes.ring))
        compare_to_whole(mesh, order, options, p, whole, Dtype::f64, kCpu, 1e-12);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Processes, Mpi, testing::ValuesIn(processes()));

// The last rank fails in the way that FOVEA_TEST_FAILURE says; the others wait for it.
class MpiFailure : public testing::TestWithParam<std::string> {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(MpiFailure);

TEST_P(MpiFailure, EndsTheJob) {
  const Communicator& comm = world();
  comm.set_time_limit(1.0);
  comm.barrier();
  try {
    if (comm.rank() == comm.size() - 1) {
      FOVEA_CHECK(GetParam() != "throw", "rank ", comm.rank(), ": no such file");
      if (GetParam() == "kill") std::raise(SIGKILL);
      while (true) std::this_thread::sleep_for(std::chrono::seconds(1));
    }
    const Tensor x = Tensor::zeros({1024});
    comm.all_reduce(x).wait();
  } catch (const Error& error) {
    let_lower_ranks_speak();
    std::fprintf(stderr, "fovea: %s\n", error.what());
    end_mpi(1);
  }
}

std::vector<std::string> failures() {
  const char* way = std::getenv("FOVEA_TEST_FAILURE");
  return started_by_mpi() && way != nullptr ? std::vector<std::string>{way}
                                            : std::vector<std::string>{};
}
INSTANTIATE_TEST_SUITE_P(Of, MpiFailure, testing::ValuesIn(failures()));

}  // namespace
}  // namespace fovea::distributed
