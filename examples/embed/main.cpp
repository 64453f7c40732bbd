// Inverts images, or a generator's outputs of any other shape, with a bundle, from a C++ program
// without Python. README.md explains how to build it.
#include <pyinv/bundle.h>
#include <pyinv/engine.h>
#include <pyinv/onnxruntime.h>
#include <pyinv/rules.h>
#ifdef EMBED_TORCHSCRIPT
#include <pyinv/torchscript.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace {

constexpr std::string_view kUsage =
    "usage: embed BUNDLE IMAGES.f32 [options]\n"
    "  BUNDLE            the folder that pyinv.export wrote\n"
    "  IMAGES.f32        float32 [N, *image_shape] in the bundle's value range, nothing else; if\n"
    "                    the bundle observes images, observations [N, *target_shape]\n"
    "  --runtime NAME    onnx or torchscript; the bundle's first by default\n"
    "  --onnxruntime LIB ONNX Runtime's shared library; $PYINV_ONNXRUNTIME by default\n"
    "  --recipe FILE     a recipe as JSON; pyinv's default recipe by default\n"
    "  --weights FILE    how much each value counts, float32 [N, *target_shape], or one for all\n"
    "  --init encoder    start from the bundle's encoder's latent of each image\n"
    "  --conditions FILE float32 [N, n], if the bundle takes conditions; a label is one number\n"
    "  --device NAME     cpu (the default), cuda or cuda:1\n"
    "  --lanes N         targets that are inverted at once; 64 by default\n"
    "  --threads N       CPU threads; all by default\n"
    "  --seed N          seed of the random draws; 0 by default\n"
    "  --latents FILE    also write the latents, float32 [N, d]\n"
    "  --images FILE     also write the images of the latents, float32 [N, *image_shape]\n";

// The memory limit for normal equations, which limits the targets per evaluation.
constexpr int64_t kNormalEquationsBytes = int64_t{1} << 27;

struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Arguments {
  std::filesystem::path bundle, images;
  std::string runtime, onnxruntime, recipe, conditions, weights, device = "cpu", latents_out,
                                                                 images_out;
  bool encode = false;
  uint64_t lanes = 64, threads = std::max(1u, std::thread::hardware_concurrency()), seed = 0;
};

uint64_t whole(const std::string& name, const std::string& text) {
  try {
    size_t end = 0;
    const uint64_t number = std::stoull(text, &end);
    if (end == text.size() && text[0] != '-') return number;
  } catch (const std::logic_error&) {
  }
  throw UsageError(name + " must be a whole number, got '" + text + "'");
}

Arguments parse(int argc, char** argv) {
  Arguments arguments;
  std::vector<std::string> positional;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (!name.starts_with("--")) {
      positional.push_back(name);
      continue;
    }
    if (i + 1 == argc) throw UsageError(name + " needs a value, or is unknown");
    const std::string value = argv[++i];
    if (name == "--runtime") {
      arguments.runtime = value;
    } else if (name == "--onnxruntime") {
      arguments.onnxruntime = value;
    } else if (name == "--recipe") {
      arguments.recipe = value;
    } else if (name == "--weights") {
      arguments.weights = value;
    } else if (name == "--init") {
      if (value != "encoder") throw UsageError("--init must be encoder, got '" + value + "'");
      arguments.encode = true;
    } else if (name == "--conditions") {
      arguments.conditions = value;
    } else if (name == "--device") {
      arguments.device = value;
    } else if (name == "--lanes") {
      arguments.lanes = std::max<uint64_t>(1, whole(name, value));
    } else if (name == "--threads") {
      arguments.threads = std::max<uint64_t>(1, whole(name, value));
    } else if (name == "--seed") {
      arguments.seed = whole(name, value);
    } else if (name == "--latents") {
      arguments.latents_out = value;
    } else if (name == "--images") {
      arguments.images_out = value;
    } else {
      throw UsageError("there is no option " + name);
    }
  }
  if (positional.size() != 2) throw UsageError("a bundle and a file of images are needed");
  arguments.bundle = positional[0];
  arguments.images = positional[1];
  return arguments;
}

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path.string() + ": cannot be read");
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void write_floats(const std::string& path, const std::vector<float>& values) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(values.data()),
             static_cast<std::streamsize>(values.size() * sizeof(float)));
  if (!file.flush()) throw std::runtime_error(path + ": cannot be written");
}

