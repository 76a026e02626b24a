// SPDX-License-Identifier: Apache-2.0
#pragma once
// Loops that measure a machine's limits.

#include <cstdint>

#include "core/cpu/isa.h"

FOVEA_SIMD_DECLARE(
    // `rounds` times a dozen independent fused multiply-adds in registers; the result keeps the
    // compiler honest.
    float fma_rounds(int64_t rounds); int64_t fma_flops_a_round();
    // a <- b + 3 c, with stores past the caches: 12 bytes an element and no more
    void triad(float* a, const float* b, const float* c, int64_t n);)
