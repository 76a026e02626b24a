// SPDX-License-Identifier: Apache-2.0
#include "data/source.h"

#include "data/hdf5.h"
#include "data/image/images.h"
#include "data/packed.h"
#include "data/synthetic/copy.h"
#include "data/synthetic/needle.h"
#include "data/synthetic/recall.h"
#include "data/synthetic/regression.h"
#include "data/synthetic/state_tracking.h"
#include "data/text/tokens.h"

namespace fovea::data {
namespace {

// One kind of data: its options with defaults, and its maker.
struct Kind {
  config::Factory options;
  std::function<std::unique_ptr<Source>(const config::Options&, Split)> make;
};

template <typename O, typename... Defaults>
Kind kind(std::unique_ptr<Source> (*make)(const O&, Split), Defaults... defaults) {
  return {[=]() -> std::unique_ptr<config::Options> { return std::make_unique<O>(defaults...); },
          [make](const config::Options& options, Split split) {
            return make(dynamic_cast<const O&>(options), split);
          }};
}

using Moments = std::vector<double>;  // of pixel values, a channel each

const std::map<std::string, Kind>& table() {
  static const std::map<std::string, Kind> kinds{
      {"tokens", kind(&make_tokens)},
      {"idx", kind(&make_idx, Moments{0.2860},
                   Moments{0.3530})},  // Fashion-MNIST's; MNIST's are 0.1307 and 0.3081
      {"cifar10",
       kind(&make_cifar10, Moments{0.4914, 0.4822, 0.4465}, Moments{0.2470, 0.2435, 0.2616})},
      {"cifar100",
       kind(&make_cifar100, Moments{0.5071, 0.4865, 0.4409}, Moments{0.2673, 0.2564, 0.2762})},
      {"image_folder", kind(&make_image_folder)},
      {"hdf5", kind(&make_hdf5)},
      {"recall", kind(&make_recall)},
      {"copy", kind(&make_copy)},
      {"selective_copy", kind(&make_selective_copy)},
      {"needle", kind(&make_needle)},
      {"regression", kind(&make_regression)},
      {"state_tracking", kind(&make_state_tracking)},
      {"packed", kind(&make_packed)},
  };
  return kinds;
}

}  // namespace

namespace {

config::Choice choice_of(const std::function<bool(const std::string& kind)>& has) {
  std::map<std::string, config::Factory> factories;
  for (const auto& [name, kind] : table())
    if (has(name)) factories[name] = kind.options;
  return config::Choice(std::move(factories), "tokens");
}

}  // namespace

config::Choice data_choice() {
  return choice_of([](const std::string&) { return true; });
}
config::Choice document_choice() {
  return choice_of([](const std::string& kind) { return kind != "packed"; });
}

std::string kind_of(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  if (fs::is_regular_file(path)) {
    FOVEA_CHECK(path.extension() == ".h5" || path.extension() == ".hdf5", "data: ", path.string(),
                ": a file that is no data set; expected .h5 or .hdf5, or a folder");
    return "hdf5";
  }
  FOVEA_CHECK(fs::is_directory(path), "data: ", path.string(), ": no such folder or file");
  if (fs::exists(path / "data_batch_1.bin")) return "cifar10";
  if (fs::exists(path / "fine_label_names.txt")) return "cifar100";
  if (fs::exists(path / "train.bin")) return "tokens";
  bool folders = false;
  for (const fs::directory_entry& entry : fs::directory_iterator(path)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("train-images") || name.starts_with("t10k-images")) return "idx";
    folders = folders || entry.is_directory();
  }
  FOVEA_CHECK(folders, "data: ", path.string(),
              ": holds no data set that is known by its files (train.bin, train-images-idx3-ubyte, "
              "data_batch_1.bin, or a folder for each class)");
  return "image_folder";
}

std::unique_ptr<Source> make_source(const config::Choice& data, Split split) {
  return table().at(data.kind()).make(data.options(), split);
}

}  // namespace fovea::data
