#include "torch/objective.h"

#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <torch/version.h>

#include <algorithm>
#include <cassert>
#include <map>
#include <stdexcept>
#include <tuple>
#include <utility>
#include <vector>

#include "pyinv/torchscript.h"
#include "torch/method.h"

namespace pyinv {
namespace {

using torchscript::Method;

// The most lane ranges whose tensors are cached. An engine that shrinks its batch towards the end
// of a run uses one range per batch size.
constexpr size_t kMaxRanges = 1024;

std::vector<int64_t> batch_of(int64_t count, const std::vector<int64_t>& row) {
  std::vector<int64_t> shape{count};
  shape.insert(shape.end(), row.begin(), row.end());
  return shape;
}

// Not capturable: between replays, torch would reuse the memory of a captured call.
class TorchEvaluator : public Evaluator {
 public:
  // `buffers` must have a gram if the method computes one.
  TorchEvaluator(const Method& method, const LaneBuffers& buffers)
      : method_(method),
        buffers_(buffers),
        most_at_once_(method.options().most_at_once > 0 ? method.options().most_at_once
                                                        : buffers.lanes) {}

  void evaluate(int64_t first, int64_t count) override {
    assert(first >= 0 && count > 0 && first + count <= buffers_.lanes);
    method_.within_call([&] {
      for (const int64_t end = first + count; first < end; first += most_at_once_) {
        run(first, std::min(most_at_once_, end - first));
      }
    });
  }

 private:
  using Range = std::pair<int64_t, int64_t>;  // first, count

  void run(int64_t first, int64_t count) {
    auto found = ranges_.find({first, count});
    if (found == ranges_.end()) {
      if (ranges_.size() == kMaxRanges) ranges_.clear();
      found = ranges_.emplace(Range{first, count}, arguments(first, count)).first;
    }
    method_.run(found->second);
  }

  std::vector<c10::IValue> arguments(int64_t first, int64_t count) const {
    const auto lanes = [&](const float* array, const std::vector<int64_t>& row) {
      int64_t stride = 1;
      for (int64_t size : row) stride *= size;
      // torch has no type for constant tensors, but the method only writes to `out`.
      return method_.view(const_cast<float*>(array) + first * stride, batch_of(count, row));
    };
    const auto& sizes = method_.sizes();
    std::vector<c10::IValue> values{lanes(buffers_.latent, {sizes.latent}),
                                    lanes(buffers_.image, sizes.image)};
    if (sizes.condition) values.emplace_back(lanes(buffers_.condition, {sizes.condition}));
    if (buffers_.weights) values.emplace_back(lanes(buffers_.weights, sizes.image));
    const at::Tensor loss = lanes(buffers_.loss, {});
    const at::Tensor gradient = lanes(buffers_.gradient, {sizes.latent});
    if (buffers_.gram) {
      values.emplace_back(
          std::make_tuple(loss, gradient, lanes(buffers_.gram, {sizes.latent, sizes.latent})));
    } else {
      values.emplace_back(std::make_tuple(loss, gradient));
    }
    return values;
  }

