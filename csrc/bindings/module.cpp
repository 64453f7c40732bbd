// The Python module pyinv._core: converts arguments, releases the GIL, and calls the engine.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <exception>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "attended.h"
#include "json.h"
#include "onnxruntime/cuda_operators.h"
#include "onnxruntime/objective.h"
#include "onnxruntime/session.h"
#include "philox.h"
#include "pyinv/bundle.h"
#include "pyinv/engine.h"
#include "pyinv/onnxruntime.h"
#include "pyinv/rules.h"
#include "rules.h"
#include "sha256.h"
#include "solvers/levenberg_marquardt.h"
#include "stream.h"
#include "torchscript/operators.h"
#include "torchscript/pickle.h"
#include "torchscript/source.h"
#include "unlocked.h"

namespace py = pybind11;
using namespace pyinv;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

// The run ----------------------------------------------------------------------------------------

void expect_shape(const py::array& array, const char* name, int64_t rows, int64_t columns) {
  if (array.ndim() != 2 || array.shape(0) != rows || array.shape(1) != columns) {
    throw py::value_error(std::string(name) + " must have shape (" + std::to_string(rows) + ", " +
                          std::to_string(columns) + ")");
  }
}

// Has the caller's thread look for signals and report progress, from time to time.
class Ticker {
 public:
  Ticker(const py::object& progress, const py::object& interrupted)
      : attended_([this, &progress, &interrupted] { return look(progress, interrupted); }) {}

  Attended& attended() { return attended_; }

  bool operator()(const Progress& now) {
    const auto time = std::chrono::steady_clock::now();
    if (time - last_look_ < std::chrono::milliseconds(20)) return true;
    last_look_ = time;
    now_ = &now;
    const bool goes_on = attended_.meet();
    now_ = nullptr;
    return goes_on;
  }

 private:
  bool look(const py::object& progress, const py::object& interrupted) {
    if (!interrupted.is_none() && interrupted().cast<bool>()) return false;
    const Progress* now = now_;  // of the run's thread, which waits; null while it does not
    const auto time = std::chrono::steady_clock::now();
    if (now && !progress.is_none() && time - last_report_ >= std::chrono::milliseconds(100)) {
      last_report_ = time;
      using namespace py::literals;
      progress(py::dict("finished"_a = now->finished, "targets"_a = now->targets,
                        "active"_a = now->active, "evaluations"_a = now->evaluations,
                        "mean_loss"_a = now->mean_loss));
    }
    return true;
  }

  Attended attended_;
  std::atomic<const Progress*> now_ = nullptr;
  std::chrono::steady_clock::time_point last_look_, last_report_;
};

// The Python exceptions for a run that fails: out of memory, or any other reason.
PyObject* out_of_memory = nullptr;
PyObject* run_failed = nullptr;

bool is_interrupt(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const py::error_already_set& error) {
    return error.matches(PyExc_KeyboardInterrupt);
  } catch (...) {
    return false;
  }
}

// Returns a message as Python text. Runtimes quote bytes of files, which need not be UTF-8.
py::object text_of(const char* message) {
  return py::reinterpret_steal<py::object>(PyUnicode_DecodeUTF8(
      message, static_cast<py::ssize_t>(std::strlen(message)), "backslashreplace"));
}

// Translates exceptions whose message pybind11 would not decode.
void translate_bytes(std::exception_ptr failure) {
  try {
    std::rethrow_exception(std::move(failure));
  } catch (const py::builtin_exception&) {
    throw;
  } catch (const py::error_already_set&) {
    throw;
  } catch (const std::exception& error) {
    const py::object text = text_of(error.what());
    if (text.cast<std::string>() == error.what()) throw;
    const bool is_argument = dynamic_cast<const std::invalid_argument*>(&error) != nullptr;
    PyErr_SetObject(is_argument ? PyExc_ValueError : PyExc_RuntimeError, text.ptr());
  }
}

// Raises the error with the partial results as its attribute `partial`.
[[noreturn]] void raise_with_partial(std::exception_ptr failure, const py::dict& partial) {
  const auto raise = [&partial](py::handle type, const char* message) {
    const py::object error = type(text_of(message));
    error.attr("partial") = partial;
    PyErr_SetObject(type.ptr(), error.ptr());
    throw py::error_already_set();
  };
  try {
    std::rethrow_exception(std::move(failure));
  } catch (const py::error_already_set& error) {  // from the progress function
    error.value().attr("partial") = partial;
    throw;
  } catch (const OutOfMemory& error) {
    raise(out_of_memory, error.what());
  } catch (const std::bad_alloc&) {
    raise(out_of_memory, "the engine ran out of memory");
  } catch (const std::invalid_argument& error) {
    raise(PyExc_ValueError, error.what());
  } catch (const std::exception& error) {
    raise(run_failed, error.what());
  }
  std::terminate();  // unreachable: each branch throws
}

