// SPDX-License-Identifier: Apache-2.0
#include "distributed/data_parallel.h"

#include <algorithm>
#include <map>

#include "core/rng.h"

namespace fovea::distributed {
namespace {

// Elements: parameters begin at whole cache lines, as they do in memory of their own.
constexpr int64_t kAlign = 32;

int64_t up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

std::string description(const std::vector<nn::NamedParameter>& parameters) {
  std::string text;
  for (const nn::NamedParameter& p : parameters)
    text += concat(p.name, ' ', p.variable.shape(), '\n');
  return text;
}

}  // namespace

DataParallel::DataParallel(const Communicator& tensors, const Communicator& host,
                           Parameters parameters, const DataParallelOptions& options)
    : comm_(tensors), host_(host), parameters_(std::move(parameters)), options_(options) {
  FOVEA_CHECK(!parameters_.empty(), "data parallel: no parameters");
  for (const nn::NamedParameter& p : parameters_) {
    const Tensor& value = p.variable.value();
    FOVEA_CHECK(value.dtype() == Dtype::f32 && value.is_contiguous() &&
                    value.device() == parameters_.front().variable.value().device(),
                "data parallel: ", p.name, " is ", value.dtype(), " on ", value.device(),
                "; expected contiguous f32 on one device");
  }
  check_agree(host_, "parameters", hash_of(description(parameters_)));
  make_buckets();
  if (options_.shard) make_pieces();
  if (!options_.overlap) return;
  for (size_t i = 0; i < parameters_.size(); ++i)
    parameters_[i].variable.on_gradient([this, i] { arrived(i); });
}

DataParallel::~DataParallel() {
  for (const nn::NamedParameter& p : parameters_) p.variable.on_gradient(nullptr);
}

// ---- layout -------------------------------------------------------------------------------------

void DataParallel::make_buckets() {
  const MemoryLabel label("gradient buckets");
  bucket_of_.resize(parameters_.size());
  present_.resize(parameters_.size());
  const Device device = parameters_.front().variable.value().device();
  for (size_t i = parameters_.size(); i-- > 0;) {  // backward meets the last layers first
    if (buckets_.empty() || buckets_.back().n * size_of(Dtype::f32) >= options_.bucket_bytes)
      buckets_.emplace_back();
    Bucket& bucket = buckets_.back();
    bucket.parts.push_back({i, bucket.n});
    bucket.n += up(parameters_[i].variable.value().numel(), kAlign);
    bucket_of_[i] = buckets_.size() - 1;
  }
  for (Bucket& bucket : buckets_) {
    bucket.n = up(bucket.n, kAlign * comm_.size());
    bucket.gradients = Tensor::zeros({bucket.n}, Dtype::f32, device);
    if (!options_.shard) continue;
    bucket.weights = Tensor::zeros({bucket.n}, Dtype::f32, device);
    for (const Part& part : bucket.parts) {
      const Variable& p = parameters_[part.parameter].variable;
      const Tensor place =
          bucket.weights.slice(0, part.begin, part.begin + p.value().numel()).view(p.shape());
      place.copy_(p.value());
      p.set_value(place);
    }
  }
}

std::vector<DataParallel::Piece> DataParallel::pieces_of(int rank) const {
  std::vector<Piece> pieces;
  for (size_t b = 0; b < buckets_.size(); ++b) {
    const int64_t share = buckets_[b].n / comm_.size(), begin = rank * share, end = begin + share;
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
    const Tensor values = buckets_[piece.bucket].weights.slice(0, piece.at, piece.at + piece.n);
    pieces_.push_back(
        {whole.name,
         Variable(whole.variable.value().rank() >= 2 ? values.view({1, piece.n}) : values, true)});
  }
}

Tensor DataParallel::shard_of(const Tensor& flat) const {
  const int64_t share = flat.numel() / comm_.size();
  return flat.slice(0, comm_.rank() * share, (comm_.rank() + 1) * share);
}

int64_t DataParallel::elements() const {
  int64_t n = 0;
  for (const Bucket& bucket : buckets_) n += bucket.n;
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
  bucket.work = options_.shard ? comm_.reduce_scatter(shard_of(bucket.gradients), bucket.gradients,
                                                      Reduce::sum, Mode::async)
                               : comm_.all_reduce(bucket.gradients, Reduce::sum, Mode::async);
}

void DataParallel::finish() {
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
    for (size_t i = 0; i < parameters_.size(); ++i)
      if (absent(i)) parameters_[i].variable.zero_grad();
  }
  numbers.resize(count);
  return numbers;
}

