// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a user should know though nothing is wrong: a slower way that is taken, say. A library never
// prints: the program gives the place where lines go.

#include <functional>
#include <string>

namespace fovea {

using WarningHandler = std::function<void(const std::string& line)>;

// Where warnings go from now on; an empty handler, as at first, drops them. Returns the one before.
WarningHandler set_warning_handler(WarningHandler handler);

// Gives the line to the handler, once however often it is said. Any thread may call.
void warn_once(const std::string& line);

}  // namespace fovea
