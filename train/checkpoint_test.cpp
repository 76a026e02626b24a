// SPDX-License-Identifier: Apache-2.0
#include "train/checkpoint.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "core/io/file.h"
#include "core/testing/error_of.h"

namespace fovea::train {
namespace {

namespace fs = std::filesystem;

class Checkpoints : public testing::Test {
 protected:
  void SetUp() override {
    folder = fs::temp_directory_path() / ("fovea_checkpoint_test." + std::to_string(getpid()));
    fs::create_directories(folder);
  }
  void TearDown() override { fs::remove_all(folder); }
  fs::path folder;
};

TEST_F(Checkpoints, CheckpointsRoundTripAndNameWhatDoesNotFit) {
  Checkpoint checkpoint;
  checkpoint.tensors = {{"model.a.weight", Tensor::full({3, 2}, 0.1)},
                        {"optimizer.m.a.weight", Tensor::zeros({3, 2})}};
  checkpoint.attributes = {{"step", "7"}, {"config", "x = 1\n"}};
  write_checkpoint(folder / "c.h5", checkpoint);
  const Checkpoint back = read_checkpoint(folder / "c.h5");
  EXPECT_EQ(back.attribute("step"), "7");
  const Tensor target = Tensor::zeros({3, 2});
  back.restore("model.a.weight", target);
  EXPECT_EQ(target.to_vector<float>(), checkpoint.tensors[0].second.to_vector<float>());
  EXPECT_EQ(back.integer("step"), 7);
  const std::string where = "checkpoint " + (folder / "c.h5").string() + ": ";
  EXPECT_EQ(
      error_of([&] { back.restore("model.b.weight", target); }),
      where + "tensor model.b.weight is missing; was it written by another model or optimizer?");
  EXPECT_EQ(error_of([&] {
              back.restore("model.a.weight", Tensor::zeros({2, 3}));
            }),
            where + "model.a.weight is f32 [3, 2] but the model needs f32 [2, 3]");
  EXPECT_EQ(error_of([&] { back.attribute("samples"); }), where + "attribute samples is missing");
  EXPECT_EQ(error_of([&] { back.integer("config"); }),
            where + "attribute config is \"x = 1\n\"; expected a number");
}

// Ranks hold elements [0, 2), [2, 5) and [5, 6) of a matrix, and one of them a vector.
class CheckpointParts : public Checkpoints {
 protected:
  void write(const std::string& save, double first, int parts = 3) const {
    Checkpoint whole;
    whole.tensors = {{"model.w", Tensor::full({3, 2}, first)}};
    whole.attributes = {{"step", "7"}, {"save", save}, {"parts", "3"}};
    const std::vector<int64_t> bounds{0, 2, 5, 6};
    for (int r = 0; r < parts; ++r) {
      Checkpoint mine = whole;
      const int64_t from = bounds[static_cast<size_t>(r)],
                    n = bounds[static_cast<size_t>(r) + 1] - from;
      std::vector<float> values;
      for (int64_t i = from; i < from + n; ++i)
        values.push_back(static_cast<float>(first + static_cast<double>(i)));
      const Tensor part = Tensor::from(values, {n});
      mine.parts = {{"optimizer.m.w", {3, 2}, from, n, [part] { return part; }}};
      const Tensor vector = Tensor::full({4}, first);
      if (r == 1) mine.parts.push_back({"optimizer.m.b", {4}, 0, 4, [vector] { return vector; }});
      write_part(path(), mine, r, 3);
    }
    if (parts == 3) write_checkpoint(path(), whole);
  }
  fs::path path() const { return folder / "step_00000007.h5"; }
  size_t files() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(folder), {}));
  }
};

TEST_F(CheckpointParts, AnyStretchOfATensorIsReadFromTheParts) {
  write("0000000a", 1.0);
  const Checkpoint back = read_checkpoint(path());
  EXPECT_EQ(back.names(), (std::vector<std::string>{"model.w", "optimizer.m.w", "optimizer.m.b"}));
  EXPECT_EQ(back.tensor("optimizer.m.w").to_vector<float>(),
            (std::vector<float>{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(back.tensor("optimizer.m.b").to_vector<float>(), std::vector<float>(4, 1.0f));
  for (int64_t from = 0; from < 6; ++from)
    for (int64_t to = from + 1; to <= 6; ++to) {
      const Tensor part = Tensor::zeros({1, to - from});
      back.restore("optimizer.m.w", part, {3, 2}, from);
      for (int64_t i = from; i < to; ++i)
        EXPECT_EQ(part.to_vector<float>()[static_cast<size_t>(i - from)],
                  static_cast<float>(1 + i));
    }
  EXPECT_NE(error_of([&] {
              back.restore("optimizer.m.w", Tensor::zeros({6}));
            }).find("optimizer.m.w is f32 [3, 2] but the model needs f32 [6]"),
            std::string::npos);
  EXPECT_NE(error_of([&] { back.tensor("optimizer.v.w"); }).find("optimizer.v.w is missing"),
            std::string::npos);
  EXPECT_NE(error_of([&] {
              read_checkpoint(part_path(path(), "0000000a", 1, 3));
            }).find("is one rank's part of a checkpoint"),
            std::string::npos);
}

TEST_F(CheckpointParts, ASaveThatNeverEndedLeavesTheOneBefore) {
  write("0000000a", 1.0);
  ASSERT_EQ(files(), 4u);
  write("0000000b", 10.0, 2);
  EXPECT_EQ(files(), 6u);
  EXPECT_EQ(read_checkpoint(path()).tensor("optimizer.m.w").to_vector<float>()[0], 1.0f);
  write("0000000c", 20.0);  // and the parts of a and b go
  EXPECT_EQ(files(), 4u);
  EXPECT_EQ(read_checkpoint(path()).tensor("optimizer.m.w").to_vector<float>()[0], 20.0f);
  remove_checkpoint(path());
  EXPECT_EQ(files(), 0u);
  write("0000000d", 1.0, 1);
  write_checkpoint(folder / "step_00000009.h5", {});
  remove_stray_parts(folder);
  EXPECT_EQ(files(), 1u);
}

TEST_F(CheckpointParts, MissingDamagedAndForeignPartsAreNamed) {
  write("0000000a", 1.0);
  const fs::path second = part_path(path(), "0000000a", 1, 3);
  EXPECT_EQ(second.filename(), "step_00000007.0000000a.2-of-3.h5");
  const std::string bytes = read_file(second);
  const auto found = [&] { return error_of([&] { read_checkpoint(path()); }); };
  std::string damaged = bytes;
  damaged[damaged.size() / 2] ^= 1;
  for (const std::string& content : {damaged, bytes.substr(0, bytes.size() / 2)}) {
    replace_file(second, content);
    EXPECT_NE(found().find(second.string()), std::string::npos) << found();
  }
  fs::remove(second);
  EXPECT_NE(found().find(second.string() + ": no such file"), std::string::npos) << found();
  fs::copy(path(), second);
  EXPECT_NE(found().find("is no part of the save 0000000a"), std::string::npos) << found();
  // Parts of the right save that do not cover a tensor.
  fs::remove(second);
  fs::copy(part_path(path(), "0000000a", 0, 3), second);
  EXPECT_NE(
      error_of([&] { read_checkpoint(path()).tensor("optimizer.m.w"); }).find("its parts have"),
      std::string::npos);
}

}  // namespace
}  // namespace fovea::train