py::dict invert(const std::vector<const Objective*>& objectives, const std::string& recipe_rule,
                const std::string& prior_rule, const Array<float>& images,
                const std::optional<Array<float>>& initial,
                const std::optional<Array<float>>& condition,
                const std::optional<Array<float>>& weights,
                const std::optional<Array<float>>& true_latents,
                const std::optional<Array<float>>& preconditioner,
                const Array<uint64_t>& target_ids, uint64_t seed, int64_t lanes, bool coupled,
                int64_t trace_every, int64_t poll_every, const py::object& progress,
                const py::object& interrupted) {
  const Prior prior = parse_prior(prior_rule);
  const Recipe recipe = parse_recipe(recipe_rule, prior).recipe;
  if (objectives.empty()) throw py::value_error("a run needs an objective");
  const int64_t count = target_ids.size();
  const int64_t latent_size = objectives[0]->latent_size();
  expect_shape(images, "images", count, objectives[0]->image_size());
  if (initial) expect_shape(*initial, "initial", count, latent_size);
  if (condition) expect_shape(*condition, "condition", count, objectives[0]->condition_size());
  const bool shared_weights = weights && weights->ndim() == 2 && weights->shape(0) == 1;
  if (weights) {
    expect_shape(*weights, "weights", shared_weights ? 1 : count, objectives[0]->image_size());
  }
  if (true_latents) expect_shape(*true_latents, "true_latents", count, latent_size);
  if (preconditioner) expect_shape(*preconditioner, "preconditioner", latent_size, latent_size);

  Array<float> latents({count, latent_size}), loss(count);
  Array<uint8_t> status(count);
  Array<int64_t> steps(count);
  Array<int32_t> attempts(count);
  Array<int64_t> normal_equations(count);
  std::optional<Array<float>> trace;
  if (trace_every > 0) trace.emplace(Array<float>({count, trace_length(recipe, trace_every)}));
  std::optional<Array<float>> min_latent_error;
  if (true_latents) min_latent_error.emplace(count);

  const Targets targets{.count = count,
                        .image = images.data(),
                        .initial = initial ? initial->data() : nullptr,
                        .condition = condition ? condition->data() : nullptr,
                        .weights = weights ? weights->data() : nullptr,
                        .shared_weights = shared_weights,
                        .true_latent = true_latents ? true_latents->data() : nullptr,
                        .id = target_ids.data()};
  const Results results{
      .latent = latents.mutable_data(),
      .loss = loss.mutable_data(),
      .status = reinterpret_cast<Status*>(status.mutable_data()),
      .steps = steps.mutable_data(),
      .attempts = attempts.mutable_data(),
      .trace = trace ? trace->mutable_data() : nullptr,
      .normal_equations = normal_equations.mutable_data(),
      .min_latent_error = min_latent_error ? min_latent_error->mutable_data() : nullptr};
  Ticker ticker(progress, interrupted);
  RunSummary summary;
  const RunOptions options{.seed = seed,
                           .lanes = lanes,
                           .coupled = coupled,
                           .trace_every = trace_every,
                           .poll_every = poll_every,
                           .preconditioner = preconditioner ? preconditioner->data() : nullptr,
                           .keep_going = std::ref(ticker),
                           .cancellation = &ticker.attended().cancellation()};
  const std::exception_ptr failure = ticker.attended().run(
      [&] { summary = run(objectives, prior, recipe, targets, options, results); });
  if (failure) summary.cancelled = true;
  using namespace py::literals;
  const py::dict found(
      "latents"_a = latents, "loss"_a = loss, "status"_a = status, "steps"_a = steps,
      "attempts"_a = attempts, "normal_equations"_a = normal_equations, "trace"_a = trace,
      "min_latent_error"_a = min_latent_error, "cancelled"_a = summary.cancelled,
      "evaluations"_a = summary.evaluations, "total_seconds"_a = summary.total_seconds,
      "objective_seconds"_a = summary.objective_seconds);
  if (failure && !is_interrupt(failure)) raise_with_partial(failure, found);
  return found;
}

// Any ONNX graph ---------------------------------------------------------------------------------

