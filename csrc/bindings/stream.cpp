#include "pyinv/stream.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "pyinv/rules.h"
#include "stream.h"
#include "unlocked.h"

namespace py = pybind11;

namespace pyinv {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;
using Given = std::optional<Array<float>>;

// A call returns to Python after this time, which then looks for signals.
constexpr std::chrono::milliseconds kWait{50};

class PyStream {
 public:
  PyStream(std::vector<const Objective*> objectives, const std::string& recipe_rule,
           const std::string& prior_rule, const Given& preconditioner, uint64_t seed, int64_t lanes,
           int64_t rows, bool has_initial) {
    if (objectives.empty()) throw std::invalid_argument("a stream needs an objective");
    const Objective& first = *objectives.front();
    latent_size_ = first.latent_size();
    image_size_ = first.image_size();
    condition_size_ = first.condition_size();
    if (preconditioner && preconditioner->size() != latent_size_ * latent_size_) {
      throw std::invalid_argument("preconditioner should hold latent_size^2 numbers");
    }
    const Prior prior = parse_prior(prior_rule);
    const Recipe recipe = parse_recipe(recipe_rule, prior).recipe;
    const StreamOptions options{
        .seed = seed,
        .lanes = lanes,
        .rows = rows,
        .has_initial = has_initial,
        .preconditioner = preconditioner ? preconditioner->data() : nullptr};
    stream_ = std::make_unique<Stream>(std::move(objectives), prior, recipe, options);
  }

  // Python's objects may be destroyed when calls are refused already. By then the stream has ended.
  ~PyStream() {
    if (is_of_parent()) {
      static_cast<void>(
          stream_.release());  // its thread does not exist here, its locks may be held
    } else {
      const py::gil_scoped_release release;
      stream_.reset();
    }
  }

  int64_t put(const Array<float>& images, const Array<uint64_t>& ids, const Given& initial,
              const Given& condition, const Given& weights) {
    expect_own();
    const int64_t count = ids.size();
    const auto data = [count](const Given& values, const char* name, int64_t size) -> const float* {
      if (!values) return nullptr;
      if (values->size() != count * size) {
        throw std::invalid_argument(std::string(name) + " should hold " +
                                    std::to_string(count * size) + " numbers");
      }
      return values->data();
    };
    const Targets targets{.count = count,
                          .image = data(images, "images", image_size_),
                          .initial = data(initial, "initial", latent_size_),
                          .condition = data(condition, "condition", condition_size_),
                          .weights = data(weights, "weights", image_size_),
                          .id = ids.data()};
    const Unlocked unlocked;
    return stream_->put(targets, kWait);
  }

  // Called when a stream is left, whenever that is.
  void end() {
    if (is_of_parent() || calls::ending) return;
    const Unlocked unlocked;
    stream_->end();
  }
  void cancel(const std::vector<int64_t>& numbers) {
    expect_own();
    stream_->cancel(numbers);
  }
  void stop() {
    if (is_of_parent() || calls::ending) return;
    const Unlocked unlocked;
    stream_->stop();
  }

  py::object take() {
    expect_own();
    if (!taken_) {
      const Unlocked unlocked;
      taken_ = stream_->take(kWait);
    }
    // A signal's handler runs now rather than in the caller, where what it raises would lose these
    // results. The next call returns them.
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    const std::optional<std::vector<StreamResult>> found = std::exchange(taken_, std::nullopt);
    if (!found) return py::none();
    const auto count = static_cast<int64_t>(found->size());
    Array<float> latents({count, latent_size_}), loss(count);
    Array<int64_t> numbers(count), steps(count), normal_equations(count);
    Array<int32_t> attempts(count);
    Array<uint8_t> status(count);
    for (int64_t i = 0; i < count; ++i) {
      const StreamResult& result = (*found)[i];
      std::copy_n(result.latent.data(), latent_size_, latents.mutable_data(i, 0));
      loss.mutable_at(i) = result.loss;
      numbers.mutable_at(i) = result.number;
      steps.mutable_at(i) = result.steps;
      normal_equations.mutable_at(i) = result.normal_equations;
      attempts.mutable_at(i) = result.attempts;
      status.mutable_at(i) = static_cast<uint8_t>(result.status);
    }
    using namespace py::literals;
    return py::dict("numbers"_a = numbers, "latents"_a = latents, "loss"_a = loss,
                    "status"_a = status, "steps"_a = steps, "attempts"_a = attempts,
                    "normal_equations"_a = normal_equations);
  }

 private:
  bool is_of_parent() const { return forks_ != calls::forks; }
  void expect_own() const {
    if (is_of_parent()) {
      throw std::runtime_error("this stream was opened before the process was forked");
    }
  }

  const int64_t forks_ = calls::forks;
  int64_t latent_size_ = 0, image_size_ = 0, condition_size_ = 0;
  std::optional<std::vector<StreamResult>> taken_;
  std::unique_ptr<Stream> stream_;
};

}  // namespace

void bind_stream(py::module_& module) {
  using namespace py::literals;
  const auto no_gil = py::call_guard<Unlocked>();
  py::class_<PyStream>(module, "Stream")
      .def(py::init<std::vector<const Objective*>, const std::string&, const std::string&,
                    const Given&, uint64_t, int64_t, int64_t, bool>(),
           py::kw_only(), "objectives"_a, "recipe"_a, "prior"_a, "preconditioner"_a, "seed"_a,
           "lanes"_a, "rows"_a, "has_initial"_a = false, py::keep_alive<1, 2>())
      .def("put", &PyStream::put, py::kw_only(), "images"_a, "ids"_a, "initial"_a = py::none(),
           "condition"_a = py::none(), "weights"_a = py::none())
      .def("end", &PyStream::end)
      .def("cancel", &PyStream::cancel, "numbers"_a, no_gil)
      .def("take", &PyStream::take)
      .def("stop", &PyStream::stop);
}

}  // namespace pyinv
