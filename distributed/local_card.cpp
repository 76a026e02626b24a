// SPDX-License-Identifier: Apache-2.0
#include "distributed/local_card.h"

#include <unistd.h>

#include <array>
#include <charconv>
#include <cstdlib>
#include <set>
#include <vector>

#include "core/error.h"
#if defined(FOVEA_CUDA)
#include "core/card/nvml.h"
#endif

namespace fovea::distributed {
namespace {

constexpr const char* kVisible = "CUDA_VISIBLE_DEVICES";
constexpr std::array kLocalRanks{"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID",
                                 "MV2_COMM_WORLD_LOCAL_RANK",  "PMI_LOCAL_RANK",
                                 "PALS_LOCAL_RANKID",          "SLURM_LOCALID"};

std::string names_of_local_ranks() {
  std::string all;
  for (const char* name : kLocalRanks) all += concat(all.empty() ? "" : ", ", name);
  return all;
}

std::string& problem() {
  static std::string text;
  return text;
}

// Entries of a list as CUDA reads it: up to the first that is no card.
std::vector<std::string> entries(const std::string& list) {
  std::vector<std::string> found;
  for (size_t at = 0; at <= list.size();) {
    const size_t end = std::min(list.find(',', at), list.size());
    std::string entry = list.substr(at, end - at);
    entry.erase(0, entry.find_first_not_of(" \t"));
    entry.erase(entry.find_last_not_of(" \t") + 1);
    if (entry == "-1" || entry == "NoDevFiles") break;
    found.push_back(entry);
    at = end + 1;
  }
  return found.size() == 1 && found[0].empty() ? std::vector<std::string>{} : found;
}

}  // namespace

Environment environment_of_process() {
  Environment all;
  for (char** at = environ; *at != nullptr; ++at) {
    const std::string entry = *at;
    const size_t sign = entry.find('=');
    if (sign != std::string::npos) all.emplace(entry.substr(0, sign), entry.substr(sign + 1));
  }
  return all;
}

std::optional<int> local_rank(const Environment& environment) {
  for (const char* name : kLocalRanks) {
    const auto found = environment.find(name);
    if (found == environment.end()) continue;
    const std::string& text = found->second;
    int rank = -1;
    const auto [rest, code] = std::from_chars(text.data(), text.data() + text.size(), rank);
    FOVEA_CHECK(code == std::errc{} && rest == text.data() + text.size() && rank >= 0, name,
                ": expected a rank's number on its node, found \"", text, '"');
    return rank;
  }
  return {};
}

std::optional<std::string> visible_card(const Environment& environment,
                                        const std::function<int()>& cards) {
  const std::optional<int> rank = local_rank(environment);
  const auto choose = [&](int n) {
    FOVEA_CHECK(rank, "no variable of the launcher (", names_of_local_ranks(),
                ") says which of the node's ", n, " cards is this rank's; set ", kVisible,
                " of each rank to its card");
    return *rank % n;
  };
  const auto list = environment.find(kVisible);
  if (list == environment.end()) {
    const int n = cards();
    return n > 1 ? std::optional(std::to_string(choose(n))) : std::nullopt;
  }
  const std::vector<std::string> all = entries(list->second);
  std::set<std::string> seen;
  for (size_t i = 0; i < all.size(); ++i) {
    FOVEA_CHECK(!all[i].empty(), kVisible, ": entry ", i, " of \"", list->second,
                "\" is empty; expected cards as in 0,1,2 or GPU-... names");
    FOVEA_CHECK(seen.insert(all[i]).second, kVisible, ": \"", list->second, "\" names card ",
                all[i], " twice");
  }
  if (all.size() <= 1) return {};
  return all[static_cast<size_t>(choose(static_cast<int>(all.size())))];
}

void take_local_card() {
  problem().clear();
  try {
    const Environment environment = environment_of_process();
    if (const auto card = visible_card(environment, cards_of_node))
      setenv(kVisible, card->c_str(), 1);
  } catch (const Error& error) {
    problem() = error.what();
  }
}

void check_local_card() { FOVEA_CHECK(problem().empty(), problem()); }

int cards_of_node() {
#if defined(FOVEA_CUDA)
  return cuda::cards_of_node();
#else
  return 0;
#endif
}

}  // namespace fovea::distributed
