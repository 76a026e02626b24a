// SPDX-License-Identifier: Apache-2.0
#include "core/config/config.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <iomanip>
#include <sstream>

namespace fovea::config {
namespace {

std::string number_text(double value) {
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value).ptr;
  std::string text(buffer, end);
  if (text.find_first_of(".eni") == std::string::npos)
    text += ".0";  // TOML tells reals from integers by the point
  return text;
}

std::string in_quotes(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned>(c));
      out += escaped;
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string list_element(int64_t value) { return std::to_string(value); }
std::string list_element(double value) { return number_text(value); }
template <typename T>
std::string list_element(const std::vector<T>& list) {
  std::string out = "[";
  for (size_t i = 0; i < list.size(); ++i) out += (i > 0 ? ", " : "") + list_element(list[i]);
  return out + "]";
}

std::string value_text(const Target& target) {
  return std::visit(
      [](auto* value) -> std::string {
        using T = std::remove_pointer_t<decltype(value)>;
        if constexpr (std::is_same_v<T, bool>)
          return *value ? "true" : "false";
        else if constexpr (std::is_same_v<T, int64_t>)
          return std::to_string(*value);
        else if constexpr (std::is_same_v<T, double>)
          return number_text(*value);
        else if constexpr (std::is_same_v<T, std::string>)
          return in_quotes(*value);
        else
          return list_element(*value);
      },
      target);
}

void write_section(Options& options, const std::string& path, const std::string* kind,
                   std::string& out) {
  Fields fields;
  options.describe(fields);
  if (!path.empty()) out += "\n[" + path + "]\n";
  if (kind != nullptr) out += "kind = " + in_quotes(*kind) + "\n";
  for (const Field& field : fields.fields())
    out += field.key + " = " + value_text(field.target) + "\n";
  for (const Section& section : fields.sections()) {
    const std::string below = path.empty() ? section.key : path + "." + section.key;
    if (section.choice != nullptr)
      write_section(section.choice->options(), below, &section.choice->kind(), out);
    else
      write_section(*section.options, below, nullptr, out);
  }
}

const char* type_name(const Target& target) {
  static constexpr const char* kNames[] = {"bool",     "integer", "number", "text",
                                           "integers", "numbers", "lists"};
  return kNames[target.index()];
}

void help_section(Options& options, const std::string& path, std::ostream& out) {
  Fields fields;
  options.describe(fields);
  for (const Field& field : fields.fields()) {
    const std::string key = path.empty() ? field.key : path + "." + field.key;
    out << "  --" << std::left << std::setw(34) << key << ' ' << std::setw(8)
        << type_name(field.target) << ' ' << std::setw(12) << value_text(field.target) << ' '
        << field.help;
    if (!field.unit.empty()) out << " [" << field.unit << ']';
    if (!field.constraint.text.empty()) out << " (" << field.constraint.text << ')';
    out << '\n';
  }
  for (const Section& section : fields.sections()) {
    const std::string below = path.empty() ? section.key : path + "." + section.key;
    out << "\n[" << below << "]  " << section.help << '\n';
    if (section.choice != nullptr) {
      out << "  --" << std::left << std::setw(34) << below + ".kind" << ' ' << std::setw(8)
          << "text" << ' ' << std::setw(12) << in_quotes(section.choice->kind()) << " one of";
      for (const std::string& kind : section.choice->kinds()) out << ' ' << kind;
      out << '\n';
      help_section(section.choice->options(), below, out);
      for (const std::string& kind : section.choice->kinds()) {
        if (kind == section.choice->kind()) continue;
        out << "\n[" << below << "] with --" << below << ".kind=" << kind << '\n';
        help_section(*section.choice->make(kind), below, out);
      }
    } else {
      help_section(*section.options, below, out);
    }
  }
}

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

}  // namespace

// ---- constraints --------------------------------------------------------------------------------

Constraint any() { return {}; }
Constraint positive() {
  return {"above 0", [](double v) { return v > 0.0; }, {}, false};
}
Constraint at_least(double least) {
  std::ostringstream text;
  text << "at least " << least;
  return {text.str(), [least](double v) { return v >= least; }, {}, false};
}
Constraint between(double low, double high) {
  std::ostringstream text;
  text << "from " << low << " to below " << high;
  return {text.str(), [=](double v) { return v >= low && v < high; }, {}, false};
}
Constraint from_to(double least, double most) {
  std::ostringstream text;
  text << std::setprecision(15) << "from " << least << " to " << most;
  return {text.str(), [=](double v) { return v >= least && v <= most; }, {}, false};
}
Constraint fraction() {
  return {"from 0 to 1", [](double v) { return v >= 0.0 && v <= 1.0; }, {}, false};
}
Constraint one_of(std::vector<std::string> names) {
  std::string text = "one of";
  for (const std::string& name : names) text += ' ' + name;
  return {text, {}, std::move(names), false};
}
Constraint non_empty() { return {"not empty", {}, {}, true}; }
Constraint file_name() {
  Constraint constraint{"not empty, without /", {}, {}, true};
  constraint.file_name = true;
  return constraint;
}

