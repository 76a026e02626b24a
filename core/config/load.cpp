// SPDX-License-Identifier: Apache-2.0
// The one file that sees toml++: a TOML tree and flags, laid over a description.
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>
#define TOML_EXCEPTIONS 1
#define TOML_ENABLE_FORMATTERS 0
#include <toml++/toml.h>

#include "core/config/config.h"

namespace fovea::config {
namespace {

std::string join(const std::string& path, const std::string& key) {
  return path.empty() ? key : path + '.' + key;
}

const char* type_of(const toml::node& node) {
  if (node.is_table()) return "a section";
  if (node.is_array()) return "a list";
  if (node.is_string()) return "text";
  if (node.is_integer()) return "an integer";
  if (node.is_floating_point()) return "a number";
  if (node.is_boolean()) return "true or false";
  return "a date or time";
}

// On one line, whatever it holds.
std::string shown_text(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  return out + '"';
}

std::string shown(const toml::node& node) {
  if (const auto* s = node.as_string()) return shown_text(s->get());
  if (const auto* i = node.as_integer()) return std::to_string(i->get());
  if (const auto* b = node.as_boolean()) return b->get() ? "true" : "false";
  if (const auto* f = node.as_floating_point()) return concat(f->get());
  return type_of(node);
}

// Checks a value that has the right type and stores it; `where` begins the error.
template <typename T>
void store(const Field& field, T* target, const T& value, const std::string& where) {
  const Constraint& c = field.constraint;
  if constexpr (std::is_same_v<T, int64_t> || std::is_same_v<T, double>) {
    if (c.number && !c.number(static_cast<double>(value)))
      throw ConfigError(concat(where, ": expected ", c.text, ", found ", value));
  }
  if constexpr (std::is_same_v<T, double>) {
    if (!std::isfinite(value))
      throw ConfigError(concat(where, ": expected a finite number, found ", value));
  }
  if constexpr (std::is_same_v<T, std::string>) {
    if (c.non_empty && value.empty())
      throw ConfigError(concat(where, ": expected text that is not empty"));
    const auto unfit = [](char letter) {
      return letter == '/' || static_cast<unsigned char>(letter) < 0x20 || letter == 0x7f;
    };
    if (c.file_name && std::any_of(value.begin(), value.end(), unfit))
      throw ConfigError(concat(where, ": expected the name of a folder, without \"/\", found ",
                               shown_text(value)));
    if (!c.names.empty() && std::find(c.names.begin(), c.names.end(), value) == c.names.end()) {
      const std::string near = nearest(value, c.names);
      throw ConfigError(concat(where, ": expected ", c.text, ", found ", shown_text(value),
                               near.empty() ? "" : "; did you mean " + near + "?"));
    }
  }
  *target = value;
}

std::vector<int64_t> integers(const toml::node& node, const std::string& where) {
  if (!node.is_array())
    throw ConfigError(concat(where, ": expected a list of integers, found ", shown(node)));
  std::vector<int64_t> values;
  for (const toml::node& element : *node.as_array()) {
    if (!element.is_integer())
      throw ConfigError(
          concat(where, ": expected a list of integers, found ", shown(element), " in it"));
    values.push_back(element.as_integer()->get());
  }
  return values;
}

void assign(const Field& field, const toml::node& node, const std::string& where) {
  const auto wrong = [&](const char* expected) -> ConfigError {
    return ConfigError(concat(where, ": expected ", expected, ", found ", shown(node)));
  };
  std::visit(
      [&](auto* target) {
        using T = std::remove_pointer_t<decltype(target)>;
        if constexpr (std::is_same_v<T, bool>) {
          if (!node.is_boolean()) throw wrong("true or false");
          store(field, target, node.as_boolean()->get(), where);
        } else if constexpr (std::is_same_v<T, int64_t>) {
          if (!node.is_integer()) throw wrong("an integer");
          store(field, target, node.as_integer()->get(), where);
        } else if constexpr (std::is_same_v<T, double>) {
          if (!node.is_floating_point() && !node.is_integer()) throw wrong("a number");
          store(field, target,
                node.is_integer() ? static_cast<double>(node.as_integer()->get())
                                  : node.as_floating_point()->get(),
                where);
        } else if constexpr (std::is_same_v<T, std::string>) {
          if (!node.is_string()) throw wrong("text in quotes");
          store(field, target, node.as_string()->get(), where);
        } else if constexpr (std::is_same_v<T, std::vector<double>>) {
          if (!node.is_array()) throw wrong("a list of numbers");
          std::vector<double> values;
          for (const toml::node& element : *node.as_array()) {
            double value = 0.0;
            if (const auto* whole = element.as_integer())
              value = static_cast<double>(whole->get());
            else if (const auto* real = element.as_floating_point())
              value = real->get();
            else
              throw ConfigError(
                  concat(where, ": expected a list of numbers, found ", shown(element), " in it"));
            store(field, &value, value, where);
            values.push_back(value);
          }
          *target = std::move(values);
        } else if constexpr (std::is_same_v<T, Lists>) {
          if (!node.is_array()) throw wrong("a list of lists of integers");
          const toml::array& list = *node.as_array();
          Lists values;
          if (!list.empty() && list[0].is_array()) {
            for (const toml::node& element : list) values.push_back(integers(element, where));
          } else if (!list.empty()) {
            values.push_back(integers(node, where));
          }
          *target = std::move(values);
        } else {
          store(field, target, integers(node, where), where);
        }
      },
      field.target);
}

// All keys below `options`, for "did you mean".
void collect(Options& options, const std::string& path, std::vector<std::string>& keys) {
  Fields fields;
  options.describe(fields);
  for (const Field& field : fields.fields()) keys.push_back(join(path, field.key));
  for (const Section& section : fields.sections()) {
    const std::string below = join(path, section.key);
    if (section.choice != nullptr) keys.push_back(below + ".kind");
    collect(section.choice != nullptr ? section.choice->options() : *section.options, below, keys);
  }
}

class Overlay {
 public:
  // place(key, node): how an error names the spot, "config run.toml:14" or "--model.dim"
  Overlay(Options& root, std::function<std::string(const std::string&, const toml::node&)> place)
      : root_(root), place_(std::move(place)) {}

