// SPDX-License-Identifier: Apache-2.0
#include "attention/golden.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "attention/registry.h"
#include "autograd/function.h"
#include "core/io/hdf5.h"

namespace fovea::attention {
namespace {

// The options attribute as flags of the operator's own typed options, which refuse unknown keys and
// wrong types.
std::vector<config::Flag> flags_of(const std::string& options, const std::string& file) {
  const auto json = nlohmann::json::parse(options, nullptr, false);
  FOVEA_CHECK(json.is_object(), "golden ", file,
              ": attribute options is no JSON object: ", options);
  std::vector<config::Flag> flags;
  for (const auto& [key, value] : json.items()) {
    if (value.is_null()) continue;  // the default
    flags.push_back({key, value.is_string() ? value.get<std::string>() : value.dump()});
  }
  return flags;
}

std::string required(const Hdf5Reader& reader, const std::string& name, const std::string& file) {
  const auto value = reader.attribute("/", name);
  FOVEA_CHECK(value.has_value(), "golden ", file, ": has no attribute ", name);
  return *value;
}

std::vector<std::string> members(const Hdf5Reader& reader, const std::string& group) {
  return reader.has(group) ? reader.members(group) : std::vector<std::string>{};
}

void check_names(const std::vector<TensorSpec>& specs, const std::vector<std::string>& found,
                 const std::string& group, const System& system, const std::string& file) {
  for (const TensorSpec& spec : specs) {
    FOVEA_CHECK(spec.optional || std::find(found.begin(), found.end(), spec.name) != found.end(),
                "golden ", file, ": ", system.name, " needs ", group, '/', spec.name, ' ',
                spec.shape);
  }
  for (const std::string& name : found) {
    const bool known = std::any_of(specs.begin(), specs.end(),
                                   [&](const TensorSpec& spec) { return spec.name == name; });
    FOVEA_CHECK(known, "golden ", file, ": ", group, '/', name, " is no tensor of ", system.name);
  }
}

}  // namespace

GoldenResult run_golden(const std::filesystem::path& path, Dtype dtype, Device device) {
  FOVEA_CHECK(device.is_cpu() || dtype != Dtype::f64, "golden: f64 is for the cpu; device ", device,
              " computes in f32 or bf16");
  const std::string file = path.string();
  const Hdf5Reader reader(path);
  GoldenResult result{required(reader, "system", file),
                      required(reader, "case", file),
                      required(reader, "options", file),
                      {}};
  const System& system = attention::system(result.system);
  const std::unique_ptr<config::Options> options = system.op.options();
  config::load_text(*options, "", file + ": options", flags_of(result.options, file));

  NamedVariables tensors;
  std::vector<std::string> order;
  for (const auto& [group, specs] : {std::pair{std::string("inputs"), system.op.inputs},
                                     std::pair{std::string("params"), system.op.params}}) {
    const std::vector<std::string> names = members(reader, group);
    check_names(specs, names, group, system, file);
    for (const std::string& name : names) {
      const Tensor value = reader.read(group + "/" + name);
      const bool floating = is_floating(value.dtype());
      tensors[name] = Variable((floating ? value.to(dtype) : value).to(device), floating);
      order.push_back(name);
    }
  }
  const NamedVariables outputs = system.op.run(tensors, *options);
  Variables roots;
  Tensors seeds;
  for (const auto& [name, value] : outputs) {
    const Tensor here = value.value().to(kCpu);
    result.tensors.emplace_back("outputs/" + name,
                                is_floating(here.dtype()) ? here.to(Dtype::f64) : here);
    if (!reader.has("cotangents/" + name)) continue;
    const Tensor seed = reader.read("cotangents/" + name);
    FOVEA_CHECK(seed.shape() == value.shape(), "golden ", file, ": cotangents/", name, " is ",
                seed.shape(), " but the output is ", value.shape());
    roots.push_back(value);
    seeds.push_back(seed.to(value.dtype()).to(device));
  }
  if (!roots.empty()) backward(roots, seeds);
  for (const std::string& name : order) {
    const Variable& leaf = tensors.at(name);
    if (!leaf.requires_grad()) continue;
    result.tensors.emplace_back("grads/" + name, leaf.grad().defined()
                                                     ? leaf.grad().to(kCpu).to(Dtype::f64)
                                                     : Tensor::zeros(leaf.shape(), Dtype::f64));
  }
  return result;
}

std::vector<GoldenError> check_golden(const std::filesystem::path& path, Dtype dtype,
                                      Device device) {
  const GoldenResult result = run_golden(path, dtype, device);
  const Hdf5Reader reader(path);
  std::vector<GoldenError> errors;
  for (const std::string group : {"outputs", "grads"}) {
    for (const std::string& name : members(reader, group)) {
      const std::string full = group + "/" + name;
      const auto found = std::find_if(result.tensors.begin(), result.tensors.end(),
                                      [&](const auto& entry) { return entry.first == full; });
      FOVEA_CHECK(found != result.tensors.end(), "golden ", path.string(), ": ", result.system,
                  " gives no ", full);
      const Tensor reference = reader.read(full);
      FOVEA_CHECK(reference.shape() == found->second.shape(), "golden ", path.string(), ": ", full,
                  " is ", reference.shape(), " but ", result.system, " gives ",
                  found->second.shape());
      const std::vector<double> x = found->second.to_vector<double>(),
                                r = reference.to_vector<double>();
      double difference = 0.0, norm = 0.0;
      for (size_t i = 0; i < x.size(); ++i) {
        difference += (x[i] - r[i]) * (x[i] - r[i]);
        norm += r[i] * r[i];
      }
      const double tolerance = dtype == Dtype::f64    ? 1e-9
                               : dtype == Dtype::bf16 ? 2e-2
                               : group == "outputs"   ? 1e-5
                                                      : 1e-4;
      errors.push_back({full, std::sqrt(norm > 0.0 ? difference / norm : difference), tolerance});
    }
  }
  FOVEA_CHECK(!errors.empty(), "golden ", path.string(), ": has neither outputs nor grads");
  return errors;
}

void write_golden_result(const GoldenResult& result, const std::filesystem::path& file) {
  Hdf5Writer writer;
  for (const auto& [name, tensor] : result.tensors) writer.write(name, tensor);
  writer.attribute("/", "system", result.system);
  writer.attribute("/", "case", result.golden_case);
  writer.attribute("/", "options", result.options);
  writer.save(file);
}

}  // namespace fovea::attention
