// SPDX-License-Identifier: Apache-2.0
#include "distributed/communicator.h"

#include <atomic>
#include <chrono>
#include <random>
#include <thread>

#include "core/memory_counter.h"
#include "core/parallel.h"
#include "core/testing/devices.h"
#include "distributed/collective_cases.h"
#include "distributed/reduce_pieces.h"
#include "distributed/threads.h"
#include "distributed/transport.h"

namespace fovea::distributed {
namespace {

class Ranks : public testing::TestWithParam<int> {};

TEST_P(Ranks, CollectivesGiveWhatPlainLoopsGive) {
  run_ranks(GetParam(), [](const Communicator& comm) { test_collectives(comm); });
}

TEST_P(Ranks, CountBytesAsTheFormulasSay) {
  run_ranks(GetParam(), [](const Communicator& comm) { test_counts(comm); });
}

TEST_P(Ranks, MessagesInFlightTogetherAreNotMixedUp) {
  run_ranks(GetParam(), [](const Communicator& comm) { test_messages_in_flight(comm); });
}

TEST_P(Ranks, SplitGroupsKeepToThemselves) {
  run_ranks(GetParam(), [](const Communicator& comm) { test_split(comm); });
}

TEST_P(Ranks, DisagreementIsRefusedNamingBoth) {
  run_ranks(GetParam(), [](const Communicator& comm) { test_agreement(comm); });
}

INSTANTIATE_TEST_SUITE_P(Of, Ranks, testing::Values(1, 2, 3, 4, 8),
                         testing::PrintToStringParamName());

// ---- values
// ---------------------------------------------------------------------------------------

Tensor normal(int64_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> draw;
  std::vector<float> values(static_cast<size_t>(n));
  for (float& value : values) value = draw(random);
  return Tensor::from(values, {n});
}

// Sums of all ranks' normal(n, rank), with a random wait before each call.
std::vector<float> sum_of_late_ranks(int ranks, int64_t n, unsigned delays) {
  std::vector<float> sum;
  run_ranks(ranks, [&](const Communicator& comm) {
    std::mt19937 random(delays * 100 + static_cast<unsigned>(comm.rank()));
    const Tensor x = normal(n, static_cast<uint64_t>(comm.rank()));
    for (int call = 0; call < 3; ++call) {
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 3000));
      comm.all_reduce(x).wait();
    }
    if (comm.rank() == 0) sum = x.to_vector<float>();
  });
  return sum;
}

TEST(Reductions, GiveTheSameBitsWhoeverComesLast) {
  const std::vector<float> first = sum_of_late_ranks(4, 1001, 1);
  for (unsigned delays = 2; delays < 6; ++delays)
    EXPECT_EQ(sum_of_late_ranks(4, 1001, delays), first);
}

TEST(Reductions, OfSubtreesGiveTheBitsOfOneRank) {
  constexpr int64_t kLeaves = 8, kLength = 257;
  std::vector<Tensor> leaves;
  for (uint64_t leaf = 0; leaf < kLeaves; ++leaf) leaves.push_back(normal(kLength, leaf));
  const Tensor one = Tensor::empty({kLength});
  reduce_pieces(one, leaves, Reduce::sum);
  for (const int ranks : {2, 4, 8}) {
    run_ranks(ranks, [&](const Communicator& comm) {
      const auto each = static_cast<size_t>(kLeaves / ranks);
      const Tensor x = Tensor::empty({kLength});
      reduce_pieces(x, std::span(leaves).subspan(static_cast<size_t>(comm.rank()) * each, each),
                    Reduce::sum);
      comm.all_reduce(x).wait();
      EXPECT_EQ(x.to_vector<float>(), one.to_vector<float>()) << ranks << " ranks";
    });
  }
}

