// SPDX-License-Identifier: Apache-2.0
#pragma once
// Loops over rows in vectors, for the *.simd.cpp beside this file.

#include <cstdint>

#include "core/cpu/simd.h"

namespace FOVEA_SIMD {

// f(i, mask, tail): full vectors first, then what is left.
template <typename F>
FOVEA_INLINE void over(int64_t count, F&& f) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) f(i, first_lanes(kLanes), false);
  if (i < count) f(i, first_lanes(count - i), true);
}

template <typename T>
FOVEA_INLINE Vec get(const T* p, Mask k, bool tail) {
  return tail ? load(p, k) : load(p);
}
template <typename T>
FOVEA_INLINE void put(T* p, Vec x, Mask k, bool tail) {
  if (tail)
    store(p, x, k);
  else
    store(p, x);
}

// Full vectors past the caches when `streams` (then p is aligned to a cache line).
template <typename T>
FOVEA_INLINE void put(T* p, Vec x, Mask k, bool tail, bool streams) {
  if (tail)
    store(p, x, k);
  else if (streams)
    stream(p, x);
  else
    store(p, x);
}
FOVEA_INLINE bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 64 == 0; }

}  // namespace FOVEA_SIMD
