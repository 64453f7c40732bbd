// The Python module pyinv._core. It converts, releases the GIL, and calls.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <optional>
#include <stdexcept>
#include <string>

#include "fma_peak.h"
#include "onnxruntime/library.h"
#include "onnxruntime/objective.h"
#include "onnxruntime/session.h"
#include "philox.h"
#include "pyinv/engine.h"

namespace py = pybind11;
using namespace pyinv;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

// Rules arrive as the dictionaries that the dataclasses' describe() gives ------------------------

std::string kind_of(const py::dict& rule) { return rule["kind"].cast<std::string>(); }

template <class T>
T field(const py::dict& rule, const char* name) {
  return rule[name].cast<T>();
}

template <class T>
T field_or(const py::dict& rule, const char* name, T fallback) {
  return rule.contains(name) && !rule[name].is_none() ? rule[name].cast<T>() : fallback;
}

[[noreturn]] void unknown(const char* what, const std::string& kind) {
  throw py::value_error(std::string("unknown ") + what + " '" + kind + "'");
}

Prior to_prior(const py::dict& rule) {
  Prior prior;
  const std::string kind = kind_of(rule);
  if (kind == "uniform") {
    prior.kind = PriorKind::uniform;
    prior.low = field<float>(rule, "low");
    prior.high = field<float>(rule, "high");
  } else if (kind == "normal") {
    prior.kind = PriorKind::normal;
    prior.mean = field<float>(rule, "mean");
    prior.std = field<float>(rule, "std");
  } else {
    unknown("prior", kind);
  }
  return prior;
}

Constraint to_constraint(const py::dict& rule, const Prior& prior) {
  Constraint constraint;
  const std::string kind = kind_of(rule);
  if (kind == "none" || kind == "no_constraint") {
    constraint.kind = ConstraintKind::none;
  } else if (kind == "clip" || kind == "stochastic_clip") {
    constraint.kind = kind == "clip" ? ConstraintKind::clip : ConstraintKind::stochastic_clip;
    constraint.low = field_or(rule, "low", prior.low);
    constraint.high = field_or(rule, "high", prior.high);
  } else if (kind == "hard_cutoff") {
    constraint.kind = ConstraintKind::hard_cutoff;
    constraint.a = field<float>(rule, "c");
  } else if (kind == "logistic_cutoff") {
    constraint.kind = ConstraintKind::logistic_cutoff;
    constraint.a = field<float>(rule, "a");
    constraint.b = field<float>(rule, "b");
  } else if (kind == "truncated_normal_cutoff") {
    constraint.kind = ConstraintKind::truncated_normal_cutoff;
    constraint.a = field<float>(rule, "a");
  } else {
    unknown("constraint", kind);
  }
  constraint.horizon = field_or<int64_t>(rule, "horizon", 0);
  return constraint;
}

Schedule to_schedule(const py::dict& rule) {
  Schedule schedule;
  const std::string kind = kind_of(rule);
  if (kind == "constant") {
    schedule.kind = ScheduleKind::constant;
  } else if (kind == "step_decay") {
    schedule.kind = ScheduleKind::step_decay;
    schedule.every = field<int64_t>(rule, "every");
    schedule.factor = field<double>(rule, "factor");
  } else if (kind == "cosine") {
    schedule.kind = ScheduleKind::cosine;
    schedule.final = field<double>(rule, "final");
  } else {
    unknown("schedule", kind);
  }
  return schedule;
}

Solver to_solver(const py::dict& rule) {
  Solver solver;
  const std::string kind = kind_of(rule);
  solver.learning_rate = field<double>(rule, "learning_rate");
  if (kind == "gradient_descent") {
    solver.kind = SolverKind::gradient_descent;
    solver.momentum = field<double>(rule, "momentum");
  } else if (kind == "adam") {
    solver.kind = SolverKind::adam;
    solver.beta1 = field<double>(rule, "beta1");
    solver.beta2 = field<double>(rule, "beta2");
    solver.epsilon = field<double>(rule, "epsilon");
  } else {
    unknown("solver", kind);
  }
  solver.schedule = to_schedule(field<py::dict>(rule, "schedule"));
  return solver;
}

Penalties to_penalties(const py::sequence& rules) {
  Penalties penalties;
  for (const py::handle& item : rules) {
    const auto rule = item.cast<py::dict>();
    const std::string kind = kind_of(rule);
    if (kind == "moment_penalty") {
      penalties.moments =
          field<std::string>(rule, "over") == "batch" ? MomentScope::batch : MomentScope::latent;
      penalties.gamma_mean = field<float>(rule, "gamma_mean");
      penalties.gamma_std = field<float>(rule, "gamma_std");
    } else if (kind == "prior_penalty") {
      penalties.prior_weight = field<float>(rule, "weight");
      penalties.anneal_prior = field<bool>(rule, "anneal");
    } else {
      unknown("penalty", kind);
    }
  }
  return penalties;
}

