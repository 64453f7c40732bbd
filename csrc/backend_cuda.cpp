#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

#include "backend.h"
#include "cuda_support.h"
#include "kernels/kernels.h"

namespace pyinv {
namespace {

// Size of the staging buffers for targets: one on the host and one on the GPU.
constexpr size_t kStagingBytes = size_t{64} << 20;

std::string mebibytes(size_t bytes) {
  return bytes >> 20 ? std::to_string(bytes >> 20) + " MiB" : std::to_string(bytes) + " bytes";
}

void set_device(int index) { check_cuda(cudaSetDevice(index), "cudaSetDevice"); }

// Restores the thread's current GPU, because the program may use other GPUs.
class CurrentDevice {
 public:
  CurrentDevice() { cudaGetDevice(&index_); }
  ~CurrentDevice() { cudaSetDevice(index_); }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int index_ = 0;
};

// Cleans up something created on GPU `index`. Errors are ignored: an earlier call has reported
// them.
template <class Clean>
void quietly(int index, Clean clean) {
  cudaSetDevice(index);
  clean();
  cudaGetLastError();
}

class Stream {
 public:
  explicit Stream(int index) : index_(index) {
    set_device(index);
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
               "cudaStreamCreateWithFlags");
  }
  ~Stream() {
    quietly(index_, [this] { cudaStreamDestroy(stream_); });
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  cudaStream_t get() const { return stream_; }
  void synchronize() const { check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }
  void wait_for(cudaEvent_t event) const {
    check_cuda(cudaStreamWaitEvent(stream_, event, 0), "cudaStreamWaitEvent");
  }

 private:
  const int index_;
  cudaStream_t stream_ = nullptr;
};

class CudaEvent : public Event {
 public:
  CudaEvent(int index, const Stream& stream) : index_(index), stream_(&stream) {
    set_device(index);
    // Let the host sleep while it waits: the stream has enough work queued.
    check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming | cudaEventBlockingSync),
               "cudaEventCreateWithFlags");
  }
  ~CudaEvent() override {
    if (event_) quietly(index_, [this] { cudaEventDestroy(event_); });
  }
  CudaEvent(CudaEvent&& other) noexcept
      : index_(other.index_), stream_(other.stream_), event_(std::exchange(other.event_, {})) {}

  cudaEvent_t get() const { return event_; }
  void record() override {
    set_device(index_);
    check_cuda(cudaEventRecord(event_, stream_->get()), "cudaEventRecord");
  }
  void wait() const override {
    set_device(index_);
    check_cuda(cudaEventSynchronize(event_), "cudaEventSynchronize");
  }

 private:
  const int index_;
  const Stream* stream_;  // the stream it is recorded in
  cudaEvent_t event_ = nullptr;
};

// Takes ownership of `graph`.
class CudaGraph : public CapturedGraph {
 public:
  CudaGraph(int index, const Stream& stream, cudaGraphExec_t graph)
      : index_(index), stream_(stream), graph_(graph) {}
  ~CudaGraph() override {
    quietly(index_, [this] {
      cudaStreamSynchronize(stream_.get());  // it may still be running
      cudaGraphExecDestroy(graph_);
    });
  }

  void launch() const override {
    set_device(index_);
    check_cuda(cudaGraphLaunch(graph_, stream_.get()), "cudaGraphLaunch");
  }

 private:
  const int index_;
  const Stream& stream_;
  const cudaGraphExec_t graph_;
};

class CudaBackend : public Backend {
 public:
  explicit CudaBackend(int index)
      : index_(index),
        stream_(index),
        scratch_(allocate(kMomentsScratch * sizeof(PartialMoments))),
        shared_memory_(prepare_propose_cuda()) {}

  DeviceKind kind() const override { return DeviceKind::cuda; }
  int index() const override { return index_; }
  void* stream() const override { return stream_.get(); }
  void synchronize() const override {
    set_device(index_);
    stream_.synchronize();
  }
  std::shared_ptr<void> exclusive() override {
    struct Use {
      explicit Use(std::recursive_mutex& mutex) : lock(mutex) {}
      std::lock_guard<std::recursive_mutex> lock;
      CurrentDevice before;
    };
    auto use = std::make_shared<Use>(mutex_);
    set_device(index_);
    return use;
  }

