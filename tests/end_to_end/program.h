// SPDX-License-Identifier: Apache-2.0
#pragma once
// What the tests of the whole program share: a folder with a small text, its data set and an
// experiment, and the program run in it.

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <map>
#include <thread>

#include "core/io/file.h"
#include "train/metrics.h"

namespace fovea::train {

namespace fs = std::filesystem;

struct Result {
  int status;  // exit code, or 128 + signal
  std::string out, error;
};

class EndToEnd : public testing::Test {
 protected:
  void SetUp() override {
    folder = fs::temp_directory_path() / ("fovea_end_to_end." + std::to_string(getpid()));
    fs::remove_all(folder);
    fs::create_directories(folder);
    std::string text;
    for (int i = 0; i < 400; ++i)
      text += "The " + std::to_string(i * 37 % 101) + " sheep went over the hill.\n";
    replace_file(folder / "text.txt", text);
    ASSERT_EQ(run({"data", "prepare", (folder / "text.txt").string(), "--out",
                   (folder / "data").string()})
                  .status,
              0);
    replace_file(folder / "tiny.toml", config());
  }
  void TearDown() override {
    fs::permissions(folder, fs::perms::owner_all);
    fs::remove_all(folder);
  }

  // Dropout, accumulation and EMA on; 24 samples of 32 tokens are an epoch of about 13 steps.
  std::string config() const {
    return "name = \"tiny\"\n[data]\nkind = \"tokens\"\npath = \"" + (folder / "data").string() +
           "\"\ncontext = 32\n[model]\nkind = \"gpt\"\nlayers = 2\ndim = 16\ncontext = 32\ndropout "
           "= "
           "0.1\n[model.attention]\nheads = 2\ndropout = 0.1\n"
           "[schedule]\nwarmup = 3\n[train]\nsteps = 24\nbatch = 24\nmicro_batch = 8\nema = "
           "0.9\nlog_every = "
           "1\neval_every = 6\neval_samples = 8\n"
           "save_every = 5\nkeep_last = 9\nsample_tokens = 20\nruns = \"" +
           (folder / "runs").string() + "\"\n";
  }

  static std::string program() {
    const char* other = std::getenv("FOVEA_PROGRAM");  // of the same build
    return other != nullptr ? other : FOVEA_PROGRAM;
  }
  pid_t start(const std::vector<std::string>& arguments, rlim_t file_bytes = RLIM_INFINITY) const {
    std::vector<std::string> words = launcher;
    words.push_back(program());
    words.insert(words.end(), arguments.begin(), arguments.end());
    return start_words(std::move(words), file_bytes);
  }
  pid_t start_words(std::vector<std::string> words, rlim_t file_bytes = RLIM_INFINITY) const {
    const pid_t child = fork();
    if (child != 0) return child;
    if (file_bytes != RLIM_INFINITY) {
      const rlimit limit{file_bytes, file_bytes};
      setrlimit(RLIMIT_FSIZE, &limit);
    }
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    if (freopen((folder / "out").c_str(), "w", stdout) == nullptr ||
        freopen((folder / "error").c_str(), "w", stderr) == nullptr)
      _exit(126);
    execv(argv[0], argv.data());
    _exit(127);
  }
  Result finish(pid_t child) const {
    int status = 0;
    waitpid(child, &status, 0);
    return {WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status),
            read_file(folder / "out"), read_file(folder / "error")};
  }
  Result run(const std::vector<std::string>& arguments, rlim_t file_bytes = RLIM_INFINITY) const {
    return finish(start(arguments, file_bytes));
  }
  Result train(std::vector<std::string> flags = {}) const {
    flags.insert(flags.begin(), {"train", (folder / "tiny.toml").string()});
    return run(flags);
  }
  std::vector<fs::path> runs() const {
    std::vector<fs::path> found;
    if (fs::exists(folder / "runs")) {
      for (const auto& entry : fs::directory_iterator(folder / "runs"))
        found.push_back(entry.path());
    }
    std::sort(found.begin(), found.end());
    return found;
  }
  static std::map<int64_t, double> losses(const fs::path& run) {
    std::map<int64_t, double> by_step;
    for (const Metrics& m : read_metrics(run / "metrics.jsonl")) {
      if (m.split != "train") continue;
      EXPECT_TRUE(by_step.emplace(m.step, m.value("loss")).second) << "step " << m.step << " twice";
    }
    return by_step;
  }
  static fs::path checkpoint(const fs::path& run, const std::string& step) {
    return run / "checkpoints" / ("step_000000" + step + ".h5");
  }

  fs::path folder;
  std::vector<std::string> launcher;  // what starts the program: mpirun and its flags, or nothing
};

#define EXPECT_LINE(text, part) \
  EXPECT_NE((text).find(part), std::string::npos) << "expected \"" << (part) << "\" in: " << (text)

}  // namespace fovea::train