Recipe to_recipe(const py::dict& rule, const Prior& prior) {
  Recipe recipe;
  recipe.restarts = field<int64_t>(rule, "restarts");
  recipe.keep_best = field<std::string>(rule, "keep") == "best";
  for (const py::handle& item : rule["stages"].cast<py::sequence>()) {
    const auto stage = item.cast<py::dict>();
    recipe.stages.push_back(
        {.solver = to_solver(field<py::dict>(stage, "solver")),
         .constraint = to_constraint(field<py::dict>(stage, "constraint"), prior),
         .penalties = to_penalties(stage["penalties"].cast<py::sequence>()),
         .objective = field<int64_t>(stage, "objective"),
         .max_steps = field<int64_t>(stage, "max_steps"),
         .loss_tolerance = field<double>(stage, "loss_tolerance"),
         .change_tolerance = field<double>(stage, "change_tolerance"),
         .relative_change_tolerance = field<double>(stage, "relative_change_tolerance"),
         .patience = field<int64_t>(stage, "patience"),
         .reset_moments = field<bool>(stage, "reset_moments")});
  }
  return recipe;
}

// The run ----------------------------------------------------------------------------------------

void expect_shape(const py::array& array, const char* name, int64_t rows, int64_t columns) {
  if (array.ndim() != 2 || array.shape(0) != rows || array.shape(1) != columns) {
    throw py::value_error(std::string(name) + " must have shape (" + std::to_string(rows) + ", " +
                          std::to_string(columns) + ")");
  }
}

// Asks Python now and then whether to go on: for Ctrl-C, and to tell how far the run has come.
class Ticker {
 public:
  explicit Ticker(py::object progress) : progress_(std::move(progress)) {}

  bool operator()(const Progress& now) {
    const auto time = std::chrono::steady_clock::now();
    if (time - last_signal_check_ < std::chrono::milliseconds(20)) return true;
    last_signal_check_ = time;
    py::gil_scoped_acquire gil;
    try {
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
      if (!progress_.is_none() && time - last_report_ >= std::chrono::milliseconds(100)) {
        last_report_ = time;
        using namespace py::literals;
        progress_(py::dict("finished"_a = now.finished, "targets"_a = now.targets,
                           "active"_a = now.active, "evaluations"_a = now.evaluations,
                           "mean_loss"_a = now.mean_loss));
      }
    } catch (py::error_already_set& error) {
      if (error.matches(PyExc_KeyboardInterrupt)) return false;
      throw;
    }
    return true;
  }

 private:
  py::object progress_;
  std::chrono::steady_clock::time_point last_signal_check_, last_report_;
};

py::dict invert(const std::vector<const Objective*>& objectives, const py::dict& recipe_rule,
                const py::dict& prior_rule, const Array<float>& images,
                const std::optional<Array<float>>& initial,
                const std::optional<Array<float>>& condition, const Array<uint64_t>& target_ids,
                uint64_t seed, int64_t lanes, bool coupled, int64_t trace_every, int64_t look_every,
                const py::object& progress) {
  const Prior prior = to_prior(prior_rule);
  const Recipe recipe = to_recipe(recipe_rule, prior);
  if (objectives.empty() || recipe.stages.empty() || lanes < 1) {
    throw py::value_error("a run needs an objective, a stage and a lane");
  }
  for (const Stage& stage : recipe.stages) {
    if (stage.objective < 0 || stage.objective >= static_cast<int64_t>(objectives.size())) {
      throw py::value_error("a stage names an objective that was not given");
    }
  }
  const int64_t count = target_ids.size();
  const int64_t latent_size = objectives[0]->latent_size();
  expect_shape(images, "images", count, objectives[0]->image_size());
  if (initial) expect_shape(*initial, "initial", count, latent_size);
  if (condition) expect_shape(*condition, "condition", count, objectives[0]->condition_size());

  Array<float> latents({count, latent_size}), loss(count);
  Array<uint8_t> status(count);
  Array<int64_t> steps(count);
  Array<int32_t> attempts(count);
  std::optional<Array<float>> trace;
  if (trace_every > 0) trace.emplace(Array<float>({count, trace_length(recipe, trace_every)}));

  const Targets targets{.count = count,
                        .image = images.data(),
                        .initial = initial ? initial->data() : nullptr,
                        .condition = condition ? condition->data() : nullptr,
                        .id = target_ids.data()};
  const Results results{.latent = latents.mutable_data(),
                        .loss = loss.mutable_data(),
                        .status = reinterpret_cast<Status*>(status.mutable_data()),
                        .steps = steps.mutable_data(),
                        .attempts = attempts.mutable_data(),
                        .trace = trace ? trace->mutable_data() : nullptr};
  Ticker ticker(progress);
  RunSummary summary;
  {
    py::gil_scoped_release release;
    summary = run(objectives, prior, recipe, targets,
                  {.seed = seed,
                   .lanes = lanes,
                   .coupled = coupled,
                   .trace_every = trace_every,
                   .look_every = look_every,
                   .keep_going = std::ref(ticker)},
                  results);
  }
  using namespace py::literals;
  return py::dict("latents"_a = latents, "loss"_a = loss, "status"_a = status, "steps"_a = steps,
                  "attempts"_a = attempts, "trace"_a = trace, "cancelled"_a = summary.cancelled,
                  "evaluations"_a = summary.evaluations, "total_seconds"_a = summary.total_seconds,
                  "objective_seconds"_a = summary.objective_seconds);
}

