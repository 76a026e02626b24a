// SPDX-License-Identifier: Apache-2.0
#include "core/interpreter/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <string_view>

#include "core/error.h"

namespace fovea::interpreted {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kReserved = size_t{1} << 40;  // of addresses; memory is taken as it is touched

// All device memory lies in one range of addresses, so that one call opens or closes it.
class Arena {
 public:
  Arena() {
    void* range =
        mmap(nullptr, kReserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    FOVEA_CHECK(range != MAP_FAILED, "interpreter: no addresses for device memory");
    begin_ = static_cast<std::byte*>(range);
    explain_faults();
  }
  static Arena& one() {
    static auto* arena =
        new Arena;  // never destroyed: tensors with static lifetime outlive any order
    return *arena;
  }

  // Pages, and one more that belongs to nobody.
  std::byte* take(size_t bytes) {
    const size_t room = (bytes + kPage - 1) / kPage * kPage + kPage;
    for (auto hole = free_.begin(); hole != free_.end(); ++hole) {
      const auto [at, size] = *hole;
      if (size < room) continue;
      free_.erase(hole);
      if (size > room) free_.emplace(at + room, size - room);
      return begin_ + at;
    }
    if (high_ + room > kReserved) return nullptr;
    std::byte* at = begin_ + high_;
    if (open_ > 0 && mprotect(at, room, PROT_READ | PROT_WRITE) != 0) return nullptr;
    high_ += room;
    return at;
  }
  void give(std::byte* block, size_t bytes) {
    size_t room = (bytes + kPage - 1) / kPage * kPage + kPage;
    madvise(block, room, MADV_DONTNEED);
    auto at = static_cast<size_t>(block - begin_);
    auto next = free_.upper_bound(at);
    if (next != free_.end() && next->first == at + room) {
      room += next->second;
      next = free_.erase(next);
    }
    if (next != free_.begin()) {
      if (const auto before = std::prev(next); before->first + before->second == at) {
        before->second += room;
        return;
      }
    }
    free_.emplace(at, room);
  }
  void open() {
    const std::unique_lock lock(mutex);
    if (open_++ == 0) protect(PROT_READ | PROT_WRITE);
  }
  void close() {
    const std::unique_lock lock(mutex);
    if (--open_ == 0) protect(PROT_NONE);
  }

  std::shared_mutex mutex;                                  // of everything here
  std::map<uintptr_t, std::unique_ptr<Allocation>> blocks;  // by first byte

 private:
  void protect(int how) {
    FOVEA_CHECK(high_ == 0 || mprotect(begin_, high_, how) == 0,
                "interpreter: device memory cannot be ", how == PROT_NONE ? "closed" : "opened");
  }
  void explain_faults();
  static void explain(int signal, siginfo_t* info, void* context);
  static struct sigaction& former() {
    static struct sigaction action {};
    return action;
  }

  std::byte* begin_ = nullptr;
  size_t high_ = 0;
  int open_ = 0;
  std::map<size_t, size_t> free_;  // offset, size
};

void Arena::explain(int signal, siginfo_t* info, void*) {
  const auto* at = static_cast<const std::byte*>(info->si_addr);
  if (at >= one().begin_ && at < one().begin_ + kReserved) {
    constexpr std::string_view words =
        "fovea: host code touches the memory of the interpreted device outside a kernel; bring the "
        "tensor home with to(kCpu)\n";
    [[maybe_unused]] const ssize_t n = write(STDERR_FILENO, words.data(), words.size());
  }
  sigaction(signal, &former(), nullptr);  // and again, as before
}

void Arena::explain_faults() {
  struct sigaction action {};
  action.sa_sigaction = explain;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, &former());
}

}  // namespace

void* device_allocate(size_t bytes) {
  Arena& arena = Arena::one();
  std::byte* begin = nullptr;
  {
    const std::unique_lock lock(arena.mutex);
    begin = arena.take(bytes);
    if (begin == nullptr) return nullptr;
    arena.blocks.emplace(
        reinterpret_cast<uintptr_t>(begin),
        std::make_unique<Allocation>(Allocation{begin, bytes, std::make_unique<uint8_t[]>(bytes)}));
  }
  const Access access;
  std::memset(begin, 0xFF, bytes);
  return begin;
}

void device_free(void* block) noexcept {
  Arena& arena = Arena::one();
  const std::unique_lock lock(arena.mutex);
  const auto found = arena.blocks.find(reinterpret_cast<uintptr_t>(block));
  if (found == arena.blocks.end()) return;
  arena.give(found->second->begin, found->second->bytes);
  arena.blocks.erase(found);
}

const Allocation* find_allocation(const void* at) {
  Arena& arena = Arena::one();
  const auto address = reinterpret_cast<uintptr_t>(at);
  const std::shared_lock lock(arena.mutex);
  auto next = arena.blocks.upper_bound(address);
  if (next == arena.blocks.begin()) return nullptr;
  const Allocation* block = std::prev(next)->second.get();
  const size_t offset = address - reinterpret_cast<uintptr_t>(block->begin);
  // A pointer just past the end, and one to an empty block, still belong to it: they may be held.
  return offset <= block->bytes ? block : nullptr;
}

void mark_written(void* at, size_t bytes) {
  if (bytes == 0) return;
  const Allocation* block = find_allocation(at);
  FOVEA_CHECK(block != nullptr, "interpreter: the host writes ", bytes,
              " bytes where no device memory is");
  const auto offset = static_cast<size_t>(static_cast<std::byte*>(at) - block->begin);
  FOVEA_CHECK(offset + bytes <= block->bytes, "interpreter: the host writes ", bytes,
              " bytes at offset ", offset, " of a block of ", block->bytes);
  std::memset(block->written.get() + offset, 1, bytes);
}

Access::Access() { Arena::one().open(); }
Access::~Access() { Arena::one().close(); }

}  // namespace fovea::interpreted