  Memory allocate(size_t bytes) override {
    set_device(index_);
    void* memory = nullptr;
    const cudaError_t error = cudaMalloc(&memory, std::max<size_t>(1, bytes));
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      size_t free = 0, total = 0;
      cudaMemGetInfo(&free, &total);
      throw OutOfMemory("GPU " + std::to_string(index_) + " has no room for another " +
                        mebibytes(bytes) + ": " + mebibytes(free) + " of its " + mebibytes(total) +
                        " are free; give fewer lanes");
    }
    check_cuda(error, "cudaMalloc");
    Memory owner(memory, [index = index_](void* it) { quietly(index, [it] { cudaFree(it); }); });
    check_cuda(cudaMemsetAsync(memory, 0, bytes, stream_.get()), "cudaMemsetAsync");
    return owner;
  }

  // Pinned memory, with the same address on the host and all GPUs.
  Memory allocate_shared(size_t bytes) override {
    set_device(index_);
    void* memory = nullptr;
    const cudaError_t error = cudaHostAlloc(&memory, std::max<size_t>(1, bytes),
                                            cudaHostAllocMapped | cudaHostAllocPortable);
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      throw OutOfMemory("the host has no room for another " + mebibytes(bytes) +
                        " of memory shared with the GPU; give fewer lanes");
    }
    check_cuda(error, "cudaHostAlloc");
    std::memset(memory, 0, bytes);
    return Memory(memory,
                  [index = index_](void* it) { quietly(index, [it] { cudaFreeHost(it); }); });
  }

  void upload(void* device, const void* host, size_t bytes) override {
    set_device(index_);
    check_cuda(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream_.get()),
               "cudaMemcpyAsync");
    stream_.synchronize();
  }

  std::unique_ptr<Event> make_event() override {
    return std::make_unique<CudaEvent>(index_, stream_);
  }
  std::unique_ptr<CapturedGraph> capture(const std::function<void()>& work) override;

  int64_t reports_ahead() const override { return 1; }
  int64_t rounded(int64_t count, int64_t limit) const override {
    return std::min(limit, static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(count))));
  }

  int64_t propose_scratch(SolverKind kind, int64_t latent_size, int64_t lanes) const override {
    return propose_scratch_cuda(kind, latent_size, lanes, shared_memory_);
  }

  std::unique_ptr<TargetLoader> make_loader(const LaneArrays& lanes, const Targets& targets,
                                            bool queue) override;
  void swap_lanes(const LaneArrays& lanes, std::span<const LanePair> pairs) override {
    swap_lanes_cuda(lanes, pairs, here());
  }
  void reassign(const LaneArrays& lanes, std::span<const Reassignment> list) override {
    reassign_cuda(lanes, list, here());
  }
  void update_status(const LaneArrays& lanes, int64_t active) override {
    update_status_cuda(lanes, active, here());
  }
  void batch_moments(const LaneArrays& lanes, int64_t active) override {
    batch_moments_cuda(lanes, active, static_cast<PartialMoments*>(scratch_.get()), here());
  }
  void decide_group(const LaneArrays& lanes, int64_t active) override {
    decide_group_cuda(lanes, active, here());
  }
  void propose(const LaneArrays& lanes, SolverKind kind, int64_t active) override {
    propose_cuda(lanes, kind, active, shared_memory_, here());
  }
  void step(const LaneArrays& lanes, int64_t active) override { step_cuda(lanes, active, here()); }
  void abandon(const LaneArrays& lanes, int64_t active) override {
    abandon_cuda(lanes, active, here());
  }
  void report(const LaneArrays& lanes, int64_t active, LaneReport* reports) override {
    report_cuda(lanes, active, reports, here());
  }

  const Stream& compute() const { return stream_; }

 private:
  // The stream, for kernels to launch: makes its GPU the thread's current one.
  cudaStream_t here() const {
    set_device(index_);
    return stream_.get();
  }

  const int index_;
  const Stream stream_;
  const Memory scratch_;
  const size_t shared_memory_;  // the most bytes per block
  std::recursive_mutex mutex_;
};

// Whether a graph does not access host memory. A runtime may copy small arrays from host memory
// that it frees or reuses after the call; a replay would read invalid data.
bool stays_on_the_device(cudaGraph_t graph) {
  size_t count = 0;
  if (cudaGraphGetNodes(graph, nullptr, &count) != cudaSuccess) return false;
  std::vector<cudaGraphNode_t> nodes(count);
  if (cudaGraphGetNodes(graph, nodes.data(), &count) != cudaSuccess) return false;
  return std::all_of(nodes.begin(), nodes.end(), [](cudaGraphNode_t node) {
    cudaGraphNodeType type;
    if (cudaGraphNodeGetType(node, &type) != cudaSuccess) return false;
    if (type == cudaGraphNodeTypeHost) return false;
    if (type != cudaGraphNodeTypeMemcpy) return true;
    cudaMemcpy3DParms copy{};
    return cudaGraphMemcpyNodeGetParams(node, &copy) == cudaSuccess &&
           copy.kind == cudaMemcpyDeviceToDevice;
  });
}