TEST(Reductions, LongerThanASliceAreWhole) {
  run_ranks(3, [](const Communicator& comm) {
    const int64_t n = 3 * (1 << 19) + 5;
    const Tensor x = Tensor::full({n}, comm.rank() + 1.0);
    x.slice(0, n - 1, n).fill_(10.0 * comm.rank());
    comm.all_reduce(x).wait();
    const std::vector<float> sum = x.to_vector<float>();
    for (int64_t i = 0; i + 1 < n; ++i) ASSERT_EQ(sum[static_cast<size_t>(i)], 6.0f);
    EXPECT_EQ(sum.back(), 30.0f);
  });
}

TEST(Reductions, PassNaNOn) {
  run_ranks(3, [](const Communicator& comm) {
    for (const Reduce op : {Reduce::sum, Reduce::max, Reduce::min}) {
      const Tensor x = Tensor::full({4}, comm.rank() == 1 ? std::nan("") : 1.0);
      comm.all_reduce(x, op).wait();
      for (const float value : x.to_vector<float>()) EXPECT_TRUE(std::isnan(value));
    }
  });
}

TEST(Collectives, TakeTensorsOfAnyStrides) {
  run_ranks(2, [](const Communicator& comm) {
    const Tensor x = of_rank<float>(comm.rank(), 12).view({3, 4}).transpose(0, 1);
    comm.all_reduce(x).wait();
    for (int64_t i = 0; i < 12; ++i)
      EXPECT_EQ(x.transpose(0, 1).to_vector<float>()[static_cast<size_t>(i)],
                static_cast<float>(value_of(0, i) + value_of(1, i)));
  });
}

class CollectivesOn : public OnDevices {};

TEST_P(CollectivesOn, TensorsOfADevice) {
  run_ranks(3, [device = device()](const Communicator& comm) {
    test_reductions<float>(comm, 37, device);
    test_reductions<bf16>(comm, 37, device);
    test_reductions<int64_t>(comm, 5, device);
    test_moves<float>(comm, 37, device);
    test_moves<bf16>(comm, 5, device);
    test_moves<uint8_t>(comm, 5, device);
  });
}

TEST_P(CollectivesOn, PiecesAreSummedThereWithTheSameBits) {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    std::vector<Tensor> here, there;
    for (uint64_t seed = 0; seed < 5; ++seed) {
      here.push_back(normal(77, seed).to(dtype));
      there.push_back(here.back().to(device()));
    }
    const Tensor sum = Tensor::empty({77}, dtype), other = Tensor::empty({77}, dtype, device());
    reduce_pieces(sum, here, Reduce::sum);
    reduce_pieces(other, there, Reduce::sum);
    EXPECT_EQ(numbers(other), numbers(sum));
  }
}

FOVEA_ON_DEVICES(CollectivesOn);

// ---- asynchronous operations
// ----------------------------------------------------------------------

TEST(Async, GoesOnWhileTheCallerComputes) {
  std::atomic<bool> computed = false;
  run_ranks(2, [&](const Communicator& comm) {
    const Tensor x = of_rank<float>(comm.rank(), 100);
    if (comm.rank() == 1) {  // comes only when rank 0 is through with what it did meanwhile
      while (!computed) std::this_thread::yield();
    }
    Work work = comm.all_reduce(x, Reduce::sum, Mode::async);
    if (comm.rank() == 0) {
      EXPECT_FALSE(work.test());
      computed = true;
    }
    while (!work.test()) std::this_thread::yield();
    work.wait();
    work.wait();
    EXPECT_EQ(x.to_vector<float>()[7], static_cast<float>(value_of(0, 7) + value_of(1, 7)));
  });
}

TEST(Async, OperationsThatAreDroppedStillEnd) {
  run_ranks(4, [](const Communicator& comm) {
    for (int i = 0; i < 20; ++i) {
      [[maybe_unused]] const Work reduce =
          comm.all_reduce(of_rank<float>(comm.rank(), 50), Reduce::sum, Mode::async);
      const int next = (comm.rank() + 1) % 4, before = (comm.rank() + 3) % 4;
      [[maybe_unused]] const Work ring = comm.send_recv(
          Tensor::empty({9}), before, of_rank<float>(comm.rank(), 9), next, 0, Mode::async);
    }
    comm.barrier();
  });
}

// ---- messages matched by their order
// -----------------------------------------------------------------------------------

