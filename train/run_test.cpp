// SPDX-License-Identifier: Apache-2.0
// What a run leaves on disk: metrics, events, checkpoints, plots, reports.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <sstream>

#include "core/error.h"
#include "core/io/file.h"
#include "train/checkpoint.h"
#include "train/metrics.h"
#include "train/progress.h"
#include "train/report/plot.h"
#include "train/report/report.h"
#include "train/run_folder.h"
#include "train/tensorboard.h"

namespace fovea::train {
namespace {

class Run : public testing::Test {
 protected:
  void SetUp() override {
    folder =
        std::filesystem::temp_directory_path() / ("fovea_run_test." + std::to_string(getpid()));
    std::filesystem::create_directories(folder);
  }
  void TearDown() override { std::filesystem::remove_all(folder); }
  std::filesystem::path folder;
};

TEST_F(Run, MetricsComeBackExactlyAndLaterStepsAreDropped) {
  const double third = 1.0 / 3.0;
  {
    MetricsWriter writer(folder, 0);
    for (int64_t step = 1; step <= 4; ++step)
      writer.write(
          {step, 10 * step, third, "train", {{"loss", third / static_cast<double>(step)}}});
    writer.write({4,
                  40,
                  1.0,
                  "val",
                  {{"loss", std::numeric_limits<double>::quiet_NaN()},
                   {"top", -std::numeric_limits<double>::infinity()}}});
  }
  std::ofstream(folder / "metrics.jsonl", std::ios::app) << "{\"step\": 5, \"to";
  std::vector<Metrics> all = read_metrics(folder / "metrics.jsonl");
  ASSERT_EQ(all.size(), 5u);
  EXPECT_EQ(all[2].value("loss"), third / 3.0);
  EXPECT_TRUE(std::isnan(all[4].value("loss")));
  EXPECT_EQ(all[4].value("top"), -std::numeric_limits<double>::infinity());
  {
    MetricsWriter resumed(folder, 2);
    resumed.write({3, 30, 0.5, "train", {{"loss", 7.0}}});
  }
  all = read_metrics(folder / "metrics.jsonl");
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[1].value("loss"), third / 2.0);
  EXPECT_EQ(all[2].value("loss"), 7.0);
  replace_file(folder / "metrics.jsonl",
               "{\"step\": 1, \"tokens\": 1, \"time_s\": 0, \"split\": \"train\"}\nrubbish\n");
  try {
    read_metrics(folder / "metrics.jsonl");
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("metrics.jsonl:2:"), std::string::npos) << e.what();
  }
}

TEST_F(Run, MetricsOfAnotherShapeAreNamedByLine) {
  const std::string good =
      R"({"step": 1, "tokens": 2, "time_s": 0.5, "split": "train", "loss": "inf"})";
  for (const auto& [line, part] : std::vector<std::pair<std::string, std::string>>{
           {"", "parse error"},
           {"[]", "expected an object"},
           {"\xff", "parse error"},
           {R"({"step": 1})", "'tokens' not found"},
           {R"({"step": 1e300, "tokens": 2, "time_s": 1, "split": "train"})",
            "step is 1e+300; expected an integer"},
           {R"({"step": 99999999999999999999, "tokens": 2, "time_s": 1, "split": "train"})",
            "step is 1e+20; expected an integer"},
           {R"({"step": 1, "tokens": -2, "time_s": 1, "split": "train"})",
            "tokens is -2; expected an integer of 0 or more"},
           {R"({"step": 1, "tokens": 2, "time_s": "soon", "split": "train"})",
            "\"soon\" is no number"},
           {R"({"step": 1, "tokens": 2, "time_s": 1, "split": "train", "loss": [1]})",
            "must be number"}}) {
    replace_file(folder / "metrics.jsonl", good + "\n" + line + "\n");
    try {
      read_metrics(folder / "metrics.jsonl");
      ADD_FAILURE() << line;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("metrics.jsonl:2: "), std::string::npos) << e.what();
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
    }
  }
}

TEST(TensorBoard, RecordsCarryMaskedChecksums) {
  EXPECT_EQ(crc32c("123456789"), 0xE3069283u);
  const std::string record = tensorboard_scalar(1.5, 300, "train/loss", 0.25f);
  uint64_t length = 0;
  std::memcpy(&length, record.data(), 8);
  ASSERT_EQ(record.size(), length + 16);
  const auto masked = [](std::string_view bytes) {
    const uint32_t crc = crc32c(bytes);
    return ((crc >> 15) | (crc << 17)) + 0xA282EAD8u;
  };
  uint32_t of_length = 0, of_payload = 0;
  std::memcpy(&of_length, record.data() + 8, 4);
  std::memcpy(&of_payload, record.data() + 12 + length, 4);
  EXPECT_EQ(of_length, masked(record.substr(0, 8)));
  EXPECT_EQ(of_payload, masked(record.substr(12, length)));
  // Event: field 1 double; field 2 varint 300 = AC 02; field 5 of 19 bytes: Value of 17: tag of 10
  // letters, field 2 float.
  EXPECT_EQ(record[12], '\x09');
  EXPECT_EQ(record.substr(21, 3), std::string("\x10\xac\x02"));
  EXPECT_EQ(record.substr(24, 6), std::string("\x2a\x13\x0a\x11\x0a\x0a"));
  EXPECT_EQ(record.substr(30, 10), "train/loss");
  EXPECT_EQ(record.substr(40, 5), std::string("\x15\0\0\x80\x3e", 5));
}

