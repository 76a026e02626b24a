// SPDX-License-Identifier: Apache-2.0
// Every file under experiments/ loads; those whose data are made up also take a step.
#include <gtest/gtest.h>

#include <cmath>

#include "train/trainer.h"

namespace fovea::train {
namespace {

TEST(Experiments, EveryFileLoadsAndMadeUpDataTrain) {
  int files = 0, trained = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator("experiments")) {
    if (entry.path().extension() != ".toml") continue;
    SCOPED_TRACE(entry.path().string());
    ++files;
    Experiment experiment;
    ASSERT_NO_THROW(config::load(experiment, entry.path(), {{"train.batch", "8"}}));
    EXPECT_EQ(experiment.name, entry.path().stem().string());
    bool on_disk = false;
    config::Fields fields;
    experiment.data.options().describe(fields);
    for (const config::Field& field : fields.fields()) on_disk = on_disk || field.key == "path";
    if (on_disk) continue;
    ++trained;
    Trainer trainer(experiment);
    const double loss = trainer.step().loss,
                 chance = std::log(static_cast<double>(trainer.data().vocab_size));
    EXPECT_GT(loss, 0.5 * chance);
    EXPECT_LT(loss, 4.0 * chance);
  }
  EXPECT_GE(files, 9);
  EXPECT_GE(trained, 6);
}

}  // namespace
}  // namespace fovea::train
