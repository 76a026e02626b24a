// SPDX-License-Identifier: Apache-2.0
// The program on several ranks, as threads and as processes of mpirun.
#include <cmath>
#include <random>
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

  // The processes that `parent` started, in order.
  static std::vector<pid_t> children_of(pid_t parent) {
    std::vector<pid_t> all;
    for (const auto& task : fs::directory_iterator("/proc/" + std::to_string(parent) + "/task")) {
      std::ifstream children(task.path() / "children");
      for (pid_t child = 0; children >> child;) all.push_back(child);
    }
    std::sort(all.begin(), all.end());
    return all;
  }

  // What two processes of `first` and one of `second` say (flags of mpirun, `fovea`, arguments).
  using Words = std::vector<std::string>;
  Result unlike(Words first, const Words& second) {
    first.insert(first.begin(), {"-n", "2"});
    first.insert(first.end(), {":", "-n", "1"});
    first.insert(first.end(), second.begin(), second.end());
    Words words(launcher.begin(), launcher.end() - 2);  // without the number of processes
    for (const std::string& word : first) words.push_back(word == "fovea" ? program() : word);
    return finish(start_words(words));
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
  EXPECT_LINE(run({"eval", runs().at(0).string()}).out, "step 24: held-out loss");
  EXPECT_EQ(run({"sample", runs().at(0).string(), "--tokens=3"}).status, 0);
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

// mesh.block: one rank, threads and processes give the same bits.
TEST_F(OnRanks, BlocksGiveTheSameBitsOnThreadsAndProcesses) {
  const std::vector<std::string> flags{"--mesh.block=8", "--mesh.order=contiguous",
                                       "--mesh.strategy=gather", "--train.micro_batch=4"};
  const auto losses_with = [&](const std::string& mesh) {
    fs::remove_all(folder / "runs");
    std::vector<std::string> all = flags;
    all.push_back(mesh);
    const Result result = train(all);
    EXPECT_EQ(result.status, 0) << result.error;
    return losses(runs().at(0));
  };
  const auto expected = losses_with("--ranks=1");
  ASSERT_EQ(expected.size(), 24u);
  EXPECT_EQ(losses_with("--mesh.data=3"), expected);
  if (!processes(2)) GTEST_SKIP() << "no mpirun";
  EXPECT_EQ(losses_with("--mesh.ring=2"), expected);
}

// A rank that is not like the others ends the job before anything is made, in one line that says
// what differs, and says who.
TEST_F(OnRanks, ProcessesThatDifferAreRefused) {
  if (!processes(3)) GTEST_SKIP() << "no mpirun";
  const std::string toml = (folder / "tiny.toml").string();
  const auto expect = [&](const Words& first, const Words& second, int status,
                          const std::string& part) {
    const Result r = unlike(first, second);
    EXPECT_EQ(r.status, status) << r.error;
    EXPECT_LINE(r.error, part);
    EXPECT_TRUE(runs().empty());
  };
  const Words train{"fovea", "train", toml};
  expect(train, {"fovea", "train", toml, "--optimizer.lr=0.25"}, 1,
         " of 3: config: rank 2 differs from rank 0: optimizer.lr = 0.25, not optimizer.lr = "
         "0.001; start every rank with the same");
  expect(train, {"fovea", "train", toml, "--train.stps=2"}, 2,
         "fovea: rank 2 of 3: flag --train.stps: unknown key train.stps");
  const Words typo{"fovea", "trian", toml};
  expect(typo, typo, 2, "fovea: rank 0 of 3: unknown verb \"trian\"");
  // The same program but for its version.
  threads();
  const std::string line = run({"--version"}).out, version = line.substr(line.find(' ') + 1);
  std::string other = read_file(program());
  const size_t at = other.find(version.substr(0, version.size() - 1) + '\0');
  ASSERT_NE(at, std::string::npos) << line;
  other[at] = '9';
  replace_file(folder / "other", other);
  fs::permissions(folder / "other", fs::perms::owner_all);
  processes(3);
  expect(train, {(folder / "other").string(), "train", toml}, 1,
         "version of fovea: rank 2 differs from rank 0: 9");
  // One path that leads to other data: of another text, of the same size.
  for (const std::string place : {"here", "there"}) {
    fs::create_directories(folder / place);
    std::string text = read_file(folder / "text.txt");
    for (size_t at = 0; place == "there" && (at = text.find("sheep", at)) != std::string::npos;)
      text.replace(at, 5, "weeps");
    replace_file(folder / place / "text.txt", text);
    threads();
    ASSERT_EQ(run({"data", "prepare", (folder / place / "text.txt").string(), "--out",
                   (folder / place / "data").string()})
                  .status,
              0);
  }
  processes(3);
  const auto in = [&](const std::string& place) {
    return Words{"-wdir", (folder / place).string(), "fovea", "train", toml, "--data.path=data"};
  };
  expect(in("here"), in("there"), 1,
         "data: rank 2 differs from rank 0: train with samples of hash ");
}

// Any rank, killed or stopped at any time after the first checkpoint.
TEST_F(OnRanks, AProcessThatIsGoneOrHangsEndsTheJobWhichFewerRanksContinue) {
  ASSERT_EQ(train().status, 0);
  const auto expected = losses(runs().at(0));
  std::mt19937 random(std::random_device{}());
  for (const int signal : {SIGKILL, SIGSTOP}) {
    fs::remove_all(folder / "runs");
    if (!processes(3)) GTEST_SKIP() << "no mpirun";
    setenv("FOVEA_COMM_TIMEOUT", signal == SIGSTOP ? "6" : "60", 1);
    const size_t rank = random() % 3;
    const auto delay = std::chrono::milliseconds(random() % 15);
    SCOPED_TRACE("signal " + std::to_string(signal) + " to rank " + std::to_string(rank) +
                 " after " + std::to_string(delay.count()) + " ms");
    const pid_t job = start({"train", (folder / "tiny.toml").string(), "--train.zero=1"});
    for (int i = 0; i < 20000 && (runs().empty() || !fs::exists(checkpoint(runs().at(0), "05")));
         ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::this_thread::sleep_for(delay);
    const std::vector<pid_t> ranks = children_of(job);
    ASSERT_EQ(ranks.size(), 3u);
    ASSERT_EQ(kill(ranks[rank], signal), 0);
    const auto since = std::chrono::steady_clock::now();
    const Result ended = finish(job);
    EXPECT_LT(std::chrono::steady_clock::now() - since, std::chrono::seconds(30));
    EXPECT_NE(ended.status, 0);
    if (signal == SIGKILL) {
      EXPECT_LINE(ended.out + ended.error, "process rank " + std::to_string(rank));
    } else {
      // And perhaps another that waits for it.
      const std::string waited = " waited 6 s for rank ";
      EXPECT_LINE(ended.error, waited);
      const std::string line = ended.error.substr(ended.error.find(waited) + waited.size(), 4);
      EXPECT_LINE(line.substr(0, line.find('\n')), std::to_string(rank));
    }
    threads();
    const fs::path left = runs().at(0);
    const Result resumed = run({"resume", left.string(), "--ranks=2"});
    ASSERT_EQ(resumed.status, 0) << resumed.error;
    EXPECT_LINE(resumed.out, "from step ");
    expect_near(losses(left), expected);
  }
}

// No room for a checkpoint, of which rank 0 alone knows.
TEST_F(OnRanks, AFullDiskEndsAllRanksInOneLine) {
  const Result full =
      run({"train", (folder / "tiny.toml").string(), "--ranks=3"}, /*file_bytes=*/20000);
  EXPECT_EQ(full.status, 1);
  EXPECT_LINE(full.error, "fovea: rank 0 of 3: file " + checkpoint(runs().at(0), "05").string());
  EXPECT_LINE(full.error, "File too large");
  EXPECT_EQ(std::count(full.error.begin(), full.error.end(), '\n'), 1) << full.error;
  EXPECT_TRUE(fs::is_empty(runs().at(0) / "checkpoints"));
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
