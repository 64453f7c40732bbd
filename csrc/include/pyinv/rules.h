// Parse rules from JSON, in the format of Python's describe().
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "pyinv/api.h"
#include "pyinv/bundle.h"
#include "pyinv/recipe.h"

namespace pyinv {

// A rule is malformed, out of range, or does not fit the prior. The message has the location, the
// expected value and the actual value.
class PYINV_API RuleError : public std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

struct ParsedRecipe {
  std::string name;
  Recipe recipe;
  std::vector<std::string> losses;  // distinct; Stage::objective is an index into them
  // The distinct losses whose normal equations the stages use. Stage::normal_equations is an index
  // into `losses` followed by these.
  std::vector<std::string> normal_equations;
};

// Parses {"kind": "uniform", "low": -1, "high": 1} or {"kind": "normal", "mean": 0, "std": 1}.
// Throws RuleError.
PYINV_API Prior parse_prior(std::string_view json);

// Parses the output of json.dumps(recipe.describe()) in Python. Settings with a default in Python
// may be omitted; clip bounds that are omitted or null are those of the uniform prior. If a stage
// has "objective" or "normal_equations", whole numbers, they replace the indices of its loss.
// Throws RuleError.
PYINV_API ParsedRecipe parse_recipe(std::string_view json, const Prior& prior);

// The same recipe as Python's recipes.default(manifest): L-BFGS from the prior's mean, or Adam for
// a bundle with batch statistics. It minimises the loss "mse".
PYINV_API Recipe default_recipe(const Bundle& bundle);

}  // namespace pyinv
