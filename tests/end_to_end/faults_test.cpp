// SPDX-License-Identifier: Apache-2.0
// Hostile use of the program: whatever is asked, one line says what is wrong, the exit code is not
// zero, and what was on the disk is still there.
#include "core/io/hdf5.h"
#include "core/testing/devices.h"
#include "data/source.h"
#include "tests/end_to_end/program.h"

namespace fovea::train {
namespace {

using Words = std::vector<std::string>;

class Faults : public EndToEnd {
 protected:
  // Everything below the folder: names, and bytes of files.
  std::map<std::string, std::string> contents() const {
    std::map<std::string, std::string> all;
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
      const std::string name = fs::relative(entry.path(), folder).string();
      if (name != "out" && name != "error")
        all[name] = entry.is_regular_file() ? read_file(entry.path()) : "folder";
    }
    return all;
  }
  // Exit code `status`, one line on stderr with `part` in it, and nothing changed.
  void expect_refused(const Words& arguments, int status, const std::string& part,
                      rlim_t file_bytes = RLIM_INFINITY) const {
    const auto before = contents();
    const Result r = run(arguments, file_bytes);
    std::string asked;
    for (const std::string& argument : arguments) asked += ' ' + argument;
    EXPECT_EQ(r.status, status) << asked << '\n' << r.error;
    EXPECT_LINE(r.error, part);
    EXPECT_TRUE(r.error.starts_with("fovea: ")) << r.error;
    EXPECT_EQ(std::count(r.error.begin(), r.error.end(), '\n'), 1) << r.error;
    EXPECT_TRUE(contents() == before) << asked;
  }
  std::string at(const std::string& name) const { return (folder / name).string(); }
};

TEST_F(Faults, UnknownVerbsFlagsAndValuesAreNamed) {
  const std::string toml = at("tiny.toml"), text = at("text.txt"),
                    golden = "tests/golden/softmax_attention__full.h5";
  for (const auto& [arguments, part] : std::vector<std::pair<Words, std::string>>{
           {{}, "A subcommand is required"},
           {{""}, "unknown verb \"\""},
           {{"trian"},
            "unknown verb \"trian\"; expected one of train resume eval sample report data op bench "
            "plan doctor; did you "
            "mean train?"},
           {{"data", "prepar", text},
            "unknown verb \"data prepar\"; expected one of prepare inspect; did you mean prepare?"},
           {{"op", "chek"},
            "unknown verb \"op chek\"; expected one of list check run; did you mean check?"},
           {{"bench", "gem"},
            "unknown verb \"bench gem\"; expected one of gemm memory attention step comm; did you "
            "mean "
            "gemm?"},
           {{"train"}, "CONFIG is required; see fovea train --help"},
           {{"train", ""}, "the name of the file is empty"},
           {{"train", at("none.toml")}, "none.toml: cannot be read: No such file"},
           {{"train", at("data")}, "is a folder, expected a TOML file"},
           {{"train", toml, "extra"}, "expected a flag --key=value, found \"extra\""},
           {{"train", toml, "-x"}, "found \"-x\""},
           {{"train", toml, "--train.steps"}, "train.steps: expected an integer, found true"},
           {{"train", toml, "--train.steps="}, "train.steps: expected an integer, found \"\""},
           {{"train", toml, "--train.steps=3", "--train.steps=4"}, "--train.steps: given twice"},
           {{"train", toml, "--train.steps=99999999999999999999"}, "expected an integer"},
           {{"train", toml, "--train.batch=9223372036854775807"},
            "train.batch: expected from 1 to 16777216, found 9223372036854775807"},
           {{"train", toml, "--model.layers=-1"},
            "model.layers: expected from 1 to 4096, found -1"},
           {{"train", toml, "--optimizer.lr=inf"},
            "optimizer.lr: expected a finite number, found inf"},
           {{"train", toml, "--optimizer.lr=nan"}, "optimizer.lr: expected above 0, found nan"},
           {{"train", toml, "--train.device=tpu"}, "train.device: expected one of cpu"},
           {{"train", toml, "--name=../up"}, "name: expected the name of a folder"},
           {{"resume"}, "RUN is required"},
           {{"resume", at("data"), "again"}, "expected a flag --key=value, found \"again\""},
           {{"resume", at("data"), "--train.lr=1"}, "resume: --train.lr not expected"},
           {{"eval", at("data"), "--samples", "-5"},
            "--samples: expected an integer from 0 to 9223372036854775807, found \"-5\""},
           {{"sample", at("data"), "--tokens", "0"}, "--tokens: expected an integer from 1"},
           {{"sample", at("data"), "--temperature", "nan"},
            "--temperature: expected a number from 0"},
           {{"sample", at("data"), "--top-p", "0"}, "--top-p: expected a number"},
           {{"sample", at("data"), "--seed", "-1"}, "--seed: expected an integer from 0"},
           {{"data", "prepare"}, "SOURCE is required"},
           {{"data", "prepare", text, "--val-fraction", "nan"},
            "--val-fraction: expected a number"},
           {{"data", "prepare", text, "--vocab-size", "12"},
            "--vocab-size: expected an integer from 256"},
           {{"data", "prepare", text, "--vocab-size", "300"},
            "--vocab-size is for --tokenizer bpe"},
           {{"data", "prepare", "fashion-mnist", "--tokenizer", "bpe"}, "--tokenizer is for text"},
           {{"data", "inspect", at("data"), "--data.contxt=3"},
            "unknown key data.contxt; did you mean data.context?"},
           {{"op", "check", golden, "--dtype", "f16"}, "--dtype: f16 not in {f64,f32,bf16}"},
           {{"op", "run", golden}, "--out is required"},
           {{"bench", "attention", "--mask", "full"}, "--mask is of attention over ranks"},
           {{"bench", "attention", "--ranks", "2", "--causal", "1"}, "--mask, not --causal"},
           {{"bench", "attention", "--ranks", "2", "--mask", "casual"}, "--mask: casual not in"},
           {{"plan"}, "CONFIG is required"},
           {{"plan", toml, "--model.dimm=3"}, "unknown key model.dimm; did you mean model.dim?"},
           {{"plan", toml, "--devices", "0"}, "--devices: expected an integer from 1 to 65536"},
           {{"plan", toml, "--latency", "5"},
            "--latency is \"5\"; expected a positive number of s, as in 5us"},
           {{"plan", toml, "--memory", "-1GiB"}, "--memory is \"-1GiB\""},
           {{"plan", toml, "--mixer", "delta"}, "--mixer: delta not in {config,linear}"},
           {{"bench", "step", "--heads", "0"}, "--heads: expected an integer from 1"},
           {{"bench", "gemm", "--seconds", "nan"}, "--seconds: expected a number from 0"}}) {
    expect_refused(arguments, 2, part);
  }
  for (const auto& [arguments, part] : std::vector<std::pair<Words, std::string>>{
           {{"resume", at("none")}, "none: no such folder"},
           {{"eval", at("data")}, "data: has no config.toml, so it is no run folder"},
           {{"report", at("data"), "--out", at("r.html")}, "has no config.toml"},
           {{"data", "prepare", at("none.txt")}, "none.txt: No such file"},
           {{"data", "prepare", at("data")}, "data: is not a regular file"},
           {{"data", "prepare", text, "--tokenizer", "wordz", "--out", at("new")},
            "\"wordz\"; expected bytes, characters, bpe, or a tokenizer file"},
           {{"data", "prepare", text, "--tokenizer", text, "--out", at("new")},
            "text.txt: is no JSON"},
           {{"data", "prepare", text, "--tokenizer", "bpe", "--vocab-size", "100000", "--out",
             at("new")},
            "no pair of the text stands twice; ask for at most"},
           {{"data", "prepare", text, "--out", text}, "cannot make the folder"},
           {{"data", "inspect", at("none")}, "none: no such folder or file"},
           {{"data", "inspect", text}, "a file that is no data set"},
           {{"data", "inspect", folder.string()}, "holds no .png, .jpg or .jpeg"},
           {{"op", "check", at("none.h5")}, "none.h5: no such file"},
           {{"op", "check", text}, "is no HDF5 file"},
           {{"op", "check", golden, "--device", "gpu"},
            "expected cpu, cuda, cuda:N or interpreted, found \"gpu\""},
           {{"op", "run", golden, "--out", text + "/x.h5"}, "text.txt/x.h5: Not a directory"},
           {{"plan", toml, "--memory", "1GiB", "--data.path=" + at("none")}, "none"},
           {{"plan", "experiments/vision/vit_cifar10.toml", "--vocab", "9"},
            "expected a model of kind \"gpt\", found \"vit\""},
           {{"plan", toml, "--flops", "1TFLOP/s", "--devices", "251", "--draw", at("x.svg")},
            "there is no mesh to draw"},
           {{"bench", "attention", "--ranks", "3", "--strategy", "usp"}, "usp makes groups of 2"},
           {{"bench", "attention", "--shapes", "axb"}, "shape \"axb\"; expected BxHxNxD"},
           {{"bench", "gemm", "--seconds", "0", "--json", text + "/x"}, "Not a directory"}}) {
    expect_refused(arguments, 1, part);
  }
}

TEST_F(Faults, WrongConfigFilesAreNamedByLine) {
  const std::string good = config();
  const auto expect = [&](const std::string& text, int line, const std::string& part) {
    replace_file(folder / "bad.toml", text);
    expect_refused({"train", at("bad.toml")}, 2,
                   "config " + at("bad.toml") + ':' + std::to_string(line) + part);
  };
  const auto with = [&](const std::string& old, const std::string& fresh) {
    std::string text = good;
    const size_t begin = text.find(old);
    EXPECT_NE(begin, std::string::npos) << old;
    text.replace(begin, old.size(), fresh);
    return text;
  };
  expect(with("batch = 24", "bacth = 24"), 19,
         ": unknown key train.bacth; did you mean train.batch?");
  expect(with("[schedule]", "[shedule]"), 15, ": unknown section shedule; did you mean schedule?");
  expect(with("heads = 2", "heads = \"two\""), 13,
         ": model.attention.heads: expected an integer, found \"two\"");
  expect(with("heads = 2", "heads = 0"), 13,
         ": model.attention.heads: expected at least 1, found 0");
  expect(with("kind = \"gpt\"", "kind = \"gtp\""), 7,
         ": model.kind: expected one of gpt vit, found \"gtp\"; did you mean gpt?");
  expect(with("kind = \"tokens\"", "kind = 3"), 3, ": data.kind: expected text in quotes, found 3");
  expect(with("ema = 0.9", "ema = 1.0"), 21, ": train.ema: expected from 0 to below 1, found 1");
  expect(with("dropout = 0.1", "dropout = nan"), 11,
         ": model.dropout: expected from 0 to 1, found nan");
  expect(with("[train]", "[[train]]"), 17, ": train is a section, found a list");
  expect(with("layers = 2", "layers = 2\nlayers = 3"), 9, ":");
  expect(good + "x = \n", 29, ":");
  expect("name = \"\xff\"\n", 1, ":");
}

TEST_F(Faults, HelpNamesEverythingAVerbCanDo) {
  const auto expect = [&](Words arguments, const Words& parts) {
    arguments.emplace_back("--help");
    const Result r = run(arguments);
    EXPECT_EQ(r.status, 0);
    for (const std::string& part : parts) EXPECT_LINE(r.out, part);
  };
  expect({}, {"train", "resume", "eval", "sample", "report", "data", "op", "bench", "plan",
              "doctor", "--version"});
  Words keys{"--name",
             "--model.kind",
             "--model.patch",
             "--model.attention.kind",
             "--optimizer.lr",
             "--schedule.kind",
             "--train.steps",
             "--train.runs",
             "--data.augment.mixup",
             "--data.pairs",
             "--data.group",
             "--data.needles",
             "--data.val_fraction"};
  for (const std::string& kind : data::data_choice().kinds())
    keys.push_back(kind == "tokens" ? "--data.context" : "--data.kind=" + kind);
  expect({"train"}, keys);
  expect({"resume"}, {"RUN"});
  expect({"eval"}, {"RUN", "--checkpoint", "best, last, or a file", "--samples"});
  expect({"sample"}, {"RUN", "--prompt", "--tokens", "--temperature", "--top-k", "--top-p",
                      "--seed", "--checkpoint"});
  expect({"report"}, {"RUN", "--out"});
  expect({"data"}, {"prepare", "inspect"});
  expect({"data", "prepare"},
         {"kjv", "fashion-mnist", "text file", "--out", "--tokenizer", "bytes", "characters", "bpe",
          "tokenizer.json", "encoder.json", "vocab.bpe", "merges.txt", ".tiktoken", "r50k_base",
          "o200k_base", "--vocab-size", "--val-fraction"});
  expect({"data", "inspect"}, {"folder", ".h5", ".toml", "IDX", "CIFAR", "--data.kind=idx"});
  expect({"op"}, {"list", "check", "run"});
  expect({"op", "list"}, {"--json"});
  expect({"op", "check"}, {"FILE", "--dtype", "--device"});
  expect({"op", "run"}, {"FILE", "--out", "--dtype", "--device"});
  expect({"bench"}, {"gemm", "memory", "attention", "step"});
  expect({"bench", "attention"}, {"--shapes", "--causal", "--dtype", "--seconds", "--json"});
  expect({"bench", "step"}, {"--layers", "--heads", "--dim", "--context", "--vocab", "--batch",
                             "--dtype", "--seconds", "--json"});
}

TEST_F(Faults, AFullDiskLeavesNothingHalfWritten) {
  // Files of 600 bytes at most: too few for config.toml.
  const auto before = contents();
  Result r = run({"train", at("tiny.toml")}, 600);
  EXPECT_EQ(r.status, 1);
  EXPECT_LINE(r.error, "config.toml: File too large");
  EXPECT_EQ(std::count(r.error.begin(), r.error.end(), '\n'), 1) << r.error;
  EXPECT_TRUE(fs::is_empty(folder / "runs"));
  fs::remove(folder / "runs");
  EXPECT_TRUE(contents() == before);
  // A data set of another tokenizer over the one that is there.
  expect_refused({"data", "prepare", at("text.txt"), "--out", at("data"), "--tokenizer", "bytes"},
                 1, "train.bin: File too large", 4096);
  // A report: its pages are replaced together.
  ASSERT_EQ(train({"--train.steps=2"}).status, 0);
  expect_refused({"report", runs().at(0).string()}, 1, "File too large", 2048);
  // A folder that is none, and one that cannot be made.
  expect_refused({"report", runs().at(0).string(), "--out", at("data")}, 1,
                 "data is a folder; expected the name of a file");
  expect_refused({"train", at("tiny.toml"), "--train.runs=" + at("text.txt")}, 1,
                 "cannot make the folder");
}

TEST_F(Faults, KilledAgainAndAgainARunStillEndsWithTheSameBits) {
  ASSERT_EQ(train().status, 0);
  const auto expected = losses(runs().at(0));
  const std::string sample = read_file(runs().at(0) / "sample.txt");
  fs::remove_all(folder / "runs");
  pid_t child = start({"train", at("tiny.toml"), "--train.save_every=2"});
  for (int i = 0; i < 6000 && (runs().empty() || !fs::exists(checkpoint(runs().at(0), "02"))); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  int kills = 0;
  // Each sitting lives a little longer than the one before, so that every moment of a run is hit:
  // start, steps, checkpoints.
  for (int milliseconds = 0; milliseconds < 1600; milliseconds += 100) {
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
    kill(child, SIGKILL);
    const int status = finish(child).status;
    if (status == 0) break;
    ASSERT_EQ(status, 128 + SIGKILL) << read_file(folder / "error");
    ++kills;
    child = start({"resume", runs().at(0).string()});
  }
  const Result last = finish(child);
  EXPECT_GE(kills, 3);
  ASSERT_EQ(run({"resume", runs().at(0).string()}).status, 0) << last.error;
  EXPECT_EQ(losses(runs().at(0)), expected);
  EXPECT_EQ(read_file(runs().at(0) / "sample.txt"), sample);
}

TEST_F(Faults, ASampleThatCannotBeReadCostsNoStepBeforeIt) {
  // One of 64 sequences holds an id outside the vocabulary; it is met in the middle of the first
  // epoch.
  std::vector<int64_t> ids(64 * 9, 1);
  ids[40 * 9 + 4] = 77;
  const Tensor tokens = Tensor::from(ids, {64, 9});
  Hdf5Writer file;
  file.write("train/tokens", tokens);
  file.write("val/tokens", tokens.slice(0, 0, 8));
  file.attribute("/", "vocab_size", "5");
  file.save(folder / "set.h5");
  const Words flags{"--data.kind=hdf5",    "--data.path=" + at("set.h5"),
                    "--train.batch=2",     "--train.micro_batch=0",
                    "--train.steps=32",    "--train.save_every=0",
                    "--train.eval_every=0"};
  std::string toml = config();
  toml.erase(toml.find("context = 32\n"), 13);  // of [data]: the file knows
  replace_file(folder / "tiny.toml", toml);
  Words arguments{"train", at("tiny.toml")};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  const Result r = run(arguments);
  EXPECT_EQ(r.status, 1);
  EXPECT_LINE(r.error, "train/tokens row 40 holds id 77 at 4, outside the vocabulary of 5");
  EXPECT_EQ(std::count(r.error.begin(), r.error.end(), '\n'), 1) << r.error;
  ASSERT_EQ(runs().size(), 1u);
  const auto steps = losses(runs().at(0));
  ASSERT_GT(steps.size(), 0u);
  ASSERT_LT(steps.size(), 32u);
  const int64_t last = steps.rbegin()->first;
  EXPECT_TRUE(fs::exists(checkpoint(runs().at(0), (last < 10 ? "0" : "") + std::to_string(last))));
  // Once the file is whole again, the run goes on from there.
  ids[40 * 9 + 4] = 1;
  Hdf5Writer whole;
  whole.write("train/tokens", Tensor::from(ids, {64, 9}));
  whole.write("val/tokens", tokens.slice(0, 0, 8));
  whole.attribute("/", "vocab_size", "5");
  whole.save(folder / "set.h5");
  const Result resumed = run({"resume", runs().at(0).string()});
  EXPECT_EQ(resumed.status, 0) << resumed.error;
  EXPECT_LINE(resumed.out, "from step " + std::to_string(last));
}

TEST_F(Faults, HeldOutDataThatTheModelCannotTakeAreRefusedAtTheStart) {
  const auto images = [&](const std::string& split, char side, char label) {
    replace_file(folder / (split + "-images-idx3-ubyte"),
                 std::string("\0\0\x08\x03\0\0\0\4\0\0\0", 11) + side + std::string("\0\0\0", 3) +
                     side + std::string(static_cast<size_t>(4 * side * side), 'x'));
    replace_file(folder / (split + "-labels-idx1-ubyte"),
                 std::string("\0\0\x08\x01\0\0\0\4\0\1\2", 11) + label);
  };
  replace_file(folder / "vit.toml", "[data]\nkind = \"idx\"\npath = \"" + folder.string() +
                                        "\"\n[model]\nkind = \"vit\"\nlayers = 1\ndim = 16\npatch "
                                        "= 2\n[model.attention]\nheads = 2\n"
                                        "[train]\nsteps = 2\nbatch = 2\nruns = \"" +
                                        at("runs") + "\"\n");
  images("train", 8, 3);
  images("t10k", 6, 3);
  expect_refused({"train", at("vit.toml")}, 1,
                 "held-out images are 1 x 6 x 6, but training images are 1 x 8 x 8");
  images("t10k", 8, 12);
  expect_refused({"train", at("vit.toml")}, 1,
                 "held-out labels go up to 12, but training has 10 classes");
  images("t10k", 8, 3);
  EXPECT_EQ(run({"train", at("vit.toml")}).status, 0);
}

TEST_F(Faults, AnyTruncationOfACheckpointFallsBackToTheOneBefore) {
  ASSERT_EQ(train({"--train.steps=10", "--train.eval_every=0"}).status, 0);
  const fs::path only = runs().at(0);
  fs::remove(only / "checkpoints" / "best.h5");
  const std::string whole = read_file(checkpoint(only, "10"));
  for (const size_t keep :
       {size_t{0}, size_t{1}, size_t{8}, size_t{100}, whole.size() / 3, whole.size() - 13}) {
    replace_file(checkpoint(only, "10"), whole.substr(0, keep));
    const Result r = run({"eval", only.string(), "--samples", "1"});
    EXPECT_EQ(r.status, 0) << keep << r.error;
    EXPECT_LINE(r.out, "step 5:");
  }
  std::string damaged = whole;
  damaged[whole.size() / 2] = static_cast<char>(damaged[whole.size() / 2] ^ 1);
  replace_file(checkpoint(only, "10"), damaged);
  EXPECT_LINE(run({"eval", only.string(), "--samples", "1"}).out, "step 5:");
  replace_file(checkpoint(only, "05"), damaged);
  const Result r = run({"resume", only.string()});
  EXPECT_EQ(r.status, 1);
  EXPECT_LINE(r.error, "has no checkpoint to go on from: hdf5");
  EXPECT_EQ(std::count(r.error.begin(), r.error.end(), '\n'), 1) << r.error;
  // Damaged metrics are named by line.
  replace_file(checkpoint(only, "10"), whole);
  replace_file(only / "config.toml", [&] {
    std::string text = read_file(only / "config.toml");
    return text.replace(text.find("steps = 10"), 10, "steps = 12");
  }());
  replace_file(
      only / "metrics.jsonl",
      "{\"step\": 1, \"tokens\": 2, \"time_s\": 1, \"split\": \"train\", \"loss\": 1}\nnoise\n");
  const Result metrics = run({"resume", only.string()});
  EXPECT_EQ(metrics.status, 1);
  EXPECT_LINE(metrics.error, "metrics.jsonl:2: ");
}

// A step that does not fit ends in one line that says what fills the device and what would help;
// the run goes on where there is room.
TEST_F(Faults, OutOfMemoryIsOneLineAndTheRunGoesOn) {
  for (const Device device : devices_to_test()) {
    fs::remove_all(folder / "runs");
    const std::string name = concat(device);
    const Result whole = train({"--device=" + name, "--train.steps=4", "--train.batch=8",
                                "--train.micro_batch=4", "--train.save_every=2"});
    ASSERT_EQ(whole.status, 0) << whole.error;
    const fs::path only = runs().at(0);
    const std::map<int64_t, double> expected = losses(only);
    double peak = 0.0;
    for (const Metrics& m : read_metrics(only / "metrics.jsonl"))
      if (m.split == "train") peak = std::max(peak, m.value("memory_bytes"));
    fs::remove(checkpoint(only, "04"));  // as if it had ended at step 2
    const std::string before = read_file(checkpoint(only, "02"));

    const std::string limit = std::to_string(static_cast<int64_t>(0.75 * peak));
    setenv("FOVEA_MEMORY_LIMIT", limit.c_str(), 1);
    const Result full = run({"resume", only.string()});
    unsetenv("FOVEA_MEMORY_LIMIT");
    EXPECT_EQ(full.status, 1) << full.out;
    EXPECT_TRUE(full.error.starts_with("fovea: train: out of memory on " + name + ": wanted "))
        << full.error;
    for (const char* part :
         {"largest live: ", "optimizer state ", "lower train.micro_batch (now 4)",
          "lower data.context (now 32)", "turn on model.recompute"})
      EXPECT_LINE(full.error, part);
    EXPECT_EQ(std::count(full.error.begin(), full.error.end(), '\n'), 1) << full.error;
    EXPECT_TRUE(read_file(checkpoint(only, "02")) == before);

    EXPECT_EQ(run({"resume", only.string()}).status, 0);
    EXPECT_EQ(losses(only), expected);
  }
  setenv("FOVEA_MEMORY_LIMIT", "much", 1);
  EXPECT_LINE(train().error, "FOVEA_MEMORY_LIMIT: expected a size such as 64MiB or 1.5GiB");
  unsetenv("FOVEA_MEMORY_LIMIT");
}

}  // namespace
}  // namespace fovea::train
