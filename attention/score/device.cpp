// SPDX-License-Identifier: Apache-2.0
// The score engine on GPU devices: from tensors to the kernels' argument (attention/score/cuda/).
// Before and after the kernels stand copies only where positions turn, or where bf16 rows are not
// in multiples of 16 bytes.
#include "core/cuda/device.h"

#include <map>
#include <mutex>

#include "attention/score/cuda/kernels.h"
#include "attention/score/engine.h"
#include "core/cuda/sm90.h"
#include "core/warning.h"

namespace fovea::attention {
namespace {

constexpr int64_t kSplitKeys = 256;  // the fewest keys of a split
constexpr int64_t kFewRows = 64;     // of a block, when its time is that of reading keys

// SMs. The interpreted device counts as an H100.
int processors_of(Device device) {
  const DeviceInfo& info = known_device(device);
  return info.architecture == 0 ? 132 : info.processors;
}

// Over how many blocks, at most `most`, to split the keys of each of `blocks` blocks. With few rows
// the fewest that keep the device within 85% of as busy as any number does, counting its last wave;
// else, where merging costs, as many as fill one wave.
int64_t splits_for(int64_t blocks, int64_t at_once, int64_t most, bool few_rows) {
  if (5 * blocks >= 4 * at_once) return 1;
  if (!few_rows) return std::clamp<int64_t>(at_once / std::max<int64_t>(1, blocks), 1, most);
  const auto busy = [&](int64_t splits) {
    const int64_t waves = (blocks * splits + at_once - 1) / at_once;
    return static_cast<double>(blocks * splits) / static_cast<double>(waves * at_once);
  };
  double best = 0.0;
  for (int64_t splits = 1; splits <= most; ++splits) best = std::max(best, busy(splits));
  int64_t splits = 1;
  while (busy(splits) < 0.85 * best) ++splits;
  return splits;
}

// [positions, D] each, on the device; made once, and a longer one when positions grow. The shorter
// ones stay: a captured graph may read them.
struct DeviceRotary {
  int64_t positions = 0;
  Tensor cosine, sine;
};
DeviceRotary rotary_on(Device device, Rope kind, double base, int64_t positions, int64_t dim) {
  if (kind == Rope::none || positions == 0 || dim == 0) return {};
  static std::mutex mutex;
  static std::map<std::tuple<Device::Kind, int, Rope, double, int64_t>, std::vector<DeviceRotary>>
      all;
  const std::lock_guard lock(mutex);
  std::vector<DeviceRotary>& tables = all[{device.kind, device.index, kind, base, dim}];
  if (tables.empty() || tables.back().positions < positions) {
    const auto host = rotary_table<float>(kind, base, positions, dim);
    tables.push_back({host->positions, Tensor::from(host->cosine, {host->positions, dim}, device),
                      Tensor::from(host->sine, {host->positions, dim}, device)});
  }
  return tables.back();
}

ScoreRows rows_of(const Tensor& t) {
  return {t.raw(), t.stride(0), t.stride(1), t.stride(2), t.dtype()};
}

// What a device call needs beside its tensors.
class DeviceCall {
 public:
  DeviceCall(const ScoreRule& rule, const Problem& p, const ScoreInputs& given, const Mask& mask,
             const ScoreOptions& options)
      : p_(p),
        in_(given),
        mask_(mask.parts()),
        options_(options),
        device_(given.q.device()),
        rotary_(rotary_on(device_, options.rope, options.rope_base, p.at.M, p.D)) {
    FOVEA_CHECK(rule.device_forward != nullptr, "score: this rule has no kernels for device ",
                device_);
    if (std::max(p.D, p.Dv) > kWidestTile)
      warn_once(concat("score: head dims are ", p.D, " and ", p.Dv, "; past ", kWidestTile,
                       " device ", device_, " has only a slow kernel"));
    check_small("batch x heads", p.B * p.H);
    check_small("N x head dim", p.N * std::max(p.D, p.Dv));
    check_small("M x head dim", p.M * std::max(p.D, p.Dv));
    check_small("4 (N + M) of the whole", 4 * (p.at.N + p.at.M));  // distances and their bounds
    for (const Tensor* t :
         {&in_.k, &in_.v, &in_.alibi_slopes, &in_.sink, &in_.bias, &mask_.query_documents,
          &mask_.key_documents, &mask_.blocks, &mask_.ranges}) {
      FOVEA_CHECK(!t->defined() || t->device() == device_, "score: q is on ", device_,
                  " but another operand on ", t->device());
    }
    q_ = turned(in_.q, p.at.query_positions());
    k_ = turned(in_.k, p.at.keys);
    v_ = aligned(in_.v);
    sizes();
    c_.rule = rule.rule;
    c_.query_documents = pointer<int32_t>(mask_.query_documents);
    c_.key_documents = pointer<int32_t>(mask_.key_documents);
    c_.blocks = pointer<uint8_t>(mask_.blocks);
    c_.ranges = pointer<int32_t>(mask_.ranges);
    c_.slopes = pointer<float>(in_.alibi_slopes);
    c_.sink = pointer<float>(in_.sink);
    c_.bias = pointer<float>(in_.bias);
    c_.q = rows_of(q_);
    c_.k = rows_of(k_);
    c_.v = rows_of(v_);
    c_.processors = processors_of(device_);
  }

