// SPDX-License-Identifier: Apache-2.0
#include "data/prepare.h"

#include <sys/wait.h>

#include <cstdio>

#include "core/io/file.h"
#include "data/gzip.h"
#include "data/text/tokens.h"

namespace fovea::data {
namespace {

void make_folder(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  FOVEA_CHECK(!error && std::filesystem::is_directory(folder), "data: cannot make the folder ",
              folder.string(), ": ", error.message());
}

std::unique_ptr<Tokenizer> make_tokenizer(const std::string& text, const PrepareOptions& options) {
  if (options.tokenizer == "bytes") return byte_tokenizer();
  if (options.tokenizer == "characters") return character_tokenizer(text);
  if (options.tokenizer == "bpe") {  // learns nothing from what is held out
    const auto seen =
        static_cast<size_t>(static_cast<double>(text.size()) * (1.0 - options.val_fraction));
    return train_bpe(std::string_view(text).substr(0, seen), options.vocab_size);
  }
  FOVEA_CHECK(std::filesystem::is_regular_file(options.tokenizer), "data: tokenizer \"",
              options.tokenizer, "\"; expected bytes, characters, bpe, or a tokenizer file");
  return load_tokenizer(options.tokenizer);
}

void write_text(const std::string& text, const std::filesystem::path& folder,
                const PrepareOptions& options, std::ostream& log) {
  FOVEA_CHECK(!text.empty(), "data: the text is empty");
  FOVEA_CHECK(options.val_fraction > 0.0 && options.val_fraction < 1.0,
              "data: val fraction must be in (0, 1), found ", options.val_fraction);
  const std::unique_ptr<Tokenizer> tokenizer = make_tokenizer(text, options);
  const std::vector<int64_t> ids = tokenizer->encode(text);
  const auto held_out = static_cast<size_t>(static_cast<double>(ids.size()) * options.val_fraction);
  FOVEA_CHECK(held_out >= 2 && ids.size() - held_out >= 2, "data: a text of ", ids.size(),
              " tokens is too short to hold out ", options.val_fraction,
              " of it; both parts need at least 2");
  make_folder(folder);
  const std::span<const int64_t> all(ids);
  replace_files(folder, [&](const std::filesystem::path& temporary) {
    write_token_file(temporary / "train.bin", all.first(ids.size() - held_out));
    write_token_file(temporary / "val.bin", all.last(held_out));
    replace_file(temporary / "tokenizer.json", tokenizer->to_json());
  });
  log << folder.string() << ": " << ids.size() - held_out << " training and " << held_out
      << " held-out tokens, vocabulary of " << tokenizer->vocab_size() << " (" << options.tokenizer
      << ")\n";
}

// What a program prints; throws with its exit code.
std::string output_of(const std::string& command) {
  struct Close {
    void operator()(FILE* file) const { pclose(file); }
  };
  std::unique_ptr<FILE, Close> pipe(popen(command.c_str(), "re"));
  FOVEA_CHECK(pipe != nullptr, "data: cannot run ", command);
  std::string output;
  char piece[65536];
  size_t got;
  while ((got = fread(piece, 1, sizeof piece, pipe.get())) > 0) output.append(piece, got);
  const int status = pclose(pipe.release());
  FOVEA_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "data: ", command,
              " ended with status ", WEXITSTATUS(status));
  return output;
}

}  // namespace

void prepare_text(const std::filesystem::path& text, const std::filesystem::path& folder,
                  const PrepareOptions& options, std::ostream& log) {
  const std::string content = read_file(text);
  FOVEA_CHECK(!content.empty(), "data: the text ", text.string(), " is empty");
  write_text(content, folder, options, log);
}