  const Method& method_;
  const LaneBuffers buffers_;
  const int64_t most_at_once_;
  std::map<Range, std::vector<c10::IValue>> ranges_;
};

}  // namespace

TorchObjective::TorchObjective(const std::filesystem::path& file, const std::string& method,
                               const RuntimeOptions& options)
    : method_(std::make_unique<Method>(file, method, options)) {
  check_signature();
  check_results();
}

TorchObjective::~TorchObjective() = default;

int64_t TorchObjective::latent_size() const { return method_->sizes().latent; }
int64_t TorchObjective::image_size() const { return method_->sizes().pixels(); }
int64_t TorchObjective::condition_size() const { return method_->sizes().condition; }
bool TorchObjective::takes_weights() const { return method_->takes("weights"); }
std::shared_ptr<Device> TorchObjective::device() const { return method_->options().device; }

void TorchObjective::check_signature() {
  std::string inputs = "latent: Tensor, image: Tensor, ";
  if (condition_size()) inputs += "condition: Tensor, ";
  if (takes_weights()) inputs += "weights: Tensor, ";
  const std::string expected = inputs + "out: Optional[Tuple[Tensor, Tensor]]";
  std::string found;
  for (const c10::Argument& argument : method_->arguments()) {
    found +=
        (found.empty() ? "" : ", ") + argument.name() + ": " + argument.type()->annotation_str();
  }
  has_gram_ = found == inputs + "out: Optional[Tuple[Tensor, Tensor, Tensor]]";
  if (!has_gram_ && found != expected) {
    method_->refuse(method_->name() + " should take (" + expected + "), takes (" + found + ")");
  }
}

// TorchScript does not declare shapes, so the results' shapes are checked in a trial run.
void TorchObjective::check_results() const {
  // Use a batch of two, unless a target takes much memory.
  const int64_t count = has_gram_ ? 1 : 2;
  const auto& sizes = method_->sizes();
  method_->within_call([&] {
    const auto options = at::TensorOptions()
                             .dtype(at::kFloat)
                             .device(torchscript::to_torch(*method_->options().device));
    const auto zeros = [&](const std::vector<int64_t>& row) {
      return at::zeros(batch_of(count, row), options);
    };
    std::vector<c10::IValue> arguments{zeros({sizes.latent}), zeros(sizes.image)};
    if (sizes.condition) arguments.emplace_back(zeros({sizes.condition}));
    if (takes_weights()) arguments.emplace_back(zeros(sizes.image));
    struct Result {
      const char* name;
      std::vector<int64_t> row;
    };
    std::vector<Result> expected = {{"loss", {}}, {"gradient", {sizes.latent}}};
    if (has_gram_) expected.push_back({"gram", {sizes.latent, sizes.latent}});
    std::vector<at::Tensor> results;
    std::vector<const void*> memory;
    for (const Result& result : expected) {
      results.push_back(zeros(result.row));
      memory.push_back(results.back().const_data_ptr());
    }
    if (has_gram_) {
      arguments.emplace_back(std::make_tuple(results[0], results[1], results[2]));
    } else {
      arguments.emplace_back(std::make_tuple(results[0], results[1]));
    }

    const c10::IValue returned = method_->run(arguments);
    const bool all = returned.isTuple() && returned.toTupleRef().size() == expected.size();
    for (size_t i = 0; i < expected.size(); ++i) {
      const bool same = all && returned.toTupleRef().elements()[i].isTensor() &&
                        returned.toTupleRef().elements()[i].toTensor().is_same(results[i]);
      if (!same) method_->refuse(method_->name() + " does not return the tensors of 'out'");
      // An operator resizes a tensor of the wrong shape, and reallocates it if it is too small.
      const auto shape = batch_of(count, expected[i].row);
      if (results[i].sizes() != shape || results[i].const_data_ptr() != memory[i]) {
        method_->refuse(method_->name() + ": " + expected[i].name + " should be " +
                        c10::str(c10::IntArrayRef(shape)) + " for a batch of " +
                        std::to_string(count) + ", is " + c10::str(results[i].sizes()));
      }
    }
  });
}

std::unique_ptr<Evaluator> TorchObjective::bind(const LaneBuffers& buffers) const {
  assert(buffers.latent && buffers.image && buffers.loss && buffers.gradient);
  if (condition_size() && !buffers.condition) {
    throw std::invalid_argument(method_->file() + ": this objective takes a condition of " +
                                std::to_string(condition_size()) +
                                " values for each target; none was given");
  }
  if (takes_weights() && !buffers.weights) {
    throw std::invalid_argument(method_->file() +
                                ": this objective takes weights; none were given");
  }
  if (has_gram_ && !buffers.gram) {
    throw std::invalid_argument(method_->file() + ": " + method_->name() +
                                " are normal equations, and there is no gram to write");
  }
  LaneBuffers used = buffers;
  if (!takes_weights()) used.weights = nullptr;
  if (!has_gram_) used.gram = nullptr;
  return std::make_unique<TorchEvaluator>(*method_, used);
}

std::unique_ptr<Objective> torch_objective(const std::filesystem::path& file,
                                           const std::string& method,
                                           const RuntimeOptions& options) {
  return std::make_unique<TorchObjective>(file, method, options);
}

std::string torch_version() { return TORCH_VERSION; }

}  // namespace pyinv