ort::ONNXTensorElementDataType element_type(const py::array& array) {
  if (array.dtype().is(py::dtype::of<float>())) return ort::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  if (array.dtype().is(py::dtype::of<int64_t>())) return ort::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
  throw py::type_error("expected a float32 or int64 array, got " +
                       py::str(array.dtype()).cast<std::string>());
}

// `interrupted` was true.
struct Cancelled : std::runtime_error {
  Cancelled() : std::runtime_error("cancelled") {}
};

py::dict run_function(const ort::Function& function, const py::dict& inputs,
                      const py::object& interrupted) {
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
  Attended attended([&] { return interrupted.is_none() || !interrupted().cast<bool>(); });
  const std::exception_ptr failure =
      attended.run([&] { outputs = function.run(views, &attended.cancellation()); });
  if (failure && attended.cancellation().cancelled() && !attended.raised()) {
    if (calls::ending) const Unlocked stops_here;
    throw Cancelled();
  }
  if (failure) std::rethrow_exception(failure);
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

std::string kind_of(const Device& device) {
  return device.kind() == DeviceKind::cuda ? "cuda" : "cpu";
}

RuntimeOptions runtime_options(int threads, std::shared_ptr<Device> device, bool tf32,
                               int64_t most_at_once) {
  if (!device) device = cpu_device();
  return {
      .threads = threads, .device = std::move(device), .tf32 = tf32, .most_at_once = most_at_once};
}

ort::Files as_files(const std::map<std::string, std::string>& digests) {
  ort::Files files;
  for (const auto& [name, sha256] : digests) files[name].sha256 = sha256;
  return files;
}

std::unique_ptr<OnnxObjective> load_onnx_objective(
    const std::string& path, int threads, std::shared_ptr<Device> device, bool tf32,
    int64_t most_at_once, std::vector<std::string> operators,
    std::vector<std::string> input_operators, const std::map<std::string, std::string>& files) {
  return std::make_unique<OnnxObjective>(
      path, OnnxOperators{std::move(operators), std::move(input_operators)},
      runtime_options(threads, std::move(device), tf32, most_at_once), as_files(files));
}

py::object to_python(const json::Value& value) {
  return std::visit(
      [](const auto& data) -> py::object {
        using Data = std::decay_t<decltype(data)>;
        if constexpr (std::is_same_v<Data, std::nullptr_t>) {
          return py::none();
        } else if constexpr (std::is_same_v<Data, json::Array>) {
          py::list list;
          for (const json::Value& item : data) list.append(to_python(item));
          return list;
        } else if constexpr (std::is_same_v<Data, json::Object>) {
          py::dict dict;
          for (const auto& [key, item] : data) dict[py::str(key)] = to_python(item);
          return dict;
        } else {
          return py::cast(data);
        }
      },
      value.data);
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
  count_calls();
  module.attr("max_restarts") = kMaxRestarts;
  module.attr("max_steps") = kMaxSteps;
  module.attr("max_preconditioned") = kMaxPreconditioned;
  module.attr("max_solved") = LevenbergMarquardt::kMaxComponents;

  py::register_exception<DeviceError>(module, "DeviceError", PyExc_RuntimeError);
  out_of_memory =
      py::register_exception<OutOfMemory>(module, "OutOfMemory", PyExc_RuntimeError).ptr();
  py::register_exception<Cancelled>(module, "Cancelled", PyExc_RuntimeError);
  run_failed =
      py::exception<std::runtime_error>(module, "RunFailed", PyExc_RuntimeError).release().ptr();
  py::register_exception_translator(&translate_bytes);

  py::class_<Device, std::shared_ptr<Device>>(module, "Device")
      .def_property_readonly("kind", &kind_of)
      .def_property_readonly("index", &Device::index)
      .def("synchronize", &Device::synchronize, py::call_guard<Unlocked>())
      .def("__repr__", [](const Device& device) {
        return "<Device " + kind_of(device) + ":" + std::to_string(device.index()) + ">";
      });
  module.def("cpu_device", &cpu_device);
  module.def("cpu_isa", &cpu_isa);
  module.def("cuda_device", &cuda_device, "index"_a = 0, py::call_guard<Unlocked>());
  module.def("built_with_cuda", &built_with_cuda);
  module.def("cuda_device_count", &cuda_device_count, py::call_guard<Unlocked>());
  module.def("cuda_device_name", &cuda_device_name, "index"_a, py::call_guard<Unlocked>());

  module.def(
      "load_onnxruntime", [](const std::string& path) { return load_onnxruntime(path); }, "path"_a,
      py::call_guard<Unlocked>());

  py::class_<Objective>(module, "Objective")
      .def_property_readonly("latent_size", &Objective::latent_size)
      .def_property_readonly("image_size", &Objective::image_size)
      .def_property_readonly("condition_size", &Objective::condition_size)
      .def_property_readonly("takes_weights", &Objective::takes_weights)
      .def_property_readonly("has_gram", &Objective::has_gram)
      .def_property_readonly("device", &Objective::device);

  py::class_<OnnxObjective, Objective>(module, "OnnxObjective")
      .def(py::init(&load_onnx_objective), "path"_a, py::kw_only(), "threads"_a,
           "device"_a = py::none(), "tf32"_a = false, "most_at_once"_a = 0,
           "operators"_a = std::vector<std::string>{},
           "input_operators"_a = std::vector<std::string>{},
           "files"_a = std::map<std::string, std::string>{}, py::call_guard<Unlocked>());

  py::class_<ort::Function>(module, "OnnxFunction")
      .def(py::init([](const std::string& path, int threads, std::shared_ptr<Device> device,
                       bool tf32, const std::map<std::string, std::string>& files) {
             return std::make_unique<ort::Function>(
                 path, runtime_options(threads, std::move(device), tf32, 0), as_files(files));
           }),
           "path"_a, py::kw_only(), "threads"_a, "device"_a = py::none(), "tf32"_a = false,
           "files"_a = std::map<std::string, std::string>{}, py::call_guard<Unlocked>())
      .def("run", &run_function, "inputs"_a, py::kw_only(), "interrupted"_a = py::none());

  module.def("invert", &invert, py::kw_only(), "objectives"_a, "recipe"_a, "prior"_a, "images"_a,
             "initial"_a = py::none(), "condition"_a = py::none(), "weights"_a = py::none(),
             "true_latents"_a = py::none(), "preconditioner"_a = py::none(), "target_ids"_a,
             "seed"_a, "lanes"_a, "coupled"_a = false, "trace_every"_a = 0, "poll_every"_a = 0,
             "progress"_a = py::none(), "interrupted"_a = py::none());

  bind_stream(module);

  module.def(
      "draw_initial",
      [](const std::string& prior_rule, uint64_t seed, const Array<uint64_t>& target_ids,
         uint32_t restart, int64_t size) {
        const Prior prior = parse_prior(prior_rule);
        Array<float> latents({static_cast<int64_t>(target_ids.size()), size});
        for (int64_t row = 0; row < target_ids.size(); ++row) {
          draw_initial(prior, seed, target_ids.at(row), restart, size,
                       latents.mutable_data(row, 0));
        }
        return latents;
      },
      "prior"_a, "seed"_a, "target_ids"_a, "restart"_a, "size"_a);

  module.def(
      "read_manifest",
      [](const std::filesystem::path& folder) { return py::bytes(read_manifest(folder)); },
      "folder"_a);
  module.def(
      "check_manifest", [](const py::bytes& content) { Bundle::parse(std::string(content)); },
      "content"_a);
  module.def(
      "check_files",
      [](const std::filesystem::path& folder, const py::bytes& manifest, bool contents) {
        Bundle bundle = Bundle::parse(std::string(manifest));
        bundle.path = folder;
        const Unlocked unlocked;
        bundle.check_files(contents);
      },
      "folder"_a, "manifest"_a, "contents"_a);

  // For the exporter, which reads TorchScript files with whatever torch is installed.
  module.def("torchscript_allows", &torchscript::allows, "operator"_a);
  module.def(
      "torchscript_unlisted",
      [](const py::bytes& source) {
        return torchscript::unlisted_operators(static_cast<std::string_view>(source));
      },
      "source"_a);
  module.def(
      "torchscript_storages",
      [](const py::bytes& pickle) {
        py::list found;
        for (const auto& storage : torchscript::storages(static_cast<std::string_view>(pickle))) {
          found.append(py::make_tuple(py::bytes(storage.record), storage.bytes));
        }
        return found;
      },
      "pickle"_a);

  // For tests and benchmarks.
  module.def(
      "sha256",
      [](const std::vector<std::string>& parts, bool portable) {
        Sha256 digest(portable);
        for (const std::string& part : parts) digest.add(part);
        return digest.hexadecimal();
      },
      "parts"_a, "portable"_a);
  module.def(
      "parse_json", [](const std::string& text) { return to_python(json::parse(text)); }, "text"_a);
  module.def("onnx_recordable", &ort::recordable, "operators"_a);
  module.def("onnx_without_cuda", &ort::without_cuda, "operators"_a);
  module.def("philox", &philox, "counter"_a, "key"_a);
}
