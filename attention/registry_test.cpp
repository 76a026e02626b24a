// SPDX-License-Identifier: Apache-2.0
// What every system owes: it registers fully, its golden files hold, and its module trains and
// decodes in a model.
#include "attention/registry.h"

#include <unistd.h>

#include "attention/golden.h"
#include "attention/over_parts.h"
#include "core/io/hdf5.h"
#include "core/testing/devices.h"

namespace fovea::attention {
namespace {

std::vector<std::filesystem::path> golden_files() {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator("tests/golden")) {
    if (entry.path().extension() == ".h5") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

TEST(Registry, EverySystemIsDescribedAndHasGoldenFiles) {
  ASSERT_FALSE(systems().empty());
  for (const auto& [name, system] : systems()) {
    EXPECT_FALSE(system.title.empty() || system.paper.empty() || system.family.empty()) << name;
    EXPECT_FALSE(system.op.inputs.empty() || system.op.outputs.empty()) << name;
    EXPECT_TRUE(std::filesystem::exists("attention/" + name + "/" + name + ".h")) << name;
    const auto files = golden_files();
    EXPECT_TRUE(std::any_of(files.begin(), files.end(), [&, name = name](const auto& f) {
      return f.filename().string().starts_with(name + "__");
    })) << name;
  }
}

// A part that sees all.
class Anything final : public OverParts {
 public:
  Anything() : OverParts(4, {{0, 1, 2}}) {}
  Tensor take(const Tensor& whole, int) const override { return whole; }
  Variable summed(const Variable& x) const override { return x; }
  Variable attend(const ScoreRule&, const Variable& q, const Variable&, const Variable&,
                  const Variable&, const Tensor&, const Mask&, const ScoreOptions&) const override {
    return q;
  }
  Variable linear_attention(const Variable&, const Variable&, const Variable& v, const Variable&,
                            const Variable&, const Tensor&) const override {
    return v;
  }
  Variable delta_rule(const Variable&, const Variable&, const Variable& v, const Variable&,
                      const Variable&, const Variable&, const Tensor&) const override {
    return v;
  }
  Variable with_tokens_before(const Variable& x, int, int64_t, Edge) const override { return x; }
  Variable by_heads(const Variables& x, const OfHeads&) const override { return x[0]; }
  std::string refuses(Sees, int64_t heads, int64_t) const override {
    return heads == 5 ? "has five heads" : "";
  }
};

TEST(Registry, SystemsSayWhetherTheyTakeParts) {
  for (const auto& [name, system] : systems()) {
    const auto options = system.options();
    const std::string why = system.make(*options, 30, 0, 1)->refuses(Anything());
    EXPECT_EQ(why.empty(), system.parts) << name << ": " << why;
  }
  EXPECT_EQ(refusal(Anything(), {Sees::before, Sees::state}, 5), "has five heads");
}

// Without a part the calls are the engines' own.
TEST(OverParts, TokensBeforeTheSequence) {
  const Variable x(Tensor::from(std::vector<double>{1, 2, 3}, {1, 3, 1}));
  EXPECT_EQ(with_tokens_before(nullptr, x, 1, 2).value().to_vector<double>(),
            (std::vector<double>{0, 0, 1, 2, 3}));
  EXPECT_EQ(with_tokens_before(nullptr, x, 1, 2, Edge::absent).dim(1), 3);
  const Tensor ids = Tensor::from(std::vector<int32_t>{4, 4, 5}, {1, 3});
  EXPECT_EQ(documents_before(nullptr, ids, 2).to_vector<int32_t>(),
            (std::vector<int32_t>{-1, -1, 4, 4, 5}));
  EXPECT_EQ(documents_before(nullptr, ids, 2, Edge::absent).to_vector<int32_t>(),
            (std::vector<int32_t>{4, 4, 5}));
  const Anything first;  // tokens 0 and 1
  EXPECT_EQ(documents_before(&first, ids, 1).to_vector<int32_t>(),
            (std::vector<int32_t>{-1, 4, 4}));
  EXPECT_THROW(with_tokens_before(nullptr, x, 1, -1), Error);
}

class Golden : public OnDevices {};
FOVEA_ON_DEVICES(Golden);

TEST_P(Golden, FilesHoldInEveryDtype) {
  const auto files = golden_files();
  ASSERT_GE(files.size(), 2u);
  for (const auto& file : files) {
    for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
      if (dtype == Dtype::f64 && !has_f64()) {
        EXPECT_THROW(check_golden(file, dtype, device()), Error);
        continue;
      }
      const std::vector<GoldenError> errors = check_golden(file, dtype, device());
      EXPECT_GE(errors.size(), 4u);  // an output and three gradients
      for (const GoldenError& e : errors)
        EXPECT_TRUE(e.passed()) << file << ' ' << dtype << ' ' << e.tensor << ": " << e.error
                                << " > " << e.tolerance;
    }
  }
}

TEST(Registry, UnknownSystemsGetTheNearestName) {
  try {
    system("softmax_atention");
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("did you mean softmax_attention"), std::string::npos)
        << e.what();
  }
}

class GoldenFile : public testing::Test {
 protected:
  void SetUp() override {
    path = std::filesystem::temp_directory_path() /
           ("fovea_golden_test." + std::to_string(getpid()) + ".h5");
  }
  void TearDown() override { std::filesystem::remove(path); }
  // A file with the first golden case's tensors, changed by `edit`.
  std::string error_after(const std::function<void(Hdf5Writer&, const Hdf5Reader&)>& edit) {
    Hdf5Writer writer;
    edit(writer, Hdf5Reader("tests/golden/softmax_attention__causal.h5"));
    writer.save(path);
    try {
      check_golden(path, Dtype::f64);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  }
  static void head(Hdf5Writer& writer, const std::string& options) {
    writer.attribute("/", "system", "softmax_attention");
    writer.attribute("/", "case", "test");
    writer.attribute("/", "options", options);
  }
  std::filesystem::path path;
};

TEST_F(GoldenFile, AWrongReferenceFails) {
  error_after([](Hdf5Writer& writer, const Hdf5Reader& reader) {
    head(writer, *reader.attribute("/", "options"));
    for (const std::string name :
         {"inputs/q", "inputs/k", "inputs/v", "cotangents/out", "grads/q", "grads/k"})
      writer.write(name, reader.read(name));
    const Tensor dv = reader.read("grads/v").clone();
    dv.data<double>()[7] += 1e-3;
    writer.write("grads/v", dv);
  });
  const auto errors = check_golden(path, Dtype::f64);
  for (const GoldenError& e : errors)
    EXPECT_EQ(e.passed(), e.tensor != "grads/v") << e.tensor << ' ' << e.error;
}

TEST_F(GoldenFile, WhatIsMissingOrTooMuchIsNamed) {
  const auto with = [&](const std::string& options, const std::vector<std::string>& names,
                        const std::string& extra) {
    return error_after([&](Hdf5Writer& writer, const Hdf5Reader& reader) {
      head(writer, options);
      for (const std::string& name : names) writer.write(name, reader.read(name));
      if (!extra.empty()) writer.write(extra, Tensor::zeros({2}, Dtype::f64));
    });
  };
  EXPECT_NE(with("{}", {"inputs/q", "inputs/v"}, "").find("needs inputs/k [B, Hkv, M, D]"),
            std::string::npos);
  EXPECT_NE(with("{}", {"inputs/q", "inputs/k", "inputs/v"}, "inputs/w")
                .find("inputs/w is no tensor of softmax_attention"),
            std::string::npos);
  EXPECT_NE(
      with("{\"causl\": true}", {"inputs/q", "inputs/k", "inputs/v"}, "").find("did you mean"),
      std::string::npos);
  EXPECT_NE(with("nonsense", {"inputs/q", "inputs/k", "inputs/v"}, "").find("no JSON object"),
            std::string::npos);
  EXPECT_NE(with("{}", {"inputs/q", "inputs/k", "inputs/v"}, "cotangents/out")
                .find("but the output is [2, 3, 33, 16]"),
            std::string::npos);
  EXPECT_NE(with("{}", {"inputs/q", "inputs/k", "inputs/v"}, "").find("neither outputs nor grads"),
            std::string::npos);
}

}  // namespace
}  // namespace fovea::attention