  ScoreCall& call() { return c_; }
  Device device() const { return device_; }

  // bf16 rows as the kernels take them.
  Tensor aligned(const Tensor& x) const {
    const auto whole = [](int64_t n) { return n % 8 == 0; };
    if (x.dtype() != Dtype::bf16 ||
        (whole(x.dim(3)) && whole(x.stride(0)) && whole(x.stride(1)) && whole(x.stride(2)) &&
         reinterpret_cast<uintptr_t>(x.raw()) % 16 == 0))
      return x;
    return copied(x, Tensor(), Tensor(), {});
  }

  // Gradients that wait for their turn back are f32, and so is a dq that is summed in memory.
  bool turns() const { return rotary_.cosine.defined(); }
  Tensor before_turn(const Tensor& gradient) const {
    return turns() ? Tensor::empty(gradient.shape(), Dtype::f32, device_) : gradient;
  }
  Tensor dq_before_turn(const Tensor& dq) const {
    if (in_.q.dtype() == Dtype::f32) return before_turn(dq);
    if (turns() || dq.dtype() == Dtype::bf16) return Tensor::zeros(dq.shape(), Dtype::f32, device_);
    dq.zero_();
    return dq;
  }
  // `to` from what before_turn gave for it.
  void turn_back(const Tensor& to, const Tensor& from, const Place& place) const {
    if (from.raw() != to.raw()) turn(to, from, rotary_.cosine, rotary_.sine, place, -1.0f);
  }

  // A few rows are read with all heads of their group, and keys are split where blocks are few.
  void split(bool sums) {
    if (std::max(p_.D, p_.Dv) > kWidestTile) return;
    c_.packed = p_.group() > 1 && p_.group() * p_.N <= kFewRows;
    const int64_t rows = c_.packed ? p_.group() * p_.N : p_.N,
                  blocks = p_.B * (c_.packed ? p_.Hkv : p_.H) * ((rows + kFewRows - 1) / kFewRows),
                  most = std::max<int64_t>(1, p_.M / kSplitKeys);
    const int64_t at_once = 2 * processors_of(device_);
    c_.splits = static_cast<int>(splits_for(blocks, at_once, most, rows <= kFewRows));
    if (c_.splits == 1 && !sums) return;
    partial_ = Tensor::empty({c_.splits, p_.B * p_.H * p_.N, p_.Dv + 2}, Dtype::f32, device_);
    c_.partial = partial_.data<float>();
  }

 private:
  void check_small(const char* what, int64_t n) const {
    FOVEA_CHECK(n < (int64_t{1} << 31), "score: ", what, " is ", n, "; device ", device_,
                " takes less than 2^31");
  }
  template <typename T>
  static T* pointer(const Tensor& t) {
    return t.defined() ? t.data<T>() : nullptr;
  }

  // out = x, turned where there are tables.
  void turn(const Tensor& out, const Tensor& x, const Tensor& cosine, const Tensor& sine,
            const Place& place, float direction) const {
    [[maybe_unused]] const TurnedRows r{rows_of(out),
                                        rows_of(x),
                                        static_cast<int>(x.dim(0)),
                                        static_cast<int>(x.dim(1)),
                                        static_cast<int>(x.dim(2)),
                                        static_cast<int>(x.dim(3)),
                                        static_cast<int>(out.dim(3)),
                                        pointer<float>(cosine),
                                        pointer<float>(sine),
                                        static_cast<int>(place.base),
                                        static_cast<int>(place.stride),
                                        options_.rope == Rope::interleaved,
                                        direction};
    FOVEA_GPU_CALL(device_, turn_rows, r, stream_of(device_));
  }
  Tensor copied(const Tensor& x, const Tensor& cosine, const Tensor& sine,
                const Place& place) const {
    const int64_t width = x.dtype() == Dtype::bf16 ? (x.dim(3) + 7) / 8 * 8 : x.dim(3);
    const Tensor out = Tensor::empty({x.dim(0), x.dim(1), x.dim(2), width}, x.dtype(), device_);
    turn(out, x, cosine, sine, place, 1.0f);
    return out;
  }
  Tensor turned(const Tensor& x, const Place& place) const {
    return turns() ? copied(x, rotary_.cosine, rotary_.sine, place) : aligned(x);
  }

