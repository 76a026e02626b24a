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
#include "core/version.h"
#include "distributed/device_group.h"
#include "distributed/local_card.h"
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

// What `mpirun -n P fovea train CONFIG --device=cuda` does on this node.
void cards_of_ranks() {
  std::cout << "\nranks, a card each (mpirun, srun)\n  ";
  distributed::Environment environment = distributed::environment_of_process();
  const auto card = [&](int rank) {
    environment["OMPI_COMM_WORLD_LOCAL_RANK"] = std::to_string(rank);
    return distributed::visible_card(environment, distributed::cards_of_node);
  };
  try {
    const std::optional<std::string> first = card(0);
    std::string cards = first.value_or("");
    int ranks = 1;
    for (; first && card(ranks) != first; ++ranks) cards += ", " + *card(ranks);
    if (first)
      std::cout << "local ranks 0 to " << ranks - 1 << " take cards " << cards
                << "; more of them share these and go through the host\n";
    else if (const auto list = environment.find("CUDA_VISIBLE_DEVICES"); list != environment.end())
      std::cout << "CUDA_VISIBLE_DEVICES is \"" << list->second << "\", and all ranks keep it\n";
    else
      std::cout << distributed::cards_of_node() << " cards on this node\n";
  } catch (const Error& error) {
    std::cout << error.what() << '\n';
  }
  const distributed::Nccl nccl = distributed::find_nccl();
  std::cout << "  NCCL " << (nccl.why.empty() ? nccl.version : "missing: " + nccl.why) << '\n';
}

void doctor() {
  std::cout << "fovea " << version() << "\n\nprocessor\n  " << cpu_name()
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
  cards_of_ranks();
}

}  // namespace

void add_doctor(CLI::App& program, int&) {
  program.add_subcommand("doctor", "what this machine has, how fast it is, and what is missing")
      ->callback(doctor);
}

}  // namespace fovea::train::cli
