// SPDX-License-Identifier: Apache-2.0
#include "core/card/library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <sstream>
#include <vector>

#include "core/error.h"

namespace fovea::cuda {
namespace {

std::vector<std::string> folders() {
  std::vector<std::string> found{""};  // the loader's own
  if (const char* list = std::getenv("FOVEA_CUDA_LIBS")) {
    std::istringstream rest(list);
    for (std::string folder; std::getline(rest, folder, ':');)
      if (!folder.empty()) found.push_back(folder + '/');
  }
  found.push_back(FOVEA_CUDA_TOOLKIT_LIBS "/");
  return found;
}

}  // namespace

Library::Library(std::initializer_list<const char*> names) {
  std::string tried;
  for (const std::string& folder : folders()) {
    for (const char* name : names) {
      name_ = folder + name;
      handle_ = dlopen(name_.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (handle_ != nullptr) return;
      tried += (tried.empty() ? "" : ", ") + name_;
    }
  }
  fovea::detail::fail("cuda: found none of ", tried,
                      "; install the library or name its folder in FOVEA_CUDA_LIBS");
}

void* Library::symbol(const char* name) const {
  void* at = dlsym(handle_, name);
  FOVEA_CHECK(at != nullptr, "cuda: ", name_, " has no ", name);
  return at;
}

}  // namespace fovea::cuda
