// SPDX-License-Identifier: Apache-2.0
#include "core/stream.h"

#include "core/ops/elementwise.h"
#include "core/testing/devices.h"

namespace fovea {
namespace {

class Streams : public OnDevices {};
FOVEA_ON_DEVICES(Streams);

// More than a card does at once; little to interpret.
int64_t many(Device device) { return int64_t{1} << (device.kind == Device::Kind::cuda ? 22 : 10); }

float first(const Tensor& x) { return x.to(kCpu).data<float>()[0]; }

TEST_P(Streams, AScopeNamesTheStreamOfItsThread) {
  const Stream main = stream_of(device());
  const SideStream side(device()), other(device());
  {
    const StreamScope scope(side);
    EXPECT_TRUE(stream_of(device()) == side.stream());
    {
      const StreamScope inner(other);
      EXPECT_TRUE(stream_of(device()) == other.stream());
    }
    EXPECT_TRUE(stream_of(device()) == side.stream());
  }
  EXPECT_TRUE(stream_of(device()) == main);
  EXPECT_EQ(side.stream() == other.stream(), device().is_cpu());
  EXPECT_EQ(main == Stream{}, device().kind != Device::Kind::cuda);
}

TEST_P(Streams, EventsOrderTwoStreams) {
  const SideStream side(device());
  Event ready(device()), done(device());
  const Tensor x = Tensor::empty({many(device())}, Dtype::f32, device()),
               y = Tensor::empty({many(device())}, Dtype::f32, device());
  for (int i = 0; i < 3; ++i) {
    x.fill_(i);
    for (int k = 0; k < 10; ++k) scale_(x, 2.0);  // times 1024
    ready.record();
    {
      const StreamScope scope(side);
      ready.wait();
      y.copy_(x);
      done.record();
    }
    done.wait();
    EXPECT_EQ(first(y), 1024.0f * static_cast<float>(i));
  }
}

TEST_P(Streams, MemoryDroppedOnAnotherStreamIsNotOverwrittenBeforeThatIsDone) {
  const SideStream side(device());
  for (int i = 0; i < 10; ++i) {
    Event made(device());
    Tensor x;
    {
      const StreamScope scope(side);
      x = Tensor::full({many(device())}, i, Dtype::f32, device());
      made.record();
    }
    made.wait();
    const Tensor y = Tensor::zeros({many(device())}, Dtype::f32, device());
    for (int k = 0; k < 20; ++k) axpy_(y, 1.0, x);
    x = Tensor();
    {
      const StreamScope scope(side);
      const Tensor next = Tensor::full({many(device())}, -1.0, Dtype::f32, device());
    }
    EXPECT_EQ(first(y), 20.0f * static_cast<float>(i));
  }
}

TEST_P(Streams, AnEventThatWasNeverRecordedIsAnError) {
  const Event never(device());
  for (const auto& use : {std::function<void()>([&] { never.wait(); }),
                          std::function<void()>([&] { never.synchronize(); })}) {
    try {
      use();
      FAIL() << "no error";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("never recorded"), std::string::npos);
    }
  }
}

TEST_P(Streams, EventsMeasureTime) {
  Event begin(device(), true), end(device(), true);
  begin.record();
  const Tensor x = Tensor::full({many(device())}, 1.0, Dtype::f32, device());
  end.record();
  EXPECT_GE(end.milliseconds_since(begin), 0.0);
  EXPECT_THROW(end.milliseconds_since(Event(device())), Error);
  synchronize(device());
}

}  // namespace
}  // namespace fovea
