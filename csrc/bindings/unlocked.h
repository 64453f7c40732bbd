// Work without Python's lock (the GIL), which the interpreter waits for when it ends.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <thread>

namespace pyinv {

// A thread that takes the GIL while the interpreter ends is ended by it, in the middle of C++ code,
// which aborts the process. So the calls that are under way are counted. At exit they end within a
// step and are waited for, and threads that make new ones stop there, as daemon threads that take
// the GIL do in Python 3.14. Each extension module counts its own.
namespace calls {
inline std::atomic<int64_t> under_way = 0;
inline std::atomic<bool> ending = false;
inline std::thread::id ending_thread;   // the interpreter's main one
inline std::atomic<int64_t> forks = 0;  // of this process and its ancestors
}  // namespace calls

// Releases the GIL for its lifetime. Throws std::runtime_error in the thread that ends the
// interpreter.
class Unlocked {
 public:
  Unlocked() {
    const bool refused = calls::ending;
    if (refused && calls::ending_thread == std::this_thread::get_id()) {
      throw std::runtime_error("the interpreter is shutting down");
    }
    if (!refused) ++calls::under_way;
    state_ = PyEval_SaveThread();
    while (refused) std::this_thread::sleep_for(std::chrono::hours(1));
  }
  ~Unlocked() {
    PyEval_RestoreThread(state_);
    --calls::under_way;
  }
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

 private:
  PyThreadState* state_;
};

// Has the interpreter wait for the module's calls at exit, and forget those of other threads in a
// forked process.
inline void count_calls() {
  namespace py = pybind11;
  const py::cpp_function end([] {
    calls::ending_thread = std::this_thread::get_id();
    calls::ending = true;
    const py::gil_scoped_release release;
    while (calls::under_way > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  });
  py::module_::import("atexit").attr("register")(end);
  const py::module_ os = py::module_::import("os");
  if (py::hasattr(os, "register_at_fork")) {
    using namespace py::literals;
    os.attr("register_at_fork")("after_in_child"_a = py::cpp_function([] {
                                  calls::under_way = 0;
                                  ++calls::forks;
                                }));
  }
}

}  // namespace pyinv
