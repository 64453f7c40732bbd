#include "ops/custom_ops.h"

#include <array>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "ops/by_target.h"
#include "ops/convolution.h"

namespace pyinv::ort {
namespace {

// What follows the convolution; or a convolution with weights per target, or their gradient.
enum class After { nothing, activation, gradient, factor };
enum class Weights { shared, by_target, gradient };

bool takes_operand(After after) { return after == After::gradient || after == After::factor; }

struct Operator : OrtCustomOp {
  const char* name;
  bool transposed;
  After after;
  Weights weights;
};

// Throws the message of a failed call; the callback turns it into its status.
void check(const OrtApi* api, OrtStatus* status) {
  if (!status) return;
  const std::string message = GetErrorMessage(api, status);
  ReleaseStatus(api, status);
  throw std::runtime_error(message);
}

template <class Body>
OrtStatus* guarded(const OrtApi* api, const char* name, const Body& body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    return CreateStatus(api, ORT_RUNTIME_EXCEPTION,
                        ("pyinv." + std::string(name) + ": " + error.what()).c_str());
  }
}

std::vector<std::int64_t> shape_of(const OrtApi* api, const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api, GetTensorTypeAndShape(api, value, &info));
  std::size_t rank = 0;
  std::vector<std::int64_t> shape;
  OrtStatus* status = GetDimensionsCount(api, info, &rank);
  if (!status) {
    shape.resize(rank);
    status = GetDimensions(api, info, shape.data(), rank);
  }
  ReleaseTensorTypeAndShapeInfo(api, info);
  check(api, status);
  return shape;
}

const float* data_of(const OrtApi* api, const OrtValue* value) {
  void* data = nullptr;
  // There is no const version of this function; nothing is written.
  check(api, GetTensorMutableData(api, const_cast<OrtValue*>(value), &data));
  return static_cast<const float*>(data);
}

template <std::size_t count>
std::array<std::int64_t, count> integers(const OrtApi* api, const OrtKernelInfo* info,
                                         const char* name) {
  std::array<std::int64_t, count> values{};
  std::size_t size = count;
  check(api, KernelInfoGetAttributeArray_int64(api, info, name, values.data(), &size));
  if (size != count) {
    throw std::runtime_error("attribute '" + std::string(name) + "' should hold " +
                             std::to_string(count) + " integers, holds " + std::to_string(size));
  }
  return values;
}

// Whether a permutation to (or from) [batch, channels, height, width] changes nothing.
bool channels_first(const OrtApi* api, const OrtKernelInfo* info, const char* name,
                    const std::array<std::int64_t, 4>& otherwise) {
  const auto permutation = integers<4>(api, info, name);
  if (permutation == std::array<std::int64_t, 4>{0, 1, 2, 3}) return true;
  if (permutation == otherwise) return false;
  throw std::runtime_error("attribute '" + std::string(name) + "' is an unknown permutation");
}

// A constant input, or null if it is omitted.
const OrtValue* constant_input(const OrtApi* api, const OrtKernelInfo* info, std::size_t index) {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  check(api, KernelInfoGetConstantInput_tensor(api, info, index, &is_constant, &value));
  return is_constant ? value : nullptr;
}

std::size_t as_size(std::int64_t value) { return static_cast<std::size_t>(value); }

// The largest stride or padding, so that the sizes of images computed from them do not overflow.
constexpr std::int64_t most = std::int64_t{1} << 16;

// An image has at least a pixel and a channel, and a kernel a tap. The loops divide by these.
void check_positive(const char* what, std::initializer_list<std::size_t> sizes) {
  for (std::size_t size : sizes) {
    if (size == 0) throw std::runtime_error(std::string(what) + " should have no axis of size 0");
  }
}

template <std::size_t count>
void check_range(const char* name, const std::array<std::int64_t, count>& values,
                 std::int64_t lowest) {
  for (std::int64_t value : values) {
    if (value >= lowest && value <= most) continue;
    throw std::runtime_error("attribute '" + std::string(name) + "' should be from " +
                             std::to_string(lowest) + " to " + std::to_string(most) + ", is " +
                             std::to_string(value));
  }
}

