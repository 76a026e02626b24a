// SPDX-License-Identifier: Apache-2.0
#pragma once
// Makers that load_tokenizer (load.cpp) chooses among.

#include "data/tokenizer.h"

namespace fovea::data {

// Distinct characters in order of id. Throws when there is none or one stands twice.
std::unique_ptr<Tokenizer> character_tokenizer(std::vector<std::string> characters);

}  // namespace fovea::data
