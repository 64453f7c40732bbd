#include "pyinv/stream.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <limits>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <utility>

namespace pyinv {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
// The run's thread looks at keep_going this often while it has no targets.
constexpr std::chrono::milliseconds kIdle{20};
// While targets wait for lanes, a result waits this long for more, because it costs less to hand
// them over together: for a sixteenth of the rows, up to kGathered.
constexpr std::chrono::milliseconds kGather{30};
constexpr int64_t kGathered = 8;

const float* given(const std::vector<float>& values) {
  return values.empty() ? nullptr : values.data();
}

}  // namespace

// A target occupies a row of the arrays from put() until take().
class Stream::Impl : public Queue {
 public:
  Impl(std::vector<const Objective*> objectives, const Prior& prior, const Recipe& recipe,
       const StreamOptions& options)
      : objectives_(std::move(objectives)) {
    if (objectives_.empty()) throw std::invalid_argument("a stream needs an objective");
    if (options.rows < 1) throw std::invalid_argument("a stream needs at least one row");
    const Objective& first = *objectives_.front();
    const auto rows = static_cast<size_t>(options.rows);
    latent_size_ = first.latent_size();
    image_size_ = first.image_size();
    condition_size_ = first.condition_size();
    images_.resize(rows * image_size_);
    conditions_.resize(rows * condition_size_);
    weights_.resize(first.takes_weights() ? rows * image_size_ : 0);
    initial_.resize(options.has_initial ? rows * latent_size_ : 0);
    latents_.resize(rows * latent_size_);
    loss_.resize(rows);
    ids_.resize(rows);
    numbers_.resize(rows);
    steps_.resize(rows);
    normal_equations_.resize(rows);
    attempts_.resize(rows);
    status_.resize(rows);
    for (int64_t row = options.rows; row-- > 0;) free_.push_back(row);
    gathered_ = static_cast<size_t>(std::clamp<int64_t>(options.rows / 16, 1, kGathered));
    if (options.preconditioner) {
      preconditioner_.assign(options.preconditioner,
                             options.preconditioner + latent_size_ * latent_size_);
    }
    const Targets targets{.count = options.rows,
                          .image = images_.data(),
                          .initial = given(initial_),
                          .condition = given(conditions_),
                          .weights = given(weights_),
                          .id = ids_.data()};
    const Results results{.latent = latents_.data(),
                          .loss = loss_.data(),
                          .status = status_.data(),
                          .steps = steps_.data(),
                          .attempts = attempts_.data(),
                          .normal_equations = normal_equations_.data()};
    const RunOptions run_options{.seed = options.seed,
                                 .lanes = options.lanes,
                                 .preconditioner = given(preconditioner_),
                                 .queue = this,
                                 .keep_going = [this](const Progress&) { return keeps_going(); },
                                 .cancellation = &cancellation_};
    thread_ = std::thread([this, prior, recipe, targets, results, run_options] {
      std::exception_ptr failure;
      try {
        run(objectives_, prior, recipe, targets, run_options, results);
      } catch (...) {
        failure = std::current_exception();
      }
      const std::lock_guard lock(mutex_);
      failure_ = std::move(failure);
      over_ = true;
      changed_.notify_all();
      ready_.notify_all();
    });
  }

