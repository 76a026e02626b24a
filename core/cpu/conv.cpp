// SPDX-License-Identifier: Apache-2.0
#include "core/ops/conv.h"

#include <cstring>
#include <map>
#include <memory>
#include <mutex>

#include "core/cpu/isa.h"
#include "core/cpu/onednn_engine.h"
#include "core/graph.h"
#include "core/ops/conv_pass.h"
#include "core/ops/elementwise.h"
#include "core/parallel.h"
#include "core/scratch.h"
#if defined(FOVEA_CUDA)
#include "core/card/cudnn.h"
#endif

namespace fovea {

Shape conv_shape(const Shape& x, const Shape& w, const ConvGeometry& g) {
  FOVEA_CHECK(x.rank() == 4 && w.rank() == 4,
              "conv: expected x [B, C, H, W] and weight [out, C / groups, kh, kw], found ", x,
              " and ", w);
  FOVEA_CHECK(g.groups >= 1 && x[1] == w[1] * g.groups && w[0] % g.groups == 0, "conv: x is ", x,
              " and the weight ", w, " in ", g.groups,
              " groups; the weight's second axis times the groups must be the channels of x, and "
              "the groups must divide its first");
  Shape y{x[0], w[0], 0, 0};
  for (int axis = 0; axis < 2; ++axis) {
    const auto a = static_cast<size_t>(axis);
    FOVEA_CHECK(g.stride[a] >= 1 && g.dilation[a] >= 1 && g.before[a] >= 0 && g.after[a] >= 0,
                "conv: stride and dilation must be at least 1 and padding at least 0, found ",
                g.stride[a], ", ", g.dilation[a], ", ", g.before[a], " and ", g.after[a]);
    const int64_t room = x[axis + 2] + g.before[a] + g.after[a],
                  span = (w[axis + 2] - 1) * g.dilation[a] + 1;
    FOVEA_CHECK(w[axis + 2] >= 1 && span <= room, "conv: a kernel that spans ", span,
                " does not fit into ", room, " (x ", x, " with padding, weight ", w, ")");
    y[axis + 2] = (room - span) / g.stride[a] + 1;
  }
  return y;
}

namespace {

using dnnl::memory;

using Pass = ConvPass;

// ---- oneDNN: each primitive with the layouts it likes best, made once for a problem -------------

struct Compiled {
  dnnl::primitive primitive;
  memory::desc x, w, bias, y, scratch;
};

memory::dims dims_of(const Shape& shape) { return {shape.begin(), shape.end()}; }

memory::dims weight_dims(const Shape& w, int64_t groups) {
  if (groups == 1) return dims_of(w);
  return {groups, w[0] / groups, w[1], w[2], w[3]};
}

memory::desc plain(const memory::dims& dims, Dtype dtype) {
  memory::dims strides(dims.size(), 1);
  for (size_t i = dims.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * dims[i];
  return {dims, onednn::data_type(dtype), strides};
}

std::shared_ptr<const Compiled> compile(Pass pass, Dtype dtype, const Shape& x, const Shape& w,
                                        const Shape& y, bool with_bias, const ConvGeometry& g) {
  using namespace dnnl;
  const auto any = [](const memory::dims& dims, Dtype type) {
    return memory::desc(dims, onednn::data_type(type), memory::format_tag::any);
  };
  const memory::dims stride{g.stride[0], g.stride[1]},
      dilation{g.dilation[0] - 1, g.dilation[1] - 1};
  const memory::dims before{g.before[0], g.before[1]}, after{g.after[0], g.after[1]};
  primitive_attr attributes;
  attributes.set_scratchpad_mode(scratchpad_mode::user);
  const auto algorithm = algorithm::convolution_direct;
  const memory::desc xd = any(dims_of(x), dtype), wd = any(weight_dims(w, g.groups), dtype),
                     yd = any(dims_of(y), dtype);
  const memory::desc bias = with_bias ? plain({w[0]}, Dtype::f32) : memory::desc();
  auto made = std::make_shared<Compiled>();
  const convolution_forward::primitive_desc forward(
      with_bias ? convolution_forward::desc(prop_kind::forward_training, algorithm, xd, wd, bias,
                                            yd, stride, dilation, before, after)
                : convolution_forward::desc(prop_kind::forward_training, algorithm, xd, wd, yd,
                                            stride, dilation, before, after),
      attributes, onednn::engine());
  if (pass == Pass::forward) {
    *made = {convolution_forward(forward), forward.src_desc(),       forward.weights_desc(), bias,
             forward.dst_desc(),           forward.scratchpad_desc()};
  } else if (pass == Pass::input_gradient) {
    const convolution_backward_data::primitive_desc d(
        {algorithm, xd, wd, yd, stride, dilation, before, after}, attributes, onednn::engine(),
        forward);
    *made = {
        convolution_backward_data(d), d.diff_src_desc(), d.weights_desc(), {}, d.diff_dst_desc(),
        d.scratchpad_desc()};
  } else {
    const memory::desc dw = any(weight_dims(w, g.groups), Dtype::f32);
    const convolution_backward_weights::primitive_desc d(
        {algorithm, xd, dw, yd, stride, dilation, before, after}, attributes, onednn::engine(),
        forward);
    *made = {convolution_backward_weights(d),
             d.src_desc(),
             d.diff_weights_desc(),
             {},
             d.diff_dst_desc(),
             d.scratchpad_desc()};
  }
  return made;
}

std::shared_ptr<const Compiled> find(Pass pass, Dtype dtype, const Shape& x, const Shape& w,
                                     const Shape& y, bool with_bias, const ConvGeometry& g) {
  static std::mutex mutex;
  static std::map<std::vector<int64_t>, std::shared_ptr<const Compiled>> cache;
  constexpr size_t kMostPrimitives = 1024;
  std::vector<int64_t> key{static_cast<int64_t>(pass), static_cast<int64_t>(dtype), with_bias,
                           g.groups, num_threads()};
  for (const Shape* shape : {&x, &w}) key.insert(key.end(), shape->begin(), shape->end());
  for (const auto* pair : {&g.stride, &g.dilation, &g.before, &g.after})
    key.insert(key.end(), pair->begin(), pair->end());
  const std::lock_guard lock(mutex);
  if (const auto found = cache.find(key); found != cache.end()) return found->second;
  if (cache.size() >= kMostPrimitives) cache.clear();
  return cache[key] = compile(pass, dtype, x, w, y, with_bias, g);
}

// `data` in the plain layout as memory in the layout `wanted`: itself, or a converted copy that
// `buffer` holds.
memory bring(const void* data, const memory::desc& from, const memory::desc& wanted,
             std::unique_ptr<Scratch<std::byte>>& buffer) {
  const memory given(from, onednn::engine(), const_cast<void*>(data));
  if (from == wanted) return given;
  buffer = std::make_unique<Scratch<std::byte>>(static_cast<int64_t>(wanted.get_size()));
  memory converted(wanted, onednn::engine(), buffer->data());
  dnnl::reorder(given, converted).execute(onednn::stream(), const_cast<memory&>(given), converted);
  return converted;
}

// Runs a pass on plain tensors: two of x, w, y are read, the third is written.
void run(Pass pass, Dtype dtype, const Tensor& x, const Tensor& w, const Tensor& y,
         const Tensor& bias, const ConvGeometry& g) {
  const auto compiled = find(pass, dtype, x.shape(), w.shape(), y.shape(), bias.defined(), g);
  const memory::desc x_plain = plain(dims_of(x.shape()), x.dtype()),
                     w_plain = plain(weight_dims(w.shape(), g.groups), w.dtype()),
                     y_plain = plain(dims_of(y.shape()), y.dtype());
  std::unique_ptr<Scratch<std::byte>> buffers[3];
  const Scratch<std::byte> scratch(static_cast<int64_t>(compiled->scratch.get_size()));
  const Tensor& result = pass == Pass::forward ? y : pass == Pass::input_gradient ? x : w;
  const memory::desc& result_plain = pass == Pass::forward          ? y_plain
                                     : pass == Pass::input_gradient ? x_plain
                                                                    : w_plain;
  const memory::desc& result_desc = pass == Pass::forward          ? compiled->y
                                    : pass == Pass::input_gradient ? compiled->x
                                                                   : compiled->w;
  const bool direct = result_plain == result_desc;
  if (!direct)
    buffers[2] = std::make_unique<Scratch<std::byte>>(static_cast<int64_t>(result_desc.get_size()));
  memory out(result_desc, onednn::engine(), direct ? result.raw() : buffers[2]->data());
  std::unordered_map<int, memory> arguments{
      {DNNL_ARG_SCRATCHPAD, memory(compiled->scratch, onednn::engine(), scratch.data())}};
  if (pass == Pass::forward) {
    arguments.emplace(DNNL_ARG_SRC, bring(x.raw(), x_plain, compiled->x, buffers[0]));
    arguments.emplace(DNNL_ARG_WEIGHTS, bring(w.raw(), w_plain, compiled->w, buffers[1]));
    if (bias.defined())
      arguments.emplace(DNNL_ARG_BIAS, memory(compiled->bias, onednn::engine(), bias.raw()));
    arguments.emplace(DNNL_ARG_DST, out);
  } else {
    arguments.emplace(DNNL_ARG_DIFF_DST, bring(y.raw(), y_plain, compiled->y, buffers[0]));
    if (pass == Pass::input_gradient) {
      arguments.emplace(DNNL_ARG_WEIGHTS, bring(w.raw(), w_plain, compiled->w, buffers[1]));
      arguments.emplace(DNNL_ARG_DIFF_SRC, out);
    } else {
      arguments.emplace(DNNL_ARG_SRC, bring(x.raw(), x_plain, compiled->x, buffers[1]));
      arguments.emplace(DNNL_ARG_DIFF_WEIGHTS, out);
    }
  }
  compiled->primitive.execute(onednn::stream(), arguments);
  if (!direct) {
    memory target(result_plain, onednn::engine(), result.raw());
    dnnl::reorder(out, target).execute(onednn::stream(), out, target);
  }
  onednn::stream().wait();
}

// ---- f64 ----------------------------------------------------------------------------------------

// f(index into x, index into w, index into y) for every product of the definition whose x is
// inside; in parallel over the batch or over output channels, whichever `over_batch` says.
template <typename F>
void every_product(const Shape& x, const Shape& w, const Shape& y, const ConvGeometry& g,
                   bool over_batch, F f) {
  const int64_t inputs = w[1], outputs = w[0] / g.groups;
  parallel_for_each(0, over_batch ? y[0] : y[1], [&](int64_t part) {
    for (int64_t other = 0; other < (over_batch ? y[1] : y[0]); ++other) {
      const int64_t b = over_batch ? part : other, o = over_batch ? other : part;
      for (int64_t i = 0; i < y[2]; ++i) {
        for (int64_t j = 0; j < y[3]; ++j) {
          for (int64_t c = 0; c < inputs; ++c) {
            for (int64_t u = 0; u < w[2]; ++u) {
              for (int64_t v = 0; v < w[3]; ++v) {
                const int64_t row = i * g.stride[0] - g.before[0] + u * g.dilation[0],
                              column = j * g.stride[1] - g.before[1] + v * g.dilation[1];
                if (row < 0 || row >= x[2] || column < 0 || column >= x[3]) continue;
                f(((b * x[1] + o / outputs * inputs + c) * x[2] + row) * x[3] + column,
                  ((o * inputs + c) * w[2] + u) * w[3] + v, ((b * y[1] + o) * y[2] + i) * y[3] + j);
              }
            }
          }
        }
      }
    }
  });
}

// A machine without bf16 products computes in f32.
Dtype compute_dtype(Dtype dtype) {
  return dtype == Dtype::bf16 && cpu_isa() != Isa::avx512_bf16 ? Dtype::f32 : dtype;
}

void check_operands(const Tensor& a, const Tensor& b) {
  FOVEA_CHECK(a.dtype() == b.dtype() && is_floating(a.dtype()),
              "conv: expected two tensors of one floating dtype, found ", a.dtype(), " and ",
              b.dtype());
  FOVEA_CHECK(a.device() == b.device(), "conv: ", a.shape(), " is on ", a.device(), " and ",
              b.shape(), " on ", b.device(), "; move one with Tensor::to");
  FOVEA_CHECK(a.device().is_cpu() || a.dtype() != Dtype::f64,
              "conv: f64 is for the cpu; found it on ", a.device());
}

void check_result(const Tensor& dy, const Shape& expected) {
  FOVEA_CHECK(dy.shape() == expected, "conv: the result is ", expected, " but its gradient ",
              dy.shape());
}

// ---- GPU devices: a card has cuDNN, the interpreted device what the cpu computes ----------------

bool is_interpreted(const Tensor& t) { return t.device().kind == Device::Kind::interpreted; }

void on_card(Pass pass, const Tensor& x, const Tensor& w, const Tensor& y,
             [[maybe_unused]] const ConvGeometry& g) {
  if (x.numel() == 0 || w.numel() == 0 || y.numel() == 0)
    return (pass == Pass::forward ? y : pass == Pass::input_gradient ? x : w).zero_();
#if defined(FOVEA_CUDA)
  cudnn::convolve(pass, x, w, y, g);
#else
  detail::fail("conv: device ", x.device(), " is not in this build");
#endif
}

}  // namespace

Tensor conv(const Tensor& x_in, const Tensor& w_in, const Tensor& bias, const ConvGeometry& g) {
  check_operands(x_in, w_in);
  const Shape shape = conv_shape(x_in.shape(), w_in.shape(), g);
  FOVEA_CHECK(!bias.defined() || bias.shape() == Shape{shape[1]}, "conv: bias is ", bias.shape(),
              " but there are ", shape[1], " output channels");
  FOVEA_CHECK(!bias.defined() || bias.device() == x_in.device(), "conv: bias is on ", bias.device(),
              " and x on ", x_in.device(), "; move one with Tensor::to");
  if (const Device device = x_in.device(); is_interpreted(x_in)) {
    const Tensor result = Tensor::empty(shape, x_in.dtype(), device);
    host_work(device, [=] { result.copy_(conv(x_in.to(kCpu), w_in.to(kCpu), bias.to(kCpu), g)); });
    return result;
  } else if (!device.is_cpu()) {
    const Tensor result = Tensor::empty(shape, x_in.dtype(), device);
    on_card(Pass::forward, x_in.contiguous(), w_in.contiguous(), result, g);
    if (bias.defined()) axpy_(result, 1.0, bias.reshape({shape[1], 1, 1}));
    return result;
  }
  const Dtype dtype = compute_dtype(x_in.dtype());
  const Tensor x = x_in.to(dtype).contiguous(), w = w_in.to(dtype).contiguous(),
               y = Tensor::empty(shape, dtype);
  if (y.numel() == 0) return y.to(x_in.dtype());
  const Tensor b = bias.defined()
                       ? bias.to(dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32).contiguous()
                       : Tensor();
  if (dtype == Dtype::f64) {
    const int64_t area = shape[2] * shape[3];
    for (int64_t i = 0; i < y.numel(); ++i)
      y.data<double>()[i] = b.defined() ? b.data<double>()[i / area % shape[1]] : 0.0;
    every_product(x.shape(), w.shape(), shape, g, true, [&](int64_t xi, int64_t wi, int64_t yi) {
      y.data<double>()[yi] += x.data<double>()[xi] * w.data<double>()[wi];
    });
  } else {
    run(Pass::forward, dtype, x, w, y, b, g);
  }
  return y.to(x_in.dtype());
}

Tensor conv_input_gradient(const Tensor& dy_in, const Tensor& w_in, const Shape& x_shape,
                           const ConvGeometry& g) {
  check_operands(dy_in, w_in);
  check_result(dy_in, conv_shape(x_shape, w_in.shape(), g));
  if (const Device device = dy_in.device(); is_interpreted(dy_in)) {
    const Tensor result = Tensor::empty(x_shape, dy_in.dtype(), device);
    host_work(device, [=] {
      result.copy_(conv_input_gradient(dy_in.to(kCpu), w_in.to(kCpu), x_shape, g));
    });
    return result;
  } else if (!device.is_cpu()) {
    const Tensor result = Tensor::empty(x_shape, dy_in.dtype(), device);
    on_card(Pass::input_gradient, result, w_in.contiguous(), dy_in.contiguous(), g);
    return result;
  }
  const Dtype dtype = compute_dtype(dy_in.dtype());
  const Tensor dy = dy_in.to(dtype).contiguous(), w = w_in.to(dtype).contiguous(),
               dx = Tensor::zeros(x_shape, dtype);
  if (dy.numel() == 0) return dx.to(dy_in.dtype());
  if (dtype == Dtype::f64) {
    every_product(x_shape, w.shape(), dy.shape(), g, true, [&](int64_t xi, int64_t wi, int64_t yi) {
      dx.data<double>()[xi] += dy.data<double>()[yi] * w.data<double>()[wi];
    });
  } else {
    run(Pass::input_gradient, dtype, dx, w, dy, Tensor(), g);
  }
  return dx.to(dy_in.dtype());
}

Tensor conv_weight_gradient(const Tensor& dy_in, const Tensor& x_in, const Shape& w_shape,
                            const ConvGeometry& g) {
  check_operands(dy_in, x_in);
  check_result(dy_in, conv_shape(x_in.shape(), w_shape, g));
  if (const Device device = dy_in.device(); is_interpreted(dy_in)) {
    const Tensor result = Tensor::empty(w_shape, Dtype::f32, device);
    host_work(device, [=] {
      result.copy_(conv_weight_gradient(dy_in.to(kCpu), x_in.to(kCpu), w_shape, g));
    });
    return result;
  } else if (!device.is_cpu()) {
    const Tensor result = Tensor::empty(w_shape, dy_in.dtype(), device);
    on_card(Pass::weight_gradient, x_in.contiguous(), result, dy_in.contiguous(), g);
    return result.to(Dtype::f32);
  }
  const Dtype dtype = compute_dtype(dy_in.dtype());
  const Tensor dy = dy_in.to(dtype).contiguous(), x = x_in.to(dtype).contiguous();
  const Tensor dw = Tensor::zeros(w_shape, dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32);
  if (dy.numel() == 0) return dw;
  if (dtype == Dtype::f64) {
    every_product(x.shape(), w_shape, dy.shape(), g, false,
                  [&](int64_t xi, int64_t wi, int64_t yi) {
                    dw.data<double>()[wi] += dy.data<double>()[yi] * x.data<double>()[xi];
                  });
  } else {
    run(Pass::weight_gradient, dtype, x, dw, dy, Tensor(), g);
  }
  return dw;
}

}  // namespace fovea