ops::ConvolutionAttributes strides_and_pads(const OrtApi* api, const OrtKernelInfo* info,
                                            bool transposed) {
  ops::ConvolutionAttributes a;
  a.transposed = transposed;
  const auto strides = integers<2>(api, info, "strides");
  const auto pads = integers<4>(api, info, "pads");
  check_range("strides", strides, 1);
  check_range("pads", pads, -most);
  // A transposed convolution has an array for each of its phases.
  if (transposed && strides[0] * strides[1] > most) {
    throw std::runtime_error("the product of the strides should be at most " +
                             std::to_string(most));
  }
  a.stride_height = as_size(strides[0]);
  a.stride_width = as_size(strides[1]);
  a.pad_top = pads[0];
  a.pad_left = pads[1];
  a.pad_bottom = pads[2];
  a.pad_right = pads[3];
  if (transposed) {
    const auto padding = integers<2>(api, info, "output_padding");
    check_range("output_padding", padding, 0);
    a.output_padding_height = as_size(padding[0]);
    a.output_padding_width = as_size(padding[1]);
  }
  return a;
}

class Kernel {
 public:
  Kernel(const Operator& op, const OrtApi* api, const OrtKernelInfo* info)
      : operator_(op),
        api_(api),
        in_channels_first_(channels_first(api, info, "input_perm", {0, 3, 1, 2})),
        // The gradient is an input.
        out_channels_first_(channels_first(api, info, "output_perm",
                                           op.weights == Weights::gradient
                                               ? std::array<std::int64_t, 4>{0, 3, 1, 2}
                                               : std::array<std::int64_t, 4>{0, 2, 3, 1})) {}
  virtual ~Kernel() = default;

  const OrtApi* api() const { return api_; }
  const char* name() const { return operator_.name; }

  virtual void compute(OrtKernelContext* context) = 0;

 protected:
  const OrtValue* input(OrtKernelContext* context, std::size_t index) const {
    const OrtValue* value = nullptr;
    check(api_, KernelContext_GetInput(api_, context, index, &value));
    return value;
  }

  ops::Images<const float> images(const OrtValue* value, bool first) const {
    const std::vector<std::int64_t> shape = shape_of(api_, value);
    if (shape.size() != 4) throw std::runtime_error("the input should have four axes");
    const auto size = [&](std::size_t axis) { return as_size(shape[axis]); };
    check_positive("an image", {size(1), size(2), size(3)});
    return {data_of(api_, value), size(0), size(first ? 2 : 1), size(first ? 3 : 2),
            size(first ? 1 : 3),  first};
  }

  float* output(OrtKernelContext* context, const std::vector<std::int64_t>& shape) const {
    OrtValue* value = nullptr;
    check(api_, KernelContext_GetOutput(api_, context, 0, shape.data(), shape.size(), &value));
    return const_cast<float*>(data_of(api_, value));
  }

  // Output images of a batch of input images; `shape` receives their shape.
  ops::Images<float> out_images(const ops::ConvolutionAttributes& a,
                                const ops::Images<const float>& in,
                                std::vector<std::int64_t>& shape) const {
    if (in.channels != a.in_channels) {
      throw std::runtime_error("the input should have " + std::to_string(a.in_channels) +
                               " channels, has " + std::to_string(in.channels));
    }
    ops::Images<float> out{
        nullptr,        in.batch,           a.out_height(in.height), a.out_width(in.width),
        a.out_channels, out_channels_first_};
    check_positive("the output", {out.height, out.width});
    const auto n = std::int64_t(out.batch), h = std::int64_t(out.height),
               w = std::int64_t(out.width), c = std::int64_t(out.channels);
    shape = out.channels_first ? std::vector{n, c, h, w} : std::vector{n, h, w, c};
    return out;
  }

  struct Pool {
    const OrtApi* api;
    const OrtKernelContext* context;
  };

  static void run_on_pool(void* pool, std::size_t count, ops::Parallel::Task task, void* state) {
    const auto& [api, context] = *static_cast<const Pool*>(pool);
    check(api, KernelContext_ParallelFor(api, context, task, count, 0, state));
  }

  const Operator& operator_;
  const OrtApi* api_;
  bool in_channels_first_, out_channels_first_;
};

