// SPDX-License-Identifier: Apache-2.0
#include "core/warning.h"

#include <mutex>
#include <set>
#include <utility>

namespace fovea {
namespace {

struct Warnings {
  std::mutex mutex;
  WarningHandler handler;
  std::set<std::string> said;
};
Warnings& warnings() {
  static Warnings all;
  return all;
}

}  // namespace

WarningHandler set_warning_handler(WarningHandler handler) {
  Warnings& w = warnings();
  const std::lock_guard lock(w.mutex);
  w.said.clear();
  return std::exchange(w.handler, std::move(handler));
}

void warn_once(const std::string& line) {
  Warnings& w = warnings();
  const std::lock_guard lock(w.mutex);
  if (w.handler && w.said.insert(line).second) w.handler(line);
}

}  // namespace fovea
