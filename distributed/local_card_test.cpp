// SPDX-License-Identifier: Apache-2.0
#include "distributed/local_card.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "core/error.h"
#include "core/testing/error_of.h"

namespace fovea::distributed {
namespace {

// What a rank sees of a node with `cards` cards; "as it was" where that is left alone.
std::string card_of(int local_rank, const std::optional<std::string>& list, int cards = 8) {
  Environment environment{{"OMPI_COMM_WORLD_LOCAL_RANK", std::to_string(local_rank)}};
  if (list) environment["CUDA_VISIBLE_DEVICES"] = *list;
  return visible_card(environment, [&] { return cards; }).value_or("as it was");
}

TEST(LocalCard, EveryLauncherSaysWhichRankOfTheNodeThisIs) {
  for (const char* name :
       {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK",
        "PMI_LOCAL_RANK", "PALS_LOCAL_RANKID", "SLURM_LOCALID"}) {
    EXPECT_EQ(local_rank({{name, "3"}, {"OMPI_COMM_WORLD_SIZE", "8"}}), 3) << name;
    for (const char* wrong : {"", "x", "-1", "1x", "99999999999"})
      EXPECT_EQ(error_of([&] {
                  local_rank({{name, wrong}});
                }),
                concat(name, ": expected a rank's number on its node, found \"", wrong, '"'));
  }
  EXPECT_EQ(local_rank({{"PMIX_RANK", "3"}}), std::nullopt);
  // mpirun inside a job of Slurm: the batch script's number is not the rank's.
  EXPECT_EQ(local_rank({{"SLURM_LOCALID", "0"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "5"}}), 5);
}

TEST(LocalCard, ARankTakesOneOfTheNodes) {
  EXPECT_EQ(card_of(0, {}), "0");
  EXPECT_EQ(card_of(7, {}), "7");
  EXPECT_EQ(card_of(9, {}), "1");  // more ranks than cards: in turns
  EXPECT_EQ(card_of(1, {}, 1), "as it was");
  EXPECT_EQ(card_of(1, {}, 0), "as it was");
}

TEST(LocalCard, AListOfTheUserOrTheSchedulerIsKeptTo) {
  const auto not_asked = []() -> int { throw Error("the list says it"); };
  for (int r = 0; r < 4; ++r)
    EXPECT_EQ(visible_card({{"SLURM_LOCALID", std::to_string(r)},
                            {"CUDA_VISIBLE_DEVICES", "4, 5,GPU-8d2f,MIG-77"}},
                           not_asked),
              (std::vector<std::string>{"4", "5", "GPU-8d2f", "MIG-77"})[static_cast<size_t>(r)]);
  EXPECT_EQ(card_of(2, "6,7"), "6");
  // A card a process from the scheduler, or none from the user.
  for (const char* list : {"3", "GPU-8d2f", "", " ", "-1", "NoDevFiles", "3,-1,4"})
    EXPECT_EQ(card_of(1, list), "as it was") << list;
  EXPECT_EQ(card_of(1, "3,4,-1,5"), "4");  // CUDA reads up to what is no card
}

TEST(LocalCard, WithoutALocalRankThereMustBeOneCard) {
  const Environment slurm{{"PMIX_RANK", "3"}};
  for (const int cards : {0, 1})
    EXPECT_EQ(visible_card(slurm, [&] { return cards; }), std::nullopt);
  const std::string variables =
      "no variable of the launcher (OMPI_COMM_WORLD_LOCAL_RANK, MPI_LOCALRANKID, "
      "MV2_COMM_WORLD_LOCAL_RANK, PMI_LOCAL_RANK, PALS_LOCAL_RANKID, SLURM_LOCALID) says which of "
      "the node's ";
  EXPECT_EQ(
      error_of([&] { visible_card(slurm, [] { return 8; }); }),
      variables + "8 cards is this rank's; set CUDA_VISIBLE_DEVICES of each rank to its card");
  Environment listed = slurm;
  listed["CUDA_VISIBLE_DEVICES"] = "5";
  EXPECT_EQ(visible_card(listed, [] { return 8; }), std::nullopt);
  listed["CUDA_VISIBLE_DEVICES"] = "5,6";
  EXPECT_EQ(
      error_of([&] { visible_card(listed, [] { return 8; }); }),
      variables + "2 cards is this rank's; set CUDA_VISIBLE_DEVICES of each rank to its card");
}

TEST(LocalCard, AListThatNamesNoCardsIsRefused) {
  EXPECT_EQ(error_of([] { card_of(1, "0,,2"); }),
            "CUDA_VISIBLE_DEVICES: entry 1 of \"0,,2\" is empty; expected cards as in 0,1,2 or "
            "GPU-... names");
  EXPECT_EQ(error_of([] { card_of(0, "0,1,"); }),
            "CUDA_VISIBLE_DEVICES: entry 2 of \"0,1,\" is empty; expected cards as in 0,1,2 or "
            "GPU-... names");
  EXPECT_EQ(error_of([] { card_of(0, "0,1,0"); }),
            "CUDA_VISIBLE_DEVICES: \"0,1,0\" names card 0 twice");
}

TEST(LocalCard, AProcessTakesItInItsEnvironment) {
  const char* const names[] = {"OMPI_COMM_WORLD_LOCAL_RANK", "CUDA_VISIBLE_DEVICES"};
  const Environment before = environment_of_process();
  setenv(names[0], "1", 1);
  setenv(names[1], "4,5", 1);
  take_local_card();
  EXPECT_STREQ(std::getenv(names[1]), "5");
  take_local_card();  // once more: one card is kept
  EXPECT_STREQ(std::getenv(names[1]), "5");
  check_local_card();
  // What is wrong is told to those who want a card.
  setenv(names[1], "4,4", 1);
  take_local_card();
  EXPECT_STREQ(std::getenv(names[1]), "4,4");
  EXPECT_EQ(error_of(check_local_card), "CUDA_VISIBLE_DEVICES: \"4,4\" names card 4 twice");
  setenv(names[1], "5", 1);
  take_local_card();
  check_local_card();  // forgotten
  for (const char* name : names) {
    const auto was = before.find(name);
    was == before.end() ? unsetenv(name) : setenv(name, was->second.c_str(), 1);
  }
}

}  // namespace
}  // namespace fovea::distributed
