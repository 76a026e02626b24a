// SPDX-License-Identifier: Apache-2.0
#include "distributed/state.h"

#include "attention/linear/linear_test_util.h"
#include "autograd/ops.h"
#include "core/ops/elementwise.h"
#include "core/testing/devices.h"
#include "distributed/state_cases.h"
#include "distributed/threads.h"

namespace fovea::distributed {
namespace {

using attention::Gates;

class States : public testing::TestWithParam<int> {};

TEST_P(States, ShardsAreTheWhole) {
  for (const StateCase& c : state_cases(GetParam())) {
    const Whole whole = whole_of(c);
    run_ranks(GetParam(), [&](const Communicator& comm) {
      for (const StateOptions& options : all_strategies())
        compare_to_whole(comm, c, whole, options, Dtype::f64, kCpu, 1e-9);
      compare_to_whole(comm, c, whole, {StateStrategy::gather}, Dtype::f32, kCpu, 1e-5);
      compare_to_whole(comm, c, whole, {StateStrategy::pipeline, 2}, Dtype::f32, kCpu, 1e-5);
    });
  }
}

TEST_P(States, BytesAreTheTable) {
  const int P = GetParam();
  const int64_t B = 2, H = 3, Dk = 4, Dv = 6;
  for (const bool delta : {false, true}) {
    for (const Gates gates : {Gates::none, Gates::head, Gates::token, Gates::channel}) {
      const StateCase c{{B, H, 9, Dk, Dv, gates}, delta, cut_evenly(9, P)};
      const int64_t m = delta                     ? Dk * Dk
                        : gates == Gates::none    ? 0
                        : gates == Gates::channel ? Dk
                                                  : 1;
      run_ranks(P, [&](const Communicator& comm) {
        for (const StateOptions& options : all_strategies()) {
          Shard shard = shard_of(comm, c, Dtype::f32, kCpu);
          const auto expect = [&](Operation operation, int64_t bytes, int64_t calls) {
            EXPECT_EQ(comm.stats()[operation].bytes_sent, bytes);
            EXPECT_EQ(comm.stats()[operation].calls, calls);
            EXPECT_EQ(comm.stats().total().bytes_sent, bytes);
          };
          for (const bool back : {false, true}) {
            const bool last = comm.rank() == (back ? 0 : P - 1);
            comm.reset_stats();
            back ? backward_of(shard) : forward_of(shard, comm, options);
            if (options.strategy == StateStrategy::gather) {
              expect(Operation::all_gather, (P - 1) * B * H * (Dk * Dv + m) * 4, P > 1);
            } else {
              const int64_t K =
                  options.strategy == StateStrategy::chain ? 1 : std::min(options.pieces, Dv);
              expect(Operation::send, last ? 0 : B * H * Dk * Dv * 4, last ? 0 : K);
            }
          }
        }
      });
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Of, States, testing::Values(1, 2, 3, 4, 8),
                         testing::PrintToStringParamName());

// Losses of the states between ranks, and a rank whose outputs nobody uses.
TEST(States, StatesBetweenRanksTakeGradients) {
  constexpr int P = 4;
  for (const bool delta : {false, true}) {
    const StateCase c{{1, 2, 19, 4, 3, Gates::token, false, true}, delta, {0, 5, 6, 15, 19}};
    const Sequence all = sequence_of(c);
    const auto seeds = [&](int r) {
      return Tensors{r == 1 ? Tensor() : part_of(all.dout, 2, c, r).contiguous(),
                     r == 0 ? Tensor() : scale(all.dlast, r)};
    };
    // On one rank: stretch after stretch.
    Variables x, roots;
    Tensors given;
    for (const Tensor& t : all.x) x.push_back(t.defined() ? Variable(t, true) : Variable());
    Variable state = x[4];
    for (int r = 0; r < P; ++r) {
      const auto part = [&](const Variable& t) {
        return slice(t, 2, c.cuts[static_cast<size_t>(r)], c.cuts[static_cast<size_t>(r) + 1]);
      };
      const Variables results = delta ? attention::delta_rule(part(x[0]), part(x[1]), part(x[2]),
                                                              part(x[5]), part(x[3]), state)
                                      : attention::linear_attention(part(x[0]), part(x[1]),
                                                                    part(x[2]), part(x[3]), state);
      state = results[1];
      for (size_t i = 0; i < 2; ++i) {
        if (!seeds(r)[i].defined()) continue;
        roots.push_back(results[i]);
        given.push_back(seeds(r)[i]);
      }
    }
    backward(roots, given);
    const Tensors gradients = gradients_of(x);
    run_ranks(P, [&](const Communicator& comm) {
      for (const StateOptions& options : all_strategies()) {
        Shard shard = shard_of(comm, c, Dtype::f64, kCpu);
        forward_of(shard, comm, options);
        shard.seeds = seeds(comm.rank());
        backward_of(shard);
        for (size_t i = 0; i < shard.x.size(); ++i) {
          if (!shard.x[i].defined()) continue;
          const Tensor own = i == 4 ? gradients[i] : part_of(gradients[i], 2, c, comm.rank());
          EXPECT_LT(worst(shard.x[i].grad(), own), 1e-12) << i << ", rank " << comm.rank();
        }
      }
    });
  }
}

// Who gives documents and who does not must not end in a wait.
TEST(States, RanksThatDisagreeAreStopped) {
  const StateCase c{{1, 1, 6, 2, 2, Gates::none, true}, false, cut_evenly(6, 2)};
  EXPECT_THROW(run_ranks(2,
                         [&](const Communicator& comm) {
                           comm.set_time_limit(20.0);
                           Shard shard = shard_of(comm, c, Dtype::f64, kCpu);
                           if (comm.rank() == 0) shard.starts = Tensor();
                           forward_of(shard, comm, {});
                         }),
               Error);
}

TEST(States, AStateOfAnotherRankThanTheFirstIsRefused) {
  const StateCase c{{1, 1, 6, 2, 2, Gates::none, false, true}, false, cut_evenly(6, 2)};
  try {
    run_ranks(2, [&](const Communicator& comm) {
      if (comm.rank() == 0) return;
      Shard shard = shard_of(comm, c, Dtype::f64, kCpu);
      shard.x[4] = Variable(Tensor::zeros({1, 1, 2, 2}, Dtype::f64));
      forward_of(shard, comm, {});
    });
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "rank 1 of 2: linear: rank 1 gives a state; the state before the sequence is "
                 "rank 0's to give");
  }
}

// Of bf16 inputs and on every device.
class StatesOn : public OnDevices {};

TEST_P(StatesOn, EveryStrategyIsTheWhole) {
  for (const bool delta : {false, true}) {
    const StateCase c{
        {1, 1, 7, 4, 4, delta ? Gates::token : Gates::channel, true, true}, delta, {0, 3, 4, 7}};
    const Whole whole = whole_of(c);
    run_ranks(3, [&](const Communicator& comm) {
      for (const StateOptions& options : all_strategies())
        compare_to_whole(comm, c, whole, options, Dtype::f32, device(), 1e-4);
      compare_to_whole(comm, c, whole, {}, Dtype::bf16, device(), 3e-2);
    });
  }
}
FOVEA_ON_DEVICES(StatesOn);

}  // namespace
}  // namespace fovea::distributed
