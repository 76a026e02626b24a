// SPDX-License-Identifier: Apache-2.0
#include "core/config/config.h"

#include <gtest/gtest.h>

#include <sstream>

namespace fovea::config {
namespace {

struct Window : Options {
  int64_t window = 0;
  bool causal = true;
  void describe(Fields& f) override {
    f.add("window", window, "keys before a query", at_least(0), "tokens");
    f.add("causal", causal, "no looking ahead");
  }
};
struct Linear : Options {
  double decay = 0.5;
  void describe(Fields& f) override { f.add("decay", decay, "of the state", fraction()); }
};
struct Model : Options {
  int64_t dim = 64, depth = 2;
  std::string norm = "layer";
  std::vector<int64_t> sizes = {1, 2};
  Choice attention{{{"window", [] { return std::make_unique<Window>(); }},
                    {"linear", [] { return std::make_unique<Linear>(); }}},
                   "window"};
  void describe(Fields& f) override {
    f.add("dim", dim, "channels", at_least(1));
    f.add("depth", depth, "blocks", from_to(1, 99));
    f.add("norm", norm, "kind of norm", one_of({"layer", "rms"}));
    f.add("sizes", sizes, "a list");
    f.choice("attention", attention, "mixer");
  }
};
struct Root : Options {
  std::string name = "run";
  std::string title = "x";
  double lr = 3e-4;
  Model model;
  void describe(Fields& f) override {
    f.add("name", name, "of the run", non_empty());
    f.add("title", title, "of a folder", file_name());
    f.add("lr", lr, "learning rate", positive());
    f.section("model", model, "what learns");
  }
};

std::string error_of(const std::string& text, const std::vector<std::string>& flags = {}) {
  Root root;
  try {
    load_text(root, text, "run.toml", parse_flags(flags));
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

TEST(Config, FileThenFlags) {
  Root root;
  load_text(root,
            "lr = 1e-3\n[model]\ndim = 1_024\nsizes = [3]\n[model.attention]\nkind = "
            "\"linear\"\ndecay = 1\n",
            "run.toml",
            parse_flags({"--model.dim=32", "--name", "other one", "--model.sizes=[4, 5]"}));
  EXPECT_EQ(root.lr, 1e-3);
  EXPECT_EQ(root.model.dim, 32);
  EXPECT_EQ(root.name, "other one");
  EXPECT_EQ(root.model.sizes, (std::vector<int64_t>{4, 5}));
  EXPECT_EQ(dynamic_cast<Linear&>(root.model.attention.options()).decay, 1.0);
}

TEST(Config, ListsOfLists) {
  struct Blocks : Options {
    Lists sizes = {{1, 2}, {3}};
    void describe(Fields& f) override { f.add("sizes", sizes, "of each head"); }
  };
  Blocks blocks;
  EXPECT_EQ(resolved_toml(blocks), "sizes = [[1, 2], [3]]\n");
  load_text(blocks, "sizes = [[4], [], [5, 6]]\n", "run.toml");
  EXPECT_EQ(blocks.sizes, (Lists{{4}, {}, {5, 6}}));
  load_text(blocks, "", "run.toml", parse_flags({"--sizes=[7, 8]"}));
  EXPECT_EQ(blocks.sizes, (Lists{{7, 8}}));
  load_text(blocks, "sizes = []\n", "run.toml");
  EXPECT_TRUE(blocks.sizes.empty());
  const auto error = [&](const std::string& text) -> std::string {
    try {
      load_text(blocks, text, "run.toml");
    } catch (const ConfigError& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(error("sizes = 3\n"),
            "config run.toml:1: sizes: expected a list of lists of integers, found 3");
  EXPECT_EQ(error("sizes = [[1], 2]\n"),
            "config run.toml:1: sizes: expected a list of integers, found 2");
  EXPECT_EQ(error("sizes = [[1], [2.5]]\n"),
            "config run.toml:1: sizes: expected a list of integers, found 2.5 in it");
}

TEST(Config, AKindGivenByFlagDecidesWhichFlagsExist) {
  Root root;
  load_text(root, "", "run.toml",
            parse_flags({"--model.attention.decay=0.25", "--model.attention.kind=linear"}));
  EXPECT_EQ(dynamic_cast<Linear&>(root.model.attention.options()).decay, 0.25);
}

TEST(Config, ABoolFlagNeedsNoValue) {
  Root root;
  load_text(root, "[model.attention]\ncausal = false", "run.toml",
            parse_flags({"--model.attention.causal"}));
  EXPECT_TRUE(dynamic_cast<Window&>(root.model.attention.options()).causal);
}

TEST(Config, ResolvedTextLoadsToTheSameOptions) {
  Root root;
  root.lr = 0.1 + 0.2;
  root.name = "a \"quoted\" \\ name";
  root.model.attention.select("linear");
  const std::string text = resolved_toml(root);
  Root again;
  load_text(again, text, "resolved");
  EXPECT_EQ(again.lr, root.lr);
  EXPECT_EQ(again.name, root.name);
  EXPECT_EQ(resolved_toml(again), text);
}

TEST(Config, ErrorsNameFileLineKeyAndTheNearestName) {
  EXPECT_EQ(
      error_of("lr = 1\n\n[model.attention]\nwindw = 3\n"),
      "config run.toml:4: unknown key model.attention.windw; did you mean model.attention.window?");
  EXPECT_EQ(error_of("[modle]\ndim = 3\n"),
            "config run.toml:1: unknown section modle; did you mean model?");
  EXPECT_EQ(error_of("[model]\ndim = 0\n"),
            "config run.toml:2: model.dim: expected at least 1, found 0");
  EXPECT_EQ(error_of("[model]\ndim = \"big\"\n"),
            "config run.toml:2: model.dim: expected an integer, found \"big\"");
  EXPECT_EQ(error_of("[model]\ndim = 1.5\n"),
            "config run.toml:2: model.dim: expected an integer, found 1.5");
  EXPECT_EQ(
      error_of("[model]\nnorm = \"rsm\"\n"),
      "config run.toml:2: model.norm: expected one of layer rms, found \"rsm\"; did you mean rms?");
  EXPECT_EQ(error_of("[model.attention]\nkind = \"linera\"\n"),
            "config run.toml:2: model.attention.kind: expected one of linear window, found "
            "\"linera\"; did you mean linear?");
  EXPECT_EQ(error_of("model = 3\n"), "config run.toml:1: model is a section, found 3");
  EXPECT_EQ(error_of("name = \"\"\n"), "config run.toml:1: name: expected text that is not empty");
  EXPECT_EQ(error_of("lr = \n").rfind("config run.toml:1:", 0), 0u);
  EXPECT_EQ(error_of("lr = nan\n"), "config run.toml:1: lr: expected above 0, found nan");
}

TEST(Config, FlagErrorsNameTheFlag) {
  EXPECT_EQ(error_of("", {"--model.dmi=3"}),
            "flag --model.dmi: unknown key model.dmi; did you mean model.dim?");
  EXPECT_EQ(error_of("", {"--model.dim=-2"}),
            "flag --model.dim: model.dim: expected at least 1, found -2");
  EXPECT_EQ(error_of("", {"--lr=1", "--lr=2"}), "--lr: given twice (1 and 2)");
  EXPECT_EQ(error_of("", {"lr"}), "expected a flag --key=value, found \"lr\"");
}

TEST(Config, NumbersMustBeFiniteAndInsideTheirLimits) {
  EXPECT_EQ(error_of("lr = inf\n"), "config run.toml:1: lr: expected a finite number, found inf");
  EXPECT_EQ(error_of("[model]\ndepth = 100\n"),
            "config run.toml:2: model.depth: expected from 1 to 99, found 100");
  EXPECT_EQ(error_of("[model]\ndepth = 99\n"), "no error");
  EXPECT_EQ(error_of("[model]\ndepth = 99999999999999999999\n").rfind("config run.toml:2:", 0), 0u);
}

TEST(Config, ANameThatBecomesAFolderHoldsNoPath) {
  EXPECT_EQ(
      error_of("title = \"a/b\"\n"),
      "config run.toml:1: title: expected the name of a folder, without \"/\", found \"a/b\"");
  EXPECT_EQ(error_of("", {"--title=a\nb"}),
            "flag --title: title: expected the name of a folder, without \"/\", found \"a?b\"");
  EXPECT_EQ(error_of("title = \"\"\n"),
            "config run.toml:1: title: expected text that is not empty");
}

TEST(Config, AFlagSetsOneKeyWhateverItsValueHolds) {
  EXPECT_EQ(error_of("", {"--lr=1\n[model]\ndim = 3"}),
            "flag --lr: lr: expected a number, found \"1?[model]?dim = 3\"");
  Root root;
  load_text(root, "", "run.toml", parse_flags({"--name=one\ntwo\x01"}));
  EXPECT_EQ(root.name, "one\ntwo\x01");
  Root again;
  load_text(again, resolved_toml(root), "resolved");
  EXPECT_EQ(again.name, root.name);
}

TEST(Config, AFileThatIsNotThereIsNamed) {
  Root root;
  EXPECT_THROW(load(root, "/nonexistent/run.toml"), ConfigError);
}

TEST(Config, HelpListsEveryKeyWithItsDefault) {
  Root root;
  std::ostringstream out;
  print_help(root, out);
  EXPECT_NE(out.str().find("--model.attention.window"), std::string::npos);
  EXPECT_NE(out.str().find("keys before a query [tokens] (at least 0)"), std::string::npos);
  EXPECT_NE(out.str().find("(from 1 to 99)"), std::string::npos);
  // also of the kinds that are not chosen
  EXPECT_NE(out.str().find(
                "[model.attention] with --model.attention.kind=linear\n  --model.attention.decay "),
            std::string::npos)
      << out.str();
}

}  // namespace
}  // namespace fovea::config
