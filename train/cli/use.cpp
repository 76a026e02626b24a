// SPDX-License-Identifier: Apache-2.0
// Verbs that use a trained model: eval, sample.
#include <cmath>
#include <iostream>
#include <limits>

#include "train/cli/cli.h"
#include "train/sampler.h"

namespace fovea::train::cli {
namespace {

// Bytes at the end of `text` that begin a UTF-8 character without finishing it.
size_t unfinished(const std::string& text) {
  for (size_t back = 1; back <= std::min<size_t>(3, text.size()); ++back) {
    const auto byte = static_cast<unsigned char>(text[text.size() - back]);
    if ((byte >> 6) == 0b10) continue;
    const size_t length = byte < 0x80              ? 1
                          : (byte >> 5) == 0b110   ? 2
                          : (byte >> 4) == 0b1110  ? 3
                          : (byte >> 3) == 0b11110 ? 4
                                                   : 1;
    return length > back ? back : 0;
  }
  return 0;
}

void evaluate(const std::string& run, const std::string& which, int64_t samples) {
  const RunFolder folder = RunFolder::open(run);
  Experiment experiment;
  load_experiment(experiment, folder);
  Trainer trainer(experiment);
  trainer.load_weights(folder.load(which));
  const EvalSums sums = trainer.evaluate(samples);
  const double loss = sums.loss / sums.scored;
  std::cout << "step " << trainer.completed_steps() << ": held-out loss " << loss << " nats, ";
  if (trainer.data().is_tokens)
    std::cout << "perplexity " << std::exp(loss) << ", " << loss / std::log(2.0) << " bits, ";
  std::cout << "accuracy " << 100.0 * sums.correct / sums.scored << " % of "
            << static_cast<int64_t>(sums.scored) << '\n';
}

void write_sample(const std::string& run, const std::string& which, const std::string& prompt,
                  int64_t tokens, const SamplerOptions& options) {
  options.validate();
  const RunFolder folder = RunFolder::open(run);
  Experiment experiment;
  load_experiment(experiment, folder);
  Trainer trainer(experiment);
  trainer.load_weights(folder.load(which));
  const auto tokenizer = trainer.data().tokenizer;
  FOVEA_CHECK(trainer.model().gpt() != nullptr && tokenizer, "sample: the model of ", run,
              " writes no text");
  std::vector<int64_t> ids = tokenizer->encode(prompt);
  FOVEA_CHECK(!ids.empty(),
              "sample: the prompt is empty; give at least one character with --prompt");
  trainer.model().module().train(false);
  std::cout << prompt << std::flush;
  std::string pending;
  generate(*trainer.model().gpt(), ids, tokens, options, [&](int64_t token) {
    pending += text_of(*tokenizer, token);
    const size_t whole = pending.size() - unfinished(pending);
    std::cout << pending.substr(0, whole) << std::flush;
    pending.erase(0, whole);
    return static_cast<bool>(std::cout);
  });
  std::cout << pending << std::endl;
}

}  // namespace

void add_use(CLI::App& program, int&) {
  static std::string run, which = "best", prompt = "\n";
  static int64_t samples = 0, tokens = 200;
  static SamplerOptions options;
  CLI::App* eval =
      program.add_subcommand("eval", "loss and accuracy of a run on its held-out data");
  eval->add_option("RUN", run, "run folder")->required();
  eval->add_option("--checkpoint", which, "best, last, or a file")->capture_default_str();
  eval->add_option("--samples", samples, "held-out samples; 0: all")
      ->capture_default_str()
      ->check(whole_number(0, std::numeric_limits<int64_t>::max()));
  eval->callback([] { evaluate(run, which, samples); });

  CLI::App* write =
      program.add_subcommand("sample", "let a trained language model go on with a prompt");
  write->add_option("RUN", run, "run folder")->required();
  write->add_option("--prompt", prompt, "text to go on from")->default_str("a line break");
  write->add_option("--tokens", tokens, "tokens to write")
      ->capture_default_str()
      ->check(whole_number(1, int64_t{1} << 32));
  write->add_option("--temperature", options.temperature, "0: always the likeliest token")
      ->capture_default_str()
      ->check(number(0.0, 1e6));
  write->add_option("--top-k", options.top_k, "only the k likeliest; 0: all")
      ->capture_default_str()
      ->check(whole_number(0, int64_t{1} << 32));
  write
      ->add_option("--top-p", options.top_p,
                   "only the likeliest that together have this probability; above 0")
      ->capture_default_str()
      ->check(number(1e-12, 1.0));
  write->add_option("--seed", options.seed, "of the draws")
      ->capture_default_str()
      ->check(whole_number(0, std::numeric_limits<int64_t>::max()));
  write->add_option("--checkpoint", which, "best, last, or a file")->capture_default_str();
  write->callback([] { write_sample(run, which, prompt, tokens, options); });
}

}  // namespace fovea::train::cli
