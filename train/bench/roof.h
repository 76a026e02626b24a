// SPDX-License-Identifier: Apache-2.0
#pragma once
// What this machine can do, measured: the limits that benchmarks and the progress bar compare with.

#include "core/dtype.h"

namespace fovea::train {

// FLOP/s of a large matrix product (1024^3) in this dtype with the present threads: the best of a few, about 0.1 s.
double measured_peak_flops(Dtype dtype);
// FLOP/s of fused multiply-adds on registers in f32, all threads.
double measured_fma_flops();
// Bytes/s of a <- b + s c over arrays far larger than the caches (three streams counted), all threads.
double measured_triad_bandwidth();

}  // namespace fovea::train
