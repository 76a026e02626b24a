// SPDX-License-Identifier: Apache-2.0
#include "core/cpu/onednn.h"

#include <omp.h>

#include <cstring>
#include <memory>
#include <mutex>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>

#include "core/cpu/isa.h"
#include "core/cpu/onednn_engine.h"
#include "core/parallel.h"
#include "core/scratch.h"

namespace fovea::onednn {

const dnnl::engine& engine() {
  static const dnnl::engine instance = [] {
    // Only before the first primitive; a second call would be refused, which cannot happen here.
    switch (cpu_isa()) {
      case Isa::avx2:
        dnnl::set_max_cpu_isa(dnnl::cpu_isa::avx2);
        break;
      case Isa::avx512:
        dnnl::set_max_cpu_isa(dnnl::cpu_isa::avx512_core_vnni);
        break;
      case Isa::avx512_bf16:
        dnnl::set_max_cpu_isa(dnnl::cpu_isa::avx512_core_bf16);
        break;
    }
    return dnnl::engine(dnnl::engine::kind::cpu, 0);
  }();
  return instance;
}

dnnl::stream& stream() {
  static thread_local dnnl::stream instance(engine());
  return instance;
}

dnnl::memory::data_type data_type(Dtype dtype) {
  switch (dtype) {
    case Dtype::f32:
      return dnnl::memory::data_type::f32;
    case Dtype::bf16:
      return dnnl::memory::data_type::bf16;
    default:
      detail::fail("oneDNN: expected f32 or bf16, found ", dtype);
  }
}

namespace {

using dnnl::memory;

struct Compiled {
  dnnl::matmul primitive;
  memory::desc a, b, c, bias, scratch;
  const char* implementation = "";  // "" when there is only a plain loop
};

// A primitive is made for a number of threads, so that number is part of the key.
struct Key {
  MatmulProblem problem;
  int threads = 1;
  bool operator==(const Key&) const = default;
};
struct KeyHash {
  size_t operator()(const Key& key) const {
    const MatmulProblem& p = key.problem;
    size_t hash = static_cast<size_t>(key.threads);
    const auto mix = [&](int64_t value) {
      hash = (hash ^ static_cast<size_t>(value)) * 0x9e3779b97f4a7c15ull + (hash >> 29);
    };
    for (int64_t value : {p.batch, p.m, p.n, p.k, p.a_batch, p.a_row, p.a_column, p.b_batch,
                          p.b_row, p.b_column, p.c_batch, p.c_row})
      mix(value);
    mix(static_cast<int64_t>(p.in) * 64 + static_cast<int64_t>(p.out) * 8 +
        (p.bias ? static_cast<int64_t>(*p.bias) + 1 : 0));
    mix(p.accumulate);
    return hash;
  }
};

memory::desc matrix(const MatmulProblem& p, Dtype dtype, int64_t rows, int64_t columns,
                    int64_t batch_stride, int64_t row, int64_t column) {
  if (p.batch == 1) return {{rows, columns}, data_type(dtype), memory::dims{row, column}};
  const int64_t batch = batch_stride == 0 ? 1 : p.batch;
  return {{batch, rows, columns},
          data_type(dtype),
          memory::dims{batch_stride == 0 ? rows * columns : batch_stride, row, column}};
}

std::shared_ptr<const Compiled> compile(const MatmulProblem& p) {
  auto compiled = std::make_shared<Compiled>();
  compiled->a = matrix(p, p.in, p.m, p.k, p.a_batch, p.a_row, p.a_column);
  compiled->b = matrix(p, p.in, p.k, p.n, p.b_batch, p.b_row, p.b_column);
  compiled->c = matrix(p, p.out, p.m, p.n, p.c_batch, p.c_row, 1);
  if (p.bias) {
    compiled->bias = p.batch == 1
                         ? memory::desc({1, p.n}, data_type(*p.bias), memory::dims{p.n, 1})
                         : memory::desc({1, 1, p.n}, data_type(*p.bias), memory::dims{p.n, p.n, 1});
  }
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (p.accumulate) {
    dnnl::post_ops post;
    post.append_sum(1.0f);
    attributes.set_post_ops(post);
  }
  const dnnl::matmul::desc desc =
      p.bias ? dnnl::matmul::desc(compiled->a, compiled->b, compiled->bias, compiled->c)
             : dnnl::matmul::desc(compiled->a, compiled->b, compiled->c);
  dnnl::matmul::primitive_desc chosen(desc, attributes, engine(), /*allow_empty=*/true);
  if (!chosen || std::strstr(chosen.impl_info_str(), "ref") != nullptr) return compiled;
  compiled->implementation = chosen.impl_info_str();
  compiled->scratch = chosen.scratchpad_desc();
  compiled->primitive = dnnl::matmul(chosen);
  return compiled;
}

// oneDNN makes a primitive for as many threads as OpenMP would give this one.
class TeamSize {
 public:
  explicit TeamSize(int threads) : before_(omp_get_max_threads()) { omp_set_num_threads(threads); }
  ~TeamSize() { omp_set_num_threads(before_); }
  TeamSize(const TeamSize&) = delete;
  TeamSize& operator=(const TeamSize&) = delete;

 private:
  int before_;
};

std::shared_ptr<const Compiled> find(const MatmulProblem& problem) {
  static std::mutex mutex;
  static std::unordered_map<Key, std::shared_ptr<const Compiled>, KeyHash> cache;
  constexpr size_t kMostPrimitives =
      2048;  // a run has a few hundred; a stream of ever new shapes starts over
  const Key key{problem, detail::in_parallel_region() ? 1 : num_threads()};
  const std::lock_guard lock(mutex);
  if (const auto found = cache.find(key); found != cache.end()) return found->second;
  if (cache.size() >= kMostPrimitives) cache.clear();
  const TeamSize team(key.threads);
  auto compiled = compile(problem);
  cache.emplace(key, compiled);
  return compiled;
}

}  // namespace

bool matmul(const MatmulProblem& problem, void* c, const void* a, const void* b, const void* bias) {
  const auto compiled = find(problem);
  if (compiled->implementation[0] == '\0') return false;
  const Scratch<std::byte> scratch(static_cast<int64_t>(compiled->scratch.get_size()));
  std::unordered_map<int, memory> arguments{
      {DNNL_ARG_SRC, memory(compiled->a, engine(), const_cast<void*>(a))},
      {DNNL_ARG_WEIGHTS, memory(compiled->b, engine(), const_cast<void*>(b))},
      {DNNL_ARG_DST, memory(compiled->c, engine(), c)},
      {DNNL_ARG_SCRATCHPAD, memory(compiled->scratch, engine(), scratch.data())}};
  if (problem.bias)
    arguments.emplace(DNNL_ARG_BIAS, memory(compiled->bias, engine(), const_cast<void*>(bias)));
  compiled->primitive.execute(stream(), arguments);
  return true;
}

const char* matmul_implementation(const MatmulProblem& problem) {
  return find(problem)->implementation;
}

}  // namespace fovea::onednn
