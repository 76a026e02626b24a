// SPDX-License-Identifier: Apache-2.0
#pragma once
// Golden files of every mask of 2510.17896 (tests/golden/long_context): one sequence, softmax over
// what the mask allows.

#include <filesystem>
#include <nlohmann/json.hpp>

#include "attention/mask_shapes.h"
#include "core/io/hdf5.h"

namespace fovea::attention {

struct LongContextCase {
  std::string name;
  Mask mask;
  Tensor q, k, v, out, dout, dq, dk, dv;  // f64
};

// Blocks of sizes that differ, as a table of single tokens.
inline Mask variable_blocks(const nlohmann::json& rows, const nlohmann::json& columns,
                            const Tensor& on) {
  const int64_t H = on.dim(0), R = on.dim(1), C = on.dim(2);
  const auto blocks = [&](const nlohmann::json& sizes, int64_t h) {  // of each token
    std::vector<int64_t> all;
    const auto list =
        (sizes[0].is_array() ? sizes[static_cast<size_t>(h)] : sizes).get<std::vector<int64_t>>();
    for (size_t b = 0; b < list.size(); ++b)
      all.insert(all.end(), static_cast<size_t>(list[b]), static_cast<int64_t>(b));
    return all;
  };
  const auto values = on.to_vector<double>();
  std::vector<uint8_t> table;
  size_t N = 0;
  for (int64_t h = 0; h < H; ++h) {
    const auto columns_of = blocks(columns, h);
    N = columns_of.size();
    for (const int64_t r : blocks(rows, h)) {
      for (const int64_t c : columns_of)
        table.push_back(values[static_cast<size_t>((h * R + r) * C + c)] != 0.0 ? 1 : 0);
    }
  }
  const auto n = static_cast<int64_t>(N);
  return Mask().block_sparse(Tensor::from(table, {H, n, n}), 1, 1);
}

inline Mask long_context_mask(const nlohmann::json& o, int64_t N, const Hdf5Reader& file) {
  const auto kind = o.at("mask").get<std::string>();
  const auto number = [&](const char* key) { return o.at(key).get<int64_t>(); };
  const auto window = [&](size_t side) { return o.at("window")[side].get<int64_t>(); };
  const auto documents = [&] { return o.at("documents").get<std::vector<int64_t>>(); };
  const auto packed = [&](Packed p, int64_t size = 0) {
    return packed_documents(documents(), N, p, size);
  };
  if (kind == "full") return Mask();
  if (kind == "causal") return Mask().causal();
  if (kind == "sliding_window") return Mask().window(window(0), window(1));
  if (kind == "global_sliding_window")
    return global_window(N, window(0), window(1), number("global_tokens"));
  if (kind == "prefix_lm_causal") return Mask().causal().prefix(number("prefix"));
  if (kind == "full_document") return packed(Packed::full);
  if (kind == "causal_document") {  // as ids: the same by another way
    std::vector<int32_t> ids;
    for (const int64_t length : documents())
      ids.insert(ids.end(), static_cast<size_t>(length), ids.empty() ? 0 : ids.back() + 1);
    ids.resize(static_cast<size_t>(N), -1);
    const Tensor all = Tensor::from(ids, {1, N});
    return Mask().causal().documents(all, all);
  }
  if (kind == "prefix_lm_document") return packed(Packed::prefix, number("prefix"));
  if (kind == "share_question") return packed(Packed::question);
  if (kind == "causal_blockwise") return packed(Packed::last_reads);
  if (kind == "block_causal_document") return packed(Packed::blocks, number("block"));
  if (kind == "slices") return slices(o.at("slices").get<std::vector<std::array<int64_t, 5>>>(), N);
  FOVEA_CHECK(kind == "block_sparse", "golden: unknown mask ", kind);
  const Tensor on = file.read("inputs/block_mask");
  const auto& rows = o.at("rows");
  if (rows[0].is_array()) return variable_blocks(rows, o.at("cols"), on);
  return Mask().block_sparse(on.to(Dtype::f32).to(Dtype::u8), rows[0].get<int64_t>(),
                             o.at("cols")[0].get<int64_t>());
}

inline std::vector<LongContextCase> long_context_cases() {
  std::vector<LongContextCase> cases;
  for (const auto& entry : std::filesystem::directory_iterator("tests/golden/long_context")) {
    const Hdf5Reader file(entry.path());
    const auto read = [&](const std::string& name) { return file.read(name); };
    const Tensor q = read("inputs/q");
    const auto options = nlohmann::json::parse(*file.attribute("/", "options"));
    cases.push_back({*file.attribute("/", "case"), long_context_mask(options, q.dim(2), file), q,
                     read("inputs/k"), read("inputs/v"), read("outputs/out"),
                     read("cotangents/out"), read("grads/q"), read("grads/k"), read("grads/v")});
  }
  return cases;
}

}  // namespace fovea::attention
