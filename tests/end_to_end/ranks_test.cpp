// SPDX-License-Identifier: Apache-2.0
// The program on several ranks, as threads and as processes of mpirun.
#include <cmath>
#include <sstream>

#include "core/error.h"
#include "tests/end_to_end/program.h"

namespace fovea::train {
namespace {

class OnRanks : public EndToEnd {
 protected:
  void SetUp() override {
    EndToEnd::SetUp();
    setenv("OMP_NUM_THREADS", "1", 1);
    setenv("FOVEA_COMM_TIMEOUT", "60", 1);
  }

  // mpirun with `ranks` processes of one thread; false where there is none.
  bool processes(int ranks) {
    std::istringstream words(FOVEA_MPIEXEC);
    launcher.clear();
    for (std::string word; words >> word;) launcher.push_back(word);
    if (launcher.empty()) return false;
    launcher.push_back(std::to_string(ranks));
    return true;
  }
  void threads() { launcher.clear(); }

  // The newest process that `parent` started.
  static pid_t last_child(pid_t parent) {
    pid_t last = 0;
    for (const auto& task : fs::directory_iterator("/proc/" + std::to_string(parent) + "/task")) {
      std::ifstream children(task.path() / "children");
      for (pid_t child = 0; children >> child;) last = std::max(last, child);
    }
    return last;
  }

