// Rules read from JSON, in the form that describe() gives in Python.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "pyinv/api.h"
#include "pyinv/recipe.h"

namespace pyinv {

// A rule that is malformed, out of range, or does not fit the prior: where, what it must be, what
// it is.
class PYINV_API RuleError : public std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

struct ParsedRecipe {
  std::string name;
  Recipe recipe;
  std::vector<std::string> losses;  // each once; what Stage::objective indexes
  // The losses whose normal equations the stages want, each once: they follow `losses` in what
  // Stage::normal_equations indexes.
  std::vector<std::string> normal_equations;
};

// Reads {"kind": "uniform", "low": -1, "high": 1} or {"kind": "normal", "mean": 0, "std": 1}.
// Throws RuleError.
PYINV_API Prior parse_prior(std::string_view json);

// Reads what json.dumps(recipe.describe()) gives in Python. What Python has a default for may be
// left out; bounds of a clip that are left out or null are the uniform prior's. A stage that has an
// "objective" or "normal_equations", whole numbers, keeps them in place of its loss's indices.
// Throws RuleError.
PYINV_API ParsedRecipe parse_recipe(std::string_view json, const Prior& prior);

// What Python's recipes.default(prior) gives: Adam with a falling learning rate, and a clip for a
// uniform prior or an annealed penalty for a normal one. It minimises the loss "mse".
PYINV_API Recipe default_recipe(const Prior& prior);

}  // namespace pyinv
