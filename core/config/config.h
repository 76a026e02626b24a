// SPDX-License-Identifier: Apache-2.0
#pragma once
// One typed description per options struct gives parsing of a TOML file, --dotted.flags, help,
// range checks, and the resolved file of a run. Errors are one line naming file, line, key, what
// was found, what is allowed and, for a name that does not exist, the nearest one that does.
//
//   struct OptimizerOptions : config::Options {
//     double lr = 3e-4;
//     void describe(config::Fields& f) override { f.add("lr", lr, "learning rate after warm-up",
//     config::positive()); }
//   };

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <ostream>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/error.h"

namespace fovea::config {

// A wrong config or flag: the program ends with exit code 2 before anything is created.
class ConfigError : public Error {
 public:
  using Error::Error;
};

class Fields;

struct Options {
  virtual ~Options() = default;
  virtual void describe(Fields& f) = 0;
};

// ---- constraints --------------------------------------------------------------------------------
// What a value must satisfy, and how an error says it ("expected at least 1").
struct Constraint {
  std::string text;
  std::function<bool(double)> number;  // for integers and reals; empty: any
  std::vector<std::string> names;      // for strings; empty: any
  bool non_empty = false;              // for strings
  bool file_name = false;              // for strings
};
Constraint any();
Constraint positive();
Constraint at_least(double least);
Constraint between(double low, double high);    // low <= value < high
Constraint from_to(double least, double most);  // both allowed
Constraint fraction();                          // 0 <= value <= 1
Constraint one_of(std::vector<std::string> names);
Constraint non_empty();
Constraint file_name();  // not empty, no "/"

// ---- kinds --------------------------------------------------------------------------------------
// A section whose key `kind` selects what else it may hold.
using Factory = std::function<std::unique_ptr<Options>()>;

class Choice {
 public:
  // kinds by name; `initial` is chosen until a file or flag says otherwise.
  Choice(std::map<std::string, Factory> kinds, const std::string& initial);
  const std::string& kind() const { return kind_; }
  Options& options() const { return *options_; }
  // Throws ConfigError naming the known kinds.
  void select(const std::string& kind);
  bool has(const std::string& kind) const { return kinds_.contains(kind); }
  std::vector<std::string> kinds() const;
  // The options of one of kinds(), with their defaults.
  std::unique_ptr<Options> make(const std::string& kind) const { return kinds_.at(kind)(); }

 private:
  std::map<std::string, Factory> kinds_;
  std::string kind_;
  std::unique_ptr<Options> options_;
};

// ---- the description ----------------------------------------------------------------------------
// Pointers into the options struct; strings hold paths relative to the working directory.
using Lists = std::vector<std::vector<int64_t>>;
using Target = std::variant<bool*, int64_t*, double*, std::string*, std::vector<int64_t>*,
                            std::vector<double>*, Lists*>;

struct Field {
  std::string key;  // "lr"
  Target target;
  std::string help;
  Constraint constraint;
  std::string unit;
};
struct Section {
  std::string key;
  Options* options = nullptr;  // a plain section, or
  Choice* choice = nullptr;    // one with a kind
  std::string help;
};

class Fields {
 public:
  void add(std::string key, bool& value, std::string help);
  void add(std::string key, int64_t& value, std::string help, Constraint constraint = any(),
           std::string unit = "");
  void add(std::string key, double& value, std::string help, Constraint constraint = any(),
           std::string unit = "");
  void add(std::string key, std::string& value, std::string help, Constraint constraint = any());
  void add(std::string key, std::vector<int64_t>& value, std::string help);
  // [[1, 2], [3]]; one list alone is a list of it.
  void add(std::string key, Lists& value, std::string help);
  // The constraint holds for each number of the list.
  void add(std::string key, std::vector<double>& value, std::string help,
           Constraint constraint = any());
  void section(std::string key, Options& options, std::string help);
  void choice(std::string key, Choice& choice, std::string help);

  const std::vector<Field>& fields() const { return fields_; }
  const std::vector<Section>& sections() const { return sections_; }

 private:
  std::vector<Field> fields_;
  std::vector<Section> sections_;
};

// ---- reading and writing ------------------------------------------------------------------------

// A flag "--optimizer.lr=3e-4" as key and value; a bool flag may come without a value.
struct Flag {
  std::string key, value;
};
// "--a.b=c", "--a.b", "c" (the value of the one before). Throws for anything that is no flag.
std::vector<Flag> parse_flags(const std::vector<std::string>& arguments);

// File first (empty path: none), then flags. Either everything fits, or a ConfigError is thrown.
void load(Options& options, const std::filesystem::path& file, const std::vector<Flag>& flags = {});
// The same from TOML text; `source` names it in errors.
void load_text(Options& options, std::string_view text, const std::string& source,
               const std::vector<Flag>& flags = {});

// Every key with its present value; loading this text gives the same options.
std::string resolved_toml(Options& options);

// A table of keys, those of kinds that are not chosen too: type, value, allowed values, unit, help.
void print_help(Options& options, std::ostream& out);

// The nearest of `names` to a mistyped one, or "" when none is near.
std::string nearest(std::string_view name, const std::vector<std::string>& names);

}  // namespace fovea::config
