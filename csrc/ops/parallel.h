// Runs a loop's iterations on the caller's thread pool. Inside ONNX Runtime this is the session's
// own pool, so that no second pool competes for the processors.
#pragma once

#include <cstddef>
#include <exception>
#include <mutex>

namespace pyinv::ops {

struct Parallel {
  using Task = void (*)(void* state, std::size_t index);

  void (*run)(void* pool, std::size_t count, Task task, void* state) = nullptr;  // null: in order
  void* pool = nullptr;

  // Rethrows the first exception of an iteration once all have ended, because the pool's threads
  // do not handle exceptions.
  template <class Body>
  void for_each(std::size_t count, const Body& body) const {
    if (!run || count < 2) {
      for (std::size_t index = 0; index < count; ++index) body(index);
      return;
    }
    struct State {
      const Body& body;
      std::once_flag failed;
      std::exception_ptr failure;
    } state{body, {}, {}};
    run(
        pool, count,
        [](void* shared, std::size_t index) {
          auto& own = *static_cast<State*>(shared);
          try {
            own.body(index);
          } catch (...) {
            std::call_once(own.failed, [&] { own.failure = std::current_exception(); });
          }
        },
        &state);
    if (state.failure) std::rethrow_exception(state.failure);
  }
};

}  // namespace pyinv::ops
