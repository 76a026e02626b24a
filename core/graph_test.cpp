// SPDX-License-Identifier: Apache-2.0
#include "core/graph.h"

#include "core/ops/conv.h"
#include "core/ops/elementwise.h"
#include "core/ops/matmul.h"
#include "core/stream.h"
#include "core/testing/devices.h"

namespace fovea {
namespace {

std::vector<Device> devices_with_graphs() {
  std::vector<Device> devices = devices_to_test();
  std::erase_if(devices, [](Device device) { return device.is_cpu(); });
  return devices;
}

class Graphs : public OnDevices {
 protected:
  static Tensor of(const std::vector<float>& values) {
    return Tensor::from(values, {static_cast<int64_t>(values.size())}, device());
  }
};
INSTANTIATE_TEST_SUITE_P(Devices, Graphs, testing::ValuesIn(devices_with_graphs()), device_name);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Graphs);

using Values = std::vector<float>;
Values values(const Tensor& x) { return x.to_vector<float>(); }

TEST_P(Graphs, AReplayDoesWhatTheCaptureOnlyKept) {
  const Tensor x = of({1, 2, 3}), sum = of({10, 20, 30});
  Tensor square;
  const auto f = [&] {
    axpy_(sum, 1.0, x);
    square = mul(sum, sum);
  };
  f();
  Graph graph = Graph::capture(device(), f);
  EXPECT_EQ(values(sum), (Values{11, 22, 33}));
  graph.replay();
  EXPECT_EQ(values(square), (Values{144, 576, 1296}));
  graph.replay();
  EXPECT_EQ(values(sum), (Values{13, 26, 39}));
  x.fill_(0.0);
  graph.replay();
  EXPECT_EQ(values(square), (Values{169, 676, 1521}));
}

TEST_P(Graphs, InputsAreReadBeforeEveryReplayAndConstantsOnce) {
  float now = 1.0f;
  const Tensor constant = Tensor::from(Values{10, 20}, {2});
  Tensor y, wide;
  Graph graph = Graph::capture(device(), [&] {
    const Tensor x = host_input({2}, Dtype::f32, device(), [&](void* to) {
      static_cast<float*>(to)[0] = now;
      static_cast<float*>(to)[1] = -now;
    });
    // More than one block of inputs.
    wide = host_input({100000}, Dtype::f32, device(),
                      [&](void* to) { std::fill_n(static_cast<float*>(to), 100000, 2.0f * now); });
    y = add(x, host_constant(constant, device()));
  });
  constant.fill_(99.0);
  for (const float value : {1.0f, 5.0f, 7.0f}) {
    now = value;
    graph.replay();
    EXPECT_EQ(values(y), (Values{10.0f + value, 20.0f - value}));
    EXPECT_EQ(values(wide.slice(0, 99999, 100000)), (Values{2.0f * value}));
  }
  // Outside of a capture both are copies.
  EXPECT_EQ(values(host_constant(constant, device())), (Values{99, 99}));
  EXPECT_EQ(values(host_input({1}, Dtype::f32, device(),
                              [](void* to) { *static_cast<float*>(to) = 3.0f; })),
            (Values{3}));
}

TEST_P(Graphs, LibraryCallsAreKeptToo) {
  const Tensor a = Tensor::full({4, 8}, 2.0, Dtype::f32, device()),
               b = Tensor::full({8, 3}, 0.5, Dtype::f32, device()),
               image = Tensor::full({1, 2, 5, 5}, 1.0, Dtype::f32, device()),
               filter = Tensor::full({3, 2, 3, 3}, 1.0, Dtype::f32, device());
  Tensor product, convolved, d_image, d_filter;
  const ConvGeometry plain;
  const auto f = [&] {
    product = matmul(a, b);
    convolved = conv(image, filter, Tensor(), plain);
    d_image = conv_input_gradient(convolved, filter, image.shape(), plain);
    d_filter = conv_weight_gradient(convolved, image, filter.shape(), plain);
  };
  f();
  const Values first = values(d_image), second = values(d_filter);
  Graph graph = Graph::capture(device(), f);
  graph.replay();
  EXPECT_EQ(values(product), Values(12, 8.0f));
  EXPECT_EQ(values(convolved), Values(27, 18.0f));
  EXPECT_EQ(values(d_image), first);
  EXPECT_EQ(values(d_filter), second);
  a.fill_(1.0);
  image.fill_(0.0);
  graph.replay();
  EXPECT_EQ(values(product), Values(12, 4.0f));
  EXPECT_EQ(values(convolved), Values(27, 0.0f));
}

TEST_P(Graphs, MemoryOfAGraphIsNobodyElses) {
  constexpr int64_t kMany = 5000;
  const Tensor sum = Tensor::zeros({kMany}, Dtype::f32, device());
  Tensor before = Tensor::full({kMany}, 3.0, Dtype::f32, device());
  Graph graph = Graph::capture(device(), [&] {
    for (int i = 0; i < 4; ++i) {
      const Tensor within = add(before, before);
      axpy_(sum, 1.0, within);
    }
    before = Tensor();  // dropped, but the graph reads it
  });
  EXPECT_GT(graph.bytes(), 0);
  std::vector<Tensor> others;
  others.reserve(20);
  for (int i = 0; i < 20; ++i) others.push_back(Tensor::full({kMany}, i, Dtype::f32, device()));
  graph.replay();
  EXPECT_EQ(values(sum), Values(kMany, 24.0f));
  for (int i = 0; i < 20; ++i)
    EXPECT_EQ(values(others[static_cast<size_t>(i)]), Values(kMany, static_cast<float>(i)));
}

TEST_P(Graphs, TensorsMayOutliveTheGraphAndMemoryComesBack) {
  release_cached(device());
  const int64_t reserved = memory_stats(device()).reserved_bytes,
                live = memory_stats(device()).live_bytes;
  {
    const Tensor x = of({1, 2});
    Tensor y;
    {
      Graph graph = Graph::capture(device(), [&] {
        y = add(x, x);
        const Tensor z = add(y, y);
      });
      graph.replay();
    }
    EXPECT_EQ(values(y), (Values{2, 4}));
  }
  release_cached(device());
  EXPECT_EQ(memory_stats(device()).reserved_bytes, reserved);
  EXPECT_EQ(memory_stats(device()).live_bytes, live);
}

TEST_P(Graphs, AGraphCanBeReplayedOnAnotherStream) {
  const Tensor sum = of({0});
  Graph graph = Graph::capture(device(), [&] { axpy_(sum, 1.0, add(sum, sum)); });
  const Tensor one = of({1});
  axpy_(sum, 1.0, one);
  Event ready(device()), done(device());
  ready.record();
  const SideStream side(device());
  {
    const StreamScope scope(side);
    ready.wait();
    graph.replay();
  }
  graph.replay();  // behind the one before, whatever its stream
  EXPECT_EQ(values(sum), (Values{9}));
}

TEST_P(Graphs, WhatJoinsHostAndDeviceIsRefused) {
  const Tensor x = of({1}), here = Tensor::from(Values{1}, {1});
  const SideStream side(device());
  Event event(device());
  const std::vector<std::pair<const char*, std::function<void()>>> cases{
      {"a copy to the host", [&] { add(x, x).item(); }},
      {"a copy from the host", [&] { here.to(device()); }},
      {"a wait of the host", [&] { synchronize(device()); }},
      {"an event", [&] { event.record(); }},
      {"another stream", [&] { const StreamScope scope(side); }},
      {"a capture in a captured region", [&] { Graph::capture(device(), [] {}); }},
  };
  for (const auto& [words, f] : cases) {
    try {
      Graph::capture(device(), f);
      FAIL() << words;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
    }
    // The device is as before.
    EXPECT_FALSE(is_capturing(device()));
    EXPECT_EQ(values(add(x, x)), (Values{2}));
  }
  Tensor y;
  Graph graph = Graph::capture(device(), [&] { y = add(x, x); });
  graph.replay();
  EXPECT_EQ(values(y), (Values{2}));
}

TEST_P(Graphs, WhatAnInputThrowsEndsTheReplayBeforeItBegins) {
  const Tensor sum = of({1});
  bool bad = false;
  Graph graph = Graph::capture(device(), [&] {
    axpy_(sum, 1.0, host_input({1}, Dtype::f32, device(), [&](void* to) {
            FOVEA_CHECK(!bad, "a bad input");
            *static_cast<float*>(to) = 1.0f;
          }));
  });
  graph.replay();
  bad = true;
  EXPECT_THROW(graph.replay(), Error);
  EXPECT_EQ(values(sum), (Values{2}));
}

TEST(Graph, TheCpuHasNone) {
  EXPECT_THROW(Graph::capture(kCpu, [] {}), Error);
}

}  // namespace
}  // namespace fovea
