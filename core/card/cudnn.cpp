// SPDX-License-Identifier: Apache-2.0
#include "core/card/cudnn.h"

#if __has_include(<cudnn.h>)

#include <cudnn.h>

#include <array>
#include <limits>
#include <map>
#include <mutex>
#include <optional>

#include "core/card/library.h"
#include "core/card/runtime.h"
#include "core/cuda/gpu.h"

namespace fovea::cudnn {
namespace {

constexpr size_t kMostWorkspace = size_t{1} << 30;  // bytes

struct Api {
  cuda::Library blas{"libcublasLt.so.13", "libcublasLt.so.12"};  // cuDNN's own search is narrower
  cuda::Library library{"libcudnn.so.9"};
  FOVEA_LIBRARY_FUNCTION(cudnnCreate);
  FOVEA_LIBRARY_FUNCTION(cudnnGetErrorString);
  FOVEA_LIBRARY_FUNCTION(cudnnSetStream);
  FOVEA_LIBRARY_FUNCTION(cudnnCreateTensorDescriptor);
  FOVEA_LIBRARY_FUNCTION(cudnnDestroyTensorDescriptor);
  FOVEA_LIBRARY_FUNCTION(cudnnSetTensor4dDescriptor);
  FOVEA_LIBRARY_FUNCTION(cudnnCreateFilterDescriptor);
  FOVEA_LIBRARY_FUNCTION(cudnnDestroyFilterDescriptor);
  FOVEA_LIBRARY_FUNCTION(cudnnSetFilter4dDescriptor);
  FOVEA_LIBRARY_FUNCTION(cudnnCreateConvolutionDescriptor);
  FOVEA_LIBRARY_FUNCTION(cudnnDestroyConvolutionDescriptor);
  FOVEA_LIBRARY_FUNCTION(cudnnSetConvolution2dDescriptor);
  FOVEA_LIBRARY_FUNCTION(cudnnSetConvolutionGroupCount);
  FOVEA_LIBRARY_FUNCTION(cudnnSetConvolutionMathType);
  FOVEA_LIBRARY_FUNCTION(cudnnGetConvolutionForwardAlgorithm_v7);
  FOVEA_LIBRARY_FUNCTION(cudnnGetConvolutionForwardWorkspaceSize);
  FOVEA_LIBRARY_FUNCTION(cudnnConvolutionForward);
  FOVEA_LIBRARY_FUNCTION(cudnnGetConvolutionBackwardDataAlgorithm_v7);
  FOVEA_LIBRARY_FUNCTION(cudnnGetConvolutionBackwardDataWorkspaceSize);
  FOVEA_LIBRARY_FUNCTION(cudnnConvolutionBackwardData);
  FOVEA_LIBRARY_FUNCTION(cudnnGetConvolutionBackwardFilterAlgorithm_v7);
  FOVEA_LIBRARY_FUNCTION(cudnnGetConvolutionBackwardFilterWorkspaceSize);
  FOVEA_LIBRARY_FUNCTION(cudnnConvolutionBackwardFilter);
};

const Api& api() {
  static const auto* loaded = new Api;  // never destroyed: the library stays open
  return *loaded;
}

void check(cudnnStatus_t status, const char* call) {
  FOVEA_CHECK(status == CUDNN_STATUS_SUCCESS, "cudnn ", call, ": ",
              api().cudnnGetErrorString(status));
}

std::array<int, 4> sizes(const Tensor& t) {
  std::array<int, 4> out{};
  for (int axis = 0; axis < 4; ++axis) {
    FOVEA_CHECK(t.dim(axis) <= std::numeric_limits<int>::max(), "conv: ", t.shape(),
                " has an axis that passes 2^31 - 1");
    out[static_cast<size_t>(axis)] = static_cast<int>(t.dim(axis));
  }
  return out;
}

cudnnDataType_t data_type(Dtype dtype) {
  return dtype == Dtype::bf16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_FLOAT;
}

// What cuDNN is told of a problem. Padding is the same on both sides here.
class Problem {
 public:
  Problem(const Tensor& x_, const Tensor& w_, const Tensor& y_, const ConvGeometry& g) {
    const auto xs = sizes(x_), ws = sizes(w_), ys = sizes(y_);
    const cudnnDataType_t type = data_type(x_.dtype());
    check(api().cudnnCreateTensorDescriptor(&x), "descriptor of x");
    check(api().cudnnCreateTensorDescriptor(&y), "descriptor of y");
    check(api().cudnnCreateFilterDescriptor(&w), "descriptor of w");
    check(api().cudnnCreateConvolutionDescriptor(&conv), "descriptor of the convolution");
    check(api().cudnnSetTensor4dDescriptor(x, CUDNN_TENSOR_NCHW, type, xs[0], xs[1], xs[2], xs[3]),
          "descriptor of x");
    check(api().cudnnSetTensor4dDescriptor(y, CUDNN_TENSOR_NCHW, type, ys[0], ys[1], ys[2], ys[3]),
          "descriptor of y");
    check(api().cudnnSetFilter4dDescriptor(w, type, CUDNN_TENSOR_NCHW, ws[0], ws[1], ws[2], ws[3]),
          "descriptor of w");
    const auto number = [](int64_t value) { return static_cast<int>(value); };
    check(api().cudnnSetConvolution2dDescriptor(conv, number(g.before[0]), number(g.before[1]),
                                                number(g.stride[0]), number(g.stride[1]),
                                                number(g.dilation[0]), number(g.dilation[1]),
                                                CUDNN_CROSS_CORRELATION, CUDNN_DATA_FLOAT),
          "descriptor of the convolution");
    check(api().cudnnSetConvolutionGroupCount(conv, number(g.groups)), "group count");
    check(api().cudnnSetConvolutionMathType(
              conv, x_.dtype() == Dtype::bf16 ? CUDNN_TENSOR_OP_MATH : CUDNN_FMA_MATH),
          "math type");
  }
  ~Problem() {
    api().cudnnDestroyTensorDescriptor(x);
    api().cudnnDestroyTensorDescriptor(y);
    api().cudnnDestroyFilterDescriptor(w);
    api().cudnnDestroyConvolutionDescriptor(conv);
  }
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;

