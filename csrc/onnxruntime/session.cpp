#include "onnxruntime/session.h"

#include <algorithm>
#include <stdexcept>
#include <thread>
#include <utility>

#include "backend.h"
#include "ops/custom_ops.h"
#include "printable.h"

namespace pyinv::ort {
namespace {

namespace fs = std::filesystem;

struct ElementType {
  const char* name;
  size_t bytes;
};

ElementType element_type(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return {"float32", 4};
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE:
      return {"float64", 8};
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return {"float16", 2};
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8:
      return {"int8", 1};
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16:
      return {"int16", 2};
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
      return {"int32", 4};
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
      return {"int64", 8};
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
      return {"uint8", 1};
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16:
      return {"uint16", 2};
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32:
      return {"uint32", 4};
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64:
      return {"uint64", 8};
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL:
      return {"bool", 1};
    default:
      return {"unknown", 0};
  }
}

size_t element_count(const std::vector<int64_t>& shape) {
  size_t count = 1;
  for (int64_t dimension : shape) count *= static_cast<size_t>(dimension);
  return count;
}

void read_tensor_info(const OrtTensorTypeAndShapeInfo* info, std::string_view subject,
                      ONNXTensorElementDataType& type, std::vector<int64_t>& shape) {
  size_t rank = 0;
  check(GetTensorElementType(api(), info, &type), subject);
  check(GetDimensionsCount(api(), info, &rank), subject);
  shape.resize(rank);
  check(GetDimensions(api(), info, shape.data(), rank), subject);
}

template <class Count, class Name, class Type>
std::vector<TensorInfo> read_signature(OrtSession* session, std::string_view subject,
                                       const Count& count_slot, const Name& name_slot,
                                       const Type& type_slot) {
  OrtAllocator* allocator = nullptr;
  check(GetAllocatorWithDefaultOptions(api(), &allocator), subject);
  size_t count = 0;
  check(count_slot(api(), session, &count), subject);

  std::vector<TensorInfo> signature(count);
  for (size_t i = 0; i < count; ++i) {
    char* name = nullptr;
    check(name_slot(api(), session, i, allocator, &name), subject);
    signature[i].name = name;
    check(AllocatorFree(api(), allocator, name), subject);
    if (!is_printable(signature[i].name)) {
      throw std::runtime_error(std::string(subject) +
                               ": the name of an input or output must be printable, is \"" +
                               printable(signature[i].name) + "\"");
    }

    OrtTypeInfo* type = nullptr;
    check(type_slot(api(), session, i, &type), subject);
    const TypeInfo owner(type);
    const OrtTensorTypeAndShapeInfo* tensor = nullptr;
    check(CastTypeInfoToTensorInfo(api(), type, &tensor), subject);
    // Null for a sequence or a map, whose type stays undefined.
    if (tensor) read_tensor_info(tensor, subject, signature[i].type, signature[i].shape);
  }
  return signature;
}

// Makes the session run on the device's GPU, in its stream.
//
// The custom operators of csrc/ops are for the CPU. A model also defines each as a function of
// standard operators, which ONNX Runtime inlines if the domain is not registered.
void add_cuda(OrtSessionOptions* options, const RuntimeOptions& runtime, std::string_view subject) {
  const std::string fix =
      "; 'pip install \"onnxruntime-gpu[cuda,cudnn]\"' has what it needs, or use the CPU";
  if (!has_provider("CUDAExecutionProvider")) {
    throw DeviceError(
        "this ONNX Runtime was built without CUDA; 'pip uninstall -y onnxruntime && pip install "
        "onnxruntime-gpu', or use the CPU");
  }
  try {
    OrtCUDAProviderOptionsV2* cuda = nullptr;
    check(CreateCUDAProviderOptions(api(), &cuda), subject);
    const CudaOptions owner(cuda);

    const std::string device = std::to_string(runtime.device->index());
    const std::pair<const char*, const char*> settings[] = {
        {"device_id", device.c_str()},
        {"use_tf32", runtime.tf32 ? "1" : "0"},
        // The effort of the search for a convolution's algorithm, once per new shape, in the
        // warm-up. If ONNX Runtime has cuDNN's frontend, this chooses among its heuristics; older
        // versions time the algorithms.
        {"cudnn_conv_algo_search", "EXHAUSTIVE"},
        {"cudnn_conv_use_max_workspace", "1"},
        // The memory use is the same in each step; doubling the arena would waste up to half of it.
        {"arena_extend_strategy", "kSameAsRequested"},
        {"do_copy_in_default_stream", "1"},
    };
    std::vector<const char*> keys, values;
    for (const auto& [key, value] : settings) {
      keys.push_back(key);
      values.push_back(value);
    }
    check(UpdateCUDAProviderOptions(api(), cuda, keys.data(), values.data(), keys.size()), subject);
    // This sets has_user_compute_stream too.
    check(UpdateCUDAProviderOptionsWithValue(api(), cuda, "user_compute_stream",
                                             runtime.device->stream()),
          subject);
    check(SessionOptionsAppendExecutionProvider_CUDA_V2(api(), options, cuda), subject);
  } catch (const OutOfMemory&) {
    throw;
  } catch (const std::runtime_error& error) {
    // The provider is a separate library, which needs the libraries of CUDA and cuDNN.
    throw DeviceError(error.what() + fix);
  }
}

SessionOptions make_session_options(const RuntimeOptions& runtime, std::string_view subject) {
  OrtSessionOptions* options = nullptr;
  check(CreateSessionOptions(api(), &options), subject);
  SessionOptions owner(options);
  check(SetSessionLogSeverityLevel(api(), options, ORT_LOGGING_LEVEL_ERROR), subject);
  check(SetSessionGraphOptimizationLevel(api(), options, ORT_ENABLE_ALL), subject);
  // Operators run one at a time, each on all threads.
  check(SetSessionExecutionMode(api(), options, ORT_SEQUENTIAL), subject);
  check(SetInterOpNumThreads(api(), options, 1), subject);
  if (runtime.device->kind() == DeviceKind::cuda) {
    // The host only computes shapes, and capture must not involve other threads.
    check(SetIntraOpNumThreads(api(), options, 1), subject);
    add_cuda(options, runtime, subject);
    return owner;
  }
  check(SetIntraOpNumThreads(api(), options, runtime.threads), subject);
  // Threads spin between the operators of a run, but not between runs. On two idle cores a step of
  // 16 images took 0.82 times as long as without spinning. On cores that other programs keep busy
  // it takes up to 2.3 times as long; use fewer threads there. Threads beyond the CPUs would take
  // them from those that have work: a step on 512 threads took 0.7 s.
  const bool spin = static_cast<unsigned>(runtime.threads) <= std::thread::hardware_concurrency();
  check(AddSessionConfigEntry(api(), options, "session.intra_op.allow_spinning", spin ? "1" : "0"),
        subject);
  check(AddSessionConfigEntry(api(), options, "session.force_spinning_stop", "1"), subject);
  register_custom_ops(api(), options);
  return owner;
}

Session make_session(const fs::path& file, const RuntimeOptions& runtime, const Files& files) {
  const std::string subject = file.string();
  if (runtime.threads < 1) {
    throw std::invalid_argument(subject + ": threads should be at least 1, is " +
                                std::to_string(runtime.threads));
  }
  if (!fs::is_regular_file(file)) throw std::runtime_error(subject + ": no such file");
  const SessionOptions options = make_session_options(runtime, subject);
  ModelFiles model;
  try {
    model = read_model(file, files);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(subject + ": " + error.what());
  }
  // For tensors that are not initializers of the graph itself, which memory does not serve.
  check(AddSessionConfigEntry(api(), options.get(),
                              "session.model_external_initializers_file_folder_path",
                              file.parent_path().string().c_str()),
        subject);
  for (auto& [name, content] : model.weights) {
    const fs::path path = name;
    const OrtPathChar* names[] = {path.c_str()};
    char* const contents[] = {content.data()};
    const size_t bytes[] = {content.size()};
    check(AddExternalInitializersFromFilesInMemory(api(), options.get(), names, contents, bytes, 1),
          subject);
  }
  const auto exclusive = runtime.device->exclusive();
  // Creating a session waits for the whole GPU, which CUDA forbids during any stream's capture.
  std::unique_lock recording(capture_mutex, std::defer_lock);
  if (runtime.device->kind() == DeviceKind::cuda) recording.lock();
  OrtSession* session = nullptr;
  check(model.mapped ? CreateSession(api(), environment(), file.c_str(), options.get(), &session)
                     : CreateSessionFromArray(api(), environment(), model.graph.data(),
                                              model.graph.size(), options.get(), &session),
        subject);
  return Session(session);
}

bool fits(const TensorView& tensor, const TensorInfo& info) {
  if (tensor.type != info.type) return false;
  // No dimensions means a scalar or an undeclared rank. ONNX Runtime checks which.
  return info.shape.empty() ||
         std::equal(tensor.shape.begin(), tensor.shape.end(), info.shape.begin(), info.shape.end(),
                    [](int64_t is, int64_t declared) { return declared < 0 || is == declared; });
}

}  // namespace