  void run(const toml::table& table) { section(root_, table, ""); }

 private:
  void section(Options& options, const toml::table& table, const std::string& path) {
    Fields fields;
    options.describe(fields);
    for (const auto& [raw, node] : table) {
      const std::string key(raw.str());
      const std::string full = join(path, key);
      if (key == "kind" && kinds_.contains(path)) continue;
      const auto field = std::find_if(fields.fields().begin(), fields.fields().end(),
                                      [&](const Field& f) { return f.key == key; });
      if (field != fields.fields().end()) {
        assign(*field, node, place_(full, node) + ": " + full);
        continue;
      }
      const auto below = std::find_if(fields.sections().begin(), fields.sections().end(),
                                      [&](const Section& s) { return s.key == key; });
      if (below == fields.sections().end()) unknown(full, node);
      if (!node.is_table())
        throw ConfigError(
            concat(place_(full, node), ": ", full, " is a section, found ", shown(node)));
      const toml::table& inner = *node.as_table();
      if (below->choice == nullptr) {
        section(*below->options, inner, full);
        continue;
      }
      kinds_.insert(full);
      if (const toml::node* kind = inner.get("kind")) {
        const std::string where = concat(place_(full + ".kind", *kind), ": ", full, ".kind");
        if (!kind->is_string())
          throw ConfigError(concat(where, ": expected text in quotes, found ", shown(*kind)));
        const std::string& name = kind->as_string()->get();
        if (!below->choice->has(name)) {
          const std::string near = nearest(name, below->choice->kinds());
          std::string known;
          for (const std::string& k : below->choice->kinds()) known += ' ' + k;
          throw ConfigError(concat(where, ": expected one of", known, ", found ", shown_text(name),
                                   near.empty() ? "" : "; did you mean " + near + "?"));
        }
        below->choice->select(name);
      }
      section(below->choice->options(), inner, full);
    }
  }

