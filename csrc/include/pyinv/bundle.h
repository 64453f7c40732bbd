// A bundle: a folder with an exported generator's functions, weights and manifest.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "pyinv/api.h"
#include "pyinv/recipe.h"

namespace pyinv {

// The bundle is missing, invalid or incomplete, or does not have what was requested.
class PYINV_API BundleError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The most components of a latent for which a bundle has a preconditioner.
inline constexpr int64_t kMaxPreconditioned = 1024;

enum class BatchNorm : int32_t { eval, batch };

// The distinct operators in an ONNX file. Names of operators outside ONNX's own domain start with
// their domain: "com.microsoft:Gelu".
struct OnnxOperators {
  std::vector<std::string> all;
  std::vector<std::string> reading_inputs;  // those that read an input of the graph
};

struct BundleFunction {
  std::string name;     // "forward", "objective", "normal_equations", "encode" or "observe"
  std::string loss;     // for objectives and normal equations, else empty
  std::string runtime;  // "onnx" or "torchscript"
  std::string file;     // file name in the bundle's folder
  std::string method;   // method of a TorchScript module, else empty
  // For normal equations, else 0: the most memory that each further target in a batch takes.
  int64_t bytes_per_target = 0;
  OnnxOperators operators;  // for objectives and normal equations in ONNX files
};

// What the generator takes beside the latent. Its columns follow one another in a target's
// `condition`.
struct PYINV_API BundleCondition {
  std::string name;
  std::string kind;            // "label", "one_hot" or "condition" (floats)
  int64_t classes = 0;         // of the first two: labels are whole numbers from 0 to below it
  std::vector<int64_t> shape;  // of floats; empty: one number

  int64_t columns() const;  // 1 for a label, one-hot or not
};

// A file of a bundle, as the manifest records it.
struct FileRecord {
  int64_t bytes = 0;
  std::string sha256;  // 64 hexadecimal digits in lower case
};

// The content of a bundle's manifest.json. Throws BundleError.
PYINV_API std::string read_manifest(const std::filesystem::path& folder);

struct PYINV_API Bundle {
  std::filesystem::path path;
  std::string name;
  std::vector<int64_t> latent_shape;  // one target's, without the batch axis
  std::vector<int64_t> image_shape;   // what the generator makes: C, H, W, or of any rank
  std::vector<int64_t> target_shape;  // one target's; not image_shape if it is an observation
  std::vector<BundleCondition> conditions;
  bool weights = false;                 // whether objectives take Targets::weights
  double lowest = -1.0, highest = 1.0;  // values of an image
  bool bounded = true;                  // whether the generator's own outputs lie between them
  Prior prior;
  std::string preconditioner_file;         // [d, d] float32; empty: none
  BatchNorm batch_norm = BatchNorm::eval;  // batch: RunOptions::coupled must be true
  std::vector<BundleFunction> functions;
  std::map<std::string, FileRecord> files;  // by name, which has no folder

  // Reads the manifest and checks every file. Throws BundleError.
  static Bundle open(const std::filesystem::path& folder);

  // Reads the content of a manifest; `path` stays empty. Throws BundleError. Python's Manifest is
  // checked by this too, so that both languages accept the same.
  static Bundle parse(std::string_view manifest);

  // Throws BundleError unless every file exists and has its recorded size and, with `contents`, its
  // recorded SHA-256. That takes 0.7 seconds per GB on x86 processors with instructions for it, and
  // up to 4 on others.
  void check_files(bool contents) const;

  int64_t latent_size() const;
  int64_t image_size() const;
  int64_t target_size() const;
  // Whether targets are observations of images, which may have any values, rather than images.
  bool observes() const;
  int64_t condition_size() const;  // the sum of the conditions' columns; 0: takes none

  // Throws std::invalid_argument if a number in `condition`, [count, condition_size()], is not
  // finite, or a label not in range. The engine and the runtimes take them as they are.
  void check_conditions(const float* condition, int64_t count) const;

  // The matrix [d, d] for RunOptions::preconditioner; empty if the bundle has none. Throws
  // BundleError.
  std::vector<float> preconditioner() const;

  std::vector<std::string> runtimes() const;  // distinct, in the manifest's order
  std::vector<std::string> losses() const;    // likewise

  // An empty `runtime` means the bundle's first. Throw BundleError with a list of what exists.
  const BundleFunction& forward(std::string_view runtime = {}) const;
  const BundleFunction& objective(std::string_view loss, std::string_view runtime = {}) const;
  const BundleFunction& normal_equations(std::string_view loss,
                                         std::string_view runtime = {}) const;
  bool has_normal_equations(std::string_view loss, std::string_view runtime = {}) const;
  bool has_encoder() const;
  const BundleFunction& encode(std::string_view runtime = {}) const;

  std::filesystem::path file(const BundleFunction& function) const { return path / function.file; }
};

}  // namespace pyinv