  void sizes() {
    c_.B = static_cast<int>(p_.B);
    c_.H = static_cast<int>(p_.H);
    c_.Hkv = static_cast<int>(p_.Hkv);
    c_.N = static_cast<int>(p_.N);
    c_.M = static_cast<int>(p_.M);
    c_.D = static_cast<int>(p_.D);
    c_.Dv = static_cast<int>(p_.Dv);
    c_.scale = static_cast<float>(p_.scale);
    c_.softcap = static_cast<float>(options_.softcap);
    c_.adjusts = options_.softcap > 0.0 || in_.alibi_slopes.defined() || in_.bias.defined() ||
                 p_.scale < 0.0;
    const Places& at = p_.at;
    const auto bounded = [&](int64_t n) { return static_cast<int>(std::min(n, at.N + at.M)); };
    c_.query_base = static_cast<int>(at.queries.base);
    c_.query_stride = static_cast<int>(at.queries.stride);
    c_.key_base = static_cast<int>(at.keys.base);
    c_.key_stride = static_cast<int>(at.keys.stride);
    c_.offset = static_cast<int>(at.query_positions().base - at.keys.base);
    c_.whole_N = static_cast<int>(at.N);
    c_.whole_M = static_cast<int>(at.M);
    c_.first_head = static_cast<int>(at.first_head);
    c_.heads = static_cast<int>(at.heads);
    c_.causal = mask_.causal;
    c_.left = bounded(mask_.left);
    c_.right = bounded(mask_.right);
    const int64_t prefix = std::max<int64_t>(0, mask_.prefix - at.keys.base);
    c_.prefix = static_cast<int>(std::min(p_.M, (prefix + at.keys.stride - 1) / at.keys.stride));
    if (mask_.blocks.defined()) {
      c_.block_heads = static_cast<int>(mask_.blocks.dim(0));
      c_.block_rows = static_cast<int>(mask_.blocks.dim(1));
      c_.block_columns = static_cast<int>(mask_.blocks.dim(2));
      c_.query_block = bounded(mask_.query_block);
      c_.key_block = bounded(mask_.key_block);
    }
    if (mask_.ranges.defined() && mask_.ranges.dim(0) > 1) c_.range_batch = 4 * p_.N;
    if (in_.bias.defined()) {
      c_.bias_batch = in_.bias.dim(0) == 1 ? 0 : in_.bias.dim(1) * p_.N * p_.M;
      c_.bias_head = in_.bias.dim(1) == 1 ? 0 : p_.N * p_.M;
    }
    c_.rng = options_.rng;
    c_.first_sample = options_.first_sample;
    c_.drop_threshold = dropout_threshold(options_.dropout);
    c_.keep_factor = static_cast<float>(1.0 / (1.0 - options_.dropout));
  }