  [[noreturn]] void unknown(const std::string& full, const toml::node& node) {
    std::vector<std::string> keys;
    collect(root_, "", keys);
    std::set<std::string> sections;
    for (const std::string& key : keys) {
      for (size_t dot = key.find('.'); dot != std::string::npos; dot = key.find('.', dot + 1))
        sections.insert(key.substr(0, dot));
    }
    if (node.is_table()) keys.assign(sections.begin(), sections.end());
    const std::string near = nearest(full, keys);
    throw ConfigError(concat(place_(full, node), ": unknown ",
                             node.is_table() ? "section " : "key ", full,
                             near.empty() ? "" : "; did you mean " + near + "?"));
  }

  Options& root_;
  std::function<std::string(const std::string&, const toml::node&)> place_;
  std::set<std::string> kinds_;
};

// A flag's value in TOML's own notation where it is that, else as text: 3e-4, [1, 2], true, "a b",
// plain words.
toml::table flag_table(const Flag& flag) {
  // ["model"."attention"] newline "window" = value
  std::ostringstream out;
  const size_t last = flag.key.rfind('.');
  if (last != std::string::npos) {
    out << '[';
    size_t begin = 0;
    for (size_t dot = flag.key.find('.'); dot != std::string::npos;
         begin = dot + 1, dot = flag.key.find('.', begin)) {
      out << (begin == 0 ? "" : ".") << '"' << flag.key.substr(begin, dot - begin) << '"';
    }
    out << "]\n";
  }
  out << '"' << flag.key.substr(last == std::string::npos ? 0 : last + 1) << "\" = ";
  const std::string prefix = out.str();
  const auto control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; };
  try {
    // A line break would begin another key.
    if (std::none_of(flag.value.begin(), flag.value.end(), control))
      return toml::parse(prefix + flag.value);
  } catch (const toml::parse_error&) {
    // not TOML: plain words
  }
  {
    std::ostringstream text;
    text << prefix << '"';
    for (char c : flag.value) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\u%04x",
                    static_cast<unsigned>(static_cast<unsigned char>(c)));
      if (c == '"' || c == '\\') text << '\\';
      if (control(c))
        text << escaped;
      else
        text << c;
    }
    text << '"';
    try {
      return toml::parse(text.str());
    } catch (const toml::parse_error&) {
      throw ConfigError(concat("--", flag.key, ": cannot read the value ", shown_text(flag.value)));
    }
  }
}

}  // namespace

void load_text(Options& options, std::string_view text, const std::string& source,
               const std::vector<Flag>& flags) {
  toml::table table;
  try {
    table = toml::parse(text, source);
  } catch (const toml::parse_error& error) {
    throw ConfigError(concat("config ", source, ':', error.source().begin.line, ':',
                             error.source().begin.column, ": ", error.description()));
  }
  Overlay(options, [&](const std::string&, const toml::node& node) {
    return concat("config ", source, ':', node.source().begin.line);
  }).run(table);
  // Kinds first: they decide which other flags exist.
  for (const bool kinds : {true, false}) {
    for (const Flag& flag : flags) {
      const bool is_kind =
          flag.key.size() > 5 && flag.key.compare(flag.key.size() - 5, 5, ".kind") == 0;
      if (is_kind != kinds) continue;
      Overlay(options, [&](const std::string& key, const toml::node&) {
        return "flag --" + key;
      }).run(flag_table(flag));
    }
  }
}

void load(Options& options, const std::filesystem::path& file, const std::vector<Flag>& flags) {
  std::string text;
  if (!file.empty()) {
    if (std::filesystem::is_directory(file))
      throw ConfigError(concat("config ", file.string(), ": is a folder, expected a TOML file"));
    std::ifstream in(file, std::ios::binary);
    if (!in)
      throw ConfigError(
          concat("config ", file.string(), ": cannot be read: ", std::strerror(errno)));
    std::ostringstream all;
    all << in.rdbuf();
    text = all.str();
  }
  load_text(options, text, file.string(), flags);
}

}  // namespace fovea::config