class SharedWeights : public Kernel {
 public:
  SharedWeights(const Operator& op, const OrtApi* api, const OrtKernelInfo* info)
      : Kernel(op, api, info) {
    ops::ConvolutionAttributes a = strides_and_pads(api, info, op.transposed);
    const OrtValue* weights = constant_input(api, info, 1);
    if (!weights) throw std::runtime_error("the weights should be an initializer");
    const std::vector<std::int64_t> shape = shape_of(api, weights);
    if (shape.size() != 4) throw std::runtime_error("the weights should have four axes");
    a.in_channels = as_size(shape[op.transposed ? 0 : 1]);
    a.out_channels = as_size(shape[op.transposed ? 1 : 0]);
    a.kernel_height = as_size(shape[2]);
    a.kernel_width = as_size(shape[3]);
    check_positive("the weights", {a.in_channels, a.out_channels, a.kernel_height, a.kernel_width});
    if (op.after == After::activation || op.after == After::gradient) {
      check(api, KernelInfoGetAttribute_float(api, info, "slope", &a.slope));
    }
    if (op.after == After::activation) a.activation = ops::Activation::leaky_relu;
    if (op.after == After::factor) {
      const std::int64_t sharing = integers<5>(api, info, "split")[1];
      if (sharing < 1) throw std::runtime_error("attribute 'split' should split the batch");
      a.operand_is_factor = true;
      a.images_sharing = as_size(sharing);
    }
    const OrtValue* bias = takes_operand(op.after) ? nullptr : constant_input(api, info, 2);
    has_bias_ = bias != nullptr;
    if (bias && shape_of(api, bias) != std::vector<std::int64_t>{std::int64_t(a.out_channels)}) {
      throw std::runtime_error("the bias should have one value for each output channel");
    }
    convolution_ = std::make_unique<ops::Convolution>(a, data_of(api, weights),
                                                      bias ? data_of(api, bias) : nullptr);
  }

  void compute(OrtKernelContext* context) override {
    const ops::ConvolutionAttributes& a = convolution_->attributes();
    const ops::Images<const float> in = images(input(context, 0), in_channels_first_);
    std::vector<std::int64_t> shape;
    ops::Images<float> out = out_images(a, in, shape);
    out.data = output(context, shape);

    const float* operand = nullptr;
    if (takes_operand(operator_.after)) {
      const OrtValue* value = input(context, 2);
      std::vector<std::int64_t> wanted = shape;
      wanted[0] /= std::int64_t(a.images_sharing);
      if (in.batch % a.images_sharing != 0 || shape_of(api_, value) != wanted) {
        throw std::runtime_error("the third input should have the shape of the output" +
                                 (a.images_sharing == 1 ? std::string()
                                                        : ", with an image for every " +
                                                              std::to_string(a.images_sharing)));
      }
      operand = data_of(api_, value);
    } else if (!has_bias_ && input(context, 2)) {
      throw std::runtime_error("the bias should be an initializer");
    }
    Pool pool{api_, context};
    convolution_->run(in, operand, out, {run_on_pool, &pool});
  }

 private:
  std::unique_ptr<ops::Convolution> convolution_;
  bool has_bias_ = false;
};

// The third input, one filter for each tap, is for runtimes without this operator. Here only its
// shape is read: [taps, 1, height, width].
class WeightsByTarget : public Kernel {
 public:
  WeightsByTarget(const Operator& op, const OrtApi* api, const OrtKernelInfo* info)
      : Kernel(op, api, info), attributes_(strides_and_pads(api, info, op.transposed)) {}

  void compute(OrtKernelContext* context) override {
    const bool transposed = operator_.transposed;
    const ops::Images<const float> in = images(input(context, 0), in_channels_first_);
    const OrtValue* second = input(context, 1);
    const std::vector<std::int64_t> filters = shape_of(api_, input(context, 2));
    if (filters.size() != 4 || filters[1] != 1 || filters[0] != filters[2] * filters[3]) {
      throw std::runtime_error("the filters should be [height * width, 1, height, width]");
    }
    check_positive("the filters", {as_size(filters[0])});
    ops::ConvolutionAttributes a = attributes_;
    a.kernel_height = as_size(filters[2]);
    a.kernel_width = as_size(filters[3]);
    a.in_channels = in.channels;
    Pool pool{api_, context};
    std::vector<std::int64_t> shape;

    if (operator_.weights == Weights::gradient) {
      const ops::Images<const float> gradient = images(second, out_channels_first_);
      a.out_channels = gradient.channels;
      if (gradient.batch != in.batch || gradient.height != a.out_height(in.height) ||
          gradient.width != a.out_width(in.width)) {
        throw std::runtime_error("the gradient should have the shape of the convolution");
      }
      float* out = output(context, {std::int64_t(in.batch), std::int64_t(a.out_channels),
                                    std::int64_t(in.channels) * filters[2] * filters[3]});
      ops::weight_gradient(a, in, gradient, out, {run_on_pool, &pool});
      return;
    }
    const std::vector<std::int64_t> weights = shape_of(api_, second);
    if (weights.size() != 5 || as_size(weights[0]) != in.batch || weights[3] != filters[2] ||
        weights[4] != filters[3] || as_size(weights[transposed ? 1 : 2]) != in.channels) {
      throw std::runtime_error("the weights should be [batch, out, in, height, width]");
    }
    a.out_channels = as_size(weights[transposed ? 2 : 1]);
    check_positive("the weights", {a.out_channels});
    ops::Images<float> out = out_images(a, in, shape);
    out.data = output(context, shape);
    ops::convolve_by_target(a, in, data_of(api_, second), out, {run_on_pool, &pool});
  }

