#include "pyinv/bundle.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <system_error>
#include <utility>

#include "json.h"
#include "printable.h"
#include "rules.h"
#include "sha256.h"

namespace pyinv {
namespace {

namespace fs = std::filesystem;
using json::Node;

constexpr const char* kFormat = "pyinv-bundle";
constexpr int64_t kFormatVersion = 1;
constexpr const char* kManifest = "manifest.json";
constexpr int64_t kMaxValues = std::numeric_limits<int32_t>::max();  // values per target
constexpr size_t kMaxManifest = 1 << 20;                             // bytes
constexpr int64_t kMaxClasses = 1 << 24;  // whole numbers up to here are exact in float32
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

// A member that is null would mean its default to Node::find. Here null is no value.
void no_nulls(const Node& object) {
  for (const auto& [name, node] : object.members()) {
    if (std::holds_alternative<std::nullptr_t>(node.value().data)) node.fail("must not be null");
  }
}

// Manifests come from anywhere, and their texts reach terminals: no control characters, but for
// line breaks and tabs where `lines`.
void check_texts(const Node& node, bool lines = false) {
  const auto check = [&](const std::string& text) {
    std::string rest = text;
    if (lines) std::erase_if(rest, [](char c) { return c == '\n' || c == '\t'; });
    if (is_printable(rest)) return;
    node.fail("must have no control characters, got \"" + printable(text) + "\"");
  };
  if (const auto* text = std::get_if<std::string>(&node.value().data)) {
    check(*text);
  } else if (std::holds_alternative<json::Array>(node.value().data)) {
    for (const Node& item : node.items()) check_texts(item, lines);
  } else if (std::holds_alternative<json::Object>(node.value().data)) {
    for (const auto& [name, member] : node.members()) {
      check(name);
      check_texts(member, lines || name == "origin");
    }
  }
}

BundleCondition read_condition(const Node& node) {
  no_nulls(node);
  BundleCondition condition{
      .name = node["name"].text(), .kind = node["kind"].text(), .classes = 0, .shape = {}};
  if (condition.name.empty()) node["name"].expected("a text that is not empty");
  if (condition.kind == "condition") {
    only(node, {"name", "shape", "low", "high"});
    condition.shape = read_sizes(node["shape"]);
    read_interval(node);  // typical values, for the exporter
  } else if (condition.kind == "label" || condition.kind == "one_hot") {
    only(node, {"name", "classes"});
    condition.classes = node["classes"].whole();
    if (condition.classes < 1 || condition.classes > kMaxClasses) {
      node["classes"].expected("a whole number from 1 to " + std::to_string(kMaxClasses));
    }
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

bool is_identifier(const std::string& name) {
  const auto is_part = [](char c) {
    return c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
  };
  return !name.empty() && !(name[0] >= '0' && name[0] <= '9') &&
         std::all_of(name.begin(), name.end(), is_part);
}

FileRecord read_record(const Node& node) {
  FileRecord record{.bytes = node["bytes"].whole(), .sha256 = node["sha256"].text()};
  if (record.bytes < 0) node["bytes"].expected("a whole number >= 0");
  if (record.sha256.size() != 64 ||
      record.sha256.find_first_not_of("0123456789abcdef") != std::string::npos) {
    node["sha256"].expected("64 hexadecimal digits in lower case");
  }
  return record;
}

std::vector<std::string> read_operators(const Node& function, const char* key, bool required) {
  std::vector<std::string> names;
  const std::optional<Node> node = required ? function[key] : function.find(key);
  if (!node) return names;
  for (const Node& name : node->items()) names.push_back(name.text());
  if (names.empty() && required) node->expected("at least one operator");
  return names;
}

BundleFunction read_function(const Node& node) {
  no_nulls(node);
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
  const bool has_loss = function.name == "objective" || is_normal_equations;
  if (has_loss && function.loss.empty()) node.fail("has no \"loss\"");
  const bool listed = has_loss && function.runtime == "onnx";
  function.operators = {read_operators(node, "operators", listed),
                        read_operators(node, "input_operators", listed)};
  if (is_normal_equations && !function.bytes_per_target) {
    node.fail("has no \"bytes_per_target\"");
  }
  if (function.runtime == "torchscript") {
    if (!is_identifier(function.method)) {
      node.fail("needs a \"method\", the name of a method in its file, got \"" +
                printable(function.method) + "\"");
    }
  } else if (node.find("method")) {
    node.fail("has a \"method\", and only functions for torchscript have one");
  }
  return function;
}

void read_document(const Node& manifest, Bundle& bundle) {
  if (const auto format = manifest.find("format"); !format || format->text() != kFormat) {
    manifest.fail(std::string("is not a pyinv bundle's: it has no \"format\": \"") + kFormat +
                  "\"");
  }
  check_texts(manifest);
  no_nulls(manifest);
  const int64_t version = manifest["format_version"].whole();
  if (version < 1) manifest["format_version"].expected("at least 1");
  if (version > kFormatVersion) {
    manifest.fail("has format_version " + std::to_string(version) + " and this pyinv reads up to " +
                  std::to_string(kFormatVersion) + "; upgrade with `pip install --upgrade pyinv`");
  }
  if (const auto name = manifest.find("name")) bundle.name = name->text();
  for (const char* key : {"exporter", "origin"}) {
    if (const auto object = manifest.find(key)) object->members();
  }
  const Node files = manifest["files"];
  for (const auto& [name, record] : files.members()) {
    if (!is_plain(name)) files.fail("must hold plain file names, got \"" + printable(name) + "\"");
    bundle.files.emplace(name, read_record(record));
  }
  bundle.latent_shape = read_shape(manifest["latent_shape"]);
  bundle.image_shape = read_shape(manifest["image_shape"]);
  if (const auto conditions = manifest.find("conditions")) {
    for (const Node& condition : conditions->items()) {
      const BundleCondition read = read_condition(condition);
      for (const BundleCondition& other : bundle.conditions) {
        if (other.name == read.name) condition["name"].fail("is that of another condition");
      }
      bundle.conditions.push_back(read);
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
    const auto record = bundle.files.find(bundle.preconditioner_file);
    if (record == bundle.files.end()) file->expected("a name in files");
    const int64_t size = bundle.latent_size(), bytes = record->second.bytes;
    if (size > kMaxPreconditioned || bytes != size * size * int64_t{sizeof(float)}) {
      const std::string number = std::to_string(size);
      file->fail("must hold " + number + " x " + number +
                 " float32 numbers, for latents of at most " + std::to_string(kMaxPreconditioned) +
                 " components; it has " + std::to_string(bytes) + " bytes");
    }
  }
  no_nulls(manifest["prior"]);
  bundle.prior = read_prior(manifest["prior"]);
  const std::string& batch_norm = manifest["batch_norm"].text();
  if (batch_norm != "eval" && batch_norm != "batch") {
    manifest["batch_norm"].expected("\"eval\" or \"batch\"");
  }
  bundle.batch_norm = batch_norm == "batch" ? BatchNorm::batch : BatchNorm::eval;
  for (const Node& function : manifest["functions"].items()) {
    bundle.functions.push_back(read_function(function));
    if (!bundle.files.contains(bundle.functions.back().file)) {
      function["file"].expected("a name in files");
    }
  }
  if (bundle.observes() != manifest.find("observation_shape").has_value()) {
    manifest.fail("must have both the function \"observe\" and an observation_shape, or neither");
  }
}

// `solved`: this runtime's losses with normal equations; `all_solved`: those of any runtime.
void check_normal_equations(const Bundle& bundle, const std::string& runtime,
                            const std::vector<std::string>& losses, std::vector<std::string> solved,
                            const std::vector<std::string>& all_solved) {
  std::sort(solved.begin(), solved.end());
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
  for (const std::string& loss : all_solved) {
    if (std::binary_search(solved.begin(), solved.end(), loss)) continue;
    throw BundleError("functions must hold the same normal equations for each runtime; " + runtime +
                      " has none of " + loss);
  }
}

void check_functions(const Bundle& bundle) {
  const std::vector<std::string> losses = bundle.losses();
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
    for (const std::string& loss : losses) {
      if (std::binary_search(found.begin(), found.end(), loss)) continue;
      throw BundleError("functions must hold the same losses for each runtime; " + runtime +
                        " has no " + loss);
    }
    check_normal_equations(bundle, runtime, found, std::move(solved), all_solved);
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

void check_file(const fs::path& path, const FileRecord& expected, bool contents) {
  const std::string name = path.string();
  const fs::file_type type = type_of(path, name + ":");
  if (type == fs::file_type::not_found)
    throw BundleError(name + ": missing from the bundle" + kFix);
  if (type != fs::file_type::regular) throw BundleError(name + ": expected a file" + kFix);
  std::error_code error;
  const uintmax_t size = fs::file_size(path, error);
  if (error) throw BundleError(name + ": cannot be read (" + error.message() + ")");
  if (size != static_cast<uintmax_t>(expected.bytes)) {
    throw BundleError(name + ": expected " + std::to_string(expected.bytes) + " bytes, found " +
                      std::to_string(size) + kFix);
  }
  if (!contents) return;
  const std::string digest = sha256_of(path);
  if (digest.empty()) throw BundleError(name + ": cannot be read");
  if (digest != expected.sha256) {
    throw BundleError(name + ": its SHA-256 is not the manifest's, so it was changed or damaged" +
                      kFix);
  }
}

std::string content_of_manifest(const fs::path& folder) {
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
  std::string text(kMaxManifest + 1, '\0');
  std::ifstream file(path, std::ios::binary);
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  if (!file.eof() && text.size() <= kMaxManifest) {
    throw BundleError(std::string(kManifest) + " cannot be read");
  }
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

std::string read_manifest(const fs::path& folder) {
  try {
    return content_of_manifest(folder);
  } catch (const BundleError& error) {
    throw BundleError(folder.string() + ": " + error.what());
  }
}

Bundle Bundle::parse(std::string_view manifest) {
  if (manifest.size() > kMaxManifest) {
    throw BundleError(std::string(kManifest) + " must hold at most " +
                      std::to_string(kMaxManifest) + " bytes" + kFix);
  }
  json::Value document;
  try {
    document = json::parse(manifest);
  } catch (const json::Error& error) {
    throw BundleError(std::string(kManifest) + " is not valid JSON: " + error.what() + kFix);
  }
  Bundle bundle;
  try {
    read_document(Node(document, kManifest), bundle);
  } catch (const json::Error& error) {
    throw BundleError(error.what());
  }
  check_functions(bundle);
  return bundle;
}

Bundle Bundle::open(const fs::path& folder) {
  const std::string manifest = read_manifest(folder);
  Bundle bundle;
  try {
    bundle = parse(manifest);
  } catch (const BundleError& error) {
    throw BundleError(folder.string() + ": " + error.what());
  }
  bundle.path = folder;
  bundle.check_files(true);
  return bundle;
}

void Bundle::check_files(bool contents) const {
  for (const auto& [name, record] : files) check_file(path / name, record, contents);
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
