// SPDX-License-Identifier: Apache-2.0
#pragma once
// What this machine can do, measured: the limits that benchmarks and the progress bar compare with.

#include <functional>

#include "core/dtype.h"

namespace fovea::train {

// One short sample (5 to 20 ms) of a limit with the present threads, in FLOP/s or bytes/s. A shared
// machine's limits come and go: a benchmark takes one after each of its own measurements and
// compares medians.
using RoofSample = std::function<double()>;
RoofSample product_roof(Dtype dtype);  // a 1024^3 matrix product
RoofSample fma_roof();                 // fused multiply-adds on registers in f32
RoofSample
triad_roof();  // a <- b + s c over arrays far larger than the caches, three streams counted

// The best of a few samples.
double measured(const RoofSample& roof);

}  // namespace fovea::train