  static void expect_near(const std::map<int64_t, double>& found,
                          const std::map<int64_t, double>& expected) {
    ASSERT_EQ(found.size(), expected.size());
    for (const auto& [step, loss] : expected) EXPECT_NEAR(found.at(step), loss, 1e-5) << step;
  }
};

TEST_F(OnRanks, ThreadsTrainAsOneRankDoesAndResumeOnAnotherNumber) {
  ASSERT_EQ(train().status, 0);
  const auto expected = losses(runs().at(0));
  fs::remove_all(folder / "runs");
  const Result three = train({"--ranks=3", "--train.zero=1"});
  ASSERT_EQ(three.status, 0) << three.error;
  EXPECT_LINE(three.out, "24 steps of 24, 3 ranks, ZeRO-1");
  ASSERT_EQ(runs().size(), 1u);  // of rank 0 alone
  expect_near(losses(runs().at(0)), expected);
  for (const char* file : {"config.toml", "report.html", "sample.txt"})
    EXPECT_TRUE(fs::exists(runs().at(0) / file)) << file;
  for (const std::string ranks : {"2", "1"}) {
    const fs::path copy = folder / ("copy" + ranks);
    fs::copy(runs().at(0), copy, fs::copy_options::recursive);
    for (const char* later : {"15", "20", "24"}) fs::remove(checkpoint(copy, later));
    const Result resumed = run({"resume", copy.string(), "--ranks=" + ranks});
    ASSERT_EQ(resumed.status, 0) << resumed.error;
    EXPECT_LINE(resumed.out, "from step 10");
    expect_near(losses(copy), expected);
  }
  EXPECT_LINE(run({"eval", runs().at(0).string()}).out, "step 24: held-out loss");
}

TEST_F(OnRanks, WhatDoesNotFitIsOneLineAndLeavesNothing) {
  const Result heads = train({"--mesh.ulysses=3"});
  EXPECT_NE(heads.status, 0);
  EXPECT_LINE(heads.error, "2 heads, which ulysses 3 does not divide");
  EXPECT_EQ(std::count(heads.error.begin(), heads.error.end(), '\n'), 1) << heads.error;
  const Result sizes = train({"--ranks=3", "--mesh.data=2"});
  EXPECT_LINE(sizes.error, "is 2 ranks, but the job has 3");
  EXPECT_EQ(train({"--ranks=2", "--mesh.dat=2"}).status, 2);
  EXPECT_EQ(train({"--mesh.data=2", "--train.steps=2"}).status, 0);  // two threads
  EXPECT_EQ(runs().size(), 1u);
}

TEST_F(OnRanks, ProcessesGiveTheBitsOfThreads) {
  ASSERT_EQ(train({"--ranks=2", "--train.zero=1"}).status, 0);
  const auto expected = losses(runs().at(0));
  fs::remove_all(folder / "runs");
  if (!processes(2)) GTEST_SKIP() << "no mpirun";
  const Result result = train({"--train.zero=1"});
  ASSERT_EQ(result.status, 0) << result.error;
  ASSERT_EQ(runs().size(), 1u);
  EXPECT_EQ(losses(runs().at(0)), expected);
}

// The sequences of each sample over a ring, and over heads.
TEST_F(OnRanks, ASequenceOverThreadsAndProcessesTrainsAsOneRankDoes) {
  ASSERT_EQ(train().status, 0);
  const auto expected = losses(runs().at(0));
  fs::remove_all(folder / "runs");
  const Result four = train({"--mesh.ring=2", "--mesh.ulysses=2", "--train.zero=1"});
  ASSERT_EQ(four.status, 0) << four.error;
  EXPECT_LINE(four.out, "4 ranks (data 1 x ring 2 x ulysses 2), ZeRO-1");
  expect_near(losses(runs().at(0)), expected);
  EXPECT_TRUE(fs::exists(runs().at(0) / "sample.txt"));
  const fs::path copy = folder / "copy";
  fs::copy(runs().at(0), copy, fs::copy_options::recursive);
  for (const char* later : {"15", "20", "24"}) fs::remove(checkpoint(copy, later));
  const Result resumed =
      run({"resume", copy.string(), "--ranks=2", "--mesh.ring=1", "--mesh.ulysses=1"});
  ASSERT_EQ(resumed.status, 0) << resumed.error;
  expect_near(losses(copy), expected);
  EXPECT_LINE(run({"resume", copy.string(), "--train.steps=9"}).error,
              "--train.steps not expected");
  fs::remove_all(folder / "runs");
  ASSERT_EQ(train({"--mesh.ring=2"}).status, 0);
  const auto threads = losses(runs().at(0));
  expect_near(threads, expected);
  fs::remove_all(folder / "runs");
  if (!processes(2)) GTEST_SKIP() << "no mpirun";
  const Result result = train({"--mesh.ring=2"});
  ASSERT_EQ(result.status, 0) << result.error;
  EXPECT_EQ(losses(runs().at(0)), threads);
}

TEST_F(OnRanks, AKilledProcessEndsTheJobWhichFewerRanksContinue) {
  ASSERT_EQ(train().status, 0);
  const auto expected = losses(runs().at(0));
  fs::remove_all(folder / "runs");
  if (!processes(3)) GTEST_SKIP() << "no mpirun";
  const pid_t job = start({"train", (folder / "tiny.toml").string(), "--train.steps=24"});
  for (int i = 0; i < 20000 && (runs().empty() || !fs::exists(checkpoint(runs().at(0), "05"))); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  const pid_t last = last_child(job);
  ASSERT_GT(last, 0);
  kill(last, SIGKILL);
  const Result killed = finish(job);
  EXPECT_NE(killed.status, 0);
  EXPECT_LINE(killed.out + killed.error, "signal 9");
  threads();
  const fs::path left = runs().at(0);
  const Result resumed = run({"resume", left.string(), "--ranks=2"});
  ASSERT_EQ(resumed.status, 0) << resumed.error;
  EXPECT_LINE(resumed.out, "from step ");
  expect_near(losses(left), expected);
}

// The cluster bench: its rows come out of real runs over two processes of a device that is there;
// without a card each row says so.
TEST_F(OnRanks, TheClusterBenchFillsItsTableOrSaysWhyNot) {
  if (!processes(2)) GTEST_SKIP() << "no mpirun";
  if (std::system("python3 -c '' 2>/dev/null") != 0) GTEST_SKIP() << "no python3";
  std::string words;  // all but "-n 2"
  for (size_t i = 0; i + 2 < launcher.size(); ++i) words += (i == 0 ? "" : " ") + launcher[i];
  threads();
  const char* program = std::getenv("FOVEA_PROGRAM");
  const std::string bench = concat("python3 scripts/bench_gpu_cluster --program ",
                                   program != nullptr ? program : FOVEA_PROGRAM, " --launcher '",
                                   words, "' --scratch ", folder.string(), " "),
                    table = (folder / "table.md").string();
  const auto rows = [&](const std::string& part) {
    const std::string text = read_file(table);
    int count = 0;
    for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1))
      ++count;
    return count;
  };
  const auto run = [&](const std::string& options) {
    return WEXITSTATUS(std::system((bench + options + " > " + table).c_str()));
  };
#if defined(FOVEA_INTERPRETED)
  const std::string device = "interpreted";
#else
  const std::string device = "cpu";
#endif
  ASSERT_EQ(run("--device " + device + " --quick --seconds 0 --ranks 2 --masks causal"), 0)
      << read_file(table);
  EXPECT_EQ(rows("\n| "), 12 + 2 + 4) << read_file(table);  // collectives, attention, steps
  EXPECT_EQ(rows(", exact |"), 12 + 2);
  EXPECT_EQ(rows("tokens/s"), 4);
  // No card can be 4096 ranks', wherever this runs.
  ASSERT_EQ(run("--quick --ranks 4096 --masks causal"), 1);
  EXPECT_EQ(rows("| not measured: "), rows("\n| "));
  EXPECT_EQ(run("--ranks 0 2> /dev/null"), 2);
}

}  // namespace
}  // namespace fovea::train
