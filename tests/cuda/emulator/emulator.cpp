#include "emulator.h"

#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) (void)(size)
#define ASAN_UNPOISON_MEMORY_REGION(address, size) (void)(size)
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace {

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "emulator: %s\n", what);
  std::abort();
}

// An event as it was recorded once.
struct Moment {
  cudaStream_t stream;
  bool passed = false;
};

struct Work {
  std::function<void()> run;
  std::shared_ptr<Moment> awaited;  // done first
};

struct Machinery {
  std::recursive_mutex mutex;
  emulator::Machine machine;
  std::atomic<emulator::Pace> pace = emulator::Pace::late;
  std::mt19937 random;
  std::set<cudaStream_t> streams;
  std::map<void*, std::pair<size_t, int>> device_memory;  // size, GPU
  std::map<void*, size_t> pinned_memory;
  std::map<const void*, int> shared_memory;  // that a kernel may have, where it asked
  int64_t objects = 0, graph_launches = 0;
  int depth = 0;  // of work under way
  thread_local static int device;
  thread_local static cudaError_t last_error;
  thread_local static cudaStream_t capturing;
};
thread_local int Machinery::device = 0;
thread_local cudaError_t Machinery::last_error = cudaSuccess;
thread_local cudaStream_t Machinery::capturing = nullptr;

Machinery& m() {
  static Machinery machinery;
  return machinery;
}

cudaError_t error(cudaError_t value) {
  if (value != cudaSuccess) m().last_error = value;
  return value;
}

// The device's memory is open to work of streams alone.
class OpenMemory {
 public:
  OpenMemory() {
    if (m().depth++) return;
    for (auto& [memory, of] : m().device_memory) ASAN_UNPOISON_MEMORY_REGION(memory, of.first);
  }
  ~OpenMemory() {
    if (--m().depth) return;
    for (auto& [memory, of] : m().device_memory) ASAN_POISON_MEMORY_REGION(memory, of.first);
  }
};

}  // namespace

struct CUstream_st {
  int device;
  std::deque<Work> work;
  std::unique_ptr<CUgraph_st> capture;
  bool capture_broken = false;
};

struct CUevent_st {
  std::shared_ptr<Moment> moment;
};

struct CUgraph_st {
  std::vector<std::function<void()>> work;
};

struct CUgraphExec_st {
  std::vector<std::function<void()>> work;
};

namespace {

void do_next(cudaStream_t stream);

void do_until(const Moment& moment) {
  while (!moment.passed) {
    if (moment.stream->work.empty()) fail("an event that never happens");
    do_next(moment.stream);
  }
}

void do_next(cudaStream_t stream) {
  const OpenMemory open;
  const Work work = std::move(stream->work.front());
  stream->work.pop_front();
  if (work.awaited) do_until(*work.awaited);
  if (work.run) work.run();
}

void do_all(cudaStream_t stream) {
  const OpenMemory open;
  while (!stream->work.empty()) do_next(stream);
}

void do_all_of(int device) {
  for (const cudaStream_t stream : m().streams) {
    if (stream->device == device) do_all(stream);
  }
}

// What a stream does meanwhile.
void pass_time() {
  if (m().depth || m().pace == emulator::Pace::late) return;
  for (const cudaStream_t stream : m().streams) {
    if (m().pace == emulator::Pace::early) {
      do_all(stream);
      continue;
    }
    for (uint32_t left = m().random() % 4; left && !stream->work.empty(); --left) do_next(stream);
  }
}

// A call of the runtime by the host.
class Call {
 public:
  Call() : lock_(turn()) { pass_time(); }
  ~Call() { pass_time(); }