TEST_F(Run, FoldersKeepTheNewestCheckpointsAndPassOverBrokenOnes) {
  const RunFolder run = RunFolder::create(folder, "test", "name = \"test\"\n");
  const RunFolder other = RunFolder::create(folder, "test", "name = \"test\"\n");
  EXPECT_NE(run.path(), other.path());
  Checkpoint checkpoint;
  checkpoint.tensors = {{"model.x", Tensor::zeros({4})}};
  for (const int64_t step : {9, 10, 11, 100}) {
    checkpoint.attributes["step"] = std::to_string(step);
    write_checkpoint(run.step(step), checkpoint);
    run.prune(2);
  }
  ASSERT_EQ(run.checkpoints().size(), 2u);
  replace_file(run.checkpoints()[0], read_file(run.checkpoints()[0]).substr(0, 900));
  std::vector<std::string> skipped;
  EXPECT_EQ(run.latest(skipped).attribute("step"), "11");
  EXPECT_EQ(skipped.size(), 1u);
  EXPECT_THROW(other.latest(skipped), Error);
  EXPECT_THROW(RunFolder::open(folder), Error);
}

TEST(Plot, TicksAreRoundNumbersInsideTheRange) {
  EXPECT_EQ(ticks(0.0, 10.0, 5), (std::vector<double>{0, 2, 4, 6, 8, 10}));
  EXPECT_EQ(ticks(130.0, 1300.0, 4).front(), 500.0);
  EXPECT_EQ(tick_label(12000.0), "12k");
  // Ranges that doubles cannot divide, and none: few ticks, and an end.
  for (const auto& [low, high] : {std::pair{-9.3e18, -9.2233720368547748e18},
                                  {1e300, 1e300},
                                  {-1e308, 1e308},
                                  {0.0, 5e-324},
                                  {1e16, 1e16 + 4}})
    EXPECT_LE(ticks(low, high, 8).size(), 17u) << low;
  EXPECT_EQ(tick_label(0.0005), "5.0e-04");
}

TEST(Plot, NonFiniteValuesBreakTheLineAndTextIsEscaped) {
  const Plot plot{
      "a < b", "step", "", {{"x & y", 0, {{0, 1}, {1, NAN}, {2, 3}, {3, 2}}, false, false}}};
  const std::string svg = to_svg(plot);
  EXPECT_NE(svg.find("a &lt; b"), std::string::npos);
  EXPECT_NE(svg.find("x &amp; y"), std::string::npos);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  const size_t path = svg.find(" d=\"M");
  const std::string d = svg.substr(path, svg.find('"', path + 4) - path);
  EXPECT_EQ(std::count(d.begin(), d.end(), 'M'), 2);
  EXPECT_EQ(to_png(plot).substr(1, 3), "PNG");
}

TEST_F(Run, AReportHoldsEveryRunItsDifferencesAndItsSample) {
  for (const std::string name : {"one", "two"}) {
    std::filesystem::create_directories(folder / name);
    replace_file(folder / name / "config.toml", "name = \"" + name + "\"\n\n[train]\nsteps = " +
                                                    (name == "one" ? "3" : "4") + "\nbatch = 2\n");
    MetricsWriter writer(folder / name, 0);
    for (int64_t step = 1; step <= 3; ++step)
      writer.write({step,
                    step,
                    1.0,
                    "train",
                    {{"loss", 1.0 / static_cast<double>(step)}, {"units_per_s", 5.0}}});
    writer.write({3, 3, 1.0, "val", {{"loss", 0.625}, {"accuracy", 0.5}}});
  }
  replace_file(folder / "one" / "sample.txt", "<b>bold</b>");
  write_report({folder / "one", folder / "two"}, folder / "page.html");
  const std::string page = read_file(folder / "page.html");
  for (const char* part : {"0.6250", "train.steps", "&lt;b&gt;bold", "<td>3</td><td>4</td>"})
    EXPECT_NE(page.find(part), std::string::npos) << part;
  EXPECT_EQ(page.find("train.batch"), std::string::npos);
  EXPECT_EQ(page.find("http"), std::string::npos);  // nothing from outside
  EXPECT_NE(read_file(folder / "curves.csv").find("one,val,3,1,accuracy,0.5"), std::string::npos);
  std::filesystem::remove(folder / "two" / "metrics.jsonl");
  EXPECT_THROW(write_report({folder / "two"}, folder / "page.html"), Error);
}

TEST(Progress, FormatsAndPrintsPlainLinesWithoutATerminal) {
  EXPECT_EQ(short_count(26800), "26.8k");
  EXPECT_EQ(short_time(84), "1m 24s");
  EXPECT_EQ(short_bytes(int64_t{312} << 20), "312 MiB");
  std::ostringstream out;
  Progress progress(out, false);
  progress.update({10, 10, 1.25, 3e-4, 26800.0, "tok", 0.41, 0.0, int64_t{312} << 20});
  EXPECT_EQ(out.str(),
            "step 10/10  loss 1.2500  lr 3.00e-04  26.8k tok/s  41 % of peak  312 MiB\n");
}

}  // namespace
}  // namespace fovea::train
