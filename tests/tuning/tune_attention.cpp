// SPDX-License-Identifier: Apache-2.0
// Tiles of the Hopper attention kernels side by side: each is held to the cpu's answer in f64 on
// small ragged problems, then timed and held to it again. Writes Markdown to stdout and what is
// wrong to stderr; exits with 1 when something was.
//   tune_attention [forward|backward] [--dim D] [--filter TEXT] [--quick] [--device DEVICE]
// --filter: of the name of a tile, or of a section; --quick: one shape a head dim, fewer runs.
// On the interpreted device it checks alone. Candidates are added in forward_sm90.cu.

#include <unistd.h>

#include <algorithm>
#include <climits>
#include <csignal>
#include <cstdio>
#include <string_view>

#include "core/cuda/device.h"
#include "tests/tuning/problem.h"
#include "tests/tuning/variants.h"

namespace fovea::attention::tuning {
namespace {

constexpr unsigned kMostSeconds = 60;  // on a card; a kernel that hangs must not hold it

struct Options {
  bool forward = true, backward = true, quick = false;
  int64_t dim = 0;  // 0: all
  std::string filter;
  Device device{Device::Kind::cuda, 0};

  bool wants(int64_t D) const { return dim == 0 || dim == D; }
  bool wants(const std::string& name) const { return name.find(filter) != std::string::npos; }
  bool times() const { return device.kind == Device::Kind::cuda; }
};

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    const auto value = [&] {
      FOVEA_CHECK(i + 1 < argc, "tune_attention: ", word, " needs a value");
      return std::string(argv[++i]);
    };
    if (word == "forward") {
      o.backward = false;
    } else if (word == "backward") {
      o.forward = false;
    } else if (word == "--quick") {
      o.quick = true;
    } else if (word == "--filter") {
      o.filter = value();
    } else if (word == "--device") {
      o.device = parse_device(value());
    } else if (word == "--dim") {
      const std::string dim = value();
      FOVEA_CHECK(dim == "64" || dim == "128" || dim == "256", "tune_attention: --dim ", dim,
                  "; expected 64, 128 or 256");
      o.dim = std::stoi(dim);
    } else {
      detail::fail("tune_attention: unknown argument ", word,
                   "; usage: tune_attention [forward|backward] [--dim 64|128|256] [--filter TEXT] "
                   "[--quick] [--device cuda|interpreted]");
    }
  }
  FOVEA_CHECK(o.forward || o.dim != 256, "tune_attention: backward is for heads of 64 and 128");
  FOVEA_CHECK(runs_sm90(o.device), "tune_attention: device ", o.device,
              " does not run kernels for sm_90a");
  return o;
}

std::vector<Sizes> small_problems(int64_t D, bool windows) {
  std::vector<Sizes> all{{1, 1, 1, 64, 64, D, false},
                         {1, 2, 1, 200, 517, D, false},
                         {2, 4, 2, 333, 333, D, true},
                         {1, 2, 2, 130, 700, D, true}};
  if (windows) all.push_back({1, 2, 2, 400, 400, D, true, 150});
  return all;
}
// All of kValues values.
constexpr int64_t kValues = int64_t{1} << 25;
std::vector<Sizes> large_problems(const Options& o) {
  std::vector<Sizes> chosen;
  const Sizes all[] = {{16, 32, 32, 1024, 1024, 64, true},   {2, 32, 32, 8192, 8192, 64, true},
                       {16, 16, 16, 1024, 1024, 128, true},  {2, 16, 16, 8192, 8192, 128, true},
                       {1, 16, 16, 16384, 16384, 128, true}, {2, 8, 8, 8192, 8192, 256, true}};
  for (const Sizes& z : all)
    if (o.wants(z.D) && !(o.quick && z.N != 8192)) chosen.push_back(z);
  return chosen;
}

using Mark = std::function<void()>;

