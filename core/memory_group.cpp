// SPDX-License-Identifier: Apache-2.0
#include "core/memory_group.h"

#include <deque>
#include <map>
#include <mutex>

namespace fovea {
namespace {

struct Names {
  std::mutex mutex;
  std::map<std::string, uint32_t, std::less<>> indices;
  std::deque<std::string> names{"unnamed"};  // references to its strings stay
};
Names& names() {
  static auto* all = new Names;  // never destroyed: tensors with static lifetime have a group
  return *all;
}

}  // namespace

MemoryGroup::MemoryGroup(std::string_view name) {
  Names& all = names();
  const std::lock_guard lock(all.mutex);
  auto found = all.indices.find(name);
  if (found == all.indices.end()) {
    found = all.indices.emplace(name, static_cast<uint32_t>(all.names.size())).first;
    all.names.emplace_back(name);
  }
  index_ = found->second;
}

const std::string& MemoryGroup::name() const {
  Names& all = names();
  const std::lock_guard lock(all.mutex);
  return all.names[index_];
}

}  // namespace fovea
