// SPDX-License-Identifier: Apache-2.0
// Problems cut into stretches of queries and keys, and heads apart, are the problem.
#include <gtest/gtest.h>

#include "attention/score/cuda/rules_test.h"
#include "attention/score/score_test_util.h"
#include "core/ops/elementwise.h"
#include "core/testing/devices.h"

namespace fovea::attention {
namespace {

struct Stretch {
  Place place;
  int64_t count;
};
// Of n tokens: in pieces, and every third.
std::vector<std::vector<Stretch>> cuts(int64_t n) {
  std::vector<std::vector<Stretch>> all{{{{0, 1}, n / 3}, {{n / 3, 1}, n - n / 3}}, {}};
  for (int64_t r = 0; r < 3; ++r) all[1].push_back({{r, 3}, (n - r + 2) / 3});
  return all;
}

// One problem's results, in parts.
struct Parts {
  Tensor out, lse;
  ScoreGrads grads;
};
Parts in_parts(const ScoreRule& rule, const ScoreInputs& in, const Mask& mask,
               const ScoreOptions& options, const Tensor& dout, const std::vector<Stretch>& queries,
               const std::vector<Stretch>& keys, int64_t head_parts) {
  const int64_t B = in.q.dim(0), H = in.q.dim(1), Hkv = in.k.dim(1), N = in.q.dim(2),
                M = in.k.dim(2), h = H / head_parts;
  const Dtype wide = in.q.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32;
  const Device device = in.q.device();
  Parts whole{Tensor::empty({B, H, N, in.v.dim(3)}, in.q.dtype(), device),
              Tensor::empty({B, H, N}, wide, device),
              {Tensor::zeros(in.q.shape(), wide, device), Tensor::zeros(in.k.shape(), wide, device),
               Tensor::zeros(in.v.shape(), wide, device), Tensor(), Tensor()}};
  if (in.sink.defined()) whole.grads.dsink = Tensor::zeros({H}, wide, device);
  for (int64_t first = 0; first < H; first += h) {
    const auto heads = [&](const Tensor& x, int64_t all) {  // this part's
      return x.slice(1, first * all / H, (first + h) * all / H);
    };
    const auto of_heads = [&](const Tensor& x) {
      return x.defined() ? x.slice(0, first, first + h) : x;
    };
    for (const auto& [query, n] : queries) {
      const Tensor q = take(heads(in.q, H), 2, query, n), d = take(heads(dout, H), 2, query, n);
      ScoreInputs part{q, heads(in.k, Hkv), heads(in.v, Hkv), of_heads(in.alibi_slopes), {}};
      const ScoreSums sums = score_sums(part);
      ScoreResult result;
      ScoreGrads grads;
      grads.dq = Tensor::zeros(q.shape(), wide, device);
      for (const bool back : {false, true}) {
        if (back) result = score_finish(rule, sums, in.q.dtype());
        for (const auto& [key, m] : keys) {
          const auto tokens = [&](const Tensor& x) { return take(heads(x, Hkv), 2, key, m); };
          part.k = tokens(in.k);
          part.v = tokens(in.v);
          part.sink = &key == &keys[1].place ? of_heads(in.sink) : Tensor();
          const Mask seen = mask.part({query, key, N, M, first, H}, h, n, m);
          if (!back) {
            score_forward_sums(rule, part, seen, options, sums);
            continue;
          }
          grads.dk = Tensor::zeros(part.k.shape(), wide, device);
          grads.dv = Tensor::zeros(part.v.shape(), wide, device);
          grads.dsink = part.sink.defined() ? of_heads(whole.grads.dsink) : Tensor();
          score_backward_sums(rule, d, result, part, seen, options, grads);
          const auto add_to = [&](const Tensor& to, const Tensor& x) {
            const Tensor sum = tokens(to).clone();
            axpy_(sum, 1.0, x);
            put(heads(to, Hkv), 2, key, sum);
          };
          add_to(whole.grads.dk, grads.dk);
          add_to(whole.grads.dv, grads.dv);
        }
      }
      put(heads(whole.grads.dq, H), 2, query, grads.dq);
      put(heads(whole.out, H), 2, query, result.out);
      put(heads(whole.lse, H), 2, query, result.lse);
    }
  }
  return whole;
}

void expect_equal(const Parts& got, const ScoreResult& result, const ScoreGrads& want, double bound,
                  const std::string& what) {
  EXPECT_LT(relative_error(got.out, result.out), bound) << what;
  EXPECT_LT(relative_error(got.grads.dq, want.dq), bound) << what;
  EXPECT_LT(relative_error(got.grads.dk, want.dk), bound) << what;
  EXPECT_LT(relative_error(got.grads.dv, want.dv), bound) << what;
  if (want.dsink.defined()) {
    EXPECT_LT(relative_error(got.grads.dsink, want.dsink), bound) << what;
  }
  const auto x = got.lse.to_vector<double>(), y = result.lse.to_vector<double>();
  for (size_t i = 0; i < x.size(); ++i) {
    if (x[i] != y[i]) {
      EXPECT_NEAR(x[i], y[i], 1e2 * bound) << what << ", row " << i;
    }
  }
}

// What a device's problem is held to: the same inputs in f64. `only`: the cut of both;
// 2: queries by one, keys by the other.
void expect_parts_are_the_whole(const ScoreRule& rule, const ScoreInputs& in, const Mask& mask,
                                const ScoreOptions& options, Device device, double bound,
                                const std::string& what, size_t only = 2) {
  ScoreInputs wide = in;
  for (Tensor* t : {&wide.q, &wide.k, &wide.v}) *t = t->to(Dtype::f64);
  const Tensor dout =
      random_tensor({in.q.dim(0), in.q.dim(1), in.q.dim(2), in.v.dim(3)}, "dout", in.q.dtype());
  const ScoreResult result = score_forward(rule, wide, mask, options);
  const ScoreGrads grads = score_backward(rule, dout.to(Dtype::f64), result, wide, mask, options);
  const int64_t H = in.q.dim(1), Hkv = in.k.dim(1);
  for (size_t q = 0; q < 2; ++q) {
    for (size_t k = 0; k < 2; ++k) {
      if (only < 2 ? q != only || k != only : q == k) continue;
      const int64_t heads = q == 0 ? Hkv : 1;
      if (Hkv % heads != 0 || H % heads != 0) continue;
      expect_equal(in_parts(rule, on(device, in), mask.to(device), options, dout.to(device),
                            cuts(in.q.dim(2))[q], cuts(in.k.dim(2))[k], heads),
                   result, grads, bound,
                   concat(what, ' ', in.q.dtype(), ", queries ", q, ", keys ", k));
    }
  }
}

class Sums : public OnDevices {};

TEST_P(Sums, PartsAreTheWhole) {
  size_t number = 0;  // on devices every second case
  for (const Case& c : cases()) {
    ++number;
    for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
      if (dtype == Dtype::f64 && !has_f64()) continue;
      if (!device().is_cpu() && (dtype == Dtype::f32) != (number % 2 == 0)) continue;
      if (c.sizes.B == 0 || c.sizes.M == 0 || (!device().is_cpu() && c.sizes.M > 1000)) continue;
      ScoreInputs in = inputs(c.sizes, dtype);
      Mask mask;
      ScoreOptions options;
      c.set(mask, in, options);
      if (in.bias.defined()) continue;  // a table of its own for every part
      const double bound = dtype == Dtype::f64 ? 1e-12 : dtype == Dtype::f32 ? 1e-5 : 2e-2;
      expect_parts_are_the_whole(softmax_rule(), in, mask, options, device(), bound, c.name,
                                 dtype == Dtype::f64 ? 2 : number / 2 % 2);
    }
  }
}

TEST_P(Sums, OfEveryRule) {
  const ScoreRule sigmoid = on_devices(
      kSigmoidRule,
      [](Device d, const ScoreCall& c) { FOVEA_GPU_CALL(d, sigmoid_forward, c, stream_of(d)); },
      [](Device d, const ScoreCall& c) { FOVEA_GPU_CALL(d, sigmoid_backward, c, stream_of(d)); });
  const ScoreRule squared_relu = on_devices(
      kSquaredReluRule,
      [](Device d, const ScoreCall& c) {
        FOVEA_GPU_CALL(d, squared_relu_forward, c, stream_of(d));
      },
      [](Device d, const ScoreCall& c) {
        FOVEA_GPU_CALL(d, squared_relu_backward, c, stream_of(d));
      });
  for (const ScoreRule& rule : {sigmoid, squared_relu}) {
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      expect_parts_are_the_whole(rule, inputs({2, 4, 2, 9, 40, 8, 16}, dtype), Mask().causal(), {},
                                 device(), dtype == Dtype::f32 ? 1e-5 : 2e-2, "rule",
                                 dtype == Dtype::f32 ? 0 : 1);
    }
  }
}

