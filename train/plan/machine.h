// SPDX-License-Identifier: Apache-2.0
#pragma once
// What the devices of a job can do: said, or measured here.

#include <string>

#include "train/plan/gpt_sizes.h"

namespace fovea::train {

// A device and its links. The defaults are an H200's published numbers where there are any
// (141 GB; 4.8 TB/s; NVLink 4: 450 GB/s each way; ConnectX-7: 50 GB/s each way); rates of kernels
// and latencies are assumptions.
struct Machine {
  double memory = 141e9;             // bytes
  double memory_bandwidth = 4.8e12;  // bytes/s
  double products = 600e12;          // FLOP/s of products
  double attention = 500e12;         // FLOP/s of attention forward, counting allowed pairs
  double attention_backward = 400e12;
  int64_t node = 0;          // devices of a node; 0: all are in one
  double bandwidth = 450e9;  // bytes/s that a device sends inside a node, each way
  double network = 50e9;     // and out of it
  double latency = 5e-6;     // s, of a message
  bool measured = false;
};

// "141GiB", "450GB/s", "5us", "600TFLOP/s" in bytes, seconds, FLOP. A number of `unit` ("B", "B/s",
// "s", "FLOP/s"), with k, M, G, T (n, u, m for s) or Ki, Mi, Gi, Ti before it. Throws naming
// `option`.
double parse_quantity(const std::string& option, const std::string& text, const std::string& unit);

// A share 1/devices of this machine, of which all devices are threads: products of the model's own
// shapes with `rows` tokens, attention of its heads, memory. Some seconds.
Machine measure_machine(const GptSizes& sizes, int64_t rows, Device device, int64_t devices);

}  // namespace fovea::train