void DataParallel::gather() {
  if (!options_.shard) return;
  for (Bucket& bucket : buckets_)
    bucket.work = comm_.all_gather(bucket.weights, shard_of(bucket.weights), Mode::async);
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

// ---- state --------------------------------------------------------------------------------------

// Rank r's pieces of one state travel as one message, in order.
DataParallel::NamedTensors DataParallel::whole(const NamedTensors& state) const {
  if (!options_.shard) return state;
  std::vector<std::string> kinds;      // "m", "v", in order
  std::map<std::string, Tensor> mine;  // by full name
  for (const auto& [name, tensor] : state) {
    const std::string kind = name.substr(0, name.find('.'));
    if (std::find(kinds.begin(), kinds.end(), kind) == kinds.end()) kinds.push_back(kind);
    mine.emplace(name, tensor);
  }
  std::vector<std::vector<Piece>> all;
  for (int r = 0; r < comm_.size(); ++r) all.push_back(pieces_of(r));
  NamedTensors result;
  for (const std::string& kind : kinds) {
    std::vector<Tensor> wholes;
    if (comm_.rank() == 0) {
      for (const nn::NamedParameter& p : parameters_)
        wholes.push_back(Tensor::empty(p.variable.shape()));
    }
    for (int r = 0; r < comm_.size(); ++r) {
      if (r != comm_.rank() && comm_.rank() != 0) continue;
      int64_t n = 0;
      for (const Piece& piece : all[static_cast<size_t>(r)]) n += piece.n;
      if (n == 0) continue;
      const Tensor flat = Tensor::empty({n});
      int64_t at = 0;
      for (const Piece& piece : all[static_cast<size_t>(r)]) {
        if (r != comm_.rank()) break;
        const Tensor& values = mine.at(kind + '.' + parameters_[piece.parameter].name);
        flat.slice(0, at, at + piece.n).copy_(values.view({piece.n}));
        at += piece.n;
      }
      if (r != 0) host_.rank() == 0 ? host_.recv(flat, r).wait() : host_.send(flat, 0).wait();
      if (comm_.rank() != 0) continue;
      at = 0;
      for (const Piece& piece : all[static_cast<size_t>(r)]) {
        const Tensor& whole = wholes[piece.parameter];
        whole.view({whole.numel()})
            .slice(0, piece.from, piece.from + piece.n)
            .copy_(flat.slice(0, at, at + piece.n));
        at += piece.n;
      }
    }
    for (size_t i = 0; i < wholes.size(); ++i)
      result.emplace_back(kind + '.' + parameters_[i].name, wholes[i]);
  }
  return result;
}

Tensor DataParallel::piece(const std::string& parameter, const Tensor& whole) const {
  if (!options_.shard) return whole;
  for (size_t i = 0; i < pieces_.size(); ++i) {
    if (pieces_[i].name != parameter) continue;
    const Shape& expected = parameters_[places_[i].parameter].variable.shape();
    FOVEA_CHECK(whole.shape() == expected, "data parallel: state of ", parameter, " is ",
                whole.shape(), " but the parameter ", expected);
    return whole.contiguous()
        .view({whole.numel()})
        .slice(0, places_[i].from, places_[i].from + places_[i].n)
        .view(pieces_[i].variable.shape());
  }
  throw Error(concat("data parallel: this rank has no piece of ", parameter));
}

}  // namespace fovea::distributed
