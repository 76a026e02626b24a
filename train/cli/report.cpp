// SPDX-License-Identifier: Apache-2.0
#include "train/report/report.h"

#include <iostream>

#include "train/cli/cli.h"

namespace fovea::train::cli {

void add_report(CLI::App& program, int&) {
  CLI::App* report = program.add_subcommand(
      "report", "one page (HTML, with SVG, PNG and CSV beside it) on one or several runs");
  static std::vector<std::string> runs;
  static std::string out;
  report->add_option("RUN", runs, "run folders")->required();
  report->add_option("--out", out, "file to write; default: report.html in the first run");
  report->callback([] {
    std::vector<std::filesystem::path> folders;
    folders.reserve(runs.size());
    for (const std::string& run : runs) folders.push_back(RunFolder::open(run).path());
    const std::filesystem::path page =
        out.empty() ? folders.front() / "report.html" : std::filesystem::path(out);
    write_report(folders, page);
    std::cout << page.string() << '\n';
  });
}

}  // namespace fovea::train::cli