  const Problem p_;
  const ScoreInputs in_;
  const Mask::Parts mask_;
  const ScoreOptions options_;
  const Device device_;
  const DeviceRotary rotary_;
  Tensor q_, k_, v_, partial_;
  ScoreCall c_{};
};

}  // namespace

void device_forward(const ScoreRule& rule, const Problem& p, const ScoreInputs& in,
                    const Mask& mask, const ScoreOptions& options, const ScoreResult& result) {
  if (result.lse.numel() == 0) return;
  DeviceCall device_call(rule, p, in, mask, options);
  ScoreCall& call = device_call.call();
  device_call.split(false);
  const Tensor suspect = Tensor::empty({p.B, p.H, p.N}, Dtype::u8, device_call.device());
  call.suspect = suspect.data<uint8_t>();
  call.out = rows_of(result.out);
  call.lse = result.lse.data<float>();
  rule.device_forward(device_call.device(), call);
}

void device_forward_sums(const ScoreRule& rule, const Problem& p, const ScoreInputs& in,
                         const Mask& mask, const ScoreOptions& options, const ScoreSums& sums) {
  if (sums.l.numel() == 0) return;
  FOVEA_CHECK(std::max(p.D, p.Dv) <= kWidestTile, "score: head dims are ", p.D, " and ", p.Dv,
              "; past ", kWidestTile, " device ", in.q.device(),
              " has no kernel for keys in parts (strategies gather and ulysses need none)");
  DeviceCall device_call(rule, p, in, mask, options);
  ScoreCall& call = device_call.call();
  device_call.split(true);
  call.sum_acc = sums.acc.data<float>();
  call.sum_m = sums.m.data<float>();
  call.sum_l = sums.l.data<float>();
  rule.device_forward(device_call.device(), call);
}

void device_finish(const ScoreRule& rule, const ScoreSums& sums, const ScoreResult& result) {
  if (sums.l.numel() == 0) return;
  [[maybe_unused]] const FinishedRows rows{rows_of(result.out),
                                           result.lse.data<float>(),
                                           sums.acc.data<float>(),
                                           sums.m.data<float>(),
                                           sums.l.data<float>(),
                                           static_cast<int>(sums.acc.dim(0)),
                                           static_cast<int>(sums.acc.dim(1)),
                                           static_cast<int>(sums.acc.dim(2)),
                                           static_cast<int>(sums.acc.dim(3)),
                                           rule.normalised,
                                           rule.online};
  const Device device = sums.acc.device();
  FOVEA_GPU_CALL(device, score_finish, rows, stream_of(device));
}

ScoreGrads device_backward(const ScoreRule& rule, const Problem& p, const Tensor& dout_given,
                           const ScoreResult& result, const ScoreInputs& in, const Mask& mask,
                           const ScoreOptions& options, ScoreGrads grads) {
  const Device device = in.q.device();
  if (in.sink.defined()) grads.dsink = Tensor::zeros({p.H}, Dtype::f32, device);
  if (in.bias.defined()) grads.dbias = Tensor::zeros(in.bias.shape(), Dtype::f32, device);
  if (result.lse.numel() == 0) {
    grads.dk.zero_();
    grads.dv.zero_();
    return grads;
  }
  FOVEA_CHECK(dout_given.device() == device && result.out.device() == device, "score: q is on ",
              device, " but dout on ", dout_given.device(), " and out on ", result.out.device());
  DeviceCall device_call(rule, p, in, mask, options);
  ScoreCall& call = device_call.call();
  const Tensor dout = device_call.aligned(dout_given);
  call.dout = rows_of(dout);
  const bool hopper =
      rule.hopper_backward != nullptr && runs_sm90(device) && fits_hopper_backward(call);
  const Tensor delta = Tensor::empty({p.B, p.H, p.N}, Dtype::f32, device),
               suspect = Tensor::zeros({p.B, p.H, p.N}, Dtype::u8, device),
               suspect_keys = Tensor::zeros({p.B, p.Hkv, p.M}, Dtype::u8, device),
               dq = hopper ? device_call.before_turn(grads.dq)
                           : device_call.dq_before_turn(grads.dq),
               dk = device_call.before_turn(grads.dk);
  const bool share_batch = in.bias.defined() && in.bias.dim(0) == 1 && p.B > 1,
             share_heads = in.bias.defined() && in.bias.dim(1) == 1 && p.H > 1;
  Tensor ds = grads.dbias;
  if (share_batch || share_heads) ds = Tensor::zeros({p.B, p.H, p.N, p.M}, Dtype::f32, device);
  call.out = rows_of(result.out);
  call.lse = result.lse.data<float>();
  call.delta = delta.data<float>();
  call.suspect = suspect.data<uint8_t>();
  call.suspect_keys = suspect_keys.data<uint8_t>();
  call.dq = rows_of(dq);
  call.dk = rows_of(dk);
  call.dv = rows_of(grads.dv);
  call.dbias = ds.defined() ? ds.data<float>() : nullptr;
  Tensor turns, sums, statistics;
  if (options.deterministic && in.q.dtype() == Dtype::bf16) {
    const int64_t tiles = (p.N + kFewestQueries - 1) / kFewestQueries;
    turns = Tensor::zeros({hopper ? hopper_backward(call).turns() : p.B * p.H * tiles}, Dtype::i32,
                          device);
    call.turns = turns.data<int32_t>();
  }
  if (hopper) {
    sums = Tensor::empty({hopper_backward(call).sums()}, Dtype::f32, device);
    statistics = Tensor::empty({hopper_backward(call).statistics()}, Dtype::f32, device);
    call.sums = sums.data<float>();
    call.statistics = statistics.data<float>();
    rule.hopper_backward(device, call);
  } else {
    FOVEA_GPU_CALL(device, score_delta, call, stream_of(device));
    rule.device_backward(device, call);
  }
  device_call.turn_back(grads.dq, dq, p.at.query_positions());
  device_call.turn_back(grads.dk, dk, p.at.keys);
  if (in.sink.defined())
    FOVEA_GPU_CALL(device, score_dsink, grads.dsink.data<float>(), call, stream_of(device));
  if (share_batch || share_heads)
    FOVEA_GPU_CALL(device, sum_shared, grads.dbias.data<float>(), ds.data<float>(), call.B, call.H,
                   share_batch, share_heads, p.N * p.M, stream_of(device));
  return grads;
}

}  // namespace fovea::attention