std::vector<float> read_floats(const std::filesystem::path& path) {
  const std::string bytes = read_file(path);
  if (bytes.size() % sizeof(float)) {
    throw std::runtime_error(path.string() + ": expected float32 numbers, found " +
                             std::to_string(bytes.size()) + " bytes");
  }
  std::vector<float> values(bytes.size() / sizeof(float));
  std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char*>(values.data()));
  return values;
}

// Reads rows of one target each.
std::vector<float> read_targets(const std::filesystem::path& path, const pyinv::Bundle& bundle) {
  std::vector<float> values = read_floats(path);
  const size_t size = static_cast<size_t>(bundle.target_size());
  if (values.empty() || values.size() % size) {
    throw std::runtime_error(path.string() + ": expected targets of " + std::to_string(size) +
                             " numbers each, found " + std::to_string(values.size()) + " numbers");
  }
  return values;
}

std::vector<float> read_images(const std::filesystem::path& path, const pyinv::Bundle& bundle) {
  const std::vector<float> images = read_targets(path, bundle);
  const double slack = 1e-3 * (bundle.highest - bundle.lowest);  // for rounding
  const bool any = bundle.observes() || !bundle.bounded;
  const auto inside = [&](float value) {
    if (any) return std::isfinite(value);
    return value >= bundle.lowest - slack && value <= bundle.highest + slack;
  };
  if (!std::all_of(images.begin(), images.end(), inside)) {
    throw std::runtime_error(path.string() + ": expected " +
                             (any ? "finite values"
                                  : "values from " + std::to_string(bundle.lowest) + " to " +
                                        std::to_string(bundle.highest)) +
                             ", found others");
  }
  return images;
}

std::vector<float> read_conditions(const std::string& path, const pyinv::Bundle& bundle,
                                   int64_t count) {
  std::vector<float> conditions = path.empty() ? std::vector<float>{} : read_floats(path);
  const int64_t expected = count * bundle.condition_size();
  if (static_cast<int64_t>(conditions.size()) != expected) {
    std::string names;
    for (const pyinv::BundleCondition& each : bundle.conditions) names += " " + each.name;
    throw std::runtime_error("--conditions: expected " + std::to_string(expected) + " numbers" +
                             (names.empty() ? "" : " for" + names) + ", found " +
                             std::to_string(conditions.size()));
  }
  bundle.check_conditions(conditions.data(), count);
  return conditions;
}

// Reads a row for each of `count` targets, or one for all.
std::vector<float> read_weights(const std::filesystem::path& path, const pyinv::Bundle& bundle,
                                int64_t count) {
  if (!bundle.weights) {
    throw std::runtime_error(bundle.path.string() +
                             ": takes no weights; export it again with weights=True");
  }
  const std::vector<float> weights = read_targets(path, bundle);
  const int64_t size = bundle.target_size();
  const int64_t rows = static_cast<int64_t>(weights.size()) / size;
  if (rows != 1 && rows != count) {
    throw std::runtime_error(path.string() + ": expected weights for 1 or " +
                             std::to_string(count) + " targets, found " + std::to_string(rows));
  }
  for (int64_t row = 0; row < rows; ++row) {
    float total = 0.0f;
    for (int64_t i = 0; i < size; ++i) {
      const float weight = weights[row * size + i];
      if (!(weight >= 0.0f)) throw std::runtime_error(path.string() + ": a weight is below 0");
      total += weight;
    }
    if (!(total > 0.0f && std::isfinite(total))) {
      throw std::runtime_error(path.string() + ": the weights of target " + std::to_string(row) +
                               " should have a positive sum, have " + std::to_string(total));
    }
  }
  return weights;
}