// Any ONNX graph ---------------------------------------------------------------------------------

ort::ONNXTensorElementDataType element_type(const py::array& array) {
  if (array.dtype().is(py::dtype::of<float>())) return ort::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  if (array.dtype().is(py::dtype::of<int64_t>())) return ort::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
  throw py::type_error("expected a float32 or int64 array, got " +
                       py::str(array.dtype()).cast<std::string>());
}

py::dict run_function(const ort::Function& function, const py::dict& inputs) {
  std::vector<py::array> held;
  std::map<std::string, ort::TensorView> views;
  for (const auto& [name, value] : inputs) {
    held.push_back(py::array::ensure(value, py::array::c_style));
    if (!held.back()) throw py::error_already_set();
    const py::array& array = held.back();
    views[name.cast<std::string>()] = {
        .type = element_type(array),
        .shape = std::vector<int64_t>(array.shape(), array.shape() + array.ndim()),
        .data = const_cast<void*>(array.data())};
  }
  std::map<std::string, ort::Function::Output> outputs;
  {
    py::gil_scoped_release release;
    outputs = function.run(views);
  }
  py::dict results;
  for (auto& [name, output] : outputs) {
    // The array borrows ONNX Runtime's memory and keeps it alive.
    auto* owned = new ort::Function::Output(std::move(output));
    py::capsule owner(owned, [](void* held) { delete static_cast<ort::Function::Output*>(held); });
    results[py::str(name)] = py::array(py::dtype(ort::type_name(owned->tensor.type)),
                                       owned->tensor.shape, owned->tensor.data, owner);
  }
  return results;
}

Array<uint32_t> philox(const Array<uint32_t>& counters, const Array<uint32_t>& keys) {
  const int64_t count = counters.ndim() == 2 ? counters.shape(0) : -1;
  expect_shape(counters, "counter", count, 4);
  expect_shape(keys, "key", count, 2);
  Array<uint32_t> words({count, int64_t{4}});
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t* c = counters.data(i, 0);
    const PhiloxWords drawn =
        philox4x32_10({{c[0], c[1], c[2], c[3]}}, keys.at(i, 0), keys.at(i, 1));
    std::copy_n(drawn.word, 4, words.mutable_data(i, 0));
  }
  return words;
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  using namespace py::literals;
  module.doc() = "The engine of pyinv. Not a public interface: use pyinv.Inverter.";
  module.attr("__version__") = PYINV_VERSION;
  module.attr("has_cuda") = false;

  module.def(
      "load_onnxruntime", [](const std::string& path) { return ort::load_library(path); }, "path"_a,
      py::call_guard<py::gil_scoped_release>());

  py::class_<Objective>(module, "Objective")
      .def_property_readonly("latent_size", &Objective::latent_size)
      .def_property_readonly("image_size", &Objective::image_size)
      .def_property_readonly("condition_size", &Objective::condition_size);

  py::class_<OnnxObjective, Objective>(module, "OnnxObjective")
      .def(py::init([](const std::string& path, int threads) {
             return std::make_unique<OnnxObjective>(path, threads);
           }),
           "path"_a, py::kw_only(), "threads"_a, py::call_guard<py::gil_scoped_release>());

  py::class_<ort::Function>(module, "OnnxFunction")
      .def(py::init([](const std::string& path, int threads) {
             return std::make_unique<ort::Function>(path, threads);
           }),
           "path"_a, py::kw_only(), "threads"_a, py::call_guard<py::gil_scoped_release>())
      .def("run", &run_function, "inputs"_a);

  module.def("invert", &invert, py::kw_only(), "objectives"_a, "recipe"_a, "prior"_a, "images"_a,
             "initial"_a = py::none(), "condition"_a = py::none(), "target_ids"_a, "seed"_a,
             "lanes"_a, "coupled"_a = false, "trace_every"_a = 0, "look_every"_a = 0,
             "progress"_a = py::none());

  module.def(
      "draw_initial",
      [](const py::dict& prior_rule, uint64_t seed, const Array<uint64_t>& target_ids,
         uint32_t restart, int64_t size) {
        const Prior prior = to_prior(prior_rule);
        Array<float> latents({static_cast<int64_t>(target_ids.size()), size});
        for (int64_t row = 0; row < target_ids.size(); ++row) {
          draw_initial(prior, seed, target_ids.at(row), restart, size,
                       latents.mutable_data(row, 0));
        }
        return latents;
      },
      "prior"_a, "seed"_a, "target_ids"_a, "restart"_a, "size"_a);

  module.def("philox", &philox, "counter"_a, "key"_a);
  module.def("fma_peak", &measure_fma_peak, "threads"_a, "seconds"_a = 0.5,
             py::call_guard<py::gil_scoped_release>());
}
