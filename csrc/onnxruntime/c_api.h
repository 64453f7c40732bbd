// The part of ONNX Runtime's C API that pyinv calls, declared here.
//
// The onnxruntime wheel contains a shared library but no headers, and linking to that library would
// pin one release. Its only stable entry point is OrtGetApiBase; OrtApiBase::GetApi(version) then
// returns a table of function pointers. ONNX Runtime guarantees that the table is append-only (its
// build asserts the offsets of every past version), so a function's slot number never changes.
// Requesting kApiVersion guarantees every slot of that version; newer libraries still provide it,
// older ones refuse.
//
// Names are those of ONNX Runtime, so that its documentation can be searched. They are in
// pyinv::ort, to avoid a second definition in a program that also includes ONNX Runtime's headers.
// Slot numbers were counted in onnxruntime_c_api.h of API version 29 and, independently, in the
// Rust bindings `ort-sys`; tests/runtimes/test_onnxruntime.py checks what they do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>

#ifdef _WIN32
#define PYINV_ORT_CALL __stdcall
#else
#define PYINV_ORT_CALL
#endif

namespace pyinv::ort {

// AddExternalInitializersFromFilesInMemory, introduced in ONNX Runtime 1.18, is the newest slot
// below.
inline constexpr std::uint32_t kApiVersion = 18;
inline constexpr const char* kMinimumVersion = "1.18";
// Of OrtCustomOp, whose later members are not declared here.
inline constexpr std::uint32_t kCustomOpVersion = 17;

struct OrtApi;
struct OrtCUDAProviderOptionsV2;
struct OrtCustomOpDomain;
struct OrtEnv;
struct OrtIoBinding;
struct OrtKernelContext;
struct OrtKernelInfo;
struct OrtMemoryInfo;
struct OrtRunOptions;
struct OrtSession;
struct OrtSessionOptions;
struct OrtShapeInferContext;
struct OrtStatus;  // null means success
struct OrtTensorTypeAndShapeInfo;
struct OrtAllocator;
struct OrtTypeInfo;
struct OrtValue;

struct OrtApiBase {
  const OrtApi*(PYINV_ORT_CALL* GetApi)(std::uint32_t version);  // null: the library is older
  const char*(PYINV_ORT_CALL* GetVersionString)();
};
using OrtGetApiBase = const OrtApiBase*(PYINV_ORT_CALL*)();

using OrtPathChar = std::filesystem::path::value_type;  // wchar_t on Windows, char elsewhere

enum OrtErrorCode : int { ORT_RUNTIME_EXCEPTION = 6 };
enum OrtLoggingLevel : int { ORT_LOGGING_LEVEL_ERROR = 3, ORT_LOGGING_LEVEL_FATAL = 4 };
enum GraphOptimizationLevel : int { ORT_ENABLE_ALL = 99 };
enum ExecutionMode : int { ORT_SEQUENTIAL = 0 };
enum OrtAllocatorType : int { OrtDeviceAllocator = 0 };
enum OrtMemType : int { OrtMemTypeDefault = 0 };
enum ONNXTensorElementDataType : int {
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED = 0,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 = 2,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 = 3,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16 = 4,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16 = 5,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 = 6,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 = 7,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL = 9,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 = 10,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE = 11,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32 = 12,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64 = 13,
};
enum OrtCustomOpInputOutputCharacteristic : int {
  INPUT_OUTPUT_REQUIRED = 0,
  INPUT_OUTPUT_OPTIONAL = 1,
};

// A custom operator in the form that ONNX Runtime calls. Set `version` to kCustomOpVersion: the
// library reads only members of this version (which ends at GetEndVersion) and passes the callbacks
// an OrtApi of this version. These callbacks may be null: CreateKernel and KernelCompute if the V2
// versions, which can report errors, are set; InferOutputShapeFn; and the variadic callbacks if the
// operator is not variadic.
struct OrtCustomOp {
  std::uint32_t version;
  void*(PYINV_ORT_CALL* CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char*(PYINV_ORT_CALL* GetName)(const OrtCustomOp*);
  const char*(PYINV_ORT_CALL* GetExecutionProviderType)(const OrtCustomOp*);  // null: CPU
  ONNXTensorElementDataType(PYINV_ORT_CALL* GetInputType)(const OrtCustomOp*, std::size_t index);
  std::size_t(PYINV_ORT_CALL* GetInputTypeCount)(const OrtCustomOp*);
  ONNXTensorElementDataType(PYINV_ORT_CALL* GetOutputType)(const OrtCustomOp*, std::size_t index);
  std::size_t(PYINV_ORT_CALL* GetOutputTypeCount)(const OrtCustomOp*);
  void(PYINV_ORT_CALL* KernelCompute)(void* kernel, OrtKernelContext*);
  void(PYINV_ORT_CALL* KernelDestroy)(void* kernel);
  OrtCustomOpInputOutputCharacteristic(PYINV_ORT_CALL* GetInputCharacteristic)(const OrtCustomOp*,
                                                                               std::size_t index);
  OrtCustomOpInputOutputCharacteristic(PYINV_ORT_CALL* GetOutputCharacteristic)(const OrtCustomOp*,
                                                                                std::size_t index);
  OrtMemType(PYINV_ORT_CALL* GetInputMemoryType)(const OrtCustomOp*, std::size_t index);
  int(PYINV_ORT_CALL* GetVariadicInputMinArity)(const OrtCustomOp*);
  int(PYINV_ORT_CALL* GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int(PYINV_ORT_CALL* GetVariadicOutputMinArity)(const OrtCustomOp*);
  int(PYINV_ORT_CALL* GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus*(PYINV_ORT_CALL* CreateKernelV2)(const OrtCustomOp*, const OrtApi*,
                                             const OrtKernelInfo*, void** kernel);
  OrtStatus*(PYINV_ORT_CALL* KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus*(PYINV_ORT_CALL* InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int(PYINV_ORT_CALL* GetStartVersion)(const OrtCustomOp*);
  int(PYINV_ORT_CALL* GetEndVersion)(const OrtCustomOp*);
};

// An entry of the table: its number and its type. Calling it calls the function in that slot of the
// table passed as the first argument: `CreateEnv(api, level, name, &env)`.
template <std::size_t number, class Function>
struct Slot;

template <std::size_t number, class Result, class... Arguments>
struct Slot<number, Result(Arguments...)> {
  using Pointer = Result(PYINV_ORT_CALL*)(Arguments...);

  [[nodiscard]] Result operator()(const OrtApi* api, Arguments... arguments) const {
    return reinterpret_cast<const Pointer*>(api)[number](arguments...);
  }
};

template <std::size_t number, class... Arguments>
struct Slot<number, void(Arguments...)> {
  using Pointer = void(PYINV_ORT_CALL*)(Arguments...);

  void operator()(const OrtApi* api, Arguments... arguments) const {
    reinterpret_cast<const Pointer*>(api)[number](arguments...);
  }
};

// Errors. A non-null OrtStatus* belongs to the caller, who releases it.
inline constexpr Slot<0, OrtStatus*(OrtErrorCode, const char* message)> CreateStatus;
inline constexpr Slot<2, const char*(const OrtStatus*)> GetErrorMessage;
inline constexpr Slot<93, void(OrtStatus*)> ReleaseStatus;

// Environment and session options.
inline constexpr Slot<3, OrtStatus*(OrtLoggingLevel, const char* name, OrtEnv**)> CreateEnv;
inline constexpr Slot<6, OrtStatus*(const OrtEnv*)> DisableTelemetryEvents;
inline constexpr Slot<10, OrtStatus*(OrtSessionOptions**)> CreateSessionOptions;
inline constexpr Slot<13, OrtStatus*(OrtSessionOptions*, ExecutionMode)> SetSessionExecutionMode;
inline constexpr Slot<22, OrtStatus*(OrtSessionOptions*, int level)> SetSessionLogSeverityLevel;
inline constexpr Slot<23, OrtStatus*(OrtSessionOptions*, GraphOptimizationLevel)>
    SetSessionGraphOptimizationLevel;
inline constexpr Slot<24, OrtStatus*(OrtSessionOptions*, int threads)> SetIntraOpNumThreads;
inline constexpr Slot<25, OrtStatus*(OrtSessionOptions*, int threads)> SetInterOpNumThreads;
inline constexpr Slot<130, OrtStatus*(OrtSessionOptions*, const char* key, const char* value)>
    AddSessionConfigEntry;
// External data by the name of its file; the contents are copied when a session is created.
inline constexpr Slot<279, OrtStatus*(OrtSessionOptions*, const OrtPathChar* const* names,
                                      char* const* contents, const std::size_t* bytes,
                                      std::size_t count)>
    AddExternalInitializersFromFilesInMemory;
inline constexpr Slot<100, void(OrtSessionOptions*)> ReleaseSessionOptions;

// The CUDA execution provider. UpdateCUDAProviderOptions resets to the defaults and takes strings;
// set pointers afterwards with UpdateCUDAProviderOptionsWithValue. GetAvailableProviders lists the
// providers that the library was built with; only appending one shows whether it loads.
inline constexpr Slot<125, OrtStatus*(char*** names, int* count)> GetAvailableProviders;
inline constexpr Slot<126, OrtStatus*(char** names, int count)> ReleaseAvailableProviders;
inline constexpr Slot<204, OrtStatus*(OrtSessionOptions*, const OrtCUDAProviderOptionsV2*)>
    SessionOptionsAppendExecutionProvider_CUDA_V2;
inline constexpr Slot<205, OrtStatus*(OrtCUDAProviderOptionsV2**)> CreateCUDAProviderOptions;
inline constexpr Slot<206, OrtStatus*(OrtCUDAProviderOptionsV2*, const char* const* keys,
                                      const char* const* values, std::size_t count)>
    UpdateCUDAProviderOptions;
inline constexpr Slot<263, OrtStatus*(OrtCUDAProviderOptionsV2*, const char* key, void* value)>
    UpdateCUDAProviderOptionsWithValue;
inline constexpr Slot<208, void(OrtCUDAProviderOptionsV2*)> ReleaseCUDAProviderOptions;

// Sessions and their declarations. A name belongs to the allocator that it was requested with.
inline constexpr Slot<7, OrtStatus*(const OrtEnv*, const OrtPathChar* path,
                                    const OrtSessionOptions*, OrtSession**)>
    CreateSession;
inline constexpr Slot<8, OrtStatus*(const OrtEnv*, const void* model, std::size_t bytes,
                                    const OrtSessionOptions*, OrtSession**)>
    CreateSessionFromArray;
inline constexpr Slot<9, OrtStatus*(OrtSession*, const OrtRunOptions*, const char* const* names,
                                    const OrtValue* const* inputs, std::size_t input_count,
                                    const char* const* output_names, std::size_t output_count,
                                    OrtValue** outputs)>
    Run;
inline constexpr Slot<30, OrtStatus*(const OrtSession*, std::size_t*)> SessionGetInputCount;
inline constexpr Slot<31, OrtStatus*(const OrtSession*, std::size_t*)> SessionGetOutputCount;
inline constexpr Slot<33, OrtStatus*(const OrtSession*, std::size_t index, OrtTypeInfo**)>
    SessionGetInputTypeInfo;
inline constexpr Slot<34, OrtStatus*(const OrtSession*, std::size_t index, OrtTypeInfo**)>
    SessionGetOutputTypeInfo;
inline constexpr Slot<36, OrtStatus*(const OrtSession*, std::size_t index, OrtAllocator*, char**)>
    SessionGetInputName;
inline constexpr Slot<37, OrtStatus*(const OrtSession*, std::size_t index, OrtAllocator*, char**)>
    SessionGetOutputName;
inline constexpr Slot<95, void(OrtSession*)> ReleaseSession;
inline constexpr Slot<76, OrtStatus*(OrtAllocator*, void*)> AllocatorFree;
inline constexpr Slot<78, OrtStatus*(OrtAllocator**)> GetAllocatorWithDefaultOptions;

// Types and shapes. The tensor info of CastTypeInfoToTensorInfo belongs to its type info; that of
// GetTensorTypeAndShape belongs to the caller.
inline constexpr Slot<55, OrtStatus*(const OrtTypeInfo*, const OrtTensorTypeAndShapeInfo**)>
    CastTypeInfoToTensorInfo;
inline constexpr Slot<98, void(OrtTypeInfo*)> ReleaseTypeInfo;
inline constexpr Slot<60, OrtStatus*(const OrtTensorTypeAndShapeInfo*, ONNXTensorElementDataType*)>
    GetTensorElementType;
inline constexpr Slot<61, OrtStatus*(const OrtTensorTypeAndShapeInfo*, std::size_t*)>
    GetDimensionsCount;
inline constexpr Slot<62, OrtStatus*(const OrtTensorTypeAndShapeInfo*, std::int64_t* dimensions,
                                     std::size_t count)>
    GetDimensions;
inline constexpr Slot<99, void(OrtTensorTypeAndShapeInfo*)> ReleaseTensorTypeAndShapeInfo;

// Tensors. CreateTensorWithDataAsOrtValue borrows the data.
inline constexpr Slot<49, OrtStatus*(const OrtMemoryInfo*, void* data, std::size_t bytes,
                                     const std::int64_t* shape, std::size_t rank,
                                     ONNXTensorElementDataType, OrtValue**)>
    CreateTensorWithDataAsOrtValue;
inline constexpr Slot<51, OrtStatus*(OrtValue*, void**)> GetTensorMutableData;
inline constexpr Slot<65, OrtStatus*(const OrtValue*, OrtTensorTypeAndShapeInfo**)>
    GetTensorTypeAndShape;
inline constexpr Slot<96, void(OrtValue*)> ReleaseValue;
inline constexpr Slot<68, OrtStatus*(const char* name, OrtAllocatorType, int device, OrtMemType,
                                     OrtMemoryInfo**)>
    CreateMemoryInfo;
inline constexpr Slot<94, void(OrtMemoryInfo*)> ReleaseMemoryInfo;

// Run options.
// SetTerminate may be called from another thread: the run fails before its next operator.
inline constexpr Slot<39, OrtStatus*(OrtRunOptions**)> CreateRunOptions;
inline constexpr Slot<41, OrtStatus*(OrtRunOptions*, int level)> RunOptionsSetRunLogSeverityLevel;
inline constexpr Slot<46, OrtStatus*(OrtRunOptions*)> RunOptionsSetTerminate;
inline constexpr Slot<165, OrtStatus*(OrtRunOptions*, const char* key, const char* value)>
    AddRunConfigEntry;
inline constexpr Slot<97, void(OrtRunOptions*)> ReleaseRunOptions;

// I/O binding: inputs and outputs are bound once, for many runs.
inline constexpr Slot<133, OrtStatus*(OrtSession*, const OrtRunOptions*, const OrtIoBinding*)>
    RunWithBinding;
inline constexpr Slot<134, OrtStatus*(OrtSession*, OrtIoBinding**)> CreateIoBinding;
inline constexpr Slot<135, void(OrtIoBinding*)> ReleaseIoBinding;
inline constexpr Slot<136, OrtStatus*(OrtIoBinding*, const char* name, const OrtValue*)> BindInput;
inline constexpr Slot<137, OrtStatus*(OrtIoBinding*, const char* name, const OrtValue*)> BindOutput;

// Custom operators: registration. A domain and its operators must outlive every session that uses
// them.
inline constexpr Slot<26, OrtStatus*(const char* domain, OrtCustomOpDomain**)> CreateCustomOpDomain;
inline constexpr Slot<27, OrtStatus*(OrtCustomOpDomain*, const OrtCustomOp*)> CustomOpDomain_Add;
inline constexpr Slot<28, OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*)> AddCustomOpDomain;

// Custom operators: queries while a kernel is created. `size` is the capacity of `out` on entry and
// the length on return. The constant tensor belongs to the session.
inline constexpr Slot<85, OrtStatus*(const OrtKernelInfo*, const char* name, float*)>
    KernelInfoGetAttribute_float;
inline constexpr Slot<163, OrtStatus*(const OrtKernelInfo*, const char* name, std::int64_t* out,
                                      std::size_t* size)>
    KernelInfoGetAttributeArray_int64;
inline constexpr Slot<249, OrtStatus*(const OrtKernelInfo*, std::size_t index, int* is_constant,
                                      const OrtValue**)>
    KernelInfoGetConstantInput_tensor;

// Custom operators: calls while a kernel runs. Inputs and outputs belong to the run. ParallelFor
// uses the session's intra-op threads (batches 0: one call of `work` per item).
inline constexpr Slot<90, OrtStatus*(const OrtKernelContext*, std::size_t index, const OrtValue**)>
    KernelContext_GetInput;
inline constexpr Slot<91, OrtStatus*(OrtKernelContext*, std::size_t index,
                                     const std::int64_t* shape, std::size_t rank, OrtValue**)>
    KernelContext_GetOutput;
inline constexpr Slot<274, OrtStatus*(const OrtKernelContext*,
                                      void (*work)(void* state, std::size_t item),
                                      std::size_t items, std::size_t batches, void* state)>
    KernelContext_ParallelFor;

}  // namespace pyinv::ort