// Milliseconds between the marks that `run` sets, then of all of it: medians.
std::vector<double> time(const Options& o, const std::function<void(const Mark&)>& run) {
  const int runs = o.quick ? 5 : 20;
  std::vector<std::vector<double>> times;  // by part, by run
  std::vector<std::vector<Event>> events(static_cast<size_t>(runs));
  for (int i = -3; i < runs; ++i) {
    std::vector<Event>& at = events[static_cast<size_t>(std::max(i, 0))];
    at.clear();
    const Mark mark = [&] {
      at.emplace_back(o.device, true);
      at.back().record();
    };
    mark();
    run(mark);
    mark();
  }
  times.resize(events[0].size());
  for (const std::vector<Event>& at : events) {
    for (size_t part = 1; part < at.size(); ++part)
      times[part - 1].push_back(at[part].milliseconds_since(at[part - 1]));
    times.back().push_back(at.back().milliseconds_since(at.front()));
  }
  std::vector<double> medians;
  for (std::vector<double>& t : times) {
    std::sort(t.begin(), t.end());
    medians.push_back(t[t.size() / 2]);
  }
  return medians;
}

std::string title(const Sizes& z) { return concat('(', z.B, ", ", z.H, ", ", z.N, ", ", z.D, ')'); }

// The fastest of a column of cells, and what the engine has now.
struct Best {
  std::string name;
  double rate = 0.0, engines = 0.0;
  void take(const std::string& row, double found) {
    if (found > rate) name = row, rate = found;
  }
  void print(const char* of) const {
    if (rate > 0.0)
      std::printf("- %s: %.0f by %s; the engine %.0f\n", of, rate, name.c_str(), engines);
  }
};

int wrong = 0;
// Whether a variant is as it should be; says so where not.
bool right(const Errors& e, const std::string& name, const Sizes& z) {
  if (e.small()) return true;
  ++wrong;
  std::fprintf(stderr,
               "WRONG: %s at %s, %d keys, %s: errors out %.1e lse %.1e dq %.1e dk %.1e dv %.1e\n",
               name.c_str(), title(z).c_str(), static_cast<int>(z.M), z.causal ? "causal" : "full",
               e.out, e.lse, e.dq, e.dk, e.dv);
  return false;
}

// ---- forward ------------------------------------------------------------------------------------

// How blocks come by work: one tile each; a fixed share of all; or the next when ready, which costs
// a zero written before.
enum class Grid { tile, fixed, counter };
constexpr Grid kGrids[] = {Grid::tile, Grid::fixed, Grid::counter};
const char* name(Grid grid) {
  constexpr const char* kNames[] = {"a block a tile", "fixed shares", "counter"};
  return kNames[static_cast<int>(grid)];
}

void run(const ForwardVariant& variant, Problem& p, Grid grid, int processors) {
  p.call.processors = grid == Grid::tile ? INT_MAX : processors;
  p.call.taken = grid == Grid::counter ? p.taken.data<int32_t>() : nullptr;
  if (grid == Grid::counter) p.taken.zero_();
  variant.run(p.call, stream_of(p.device));
}

void poison(std::initializer_list<Tensor> outputs) {
  for (const Tensor& x : outputs) x.fill_(std::numeric_limits<double>::quiet_NaN());
}

std::vector<ForwardVariant> check_forward(const Options& o, const RandomValues& random) {
  std::vector<ForwardVariant> good;
  std::printf("| head dim | tile | error of out | of lse |\n|---:|---|---:|---:|\n");
  for (const ForwardVariant& variant : FOVEA_SM90_CALL(o.device, forward_variants)) {
    if (!o.wants(variant.D) || !(o.wants(variant.name) || variant.name == kEngines)) continue;
    Errors worst;
    bool fine = true;
    for (const Sizes& z : small_problems(variant.D, true)) {
      Problem p(z, random, o.device);
      const Answers answers(p, false);
      for (const Grid grid : kGrids) {
        poison({p.out, p.lse});
        run(variant, p, grid, grid == Grid::fixed ? 3 : 7);
        const Errors e = answers.errors(p);
        fine = right(e, variant.name + ", " + name(grid), z) && fine;
        worst.widen(e);
      }
    }
    std::printf("| %d | %s | %.1e | %.1e |\n", variant.D, variant.name.c_str(), worst.out,
                worst.lse);
    std::fflush(stdout);
    if (fine) good.push_back(variant);
  }
  return good;
}

