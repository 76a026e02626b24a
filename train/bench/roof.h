// SPDX-License-Identifier: Apache-2.0
#pragma once
// What this machine can do, measured: the limits that benchmarks and the progress bar compare with.

#include <functional>

#include "core/device.h"
#include "core/dtype.h"

namespace fovea::train {

// One short sample (5 to 20 ms) of a limit with the present threads, in FLOP/s or bytes/s. A shared
// machine's limits come and go: a benchmark takes one after each of its own measurements and
// compares medians.
using RoofSample = std::function<double()>;
// A product of random matrices, 1024^3 on the cpu, 8192^3 on a card.
RoofSample product_roof(Dtype dtype, Device device = kCpu);
// Fused multiply-adds on registers in f32; a card's are its f32 products.
RoofSample fma_roof(Device device = kCpu);
// a <- b + s c over arrays far larger than the caches, three streams counted; a card copies, two.
RoofSample memory_roof(Device device = kCpu);

// Waits until the device has done what was asked of it.
void wait_for(Device device);

// The best of a few samples.
double measured(const RoofSample& roof);

}  // namespace fovea::train
