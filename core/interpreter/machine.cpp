// SPDX-License-Identifier: Apache-2.0
#include "core/interpreter/machine.h"

#include <cstdlib>
#include <utility>

#include "core/interpreter/block.h"
#include "core/interpreter/memory.h"
#include "core/parallel.h"

namespace fovea::interpreted {
namespace {

constexpr int kThreadsMost = 1024;

}  // namespace

std::optional<uint64_t>& seed() {
  static std::optional<uint64_t> value = [] {
    const char* text = std::getenv("FOVEA_INTERPRETER_SEED");
    return text == nullptr ? std::nullopt
                           : std::optional<uint64_t>(std::strtoull(text, nullptr, 10));
  }();
  return value;
}

std::string describe(const Dim3& d) { return concat('(', d.x, ", ", d.y, ", ", d.z, ')'); }

std::string short_file(const Where& where) {
  // Below the project's root, which ends where this file's path in it begins.
  constexpr std::string_view here = "core/interpreter/machine.cpp";
  std::string_view root = Where::current().file_name(), file = where.file_name();
  root.remove_suffix(std::min(root.size(), here.size()));
  if (file.starts_with(root)) file.remove_prefix(root.size());
  return concat(file, ':', where.line());
}

// ---- what threads call --------------------------------------------------------------------------

void fault_outside_kernel() { fovea::detail::fail("interpreter: used outside a kernel"); }

void fault(const std::string& words, const Where& where) {
  const Thread& t = thread();
  t.block->fault_at(t, words, where);
}

void run(const LaunchSpec& spec, const std::function<void()>& body) {
  const Dim3 &g = spec.grid, &b = spec.block;
  const int64_t threads = int64_t{b.x} * b.y * b.z;
  FOVEA_CHECK(threads >= 1 && threads <= kThreadsMost, "kernel ", spec.kernel, ": ", threads,
              " threads a block; expected 1 to ", kThreadsMost);
  FOVEA_CHECK(
      g.x >= 1 && g.y >= 1 && g.z >= 1 && g.x <= 0x7fffffffu && g.y <= 65535 && g.z <= 65535,
      "kernel ", spec.kernel, ": a grid of ", describe(g), "; expected 1 to ",
      describe(Dim3(0x7fffffffu, 65535, 65535)));
  FOVEA_CHECK(spec.shared_bytes <= kSharedMost, "kernel ", spec.kernel, ": ", spec.shared_bytes,
              " bytes of shared memory; a block has at most ", kSharedMost);
  const int64_t blocks = int64_t{g.x} * g.y * g.z;
  const Access access;
  // Blocks are begun in order, so that one may wait for those before it.
  const int64_t workers = std::min(blocks, blocks_at_once());
  std::atomic<int64_t> next = 0;
  Waits waits(workers);
  parallel_for_each(0, workers, [&](int64_t worker) {
    struct End {
      Waits& waits;
      int64_t worker;
      ~End() { waits.ended(worker); }
    } end{waits, worker};
    Block block(spec, body, waits, worker);
    for (int64_t i = next++; i < blocks; i = next++)
      block.run(Dim3(i % g.x, i / g.x % g.y, i / g.x / g.y));
  });
}

int64_t blocks_at_once() { return fovea::detail::in_parallel_region() ? 1 : num_threads(); }

void check_together(const std::string& kernel, const Dim3& grid) {
  const int64_t blocks = int64_t{grid.x} * grid.y * grid.z, most = blocks_at_once();
  FOVEA_CHECK(blocks <= most, "kernel ", kernel, ": a grid of ", describe(grid),
              " whose blocks wait for one another; ", most, " run at once");
}

std::optional<uint64_t> set_seed(std::optional<uint64_t> value) {
  return std::exchange(seed(), value);
}

}  // namespace fovea::interpreted
