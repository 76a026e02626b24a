// SPDX-License-Identifier: Apache-2.0
#include "distributed/data_parallel.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/fixed_point.h"
#include "core/rng.h"
#include "distributed/agreement.h"

namespace fovea::distributed {
namespace {

// Elements: parameters begin at whole cache lines, as they do in memory of their own.
constexpr int64_t kAlign = 32;

int64_t up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

std::string description(const std::vector<nn::NamedParameter>& parameters,
                        const std::vector<int64_t>& whole) {
  std::string text;
  for (size_t i = 0; i < parameters.size(); ++i)
    text += concat(parameters[i].name, ' ', parameters[i].variable.shape(),
                   whole[i] > 0 ? concat(", whole at ", whole[i]) : "", '\n');
  return text;
}

DataParallelOptions checked(DataParallelOptions options, size_t parameters) {
  if (!options.shard || options.whole.empty()) options.whole.assign(parameters, 0);
  FOVEA_CHECK(options.whole.size() == parameters, "data parallel: ", options.whole.size(),
              " costs of whole parameters for ", parameters, " parameters");
  return options;
}

// Where rank `rank`'s part of a bucket begins.
int64_t begin_of(const std::vector<int64_t>& counts, int rank) {
  return std::accumulate(counts.begin(), counts.begin() + rank, int64_t{0});
}

}  // namespace

DataParallel::DataParallel(const Communicator& tensors, const Communicator& host,
                           Parameters parameters, const DataParallelOptions& options)
    : comm_(tensors),
      host_(host),
      parameters_(std::move(parameters)),
      options_(checked(options, parameters_.size())) {
  FOVEA_CHECK(!parameters_.empty(), "data parallel: no parameters");
  for (const nn::NamedParameter& p : parameters_) {
    const Tensor& value = p.variable.value();
    FOVEA_CHECK(value.dtype() == Dtype::f32 && value.is_contiguous() &&
                    value.device() == parameters_.front().variable.value().device(),
                "data parallel: ", p.name, " is ", value.dtype(), " on ", value.device(),
                "; expected contiguous f32 on one device");
  }
  check_agree(host_, "parameters", description(parameters_, options_.whole));
  if (options_.exact) {
    add_exactly();
    return;
  }
  make_buckets();
  if (options_.shard) make_pieces();
  if (!options_.overlap) return;
  for (size_t i = 0; i < parameters_.size(); ++i)
    parameters_[i].variable.on_gradient([this, i] { arrived(i); });
}

DataParallel::~DataParallel() {
  for (const nn::NamedParameter& p : parameters_) p.variable.on_gradient(nullptr);
}

// ---- exact sums ---------------------------------------------------------------------------------

void DataParallel::add_exactly() {
  FOVEA_CHECK(!options_.shard, "data parallel: exact sums of shards are not offered");
  const MemoryLabel label("exact gradients");
  present_.resize(parameters_.size());
  for (const nn::NamedParameter& p : parameters_)
    sums_.emplace_back(p.variable.shape(), p.variable.value().device());
  for (size_t i = 0; i < parameters_.size(); ++i) {
    parameters_[i].variable.on_gradient([this, i] {
      const Variable& p = parameters_[i].variable;
      sums_[i].add(p.grad());
      p.zero_grad();
    });
  }
}

void DataParallel::finish_exact() {
  std::vector<Work> works;
  for (size_t i = 0; i < sums_.size(); ++i) {
    FOVEA_CHECK(sums_[i].addends() * comm_.size() <= FixedPoint::kMostAddends,
                "data parallel: exact sums take ", FixedPoint::kMostAddends,
                " gradients of a step, but ", parameters_[i].name, " got ", sums_[i].addends(),
                " on this one of ", comm_.size(), " ranks; take larger blocks");
    works.push_back(comm_.all_reduce(sums_[i].parts(), Reduce::sum, Mode::async));
  }
  for (size_t i = 0; i < sums_.size(); ++i) {
    works[i].wait();
    parameters_[i].variable.set_grad(sums_[i].total());
    present_[i] = sums_[i].good() ? static_cast<double>(sums_[i].addends() > 0) : NAN;
    sums_[i].clear();
  }
}

// ---- layout -------------------------------------------------------------------------------------

// By parameter: the rank that has all of it; -1: it is cut.
std::vector<int> DataParallel::owners() const {
  std::vector<size_t> whole;
  for (size_t i = parameters_.size(); i-- > 0;)
    if (options_.whole[i] > 0) whole.push_back(i);
  // Of like matrices neighbours go to different ranks, which balances buckets too.
  std::stable_sort(whole.begin(), whole.end(),
                   [&](size_t a, size_t b) { return options_.whole[a] > options_.whole[b]; });
  std::vector<int> owners(parameters_.size(), -1);
  std::vector<int64_t> costs(static_cast<size_t>(comm_.size()));
  for (const size_t i : whole) {
    const auto least = std::min_element(costs.begin(), costs.end());
    *least += options_.whole[i];
    owners[i] = static_cast<int>(least - costs.begin());
  }
  return owners;
}

void DataParallel::make_buckets() {
  const MemoryLabel label("gradient buckets");
  const std::vector<int> owners = this->owners();
  const auto P = static_cast<size_t>(comm_.size());
  bucket_of_.resize(parameters_.size());
  present_.resize(parameters_.size());
  Bucket cut, whole;                               // open
  for (size_t i = parameters_.size(); i-- > 0;) {  // backward meets the last layers first
    Bucket& bucket = owners[i] < 0 ? cut : whole;
    const int64_t room = up(parameters_[i].variable.value().numel(), kAlign);
    bucket.counts.resize(P);
    if (owners[i] >= 0) bucket.counts[static_cast<size_t>(owners[i])] += room;
    bucket.parts.push_back({i, 0});
    bucket.n += room;
    const int64_t longest = *std::max_element(bucket.counts.begin(), bucket.counts.end());
    if (bucket.n * size_of(Dtype::f32) >= options_.bucket_bytes &&
        2 * longest * comm_.size() <= 3 * bucket.n)
      close(std::exchange(bucket, {}), owners);
  }
  if (!cut.parts.empty() && !whole.parts.empty() &&
      cut.parts.back().parameter < whole.parts.back().parameter)
    std::swap(cut, whole);
  for (Bucket* last : {&cut, &whole})
    if (!last->parts.empty()) close(std::move(*last), owners);
}

// Lays the bucket out: parameters that are cut in order, or rank by rank.
void DataParallel::close(Bucket bucket, const std::vector<int>& owners) {
  const int P = comm_.size();
  const Device device = parameters_.front().variable.value().device();
  const bool cut = owners[bucket.parts.front().parameter] < 0;
  if (cut) {
    bucket.n = up(bucket.n, kAlign * P);
    std::fill(bucket.counts.begin(), bucket.counts.end(), bucket.n / P);
  }
  std::vector<int64_t> at(static_cast<size_t>(P));  // the next parameter of each rank
  for (int r = 0; !cut && r < P; ++r) at[static_cast<size_t>(r)] = begin_of(bucket.counts, r);
  for (Part& part : bucket.parts) {
    int64_t& begin = at[static_cast<size_t>(std::max(owners[part.parameter], 0))];
    part.begin = begin;
    begin += up(parameters_[part.parameter].variable.value().numel(), kAlign);
    bucket_of_[part.parameter] = buckets_.size();
  }
  bucket.gradients = Tensor::zeros({bucket.n}, Dtype::f32, device);
  if (options_.shard) {
    bucket.weights = Tensor::zeros({bucket.n}, Dtype::f32, device);
    for (const Part& part : bucket.parts) {
      const Variable& p = parameters_[part.parameter].variable;
      const Tensor place =
          bucket.weights.slice(0, part.begin, part.begin + p.value().numel()).view(p.shape());
      place.copy_(p.value());
      p.set_value(place);
    }
  }
  buckets_.push_back(std::move(bucket));
}

std::vector<DataParallel::Piece> DataParallel::pieces_of(int rank) const {
  std::vector<Piece> pieces;
  for (size_t b = 0; b < buckets_.size(); ++b) {
    const int64_t begin = begin_of(buckets_[b].counts, rank),
                  end = begin_of(buckets_[b].counts, rank + 1);
    for (const Part& part : buckets_[b].parts) {
      const int64_t numel = parameters_[part.parameter].variable.value().numel();
      const int64_t from = std::max(begin, part.begin), to = std::min(end, part.begin + numel);
      if (from < to) pieces.push_back({part.parameter, b, from - part.begin, to - from, from});
    }
  }
  return pieces;
}

void DataParallel::make_pieces() {
  places_ = pieces_of(comm_.rank());
  for (const Piece& piece : places_) {
    const nn::NamedParameter& whole = parameters_[piece.parameter];
    Shape shape = whole.variable.shape();
    if (options_.whole[piece.parameter] == 0) {
      for (int i = 0; i < shape.rank(); ++i) shape[i] = i + 1 == shape.rank() ? piece.n : 1;
    }
    const Tensor values = buckets_[piece.bucket].weights.slice(0, piece.at, piece.at + piece.n);
    pieces_.push_back({whole.name, Variable(values.view(shape), true)});
  }
}

Tensor DataParallel::shard_of(const Bucket& bucket, const Tensor& flat) const {
  const int rank = comm_.rank();
  return flat.slice(0, begin_of(bucket.counts, rank), begin_of(bucket.counts, rank + 1));
}

int64_t DataParallel::elements() const {
  int64_t n = 0;
  for (const Bucket& bucket : buckets_) n += bucket.n;
  return n;
}

int64_t DataParallel::own_elements() const {
  int64_t n = 0;
  for (const Bucket& bucket : buckets_) n += bucket.counts[static_cast<size_t>(comm_.rank())];
  return n;
}

// ---- gradients ----------------------------------------------------------------------------------

void DataParallel::arm() {
  armed_ = true;
  arrivals_.assign(parameters_.size(), 0);
  for (Bucket& bucket : buckets_) bucket.missing = 0;
  if (uses_.empty()) return;
  for (size_t i = 0; i < parameters_.size(); ++i)
    if (uses_[i] > 0) ++buckets_[bucket_of_[i]].missing;
}

// The first backward is counted: how often each parameter is used. Later ones are the same.
void DataParallel::arrived(size_t parameter) {
  if (!armed_) return;
  const int64_t count = ++arrivals_[parameter];
  if (uses_.empty()) return;
  const size_t bucket = bucket_of_[parameter];
  FOVEA_CHECK(bucket >= next_, "data parallel: ", parameters_[parameter].name, " got gradient ",
              count, " of a step after its sum was sent; the first step gave it ", uses_[parameter],
              ". For a model that changes set mesh.overlap = false");
  if (count != uses_[parameter]) return;
  --buckets_[bucket].missing;
  send_ready();
}

// In order, which is the same on all ranks.
void DataParallel::send_ready() {
  while (next_ < buckets_.size() && buckets_[next_].missing == 0) send(buckets_[next_++]);
}

void DataParallel::send(Bucket& bucket) {
  for (const Part& part : bucket.parts) {
    const Variable& p = parameters_[part.parameter].variable;
    const Tensor place = bucket.gradients.slice(0, part.begin, part.begin + p.value().numel());
    const bool present = p.grad().defined();
    present_[part.parameter] = present ? 1.0 : 0.0;
    if (present)
      place.view(p.shape()).copy_(p.grad());
    else
      place.fill_(0.0);
    if (options_.shard)
      p.zero_grad();
    else
      p.set_grad(place.view(p.shape()));
  }
  bucket.work = options_.shard
                    ? comm_.reduce_scatter_v(shard_of(bucket, bucket.gradients), bucket.gradients,
                                             bucket.counts, Reduce::sum, Mode::async)
                    : comm_.all_reduce(bucket.gradients, Reduce::sum, Mode::async);
}

void DataParallel::finish() {
  if (options_.exact) return finish_exact();
  early_ = next_;
  while (next_ < buckets_.size()) send(buckets_[next_++]);
  next_ = 0;
  if (armed_ && uses_.empty()) uses_ = arrivals_;
  armed_ = false;
  for (Bucket& bucket : buckets_) bucket.work.wait();
  for (size_t i = 0; i < pieces_.size(); ++i) {
    const Piece& piece = places_[i];
    pieces_[i].variable.set_grad(buckets_[piece.bucket]
                                     .gradients.slice(0, piece.at, piece.at + piece.n)
                                     .view(pieces_[i].variable.shape()));
  }
}

std::vector<double> DataParallel::sum(std::vector<double> numbers) {
  const size_t count = numbers.size();
  numbers.insert(numbers.end(), present_.begin(), present_.end());
  const Tensor all = Tensor::from(numbers, {static_cast<int64_t>(numbers.size())});
  host_.all_reduce(all).wait();
  numbers = all.to_vector<double>();
  const auto absent = [&](size_t parameter) { return numbers[count + parameter] == 0.0; };
  if (options_.shard) {
    for (size_t i = 0; i < pieces_.size(); ++i)
      if (absent(places_[i].parameter)) pieces_[i].variable.zero_grad();
  } else {
    for (size_t i = 0; i < parameters_.size(); ++i) {
      const Variable& p = parameters_[i].variable;
      if (absent(i)) p.zero_grad();
      FOVEA_CHECK(!std::isnan(numbers[count + i]), "data parallel: a gradient of ",
                  parameters_[i].name, " is not finite, or not below ", FixedPoint::kLimit,
                  " in magnitude, as exact sums need it");
    }
  }
  numbers.resize(count);
  return numbers;
}

void DataParallel::gather() {
  if (!options_.shard) return;
  for (Bucket& bucket : buckets_)
    bucket.work = comm_.all_gather_v(bucket.weights, shard_of(bucket, bucket.weights),
                                     bucket.counts, Mode::async);
  for (Bucket& bucket : buckets_) bucket.work.wait();
}

void DataParallel::check_weights() const {
  uint64_t hash = 0;
  for (const nn::NamedParameter& p : parameters_) {
    const Tensor values = p.variable.value().to(kCpu);
    const auto* bits = reinterpret_cast<const uint32_t*>(values.data<float>());
    for (int64_t i = 0; i < values.numel(); ++i) hash = mix64(hash ^ bits[i]);
  }
  check_agree(host_, "weights", hash);
}

DataParallel::Place DataParallel::place(const std::string& parameter) const {
  const Parameters& mine = own();
  for (size_t i = 0; i < mine.size(); ++i) {
    if (mine[i].name != parameter) continue;
    if (!options_.shard) return {mine[i].variable.shape(), 0};
    return {parameters_[places_[i].parameter].variable.shape(), places_[i].from};
  }
  throw Error(concat("data parallel: this rank has nothing of ", parameter));
}

}  // namespace fovea::distributed
