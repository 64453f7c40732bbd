// Work in a thread of its own, while the caller's looks for signals: Python handles them there.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

#include "pyinv/cancellation.h"
#include "unlocked.h"

namespace pyinv {

// One piece of work. Every 20 ms it is cancelled if a signal's handler or `look` raises, or `look`
// returns false; then the caller gets that exception.
class Attended {
 public:
  // Called in the caller's thread, with the GIL.
  using Look = std::function<bool()>;

  explicit Attended(Look look) : look_(std::move(look)) {}

  Cancellation& cancellation() { return cancellation_; }

  // Does the work in a new thread, without the GIL, and returns what it throws.
  std::exception_ptr run(const std::function<void()>& work) {
    std::exception_ptr failure;
    {
      const Unlocked unlocked;
      std::thread thread([&] {
        try {
          work();
        } catch (...) {
          failure = std::current_exception();
        }
        const std::lock_guard lock(mutex_);
        done_ = true;
        changed_.notify_all();
      });
      attend();
      thread.join();
    }
    return raised_ ? raised_ : failure;
  }

  // Whether run() returned what a signal's handler or `look` raised.
  bool raised() const { return raised_ != nullptr; }

  // Called by the work from time to time: has the caller look at once, and waits for that. Returns
  // whether to go on.
  bool meet() {
    std::unique_lock lock(mutex_);
    waits_ = true;
    changed_.notify_all();
    changed_.wait(lock, [this] { return !waits_; });
    return !cancellation_.cancelled();
  }

 private:
  void attend() {
    std::unique_lock lock(mutex_);
    while (!done_) {
      changed_.wait_for(lock, kTick, [this] { return done_ || waits_; });
      if (done_) return;
      lock.unlock();
      if (!cancellation_.cancelled() && !goes_on()) cancellation_.cancel();
      lock.lock();
      waits_ = false;
      changed_.notify_all();
    }
  }

  bool goes_on() {
    if (calls::ending) return false;
    const pybind11::gil_scoped_acquire gil;
    try {
      if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
      return look_();
    } catch (...) {
      raised_ = std::current_exception();
      return false;
    }
  }

  static constexpr std::chrono::milliseconds kTick{20};

  const Look look_;
  Cancellation cancellation_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false, waits_ = false;
  std::exception_ptr raised_;
};

}  // namespace pyinv
