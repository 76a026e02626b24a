// SPDX-License-Identifier: Apache-2.0
#pragma once
// One self-contained page on one or several runs: a table, curves, the differences between their
// configs, a sample.

#include <filesystem>
#include <vector>

namespace fovea::train {

// Writes `html`, and curves.svg, curves.png and curves.csv beside it, from the runs' config.toml,
// metrics.jsonl and sample.txt. Throws naming a run without metrics.
void write_report(const std::vector<std::filesystem::path>& runs,
                  const std::filesystem::path& html);

}  // namespace fovea::train
