// SPDX-License-Identifier: Apache-2.0
// The program as its user runs it: train, stop, damage, resume, evaluate, sample. Every run is a
// few steps of a tiny model.
#include <algorithm>

#include "core/device.h"
#include "tests/end_to_end/program.h"

namespace fovea::train {
namespace {

TEST_F(EndToEnd, ResumingGivesTheBitsOfARunThatNeverStopped) {
  const Result whole = train();
  ASSERT_EQ(whole.status, 0) << whole.error;
  const fs::path run_folder = runs().at(0);
  const auto expected = losses(run_folder);
  ASSERT_EQ(expected.size(), 24u);
  for (const char* file :
       {"config.toml", "report.html", "curves.svg", "curves.png", "curves.csv", "sample.txt"})
    EXPECT_TRUE(fs::exists(run_folder / file)) << file;

  // Back to steps 5, 10 (in the middle of epochs) and 15, on another number of threads.
  for (const std::string from : {"05", "10", "15"}) {
    const fs::path copy = folder / ("copy" + from);
    fs::copy(run_folder, copy, fs::copy_options::recursive);
    for (const std::string later : {"10", "15", "20", "24"}) {
      if (later > from) fs::remove(checkpoint(copy, later));
    }
    const Result resumed = run({"resume", copy.string()});
    ASSERT_EQ(resumed.status, 0) << resumed.error;
    EXPECT_LINE(resumed.out, "from step " + std::to_string(std::stoi(from)));
    EXPECT_EQ(losses(copy), expected) << "from step " << from;
    EXPECT_EQ(read_file(copy / "sample.txt"), read_file(run_folder / "sample.txt"));
  }
  EXPECT_LINE(run({"resume", run_folder.string()}).out, "all 24 steps are done");
  // Killed after the last step, before its pages were written.
  const std::string sample = read_file(run_folder / "sample.txt");
  fs::remove(run_folder / "sample.txt");
  fs::remove(run_folder / "report.html");
  EXPECT_LINE(run({"resume", run_folder.string()}).out, "all 24 steps are done");
  EXPECT_EQ(read_file(run_folder / "sample.txt"), sample);
  EXPECT_TRUE(fs::exists(run_folder / "report.html"));
}

TEST_F(EndToEnd, AKilledRunGoesOnFromItsLastGoodCheckpoint) {
  ASSERT_EQ(train().status, 0);
  const auto expected = losses(runs().at(0));
  fs::remove_all(folder / "runs");

  const pid_t child = start({"train", (folder / "tiny.toml").string(), "--train.steps=24"});
  for (int i = 0; i < 3000 && (runs().empty() || !fs::exists(checkpoint(runs().at(0), "05"))); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  kill(child, SIGKILL);
  EXPECT_EQ(finish(child).status, 128 + SIGKILL);
  const fs::path killed = runs().at(0);
  // The newest checkpoint is cut short as well, and half a metrics line stands at the end.
  const std::string good = read_file(checkpoint(killed, "05"));
  for (const auto& entry : fs::directory_iterator(killed / "checkpoints")) {
    if (entry.path() != checkpoint(killed, "05")) fs::remove(entry.path());
  }
  replace_file(checkpoint(killed, "10"), good.substr(0, good.size() / 2));
  std::ofstream(killed / "metrics.jsonl", std::ios::app) << "{\"step\": 7, \"tok";
  const Result resumed = run({"resume", killed.string()});
  ASSERT_EQ(resumed.status, 0) << resumed.error;
  EXPECT_LINE(resumed.error, "passing over hdf5");
  EXPECT_LINE(resumed.out, "from step 5");
  EXPECT_EQ(losses(killed), expected);
}

TEST_F(EndToEnd, ASignalSavesAndEnds) {
  const pid_t child = start(
      {"train", (folder / "tiny.toml").string(), "--train.steps=100000", "--train.save_every=0"});
  for (int i = 0; i < 3000 && (runs().empty() || !fs::exists(runs().at(0) / "metrics.jsonl") ||
                               read_file(runs().at(0) / "metrics.jsonl").size() < 2000);
       ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  kill(child, SIGTERM);
  const Result stopped = finish(child);
  EXPECT_EQ(stopped.status, 128 + SIGTERM) << stopped.error;
  EXPECT_LINE(stopped.out, "go on with: fovea resume");
  int saved = 0;
  for (const auto& entry : fs::directory_iterator(runs().at(0) / "checkpoints"))
    saved += entry.path().filename().string().starts_with("step_") ? 1 : 0;
  EXPECT_EQ(saved, 1);
}

TEST_F(EndToEnd, AFullDiskLeavesThePreviousCheckpoint) {
  ASSERT_EQ(train({"--train.steps=5"}).status, 0);
  const fs::path small = runs().at(0);
  const std::string before = read_file(checkpoint(small, "05"));
  // Rewrite the config for more steps, then allow files of 20 KiB only.
  std::string toml = read_file(small / "config.toml");
  const size_t at = toml.find("steps = 5");
  ASSERT_NE(at, std::string::npos);
  replace_file(small / "config.toml", toml.replace(at, 9, "steps = 10"));
  const Result full = run({"resume", small.string()}, 20 << 10);
  EXPECT_EQ(full.status, 1);
  EXPECT_LINE(full.error, "File too large");
  EXPECT_EQ(std::count(full.error.begin(), full.error.end(), '\n'), 1) << full.error;
  EXPECT_EQ(read_file(checkpoint(small, "05")), before);
  for (const auto& entry : fs::directory_iterator(small / "checkpoints"))
    EXPECT_EQ(entry.path().string().find(".writing."), std::string::npos);
  EXPECT_EQ(run({"resume", small.string()}).status, 0);
}

TEST_F(EndToEnd, ForeignAndDamagedCheckpointsAreRefused) {
  ASSERT_EQ(train({"--train.steps=5", "--train.eval_every=0"}).status, 0);
  const fs::path only = runs().at(0);
  for (const auto& entry : fs::directory_iterator(only / "checkpoints")) fs::remove(entry.path());
  Result r = run({"resume", only.string()});
  EXPECT_EQ(r.status, 1);
  EXPECT_LINE(r.error, "none was saved yet");
  fs::copy("tests/golden/softmax_attention__full.h5", checkpoint(only, "05"));
  r = run({"eval", only.string()});
  EXPECT_EQ(r.status, 1);
  EXPECT_LINE(r.error, "no checkpoint of this program");
  replace_file(checkpoint(only, "05"), "not a checkpoint at all");
  r = run({"sample", only.string()});
  EXPECT_EQ(r.status, 1);
  EXPECT_LINE(r.error, "is no HDF5 file");
  // Another model's weights.
  fs::remove_all(folder / "runs");
  ASSERT_EQ(train({"--train.steps=5"}).status, 0);
  const fs::path first = runs().at(0);
  std::string toml = read_file(first / "config.toml");
  toml.replace(toml.find("dim = 16"), 8, "dim = 32");
  replace_file(first / "config.toml", toml);
  r = run({"resume", first.string()});
  EXPECT_EQ(r.status, 1);
  EXPECT_LINE(r.error, "but the model needs");
  toml.replace(toml.find("dim = 32"), 8, "dim = 16");
  toml.replace(toml.find("kind = \"adamw\""), 14, "kind = \"lion\"");
  replace_file(first / "config.toml", toml);
  r = run({"resume", first.string()});
  EXPECT_EQ(r.status, 1);
  EXPECT_LINE(r.error, "holds the state of optimizer adamw, but the config says lion");
}

TEST_F(EndToEnd, EvaluationAndSamplesRepeat) {
  const Result trained = train();
  ASSERT_EQ(trained.status, 0);
  const std::string folder_name = runs().at(0).string();
  const Result last = run({"eval", folder_name, "--checkpoint", "last"});
  const std::string line = trained.out.substr(trained.out.rfind("held-out loss"));
  EXPECT_LINE(last.out, line.substr(0, line.find(" nats")));
  const std::vector<std::string> ask{"sample",   folder_name, "--prompt",      "The ",
                                     "--tokens", "50",        "--top-k",       "5",
                                     "--top-p",  "0.9",       "--temperature", "0.7"};
  const Result a = run(ask), b = run(ask);
  EXPECT_EQ(a.status, 0) << a.error;
  EXPECT_EQ(a.out, b.out);
  EXPECT_EQ(a.out.substr(0, 4), "The ");
  EXPECT_GE(a.out.size(), 54u);
  EXPECT_LINE(run({"sample", folder_name, "--prompt", "\xc3\xa9"}).error, "is not among the");
  EXPECT_LINE(run({"sample", folder_name, "--temperature", "-1"}).error,
              "--temperature: expected a number from 0");
  EXPECT_EQ(
      run({"report", folder_name, folder_name, "--out", (folder / "both.html").string()}).status,
      0);
  EXPECT_LINE(read_file(folder / "both.html"), "2 runs");
}

// The kernels of a card, without one.
TEST_F(EndToEnd, TheInterpretedDeviceTrainsResumesAndSamples) {
  const std::vector<Device> devices = devices_of_build();
  if (std::none_of(devices.begin(), devices.end(),
                   [](Device d) { return d.kind == Device::Kind::interpreted; })) {
    EXPECT_LINE(train({"--device=interpreted"}).error, "expected one of cpu");
    return;
  }
  const Result trained = train({"--device=interpreted", "--precision=bf16", "--train.steps=4",
                                "--train.batch=2", "--train.micro_batch=0", "--train.eval_every=0",
                                "--train.save_every=2", "--train.sample_tokens=3"});
  ASSERT_EQ(trained.status, 0) << trained.error;
  const fs::path run_folder = runs().at(0);
  const auto expected = losses(run_folder);
  ASSERT_EQ(expected.size(), 4u);
  fs::remove(checkpoint(run_folder, "04"));
  ASSERT_EQ(run({"resume", run_folder.string()}).status, 0);
  EXPECT_EQ(losses(run_folder), expected);
  EXPECT_EQ(run({"sample", run_folder.string(), "--prompt", "The ", "--tokens", "3"}).status, 0);
  const std::string golden = "tests/golden/softmax_attention__causal.h5";
  for (const std::string dtype : {"f32", "bf16"})
    EXPECT_EQ(run({"op", "check", golden, "--device", "interpreted", "--dtype", dtype}).status, 0);
  EXPECT_LINE(run({"op", "check", golden, "--device", "interpreted", "--dtype", "f64"}).error,
              "f64 is for the cpu");
  EXPECT_LINE(run({"bench", "memory", "--device", "interpreted", "--seconds", "0"}).out,
              "LayerNorm backward");
  EXPECT_LINE(run({"bench", "attention", "--device", "interpreted", "--shapes", "1x2x40x32",
                   "--seconds", "0"})
                  .out,
              "forward + backward");
  setenv("CUDA_VISIBLE_DEVICES", "4,5", 1);
  const Result doctor = run({"doctor"});
  unsetenv("CUDA_VISIBLE_DEVICES");
  EXPECT_LINE(doctor.out, "interpreted: ");
  EXPECT_LINE(doctor.out, "local ranks 0 to 1 take cards 4, 5; more of them share these");
  EXPECT_LINE(doctor.out, "\n  NCCL ");
}

TEST_F(EndToEnd, WrongConfigsEndWithTwoAndCreateNothing) {
  for (const auto& [flag, part] : std::vector<std::pair<std::string, std::string>>{
           {"--train.stepz=3", "did you mean train.steps"},
           {"--model.attention.kind=sofmax", "softmax_attention"},
           {"--train.batch=0", "from 1 to"},
           {"--train.ema=2", "train.ema"},
           {"--optimizer.lr=fast", "optimizer.lr"}}) {
    const Result r = train({flag});
    EXPECT_EQ(r.status, 2) << flag;
    EXPECT_LINE(r.error, part);
    EXPECT_EQ(std::count(r.error.begin(), r.error.end(), '\n'), 1) << r.error;
  }
  for (const auto& [flag, part] : std::vector<std::pair<std::string, std::string>>{
           {"--model.attention.heads=3", "3 heads do not divide 16 channels"},
           {"--model.context=16", "shorter than the data's sequences of 32"},
           {"--data.path=/nowhere", "/nowhere"},
           {"--train.micro_batch=7", "7 does not divide batch 24"},
           {"--model.kind=vit", "learns from images"},
           {"--data.vocab_size=3", "outside the vocabulary of 3"}}) {
    const Result r = train({flag});
    EXPECT_NE(r.status, 0) << flag;
    EXPECT_LINE(r.error, part);
    EXPECT_TRUE(runs().empty()) << flag;
  }
  const Result missing = run({"train", (folder / "absent.toml").string()});
  EXPECT_EQ(missing.status, 2);
  EXPECT_LINE(missing.error, "absent.toml");
  EXPECT_EQ(run({"trian"}).status, 2);
  EXPECT_EQ(run({"op", "check", (folder / "text.txt").string()}).status, 1);
}

TEST_F(EndToEnd, ANonFiniteLossStopsTheRunAndNamesATensor) {
  const Result r = train({"--optimizer.lr=1e30", "--optimizer.kind=sgd", "--train.clip=0",
                          "--optimizer.weight_decay=0"});
  EXPECT_EQ(r.status, 1);
  EXPECT_LINE(r.error, "first bad tensor: ");
}

TEST_F(EndToEnd, AVitTrainsOnImagesAndRefusesPatchesThatDoNotFit) {
  const auto idx = [](const std::vector<unsigned>& sizes,
                      const std::function<char(size_t)>& value) {
    std::string out{'\0', '\0', '\x08', static_cast<char>(sizes.size())};
    size_t count = 1;
    for (const unsigned size : sizes) {
      out += std::string("\0\0\0", 3) + static_cast<char>(size);
      count *= size;
    }
    for (size_t i = 0; i < count; ++i) out += value(i);
    return out;
  };
  for (const std::string split : {"train", "t10k"}) {  // the class is the bright half
    replace_file(folder / (split + "-images-idx3-ubyte"), idx({64, 8, 8}, [](size_t i) {
                   return static_cast<char>((i / 32 % 2) == (i / 64 % 2) ? 200 : 10);
                 }));
    replace_file(folder / (split + "-labels-idx1-ubyte"),
                 idx({64}, [](size_t i) { return static_cast<char>(i % 2); }));
  }
  replace_file(folder / "vit.toml",
               "[data]\nkind = \"idx\"\npath = \"" + folder.string() +
                   "\"\n[model]\nkind = \"vit\"\nlayers = 1\ndim = 16\npatch = "
                   "4\n[model.attention]\nheads = 2\n"
                   "[train]\nsteps = 40\nbatch = 16\nprecision = \"bf16\"\nruns = \"" +
                   (folder / "runs").string() + "\"\n");
  const Result r = run({"train", (folder / "vit.toml").string()});
  EXPECT_EQ(r.status, 0) << r.error;
  EXPECT_LINE(r.out, "accuracy 100 %");
  const Result bad = run({"train", (folder / "vit.toml").string(), "--model.patch=3"});
  EXPECT_EQ(bad.status, 1);
  EXPECT_LINE(bad.error, "patches of 3 x 3 pixels do not divide images of 8 x 8");
}

}  // namespace
}  // namespace fovea::train
