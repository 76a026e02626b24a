// SPDX-License-Identifier: Apache-2.0
#include "distributed/device_group.h"

#include <unistd.h>

#include <array>
#include <fstream>
#include <map>

#include "core/cuda/device.h"
#include "core/warning.h"
#include "distributed/agreement.h"
#include "distributed/local_card.h"
#if defined(FOVEA_CUDA)
#include "distributed/card/nccl.h"
#endif

namespace fovea::distributed {
namespace {

RankCard card_here([[maybe_unused]] Device device) {
  RankCard card;
  std::array<char, 256> host{};
  gethostname(host.data(), host.size() - 1);
  card.host = host.data();
  // Containers of one machine have names of their own and one kernel.
  std::ifstream("/proc/sys/kernel/random/boot_id") >> card.machine;
  if (card.machine.empty()) card.machine = card.host;
#if defined(FOVEA_CUDA)
  card.bus = cuda::device_info(device.index).bus;
#endif
  card.nccl = find_nccl();
  return card;
}

std::vector<RankCard> cards_of(const Communicator& job, Device device) {
  const auto fields = [](RankCard& c) {
    return std::array{&c.host, &c.machine, &c.bus, &c.nccl.version, &c.nccl.why};
  };
  RankCard mine = card_here(device);
  std::vector<RankCard> cards(static_cast<size_t>(job.size()));
  for (size_t i = 0; i < fields(mine).size(); ++i) {
    const std::vector<std::string> texts = gather_text(job, *fields(mine)[i]);
    for (size_t r = 0; r < cards.size(); ++r) *fields(cards[r])[i] = texts[r];
  }
  return cards;
}

}  // namespace

Nccl find_nccl() {
#if defined(FOVEA_CUDA)
  try {
    return {nccl_version(), ""};
  } catch (const Error& error) {
    return {"", error.what()};
  }
#else
  return {"", "this build has no CUDA"};
#endif
}

std::string shared_card(const std::vector<RankCard>& ranks) {
  std::map<std::pair<std::string, std::string>, size_t> first;  // rank on a card
  for (size_t r = 0; r < ranks.size(); ++r) {
    const auto [at, mine] = first.try_emplace({ranks[r].machine, ranks[r].bus}, r);
    if (mine) continue;
    return concat("device cuda: ranks ", at->second, " and ", r, " share card ", ranks[r].bus,
                  " of ", ranks[r].host, ", so tensors of all ", ranks.size(),
                  " ranks go through the host; for NCCL start no more processes on a node than it "
                  "has cards (mpirun, srun)");
  }
  return "";
}

void check_nccl(const std::vector<RankCard>& ranks) {
  for (size_t r = 0; r < ranks.size(); ++r) {
    const Nccl &here = ranks[r].nccl, &first = ranks[0].nccl;
    FOVEA_CHECK(!here.version.empty(), "nccl: rank ", r, " on ", ranks[r].host, ": ", here.why);
    FOVEA_CHECK(here.version == first.version || first.version.empty(), "nccl: rank ", r, " on ",
                ranks[r].host, " has ", here.version, ", but rank 0 ", first.version,
                "; all need one version");
  }
}

Communicator device_group(const Communicator& job, Device device) {
  if (job.size() == 1 || device.is_cpu()) return job;
  if (device.kind == Device::Kind::interpreted) return job.on(device);
  check_local_card();
  const std::vector<RankCard> cards = cards_of(job, device);
  if (const std::string why = shared_card(cards); !why.empty()) {
    if (job.rank() == 0) warn_once(why);
    return job;
  }
  check_nccl(cards);
#if defined(FOVEA_CUDA)
  Communicator group(nccl_transport(job, device));
  group.set_time_limit(job.time_limit());
  return group;
#else
  detail::fail("device ", device, " is not in this build");
#endif
}

}  // namespace fovea::distributed
