// The ONNX Runtime library of this process: opened at run time, once, and kept until the process
// ends.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "onnxruntime/c_api.h"
#include "pyinv/api.h"

namespace pyinv::ort {

// Opens the library at `path` and returns its version. Opening the same file again is free; a
// second file is refused, for sessions of two runtimes cannot be told apart by their handles.
// Throws std::runtime_error: no such file, not an ONNX Runtime, older than kMinimumVersion.
std::string load_library(const std::filesystem::path& path);

// The table of the loaded library. Throws std::runtime_error before load_library. Exported for the
// Python module, which holds ONNX Runtime's tensors.
PYINV_API const OrtApi* api();

// The one environment of the process: ONNX Runtime's logging, at severity error.
const OrtEnv* environment();

// Whether the loaded library was built with the execution provider of this name.
bool has_provider(std::string_view name);

// Turns a failed call into a std::runtime_error that names `subject` (a file) and gives ONNX
// Runtime's own message, in one line; OutOfMemory where the message says so.
void check(OrtStatus* status, std::string_view subject);

// Owns an object of ONNX Runtime, to be given back through the slot `release`.
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
