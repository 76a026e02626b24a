// SPDX-License-Identifier: Apache-2.0
#include "core/ops/reduce.h"

#include <cmath>

#include "core/parallel.h"
#include "core/rng.h"
#include "core/testing/devices.h"

namespace fovea {
namespace {

class Reduce : public OnDevices {
 protected:
  static Tensor normal(const Shape& shape, Dtype dtype) {
    const Tensor t = Tensor::empty(shape);
    fill_normal(t, RngKey(1, "test", "x"));
    return t.to(dtype).to(device());
  }
  // Sums of x over an axis, in f64.
  static std::vector<double> plain(const Tensor& x, int axis) {
    int64_t inner = 1;
    for (int i = axis + 1; i < x.rank(); ++i) inner *= x.dim(i);
    const auto values = x.to_vector<float>();
    std::vector<double> sums(static_cast<size_t>(x.numel() / x.dim(axis)));
    for (int64_t e = 0; e < x.numel(); ++e)
      sums[static_cast<size_t>(e / (inner * x.dim(axis)) * inner + e % inner)] +=
          static_cast<double>(values[static_cast<size_t>(e)]);
    return sums;
  }
  static void expect_close(const Tensor& got, const std::vector<double>& want, int64_t terms,
                           const std::string& what) {
    const auto found = got.to_vector<float>();
    ASSERT_EQ(found.size(), want.size()) << what;
    const double rounding = got.dtype() == Dtype::bf16 ? 4e-3 : 1.2e-7;
    for (size_t i = 0; i < want.size(); ++i)
      ASSERT_NEAR(static_cast<double>(found[i]), want[i],
                  1.2e-7 * static_cast<double>(terms) + rounding * std::abs(want[i]))
          << what << " element " << i;
  }
};

TEST_P(Reduce, SumsOverEveryAxisInEveryDtype) {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
    EXPECT_EQ(sum(normal({3, 5}, dtype), 0).dtype(), dtype);
  for (const Shape& shape :
       {Shape{1, 1}, Shape{3, 5}, Shape{65, 3}, Shape{129, 33}, Shape{300, 57}, Shape{2, 140, 17},
        Shape{64, 40}, Shape{5, 1000}, Shape{1000, 1}, Shape{2, 1500}, Shape{200, 2, 8}}) {
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      const Tensor x = normal(shape, dtype);
      for (int axis = 0; axis < shape.rank(); ++axis) {
        const std::string what = concat(shape, " axis ", axis, ' ', dtype);
        const auto want = plain(x, axis);
        for (const Dtype result : {Dtype::f32, Dtype::bf16}) {
          const Tensor got = sum(x, axis, result);
          EXPECT_EQ(got.dtype(), result);
          EXPECT_EQ(got.device(), device());
          expect_close(got, want, shape[axis], what);
        }
      }
    }
  }
}

TEST_P(Reduce, ViewsSumAsTheirCopies) {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const Tensor x = normal({20, 70}, dtype);
    for (const Tensor& view : {x.transpose(0, 1), x.slice(0, 1, 12), x.slice(1, 3, 69)}) {
      for (const int axis : {0, 1}) {
        EXPECT_EQ(sum(view, axis).to_vector<float>(), sum(view.clone(), axis).to_vector<float>());
        expect_close(sum(view, axis, Dtype::f32), plain(view, axis), 70, "view");
      }
    }
    // Contiguous, but no longer on a 16-byte boundary: the same order, so the same bits.
    const Tensor line = normal({1001}, dtype).slice(0, 1, 1001);
    EXPECT_EQ(sum_all(line).item(), sum_all(line.clone()).item());
  }
}

TEST_P(Reduce, SumsOfAllElements) {
  for (const int64_t n : {1, 3, 63, 65, 1000, 16385}) {
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      const Tensor x = normal({n}, dtype), total = sum_all(x);
      EXPECT_EQ(total.shape(), Shape{});
      EXPECT_EQ(total.dtype(), dtype);
      expect_close(total, plain(x, 0), n, concat(n, ' ', dtype));
    }
  }
}

TEST_P(Reduce, SumToUndoesEveryStretch) {
  const Tensor x = normal({2, 3, 4}, Dtype::f32);
  expect_close(sum_to(x, {3, 4}), plain(x, 0), 2, "leading axis");
  expect_close(sum_to(x, {2, 1, 4}), plain(x, 1), 3, "axis of size 1");
  expect_close(sum_to(x, {1}), plain(x.view({24}), 0), 24, "to one element");
  EXPECT_EQ(sum_to(x, {2, 3, 4}).to_vector<float>(), x.to_vector<float>());
  EXPECT_THROW(sum_to(x, {2, 4}), Error);
}

TEST_P(Reduce, EmptyAxesGiveZeros) {
  const Tensor none = Tensor::empty({0, 5}, Dtype::f32, device());
  EXPECT_EQ(sum(none, 0).to_vector<float>(), std::vector<float>(5, 0.0f));
  EXPECT_EQ(sum(none, 1).shape(), Shape{0});
  EXPECT_EQ(sum_all(none).item(), 0.0);
}

TEST_P(Reduce, NanAndInfinityStayInTheirRow) {
  const float inf = INFINITY, nan = NAN;
  const Tensor x =
      Tensor::from(std::vector<float>{1, nan, 3, 4, inf, 6, 7, 8, 9}, {3, 3}, device());
  const auto rows = sum(x, 1).to_vector<float>(), columns = sum(x, 0).to_vector<float>();
  EXPECT_TRUE(std::isnan(rows[0]));
  EXPECT_EQ(rows[1], inf);
  EXPECT_EQ(rows[2], 24.0f);
  EXPECT_EQ(columns[0], 12.0f);
  EXPECT_TRUE(std::isnan(columns[1]));
  EXPECT_EQ(columns[2], 18.0f);
}

TEST_P(Reduce, TheSameBitsForAnyNumberOfThreads) {
  const int threads = num_threads();
  const Tensor x = normal({300, 33}, Dtype::f32);
  const auto one = sum(x, 0).to_vector<float>();
  const double all = sum_all(x).item();
  for (const int count : {1, 3}) {
    set_num_threads(count);
    EXPECT_EQ(sum(x, 0).to_vector<float>(), one);
    EXPECT_EQ(sum_all(x).item(), all);
  }
  set_num_threads(threads);
}

FOVEA_ON_DEVICES(Reduce);

}  // namespace
}  // namespace fovea
