// The Python module pyinv._torch: converts arguments, releases the GIL, and calls libtorch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "pyinv/torchscript.h"
#include "torch/function.h"
#include "torch/objective.h"
#include "unlocked.h"

namespace py = pybind11;
using namespace pyinv;

namespace {

template <class Made>
std::unique_ptr<Made> make(const std::string& path, const std::string& method, int threads,
                           std::shared_ptr<Device> device, bool tf32, int64_t most_at_once) {
  RuntimeOptions options{.threads = threads, .tf32 = tf32, .most_at_once = most_at_once};
  if (device) options.device = std::move(device);
  return std::make_unique<Made>(path, method, options);
}

// TorchScript cannot be interrupted: `interrupted`, as of OnnxFunction, has no effect.
py::dict run_function(const TorchFunction& function, const py::dict& inputs, const py::object&) {
  std::vector<py::array> held;
  std::map<std::string, HostArray> arrays;
  for (const auto& [key, value] : inputs) {
    const auto name = key.cast<std::string>();
    held.push_back(py::array::ensure(value, py::array::c_style));
    if (!held.back()) throw py::error_already_set();
    const py::array& array = held.back();
    if (!array.dtype().is(py::dtype::of<float>())) {
      throw py::value_error("input '" + name + "' should be float32, is " +
                            py::str(array.dtype()).cast<std::string>());
    }
    arrays[name] = {.shape = std::vector<int64_t>(array.shape(), array.shape() + array.ndim()),
                    .data = static_cast<const float*>(array.data()),
                    .owner = nullptr};
  }
  std::map<std::string, HostArray> outputs;
  {
    const Unlocked unlocked;
    outputs = function.run(arrays);
  }
  py::dict results;
  for (auto& [name, output] : outputs) {
    // The array borrows torch's memory and keeps it alive.
    auto* owned = new HostArray(std::move(output));
    py::capsule owner(owned, [](void* held) { delete static_cast<HostArray*>(held); });
    results[py::str(name)] = py::array_t<float>(owned->shape, owned->data, owner);
  }
  return results;
}

}  // namespace

PYBIND11_MODULE(_torch, module) {
  using namespace py::literals;
  module.doc() = "The TorchScript runtime of pyinv. Not a public interface: use pyinv.Inverter.";
  py::module_::import("pyinv._core");  // defines the types Objective and Device, and the exceptions
  module.attr("built_with") = torch_version();
  count_calls();

  py::class_<TorchObjective, Objective>(module, "TorchObjective")
      .def(py::init(&make<TorchObjective>), "path"_a, "method"_a, py::kw_only(), "threads"_a,
           "device"_a = py::none(), "tf32"_a = false, "most_at_once"_a = 0,
           py::call_guard<Unlocked>());

  py::class_<TorchFunction>(module, "TorchFunction")
      .def(py::init([](const std::string& path, const std::string& method, int threads,
                       std::shared_ptr<Device> device, bool tf32) {
             return make<TorchFunction>(path, method, threads, std::move(device), tf32, 0);
           }),
           "path"_a, "method"_a, py::kw_only(), "threads"_a, "device"_a = py::none(),
           "tf32"_a = false, py::call_guard<Unlocked>())
      .def("run", &run_function, "inputs"_a, py::kw_only(), "interrupted"_a = py::none());
}
