// SPDX-License-Identifier: Apache-2.0
#include "distributed/device_group.h"

#include <gtest/gtest.h>

#include "autograd/ops.h"
#include "core/testing/devices.h"
#include "core/testing/error_of.h"
#include "distributed/collective_cases.h"
#include "distributed/context_cases.h"
#include "distributed/data_parallel.h"
#include "distributed/threads.h"
#if defined(FOVEA_CUDA)
#include "distributed/card/nccl.h"
#endif

namespace fovea::distributed {
namespace {

// ---- which way ----------------------------------------------------------------------------------

std::vector<RankCard> four_cards() {
  const Nccl nccl{"2.28.9", ""};
  return {{"a", "1", "3B", nccl},
          {"a", "1", "5E", nccl},
          {"b", "2", "3B", nccl},
          {"b", "2", "5E", nccl}};
}

TEST(DeviceGroup, ACardEachIsNccl) {
  EXPECT_EQ(shared_card(four_cards()), "");
  check_nccl(four_cards());
  std::vector<RankCard> names = four_cards();  // machines that think they have one name
  for (RankCard& card : names) card.host = "localhost";
  EXPECT_EQ(shared_card(names), "");
}

TEST(DeviceGroup, ASharedCardIsNamedOnce) {
  std::vector<RankCard> cards = four_cards();
  cards[2].machine = "1";  // another container of machine 1
  EXPECT_EQ(shared_card(cards),
            "device cuda: ranks 0 and 2 share card 3B of b, so tensors of all 4 ranks go through "
            "the host; for NCCL start no more processes on a node than it has cards (mpirun, "
            "srun)");
}

TEST(DeviceGroup, NcclThatIsMissingOrAnotherIsNamed) {
  std::vector<RankCard> cards = four_cards();
  cards[3].nccl.version = "2.21.5";
  EXPECT_EQ(error_of([&] { check_nccl(cards); }),
            "nccl: rank 3 on b has 2.21.5, but rank 0 2.28.9; all need one version");
  cards[2].nccl = {"", "cuda: found none of libnccl.so.2"};
  EXPECT_EQ(error_of([&] { check_nccl(cards); }),
            "nccl: rank 2 on b: cuda: found none of libnccl.so.2");
}

// ---- where tensors lie --------------------------------------------------------------------------

class DeviceGroupOn : public OnDevices {};

TEST_P(DeviceGroupOn, CollectivesGiveWhatPlainLoopsGive) {
  run_ranks(3, [device = device()](const Communicator& job) {
    const Communicator group = device_group(job, device);
    if (device.kind == Device::Kind::interpreted) {
      EXPECT_EQ(group.home(), device);
      EXPECT_EQ(group.transport(), "threads");
    }
    for (const int64_t n : {0, 1, 33}) {
      test_reductions<float>(group, n, device);
      test_reductions<bf16>(group, n, device);
      test_moves<float>(group, n, device);
      test_moves<uint8_t>(group, n, device);
    }
    test_reductions<float>(group, 7);  // the host's go there and back
    test_reductions<int64_t>(group, 7);
    test_split(group);
    test_agreement(group);
    group.barrier();
  });
}

// Asynchronous calls on groups of one device start in the order of the calls, whichever group's:
// pairs of ranks that overlap would else wait for each other in a ring.
TEST_P(DeviceGroupOn, CallsOnSeveralGroupsKeepOneOrder) {
  run_ranks(4, [device = device()](const Communicator& job) {
    const Communicator group = device_group(job, device);
    const Communicator pairs = group.split(job.rank() / 2, job.rank()),
                       across = group.split(job.rank() % 2, job.rank());
    for (int round = 0; round < 5; ++round) {
      std::vector<Tensor> sums;
      std::vector<Work> works;
      for (const Communicator* comm : {&pairs, &across, &group, &pairs}) {
        sums.push_back(Tensor::full({100}, job.rank() + 1.0, Dtype::f32, device));
        works.push_back(comm->all_reduce(sums.back(), Reduce::sum, Mode::async));
      }
      const Tensor last = Tensor::full({1}, 1.0, Dtype::f32, device);
      across.all_reduce(last).wait();  // behind what is under way
      EXPECT_EQ(last.item(), 2.0);
      for (size_t i = works.size(); i-- > 0;) works[i].wait();
      const float pair = job.rank() < 2 ? 3.0f : 7.0f, other = job.rank() % 2 == 0 ? 4.0f : 6.0f;
      const std::vector<float> expected{pair, other, 10.0f, pair};
      for (size_t i = 0; i < sums.size(); ++i)
        EXPECT_EQ(sums[i].to_vector<float>(), std::vector<float>(100, expected[i]));
    }
  });
}

// Attention over a ring in the group gives the bits that it gives through the host.
TEST_P(DeviceGroupOn, AttentionIsThatThroughTheHost) {
  const ContextCase p = context_case(1, 2, 1, 8, Mask().causal());
  run_ranks(4, [&, device = device()](const Communicator& job) {
    for (const ContextOptions& options : {ContextOptions{}, {Exchange::ring, 2, 1}}) {
      std::vector<std::vector<float>> results;
      for (const Communicator& group : {job, device_group(job, device)}) {
        const Mesh mesh(group, {1, 4, 1});
        const ContextAttention attend(mesh, Order::zigzag, 8, options);
        const OneRank rank(attend, mesh.place().ring, 0, p, Dtype::f32, device);
        rank.backward();
        for (const Tensor& x : {rank.out.value(), rank.q.grad(), rank.k.grad(), rank.v.grad()})
          results.push_back(x.to_vector<float>());
      }
      for (size_t i = 0; i < 4; ++i) EXPECT_EQ(results[i + 4], results[i]) << i;
    }
  });
}

TEST_P(DeviceGroupOn, AFailureEndsWhatIsUnderWay) {
  const std::string error = error_of([&, device = device()] {
    run_ranks(3, [&](const Communicator& job) {
      const Communicator group = device_group(job, device);
      const Tensor x = Tensor::zeros({9}, Dtype::f32, device);
      if (job.rank() == 1) throw Error("no room");
      Work work = group.all_reduce(x, Reduce::sum, Mode::async);
      work.wait();
    });
  });
  EXPECT_EQ(error, "rank 1 of 3: no room");
  const std::string hangs = error_of([&, device = device()] {
    run_ranks(2, [&](const Communicator& job) {
      const Communicator group = device_group(job, device), other = job.split(0, job.rank());
      group.set_time_limit(0.1);
      if (job.rank() == 1) {
        other.recv(Tensor::empty({1}), 0).wait();  // nobody sends; ends with the job
        return;
      }
      group.all_reduce(Tensor::zeros({9}, Dtype::f32, device), Reduce::sum, Mode::async).wait();
    });
  });
  EXPECT_TRUE(hangs.starts_with("rank 0: all_reduce ") &&
              hangs.ends_with(" (f32, 9 elements) waited 0.1 s for rank 1"))
      << hangs;
}

// Which a card may be, too.
Communicator group_of_one(Device device) {
#if defined(FOVEA_CUDA)
  if (device.kind == Device::Kind::cuda)
    return Communicator(nccl_transport(Communicator(), device));
#endif
  return Communicator().on(device);
}

// What a step of the trainer does with its groups.
TEST_P(DeviceGroupOn, AStepOfOneRankIsThatWithoutGroups) {
  const Communicator group = group_of_one(device());
  const Mesh mesh(group, {1, 1, 1});
  const ContextCase p = context_case(1, 2, 1, 33, Mask().causal());
  for (const ContextOptions& options : {ContextOptions{}, {Exchange::gather, 0, 1}})
    compare_to_whole(mesh, Order::zigzag, options, p, whole_of(p), Dtype::f32, device(), 1e-5);
  for (const bool shard : {false, true}) {
    const Variable w(of_rank<float>(0, 12, device()).view({3, 4}), true);
    DataParallel parallel(mesh.all(), Communicator(), {{"w", w}}, {64, shard, true});
    for (int step = 0; step < 2; ++step) {
      w.zero_grad();
      parallel.arm();
      sum_all(mul(w, w)).backward();
      parallel.finish();
      EXPECT_EQ(parallel.sum({2.0}), std::vector<double>{2.0});
      ASSERT_EQ(parallel.own().size(), 1u);
      const std::vector<double> found = numbers(parallel.own()[0].variable.grad()),
                                values = numbers(w.value());
      for (size_t i = 0; i < found.size(); ++i) EXPECT_EQ(found[i], 2.0 * values[i]);
      parallel.gather();
    }
  }
}

FOVEA_ON_DEVICES(DeviceGroupOn);

}  // namespace
}  // namespace fovea::distributed
