// SPDX-License-Identifier: Apache-2.0
#include "core/ops/conv.h"

#include <cmath>

#include "core/rng.h"
#include "core/testing/conv_cases.h"
#include "core/testing/devices.h"

namespace fovea {
namespace {

class Convolution : public OnDevices {
 protected:
  // Values that bf16 holds exactly, on the cpu.
  static Tensor normal(const Shape& shape, const char* name) {
    const Tensor t = Tensor::empty(shape);
    fill_normal(t, RngKey(1, "test", name));
    return t.to(Dtype::bf16).to(Dtype::f64);
  }
  // |found - want| / |want|
  static double error(const Tensor& found, const Tensor& want) {
    const auto a = found.to_vector<double>(), b = want.to_vector<double>();
    EXPECT_EQ(found.shape(), want.shape());
    double difference = 0.0, size = 0.0;
    for (size_t i = 0; i < b.size(); ++i) {
      difference += (a[i] - b[i]) * (a[i] - b[i]);
      size += b[i] * b[i];
    }
    return std::sqrt(difference / size);
  }
};

TEST_P(Convolution, ResultAndGradientsFollowTheDefinition) {
  for (const ConvCase& c : conv_cases()) {
    const Tensor x = normal(c.x, "x"), w = normal(c.w, "w"), b = normal({c.w[0]}, "b"),
                 dy = normal(conv_shape(c.x, c.w, c.geometry), "dy");
    const Tensor y = conv(x, w, b, c.geometry), plain = conv(x, w, Tensor(), c.geometry),
                 dx = conv_input_gradient(dy, w, c.x, c.geometry),
                 dw = conv_weight_gradient(dy, x, c.w, c.geometry);
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      SCOPED_TRACE(concat(c.name, ' ', dtype));
      const double bound = dtype == Dtype::bf16 ? 1e-2 : 1e-5;
      const auto here = [&](const Tensor& t) { return t.to(dtype).to(device()); };
      const Tensor found = conv(here(x), here(w), b.to(Dtype::f32).to(device()), c.geometry);
      EXPECT_EQ(found.dtype(), dtype);
      EXPECT_EQ(found.device(), device());
      EXPECT_LT(error(found, y), bound);
      EXPECT_LT(error(conv(here(x), here(w), Tensor(), c.geometry), plain), bound);
      const Tensor found_dx = conv_input_gradient(here(dy), here(w), c.x, c.geometry);
      EXPECT_EQ(found_dx.dtype(), dtype);
      EXPECT_LT(error(found_dx, dx), bound);
      const Tensor found_dw = conv_weight_gradient(here(dy), here(x), c.w, c.geometry);
      EXPECT_EQ(found_dw.dtype(), Dtype::f32);
      EXPECT_EQ(found_dw.device(), device());
      EXPECT_LT(error(found_dw, dw), bound);
    }
  }
}

TEST_P(Convolution, StridedOperandsAndAnEmptyBatch) {
  const Tensor x = normal({4, 6, 5, 2}, "x").to(Dtype::f32),
               w = normal({3, 2, 3, 3}, "w").to(Dtype::f32);
  const Tensor view = x.to(device()).permute({0, 3, 1, 2});  // channels last
  EXPECT_LT(error(conv(view, w.to(device()), Tensor(), {}),
                  conv(x.permute({0, 3, 1, 2}).contiguous(), w, Tensor(), {})),
            1e-6);
  const Tensor none = Tensor::empty({0, 2, 5, 5}, Dtype::f32, device());
  EXPECT_EQ(conv(none, w.to(device()), Tensor(), {}).shape(), (Shape{0, 3, 3, 3}));
  const Tensor dy = Tensor::empty({0, 3, 3, 3}, Dtype::f32, device());
  EXPECT_EQ(conv_weight_gradient(dy, none, {3, 2, 3, 3}, {}).to_vector<float>(),
            std::vector<float>(54, 0.0f));
}

TEST_P(Convolution, OperandsOnTwoDevicesAreRefused) {
  if (device().is_cpu()) return;
  const Tensor x = Tensor::zeros({1, 1, 3, 3}, Dtype::f32, device()),
               w = Tensor::zeros({1, 1, 2, 2});
  EXPECT_THROW(conv(x, w, Tensor(), {}), Error);
  EXPECT_THROW(conv(x, w.to(device()), Tensor::zeros({1}), {}), Error);
}

FOVEA_ON_DEVICES(Convolution);

}  // namespace
}  // namespace fovea
