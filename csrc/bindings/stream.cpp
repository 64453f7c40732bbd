#include "stream.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <limits>
#include <mutex>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "pyinv/engine.h"
#include "pyinv/rules.h"

namespace py = pybind11;

namespace pyinv {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

// A call returns to Python after this time, which then looks for signals.
constexpr std::chrono::milliseconds kWait{50};
constexpr std::chrono::milliseconds kIdle{20};

// A run on its own thread. That thread never calls Python, so it may outlive the interpreter. A
// target occupies a row from put() until take(), which bounds the memory and holds back a source
// that is faster than the consumer.
class Stream : Queue {
 public:
  Stream(std::vector<const Objective*> objectives, const std::string& recipe_rule,
         const std::string& prior_rule, const std::optional<Array<float>>& preconditioner,
         uint64_t seed, int64_t lanes, int64_t rows, bool has_initial)
      : objectives_(std::move(objectives)) {
    if (objectives_.empty()) throw std::invalid_argument("a stream needs an objective");
    if (rows < 1) throw std::invalid_argument("a stream needs at least one row");
    const Prior prior = parse_prior(prior_rule);
    const Recipe recipe = parse_recipe(recipe_rule, prior).recipe;
    const Objective& first = *objectives_.front();
    latent_size_ = first.latent_size();
    image_size_ = first.image_size();
    condition_size_ = first.condition_size();
    weights_size_ = first.takes_weights() ? image_size_ : 0;
    const auto room = [rows](int64_t size) { return std::vector<float>(rows * size); };
    images_ = room(image_size_);
    conditions_ = room(condition_size_);
    weights_ = room(weights_size_);
    if (has_initial) initial_ = room(latent_size_);
    latents_ = room(latent_size_);
    loss_ = room(1);
    ids_.resize(rows);
    numbers_.resize(rows);
    steps_.resize(rows);
    normal_equations_.resize(rows);
    attempts_.resize(rows);
    status_.resize(rows);
    for (int64_t row = rows; row-- > 0;) free_.push_back(row);
    if (preconditioner) {
      if (preconditioner->size() != latent_size_ * latent_size_) {
        throw std::invalid_argument("preconditioner should hold latent_size^2 numbers");
      }
      preconditioner_.assign(preconditioner->data(),
                             preconditioner->data() + preconditioner->size());
    }
    const auto given = [](const std::vector<float>& values) {
      return values.empty() ? nullptr : values.data();
    };
    const Targets targets{.count = rows,
                          .image = images_.data(),
                          .initial = given(initial_),
                          .condition = given(conditions_),
                          .weights = given(weights_),
                          .id = ids_.data()};
    const Results results{.latent = latents_.data(),
                          .loss = loss_.data(),
                          .status = status_.data(),
                          .steps = steps_.data(),
                          .attempts = attempts_.data(),
                          .normal_equations = normal_equations_.data()};
    const RunOptions options{.seed = seed,
                             .lanes = lanes,
                             .preconditioner = given(preconditioner_),
                             .queue = this,
                             .keep_going = [this](const Progress&) { return keeps_going(); }};
    thread_ = std::thread([this, prior, recipe, targets, results, options] {
      std::exception_ptr failure;
      try {
        run(objectives_, prior, recipe, targets, options, results);
      } catch (...) {
        failure = std::current_exception();
      }
      const std::lock_guard lock(mutex_);
      failure_ = failure;
      over_ = true;
      changed_.notify_all();
    });
  }

  ~Stream() override { stop(); }

  // Copies the first targets for which there is room, and returns their number. Waits for room for
  // up to kWait. Targets are numbered in order.
  int64_t put(const Array<float>& images, const Array<uint64_t>& ids,
              const std::optional<Array<float>>& initial,
              const std::optional<Array<float>>& condition,
              const std::optional<Array<float>>& weights) {
    const int64_t count = ids.size();
    const auto expect = [count](const std::optional<Array<float>>& values, const char* name,
                                int64_t size) {
      if ((values ? values->size() : 0) != count * size) {
        throw std::invalid_argument(std::string(name) + " should hold " +
                                    std::to_string(count * size) + " numbers");
      }
    };
    expect(images, "images", image_size_);
    expect(initial, "initial", initial_.empty() ? 0 : latent_size_);
    expect(condition, "condition", condition_size_);
    expect(weights, "weights", weights_size_);
    const py::gil_scoped_release release;
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kWait, [this] { return !free_.empty() || over_; });
    if (over_ || stopped_ || ended_) return 0;
    const int64_t taken = std::min<int64_t>(count, static_cast<int64_t>(free_.size()));
    for (int64_t i = 0; i < taken; ++i) {
      const int64_t row = free_.back();
      free_.pop_back();
      const auto copy = [&](const float* from, std::vector<float>& to, int64_t size) {
        std::copy_n(from + i * size, size, to.data() + row * size);
      };
      copy(images.data(), images_, image_size_);
      if (initial) copy(initial->data(), initial_, latent_size_);
      if (condition) copy(condition->data(), conditions_, condition_size_);
      if (weights) copy(weights->data(), weights_, weights_size_);
      ids_[row] = ids.data()[i];
      numbers_[row] = next_number_++;
      waiting_.push_back(row);
    }
    changed_.notify_all();
    return taken;
  }

  // There are no more targets.
  void end() {
    const std::lock_guard lock(mutex_);
    ended_ = true;
    changed_.notify_all();
  }