void prepare_kjv(const std::filesystem::path& folder, const PrepareOptions& options,
                 std::ostream& log) {
  FOVEA_CHECK(
      std::filesystem::exists("/usr/bin/bible"),
      "data: /usr/bin/bible is missing; install it with: apt-get install bible-kjv bible-kjv-text");
  // One verse a line, "Genesis 1:1 In the beginning ...": the reference goes, the words stay.
  const std::string printed = output_of("/usr/bin/bible -f gen1:1-rev22:21 2>/dev/null");
  std::string text;
  for (size_t begin = 0; begin < printed.size();) {
    const size_t end = std::min(printed.find('\n', begin), printed.size());
    const std::string_view line = std::string_view(printed).substr(begin, end - begin);
    const size_t colon = line.find(':');
    const size_t space = colon == std::string_view::npos ? colon : line.find(' ', colon);
    if (space != std::string_view::npos) text.append(line.substr(space + 1)).push_back('\n');
    begin = end + 1;
  }
  FOVEA_CHECK(text.size() > 4'000'000, "data: the program bible printed only ", text.size(),
              " bytes of text; is bible-kjv-text installed?");
  write_text(text, folder, options, log);
}

void prepare_fashion_mnist(const std::filesystem::path& folder, std::ostream& log) {
  const std::filesystem::path packed = "/usr/share/datasets/fashion-mnist";
  FOVEA_CHECK(std::filesystem::is_directory(packed), "data: ", packed.string(),
              " is missing; install it with: apt-get install dataset-fashion-mnist");
  make_folder(folder);
  replace_files(folder, [&](const std::filesystem::path& temporary) {
    for (const std::string name : {"train-images-idx3-ubyte", "train-labels-idx1-ubyte",
                                   "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"}) {
      replace_file(temporary / name, read_maybe_gzip(packed / (name + ".gz")));
    }
  });
  log << folder.string() << ": 60000 training and 10000 test images of 28 x 28 in 10 classes\n";
}

// ---- inspect ------------------------------------------------------------------------------------

namespace {

void show_tokens(const Description& d, const Batch& batch, std::ostream& out) {
  const std::vector<int64_t> ids = batch.inputs.to_vector<int64_t>();
  if (d.tokenizer) {
    out << "  text:  "
        << d.tokenizer->decode(
               std::span<const int64_t>(ids).first(std::min<size_t>(ids.size(), 200)))
        << '\n';
    return;
  }
  const std::vector<int64_t> targets = batch.targets.to_vector<int64_t>();
  out << "  ids:    ";
  for (size_t i = 0; i < std::min<size_t>(ids.size(), 24); ++i) out << ' ' << ids[i];
  out << "\n  scored: ";
  for (size_t i = 0, shown = 0; i < targets.size() && shown < 12; ++i) {
    if (targets[i] == kIgnore) continue;
    out << " [" << i << "] " << targets[i];
    ++shown;
  }
  out << '\n';
}

void show_image(const Description& d, const Batch& batch, std::ostream& out) {
  static constexpr std::string_view kShades = " .:-=+*#%@";
  const std::vector<float> values = batch.inputs.to_vector<float>();
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  const double range = std::max(1e-6, static_cast<double>(*high) - *low);
  if (batch.targets.defined()) out << "  label: " << batch.targets.item() << '\n';
  const int64_t step = std::max<int64_t>(1, d.width / 64);
  for (int64_t y = 0; y < d.height; y += 2 * step) {
    out << "  ";
    for (int64_t x = 0; x < d.width; x += step) {
      double value = 0.0;
      for (int64_t c = 0; c < d.channels; ++c)
        value += values[static_cast<size_t>((c * d.height + y) * d.width + x)];
      const double shade = (value / static_cast<double>(d.channels) - *low) / range;
      out << kShades[static_cast<size_t>(std::clamp(shade * 9.99, 0.0, 9.0))];
    }
    out << '\n';
  }
}

}  // namespace

void inspect(const config::Choice& data, std::ostream& out) {
  for (const Split split : {Split::train, Split::val}) {
    const std::unique_ptr<Source> source = make_source(data, split);
    const Description& d = source->description();
    out << d.name << (split == Split::train ? ", training: " : ", held out: ") << source->size()
        << " samples of ";
    if (d.is_tokens)
      out << d.context << " tokens, vocabulary " << d.vocab_size << '\n';
    else
      out << d.channels << " x " << d.height << " x " << d.width << ", " << d.classes
          << " classes\n";
    const Sample first{0, 0, 0};
    const Batch batch = source->make({&first, 1}, 1);
    if (d.is_tokens)
      show_tokens(d, batch, out);
    else
      show_image(d, batch, out);
  }
}

}  // namespace fovea::data
