// SPDX-License-Identifier: Apache-2.0
#pragma once
// [model]: the models of nn/ with their attention, which nn/ does not know, chosen by name.

#include "core/config/config.h"
#include "nn/gpt.h"
#include "nn/vit.h"

namespace fovea::train {

struct GptModelOptions : nn::GptOptions {
  GptModelOptions();
  config::Choice attention;  // [model.attention] kind = a folder under attention/
  void describe(config::Fields& f) override;
};

struct VitModelOptions : nn::VitOptions {
  VitModelOptions();
  config::Choice attention;
  void describe(config::Fields& f) override;
};

// kind = "gpt" | "vit"
config::Choice model_choice();

}  // namespace fovea::train