 private:
  // Lets the host's other threads have their turn now and then.
  static std::recursive_mutex& turn() {
    thread_local uint32_t calls = 0;
    if (m().pace == emulator::Pace::random && ++calls % 64 == 0) {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    return m().mutex;
  }

  const std::lock_guard<std::recursive_mutex> lock_;
};

// A call that may not be recorded breaks the recording that its thread makes.
bool breaks_capture() {
  if (!m().capturing) return false;
  m().capturing->capture_broken = true;
  return true;
}

cudaError_t enqueue(cudaStream_t stream, Work work) {
  if (stream->device != m().device) return error(cudaErrorInvalidResourceHandle);
  if (!stream->capture) {
    stream->work.push_back(std::move(work));
    return cudaSuccess;
  }
  if (stream->capture_broken) return error(cudaErrorStreamCaptureInvalidated);
  if (work.awaited || !work.run) fail("only kernels, copies and memsets are recorded here");
  stream->capture->work.push_back(std::move(work.run));
  return cudaSuccess;
}

// Threads of a block ------------------------------------------------------------------------------

// Runs threads of a block; from the barrier at which one stops on, that one.
struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  void* fake_stack = nullptr;
  dim3 thread;
  bool waits = false;
  int vote = 0;
  BarrierPlace place;
};

constexpr int kSharedBytes = 48 << 10;  // that every kernel may have

constexpr size_t kStackBytes = 32 * 1024;  // little: a sanitizer clears as much at every switch

struct Block {
  const std::function<void()>* thread = nullptr;
  unsigned next = 0, size = 0;
  bool backwards = false;
  std::vector<std::unique_ptr<Fiber>> fibers;
  Fiber* running = nullptr;
  ucontext_t scheduler;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  bool all_voted = false, any_voted = false;
  char* shared = nullptr;
} block;

void switch_to(Fiber& fiber) {
  block.running = &fiber;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&block.scheduler_fake_stack, fiber.stack.get(), kStackBytes);
#endif
  swapcontext(&block.scheduler, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(block.scheduler_fake_stack, nullptr, nullptr);
#endif
}

void arrive() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(block.running->fake_stack, &block.scheduler_stack,
                                  &block.scheduler_stack_bytes);
#endif
}

void switch_back() {
  Fiber& fiber = *block.running;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fiber.fake_stack, block.scheduler_stack,
                                 block.scheduler_stack_bytes);
#endif
  swapcontext(&fiber.context, &block.scheduler);
  arrive();
}

void fiber_main() {
  arrive();
  for (;;) {
    while (block.next < block.size) {
      const unsigned number = block.next++;
      block.running->thread = dim3(block.backwards ? block.size - 1 - number : number);
      threadIdx = block.running->thread;
      (*block.thread)();
    }
    switch_back();
  }
}

void run_block(const std::function<void()>& thread, unsigned size) {
  block.thread = &thread;
  block.size = size;
  block.next = 0;
  block.backwards = m().pace == emulator::Pace::random && m().random() % 2;
  std::vector<Fiber*> waiting;
  for (size_t i = 0; block.next < size; ++i) {
    if (i == block.fibers.size()) {
      auto fiber = std::make_unique<Fiber>();
      fiber->stack.reset(new char[kStackBytes]);
      getcontext(&fiber->context);
      fiber->context.uc_stack.ss_sp = fiber->stack.get();
      fiber->context.uc_stack.ss_size = kStackBytes;
      fiber->context.uc_link = nullptr;
      makecontext(&fiber->context, fiber_main, 0);
      block.fibers.push_back(std::move(fiber));
    }
    Fiber& fiber = *block.fibers[i];
    switch_to(fiber);
    if (fiber.waits) waiting.push_back(&fiber);
  }
  while (!waiting.empty()) {
    if (waiting.size() != size) fail("a barrier that not all threads of a block come to");
    block.all_voted = true;
    block.any_voted = false;
    for (const Fiber* fiber : waiting) {
      if (fiber->place.line() != waiting[0]->place.line() ||
          std::strcmp(fiber->place.file_name(), waiting[0]->place.file_name()) != 0) {
        fail("threads of a block at different barriers");
      }
      block.all_voted &= fiber->vote != 0;
      block.any_voted |= fiber->vote != 0;
    }
    std::vector<Fiber*> still;
    for (Fiber* fiber : waiting) {
      fiber->waits = false;
      threadIdx = fiber->thread;
      switch_to(*fiber);
      if (fiber->waits) still.push_back(fiber);
    }
    waiting = std::move(still);
  }
}