// A rank of two whose other one sends what this one does, and the groups of its messages as they
// started.
class Mirror : public Transport {
 public:
  using Log = std::vector<int>;
  Mirror(std::shared_ptr<Log> log, std::shared_ptr<int> groups)
      : log_(std::move(log)), groups_(std::move(groups)), group_((*groups_)++) {}
  int rank() const override { return 0; }
  int size() const override { return 2; }
  std::string_view name() const override { return "mirror"; }
  int job_rank(int rank) const override { return rank; }
  bool in_order() const override { return true; }
  std::shared_ptr<InFlight> post(int64_t, std::vector<Message> receives, std::vector<Message> sends,
                                 bool) override {
    log_->push_back(group_);  // one thread at a time, or the sanitizers say so
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    for (size_t i = 0; i < receives.size(); ++i) receives[i].data.copy_(sends[i].data);
    return std::make_shared<Arrived>();
  }
  std::shared_ptr<Transport> split(int, const std::vector<int>&, int) override {
    return std::make_shared<Mirror>(log_, groups_);
  }
  void abort(const std::string&) noexcept override {}

 private:
  class Arrived : public InFlight {
   public:
    bool test() override { return true; }
    bool wait(Clock::time_point) override { return true; }
    std::vector<int> missing() override { return {}; }
  };
  const std::shared_ptr<Log> log_;
  const std::shared_ptr<int> groups_;
  const int group_;
};

TEST(InOrder, MessagesOfAllGroupsStartInTheOrderOfTheCalls) {
  const auto log = std::make_shared<Mirror::Log>();
  const Communicator a(std::make_shared<Mirror>(log, std::make_shared<int>(0)));
  const Communicator b = a.split(0, 0), c = b.split(0, 0);
  log->clear();
  std::vector<Work> works;
  const auto reduce = [&](const Communicator& comm, Mode mode) {
    works.push_back(comm.all_reduce(Tensor::zeros({8}), Reduce::sum, mode));
  };
  for (const Communicator* comm : {&a, &b, &b, &c, &a}) reduce(*comm, Mode::async);
  works.push_back(b.send_recv(Tensor::zeros({3}), 1, Tensor::zeros({3}), 1, 0, Mode::async));
  reduce(c, Mode::blocking);
  reduce(a, Mode::async);
  works.push_back(c.send(Tensor::zeros({3}), 1));
  for (size_t i = works.size(); i-- > 0;) works[i].wait();
  // An all_reduce is two exchanges.
  EXPECT_EQ(*log, (Mirror::Log{0, 0, 1, 1, 1, 1, 2, 2, 0, 0, 1, 2, 2, 0, 0, 2}));
}

// ---- failures
// -------------------------------------------------------------------------------------

