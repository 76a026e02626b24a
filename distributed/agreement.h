// SPDX-License-Identifier: Apache-2.0
#pragma once
// What ranks tell one another in words: texts, and whether all hold the same.

#include <string>
#include <string_view>
#include <vector>

#include "distributed/communicator.h"

namespace fovea::distributed {

// Rank `root`'s text, on every rank. Collective.
std::string broadcast_text(const Communicator& comm, const std::string& text, int root);
// Every rank gives the text of something that all must hold alike (version, config, shapes). Throws
// on every rank, naming the first rank that differs from rank 0 and both texts' first line that
// does, unless all are equal. Collective.
void check_agree(const Communicator& comm, const std::string& what, const std::string& text);
// The same by hash, of what is too long to be said.
void check_agree(const Communicator& comm, const std::string& what, uint64_t hash);
// The text of every rank. Collective.
std::vector<std::string> gather_text(const Communicator& comm, const std::string& text);
// FNV-1a.
uint64_t hash_of(std::string_view text);

}  // namespace fovea::distributed