void barrier(int vote, const BarrierPlace& place) {
  Fiber& fiber = *block.running;
  fiber.waits = true;
  fiber.vote = vote;
  fiber.place = place;
  switch_back();
}

}  // namespace

double* dynamic_shared_memory() { return reinterpret_cast<double*>(block.shared); }

void __syncthreads(BarrierPlace place) { barrier(0, place); }

int __syncthreads_and(int vote, BarrierPlace place) {
  barrier(vote, place);
  return block.all_voted;
}

int __syncthreads_or(int vote, BarrierPlace place) {
  barrier(vote, place);
  return block.any_voted;
}

namespace emulator {

void set_pace(Pace pace, uint32_t seed) {
  m().pace = pace;
  m().random.seed(seed);
}

Machine& machine() { return m().machine; }
int64_t living_objects() { return m().objects; }
int64_t graph_launches() { return m().graph_launches; }

cudaError_t find_kernel() {
  return error(m().machine.runs_kernels ? cudaSuccess : cudaErrorNoKernelImageForDevice);
}

cudaError_t allow_shared_memory(const void* kernel, int bytes) {
  const Call call;
  if (bytes > m().machine.shared_memory) return error(cudaErrorInvalidValue);
  m().shared_memory[kernel] = bytes;
  return cudaSuccess;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel,
                   std::function<void()> thread) {
  const Call call;
  const dim3 grid = config.gridDim, size = config.blockDim;
  const bool valid = grid.x > 0 && grid.x < 0x80000000u && grid.y > 0 && grid.y <= 65535 &&
                     grid.z == 1 && size.x > 0 && size.x <= 1024 && size.y == 1 && size.z == 1;
  if (!valid) return error(cudaErrorInvalidConfiguration);
  const auto asked = m().shared_memory.find(kernel);
  const size_t shared = config.dynamicSmemBytes;
  const int most = asked == m().shared_memory.end() ? kSharedBytes : asked->second;
  if (shared > static_cast<size_t>(std::max(most, kSharedBytes))) {
    return error(cudaErrorInvalidValue);
  }
  return enqueue(config.stream, {.run = [grid, size, shared, thread = std::move(thread)] {
                   gridDim = grid;
                   blockDim = size;
                   for (unsigned y = 0; y < grid.y; ++y) {
                     for (unsigned x = 0; x < grid.x; ++x) {
                       blockIdx = dim3(x, y);
                       // Of exactly that size, and new for each block.
                       const std::unique_ptr<char[]> memory(new char[shared]);
                       std::memset(memory.get(), 0xFF, shared);
                       block.shared = memory.get();
                       run_block(thread, size.x);
                     }
                   }
                 }});
}

}  // namespace emulator

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory" : "an emulated error";
}

const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaErrorOther";
}

cudaError_t cudaGetLastError() { return std::exchange(m().last_error, cudaSuccess); }

