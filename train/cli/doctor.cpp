// SPDX-License-Identifier: Apache-2.0
#include <hdf5.h>
#include <omp.h>
#include <zlib.h>

#include <dnnl.hpp>
#include <fstream>
#include <iostream>

#include "core/allocator.h"
#include "core/cpu/isa.h"
#include "core/cuda/device.h"
#include "core/parallel.h"
#include "train/bench/roof.h"
#include "train/cli/cli.h"
#include "train/progress.h"

namespace fovea::train::cli {
namespace {

std::string memory_line() {
  std::ifstream file("/proc/meminfo");
  std::string key, unit;
  int64_t kib = 0, total = 0, available = 0;
  while (file >> key >> kib >> unit) {
    if (key == "MemTotal:") total = kib;
    if (key == "MemAvailable:") available = kib;
  }
  return short_bytes(total * 1024) + ", " + short_bytes(available * 1024) + " available";
}

void package(const std::string& path, const std::string& what, const std::string& install) {
  std::cout << "  " << what << ": "
            << (std::filesystem::exists(path) ? "there" : "missing; apt-get install " + install)
            << '\n';
}

std::string device_line(Device device) {
  if (device.is_cpu()) return "cpu";
  try {
    const DeviceInfo info = FOVEA_GPU_CALL(device, device_info, device.index);
    std::string line = concat(device, ": ", info.name);
    if (info.architecture > 0)
      line += concat(", sm_", info.architecture, ", ", info.processors, " processors, ",
                     short_bytes(info.memory_bytes), ", ", short_bytes(info.free_bytes), " free");
    return line;
  } catch (const Error& error) {
    return concat(device, ": not usable: ", error.what());
  }
}

void doctor() {
  std::cout << "fovea " FOVEA_VERSION "\n\nprocessor\n  " << cpu_name()
            << "\n  kernels: " << name(cpu_isa()) << ", " << num_threads()
            << " threads\n  memory: " << memory_line()
            << "\n  matrix products: " << measured(product_roof(Dtype::f32)) * 1e-9
            << " GFLOP/s f32, " << measured(product_roof(Dtype::bf16)) * 1e-9
            << " GFLOP/s bf16\n  multiply-adds: " << measured(fma_roof()) * 1e-9
            << " GFLOP/s f32\n  memory bandwidth (triad): " << measured(memory_roof()) * 1e-9
            << " GB/s\n";
  const dnnl::version_t* dnn = dnnl::version();
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  std::cout << "\nlibraries\n  oneDNN " << dnn->major << '.' << dnn->minor << '.' << dnn->patch
            << ", threads by "
            << (dnn->cpu_runtime == DNNL_RUNTIME_OMP ? "OpenMP" : "another runtime") << "\n  HDF5 "
            << major << '.' << minor << '.' << release << "\n  zlib " << zlibVersion()
            << "\n\ndata\n";
  package("/usr/bin/bible", "text of the King James Bible (fovea data prepare kjv)",
          "bible-kjv bible-kjv-text");
  package("/usr/share/datasets/fashion-mnist", "Fashion-MNIST (fovea data prepare fashion-mnist)",
          "dataset-fashion-mnist");
  std::cout << "\ndevices\n";
  for (const Device device : devices_of_build()) std::cout << "  " << device_line(device) << '\n';
}

}  // namespace

void add_doctor(CLI::App& program, int&) {
  program.add_subcommand("doctor", "what this machine has, how fast it is, and what is missing")
      ->callback(doctor);
}

}  // namespace fovea::train::cli
