// SPDX-License-Identifier: Apache-2.0
#pragma once
// Errors. The library throws fovea::Error (it never prints and never exits); only the command line
// turns one into a line on the terminal and an exit code. A message says where, what was found
// (with names and shapes), what was expected, and what to do.

#include <sstream>
#include <stdexcept>
#include <string>

namespace fovea {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The arguments written one after another with operator<<.
template <typename... Args>
std::string concat(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

namespace detail {
template <typename... Args>
[[noreturn, gnu::noinline, gnu::cold]] void fail(const Args&... args) {
  throw Error(concat(args...));
}
}  // namespace detail

}  // namespace fovea

// Always on, host side: FOVEA_CHECK(k.dim(-1) == q.dim(-1), "softmax: q ", q.shape(), " and k ",
// k.shape(), " differ in D").
#define FOVEA_CHECK(condition, ...)       \
  do {                                    \
    if (!(condition)) [[unlikely]]        \
      ::fovea::detail::fail(__VA_ARGS__); \
  } while (false)
