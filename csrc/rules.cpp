#include "rules.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <optional>
#include <tuple>

#include "printable.h"
#include "solvers/solvers.h"

namespace pyinv {

using json::Node;

void only(const Node& rule, std::initializer_list<std::string_view> settings) {
  for (const auto& [name, node] : rule.members()) {
    if (name == "kind" || std::find(settings.begin(), settings.end(), name) != settings.end()) {
      continue;
    }
    std::string known;
    for (std::string_view setting : settings) {
      known += (known.empty() ? "" : ", ") + std::string(setting);
    }
    rule.fail("has no setting \"" + printable(name) + "\", only " +
              (known.empty() ? "its kind" : known));
  }
}

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Ranges are checked here and in pyinv's dataclasses. Both are needed: a C++ program reads recipes
// that have not been through Python, and Python must refuse a rule when it is created, with
// Python's names in the message. tests/rules/test_rules_json.py checks that the two agree.
struct Range {
  double low = -kInfinity, high = kInfinity;
  bool open_low = false, open_high = false;  // the bound itself is excluded
};

constexpr Range kAny;
constexpr Range kPositive{.low = 0.0, .open_low = true};
constexpr Range kNotNegative{.low = 0.0};
constexpr Range kShare{.low = 0.0, .high = 1.0};
constexpr Range kDecay{.low = 0.0, .high = 1.0, .open_high = true};
constexpr Range kRise{.low = 1.0, .open_low = true};
constexpr Range kFall{.low = 0.0, .high = 1.0, .open_low = true, .open_high = true};

std::string shortest(double number) {
  std::string text = std::to_string(number);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text;
}

bool holds(const Range& range, double value) {
  const bool above = range.open_low ? value > range.low : value >= range.low;
  const bool below = range.open_high ? value < range.high : value <= range.high;
  return above && below && std::isfinite(value);
}

// Without a fallback the setting is required; the same holds for the functions below. Number: the
// engine's type, in which the value must also be finite and in range.
template <class Number = double>
double number(const Node& rule, std::string_view key, const Range& range,
              std::optional<double> fallback = std::nullopt) {
  const std::optional<Node> found = rule.find(key);
  if (!found && fallback) return *fallback;
  const Node node = found ? *found : rule[key];
  const double value = node.number();
  const bool is_right = holds(range, value);
  if (!is_right || !holds(range, static_cast<Number>(value))) {
    std::string wanted = is_right ? "a finite number" : "a number";
    if (range.low > -kInfinity) wanted += (range.open_low ? " > " : " >= ") + shortest(range.low);
    if (range.high < kInfinity) {
      wanted += (range.low > -kInfinity ? " and" : "");
      wanted += (range.open_high ? " < " : " <= ") + shortest(range.high);
    }
    node.expected(wanted + (is_right ? " in float32" : ""));
  }
  return value;
}

float number32(const Node& rule, std::string_view key, const Range& range,
               std::optional<double> fallback = std::nullopt) {
  return static_cast<float>(number<float>(rule, key, range, fallback));
}

int64_t whole(const Node& rule, std::string_view key, int64_t low, int64_t high,
              std::optional<int64_t> fallback = std::nullopt) {
  const std::optional<Node> found = rule.find(key);
  if (!found && fallback) return *fallback;
  const Node node = found ? *found : rule[key];
  const int64_t value = node.whole();
  if (value < low || value > high) {
    node.expected("a whole number from " + std::to_string(low) + " to " + std::to_string(high));
  }
  return value;
}

bool flag(const Node& rule, std::string_view key, bool fallback) {
  const std::optional<Node> found = rule.find(key);
  return found ? found->flag() : fallback;
}

// The index of a setting's value in `choices`; 0 if the setting is omitted.
size_t choice(const Node& rule, std::string_view key,
              std::initializer_list<std::string_view> choices) {
  const std::optional<Node> found = rule.find(key);
  if (!found) return 0;
  const auto at = std::find(choices.begin(), choices.end(), found->text());
  if (at == choices.end()) {
    std::string wanted;
    for (std::string_view one : choices) {
      wanted += (wanted.empty() ? "one of " : ", ") + std::string(one);
    }
    found->expected(wanted);
  }
  return static_cast<size_t>(at - choices.begin());
}

std::string kind_of(const Node& rule) { return rule["kind"].text(); }

[[noreturn]] void unknown_kind(const Node& rule, const char* kinds) {
  rule["kind"].expected(std::string("one of ") + kinds);
}

Constraint read_constraint(const Node& rule, const Prior& prior) {
  const std::string kind = kind_of(rule);
  const bool uniform = prior.kind == PriorKind::uniform;
  const auto need_normal = [&] {
    if (uniform)
      rule.fail("must fit the prior: " + kind + " needs a normal one; use stochastic_clip or clip");
  };
  const auto horizon = [&] { return whole(rule, "horizon", 1, kMaxSteps, 0); };
  Constraint constraint;
  if (kind == "no_constraint" || kind == "none") {
    only(rule, {});
  } else if (kind == "clip" || kind == "stochastic_clip") {
    only(rule, {"low", "high"});
    constraint.kind = kind == "clip" ? ConstraintKind::clip : ConstraintKind::stochastic_clip;
    if (!uniform && constraint.kind == ConstraintKind::stochastic_clip) {
      rule.fail("must fit the prior: stochastic_clip needs a uniform one; use one of the cutoffs");
    }
    std::optional<double> low, high;
    if (uniform) low = prior.low, high = prior.high;
    constraint.low = number32(rule, "low", kAny, low);
    constraint.high = number32(rule, "high", kAny, high);
    if (constraint.low >= constraint.high) rule.fail("must have its low below its high");
  } else if (kind == "hard_cutoff") {
    only(rule, {"c"});
    need_normal();
    constraint.kind = ConstraintKind::hard_cutoff;
    constraint.a = number32(rule, "c", kPositive);
  } else if (kind == "logistic_cutoff") {
    only(rule, {"a", "b", "horizon"});
    need_normal();
    constraint.kind = ConstraintKind::logistic_cutoff;
    constraint.a = number32(rule, "a", kPositive);
    constraint.b = number32(rule, "b", kNotNegative);
    constraint.horizon = horizon();
  } else if (kind == "truncated_normal_cutoff") {
    only(rule, {"a", "horizon"});
    need_normal();
    constraint.kind = ConstraintKind::truncated_normal_cutoff;
    constraint.a = number32(rule, "a", kPositive);
    constraint.horizon = horizon();
  } else {
    unknown_kind(rule,
                 "no_constraint, clip, stochastic_clip, hard_cutoff, logistic_cutoff, "
                 "truncated_normal_cutoff");
  }
  return constraint;
}

Schedule read_schedule(const Node& rule) {
  const std::string kind = kind_of(rule);
  Schedule schedule;
  if (kind == "constant") {
    only(rule, {});
  } else if (kind == "step_decay") {
    only(rule, {"every", "factor"});
    schedule.kind = ScheduleKind::step_decay;
    schedule.every = whole(rule, "every", 1, std::numeric_limits<int64_t>::max());
    schedule.factor = number(rule, "factor", {.low = 0.0, .high = 1.0, .open_low = true});
  } else if (kind == "cosine") {
    only(rule, {"final"});
    schedule.kind = ScheduleKind::cosine;
    schedule.final = number(rule, "final", {.low = 0.0, .high = 1.0}, 0.0);
  } else {
    unknown_kind(rule, "constant, step_decay, cosine");
  }
  return schedule;
}

Solver read_solver(const Node& rule) {
  const std::string kind = kind_of(rule);
  Solver solver;
  std::optional<double> default_rate;
  if (kind == "gradient_descent") {
    only(rule, {"learning_rate", "momentum", "schedule"});
    solver.kind = SolverKind::gradient_descent;
    solver.momentum = number<float>(rule, "momentum", kDecay, 0.0);
  } else if (kind == "adam") {
    only(rule, {"learning_rate", "beta1", "beta2", "epsilon", "schedule"});
    solver.kind = SolverKind::adam;
    solver.beta1 = number<float>(rule, "beta1", kDecay, solver.beta1);
    solver.beta2 = number<float>(rule, "beta2", kDecay, solver.beta2);
    solver.epsilon = number<float>(rule, "epsilon", kPositive, solver.epsilon);
  } else if (kind == "rmsprop") {
    only(rule, {"learning_rate", "alpha", "epsilon", "momentum", "schedule"});
    solver.kind = SolverKind::rmsprop;
    solver.alpha = number<float>(rule, "alpha", kDecay, solver.alpha);
    solver.epsilon = number<float>(rule, "epsilon", kPositive, solver.epsilon);
    solver.momentum = number<float>(rule, "momentum", kDecay, 0.0);
    default_rate = solver.learning_rate;
  } else if (kind == "levenberg_marquardt") {
    only(rule, {"damping", "up", "down"});
    solver.kind = SolverKind::levenberg_marquardt;
    solver.damping = number(rule, "damping", kPositive, solver.damping);
    solver.damping_up = number(rule, "up", kRise, solver.damping_up);
    solver.damping_down = number(rule, "down", kFall, solver.damping_down);
    return solver;
  } else if (kind == "lbfgs") {
    only(rule, {"history", "first_step", "preconditioned"});
    solver.kind = SolverKind::lbfgs;
    solver.history = whole(rule, "history", 1, Lbfgs::kMaxPairs, solver.history);
    solver.first_step = number<float>(rule, "first_step", kPositive, solver.first_step);
    if (const auto given = rule.find("preconditioned")) solver.preconditioned = given->flag();
    return solver;
  } else {
    unknown_kind(rule, "gradient_descent, adam, levenberg_marquardt, lbfgs, rmsprop");
  }
  solver.learning_rate = number<float>(rule, "learning_rate", kPositive, default_rate);
  if (const auto schedule = rule.find("schedule")) solver.schedule = read_schedule(*schedule);
  return solver;
}

Penalties read_penalties(const Node& rules) {
  Penalties penalties;
  std::vector<std::string> kinds;
  for (const Node& rule : rules.items()) {
    const std::string kind = kind_of(rule);
    if (std::find(kinds.begin(), kinds.end(), kind) != kinds.end()) {
      rules.fail("must hold each kind once, got " + kind + " twice; add up their weights");
    }
    kinds.push_back(kind);
    if (kind == "moment_penalty") {
      only(rule, {"gamma_mean", "gamma_std", "over"});
      penalties.moments =
          choice(rule, "over", {"batch", "latent"}) ? MomentScope::latent : MomentScope::batch;
      penalties.gamma_mean = number32(rule, "gamma_mean", kNotNegative, 1.0);
      penalties.gamma_std = number32(rule, "gamma_std", kNotNegative, 1.0);
    } else if (kind == "prior_penalty") {
      only(rule, {"weight", "anneal", "relative"});
      penalties.prior_weight = number32(rule, "weight", kNotNegative);
      penalties.anneal_prior = flag(rule, "anneal", false);
      penalties.relative_prior = flag(rule, "relative", false);
    } else {
      unknown_kind(rule, "moment_penalty, prior_penalty");
    }
  }
  return penalties;
}

// The index of the name in `names`, to which it is appended if it is new.
int64_t place_of(const std::string& name, std::vector<std::string>& names) {
  const auto at = std::find(names.begin(), names.end(), name);
  const int64_t place = at - names.begin();
  if (at == names.end()) names.push_back(name);
  return place;
}

std::string loss_of(const Node& stage) {
  const std::optional<Node> named = stage.find("loss");
  return named ? named->text() : "mse";
}

int64_t index(const Node& stage, std::string_view key, int64_t fallback) {
  return whole(stage, key, 0, std::numeric_limits<int64_t>::max(), fallback);
}

Stage read_stage(const Node& rule, const Prior& prior, std::vector<std::string>& losses) {
  only(rule, {"solver", "constraint", "penalties", "loss", "objective", "normal_equations",
              "max_steps", "loss_tolerance", "change_tolerance", "relative_change_tolerance",
              "patience", "reset_moments"});
  Stage stage;
  stage.solver = read_solver(rule["solver"]);
  std::string solver;
  bool makes_trials = false, solves = false;
  Solvers::visit(stage.solver.kind, [&](auto of) {
    solver = of.kName;
    makes_trials = of.kMakesTrials;
    solves = of.kSolvesNormalEquations;
  });
  if (!solves && rule.find("normal_equations")) {
    rule.fail("has no setting \"normal_equations\" without levenberg_marquardt");
  }
  stage.objective = index(rule, "objective", place_of(loss_of(rule), losses));
  if (const auto constraint = rule.find("constraint")) {
    stage.constraint = read_constraint(*constraint, prior);
  }
  if (const auto penalties = rule.find("penalties")) {
    stage.penalties = read_penalties(*penalties);
    if (makes_trials && stage.penalties.moments != MomentScope::none) {
      penalties->fail("must hold no moment_penalty with " + solver + "; use prior_penalty");
    }
  }
  stage.max_steps = whole(rule, "max_steps", 1, kMaxSteps, stage.max_steps);
  stage.loss_tolerance = number(rule, "loss_tolerance", kNotNegative, 0.0);
  stage.change_tolerance = number(rule, "change_tolerance", kNotNegative, 0.0);
  stage.relative_change_tolerance = number(rule, "relative_change_tolerance", kNotNegative, 0.0);
  stage.patience = whole(rule, "patience", 1, kMaxSteps, stage.patience);
  stage.reset_moments = flag(rule, "reset_moments", stage.reset_moments);
  return stage;
}

ParsedRecipe read_recipe(const Node& rule, const Prior& prior) {
  only(rule, {"name", "stages", "restarts", "keep", "start", "hop_size"});
  ParsedRecipe parsed;
  if (const auto name = rule.find("name")) parsed.name = name->text();
  const std::vector<Node> rules = rule["stages"].items();
  std::vector<Stage>& stages = parsed.recipe.stages;
  int64_t max_steps = 0;
  for (const Node& stage : rules) {
    stages.push_back(read_stage(stage, prior, parsed.losses));
    max_steps += stages.back().max_steps;
  }
  if (stages.empty()) rule["stages"].fail("must hold at least one stage");
  bool over_batch = false;
  std::string alone;  // a solver that treats each target independently
  for (size_t i = 0; i < stages.size(); ++i) {
    over_batch |= stages[i].penalties.moments == MomentScope::batch;
    bool solves = false;
    Solvers::visit(stages[i].solver.kind, [&](auto solver) {
      if (solver.kMakesTrials) alone = solver.kName;
      solves = solver.kSolvesNormalEquations;
    });
    if (!solves) continue;
    const int64_t place = place_of(loss_of(rules[i]), parsed.normal_equations);
    stages[i].normal_equations =
        index(rules[i], "normal_equations", static_cast<int64_t>(parsed.losses.size()) + place);
  }
  if (!alone.empty() && over_batch) {
    rule["stages"].fail("must take each target on its own with " + alone +
                        "; give moment_penalty over \"latent\"");
  }
  if (max_steps > kMaxSteps) {
    rule["stages"].fail("must make at most " + std::to_string(kMaxSteps) + " steps, makes " +
                        std::to_string(max_steps));
  }
  parsed.recipe.restarts = whole(rule, "restarts", 0, kMaxRestarts, 0);
  parsed.recipe.keep_best = choice(rule, "keep", {"best", "last"}) == 0;
  parsed.recipe.start = static_cast<Start>(choice(rule, "start", {"prior", "mean", "encoder"}));
  parsed.recipe.hop_size = number(rule, "hop_size", kShare, 0.0);
  return parsed;
}

template <class Read>
auto parse_rule(std::string_view text, const char* what, Read read) {
  json::Value document;
  try {
    document = json::parse(text);
  } catch (const json::Error& error) {
    throw RuleError(std::string(what) + " is not JSON: " + error.what());
  }
  try {
    return read(Node(document, what));
  } catch (const json::Error& error) {
    throw RuleError(error.what());
  }
}

}  // namespace

