// Inverts images as they arrive on standard input, and prints each result as soon as it is found.
// README.md explains how to build it.
#include <pyinv/bundle.h>
#include <pyinv/onnxruntime.h>
#include <pyinv/rules.h>
#include <pyinv/stream.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr const char* kUsage =
    "usage: embed-stream BUNDLE < IMAGES.f32\n"
    "  BUNDLE      the folder that pyinv.export wrote, for ONNX, without conditions and weights\n"
    "  IMAGES.f32  float32 [N, *image_shape] in the bundle's value range, of any length\n"
    "$PYINV_ONNXRUNTIME is ONNX Runtime's shared library.\n";

constexpr std::chrono::milliseconds kWait{50};

// Reads images from standard input and passes them to the stream, until either ends. Returns the
// number of bytes after the last whole image.
size_t feed(pyinv::Stream& stream, int64_t image_size, const std::atomic<bool>& failed) {
  std::vector<float> image(static_cast<size_t>(image_size));
  const size_t bytes = image.size() * sizeof(float);
  size_t read = 0;
  uint64_t id = 0;
  while (!failed && (read = std::fread(image.data(), 1, bytes, stdin)) == bytes) {
    pyinv::Targets target;
    target.count = 1;
    target.image = image.data();
    target.id = &id;
    while (!failed && stream.put(target, kWait) == 0) {
    }
    ++id;
  }
  stream.end();
  return failed ? 0 : read;
}

void print(const pyinv::StreamResult& result) {
  std::printf("%lld loss=%.9g latent=", static_cast<long long>(result.number), result.loss);
  for (size_t i = 0; i < result.latent.size(); ++i) {
    std::printf(i ? ",%.9g" : "%.9g", result.latent[i]);
  }
  std::printf("\n");
  std::fflush(stdout);
}

void invert(const char* folder) {
  const char* library = std::getenv("PYINV_ONNXRUNTIME");
  if (!library) throw std::runtime_error("set PYINV_ONNXRUNTIME to ONNX Runtime's library");
  pyinv::load_onnxruntime(library);
  const pyinv::Bundle bundle = pyinv::Bundle::open(folder);
  if (bundle.condition_size() || bundle.weights) {
    throw std::runtime_error(std::string(folder) + ": takes conditions or weights");
  }
  const pyinv::BundleFunction& function = bundle.objective("mse", "onnx");
  const int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  const auto objective = pyinv::onnx_objective(bundle, function, {.threads = threads});
  const std::vector<float> preconditioner = bundle.preconditioner();
  pyinv::StreamOptions options;
  options.preconditioner = preconditioner.empty() ? nullptr : preconditioner.data();
  pyinv::Stream stream({objective.get()}, bundle.prior, pyinv::default_recipe(bundle), options);

  std::atomic<bool> failed = false;
  size_t left_over = 0;
  std::thread feeder([&] { left_over = feed(stream, bundle.target_size(), failed); });
  std::exception_ptr failure;
  try {
    while (const auto results = stream.take(kWait)) {
      for (const pyinv::StreamResult& result : *results) print(result);
    }
  } catch (...) {
    failure = std::current_exception();
    failed = true;
  }
  feeder.join();
  if (failure) std::rethrow_exception(failure);
  if (left_over > 0) {
    throw std::runtime_error("the input ends within an image: " + std::to_string(left_over) +
                             " bytes of " + std::to_string(bundle.target_size() * sizeof(float)));
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << kUsage;
    return 2;
  }
  try {
    invert(argv[1]);
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "embed-stream: " << error.what() << "\n";
    return 1;
  }
}
