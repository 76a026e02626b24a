// SPDX-License-Identifier: Apache-2.0
#include "train/bench/context.h"

#include <algorithm>
#include <chrono>
#include <map>

#include "attention/mask_options.h"
#include "distributed/context_attention.h"
#include "distributed/device_group.h"
#include "train/bench/roof.h"

namespace fovea::train {
namespace {

using distributed::Communicator;
using distributed::ContextAttention;
using distributed::MeshSizes;
using distributed::Order;
using distributed::Reduce;

// Lengths of documents in pretraining data as the benchmark draws them: the share of those up to so
// many 1024 tokens.
struct Interval {
  double last, share;
};
constexpr Interval kLengths[] = {
    {0.25, 0.0766}, {0.5, 0.1651}, {0.75, 0.1246}, {1, 0.0972},  {1.5, 0.1324}, {2, 0.0927},
    {2.5, 0.0720},  {3, 0.0519},   {3.5, 0.0379},  {4, 0.0264},  {5, 0.0380},   {6, 0.0245},
    {7, 0.0145},    {8, 0.0097},   {10, 0.0122},   {15, 0.0128}, {20, 0.0051},  {64, 0.0064}};

std::vector<int64_t> document_lengths(int64_t N, uint64_t seed) {
  std::vector<int64_t> lengths;
  uint64_t draw = 0;
  const RngKey rng(seed, "bench", "documents");
  for (int64_t left = N; left > 0;) {
    double u = static_cast<double>(to_uniform(random_word(rng, draw++))), from = 0.0;
    const Interval* at = kLengths;
    while (u >= at->share && at + 1 != std::end(kLengths)) u -= at->share, from = (at++)->last;
    const auto low = static_cast<int64_t>(1024 * from),
               high = static_cast<int64_t>(1024 * at->last);
    const int64_t length = low + static_cast<int64_t>(random_below(
                                     rng, draw++, static_cast<uint64_t>(high - low + 1)));
    lengths.push_back(std::clamp<int64_t>(length, 1, left));
    left -= lengths.back();
  }
  return lengths;
}
// Of 1 to 8 blocks.
std::vector<int64_t> block_lengths(int64_t N, int64_t block, uint64_t seed) {
  std::vector<int64_t> lengths;
  for (int64_t left = N; left > 0; left -= lengths.back())
    lengths.push_back(std::min<int64_t>(
        left, block * (1 + static_cast<int64_t>(
                               random_below(RngKey(seed, "bench", "blocks"), lengths.size(), 8)))));
  return lengths;
}

// A strategy on a mesh: how keys travel.
Division division_of(const ContextBench& bench, const std::string& strategy, Order order) {
  const int P = bench.ranks;
  Division d;
  d.order = order;
  const bool presets = !bench.mesh.has_value();
  if (!presets) {
    d.mesh = *bench.mesh;
  } else if (strategy == "ulysses") {
    d.mesh = {1, 1, P};
  } else if (strategy == "usp") {
    FOVEA_CHECK(P % 2 == 0, "bench: usp makes groups of 2 ranks, which ", P, " ranks are not");
    d.mesh = {1, P / 2, 2};
  } else {
    d.mesh = {1, P, 1};
  }
  const bool ring = strategy == "ring" || strategy == "double_ring";
  FOVEA_CHECK(presets || ring || strategy == "gather", "bench: strategy ", strategy,
              " makes its own mesh; with --mesh expected ring, gather or double_ring");
  const int R = d.mesh.ring;
  d.travel = R == 1 ? Travel::none : strategy == "gather" ? Travel::gather : Travel::ring;
  if (strategy == "double_ring") {
    FOVEA_CHECK(R % 2 == 0,
                "bench: double_ring has windows of 2 ranks, which do not divide a ring "
                "of ",
                R);
    d.window = 2;
  }
  return d;
}

double reduced(const Communicator& comm, double value, Reduce op) {
  const Tensor x = Tensor::from(std::vector<double>{value}, {1});
  comm.all_reduce(x, op).wait();
  return x.item();
}

// One problem on one mesh: calls it, counts, times.
class Runner {
 public:
  // world: in which the ranks agree; mesh: of their tensors.
  Runner(const Communicator& world, const distributed::Mesh& mesh, const ContextBench& bench,
         const Division& d, const distributed::Layout& layout, const attention::Mask& mask,
         Dtype dtype, Device device)
      : world_(world), mesh_(mesh), mask_(mask.to(device)), device_(device) {
    distributed::ContextOptions options;
    if (d.travel == Travel::gather) options.exchange = distributed::Exchange::gather;
    options.window = d.window;
    attend_.emplace(mesh_.ring(), mesh_.ulysses(), layout, options);
    int64_t n = 0;
    for (const auto& stretch : layout.rank(mesh_.place().ring, mesh_.place().ulysses))
      n += stretch.count;
    const auto random = [&](int64_t heads, const char* what) {
      const Tensor x = Tensor::empty({bench.batch, heads, n, bench.dim});
      fill_normal(x, RngKey(static_cast<uint64_t>(world.rank()), "bench", what));
      return x.to(dtype).to(device);
    };
    const int64_t G = bench.kv_heads > 0 ? bench.kv_heads : bench.heads;
    q_ = Variable(random(bench.heads, "q"), true);
    k_ = Variable(random(G, "k"), true);
    v_ = Variable(random(G, "v"), true);
    dout_ = random(bench.heads, "dout");
  }

