#include "pyinv/bundle.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <numeric>
#include <optional>
#include <system_error>
#include <utility>

#include "json.h"
#include "rules.h"

namespace pyinv {
namespace {

namespace fs = std::filesystem;
using json::Node;

constexpr const char* kFormat = "pyinv-bundle";
constexpr int64_t kFormatVersion = 1;
constexpr const char* kManifest = "manifest.json";
constexpr int64_t kMaxValues = std::numeric_limits<int32_t>::max();  // values per target
constexpr const char* kFix = "; export or copy the bundle again";

int64_t product(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

void add_once(std::vector<std::string>& names, const std::string& name) {
  if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
}

std::string listed(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

std::vector<int64_t> read_sizes(const Node& node) {
  std::vector<int64_t> shape;
  int64_t values = 1;
  for (const Node& size : node.items()) {
    shape.push_back(size.whole());
    if (shape.back() < 1) size.expected("a whole number >= 1");
    if (shape.back() > kMaxValues / values) {
      node.fail("must hold at most " + std::to_string(kMaxValues) + " values");
    }
    values *= shape.back();
  }
  return shape;
}

std::vector<int64_t> read_shape(const Node& node) {
  std::vector<int64_t> shape = read_sizes(node);
  if (shape.empty()) node.expected("one size or more");
  return shape;
}

BundleCondition read_condition(const Node& node) {
  BundleCondition condition{
      .name = node["name"].text(), .kind = node["kind"].text(), .classes = 0, .shape = {}};
  if (condition.kind == "condition") {
    condition.shape = read_sizes(node["shape"]);
  } else if (condition.kind == "label" || condition.kind == "one_hot") {
    condition.classes = node["classes"].whole();
    if (condition.classes < 1) node["classes"].expected("a whole number >= 1");
  } else {
    node["kind"].expected("label, one_hot or condition");
  }
  return condition;
}

// Whether a file name cannot lead out of the bundle's folder.
bool is_plain(const std::string& file) {
  return !file.empty() && file != "." && file != ".." && file != kManifest &&
         file.find_first_of("/\\") == std::string::npos;
}

std::vector<std::string> read_operators(const Node& node) {
  std::vector<std::string> names;
  for (const Node& name : node.items()) names.push_back(name.text());
  if (names.empty()) node.expected("at least one operator");
  return names;
}

BundleFunction read_function(const Node& node) {
  BundleFunction function{.name = node["name"].text(),
                          .loss = {},
                          .runtime = node["runtime"].text(),
                          .file = node["file"].text(),
                          .method = {},
                          .bytes_per_target = 0,
                          .operators = {}};
  if (const auto loss = node.find("loss")) function.loss = loss->text();
  if (const auto method = node.find("method")) function.method = method->text();
  if (const auto bytes = node.find("bytes_per_target")) {
    function.bytes_per_target = bytes->whole();
    if (function.bytes_per_target < 1) bytes->expected("a whole number >= 1");
  }
  if (function.runtime != "onnx" && function.runtime != "torchscript") {
    node["runtime"].expected("onnx or torchscript, which is what this pyinv has");
  }
  const bool is_normal_equations = function.name == "normal_equations";
  if (function.name == "objective" || is_normal_equations) {
    if (function.loss.empty()) node.fail("has no \"loss\"");
    if (function.runtime == "onnx") {
      function.operators = {read_operators(node["operators"]),
                            read_operators(node["input_operators"])};
    }
  }
  if (is_normal_equations && !function.bytes_per_target) {
    node.fail("has no \"bytes_per_target\"");
  }
  if (function.runtime == "torchscript" && function.method.empty()) {
    node.fail("has no \"method\"");
  }
  return function;
}

void read_manifest(const Node& manifest, Bundle& bundle) {
  if (const auto format = manifest.find("format"); !format || format->text() != kFormat) {
    manifest.fail(std::string("is not a pyinv bundle's: it has no \"format\": \"") + kFormat +
                  "\"");
  }
  const int64_t version = manifest["format_version"].whole();
  if (version < 1) manifest["format_version"].expected("at least 1");
  if (version > kFormatVersion) {
    manifest.fail("has format_version " + std::to_string(version) + " and this pyinv reads up to " +
                  std::to_string(kFormatVersion) + "; upgrade with `pip install --upgrade pyinv`");
  }
  if (const auto name = manifest.find("name")) bundle.name = name->text();
  bundle.latent_shape = read_shape(manifest["latent_shape"]);
  bundle.image_shape = read_shape(manifest["image_shape"]);
  if (const auto conditions = manifest.find("conditions")) {
    for (const Node& condition : conditions->items()) {
      bundle.conditions.push_back(read_condition(condition));
    }
    if (bundle.condition_size() > kMaxValues) {
      conditions->fail("must hold at most " + std::to_string(kMaxValues) + " values");
    }
  }
  bundle.target_shape = bundle.image_shape;
  if (const auto shape = manifest.find("observation_shape")) {
    bundle.target_shape = read_shape(*shape);
  }
  if (const auto weights = manifest.find("weights")) {
    bundle.weights = weights->flag();
  }
  const Node range = manifest["value_range"];
  const std::vector<Node> bounds = range.items();
  if (bounds.size() != 2 || bounds[0].number() >= bounds[1].number()) {
    range.fail("must be two numbers, low below high");
  }
  bundle.lowest = bounds[0].number();
  bundle.highest = bounds[1].number();
  if (const auto bounded = manifest.find("bounded")) bundle.bounded = bounded->flag();
  if (const auto file = manifest.find("preconditioner")) {
    bundle.preconditioner_file = file->text();
    const auto record = manifest["files"].find(bundle.preconditioner_file);
    if (!record) file->fail("names a file that is not in files: " + bundle.preconditioner_file);
    const int64_t size = bundle.latent_size(), bytes = (*record)["bytes"].whole();
    if (size > kMaxPreconditioned || bytes != size * size * int64_t{sizeof(float)}) {
      const std::string number = std::to_string(size);
      file->fail("must hold " + number + " x " + number +
                 " float32 numbers, for latents of at most " + std::to_string(kMaxPreconditioned) +
                 " components; it has " + std::to_string(bytes) + " bytes");
    }
  }
  bundle.prior = read_prior(manifest["prior"]);
  const std::string& batch_norm = manifest["batch_norm"].text();
  if (batch_norm != "eval" && batch_norm != "batch") {
    manifest["batch_norm"].expected("\"eval\" or \"batch\"");
  }
  bundle.batch_norm = batch_norm == "batch" ? BatchNorm::batch : BatchNorm::eval;
  for (const Node& function : manifest["functions"].items()) {
    bundle.functions.push_back(read_function(function));
    if (!manifest["files"].find(bundle.functions.back().file)) {
      function.fail("names a file that is not in files: " + bundle.functions.back().file);
    }
  }
}

// `solved`: this runtime's losses with normal equations; `all_solved`: those of any runtime.
void check_normal_equations(const Bundle& bundle, const std::string& runtime,
                            const std::vector<std::string>& losses, std::vector<std::string> solved,
                            std::vector<std::string> all_solved) {
  std::sort(solved.begin(), solved.end());
  std::sort(all_solved.begin(), all_solved.end());
  for (const std::string& loss : solved) {
    if (!std::binary_search(losses.begin(), losses.end(), loss)) {
      throw BundleError("functions hold normal equations for " + runtime + " of the loss \"" +
                        loss + "\", which has no objective");
    }
  }
  if (std::adjacent_find(solved.begin(), solved.end()) != solved.end()) {
    throw BundleError("functions must hold a loss's normal equations for " + runtime + " once");
  }
  if (!solved.empty() && bundle.batch_norm != BatchNorm::eval) {
    throw BundleError(
        "normal equations are of each image alone, and with batch_norm \"batch\" images depend on "
        "one another");
  }
  if (solved != all_solved) {
    throw BundleError("functions must hold the same normal equations for each runtime");
  }
}

void check_functions(const Bundle& bundle) {
  std::vector<std::string> losses;
  std::vector<std::string> all_solved;  // the losses with normal equations
  for (const std::string& runtime : bundle.runtimes()) {
    int64_t forwards = 0, encoders = 0, observers = 0;
    std::vector<std::string> found, solved;
    for (const BundleFunction& function : bundle.functions) {
      if (function.name == "normal_equations") add_once(all_solved, function.loss);
      if (function.runtime != runtime) continue;
      if (function.name == "normal_equations") solved.push_back(function.loss);
      forwards += function.name == "forward";
      encoders += function.name == "encode";
      observers += function.name == "observe";
      if (function.name == "objective") found.push_back(function.loss);
    }
    if (forwards != 1) throw BundleError("functions must hold one \"forward\" for " + runtime);
    const auto expect_count = [&](const char* name, int64_t count, bool expected) {
      if (count == static_cast<int64_t>(expected)) return;
      throw BundleError("functions must hold \"" + std::string(name) +
                        "\" once for each runtime, or for none; " + runtime + " has " +
                        std::to_string(count));
    };
    expect_count("encode", encoders, bundle.has_encoder());
    expect_count("observe", observers, bundle.observes());
    std::sort(found.begin(), found.end());
    if (found.empty() || std::adjacent_find(found.begin(), found.end()) != found.end()) {
      throw BundleError("functions must hold one \"objective\" or more for " + runtime +
                        ", each with its own loss");
    }
    if (losses.empty()) losses = found;
    if (losses != found) throw BundleError("functions must hold the same losses for each runtime");
    check_normal_equations(bundle, runtime, losses, std::move(solved), all_solved);
  }
  if (bundle.target_shape != bundle.image_shape && !bundle.observes()) {
    throw BundleError("has an observation_shape, and functions hold no \"observe\"");
  }
  if (losses.empty()) throw BundleError("functions must hold a \"forward\" and an \"objective\"");
}

// The type of the file at `path`; `what` names it in error messages.
fs::file_type type_of(const fs::path& path, const std::string& what) {
  std::error_code error;
  const fs::file_type type = fs::status(path, error).type();
  if (type == fs::file_type::none) {
    throw BundleError(what + " cannot be read (" + error.message() + ")");
  }
  return type;
}

void check_file(const fs::path& path, int64_t expected) {
  const std::string name = path.string();
  const fs::file_type type = type_of(path, name + ":");
  if (type == fs::file_type::not_found)
    throw BundleError(name + ": missing from the bundle" + kFix);
  if (type != fs::file_type::regular) throw BundleError(name + ": expected a file" + kFix);
  std::error_code error;
  const uintmax_t size = fs::file_size(path, error);
  if (error) throw BundleError(name + ": cannot be read (" + error.message() + ")");
  if (size != static_cast<uintmax_t>(expected)) {
    throw BundleError(name + ": expected " + std::to_string(expected) + " bytes, found " +
                      std::to_string(size) + kFix);
  }
}

std::string read_text(const fs::path& folder) {
  const fs::file_type type = type_of(folder, "the folder");
  if (type == fs::file_type::not_found) {
    throw BundleError("no such bundle; expected the folder that export wrote");
  }
  if (type != fs::file_type::directory) {
    throw BundleError("a bundle is a folder, and this is a file");
  }
  const fs::path path = folder / kManifest;
  const fs::file_type manifest = type_of(path, kManifest);
  if (manifest == fs::file_type::not_found) {
    throw BundleError(std::string("not a pyinv bundle, it has no ") + kManifest +
                      "; make one with `pyinv export`");
  }
  if (manifest != fs::file_type::regular) {
    throw BundleError(std::string(kManifest) + " must be a file" + kFix);
  }
  std::string text;
  std::ifstream file(path, std::ios::binary);
  if (file) {
    try {
      text.assign(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    } catch (const std::ios_base::failure&) {  // libstdc++ throws it for disk errors
      file.setstate(std::ios::badbit);
    }
  }
  if (!file) throw BundleError(std::string(kManifest) + " cannot be read");
  return text;
}

// Whether the matrix [size, size] is finite, symmetric, and positive on its diagonal.
bool is_metric(const std::vector<float>& matrix, int64_t size) {
  for (int64_t row = 0; row < size; ++row) {
    if (!(matrix[row * size + row] > 0.0f)) return false;
    for (int64_t column = 0; column <= row; ++column) {
      const float value = matrix[row * size + column];
      if (!std::isfinite(value) || value != matrix[column * size + row]) return false;
    }
  }
  return true;
}

// The first such function, of any loss or runtime if none is given; null if there is none.
const BundleFunction* find(const Bundle& bundle, std::string_view name,
                           std::optional<std::string_view> loss, std::string_view runtime) {
  for (const BundleFunction& function : bundle.functions) {
    if (function.name == name && (!loss || function.loss == *loss) &&
        (runtime.empty() || function.runtime == runtime)) {
      return &function;
    }
  }
  return nullptr;
}

}  // namespace

Bundle Bundle::open(const fs::path& folder) {
  Bundle bundle;
  bundle.path = folder;
  std::vector<std::pair<std::string, int64_t>> sizes;
  try {
    json::Value document;
    const std::string text = read_text(folder);
    try {
      document = json::parse(text);
    } catch (const json::Error& error) {
      throw BundleError(std::string(kManifest) + " is not valid JSON: " + error.what() + kFix);
    }
    const Node manifest(document, kManifest);
    read_manifest(manifest, bundle);
    check_functions(bundle);
    for (const auto& [name, record] : manifest["files"].members()) {
      if (!is_plain(name)) record.fail("must be a plain file name");
      sizes.emplace_back(name, record["bytes"].whole());
    }
  } catch (const json::Error& error) {
    throw BundleError(folder.string() + ": " + error.what());
  } catch (const BundleError& error) {
    throw BundleError(folder.string() + ": " + error.what());
  }
  for (const auto& [name, bytes] : sizes) check_file(folder / name, bytes);
  return bundle;
}

int64_t Bundle::latent_size() const { return product(latent_shape); }
int64_t Bundle::image_size() const { return product(image_shape); }
int64_t Bundle::target_size() const { return product(target_shape); }
bool Bundle::observes() const { return find(*this, "observe", {}, {}) != nullptr; }

int64_t BundleCondition::columns() const { return classes ? 1 : product(shape); }

int64_t Bundle::condition_size() const {
  int64_t size = 0;
  for (const BundleCondition& condition : conditions) size += condition.columns();
  return size;
}

void Bundle::check_conditions(const float* condition, int64_t count) const {
  for (int64_t target = 0; target < count; ++target) {
    for (const BundleCondition& expected : conditions) {
      for (int64_t i = 0; i < expected.columns(); ++i) {
        const float value = *condition++;
        const bool ok = expected.classes ? value >= 0.0f && std::floor(value) == value &&
                                               static_cast<double>(value) < expected.classes
                                         : std::isfinite(value);
        if (ok) continue;
        const std::string allowed =
            expected.classes ? "a whole number from 0 to " + std::to_string(expected.classes - 1)
                             : "finite";
        throw std::invalid_argument("condition \"" + expected.name + "\" must be " + allowed +
                                    ", got " + std::to_string(value) + " for target " +
                                    std::to_string(target));
      }
    }
  }
}

std::vector<float> Bundle::preconditioner() const {
  if (preconditioner_file.empty()) return {};
  const fs::path file = path / preconditioner_file;
  const int64_t size = latent_size();
  std::vector<float> matrix(static_cast<size_t>(size * size));
  std::ifstream stream(file, std::ios::binary);
  const auto bytes = static_cast<std::streamsize>(matrix.size() * sizeof(float));
  if (!stream.read(reinterpret_cast<char*>(matrix.data()), bytes) ||
      stream.peek() != std::char_traits<char>::eof() || !is_metric(matrix, size)) {
    throw BundleError(file.string() + ": must hold a symmetric matrix of " + std::to_string(size) +
                      " x " + std::to_string(size) + " finite numbers, positive on the diagonal" +
                      kFix);
  }
  return matrix;
}

std::vector<std::string> Bundle::runtimes() const {
  std::vector<std::string> found;
  for (const BundleFunction& function : functions) add_once(found, function.runtime);
  return found;
}

std::vector<std::string> Bundle::losses() const {
  std::vector<std::string> found;
  for (const BundleFunction& function : functions) {
    if (function.name == "objective") add_once(found, function.loss);
  }
  return found;
}

const BundleFunction& Bundle::forward(std::string_view runtime) const {
  if (const BundleFunction* found = find(*this, "forward", {}, runtime)) return *found;
  throw BundleError(path.string() + ": this bundle has no functions for " + std::string(runtime) +
                    ", only for " + listed(runtimes()) + "; export it again with that runtime");
}

const BundleFunction& Bundle::objective(std::string_view loss, std::string_view runtime) const {
  const std::string& wanted = forward(runtime).runtime;
  if (const BundleFunction* found = find(*this, "objective", loss, wanted)) return *found;
  throw BundleError(path.string() + ": this bundle has no loss \"" + std::string(loss) +
                    "\", only " + listed(losses()) + "; export it again with `--loss " +
                    std::string(loss) + "`, or choose another loss");
}

bool Bundle::has_encoder() const { return find(*this, "encode", {}, {}) != nullptr; }

const BundleFunction& Bundle::encode(std::string_view runtime) const {
  const std::string& wanted = forward(runtime).runtime;
  if (const BundleFunction* found = find(*this, "encode", {}, wanted)) return *found;
  throw BundleError(path.string() +
                    ": this bundle has no encoder; train one with `pyinv train encoder`, or start "
                    "from the prior");
}

bool Bundle::has_normal_equations(std::string_view loss, std::string_view runtime) const {
  const std::string_view wanted = runtime.empty() ? forward().runtime : runtime;
  return find(*this, "normal_equations", loss, wanted) != nullptr;
}

const BundleFunction& Bundle::normal_equations(std::string_view loss,
                                               std::string_view runtime) const {
  if (has_normal_equations(loss, runtime)) {
    return *find(*this, "normal_equations", loss, forward(runtime).runtime);
  }
  objective(loss, runtime);  // throws if the loss or the runtime does not exist
  std::vector<std::string> others;
  for (const std::string& other : losses()) {
    if (has_normal_equations(other, runtime)) others.push_back(other);
  }
  throw BundleError(path.string() + ": this bundle has no normal equations of the loss \"" +
                    std::string(loss) + "\", " +
                    (others.empty() ? "nor of any other" : "only of " + listed(others)) +
                    "; export it again with `--loss " + std::string(loss) +
                    " --normal-equations`, or choose a recipe without Levenberg-Marquardt");
}

}  // namespace pyinv