 private:
  ops::ConvolutionAttributes attributes_;
};

const Operator& as_operator(const OrtCustomOp* op) { return *static_cast<const Operator*>(op); }

Operator make_operator(const char* name, bool transposed, After after,
                       Weights weights = Weights::shared) {
  Operator op{};
  op.name = name;
  op.transposed = transposed;
  op.after = after;
  op.weights = weights;
  op.version = kCustomOpVersion;
  op.GetName = [](const OrtCustomOp* self) { return as_operator(self).name; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  op.GetInputType = [](const OrtCustomOp*, std::size_t) {
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  };
  op.GetOutputType = [](const OrtCustomOp*, std::size_t) {
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  };
  // Image and weights, then the bias, the forward activation's output, a factor, or filters.
  op.GetInputTypeCount = [](const OrtCustomOp*) -> std::size_t { return 3; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> std::size_t { return 1; };
  op.GetInputCharacteristic = [](const OrtCustomOp* self, std::size_t index) {
    const Operator& own = as_operator(self);
    const bool optional = own.weights == Weights::shared && !takes_operand(own.after);
    return index == 2 && optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, std::size_t) {
    return INPUT_OUTPUT_REQUIRED;
  };
  op.GetInputMemoryType = [](const OrtCustomOp*, std::size_t) { return OrtMemTypeDefault; };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  op.CreateKernelV2 = [](const OrtCustomOp* self, const OrtApi* api, const OrtKernelInfo* info,
                         void** kernel) {
    return guarded(api, as_operator(self).name, [&] {
      const Operator& own = as_operator(self);
      Kernel* made = nullptr;
      if (own.weights == Weights::shared) {
        made = new SharedWeights(own, api, info);
      } else {
        made = new WeightsByTarget(own, api, info);
      }
      *kernel = made;
    });
  };
  op.KernelComputeV2 = [](void* self, OrtKernelContext* context) {
    Kernel& kernel = *static_cast<Kernel*>(self);
    return guarded(kernel.api(), kernel.name(), [&] { kernel.compute(context); });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  return op;
}

}  // namespace

void register_custom_ops(const OrtApi* api, OrtSessionOptions* options) {
  static const std::array<Operator, 11> operators{
      make_operator("Conv2d", false, After::nothing),
      make_operator("Conv2dLeakyRelu", false, After::activation),
      make_operator("Conv2dLeakyReluGradient", false, After::gradient),
      make_operator("Conv2dScaled", false, After::factor),
      make_operator("ConvTranspose2d", true, After::nothing),
      make_operator("ConvTranspose2dLeakyRelu", true, After::activation),
      make_operator("ConvTranspose2dLeakyReluGradient", true, After::gradient),
      make_operator("ConvTranspose2dScaled", true, After::factor),
      make_operator("Conv2dByTarget", false, After::nothing, Weights::by_target),
      make_operator("ConvTranspose2dByTarget", true, After::nothing, Weights::by_target),
      make_operator("Conv2dWeightGradient", false, After::nothing, Weights::gradient),
  };
  // Sessions refer to the domain for their whole lifetime, so it is never released.
  static OrtCustomOpDomain* const domain = [&] {
    OrtCustomOpDomain* made = nullptr;
    check(api, CreateCustomOpDomain(api, "pyinv", &made));
    for (const Operator& op : operators) check(api, CustomOpDomain_Add(api, made, &op));
    return made;
  }();
  check(api, AddCustomOpDomain(api, options, domain));
}

}  // namespace pyinv::ort
