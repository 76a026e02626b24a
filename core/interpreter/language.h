// SPDX-License-Identifier: Apache-2.0
#pragma once
// CUDA's words for the C++ compiler, and launch(): what makes a .cu a source of the interpreted
// device.

#include <string_view>
#include <tuple>

#include "core/interpreter/intrinsics.h"
#include "core/interpreter/queue.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

#define threadIdx (::fovea::interpreted::thread().index)
#define blockIdx (::fovea::interpreted::thread().block_index)
#define blockDim (::fovea::interpreted::thread().block_dim)
#define gridDim (::fovea::interpreted::thread().grid_dim)

// One array per host thread, on which a block runs from its first line to its last.
#define FOVEA_SHARED(type, name, count) \
  static thread_local ::fovea::interpreted::SharedArray<type, (count)> name(#name)

namespace fovea::interpreted {

using dim3 = Dim3;

namespace detail {
// "fovea::interpreted::norm_forward_kernel<float>" from the name of an instantiation.
template <auto kKernel>
std::string kernel_name() {
  const std::string_view whole = __PRETTY_FUNCTION__;
  const size_t begin = whole.find("kKernel = ") + 10;
  std::string_view name = whole.substr(begin, whole.find("; ", begin) - begin);
  if (name.ends_with(']')) name.remove_suffix(1);
  for (const std::string_view prefix :
       {"fovea::interpreted::", "(anonymous namespace)::", "{anonymous}::"}) {
    const size_t at = name.find(prefix);
    if (at != std::string_view::npos && at < name.find('<')) name.remove_prefix(at + prefix.size());
  }
  return std::string(name);
}

template <auto kKernel, typename... P, typename... A>
void launch_as(void (*)(P...), const LaunchSpec& spec, Tape* tape, A&&... arguments) {
  // Pointers find their allocations here, once.
  const std::tuple<std::remove_cv_t<P>...> values(std::forward<A>(arguments)...);
  if (tape != nullptr)
    tape->push_back([spec, values] { run(spec, [&values] { std::apply(kKernel, values); }); });
  else
    run(spec, [&values] { std::apply(kKernel, values); });
}
}  // namespace detail

// Runs the kernel to its end, or puts it on the stream's tape.
template <auto kKernel, typename... A>
void launch(Dim3 grid, Dim3 block, size_t shared_bytes, Stream stream, A&&... arguments) {
  detail::launch_as<kKernel>(kKernel, {detail::kernel_name<kKernel>(), grid, block, shared_bytes},
                             tape_of(stream), std::forward<A>(arguments)...);
}

// A grid whose blocks wait for one another: each needs a host thread of its own. blocks_together is
// how many there are; a larger grid is an error that says so.
template <auto kKernel>
int64_t blocks_together(int /*threads*/, size_t /*shared_bytes*/) {
  return blocks_at_once();
}
template <auto kKernel, typename... A>
void launch_together(Dim3 grid, Dim3 block, size_t shared_bytes, Stream stream, A&&... arguments) {
  check_together(detail::kernel_name<kKernel>(), grid);
  launch<kKernel>(grid, block, shared_bytes, stream, std::forward<A>(arguments)...);
}

}  // namespace fovea::interpreted