std::string failure_of(int ranks, const std::function<void(const Communicator&)>& f) {
  try {
    run_ranks(ranks, f);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Failures, ARankThatThrowsEndsTheOthers) {
  const auto start = std::chrono::steady_clock::now();
  for (const bool async : {false, true}) {
    EXPECT_EQ(
        failure_of(4,
                   [async](const Communicator& comm) {
                     if (comm.rank() == 2) throw Error("no such file");
                     const Tensor x = Tensor::zeros({10});
                     comm.all_reduce(x, Reduce::sum, async ? Mode::async : Mode::blocking).wait();
                   }),
        "rank 2 of 4: no such file");
  }
  // Also where its own operation is under way.
  EXPECT_EQ(failure_of(2,
                       [](const Communicator& comm) {
                         const Communicator pair = comm.split(0, 0);
                         if (comm.rank() == 1) return;
                         const Tensor x = Tensor::zeros({10});
                         Work work = pair.all_reduce(x, Reduce::sum, Mode::async);
                         throw Error("no room");
                       }),
            "rank 0 of 2: no room");
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
}

TEST(Failures, ARankThatHangsIsNamed) {
  const auto over = std::make_shared<std::atomic<bool>>(false);
  const std::string what = failure_of(4, [over](const Communicator& comm) {
    comm.set_time_limit(0.2);
    comm.barrier();
    if (comm.rank() == 3)
      while (!*over) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    struct End {  // the hanging rank goes when the others have failed
      std::shared_ptr<std::atomic<bool>> over;
      ~End() { *over = true; }
    } end{over};
    comm.all_reduce(Tensor::zeros({1024})).wait();
  });
  EXPECT_TRUE(what.ends_with(": all_reduce 1 (f32, 1024 elements) waited 0.2 s for rank 3"))
      << what;
  EXPECT_TRUE(what.starts_with("rank ")) << what;
}

TEST(Failures, AMessageThatNeverComesIsNamed) {
  EXPECT_EQ(failure_of(2,
                       [](const Communicator& comm) {
                         comm.set_time_limit(0.05);
                         if (comm.rank() == 0) comm.recv(Tensor::empty({3}), 1, 5).wait();
                       }),
            "rank 0: receive of tag 5 (f32, 3 elements) waited 0.05 s for rank 1");
}

TEST(Failures, SizesThatDifferAreRefused) {
  const std::string what = failure_of(2, [](const Communicator& comm) {
    if (comm.rank() == 0) comm.send(Tensor::zeros({3}), 1).wait();
    if (comm.rank() == 1) comm.recv(Tensor::zeros({4}), 0).wait();
  });
  EXPECT_TRUE(what.ends_with("rank 0 sent f32 [3], but rank 1 receives f32 [4]")) << what;
}

TEST(Failures, BadCallsSayWhatIsWrong) {
  const Communicator comm;
  const auto what = [](const auto& f) -> std::string {
    try {
      f();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(what([&] { comm.all_reduce(Tensor::zeros({2}, Dtype::u8)).wait(); }),
            "all_reduce: expected f32, f64, bf16 or i64, found u8");
  EXPECT_EQ(what([&] { comm.all_gather(Tensor::zeros({3}), Tensor::zeros({2})).wait(); }),
            "all_gather: out f32 [3] is not 1 times in f32 [2]");
  EXPECT_EQ(what([&] { comm.all_gather_v(Tensor::zeros({3}), Tensor::zeros({2}), {3}).wait(); }),
            "all_gather: in is f32 [2]; expected 3 elements of f32");
  EXPECT_EQ(what([&] { comm.all_gather_v(Tensor::zeros({3}), Tensor::zeros({2}), {2}).wait(); }),
            "all_gather: the counts of out sum to 2, its shape is [3]");
  EXPECT_EQ(
      what([&] { comm.reduce_scatter_v(Tensor::zeros({2}), Tensor::zeros({3}), {3}).wait(); }),
      "reduce_scatter: out is f32 [2]; expected 3 elements of f32");
  EXPECT_EQ(what([&] {
              comm.reduce_scatter_v(Tensor::zeros({2}), Tensor::zeros({2}), {1, 1}).wait();
            }),
            "reduce_scatter: 2 counts of in for 1 ranks");
  EXPECT_EQ(what([&] { comm.send(Tensor::zeros({3}), 1).wait(); }),
            "send: rank 0 of 1 cannot send to rank 1");
  EXPECT_EQ(what([&] { comm.broadcast(Tensor::zeros({3}), 1).wait(); }),
            "broadcast: root 1 is no rank of 1");
}

// ---- ranks in one process
// -------------------------------------------------------------------------

TEST(RankThreads, ShareTheCoresAndCountTheirOwnMemory) {
  const int before = num_threads();
  run_ranks(2, [before](const Communicator& comm) {
    EXPECT_EQ(num_threads(), std::max(1, before / 2));
    MemoryCounter counter;
    const MemoryCounter::Scope scope(counter);
    const int64_t n = 1000 * (comm.rank() + 1);
    { const Tensor x = Tensor::zeros({n}); }
    EXPECT_EQ(counter.peak_bytes(), 4 * n);
    EXPECT_EQ(counter.live_bytes(), 0);
  });
  EXPECT_EQ(num_threads(), before);
}

}  // namespace
}  // namespace fovea::distributed
