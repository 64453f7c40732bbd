#include "onnxruntime/library.h"

#include <algorithm>
#include <mutex>
#include <stdexcept>
#include <system_error>

#include "printable.h"
#include "pyinv/device.h"

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace pyinv::ort {
namespace {

namespace fs = std::filesystem;

#ifdef _WIN32
void* open_shared_library(const fs::path& path, std::string& error) {
  // The altered search path finds the providers' DLLs beside this one, and not the onnxruntime.dll
  // that comes with Windows.
  HMODULE handle = LoadLibraryExW(path.c_str(), nullptr, LOAD_WITH_ALTERED_SEARCH_PATH);
  if (!handle) error = std::system_category().message(static_cast<int>(GetLastError()));
  return handle;
}

void* find_symbol(void* library, const char* name) {
  return reinterpret_cast<void*>(GetProcAddress(static_cast<HMODULE>(library), name));
}

void close_shared_library(void* library) { FreeLibrary(static_cast<HMODULE>(library)); }
#else
void* open_shared_library(const fs::path& path, std::string& error) {
  // Local: the symbols must not clash with those of an onnxruntime or a torch in the same process.
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) error = dlerror();
  return handle;
}

void* find_symbol(void* library, const char* name) { return dlsym(library, name); }

void close_shared_library(void* library) { dlclose(library); }
#endif

struct Library {
  fs::path path;
  std::string version;
  const OrtApi* api = nullptr;
  // The environment and the library are never released: Python may destroy objects that hold
  // sessions late, and ONNX Runtime's threads and statics do not survive unmapping.
  OrtEnv* environment = nullptr;
};

Library loaded;
std::mutex loading;

[[noreturn]] void fail(const fs::path& path, const std::string& problem) {
  throw std::runtime_error(path.string() + ": " + problem);
}

std::string one_line(const std::string& text) {
  std::string line;
  for (char character : text) {
    const bool space = character == '\n' || character == '\r' || character == '\t';
    if (space && (line.empty() || line.back() == ' ')) continue;
    line += space ? ' ' : character;
  }
  while (!line.empty() && line.back() == ' ') line.pop_back();
  return line;
}

// Whether a message reports that memory ran out. ONNX Runtime has no error code for this: its arena
// and allocators, CUDA, cuDNN and cuBLAS each have their own messages.
bool is_out_of_memory(const std::string& message) {
  constexpr std::string_view signs[] = {"Failed to allocate memory for requested buffer",
                                        "Available memory of",
                                        "out of memory",
                                        "std::bad_alloc",
                                        "CUDA failure 2:",
                                        "CUBLAS_STATUS_ALLOC_FAILED",
                                        "CUDNN_STATUS_ALLOC_FAILED"};
  return std::any_of(std::begin(signs), std::end(signs), [&message](std::string_view sign) {
    return message.find(sign) != std::string::npos;
  });
}

void check(const OrtApi* table, OrtStatus* status, std::string_view subject) {
  if (!status) return;
  const std::string reason = printable(one_line(GetErrorMessage(table, status)), 4000);
  ReleaseStatus(table, status);
  const std::string message = std::string(subject) + ": ONNX Runtime: " + reason;
  if (is_out_of_memory(reason)) throw OutOfMemory(message + "; fewer lanes need less");
  throw std::runtime_error(message);
}

Library open(const fs::path& path) {
  const std::string fix =
      "install one with 'pip install onnxruntime', or set PYINV_ONNXRUNTIME to its shared library";
  if (!fs::is_regular_file(path)) fail(path, "no such file; " + fix);

  std::string error;
  void* handle = open_shared_library(path, error);
  if (!handle) fail(path, "cannot be loaded as a shared library (" + one_line(error) + "); " + fix);

  try {
    const auto get_base = reinterpret_cast<OrtGetApiBase>(find_symbol(handle, "OrtGetApiBase"));
    if (!get_base) fail(path, "not an ONNX Runtime: it has no OrtGetApiBase; " + fix);
    const OrtApiBase* base = get_base();

    Library library;
    library.path = path;
    library.version = base->GetVersionString();
    library.api = base->GetApi(kApiVersion);
    if (!library.api) {
      fail(path, "this is ONNX Runtime " + library.version + ", but " + kMinimumVersion +
                     " or newer is required; 'pip install --upgrade onnxruntime'");
    }
    check(library.api,
          CreateEnv(library.api, ORT_LOGGING_LEVEL_ERROR, "pyinv", &library.environment),
          path.string());
    check(library.api, DisableTelemetryEvents(library.api, library.environment), path.string());
    return library;
  } catch (...) {
    close_shared_library(handle);
    throw;
  }
}

}  // namespace

std::string load_library(const fs::path& path) {
  const std::scoped_lock lock(loading);
  const fs::path resolved = fs::weakly_canonical(path);
  if (!loaded.api) {
    loaded = open(resolved);
  } else if (loaded.path != resolved) {
    fail(resolved, "this process already uses the ONNX Runtime at " + loaded.path.string() +
                       "; start a new process to use another");
  }
  return loaded.version;
}

const OrtApi* api() {
  if (!loaded.api) {
    throw std::runtime_error(
        "no ONNX Runtime is loaded yet; call pyinv.runtimes.load_onnxruntime() in Python or "
        "pyinv::load_onnxruntime(path) in C++ first");
  }
  return loaded.api;
}

const OrtEnv* environment() {
  api();
  return loaded.environment;
}

bool has_provider(std::string_view name) {
  char** names = nullptr;
  int count = 0;
  check(GetAvailableProviders(api(), &names, &count), "the execution providers");
  const bool found = std::find(names, names + count, name) != names + count;
  check(ReleaseAvailableProviders(api(), names, count), "the execution providers");
  return found;
}

void check(OrtStatus* status, std::string_view subject) { check(api(), status, subject); }

}  // namespace pyinv::ort
