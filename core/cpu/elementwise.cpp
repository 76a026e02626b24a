// SPDX-License-Identifier: Apache-2.0
#include "core/ops/elementwise.h"

#include "core/cuda/elementwise.h"
#include "core/ops/strided.h"

namespace fovea {
namespace {

using Op = Elementwise::Op;

void check_devices(const char* op, const Tensor& a, const Tensor& b) {
  FOVEA_CHECK(a.defined() && b.defined(), op, ": an operand is absent");
  FOVEA_CHECK(a.device() == b.device(), op, ": ", a.shape(), " is on ", a.device(), " and ",
              b.shape(), " on ", b.device(), "; move one with Tensor::to");
}

// The operation on a GPU device; b, when defined, has out's shape.
void on_gpu(const Tensor& out, const Tensor& a, const Tensor& b, Op op, double value = 0.0) {
  [[maybe_unused]] Elementwise e{.op = op, .value = static_cast<float>(value)};
  e.out = out.raw(), e.out_dtype = out.dtype();
  e.a = a.raw(), e.a_dtype = a.dtype();
  e.b = b.raw(), e.b_dtype = b.dtype();
  const StridedLoop<3> loop(out.shape(),
                            {out.strides(), a.strides(), b.defined() ? b.strides() : a.strides()});
  FOVEA_GPU_CALL(out.device(), elementwise, e, layout_of(loop), stream_of(out.device()));
}

Dtype result_dtype(const char* op, const Tensor& a, const Tensor& b) {
  check_devices(op, a, b);
  if (a.dtype() == b.dtype() && is_floating(a.dtype())) return a.dtype();
  const bool mixed = (a.dtype() == Dtype::f32 && b.dtype() == Dtype::bf16) ||
                     (a.dtype() == Dtype::bf16 && b.dtype() == Dtype::f32);
  FOVEA_CHECK(mixed, op, ": expected two of f32, bf16 (or both f64), found ", a.dtype(), ' ',
              a.shape(), " and ", b.dtype(), ' ', b.shape());
  return Dtype::f32;
}

template <typename T, typename V>
T narrow(V value) {
  if constexpr (std::is_same_v<T, bf16>)
    return bf16(static_cast<float>(value));
  else
    return static_cast<T>(value);
}

template <typename F>
Tensor binary(const char* op, const Tensor& a, const Tensor& b, Op gpu_op, F f) {
  const Shape shape = broadcast_shapes(op, a.shape(), b.shape());
  Tensor out = Tensor::empty(shape, result_dtype(op, a, b), a.device());
  const Tensor left = a.expand(shape), right = b.expand(shape);
  if (!out.device().is_cpu()) {
    on_gpu(out, left, right, gpu_op);
    return out;
  }
  const StridedLoop<3> loop(shape, {out.strides(), left.strides(), right.strides()});
  dispatch_floating(left.dtype(), op, [&]<typename A>() {
    dispatch_floating(right.dtype(), op, [&]<typename B>() {
      if constexpr (std::is_same_v<A, double> == std::is_same_v<B, double>) {
        using T = std::conditional_t<std::is_same_v<A, B>, A, float>;
        using Acc = accumulator_t<T>;
        T* to = out.data<T>();
        const A* x = left.data<A>();
        const B* y = right.data<B>();
        loop.run([&](const auto& at, int64_t count, const auto& step) {
          T* o = to + at[0];
          const A* p = x + at[1];
          const B* q = y + at[2];
          if (step[1] == 1 && step[2] == 1) {
            for (int64_t i = 0; i < count; ++i)
              o[i] = narrow<T>(f(static_cast<Acc>(p[i]), static_cast<Acc>(q[i])));
          } else {
            for (int64_t i = 0; i < count; ++i) {
              o[i * step[0]] =
                  narrow<T>(f(static_cast<Acc>(p[i * step[1]]), static_cast<Acc>(q[i * step[2]])));
            }
          }
        });
      }
    });
  });
  return out;
}

// y = f(y, x), x expanded to y's shape
template <typename F>
void in_place(const char* op, const Tensor& y, const Tensor& x, F f) {
  const Tensor from = x.expand(y.shape());
  const StridedLoop<2> loop(y.shape(), {y.strides(), from.strides()});
  dispatch_floating(y.dtype(), op, [&]<typename T>() {
    dispatch_floating(from.dtype(), op, [&]<typename X>() {
      using Acc = accumulator_t<T>;
      T* to = y.data<T>();
      const X* source = from.data<X>();
      loop.run([&](const auto& at, int64_t count, const auto& step) {
        T* o = to + at[0];
        const X* p = source + at[1];
        if (step[0] == 1 && step[1] == 1) {
          for (int64_t i = 0; i < count; ++i)
            o[i] = narrow<T>(f(static_cast<Acc>(o[i]), static_cast<Acc>(p[i])));
        } else {
          for (int64_t i = 0; i < count; ++i) {
            T& element = o[i * step[0]];
            element = narrow<T>(f(static_cast<Acc>(element), static_cast<Acc>(p[i * step[1]])));
          }
        }
      });
    });
  });
}

template <typename F>
Tensor unary(const char* op, const Tensor& a, Op gpu_op, double value, F f) {
  Tensor out = Tensor::empty(a.shape(), a.dtype(), a.device());
  if (!out.device().is_cpu()) {
    on_gpu(out, a, Tensor(), gpu_op, value);
    return out;
  }
  const StridedLoop<2> loop(a.shape(), {out.strides(), a.strides()});
  dispatch_floating(a.dtype(), op, [&]<typename T>() {
    using Acc = accumulator_t<T>;
    T* to = out.data<T>();
    const T* source = a.data<T>();
    loop.run([&](const auto& at, int64_t count, const auto& step) {
      for (int64_t i = 0; i < count; ++i) {
        to[at[0] + i * step[0]] = narrow<T>(f(static_cast<Acc>(source[at[1] + i * step[1]])));
      }
    });
  });
  return out;
}

}  // namespace

Tensor add(const Tensor& a, const Tensor& b) {
  return binary("add", a, b, Op::add, [](auto x, auto y) { return x + y; });
}
Tensor sub(const Tensor& a, const Tensor& b) {
  return binary("sub", a, b, Op::sub, [](auto x, auto y) { return x - y; });
}
Tensor mul(const Tensor& a, const Tensor& b) {
  return binary("mul", a, b, Op::mul, [](auto x, auto y) { return x * y; });
}
Tensor div(const Tensor& a, const Tensor& b) {
  return binary("div", a, b, Op::div, [](auto x, auto y) { return x / y; });
}

Tensor scale(const Tensor& a, double factor) {
  return unary("scale", a, Op::mul, factor,
               [=](auto x) { return x * static_cast<decltype(x)>(factor); });
}
Tensor add_scalar(const Tensor& a, double term) {
  return unary("add_scalar", a, Op::add, term,
               [=](auto x) { return x + static_cast<decltype(x)>(term); });
}

void axpy_(const Tensor& y, double alpha, const Tensor& x) {
  check_devices("axpy_", y, x);
  if (!y.device().is_cpu()) return on_gpu(y, y, x.expand(y.shape()), Op::axpy, alpha);
  in_place("axpy_", y, x, [=](auto a, auto b) { return a + static_cast<decltype(a)>(alpha) * b; });
}
void scale_(const Tensor& y, double factor) {
  if (!y.device().is_cpu()) return on_gpu(y, y, Tensor(), Op::mul, factor);
  in_place("scale_", y, y, [=](auto a, auto) { return a * static_cast<decltype(a)>(factor); });
}

}  // namespace fovea