std::shared_ptr<pyinv::Device> open_device(const std::string& name) {
  if (name == "cpu") return pyinv::cpu_device();
  if (name == "cuda") return pyinv::cuda_device();
  if (name.starts_with("cuda:")) {
    return pyinv::cuda_device(static_cast<int>(whole("--device", name.substr(5))));
  }
  throw UsageError("--device must be cpu, cuda or cuda:N, got '" + name + "'");
}

// Loads the bundle's functions in one runtime.
class Runtime {
 public:
  Runtime(const pyinv::Bundle& bundle, const Arguments& arguments)
      : bundle_(bundle), name_(bundle.forward(arguments.runtime).runtime) {
    options_.threads = static_cast<int>(arguments.threads);
    options_.device = open_device(arguments.device);
#ifndef EMBED_TORCHSCRIPT
    if (name_ == "torchscript") {
      throw std::runtime_error("this program was built against a pyinv without TorchScript");
    }
#endif
    if (name_ == "onnx") {
      const char* fallback = std::getenv("PYINV_ONNXRUNTIME");
      const std::string library =
          arguments.onnxruntime.empty() && fallback ? fallback : arguments.onnxruntime;
      if (library.empty()) {
        throw UsageError("where is ONNX Runtime? Give --onnxruntime or set PYINV_ONNXRUNTIME");
      }
      pyinv::load_onnxruntime(library);
    }
  }

  std::unique_ptr<pyinv::Objective> objective(const std::string& loss) const {
    return load(bundle_.objective(loss, name_), options_);
  }

  std::unique_ptr<pyinv::Objective> normal_equations(const std::string& loss) const {
    const pyinv::BundleFunction& function = bundle_.normal_equations(loss, name_);
    pyinv::RuntimeOptions options = options_;
    options.most_at_once = std::max<int64_t>(1, kNormalEquationsBytes / function.bytes_per_target);
    return load(function, options);
  }

  std::unique_ptr<pyinv::Generator> generator() const {
    const pyinv::BundleFunction& function = bundle_.forward(name_);
#ifdef EMBED_TORCHSCRIPT
    if (name_ == "torchscript") {
      return pyinv::torch_generator(bundle_.file(function), function.method, options_);
    }
#endif
    return pyinv::onnx_generator(bundle_, function, options_);
  }

  std::unique_ptr<pyinv::Encoder> encoder() const {
    const pyinv::BundleFunction& function = bundle_.encode(name_);
#ifdef EMBED_TORCHSCRIPT
    if (name_ == "torchscript") {
      return pyinv::torch_encoder(bundle_.file(function), function.method, options_);
    }
#endif
    return pyinv::onnx_encoder(bundle_, function, options_);
  }

 private:
  std::unique_ptr<pyinv::Objective> load(const pyinv::BundleFunction& function,
                                         const pyinv::RuntimeOptions& options) const {
#ifdef EMBED_TORCHSCRIPT
    if (name_ == "torchscript") {
      return pyinv::torch_objective(bundle_.file(function), function.method, options);
    }
#endif
    return pyinv::onnx_objective(bundle_, function, options);
  }

  const pyinv::Bundle& bundle_;
  const std::string name_;
  pyinv::RuntimeOptions options_;
};

const char* name_of(pyinv::Status status) {
  switch (status) {
    case pyinv::Status::converged_tolerance:
      return "converged_tolerance";
    case pyinv::Status::converged_plateau:
      return "converged_plateau";
    case pyinv::Status::step_limit:
      return "step_limit";
    case pyinv::Status::step_limit_improving:
      return "step_limit_improving";
    case pyinv::Status::non_finite:
      return "non_finite";
    case pyinv::Status::cancelled:
      break;
  }
  return "cancelled";
}

