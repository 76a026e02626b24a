// SPDX-License-Identifier: Apache-2.0
#pragma once
// Vendor libraries are loaded when first needed, never linked: a program starts without them, and
// says which one is missing.

#include <initializer_list>
#include <string>

namespace fovea::cuda {

// A shared library, open until the program ends.
class Library {
 public:
  // Tries the names one after another: as the loader finds them, in the folders of the environment
  // variable FOVEA_CUDA_LIBS (separated by ':'), then in the toolkit's. Throws naming what was
  // tried.
  explicit Library(std::initializer_list<const char*> names);

  // Throws naming the library and the function it lacks.
  template <typename F>
  F function(const char* name) const {
    return reinterpret_cast<F>(symbol(name));
  }

 private:
  void* symbol(const char* name) const;

  void* handle_ = nullptr;
  std::string name_;
};

}  // namespace fovea::cuda

// A member that holds the function of that name of a Library called `library`.
#define FOVEA_LIBRARY_FUNCTION(name) \
  decltype(&::name) name = library.function<decltype(&::name)>(#name)