// ---- kinds --------------------------------------------------------------------------------------

Choice::Choice(std::map<std::string, Factory> kinds, const std::string& initial)
    : kinds_(std::move(kinds)) {
  select(initial);
}

void Choice::select(const std::string& kind) {
  const auto found = kinds_.find(kind);
  if (found == kinds_.end()) {
    std::string known;
    for (const auto& [name, factory] : kinds_) known += ' ' + name;
    throw ConfigError(concat("unknown kind \"", kind, "\"; known are", known));
  }
  if (kind == kind_) return;
  kind_ = kind;
  options_ = found->second();
}

std::vector<std::string> Choice::kinds() const {
  std::vector<std::string> names;
  for (const auto& [name, factory] : kinds_) names.push_back(name);
  return names;
}

// ---- the description ----------------------------------------------------------------------------

void Fields::add(std::string key, bool& value, std::string help) {
  fields_.push_back({std::move(key), &value, std::move(help), {}, ""});
}
void Fields::add(std::string key, int64_t& value, std::string help, Constraint constraint,
                 std::string unit) {
  fields_.push_back(
      {std::move(key), &value, std::move(help), std::move(constraint), std::move(unit)});
}
void Fields::add(std::string key, double& value, std::string help, Constraint constraint,
                 std::string unit) {
  fields_.push_back(
      {std::move(key), &value, std::move(help), std::move(constraint), std::move(unit)});
}
void Fields::add(std::string key, std::string& value, std::string help, Constraint constraint) {
  fields_.push_back({std::move(key), &value, std::move(help), std::move(constraint), ""});
}
void Fields::add(std::string key, std::vector<int64_t>& value, std::string help) {
  fields_.push_back({std::move(key), &value, std::move(help), {}, ""});
}
void Fields::add(std::string key, Lists& value, std::string help) {
  fields_.push_back({std::move(key), &value, std::move(help), {}, ""});
}
void Fields::add(std::string key, std::vector<double>& value, std::string help,
                 Constraint constraint) {
  fields_.push_back({std::move(key), &value, std::move(help), std::move(constraint), ""});
}
void Fields::section(std::string key, Options& options, std::string help) {
  sections_.push_back({std::move(key), &options, nullptr, std::move(help)});
}
void Fields::choice(std::string key, Choice& choice, std::string help) {
  sections_.push_back({std::move(key), nullptr, &choice, std::move(help)});
}

// ---- writing ------------------------------------------------------------------------------------

std::string resolved_toml(Options& options) {
  std::string out;
  write_section(options, "", nullptr, out);
  return out;
}

void print_help(Options& options, std::ostream& out) { help_section(options, "", out); }

std::vector<Flag> parse_flags(const std::vector<std::string>& arguments) {
  std::vector<Flag> flags;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& text = arguments[i];
    if (text.rfind("--", 0) != 0 || text.size() < 3)
      throw ConfigError(concat("expected a flag --key=value, found \"", text, '"'));
    const size_t equals = text.find('=');
    Flag flag{text.substr(2, equals == std::string::npos ? equals : equals - 2), "true"};
    if (equals != std::string::npos)
      flag.value = text.substr(equals + 1);
    else if (i + 1 < arguments.size() && arguments[i + 1].rfind("--", 0) != 0)
      flag.value = arguments[++i];
    for (const Flag& other : flags) {
      if (other.key == flag.key)
        throw ConfigError(
            concat("--", flag.key, ": given twice (", other.value, " and ", flag.value, ")"));
    }
    flags.push_back(std::move(flag));
  }
  return flags;
}

std::string nearest(std::string_view name, const std::vector<std::string>& names) {
  std::string best;
  size_t least = std::max<size_t>(2, name.size() / 3) + 1;
  for (const std::string& candidate : names) {
    const size_t distance = edit_distance(name, candidate);
    if (distance < least) {
      least = distance;
      best = candidate;
    }
  }
  return best;
}

}  // namespace fovea::config