cudaError_t cudaDriverGetVersion(int* version) {
  *version = m().machine.driver;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;
  if (m().machine.driver < CUDART_VERSION) return error(cudaErrorInsufficientDriver);
  if (m().machine.gpus == 0) return error(cudaErrorNoDevice);
  *count = m().machine.gpus;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device < 0 || device >= m().machine.gpus) return error(cudaErrorInvalidDevice);
  std::snprintf(properties->name, sizeof properties->name, "Emulated GPU %d", device);
  properties->major = 7;
  properties->minor = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device < 0 || device >= m().machine.gpus) return error(cudaErrorInvalidDevice);
  if (attribute != cudaDevAttrMaxSharedMemoryPerBlockOptin) return error(cudaErrorInvalidValue);
  *value = m().machine.shared_memory;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = m().device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= m().machine.gpus) return error(cudaErrorInvalidDevice);
  m().device = device;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  const Call call;
  if (breaks_capture()) return error(cudaErrorStreamCaptureUnsupported);
  size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  if (bytes > free) return error(cudaErrorMemoryAllocation);
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(*memory, 0xFF, bytes);
  ASAN_POISON_MEMORY_REGION(*memory, (bytes + 255) / 256 * 256);
  m().device_memory[*memory] = {bytes, m().device};
  ++m().objects;
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  const Call call;
  if (breaks_capture()) return error(cudaErrorStreamCaptureUnsupported);
  const auto found = m().device_memory.find(memory);
  if (found == m().device_memory.end()) return error(cudaErrorInvalidValue);
  do_all_of(found->second.second);  // as CUDA does
  ASAN_UNPOISON_MEMORY_REGION(memory, (found->second.first + 255) / 256 * 256);
  m().device_memory.erase(found);
  std::free(memory);
  --m().objects;
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  const Call call;
  if (breaks_capture()) return error(cudaErrorStreamCaptureUnsupported);
  size_t used = 0;
  for (const auto& [address, size] : m().pinned_memory) used += size;
  if (used + bytes > m().machine.memory) return error(cudaErrorMemoryAllocation);
  *memory = std::malloc(bytes);
  std::memset(*memory, 0xFF, bytes);
  m().pinned_memory[*memory] = bytes;
  ++m().objects;
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* memory) {
  const Call call;
  if (!m().pinned_memory.erase(memory)) return error(cudaErrorInvalidValue);
  std::free(memory);  // the sanitizer reports whoever still reads it
  --m().objects;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  size_t used = 0;
  for (const auto& [memory, of] : m().device_memory) used += of.second == m().device ? of.first : 0;
  *total = m().machine.memory;
  *free = *total - std::min(used, *total);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  const Call call;
  return enqueue(stream, {.run = [=] { std::memset(memory, value, bytes); }});
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  const Call call;
  return enqueue(stream, {.run = [=] { std::memcpy(to, from, bytes); }});
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  const Call call;
  *stream = new CUstream_st{.device = m().device};
  m().streams.insert(*stream);
  ++m().objects;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Call call;
  do_all(stream);
  m().streams.erase(stream);
  delete stream;
  --m().objects;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Call call;
  if (breaks_capture()) return error(cudaErrorStreamCaptureUnsupported);
  do_all(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const Call call;
  if (!event->moment) return cudaSuccess;
  return enqueue(stream, {.run = {}, .awaited = event->moment});
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const Call call;
  if (stream->capture) return error(cudaErrorInvalidValue);
  stream->capture = std::make_unique<CUgraph_st>();
  stream->capture_broken = false;
  m().capturing = stream;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const Call call;
  *graph = nullptr;
  if (!stream->capture) return error(cudaErrorInvalidValue);
  const auto capture = std::exchange(stream->capture, nullptr);
  m().capturing = nullptr;
  if (stream->capture_broken) return error(cudaErrorStreamCaptureInvalidated);
  *graph = new CUgraph_st(*capture);
  ++m().objects;
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  const Call call;
  *event = new CUevent_st;
  ++m().objects;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const Call call;
  delete event;
  --m().objects;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const Call call;
  event->moment = std::make_shared<Moment>(stream);
  return enqueue(stream, {.run = [moment = event->moment] { moment->passed = true; }});
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Call call;
  if (breaks_capture()) return error(cudaErrorStreamCaptureUnsupported);
  if (event->moment) do_until(*event->moment);
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
  const Call call;
  *executable = new CUgraphExec_st{graph->work};
  ++m().objects;
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  *count = graph->work.size();
  for (size_t i = 0; nodes && i < *count; ++i) nodes[i] = &graph->work[i];
  return cudaSuccess;
}

// Kernels are all that a capture takes here.
cudaError_t cudaGraphNodeGetType(cudaGraphNode_t, cudaGraphNodeType* type) {
  *type = cudaGraphNodeTypeKernel;
  return cudaSuccess;
}

cudaError_t cudaGraphMemcpyNodeGetParams(cudaGraphNode_t, cudaMemcpy3DParms*) {
  return error(cudaErrorInvalidValue);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  const Call call;
  ++m().graph_launches;
  for (const auto& work : executable->work) {
    if (const cudaError_t failed = enqueue(stream, {.run = work})) return failed;
  }
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  const Call call;
  delete graph;
  --m().objects;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  const Call call;
  delete executable;
  --m().objects;
  return cudaSuccess;
}
