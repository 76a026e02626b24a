// SPDX-License-Identifier: Apache-2.0
#include "distributed/agreement.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <sstream>

namespace fovea::distributed {
namespace {

std::vector<uint64_t> all_hashes(const Communicator& comm, uint64_t hash) {
  const Tensor all = Tensor::empty({comm.size()}, Dtype::i64);
  comm.all_gather(all, Tensor::from(std::vector<int64_t>{std::bit_cast<int64_t>(hash)}, {1}))
      .wait();
  const auto* hashes = reinterpret_cast<const uint64_t*>(all.data<int64_t>());
  return {hashes, hashes + comm.size()};
}

// The first rank whose hash is not rank 0's; 0: none.
int first_other(const std::vector<uint64_t>& hashes) {
  const auto other =
      std::find_if(hashes.begin(), hashes.end(), [&](uint64_t hash) { return hash != hashes[0]; });
  return other == hashes.end() ? 0 : static_cast<int>(other - hashes.begin());
}

}  // namespace

std::string broadcast_text(const Communicator& comm, const std::string& text, int root) {
  const Tensor size = Tensor::from(std::vector<int64_t>{static_cast<int64_t>(text.size())}, {1});
  comm.broadcast(size, root).wait();
  std::vector<uint8_t> bytes(text.begin(), text.end());
  bytes.resize(static_cast<size_t>(size.data<int64_t>()[0]));
  const Tensor there = Tensor::from(bytes, {size.data<int64_t>()[0]});
  comm.broadcast(there, root).wait();
  return {there.data<uint8_t>(), there.data<uint8_t>() + there.numel()};
}

void check_agree(const Communicator& comm, const std::string& what, const std::string& text) {
  const int other = first_other(all_hashes(comm, hash_of(text)));
  if (other == 0) return;
  std::istringstream first(broadcast_text(comm, text, 0)),
      second(broadcast_text(comm, text, other));
  std::string expected, found;
  while (expected == found && (first || second)) {
    if (!std::getline(first, expected)) expected = "nothing";
    if (!std::getline(second, found)) found = "nothing";
  }
  detail::fail(what, ": rank ", other, " differs from rank 0: ", found, ", not ", expected,
               "; start every rank with the same");
}

void check_agree(const Communicator& comm, const std::string& what, uint64_t hash) {
  const std::vector<uint64_t> hashes = all_hashes(comm, hash);
  const int other = first_other(hashes);
  FOVEA_CHECK(other == 0, what, ": rank ", other, " differs from rank 0 (hash ", std::hex,
              hashes[static_cast<size_t>(other)], " and ", hashes[0], ')');
}

std::vector<std::string> gather_text(const Communicator& comm, const std::string& text) {
  const auto length = static_cast<int64_t>(text.size());
  const Tensor longest = Tensor::from(std::vector<int64_t>{length}, {1});
  comm.all_reduce(longest, Reduce::max).wait();
  const int64_t n = longest.data<int64_t>()[0];
  const Tensor mine = Tensor::zeros({n}, Dtype::u8),
               all = Tensor::empty({comm.size(), n}, Dtype::u8);
  std::memcpy(mine.raw(), text.data(), text.size());
  comm.all_gather(all, mine).wait();
  std::vector<std::string> texts;
  for (int r = 0; r < comm.size(); ++r) {
    const auto* at = static_cast<const char*>(all.raw()) + r * n;
    texts.emplace_back(at, strnlen(at, static_cast<size_t>(n)));
  }
  return texts;
}

uint64_t hash_of(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

}  // namespace fovea::distributed
