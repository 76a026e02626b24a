// SPDX-License-Identifier: Apache-2.0
#include <iostream>

#include "data/prepare.h"
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
  CLI::App* prepare = data->add_subcommand(
      "prepare",
      "make a data set: from kjv (King James Bible, Debian package bible-kjv), fashion-mnist "
      "(dataset-fashion-mnist), or a text file of yours");
  static std::string source, out;
  static std::vector<std::string> rest;
  static data::PrepareOptions options;
  prepare->add_option("SOURCE", source, "kjv, fashion-mnist, or the path of a text file")
      ->required();
  prepare->add_option("--out", out, "folder to make; default: datasets/<name>");
  prepare
      ->add_option(
          "--tokenizer", options.tokenizer,
          "of text: bytes, characters, bpe (learned from the text), or a file: tokenizer.json "
          "(ours or Hugging Face's), GPT-2's encoder.json or vocab.json (vocab.bpe or merges.txt "
          "beside it), or NAME.tiktoken (r50k_base, p50k_base, p50k_edit, cl100k_base, o200k_base)")
      ->capture_default_str();
  prepare
      ->add_option("--vocab-size", options.vocab_size,
                   "tokens that bpe learns, the 256 bytes among them")
      ->capture_default_str()
      ->check(whole_number(256, 1 << 24));
  prepare
      ->add_option("--val-fraction", options.val_fraction,
                   "share of the text, at its end, that is held out; above 0, below 1")
      ->capture_default_str()
      ->check(number(1e-9, 1.0 - 1e-9));
  prepare->callback([prepare] {
    for (const char* name : {"--tokenizer", "--vocab-size", "--val-fraction"}) {
      if (source == "fashion-mnist" && prepare->count(name) > 0)
        throw config::ConfigError(concat("data prepare fashion-mnist: ", name, " is for text"));
    }
    if (prepare->count("--vocab-size") > 0 && options.tokenizer != "bpe")
      throw config::ConfigError("data prepare: --vocab-size is for --tokenizer bpe");
    const bool known = source == "kjv" || source == "fashion-mnist";
    const std::filesystem::path folder =
        !out.empty() ? std::filesystem::path(out)
                     : "datasets" / (known ? std::filesystem::path(source)
                                           : std::filesystem::path(source).stem());
    if (source == "kjv")
      data::prepare_kjv(folder, options, std::cout);
    else if (source == "fashion-mnist")
      data::prepare_fashion_mnist(folder, std::cout);
    else
      data::prepare_text(source, folder, options, std::cout);
  });
  CLI::App* look = data->add_subcommand("inspect",
                                        "sizes and first samples of a data set: a folder or HDF5 "
                                        "file, or the [data] of an experiment file");
  look->add_option("DATA", source,
                   "folder (train.bin and val.bin; MNIST's IDX; CIFAR-10 or -100, binary; images "
                   "in a folder for each class), .h5 or .hdf5 file, or .toml file")
      ->required();
  look->allow_extras();
  look->footer(
      "Keys of an experiment file are flags here too: --data.kind=idx, --data.context=64; fovea "
      "train --help lists them.");
  look->callback([look] { inspect(source, look->remaining()); });
}

}  // namespace fovea::train::cli
