// SPDX-License-Identifier: Apache-2.0
#pragma once
// Exponentials of gates, and products whose every term has a decay of its own, in f32.

#include <cstdint>

#include "core/cpu/isa.h"

FOVEA_SIMD_DECLARE(
    // x [n] <- e^x
    void exp_all(float* x, int64_t n);
    // s[i, j] (rows 64 apart) = sum_c q[i, c] k[j, c] e^(b[i, c] - b[j, c]) for j <= i; q, k, b
    // [rows, channels]
    void decayed_products(float* s, const float* q, const float* k, const float* b, int64_t rows,
                          int64_t channels);
    // dq[i, c] += sum_j ds[i, j] k[j, c] e^(b[i, c] - b[j, c]) over j <= i, and dk[j, c] likewise
    void decayed_products_backward(float* dq, float* dk, const float* ds, const float* q,
                                   const float* k, const float* b, int64_t rows, int64_t channels);)