  // One call: seconds of forward and backward of this rank.
  std::pair<double, double> run() { return run(mask_); }
  // The same where no query sees a key.
  double exchange() {
    const int64_t N = attend_->layout().tokens();
    const Tensor nobody = Tensor::full({1, N}, -1, Dtype::i32);
    const auto [f, b] = run(attention::Mask().documents(nobody, nobody).to(device_));
    return f + b;
  }
  // Of the two groups.
  distributed::CommStats::Count count() const {
    distributed::CommStats::Count sum = mesh_.ring().stats().total();
    const distributed::CommStats::Count more = mesh_.ulysses().stats().total();
    sum.bytes_sent += more.bytes_sent;
    sum.wait_seconds += more.wait_seconds;
    return sum;
  }

 private:
  std::pair<double, double> run(const attention::Mask& mask) {
    for (const Variable& x : {q_, k_, v_}) x.zero_grad();
    world_.barrier();
    const auto start = now();
    const Variable out = (*attend_)(softmax_rule(), q_, k_, v_, Variable(), Tensor(), mask, {});
    wait_for(device_);
    const auto middle = now();
    world_.barrier();
    const auto again = now();
    out.backward(dout_);
    wait_for(device_);
    return {seconds(start, middle), seconds(again, now())};
  }
  using Clock = std::chrono::steady_clock;
  static Clock::time_point now() { return Clock::now(); }
  static double seconds(Clock::time_point a, Clock::time_point b) {
    return std::chrono::duration<double>(b - a).count();
  }