void time_forward(const Options& o, const RandomValues& random,
                  const std::vector<ForwardVariant>& variants, int processors) {
  for (Sizes z : large_problems(o)) {
    std::printf("\nForward, (B, H, N, D) = %s, TFLOP/s:\n\n| tile |", title(z).c_str());
    for (const char* mask : {"causal", "full"})
      for (const Grid grid : kGrids) std::printf(" %s, %s |", mask, name(grid));
    std::printf("\n|---|---:|---:|---:|---:|---:|---:|\n");
    std::vector<Problem> problems;
    std::vector<Answers> answers;
    for (const bool causal : {true, false}) {
      z.causal = causal;
      problems.emplace_back(z, random, o.device);
      answers.emplace_back(problems.back(), false);
    }
    Best best[2];
    for (const ForwardVariant& variant : variants) {
      if (variant.D != z.D) continue;
      std::printf("| %s |", variant.name.c_str());
      for (size_t mask = 0; mask < 2; ++mask) {
        Problem& p = problems[mask];
        for (const Grid grid : kGrids) {
          poison({p.out, p.lse});
          const double ms = time(o, [&](const Mark&) { run(variant, p, grid, processors); }).back();
          const double rate = p.sizes.flop() / ms * 1e-9;
          std::printf(" %.0f |", rate);
          std::fflush(stdout);
          const std::string what = variant.name + ", " + name(grid);
          if (!right(answers[mask].errors(p), what, p.sizes)) continue;
          if (variant.name != kEngines)
            best[mask].take(what, rate);
          else if (grid == Grid::fixed)
            best[mask].engines = rate;
        }
      }
      std::printf("\n");
    }
    std::printf("\n");
    best[0].print("causal");
    best[1].print("full");
  }
}

// ---- backward -----------------------------------------------------------------------------------

constexpr int kSections[] = {0, 1, 2, 8, 16, 64};
std::string section_name(int section) {
  return section == 0 ? std::string(kEngines) : concat(section, section == 1 ? " head" : " heads");
}

void run(int section, Problem& p, bool in_turns, const Mark& mark) {
  p.call.turns = in_turns ? p.turns.data<int32_t>() : nullptr;
  if (in_turns) p.turns.zero_();
  FOVEA_SM90_CALL(p.device, backward_in_sections, p.call, section, mark, stream_of(p.device));
}

// In turns, the gradients' bits depend on nothing but the problem.
class SameBits {
 public:
  bool hold(const Problem& p, bool in_turns, const std::string& name) {
    if (!in_turns) return true;
    std::vector<float> bits;
    for (const Part& part : p.parts())
      for (const Tensor* x : {&p.dq, &p.dk, &p.dv})
        for (const float value : (x == &p.dq ? part : keys_of(p, part)).of(*x).to_vector<float>())
          bits.push_back(value);
    if (first_.empty()) first_ = bits;
    if (first_ == bits) return true;
    ++wrong;
    std::fprintf(stderr, "WRONG: %s in turns at %s: other bits than the first in turns\n",
                 name.c_str(), title(p.sizes).c_str());
    return false;
  }

 private:
  static Part keys_of(const Problem& p, Part part) {
    const int64_t group = p.sizes.H / p.sizes.Hkv;
    part.h0 /= group;
    part.h1 = (part.h1 + group - 1) / group;
    part.i1 = std::min(part.i1 + p.sizes.M - p.sizes.N, p.sizes.M);
    return part;
  }
  std::vector<float> first_;
};

