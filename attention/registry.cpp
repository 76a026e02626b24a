// SPDX-License-Identifier: Apache-2.0
#include "attention/registry.h"

namespace fovea::attention {

// Written by the build: one call of register_<folder>() for each system's folder.
std::vector<System> all_systems();

const std::map<std::string, System>& systems() {
  static const std::map<std::string, System> by_name = [] {
    std::map<std::string, System> map;
    for (System& system : all_systems()) {
      const std::string name = system.name;
      FOVEA_CHECK(map.emplace(name, std::move(system)).second, "attention: two systems are called ",
                  name);
    }
    return map;
  }();
  return by_name;
}

const System& system(const std::string& name) {
  const auto found = systems().find(name);
  if (found != systems().end()) return found->second;
  std::vector<std::string> names;
  for (const auto& [known, unused] : systems()) names.push_back(known);
  const std::string near = config::nearest(name, names);
  throw Error(concat("attention: no system is called \"", name, '"',
                     near.empty() ? "" : "; did you mean ", near));
}

config::Choice attention_choice() {
  std::map<std::string, config::Factory> kinds;
  for (const auto& [name, system] : systems()) kinds[name] = system.options;
  return config::Choice(std::move(kinds), "softmax_attention");
}

std::unique_ptr<nn::Mixer> make_attention(const config::Choice& attention, int64_t channels,
                                          int64_t layer, int64_t layers) {
  return system(attention.kind()).make(attention.options(), channels, layer, layers);
}

}  // namespace fovea::attention
