// SPDX-License-Identifier: Apache-2.0
#include "data/prepare.h"

#include <iostream>

#include "train/cli/cli.h"

namespace fovea::train::cli {
namespace {

void inspect(const std::string& what, const std::vector<std::string>& extras) {
  Experiment experiment;
  std::vector<config::Flag> flags = config::parse_flags(extras);
  const std::filesystem::path path(what);
  if (path.extension() == ".toml") {
    config::load(experiment, path, flags);
  } else {
    std::vector<config::Flag> all{{"data.kind", data::kind_of(path)}, {"data.path", what}};
    all.insert(all.end(), flags.begin(), flags.end());
    config::load(experiment, "", all);
  }
  data::inspect(experiment.data, std::cout);
}

}  // namespace

void add_data(CLI::App& program, int&) {
  CLI::App* data = program.add_subcommand("data", "make data sets and look into them");
  data->require_subcommand(1);
  CLI::App* prepare = data->add_subcommand("prepare", "make a data set from an installed package or your own text");
  static std::string source, out;
  static std::vector<std::string> rest;
  static data::PrepareOptions options;
  prepare->add_option("SOURCE", source, "kjv, fashion-mnist, or a text file")->required();
  prepare->add_option("--out", out, "folder to make; default: datasets/<name>");
  prepare->add_option("--tokenizer", options.tokenizer, "bytes, characters, bpe (learned from the text), or a tokenizer file")->capture_default_str();
  prepare->add_option("--vocab-size", options.vocab_size, "tokens that bpe learns")->capture_default_str();
  prepare->add_option("--val-fraction", options.val_fraction, "share of the text, at its end, that is held out")->capture_default_str();
  prepare->callback([] {
    const bool known = source == "kjv" || source == "fashion-mnist";
    const std::filesystem::path folder = !out.empty() ? std::filesystem::path(out) : "datasets" / (known ? std::filesystem::path(source) : std::filesystem::path(source).stem());
    if (source == "kjv") data::prepare_kjv(folder, options, std::cout);
    else if (source == "fashion-mnist") data::prepare_fashion_mnist(folder, std::cout);
    else data::prepare_text(source, folder, options, std::cout);
  });
  CLI::App* look = data->add_subcommand("inspect", "sizes and first samples of a data set: a folder, or the [data] of an experiment file");
  look->add_option("DATA", source, "folder or experiment file")->required();
  look->allow_extras();
  look->callback([look] { inspect(source, look->remaining()); });
}

}  // namespace fovea::train::cli