std::vector<int> check_backward(const Options& o, const RandomValues& random) {
  std::vector<int> good;
  std::printf("| section | error of dq | of dk | of dv |\n|---|---:|---:|---:|\n");
  for (const int section : kSections) {
    if (section != 0 && !o.wants(section_name(section))) continue;
    Errors worst;
    bool fine = true;
    for (const int64_t D : {64, 128}) {
      if (!o.wants(D)) continue;
      for (const Sizes& z : small_problems(D, false)) {
        Problem p(z, random, o.device);
        p.prepare_backward();
        const Answers answers(p, true);
        SameBits same;
        for (const bool in_turns : {false, true, true}) {
          poison({p.dq, p.dk, p.dv});
          run(section, p, in_turns, [] {});
          const Errors e = answers.errors(p);
          fine = right(e, section_name(section), z) && fine;
          fine = same.hold(p, in_turns, section_name(section)) && fine;
          worst.widen(e);
        }
      }
    }
    std::printf("| %s | %.1e | %.1e | %.1e |\n", section_name(section).c_str(), worst.dq, worst.dk,
                worst.dv);
    std::fflush(stdout);
    if (fine) good.push_back(section);
  }
  return good;
}

void time_backward(const Options& o, const RandomValues& random, const std::vector<int>& sections) {
  for (Sizes z : large_problems(o)) {
    if (z.D > 128) continue;
    std::printf("\nBackward, (B, H, N, D) = %s, TFLOP/s (of its main kernel):\n\n| section |",
                title(z).c_str());
    for (const char* mask : {"causal", "full"})
      for (const char* order : {"any order", "in turns"}) std::printf(" %s, %s |", mask, order);
    std::printf("\n|---|---:|---:|---:|---:|\n");
    std::vector<Problem> problems;
    std::vector<Answers> answers;
    for (const bool causal : {true, false}) {
      z.causal = causal;
      problems.emplace_back(z, random, o.device);
      problems.back().prepare_backward();
      answers.emplace_back(problems.back(), true);
    }
    Best best[4];
    SameBits same[2];
    for (const int section : sections) {
      const std::string row = section_name(section);
      std::printf("| %s |", row.c_str());
      for (size_t mask = 0; mask < 2; ++mask) {
        Problem& p = problems[mask];
        for (const bool in_turns : {false, true}) {
          poison({p.dq, p.dk, p.dv});
          const std::vector<double> ms =
              time(o, [&](const Mark& mark) { run(section, p, in_turns, mark); });
          const double work = 2.5 * p.sizes.flop() * 1e-9, rate = work / ms.back();
          std::printf(" %.0f (%.0f) |", rate, work / ms[1]);
          std::fflush(stdout);
          Best& column = best[2 * mask + (in_turns ? 1 : 0)];
          const bool fine = right(answers[mask].errors(p), row, p.sizes);
          if (!same[mask].hold(p, in_turns, row) || !fine) continue;
          if (section == 0) column.engines = rate;
          column.take(row, rate);
        }
      }
      std::printf("\n");
    }
    std::printf("\n");
    const char* columns[] = {"causal, any order", "causal, in turns", "full, any order",
                             "full, in turns"};
    for (size_t n = 0; n < 4; ++n) best[n].print(columns[n]);
  }
}

void tune(const Options& o) {
  const DeviceInfo info = FOVEA_GPU_CALL(o.device, device_info, o.device.index);
  std::printf("%s\n\n", info.name.c_str());
  // The interpreted device needs only what small problems read.
  const RandomValues random(o.times() ? kValues : int64_t{1} << 20, o.device);
  if (o.forward) {
    const std::vector<ForwardVariant> good = check_forward(o, random);
    if (o.times()) time_forward(o, random, good, info.processors);
  }
  if (o.forward && o.backward) std::printf("\n");
  if (o.backward && o.dim != 256) {
    const std::vector<int> good = check_backward(o, random);
    if (o.times()) time_backward(o, random, good);
  }
}

void out_of_time(int) {
  constexpr char kWords[] =
      "tune_attention: not done after 60 s; forward, backward, --dim, --filter and --quick make "
      "it shorter, unless a kernel hangs\n";
  [[maybe_unused]] const auto written = write(STDERR_FILENO, kWords, sizeof kWords - 1);
  _exit(1);
}

}  // namespace
}  // namespace fovea::attention::tuning

int main(int argc, char** argv) {
  using namespace fovea::attention::tuning;
  try {
    const Options options = parse(argc, argv);
    if (options.times()) {
      std::signal(SIGALRM, out_of_time);
      alarm(kMostSeconds);
    }
    tune(options);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  return wrong > 0 ? 1 : 0;
}