const char* type_name(ONNXTensorElementDataType type) { return element_type(type).name; }

size_t element_size(ONNXTensorElementDataType type) { return element_type(type).bytes; }

std::string describe(ONNXTensorElementDataType type, const std::vector<int64_t>& shape) {
  std::string text = std::string(type_name(type)) + " [";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i ? ", " : "") + (shape[i] < 0 ? std::string("any") : std::to_string(shape[i]));
  }
  return text + "]";
}

Value borrow_tensor(const TensorView& tensor, const Device& device, std::string_view subject) {
  OrtMemoryInfo* memory = nullptr;
  const char* name = device.kind() == DeviceKind::cuda ? "Cuda" : "Cpu";
  check(
      CreateMemoryInfo(api(), name, OrtDeviceAllocator, device.index(), OrtMemTypeDefault, &memory),
      subject);
  const MemoryInfo owner(memory);
  OrtValue* value = nullptr;
  check(CreateTensorWithDataAsOrtValue(
            api(), memory, tensor.data, element_count(tensor.shape) * element_size(tensor.type),
            tensor.shape.data(), tensor.shape.size(), tensor.type, &value),
        subject);
  return Value(value);
}

RunOptions make_run_options(std::string_view subject) {
  OrtRunOptions* options = nullptr;
  check(CreateRunOptions(api(), &options), subject);
  RunOptions owner(options);
  // A run that fails would be logged, also one that was terminated. The error is thrown anyway.
  check(RunOptionsSetRunLogSeverityLevel(api(), options, ORT_LOGGING_LEVEL_FATAL), subject);
  return owner;
}

