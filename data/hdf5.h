// SPDX-License-Identifier: Apache-2.0
#pragma once
// Data sets in one HDF5 file with groups `train` and `val`, each holding one of
//   images [N, C, H, W] or [N, H, W] (u8, or floats in [0, 1]) and labels [N];
//   tokens [N, T + 1]: sequences of which each token but the first is a target;
//   inputs [N, T] and targets [N, T] (-100: not scored);
// and beside sequences, where they are packed, documents [N, T] (-1: padding, which is not scored).
// Rows are read when they are drawn.

#include "data/image/images.h"

namespace fovea::data {

struct Hdf5Options : ImageOptions {
  int64_t vocab_size = 0;  // of sequences; 0: the file's attribute vocab_size
  void describe(config::Fields& f) override;
};

// Throws naming file and dataset for what is missing, of another shape, or out of range.
std::unique_ptr<Source> make_hdf5(const Hdf5Options& options, Split split);

}  // namespace fovea::data
