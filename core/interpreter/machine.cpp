// SPDX-License-Identifier: Apache-2.0
#include "core/interpreter/machine.h"

#include <cstdlib>

#include "core/interpreter/block.h"
#include "core/interpreter/memory.h"
#include "core/parallel.h"

namespace fovea::interpreted {
namespace {

constexpr size_t kSharedMost = size_t{227} << 10;  // of a block, on sm_90
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
  const std::string_view file = where.file_name();
  // Below the project's root: a kernel's path starts with one of its folders.
  size_t at = file.size();
  for (int part = 0; part < 3 && at != std::string_view::npos && at > 0; ++part)
    at = file.rfind('/', at - 1);
  return concat(file.substr(at == std::string_view::npos ? 0 : at + 1), ':', where.line());
}

// ---- what threads call --------------------------------------------------------------------------

Thread& thread() {
  Thread* t = Block::current();
  FOVEA_CHECK(t != nullptr, "interpreter: used outside a kernel");
  return *t;
}

void fault(const std::string& words, const Where& where) {
  const Thread& t = thread();
  t.block->fault_at(t, words, where);
}

Dim3 block_index() { return thread().block->index(); }
Dim3 block_dim() { return thread().block->spec().block; }
Dim3 grid_dim() { return thread().block->spec().grid; }

void block_barrier(const Where& where) {
  Thread& t = thread();
  t.block->barrier(t, 0, 0, true, where);
}

void named_barrier(int id, int count, bool wait, const Where& where) {
  if (id < 1 || id >= kBarriers) fault(concat("barrier ", id, " is not one of 1 to 15"), where);
  if (count <= 0 || count % kWarp != 0)
    fault(concat("barrier ", id, " counts ", count, " threads; expected a multiple of 32"), where);
  Thread& t = thread();
  t.block->barrier(t, id, count, wait, where);
}

void pause(const Where&) {
  Thread& t = thread();
  t.block->wait();
}

void meet(const char* what, unsigned mask, void* deposit, void (*act)(void*, void* const*),
          void* context, const Where& where) {
  Thread& t = thread();
  t.block->meet(t, what, mask, deposit, act, context, where);
}

void run(const LaunchSpec& spec, const std::function<void()>& body) {
  const Dim3 &g = spec.grid, &b = spec.block;
  const int64_t threads = int64_t{b.x} * b.y * b.z;
  FOVEA_CHECK(threads >= 1 && threads <= kThreadsMost, "kernel ", spec.kernel, ": ", threads,
              " threads a block; expected 1 to ", kThreadsMost);
  FOVEA_CHECK(
      g.x >= 1 && g.y >= 1 && g.z >= 1 && g.x <= 0x7fffffffu && g.y <= 65535 && g.z <= 65535,
      "kernel ", spec.kernel, ": a grid of ", describe(g));
  FOVEA_CHECK(spec.shared_bytes <= kSharedMost, "kernel ", spec.kernel, ": ", spec.shared_bytes,
              " bytes of shared memory; a block has at most ", kSharedMost);
  const int64_t blocks = int64_t{g.x} * g.y * g.z;
  const Access access;
  // A host thread takes every n-th block: its fibers and its shared memory are made once.
  const int64_t workers = std::min<int64_t>(blocks, num_threads());
  parallel_for_each(0, workers, [&](int64_t worker) {
    Block block(spec, body);
    for (int64_t i = worker; i < blocks; i += workers)
      block.run(Dim3(i % g.x, i / g.x % g.y, i / g.x / g.y));
  });
}

void set_seed(std::optional<uint64_t> value) { seed() = value; }

}  // namespace fovea::interpreted