  int64_t put(const Targets& targets, std::chrono::milliseconds wait) {
    const auto expect = [](bool is_given, bool is_needed, const char* name) {
      if (is_given != is_needed) {
        throw std::invalid_argument(std::string("a target of this stream has ") +
                                    (is_needed ? "" : "no ") + name);
      }
    };
    expect(targets.initial, !initial_.empty(), "initial latent");
    expect(targets.condition, condition_size_ > 0, "condition");
    if (targets.weights) expect(true, !weights_.empty(), "weights");
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, wait, [this] { return !free_.empty() || over_ || stopped_; });
    if (over_ || stopped_ || ended_) return 0;
    const int64_t taken = std::min<int64_t>(targets.count, static_cast<int64_t>(free_.size()));
    for (int64_t i = 0; i < taken; ++i) {
      const int64_t row = free_.back();
      free_.pop_back();
      const auto copy = [&](const float* from, int64_t size, std::vector<float>& to, bool shared) {
        if (from) std::copy_n(from + (shared ? 0 : i * size), size, to.data() + row * size);
      };
      copy(targets.image, image_size_, images_, false);
      copy(targets.initial, latent_size_, initial_, false);
      copy(targets.condition, condition_size_, conditions_, false);
      if (!weights_.empty() && !targets.weights) {
        std::fill_n(weights_.data() + row * image_size_, image_size_, 1.0f);
      }
      copy(targets.weights, image_size_, weights_, targets.shared_weights);
      ids_[row] = targets.id[i];
      numbers_[row] = next_number_++;
      waiting_.push_back(row);
    }
    changed_.notify_all();
    return taken;
  }

  void end() {
    const std::lock_guard lock(mutex_);
    ended_ = true;
    changed_.notify_all();
  }

  std::optional<std::vector<StreamResult>> take(std::chrono::milliseconds wait) {
    std::unique_lock lock(mutex_);
    ready_.wait_for(lock, wait, [this] { return !finished_.empty() || over_; });
    if (!finished_.empty()) ready_.wait_for(lock, kGather, [this] { return gathered(); });
    if (finished_.empty() && over_) {
      if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
      return std::nullopt;
    }
    std::vector<StreamResult> results;
    results.reserve(finished_.size());
    for (const int64_t row : finished_) {
      const float* latent = latents_.data() + row * latent_size_;
      results.push_back({.number = numbers_[row],
                         .status = status_[row],
                         .loss = loss_[row],
                         .steps = steps_[row],
                         .normal_equations = normal_equations_[row],
                         .attempts = attempts_[row],
                         .latent = {latent, latent + latent_size_}});
    }
    free_.insert(free_.end(), finished_.begin(), finished_.end());
    finished_.clear();
    changed_.notify_all();
    return results;
  }

  void cancel(std::span<const int64_t> numbers) {
    const std::set<int64_t> unwanted(numbers.begin(), numbers.end());
    const std::lock_guard lock(mutex_);
    const auto is_unwanted = [&](int64_t row) { return unwanted.contains(numbers_[row]); };
    std::erase_if(waiting_, [&](int64_t row) {
      if (!is_unwanted(row)) return false;
      status_[row] = Status::cancelled;
      loss_[row] = kNaN;
      steps_[row] = normal_equations_[row] = attempts_[row] = 0;
      std::fill_n(latents_.data() + row * latent_size_, latent_size_, kNaN);
      finished_.push_back(row);
      return true;
    });
    for (const int64_t row : running_) {
      if (is_unwanted(row)) dropped_.insert(row);
    }
    ready_.notify_all();
  }

  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
      changed_.notify_all();
    }
    cancellation_.cancel();
    const std::lock_guard lock(joining_);
    if (thread_.joinable()) thread_.join();
  }

 private:
  bool keeps_going() {
    const std::lock_guard lock(mutex_);
    return !stopped_;
  }

  int64_t next(bool wait) override {
    std::unique_lock lock(mutex_);
    if (wait) {
      changed_.wait_for(lock, kIdle, [this] { return !waiting_.empty() || ended_ || stopped_; });
    }
    if (stopped_) return kNone;
    if (waiting_.empty()) return ended_ ? kEnd : kNone;
    const int64_t row = waiting_.front();
    waiting_.pop_front();
    running_.insert(row);
    if (waiting_.empty() && !finished_.empty()) ready_.notify_all();
    return row;
  }

  bool dropped(int64_t row) override {
    const std::lock_guard lock(mutex_);
    return dropped_.contains(row);
  }

  void finish(int64_t row) override {
    const std::lock_guard lock(mutex_);
    running_.erase(row);
    dropped_.erase(row);
    finished_.push_back(row);
    if (finished_.size() == 1 || gathered()) ready_.notify_all();
  }

  // Whether take() need not wait for more results.
  bool gathered() const { return over_ || waiting_.empty() || finished_.size() >= gathered_; }

  const std::vector<const Objective*> objectives_;
  int64_t latent_size_ = 0, image_size_ = 0, condition_size_ = 0;
  std::vector<float> images_, conditions_, weights_, initial_, latents_, loss_, preconditioner_;
  std::vector<uint64_t> ids_;
  std::vector<int64_t> numbers_, steps_, normal_equations_;
  std::vector<int32_t> attempts_;
  std::vector<Status> status_;

  std::mutex mutex_, joining_;
  std::condition_variable changed_, ready_;  // of put() and next(), of take()
  std::vector<int64_t> free_, finished_;     // rows
  std::deque<int64_t> waiting_;
  std::set<int64_t> running_, dropped_;
  size_t gathered_ = 1;
  int64_t next_number_ = 0;
  bool ended_ = false, stopped_ = false, over_ = false;
  std::exception_ptr failure_;
  Cancellation cancellation_;
  std::thread thread_;
};

Stream::Stream(std::vector<const Objective*> objectives, const Prior& prior, const Recipe& recipe,
               const StreamOptions& options)
    : impl_(std::make_unique<Impl>(std::move(objectives), prior, recipe, options)) {}

Stream::~Stream() { impl_->stop(); }

int64_t Stream::put(const Targets& targets, std::chrono::milliseconds wait) {
  return impl_->put(targets, wait);
}

void Stream::end() { impl_->end(); }

std::optional<std::vector<StreamResult>> Stream::take(std::chrono::milliseconds wait) {
  return impl_->take(wait);
}

void Stream::cancel(std::span<const int64_t> numbers) { impl_->cancel(numbers); }

void Stream::stop() { impl_->stop(); }

}  // namespace pyinv