  const Communicator& world_;
  const distributed::Mesh& mesh_;
  attention::Mask mask_;
  Device device_;
  std::optional<ContextAttention> attend_;
  Variable q_, k_, v_;
  Tensor dout_;
};

void time(ContextRow& row, Runner& runner, const Communicator& world, double seconds) {
  runner.run();  // the ranks agree on what they call
  const int64_t before = runner.count().bytes_sent;
  const auto [f, b] = runner.run();
  const int64_t sent = runner.count().bytes_sent - before;
  row.sent_bytes = static_cast<int64_t>(reduced(world, static_cast<double>(sent), Reduce::sum));
  constexpr double kMost = 200.0;
  const auto calls =
      static_cast<int>(std::clamp(seconds / reduced(world, f + b, Reduce::max), 3.0, kMost));
  std::vector<double> forward, backward, exchange;
  const double waited = runner.count().wait_seconds;
  double spent = 0.0;
  for (int i = 0; i < calls; ++i) {
    const auto [one, two] = runner.run();
    forward.push_back(reduced(world, one, Reduce::max));
    backward.push_back(reduced(world, two, Reduce::max));
    spent += one + two;
  }
  const auto median = [](std::vector<double>& x) {
    std::sort(x.begin(), x.end());
    return x[x.size() / 2];
  };
  row.waiting =
      reduced(world, (runner.count().wait_seconds - waited) / spent, Reduce::sum) / world.size();
  for (int i = 0; i < calls; ++i)
    exchange.push_back(reduced(world, runner.exchange(), Reduce::max));
  row.exchange_ms = 1e3 * median(exchange);
  row.forward_ms = 1e3 * median(forward);
  row.backward_ms = 1e3 * median(backward);
}

}  // namespace

const std::vector<std::string>& benchmark_masks() {
  static const std::vector<std::string> names{"full",
                                              "causal",
                                              "full_document",
                                              "causal_document",
                                              "sliding_window",
                                              "sliding_window_causal",
                                              "global_sliding_window",
                                              "prefix_lm_causal",
                                              "prefix_lm_document",
                                              "share_question",
                                              "causal_blockwise",
                                              "block_causal_document"};
  return names;
}

attention::Mask benchmark_mask(const std::string& name, int64_t N, uint64_t seed) {
  FOVEA_CHECK(std::find(benchmark_masks().begin(), benchmark_masks().end(), name) !=
                  benchmark_masks().end(),
              "bench: mask \"", name, "\" is none of the benchmark's; the nearest is ",
              config::nearest(name, benchmark_masks()));
  const int64_t block = std::max<int64_t>(1, N / 16);
  const std::vector<int64_t> lengths =
      name == "block_causal_document" ? block_lengths(N, block, seed) : document_lengths(N, seed);
  attention::MaskOptions mask;
  mask.kind = name == "sliding_window_causal" ? "sliding_window" : name;
  const int64_t window = std::min<int64_t>(1024, N / 4);
  if (name == "sliding_window") mask.window = {window, window};
  if (name == "sliding_window_causal") mask.window = {window, 0};
  if (name == "global_sliding_window") mask.window = {block, block}, mask.global_tokens = 2 * block;
  if (name == "prefix_lm_causal") mask.prefix = N / 2;
  if (name == "prefix_lm_document") mask.prefix = std::max<int64_t>(1, lengths[0] / 2);
  if (name == "block_causal_document") mask.block = block;
  return mask.mask(N, attention::document_ids(lengths, N));
}

std::vector<ContextRow> bench_context(const Communicator& world, const ContextBench& bench,
                                      Dtype dtype, double seconds, Device device) {
  std::vector<ContextRow> rows;
  const Communicator group = distributed::device_group(world, device);
  std::map<std::pair<int, int>, std::unique_ptr<distributed::Mesh>> meshes;
  GptSizes z;
  z.layers = 1, z.heads = bench.heads, z.head_dim = bench.dim, z.tokens = bench.tokens;
  z.kv_heads = bench.kv_heads > 0 ? bench.kv_heads : bench.heads;
  z.dim = bench.heads * bench.dim, z.compute = dtype;
  const int64_t N = bench.tokens;
  for (const std::string& mask_name : bench.masks) {
    const attention::Mask mask = benchmark_mask(mask_name, N);
    const auto pairs = static_cast<double>(distributed::pairs_of(mask, N));
    for (const std::string& strategy : bench.strategies) {
      for (const std::string& order_name : bench.orders) {
        const Order order = order_name == "contiguous" ? Order::contiguous
                            : order_name == "striped"  ? Order::striped
                            : order_name == "zigzag"   ? Order::zigzag
                                                       : Order::dispatched;
        const Division d = division_of(bench, strategy, order);
        const int R = d.mesh.ring, U = d.mesh.ulysses;
        FOVEA_CHECK(R * U == world.size(), "bench: ring ", R, " x ulysses ", U, " are ", R * U,
                    " ranks, but there are ", world.size());
        FOVEA_CHECK(N % (2 * R * U) == 0, "bench: ", N, " tokens; expected a multiple of ",
                    2 * R * U, ", so that the ranks hold alike many");
        const distributed::Layout layout =
            order == Order::dispatched ? distributed::Layout::dispatched(
                                             mask, 1, N, std::max<int64_t>(1, N / (8 * R)), R, U)
                                       : distributed::Layout(order, N, R, U);
        ContextRow row{mask_name, strategy, d.mesh, order, std::string(group.transport())};
        row.balance = distributed::balance(layout, mask);
        row.allowed = pairs / (static_cast<double>(N) * static_cast<double>(N));
        const SentBytes sent = sent_bytes(z, d, bench.batch);
        row.formula_bytes =
            static_cast<int64_t>(static_cast<double>(world.size()) *
                                 (sent.ring_forward + sent.ring_backward + sent.ring_sums +
                                  sent.ulysses_forward + sent.ulysses_backward));
        auto& mesh = meshes[{R, U}];
        if (!mesh) mesh = std::make_unique<distributed::Mesh>(group, d.mesh);
        Runner runner(world, *mesh, bench, d, layout, mask, dtype, device);
        time(row, runner, world, seconds);
        row.gflops = 14e-9 * pairs * static_cast<double>(bench.batch * bench.heads * bench.dim) /
                     (1e-3 * (row.forward_ms + row.backward_ms)) / world.size();
        rows.push_back(row);
      }
    }
  }
  return rows;
}

}  // namespace fovea::train