void terminate(OrtRunOptions* options) noexcept {
  // It only sets a flag, and reports no errors.
  if (OrtStatus* status = RunOptionsSetTerminate(api(), options)) ReleaseStatus(api(), status);
}

Model::Model(const fs::path& file, const RuntimeOptions& options, const Files& files)
    : file_(file.string()),
      device_(options.device),
      session_(make_session(file, options, files)),
      inputs_(read_signature(session_.get(), file_, SessionGetInputCount, SessionGetInputName,
                             SessionGetInputTypeInfo)),
      outputs_(read_signature(session_.get(), file_, SessionGetOutputCount, SessionGetOutputName,
                              SessionGetOutputTypeInfo)) {}

Function::Function(const fs::path& file, const RuntimeOptions& options, const Files& files)
    : model_(file, options, files) {
  for (const auto* signature : {&model_.inputs(), &model_.outputs()}) {
    for (const TensorInfo& info : *signature) {
      if (element_size(info.type)) continue;
      throw std::runtime_error(
          model_.file() + ": '" + info.name +
          "' is not a tensor of numbers; only those can be passed and returned");
    }
  }
}

std::map<std::string, Function::Output> Function::run(
    const std::map<std::string, TensorView>& inputs, Cancellation* cancellation) const {
  const std::string& file = model_.file();
  std::vector<const char*> input_names, output_names;
  std::vector<Value> owners;
  std::vector<const OrtValue*> values;

  for (const TensorInfo& info : model_.inputs()) {
    const auto given = inputs.find(info.name);
    if (given == inputs.end()) {
      throw std::invalid_argument(file + ": input '" + info.name + "' is missing, expected " +
                                  describe(info.type, info.shape));
    }
    const TensorView& tensor = given->second;
    if (!fits(tensor, info)) {
      throw std::invalid_argument(file + ": input '" + info.name + "' should be " +
                                  describe(info.type, info.shape) + ", is " +
                                  describe(tensor.type, tensor.shape));
    }
    input_names.push_back(info.name.c_str());
    owners.push_back(borrow_tensor(tensor, *cpu_device(), file));
    values.push_back(owners.back().get());
  }
  for (const auto& [name, tensor] : inputs) {
    const auto is_this = [&name = name](const TensorInfo& info) { return info.name == name; };
    if (std::none_of(model_.inputs().begin(), model_.inputs().end(), is_this)) {
      std::string known;
      for (const TensorInfo& info : model_.inputs())
        known += (known.empty() ? "" : ", ") + info.name;
      throw std::invalid_argument(file + ": there is no input '" + name + "', only " + known);
    }
  }
  for (const TensorInfo& info : model_.outputs()) output_names.push_back(info.name.c_str());

  std::vector<OrtValue*> results(output_names.size(), nullptr);
  const auto exclusive = model_.device()->exclusive();
  const RunOptions options = make_run_options(file);
  const Cancellation::Watch watch(cancellation, [&options] { terminate(options.get()); });
  check(Run(api(), model_.session(), options.get(), input_names.data(), values.data(),
            values.size(), output_names.data(), output_names.size(), results.data()),
        file);

  std::map<std::string, Output> outputs;
  std::vector<Value> taken(results.begin(), results.end());
  for (size_t i = 0; i < taken.size(); ++i) {
    TensorView tensor;
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(GetTensorTypeAndShape(api(), results[i], &info), file);
    const TensorTypeAndShapeInfo owner(info);
    read_tensor_info(info, file, tensor.type, tensor.shape);
    check(GetTensorMutableData(api(), results[i], &tensor.data), file);
    outputs.emplace(output_names[i], Output{std::move(tensor), std::move(taken[i])});
  }
  return outputs;
}

}  // namespace pyinv::ort