std::unique_ptr<CapturedGraph> CudaBackend::capture(const std::function<void()>& work) {
  // A switch for debugging, and for runtimes that do not support capture.
  const char* wanted = std::getenv("PYINV_CUDA_GRAPHS");
  if (wanted && std::string_view(wanted) == "0") return nullptr;
  const std::scoped_lock lock(capture_mutex);
  set_device(index_);
  check_cuda(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal),
             "cudaStreamBeginCapture");
  // Work that cannot be captured fails here. It is then run without a graph, which reports the
  // actual error if there is one.
  bool captured = true;
  try {
    work();
  } catch (...) {
    captured = false;
  }
  cudaGraph_t graph = nullptr;
  captured &= cudaStreamEndCapture(stream_.get(), &graph) == cudaSuccess && graph;
  cudaGraphExec_t executable = nullptr;
  captured = captured && stays_on_the_device(graph);
  captured = captured && cudaGraphInstantiate(&executable, graph, 0) == cudaSuccess;
  if (graph) cudaGraphDestroy(graph);
  cudaGetLastError();
  if (!captured) return nullptr;
  return std::make_unique<CudaGraph>(index_, stream_, executable);
}

// Prefetches targets on a separate stream: the next rows are in a ring buffer on the GPU before a
// lane is free for them. A row is copied from the caller's memory to a slot in pinned memory, then
// to the same slot on the GPU, and then to its lane. Rows of a queue are not known in advance, and
// are copied when a lane is free for them.
class CudaTargetLoader : public TargetLoader {
 public:
  CudaTargetLoader(CudaBackend& device, const LaneArrays& lanes, const Targets& targets,
                   bool prefetches)
      : device_(device),
        lanes_(lanes),
        targets_(targets),
        prefetches_(prefetches),
        initial_size_(targets.initial ? lanes.latent_size : 0),
        row_size_(lanes.image_size + lanes.condition_size + lanes.weights_size + initial_size_ +
                  lanes.truth_size),
        slots_(ring_size(row_size_, lanes.lanes, targets.count)),
        pinned_(device.allocate_shared(bytes(slots_))),
        staged_(device.allocate(bytes(slots_))),
        copies_(device.index()),
        consumed_(device.index(), device.compute()) {
    arrived_.reserve(static_cast<size_t>(slots_));
    for (int64_t slot = 0; slot < slots_; ++slot) arrived_.emplace_back(device.index(), copies_);
    consumed_.record();  // after the memory is zeroed
    copies_.wait_for(consumed_.get());
    if (prefetches_) prefetch(0, slots_);
  }

  ~CudaTargetLoader() override {
    quietly(device_.index(), [this] {
      cudaStreamSynchronize(copies_.get());
      cudaStreamSynchronize(device_.compute().get());
    });
  }

  void refill(std::span<const Refill> refills) override {
    set_device(device_.index());
    while (!refills.empty()) {
      const auto now = refills.first(std::min<size_t>(refills.size(), static_cast<size_t>(slots_)));
      refills = refills.subspan(now.size());
      rows_.clear();
      for (const Refill& refill : now) {
        const auto slot = prefetches_ ? refill.row % slots_ : static_cast<int64_t>(rows_.size());
        if (!prefetches_) copy(refill.row, slot);
        rows_.push_back(staged_row(refill, slot));
      }
      // Copies arrive in order.
      const auto last =
          prefetches_ ? now.back().row % slots_ : static_cast<int64_t>(now.size()) - 1;
      device_.compute().wait_for(arrived_[last].get());
      refill_cuda(lanes_, rows_, device_.compute().get());
      consumed_.record();
      copies_.wait_for(consumed_.get());
      if (prefetches_) prefetch(now.front().row + slots_, static_cast<int64_t>(now.size()));
    }
  }

 private:
  // Two batches: while the lanes take one batch of rows, the next one is copied.
  static int64_t ring_size(int64_t row_size, int64_t lanes, int64_t count) {
    const int64_t fit = static_cast<int64_t>(kStagingBytes / sizeof(float)) / row_size;
    return std::clamp<int64_t>(fit, 1, std::max<int64_t>(1, std::min(count, 2 * lanes)));
  }

  size_t bytes(int64_t rows) const { return static_cast<size_t>(rows * row_size_) * sizeof(float); }

  RefillRows staged_row(const Refill& refill, int64_t slot) const {
    const float* row = static_cast<const float*>(staged_.get()) + slot * row_size_;
    const float* condition = row + lanes_.image_size;
    const float* weights = condition + lanes_.condition_size;
    const float* initial = weights + lanes_.weights_size;
    return {.refill = refill,
            .id = targets_.id[refill.row],
            .image = row,
            .condition = lanes_.condition_size ? condition : nullptr,
            .weights = lanes_.weights_size ? weights : nullptr,
            .initial = initial_size_ ? initial : nullptr,
            .truth = lanes_.truth_size ? initial + initial_size_ : nullptr};
  }