  cudnnTensorDescriptor_t x = nullptr, y = nullptr;
  cudnnFilterDescriptor_t w = nullptr;
  cudnnConvolutionDescriptor_t conv = nullptr;
};

// What a chosen algorithm is called among those of its pass, and its scratch.
struct Choice {
  int algorithm = 0;
  size_t workspace = 0;  // bytes
};

// The first of cuDNN's proposals (it lists the fastest first) that gives the same bits every time
// and fits, if there is one: propose(most, count, list), workspace(algorithm, bytes).
template <typename Proposal, typename Propose, typename Workspace>
std::optional<Choice> choose(Propose propose, Workspace workspace) {
  std::array<Proposal, 16> list{};
  int count = 0;
  check(propose(static_cast<int>(list.size()), &count, list.data()), "choice of an algorithm");
  for (int i = 0; i < count; ++i) {
    const Proposal& p = list[static_cast<size_t>(i)];
    size_t bytes = 0;
    if (p.status == CUDNN_STATUS_SUCCESS && p.determinism == CUDNN_DETERMINISTIC &&
        workspace(p.algo, &bytes) == CUDNN_STATUS_SUCCESS && bytes <= kMostWorkspace)
      return Choice{static_cast<int>(p.algo), bytes};
  }
  return {};
}

std::optional<Choice> choose(ConvPass pass, cudnnHandle_t on, const Problem& p) {
  switch (pass) {
    case ConvPass::forward:
      return choose<cudnnConvolutionFwdAlgoPerf_t>(
          [&](int most, int* count, cudnnConvolutionFwdAlgoPerf_t* list) {
            return api().cudnnGetConvolutionForwardAlgorithm_v7(on, p.x, p.w, p.conv, p.y, most,
                                                                count, list);
          },
          [&](cudnnConvolutionFwdAlgo_t algorithm, size_t* bytes) {
            return api().cudnnGetConvolutionForwardWorkspaceSize(on, p.x, p.w, p.conv, p.y,
                                                                 algorithm, bytes);
          });
    case ConvPass::input_gradient:
      return choose<cudnnConvolutionBwdDataAlgoPerf_t>(
          [&](int most, int* count, cudnnConvolutionBwdDataAlgoPerf_t* list) {
            return api().cudnnGetConvolutionBackwardDataAlgorithm_v7(on, p.w, p.y, p.conv, p.x,
                                                                     most, count, list);
          },
          [&](cudnnConvolutionBwdDataAlgo_t algorithm, size_t* bytes) {
            return api().cudnnGetConvolutionBackwardDataWorkspaceSize(on, p.w, p.y, p.conv, p.x,
                                                                      algorithm, bytes);
          });
    case ConvPass::weight_gradient:
      return choose<cudnnConvolutionBwdFilterAlgoPerf_t>(
          [&](int most, int* count, cudnnConvolutionBwdFilterAlgoPerf_t* list) {
            return api().cudnnGetConvolutionBackwardFilterAlgorithm_v7(on, p.x, p.y, p.conv, p.w,
                                                                       most, count, list);
          },
          [&](cudnnConvolutionBwdFilterAlgo_t algorithm, size_t* bytes) {
            return api().cudnnGetConvolutionBackwardFilterWorkspaceSize(on, p.x, p.y, p.conv, p.w,
                                                                        algorithm, bytes);
          });
  }
  return {};
}

// A handle (one a card) is for one host thread at a time; so is the cache of choices.
void run(ConvPass pass, const Tensor& x, const Tensor& w, const Tensor& y, const ConvGeometry& g) {
  using Key = std::array<int64_t, 22>;
  static std::mutex mutex;
  static std::map<int, cudnnHandle_t> handles;
  static std::map<Key, Choice> choices;
  constexpr size_t kMostProblems = 4096;  // a stream of ever new shapes starts over
  const Device device = x.device();
  const Problem p(x, w, y, g);
  const Key key{static_cast<int64_t>(pass),
                static_cast<int64_t>(x.dtype()),
                device.index,
                x.dim(0),
                x.dim(1),
                x.dim(2),
                x.dim(3),
                w.dim(0),
                w.dim(1),
                w.dim(2),
                w.dim(3),
                y.dim(0),
                y.dim(1),
                y.dim(2),
                y.dim(3),
                g.stride[0],
                g.stride[1],
                g.dilation[0],
                g.dilation[1],
                g.before[0],
                g.before[1],
                g.groups};
  const std::lock_guard lock(mutex);
  cudnnHandle_t& on = handles[device.index];
  if (on == nullptr) check(api().cudnnCreate(&on), "create");
  check(api().cudnnSetStream(on, static_cast<cudaStream_t>(stream_of(device).handle)), "stream");
  auto found = choices.find(key);
  if (found == choices.end()) {
    if (choices.size() >= kMostProblems) choices.clear();
    const auto choice = choose(pass, on, p);
    FOVEA_CHECK(choice, "cudnn: no algorithm that gives the same bits every time for x ", x.dtype(),
                ' ', x.shape(), " and weight ", w.shape());
    found = choices.emplace(key, *choice).first;
  }
  const auto [algorithm, bytes] = found->second;
  const Tensor workspace = Tensor::empty({static_cast<int64_t>(bytes)}, Dtype::u8, device);
  const float one = 1.0f, zero = 0.0f;
  const auto status = [&] {
    switch (pass) {
      case ConvPass::forward:
        return api().cudnnConvolutionForward(on, &one, p.x, x.raw(), p.w, w.raw(), p.conv,
                                             static_cast<cudnnConvolutionFwdAlgo_t>(algorithm),
                                             workspace.raw(), bytes, &zero, p.y, y.raw());
      case ConvPass::input_gradient:
        return api().cudnnConvolutionBackwardData(
            on, &one, p.w, w.raw(), p.y, y.raw(), p.conv,
            static_cast<cudnnConvolutionBwdDataAlgo_t>(algorithm), workspace.raw(), bytes, &zero,
            p.x, x.raw());
      case ConvPass::weight_gradient:
        return api().cudnnConvolutionBackwardFilter(
            on, &one, p.x, x.raw(), p.y, y.raw(), p.conv,
            static_cast<cudnnConvolutionBwdFilterAlgo_t>(algorithm), workspace.raw(), bytes, &zero,
            p.w, w.raw());
    }
    return CUDNN_STATUS_BAD_PARAM;
  }();
  FOVEA_CHECK(status == CUDNN_STATUS_SUCCESS, "cudnn: ", api().cudnnGetErrorString(status), " (x ",
              x.dtype(), ' ', x.shape(), ", weight ", w.shape(), ')');
}

}  // namespace

void convolve(ConvPass pass, const Tensor& x, const Tensor& w, const Tensor& y,
              const ConvGeometry& g) {
  if (g.before == g.after) return run(pass, x, w, y, g);
  ConvGeometry inside = g;
  inside.before = inside.after = {0, 0};
  Shape shape = x.shape();
  for (int axis = 0; axis < 2; ++axis)
    shape[axis + 2] += g.before[static_cast<size_t>(axis)] + g.after[static_cast<size_t>(axis)];
  const Tensor padded = Tensor::zeros(shape, x.dtype(), x.device());
  const Tensor middle = padded.slice(2, g.before[0], g.before[0] + x.dim(2))
                            .slice(3, g.before[1], g.before[1] + x.dim(3));
  if (pass != ConvPass::input_gradient) middle.copy_(x);
  run(pass, padded, w, y, inside);
  if (pass == ConvPass::input_gradient) x.copy_(middle);
}

}  // namespace fovea::cudnn

#else

namespace fovea::cudnn {

void convolve(ConvPass, const Tensor&, const Tensor&, const Tensor&, const ConvGeometry&) {
  detail::fail("conv: this build has no convolution on a card; it was made without cudnn.h");
}

}  // namespace fovea::cudnn

#endif
