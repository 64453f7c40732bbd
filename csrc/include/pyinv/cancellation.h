// Ends a run, or a function's call, from another thread.
#pragma once

#include <atomic>
#include <functional>
#include <list>
#include <mutex>
#include <utility>

namespace pyinv {

class Cancellation {
 public:
  Cancellation() = default;
  Cancellation(const Cancellation&) = delete;
  Cancellation& operator=(const Cancellation&) = delete;

  // Ends what uses this object, now and later. May be called at any time, from any thread.
  void cancel() {
    const std::lock_guard lock(mutex_);
    cancelled_ = true;
    for (const auto& stop : stops_) stop();
  }
  bool cancelled() const { return cancelled_; }

  // While it lives, cancel() calls `stop`; if that has happened already, its constructor does.
  class Watch {
   public:
    // `of` may be null.
    Watch(Cancellation* of, std::function<void()> stop) : of_(of) {
      if (!of_) return;
      const std::lock_guard lock(of_->mutex_);
      if (of_->cancelled_) stop();
      place_ = of_->stops_.insert(of_->stops_.end(), std::move(stop));
    }
    ~Watch() {
      if (!of_) return;
      const std::lock_guard lock(of_->mutex_);
      of_->stops_.erase(place_);
    }
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

   private:
    Cancellation* of_;
    std::list<std::function<void()>>::iterator place_;
  };

 private:
  std::atomic<bool> cancelled_ = false;
  std::mutex mutex_;
  std::list<std::function<void()>> stops_;
};

}  // namespace pyinv