// Hidden keys of one part hold NaNs.
TEST_P(Sums, HiddenKeysAddNothing) {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const ScoreInputs clean = inputs({1, 2, 1, 40, 40, 8, 8}, dtype);
    std::vector<int32_t> ids(40, 0);
    ids[7] = ids[30] = -1;
    const Tensor documents = Tensor::from(ids, {1, 40});
    const Mask mask = Mask().causal().documents(documents, documents);
    const Tensor dout = random_tensor({1, 2, 40, 8}, "dout", dtype);
    const auto parts = [&](const ScoreInputs& in) {
      return in_parts(softmax_rule(), on(device(), in), mask.to(device()), {}, dout.to(device()),
                      cuts(40)[0], cuts(40)[1], 1);
    };
    ScoreInputs broken = clean;
    for (Tensor* t : {&broken.k, &broken.v}) {
      *t = t->clone();
      for (const int64_t j : {7, 30}) t->slice(2, j, j + 1).fill_(NAN);
    }
    const Parts want = parts(clean), got = parts(broken);
    const double bound = dtype == Dtype::f32 ? 1e-5 : 2e-2;
    EXPECT_LT(relative_error(got.out, want.out), bound) << dtype;
    EXPECT_LT(relative_error(got.grads.dq, want.grads.dq), bound) << dtype;
    EXPECT_LT(relative_error(got.grads.dk, want.grads.dk), bound) << dtype;
    EXPECT_LT(relative_error(got.grads.dv, want.grads.dv), bound) << dtype;
  }
}