  // Starts copying rows [first, first + count), as far as they exist.
  void prefetch(int64_t first, int64_t count) {
    for (int64_t row = first; row < std::min(first + count, targets_.count); ++row) {
      copy(row, row % slots_);
    }
  }

  // Starts copying a row to a slot. The copy waits until the slot has been read.
  void copy(int64_t row, int64_t slot) {
    arrived_[slot].wait();  // until the pinned slot's previous row is copied
    float* to = static_cast<float*>(pinned_.get()) + slot * row_size_;
    float* end = std::copy_n(targets_.image + row * lanes_.image_size, lanes_.image_size, to);
    if (lanes_.condition_size) {
      end =
          std::copy_n(targets_.condition + row * lanes_.condition_size, lanes_.condition_size, end);
    }
    if (lanes_.weights_size) {
      end = std::copy_n(weights_of(targets_, lanes_, row), lanes_.weights_size, end);
    }
    if (initial_size_) {
      end = std::copy_n(targets_.initial + row * initial_size_, initial_size_, end);
    }
    if (lanes_.truth_size) {
      std::copy_n(targets_.true_latent + row * lanes_.truth_size, lanes_.truth_size, end);
    }
    check_cuda(cudaMemcpyAsync(static_cast<float*>(staged_.get()) + slot * row_size_, to, bytes(1),
                               cudaMemcpyHostToDevice, copies_.get()),
               "cudaMemcpyAsync");
    arrived_[slot].record();
  }

  CudaBackend& device_;
  const LaneArrays lanes_;
  const Targets targets_;
  const bool prefetches_;
  const int64_t initial_size_, row_size_, slots_;
  const Backend::Memory pinned_, staged_;
  const Stream copies_;
  std::vector<CudaEvent> arrived_;  // one per slot
  CudaEvent consumed_;
  std::vector<RefillRows> rows_;
};

std::unique_ptr<TargetLoader> CudaBackend::make_loader(const LaneArrays& lanes,
                                                       const Targets& targets, bool queue) {
  return std::make_unique<CudaTargetLoader>(*this, lanes, targets, !queue);
}

std::string compute_capability(const cudaDeviceProp& properties) {
  return std::to_string(properties.major) + "." + std::to_string(properties.minor);
}

}  // namespace

std::shared_ptr<Device> cuda_device(int index) {
  const std::string wanted = "GPU " + std::to_string(index) + " cannot be used: ";
  int driver = 0, count = 0;
  const bool no_driver = cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0;
  const cudaError_t counted = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (no_driver) {
    throw DeviceError(wanted +
                      "CUDA finds no NVIDIA driver on this machine; install one, or use "
                      "the CPU");
  }
  if (counted == cudaErrorInsufficientDriver) {
    throw DeviceError(wanted + "the NVIDIA driver is for CUDA " + std::to_string(driver / 1000) +
                      "." + std::to_string(driver % 1000 / 10) + ", older than this build's " +
                      std::to_string(CUDART_VERSION / 1000) + "." +
                      std::to_string(CUDART_VERSION % 1000 / 10) + "; update it, or use the CPU");
  }
  if (counted != cudaSuccess && counted != cudaErrorNoDevice) {
    throw DeviceError(wanted + cudaGetErrorString(counted));
  }
  if (count == 0) throw DeviceError(wanted + "CUDA finds no GPU on this machine; use the CPU");
  if (index < 0 || index >= count) {
    throw DeviceError(
        wanted + "this machine has " +
        (count == 1 ? "one GPU, number 0" : "GPUs 0 to " + std::to_string(count - 1)));
  }
  try {
    set_device(index);
    const cudaError_t found = kernels_run_here();
    if (found == cudaErrorNoKernelImageForDevice || found == cudaErrorInvalidDeviceFunction) {
      cudaGetLastError();
      cudaDeviceProp properties{};
      check_cuda(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
      throw DeviceError(wanted + "it has compute capability " + compute_capability(properties) +
                        ", and this build is for " PYINV_CUDA_ARCHITECTURES
                        "; build pyinv with -DCMAKE_CUDA_ARCHITECTURES=native, or use the CPU");
    }
    check_cuda(found, "cudaFuncGetAttributes");
    return std::make_shared<CudaBackend>(index);
  } catch (const DeviceError&) {
    throw;
  } catch (const OutOfMemory&) {
    throw;
  } catch (const std::runtime_error& error) {
    throw DeviceError(wanted + error.what());
  }
}

bool built_with_cuda() { return true; }

int cuda_device_count() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  cudaGetLastError();
  return error == cudaSuccess ? count : 0;
}

std::string cuda_device_name(int index) {
  cudaDeviceProp properties{};
  const cudaError_t error = cudaGetDeviceProperties(&properties, index);
  cudaGetLastError();
  return error == cudaSuccess ? properties.name : std::string();
}

}  // namespace pyinv