  // Cancels these targets, within a step. Numbers of targets that have finished are ignored.
  void cancel(const std::vector<int64_t>& numbers) {
    const std::lock_guard lock(mutex_);
    const std::set<int64_t> unwanted(numbers.begin(), numbers.end());
    const auto is_unwanted = [&](int64_t row) { return unwanted.contains(numbers_[row]); };
    std::erase_if(waiting_, [&](int64_t row) {
      if (!is_unwanted(row)) return false;
      status_[row] = Status::cancelled;
      loss_[row] = std::numeric_limits<float>::quiet_NaN();
      steps_[row] = normal_equations_[row] = attempts_[row] = 0;
      std::fill_n(latents_.data() + row * latent_size_, latent_size_, loss_[row]);
      finished_.push_back(row);
      return true;
    });
    for (const int64_t row : running_) {
      if (is_unwanted(row)) dropped_.insert(row);
    }
    changed_.notify_all();
  }

  // Returns the finished targets, and waits for the first for up to kWait. None: the run is over,
  // and all were returned. Rethrows the run's exception once all were returned.
  py::object take() {
    std::vector<int64_t> rows;
    bool over = false;
    {
      const py::gil_scoped_release release;
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, kWait, [this] { return !finished_.empty() || over_; });
      rows.swap(finished_);
      over = over_;
    }
    if (rows.empty() && over) {
      if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
      return py::none();
    }
    const auto count = static_cast<int64_t>(rows.size());
    Array<float> latents({count, latent_size_}), loss(count);
    Array<int64_t> numbers(count), steps(count), normal_equations(count);
    Array<int32_t> attempts(count);
    Array<uint8_t> status(count);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = rows[i];
      std::copy_n(latents_.data() + row * latent_size_, latent_size_, latents.mutable_data(i, 0));
      loss.mutable_at(i) = loss_[row];
      numbers.mutable_at(i) = numbers_[row];
      steps.mutable_at(i) = steps_[row];
      normal_equations.mutable_at(i) = normal_equations_[row];
      attempts.mutable_at(i) = attempts_[row];
      status.mutable_at(i) = static_cast<uint8_t>(status_[row]);
    }
    {
      const py::gil_scoped_release release;
      const std::lock_guard lock(mutex_);
      free_.insert(free_.end(), rows.begin(), rows.end());
      changed_.notify_all();
    }
    using namespace py::literals;
    return py::dict("numbers"_a = numbers, "latents"_a = latents, "loss"_a = loss,
                    "status"_a = status, "steps"_a = steps, "attempts"_a = attempts,
                    "normal_equations"_a = normal_equations);
  }

  // Ends the run within a step, and waits for it. What has finished can still be taken.
  void stop() {
    const py::gil_scoped_release release;
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
      changed_.notify_all();
    }
    const std::lock_guard lock(joining_);
    if (thread_.joinable()) thread_.join();
  }

 private:
  bool keeps_going() {
    const std::lock_guard lock(mutex_);
    return !stopped_;
  }

  int64_t next(bool wait) override {
    std::unique_lock lock(mutex_);
    if (wait) {
      changed_.wait_for(lock, kIdle, [this] { return !waiting_.empty() || ended_ || stopped_; });
    }
    if (stopped_) return kNone;
    if (waiting_.empty()) return ended_ ? kEnd : kNone;
    const int64_t row = waiting_.front();
    waiting_.pop_front();
    running_.insert(row);
    return row;
  }

  bool dropped(int64_t row) override {
    const std::lock_guard lock(mutex_);
    return dropped_.contains(row);
  }

  void finish(int64_t row) override {
    const std::lock_guard lock(mutex_);
    running_.erase(row);
    dropped_.erase(row);
    finished_.push_back(row);
    changed_.notify_all();
  }

  const std::vector<const Objective*> objectives_;
  int64_t latent_size_ = 0, image_size_ = 0, condition_size_ = 0, weights_size_ = 0;
  std::vector<float> images_, conditions_, weights_, initial_, latents_, loss_, preconditioner_;
  std::vector<uint64_t> ids_;
  std::vector<int64_t> numbers_, steps_, normal_equations_;
  std::vector<int32_t> attempts_;
  std::vector<Status> status_;

  std::mutex mutex_, joining_;
  std::condition_variable changed_;
  std::vector<int64_t> free_, finished_;
  std::deque<int64_t> waiting_;
  std::set<int64_t> running_, dropped_;  // rows in lanes
  int64_t next_number_ = 0;
  bool ended_ = false, stopped_ = false, over_ = false;
  std::exception_ptr failure_;
  std::thread thread_;
};

}  // namespace

void bind_stream(py::module_& module) {
  using namespace py::literals;
  py::class_<Stream>(module, "Stream")
      .def(py::init<std::vector<const Objective*>, const std::string&, const std::string&,
                    const std::optional<Array<float>>&, uint64_t, int64_t, int64_t, bool>(),
           py::kw_only(), "objectives"_a, "recipe"_a, "prior"_a, "preconditioner"_a, "seed"_a,
           "lanes"_a, "rows"_a, "has_initial"_a = false, py::keep_alive<1, 2>())
      .def("put", &Stream::put, py::kw_only(), "images"_a, "ids"_a, "initial"_a = py::none(),
           "condition"_a = py::none(), "weights"_a = py::none())
      .def("end", &Stream::end, py::call_guard<py::gil_scoped_release>())
      .def("cancel", &Stream::cancel, "numbers"_a, py::call_guard<py::gil_scoped_release>())
      .def("take", &Stream::take)
      .def("stop", &Stream::stop);
}

}  // namespace pyinv