FOVEA_ON_DEVICES(Sums);

TEST(Places, TakeAndPut) {
  const Tensor x = random_tensor({2, 11, 3}, "x");
  const Tensor copy = Tensor::zeros({2, 11, 3}, Dtype::f64);
  for (const auto& [place, count] :
       {std::pair<Place, int64_t>{{0, 3}, 4}, {{1, 3}, 4}, {{2, 3}, 3}, {{5, 1}, 0}}) {
    const Tensor part = take(x, 1, place, count);
    EXPECT_EQ(part.shape(), (Shape{2, count, 3}));
    for (int64_t t = 0; t < count; ++t)
      EXPECT_EQ(part.select(1, t).to_vector<double>(),
                x.select(1, place.of(t)).to_vector<double>());
    put(copy, 1, place, part);
  }
  EXPECT_EQ(copy.to_vector<double>(), x.to_vector<double>());
  EXPECT_THROW(take(x, 1, {2, 3}, 4), Error);
}

TEST(Places, PartsThatLeaveTheWholeAreRefused) {
  const auto what = [](const Places& places, int64_t heads) -> std::string {
    try {
      Mask().part(places, heads, 4, 4);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(what({{7, 1}, {0, 1}, 10, 10, 0, 1}, 1),
            "mask: 4 queries from 7 on, every 1, leave the whole's 10");
  EXPECT_EQ(what({{0, 1}, {1, 3}, 10, 10, 0, 1}, 1),
            "mask: 4 keys from 1 on, every 3, leave the whole's 10");
  EXPECT_EQ(what({{0, 1}, {0, 1}, 10, 10, 2, 3}, 2), "mask: heads 2 to 4 of 3");
  EXPECT_EQ(what({{0, 1}, {0, 3}, 10, 10, 1, 3}, 2), "");
}

}  // namespace
}  // namespace fovea::attention
