// The process's ONNX Runtime library: loaded once at run time, and never unloaded.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "onnxruntime/c_api.h"
#include "pyinv/api.h"

namespace pyinv::ort {

// Opens the library at `path` and returns its version. Opening the same file again does nothing.
// Another file is refused, because the handles of sessions do not identify their runtime.
// Throws std::runtime_error: no such file, not an ONNX Runtime, older than kMinimumVersion.
std::string load_library(const std::filesystem::path& path);

// The API table of the loaded library. Throws std::runtime_error before load_library. Exported for
// the Python module, which owns tensors of ONNX Runtime.
PYINV_API const OrtApi* api();

// The process's ONNX Runtime environment, which logs at severity error.
const OrtEnv* environment();

// Whether the loaded library was built with the execution provider of this name.
bool has_provider(std::string_view name);

// Turns a failed call into a one-line std::runtime_error with `subject` (a file) and ONNX Runtime's
// message, or into OutOfMemory if the message says so.
void check(OrtStatus* status, std::string_view subject);

// Owns an object of ONNX Runtime, which is released through the slot `release`.
template <const auto& release>
struct Release {
  template <class Object>
  void operator()(Object* object) const {
    release(api(), object);
  }
};
template <class Object, const auto& release>
using Handle = std::unique_ptr<Object, Release<release>>;

using Session = Handle<OrtSession, ReleaseSession>;
using SessionOptions = Handle<OrtSessionOptions, ReleaseSessionOptions>;
using Value = Handle<OrtValue, ReleaseValue>;
using RunOptions = Handle<OrtRunOptions, ReleaseRunOptions>;
using CudaOptions = Handle<OrtCUDAProviderOptionsV2, ReleaseCUDAProviderOptions>;
using IoBinding = Handle<OrtIoBinding, ReleaseIoBinding>;
using MemoryInfo = Handle<OrtMemoryInfo, ReleaseMemoryInfo>;
using TypeInfo = Handle<OrtTypeInfo, ReleaseTypeInfo>;
using TensorTypeAndShapeInfo = Handle<OrtTensorTypeAndShapeInfo, ReleaseTensorTypeAndShapeInfo>;

}  // namespace pyinv::ort