void invert(const Arguments& arguments) {
  const pyinv::Bundle bundle = pyinv::Bundle::open(arguments.bundle);
  const std::vector<float> images = read_images(arguments.images, bundle);
  const int64_t count = static_cast<int64_t>(images.size()) / bundle.target_size();
  const int64_t size = bundle.latent_size();
  const std::vector<float> conditions = read_conditions(arguments.conditions, bundle, count);
  const float* condition = conditions.empty() ? nullptr : conditions.data();

  pyinv::ParsedRecipe method{"default", pyinv::default_recipe(bundle), {"mse"}, {}};
  if (!arguments.recipe.empty()) {
    method = pyinv::parse_recipe(read_file(arguments.recipe), bundle.prior);
  }

  const Runtime runtime(bundle, arguments);
  std::vector<std::unique_ptr<pyinv::Objective>> owned;
  std::vector<const pyinv::Objective*> objectives;
  for (const std::string& loss : method.losses) {
    owned.push_back(runtime.objective(loss));
    objectives.push_back(owned.back().get());
  }
  for (const std::string& loss : method.normal_equations) {
    owned.push_back(runtime.normal_equations(loss));
    objectives.push_back(owned.back().get());
  }

  std::vector<uint64_t> ids(count);
  std::iota(ids.begin(), ids.end(), 0);
  std::vector<float> latents(count * size), losses(count);
  std::vector<pyinv::Status> statuses(count);
  std::vector<int64_t> steps(count);
  std::vector<int32_t> attempts(count);

  std::vector<float> initial;
  if (arguments.encode || method.recipe.start == pyinv::Start::encoder) {
    initial.resize(latents.size());
    runtime.encoder()->encode(count, images.data(), condition, initial.data());
  }

  pyinv::Targets targets;
  targets.initial = initial.empty() ? nullptr : initial.data();
  targets.count = count;
  targets.image = images.data();
  targets.condition = condition;
  targets.id = ids.data();
  std::vector<float> weights;
  if (!arguments.weights.empty()) {
    weights = read_weights(arguments.weights, bundle, count);
    targets.weights = weights.data();
    targets.shared_weights = static_cast<int64_t>(weights.size()) < count * bundle.target_size();
  }
  pyinv::Results results;
  results.latent = latents.data();
  results.loss = losses.data();
  results.status = statuses.data();
  results.steps = steps.data();
  results.attempts = attempts.data();
  pyinv::RunOptions options;
  options.seed = arguments.seed;
  options.lanes = static_cast<int64_t>(arguments.lanes);
  options.coupled = bundle.batch_norm == pyinv::BatchNorm::batch;
  const std::vector<float> preconditioner = bundle.preconditioner();
  options.preconditioner = preconditioner.empty() ? nullptr : preconditioner.data();
  pyinv::run(objectives, bundle.prior, method.recipe, targets, options, results);

  for (int64_t row = 0; row < count; ++row) {
    std::printf("%lld %s steps=%lld loss=%.9g latent=", static_cast<long long>(row),
                name_of(statuses[row]), static_cast<long long>(steps[row]), losses[row]);
    for (int64_t i = 0; i < size; ++i) {
      std::printf(i ? ",%.9g" : "%.9g", latents[row * size + i]);
    }
    std::printf("\n");
  }
  if (!arguments.latents_out.empty()) write_floats(arguments.latents_out, latents);
  if (!arguments.images_out.empty()) {
    std::vector<float> made(static_cast<size_t>(count * bundle.image_size()));
    runtime.generator()->generate(count, latents.data(), condition, made.data());
    write_floats(arguments.images_out, made);
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    invert(parse(argc, argv));
    return 0;
  } catch (const UsageError& error) {
    std::cerr << "embed: " << error.what() << "\n" << kUsage;
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "embed: " << error.what() << "\n";
    return 1;
  }
}