std::pair<float, float> read_interval(const Node& rule) {
  const float low = number32(rule, "low", kAny, -1.0), high = number32(rule, "high", kAny, 1.0);
  if (low >= high) rule.fail("must have its low below its high");
  return {low, high};
}

Prior read_prior(const Node& rule) {
  const std::string kind = kind_of(rule);
  Prior prior;
  if (kind == "uniform") {
    only(rule, {"low", "high"});
    prior.kind = PriorKind::uniform;
    std::tie(prior.low, prior.high) = read_interval(rule);
  } else if (kind == "normal") {
    only(rule, {"mean", "std"});
    prior.kind = PriorKind::normal;
    prior.mean = number32(rule, "mean", kAny, 0.0);
    prior.std = number32(rule, "std", kPositive, 1.0);
  } else {
    unknown_kind(rule, "uniform, normal");
  }
  return prior;
}

Prior parse_prior(std::string_view json) { return parse_rule(json, "prior", read_prior); }

ParsedRecipe parse_recipe(std::string_view json, const Prior& prior) {
  return parse_rule(json, "recipe", [&](const Node& rule) { return read_recipe(rule, prior); });
}

namespace {

// Python's recipes.adam.
Recipe adam_recipe(const Prior& prior) {
  Stage stage;
  stage.solver.learning_rate = 0.1;
  stage.solver.beta2 = 0.99;
  stage.solver.schedule = {.kind = ScheduleKind::cosine, .final = 0.1};
  stage.max_steps = 1000;
  stage.loss_tolerance = 1e-8;
  if (prior.kind == PriorKind::uniform) {
    stage.constraint = {.kind = ConstraintKind::clip, .low = prior.low, .high = prior.high};
  } else {
    stage.penalties.prior_weight = 0.001f;
    stage.penalties.anneal_prior = true;
  }
  return {.stages = {stage}};
}

}  // namespace

Recipe default_recipe(const Bundle& bundle) {
  const Prior& prior = bundle.prior;
  if (bundle.batch_norm == BatchNorm::batch) return adam_recipe(prior);
  Stage settle;
  settle.solver.kind = SolverKind::lbfgs;
  if (prior.kind == PriorKind::uniform) {
    settle.constraint = {.kind = ConstraintKind::clip, .low = prior.low, .high = prior.high};
  }
  settle.penalties.relative_prior = true;
  settle.penalties.prior_weight = 0.001f;
  settle.max_steps = 200;
  settle.loss_tolerance = 1e-8;
  settle.relative_change_tolerance = 1e-4;
  settle.patience = 3;
  Stage seek = settle;
  seek.penalties.prior_weight = 1.0f;
  seek.max_steps = 100;
  return {.stages = {seek, settle}, .restarts = 1, .start = Start::mean, .hop_size = 0.6};
}

}  // namespace pyinv
