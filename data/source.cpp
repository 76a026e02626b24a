// SPDX-License-Identifier: Apache-2.0
#include "data/source.h"

#include "data/image/images.h"
#include "data/synthetic/recall.h"
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
          [make](const config::Options& options, Split split) { return make(dynamic_cast<const O&>(options), split); }};
}

const std::map<std::string, Kind>& table() {
  static const std::map<std::string, Kind> kinds{
      {"tokens", kind(&make_tokens)},
      {"idx", kind(&make_idx, 0.2860, 0.3530)},  // Fashion-MNIST's moments; MNIST's are 0.1307 and 0.3081
      {"recall", kind(&make_recall)},
  };
  return kinds;
}

}  // namespace

config::Choice data_choice() {
  std::map<std::string, config::Factory> factories;
  for (const auto& [name, kind] : table()) factories[name] = kind.options;
  return config::Choice(std::move(factories), "tokens");
}

std::unique_ptr<Source> make_source(const config::Choice& data, Split split) { return table().at(data.kind()).make(data.options(), split); }

}  // namespace fovea::data
