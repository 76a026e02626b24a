// SPDX-License-Identifier: Apache-2.0
#pragma once
// Golden files (<system>__<case>.h5): attributes system, case, options (JSON); groups inputs,
// params, outputs, cotangents, grads, all in f64, from an independent reference. Checking one runs
// the system's operator forward and backward.

#include <filesystem>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/tensor.h"

namespace fovea::attention {

struct GoldenResult {
  std::string system, golden_case, options;
  // Group and name ("outputs/out", "grads/q"), in f64.
  std::vector<std::pair<std::string, Tensor>> tensors;
};

// Runs the operator on a golden file's inputs in `dtype` (f64, on the cpu alone; f32 or bf16).
// Throws naming what the file lacks, has too much, or holds in the wrong shape.
GoldenResult run_golden(const std::filesystem::path& file, Dtype dtype, Device device = kCpu);

struct GoldenError {
  std::string tensor;  // "grads/q"
  double error = 0.0;  // |x - reference| / |reference|; the norm of x where the reference is zero
  double tolerance = 0.0;
  bool passed() const { return error <= tolerance; }  // false for NaN
};
// One entry for every tensor in the file's outputs and grads. Tolerances: f64 1e-9; f32 1e-5
// outputs, 1e-4 grads; bf16 2e-2.
std::vector<GoldenError> check_golden(const std::filesystem::path& file, Dtype dtype,
                                      Device device = kCpu);

// Writes the results where a golden file has its own: groups outputs and grads, attributes system,
// case, options.
void write_golden_result(const GoldenResult& result, const std::filesystem::path& file);

}  // namespace fovea::attention
