// SPDX-License-Identifier: Apache-2.0
#include "distributed/collective_cases.h"
#include "distributed/threads.h"

namespace fovea::distributed {
namespace {

class Ranks : public testing::TestWithParam<int> {};

TEST_P(Ranks, CollectivesGiveWhatPlainLoopsGive) {
  run_ranks(GetParam(), [](const Communicator& comm) { test_collectives(comm); });
}

INSTANTIATE_TEST_SUITE_P(Of, Ranks, testing::Values(1, 2, 3, 4, 8),
                         testing::PrintToStringParamName());

}  // namespace
}  // namespace fovea::distributed
