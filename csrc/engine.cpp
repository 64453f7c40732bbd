#include "pyinv/engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "backend.h"
#include "solvers/solvers.h"

namespace pyinv {
namespace {

using Clock = std::chrono::steady_clock;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// The time between polls of an asynchronous device, which is also polled after kMaxStepsPerPoll
// steps.
constexpr double kSecondsPerPoll = 0.01;
constexpr int64_t kMaxStepsPerPoll = 64;
constexpr int64_t kStepsBeforeCapture = 2;
// The most step shapes whose graphs are cached.
constexpr size_t kMaxGraphs = 64;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

Moments moments_of(const Prior& prior) {
  if (prior.kind == PriorKind::normal) return {prior.mean, prior.std};
  return {0.5 * (double{prior.low} + prior.high),
          (double{prior.high} - prior.low) / std::sqrt(12.0)};
}

// The prior that a penalty uses: a uniform prior is replaced by a normal one with the same mean and
// deviation.
Prior with_moments(Prior prior) {
  const Moments moments = moments_of(prior);
  prior.mean = static_cast<float>(moments.mean);
  prior.std = static_cast<float>(moments.std);
  return prior;
}

// Properties of a stage that depend on its solver.
struct SolverTraits {
  std::string name;
  bool makes_trials = false, solves_normal_equations = false;
};

SolverTraits traits_of(const Stage& stage) {
  SolverTraits traits;
  Solvers::visit(stage.solver.kind, [&](auto solver) {
    traits = {solver.kName, solver.kMakesTrials, solver.kSolvesNormalEquations};
  });
  return traits;
}

bool makes_trials(const Stage& stage) { return traits_of(stage).makes_trials; }

bool solves_normal_equations(const Stage& stage) {
  return traits_of(stage).solves_normal_equations;
}

StageRule resolve(const Stage& stage, const Prior& prior) {
  const int64_t horizon = std::max<int64_t>(
      1, stage.constraint.horizon > 0 ? stage.constraint.horizon : stage.max_steps);
  StepRule step{};
  step.prior = prior;
  step.solver = stage.solver.kind;
  step.constraint = stage.constraint;
  step.inverse_horizon = static_cast<float>(1.0 / static_cast<double>(horizon));
  step.reset_moments = stage.reset_moments;
  Solvers::visit(stage.solver.kind, [&](auto solver) {
    if constexpr (!solver.kMakesTrials) solver.resolve(stage.solver, step);
  });
  const SolverTraits traits = traits_of(stage);
  return {.step = step,
          .solver = stage.solver,
          .penalties = stage.penalties,
          .objective = static_cast<int32_t>(stage.objective),
          .normal_equations =
              static_cast<int32_t>(traits.solves_normal_equations ? stage.normal_equations : -1),
          .makes_trials = traits.makes_trials,
          .max_steps = stage.max_steps,
          .patience = stage.patience,
          .loss_tolerance = stage.loss_tolerance,
          .change_tolerance = stage.change_tolerance,
          .relative_change_tolerance = stage.relative_change_tolerance};
}

std::shared_ptr<Backend> backend_of(const std::vector<const Objective*>& objectives) {
  const std::shared_ptr<Device> device = objectives.front()->device();
  for (const Objective* objective : objectives) {
    if (objective->device() != device) {
      throw std::invalid_argument("the objectives of a run must share their device");
    }
  }
  const auto backend = std::dynamic_pointer_cast<Backend>(device);
  if (!backend) throw std::invalid_argument("a device comes from cpu_device() or cuda_device()");
  return backend;
}

// The host's side of a run. It puts steps into the device's stream and polls the lanes' status from
// time to time. A lane whose target is finished waits for a poll, after which the host gives it the
// next target. A lane whose next stage needs another objective also waits for a poll.
class Run {
 public:
  Run(const std::vector<const Objective*>& objectives, const Prior& prior, const Recipe& recipe,
      const Targets& targets, const RunOptions& options, const Results& results)
      : device_(backend_of(objectives)),
        exclusive_(device_->exclusive()),
        targets_(targets),
        options_(options),
        results_(results),
        latent_size_(objectives.front()->latent_size()),
        lanes_(std::min(options.lanes, std::max<int64_t>(1, targets.count))),
        coupled_(options.coupled),
        solves_(std::any_of(recipe.stages.begin(), recipe.stages.end(), solves_normal_equations)),
        reports_ahead_(solves_                  ? 0
                       : options.poll_every > 0 ? 1
                                                : device_->reports_ahead()),
        poll_every_(solves_ ? 1 : std::max<int64_t>(1, options.poll_every)) {
    std::vector<StageRule> stages;
    for (const Stage& stage : recipe.stages) {
      stages.push_back(resolve(stage, with_moments(prior)));
      over_batch_ |= stage.penalties.moments == MomentScope::batch;
      Storage& storage = arrays_.storage;
      Solvers::visit(stage.solver.kind, [&](auto solver) {
        const Storage wanted = solver.storage(stage.solver);
        storage = {.vectors = std::max(storage.vectors, wanted.vectors),
                   .count_vectors = std::max(storage.count_vectors, wanted.count_vectors),
                   .doubles = std::max(storage.doubles, wanted.doubles)};
      });
      if (makes_trials(stage)) proposing_.insert(stage.solver.kind);
    }
    coupled_ |= over_batch_;
    const double stay = prior.kind == PriorKind::uniform
                            ? 1.0 - recipe.hop_size
                            : std::sqrt(1.0 - recipe.hop_size * recipe.hop_size);
    const Penalties& last = recipe.stages.back().penalties;
    const RunRule rule{
        .prior = with_moments(prior),
        .prior_moments = moments_of(prior),
        .seed = options.seed,
        .latent_size = latent_size_,
        .restarts = recipe.restarts,
        .trace_every = options.trace_every,
        .trace_length = results.trace ? trace_length(recipe, options.trace_every) : 0,
        .stages = static_cast<int32_t>(stages.size()),
        .keep_best = recipe.keep_best,
        .coupled = coupled_,
        .start = recipe.start,
        .hop = static_cast<float>(recipe.hop_size),
        .stay = static_cast<float>(stay),
        .rank_weight = last.anneal_prior ? 0.0f : last.prior_weight,
        .rank_relative = last.relative_prior};
    arrays_.lanes = lanes_;
    arrays_.latent_size = latent_size_;
    arrays_.image_size = objectives.front()->image_size();
    arrays_.condition_size = targets.condition ? objectives.front()->condition_size() : 0;
    arrays_.weights_size = objectives.front()->takes_weights() ? arrays_.image_size : 0;
    arrays_.truth_size = results.min_latent_error ? latent_size_ : 0;
    arrays_.trace_length = rule.trace_length;
    for (const Objective* objective : objectives) {
      has_gram_.push_back(objective->has_gram());
      if (has_gram_.back()) arrays_.gram_size = latent_size_ * latent_size_;
    }

    arrays_.rule = upload(&rule, 1);
    arrays_.stages = upload(stages.data(), stages.size());
    const int64_t components = lanes_ * latent_size_;
    const std::vector<LaneState> idle(lanes_, LaneState{.done = true});
    arrays_.state = upload(idle.data(), idle.size());
    arrays_.latent = allocate<float>(components);
    arrays_.attempt_latent = allocate<float>(components);
    arrays_.gradient = allocate<float>(components);
    arrays_.gram = allocate<float>(lanes_ * arrays_.gram_size);
    arrays_.vectors = allocate<float>(components * arrays_.storage.vectors);
    arrays_.count_vectors = allocate<uint32_t>(components * arrays_.storage.count_vectors);
    arrays_.doubles = allocate<double>(lanes_ * arrays_.storage.doubles);
    int64_t scratch = 0;
    for (const SolverKind kind : proposing_) {
      scratch = std::max(scratch, device_->propose_scratch(kind, latent_size_, lanes_));
    }
    arrays_.scratch = allocate<double>(scratch);
    if (options.preconditioner && proposing_.contains(SolverKind::lbfgs)) {
      arrays_.preconditioner = upload(options.preconditioner, latent_size_ * latent_size_);
    }
    arrays_.loss = allocate<float>(lanes_);
    arrays_.image = allocate<float>(lanes_ * arrays_.image_size);
    arrays_.condition = allocate<float>(lanes_ * arrays_.condition_size);
    arrays_.weights = allocate<float>(lanes_ * arrays_.weights_size);
    arrays_.truth = allocate<float>(lanes_ * arrays_.truth_size);
    arrays_.batch_moments = allocate<Moments>(1);
    arrays_.best_latent = allocate_shared<float>(components);
    arrays_.trace = allocate_shared<float>(lanes_ * rule.trace_length);
    for (int64_t i = 0; i <= reports_ahead_; ++i) {
      free_polls_.push_back({allocate_shared<LaneReport>(lanes_), device_->make_event(), 0, 0});
    }
    held_.resize(lanes_);
    largest_.resize(objectives.size());
    for (const Objective* objective : objectives) {
      evaluators_.push_back(objective->bind(
          {arrays_.latent, arrays_.image, arrays_.condition_size ? arrays_.condition : nullptr,
           arrays_.weights_size ? arrays_.weights : nullptr, arrays_.loss, arrays_.gradient,
           arrays_.gram_size ? arrays_.gram : nullptr, lanes_}));
    }
    first_objective_ = first_objective(stages.front());
    progress_.targets = options.queue ? 0 : targets.count;
    progress_.mean_loss = kNaN;
    Targets given = targets;
    if (arrays_.weights_size && !targets.weights) {
      ones_.assign(arrays_.image_size, 1.0f);
      given.weights = ones_.data();
      given.shared_weights = true;
    }
    loader_ = device_->make_loader(arrays_, given, options.queue != nullptr);
    watch_.emplace(options.cancellation, [this] {
      for (const auto& evaluator : evaluators_) evaluator->interrupt();
    });
  }

  // The device must have finished with the run's memory before it is freed.
  ~Run() {
    try {
      device_->synchronize();
    } catch (const std::exception&) {
      // The same error is already being reported.
    }
  }

  RunSummary operator()() {
    const auto start = Clock::now();
    while (refill()) {
      const auto round = Clock::now();
      if (active_ > 0) {
        try {
          for (int64_t i = 0; i < poll_every_; ++i) step();
          poll();
        } catch (...) {
          if (!is_cancelled()) throw;
        }
      }
      if (is_cancelled() || (options_.keep_going && !options_.keep_going(progress_))) {
        summary_.cancelled = true;
        break;
      }
      if (reports_ahead_ && !options_.poll_every) adapt(seconds_since(round));
    }
    if (summary_.cancelled && active_ > 0) abandon();
    summary_.total_seconds = seconds_since(start);
    return summary_;
  }

 private:
  bool is_cancelled() const { return options_.cancellation && options_.cancellation->cancelled(); }

  // The host's record of a lane.
  struct Held {
    int64_t row = -1;  // the target's row
    int32_t objective = 0;
    int64_t since = 0;  // polls up to this number are about the lane's previous content
  };

  // A report that was requested and has not arrived.
  struct Poll {
    LaneReport* reports;
    std::unique_ptr<Event> event;
    int64_t active;  // number of lanes in the report
    int64_t number;  // from 1
  };

  template <class T>
  T* allocate(int64_t count) {
    memory_.push_back(device_->allocate(static_cast<size_t>(count) * sizeof(T)));
    return static_cast<T*>(memory_.back().get());
  }
  template <class T>
  T* allocate_shared(int64_t count) {
    memory_.push_back(device_->allocate_shared(static_cast<size_t>(count) * sizeof(T)));
    return static_cast<T*>(memory_.back().get());
  }
  template <class T>
  T* upload(const T* values, size_t count) {
    T* memory = allocate<T>(static_cast<int64_t>(count));
    device_->upload(memory, values, count * sizeof(T));
    return memory;
  }

  // Steps ---------------------------------------------------------------------------------------

  struct Range {
    int32_t objective;
    int64_t first, count;
    auto operator<=>(const Range&) const = default;
  };

  // The ranges of lanes with the same objective. Such lanes are adjacent.
  std::vector<Range> ranges() const {
    std::vector<Range> found;
    for (int64_t first = 0; first < active_;) {
      int64_t last = first + 1;
      while (last < active_ && held_[last].objective == held_[first].objective) ++last;
      const int32_t objective = held_[first].objective;
      if (has_gram_[objective]) {
        // Only those needed: an evaluation of normal equations costs as much as a hundred others,
        // and lanes outside the range keep their grams.
        while (first < last) {
          const int64_t count = rounded_down(last - first);
          found.push_back({objective, first, count});
          first += count;
        }
        continue;
      }
      // Results beyond the range are overwritten by the next range, or are not used.
      const int64_t count =
          coupled_ ? last - first : device_->rounded(last - first, lanes_ - first);
      found.push_back({objective, first, count});
      first = last;
    }
    return found;
  }

  // The largest batch size of at most `count` lanes that the device uses.
  int64_t rounded_down(int64_t count) const {
    const int64_t up = device_->rounded(count, 2 * count);
    return up > count ? up / 2 : count;
  }

  void step() {
    if (lanes_changed_) update_ranges();
    summary_.evaluations += active_;
    if (device_->kind() == DeviceKind::cpu) {
      const auto start = Clock::now();
      evaluate();
      summary_.objective_seconds += seconds_since(start);
      advance();
      return;
    }
    // The first steps of a shape let the runtime prepare: ONNX Runtime still allocates in the
    // second one.
    if (shape_->steps == kStepsBeforeCapture && capturable()) {
      shape_->graph = device_->capture([this] {
        evaluate();
        advance();
      });
    }
    ++shape_->steps;
    if (shape_->graph) {
      shape_->graph->launch();
    } else {
      evaluate();
      advance();
    }
  }

  // Updates the ranges of lanes per objective.
  void update_ranges() {
    lanes_changed_ = false;
    std::vector<Range> now = ranges();
    if (now == ranges_) return;
    ranges_ = std::move(now);
    // A runtime may move memory when a batch grows, which invalidates addresses in graphs.
    bool grows = false;
    for (const Range& range : ranges_) {
      grows |= range.count > largest_[range.objective];
      largest_[range.objective] = std::max(largest_[range.objective], range.count);
    }
    if (grows || shapes_.size() >= kMaxGraphs) shapes_.clear();
    shape_ = &shapes_[ranges_];
    if (!shape_->graph) shape_->steps = 0;  // only consecutive steps prepare a runtime
  }

  bool capturable() const {
    return std::all_of(ranges_.begin(), ranges_.end(), [this](const Range& range) {
      return evaluators_[range.objective]->capturable();
    });
  }

  void evaluate() {
    for (const Range& range : ranges_) {
      evaluators_[range.objective]->evaluate(range.first, range.count);
    }
  }

  // Lanes evaluated beyond the active range are done, and do not change.
  void advance() {
    const int64_t lanes = ranges_.back().first + ranges_.back().count;
    if (over_batch_) device_->batch_moments(arrays_, lanes);
    device_->update_status(arrays_, lanes);
    if (coupled_) device_->decide_group(arrays_, lanes);
    for (const SolverKind kind : proposing_) device_->propose(arrays_, kind, lanes);
    device_->step(arrays_, lanes);
  }

  // Adapts the poll interval to about kSecondsPerPoll.
  void adapt(double seconds) {
    if (seconds < kSecondsPerPoll) {
      poll_every_ = std::min(2 * poll_every_, kMaxStepsPerPoll);
    } else if (seconds > 4 * kSecondsPerPoll) {
      poll_every_ = std::max<int64_t>(1, poll_every_ / 2);
    }
  }

  // Polls ---------------------------------------------------------------------------------------

  // Requests a report, and processes the oldest one if enough newer ones are pending.
  void poll() {
    ask();
    if (static_cast<int64_t>(asked_.size()) <= reports_ahead_) return;
    Poll poll = std::move(asked_.front());
    asked_.pop_front();
    poll.event->wait();
    take_in(poll);
    free_polls_.push_back(std::move(poll));
  }

  void ask() {
    Poll poll = std::move(free_polls_.back());
    free_polls_.pop_back();
    poll.active = active_;
    poll.number = ++polls_;
    device_->report(arrays_, active_, poll.reports);
    poll.event->record();
    asked_.push_back(std::move(poll));
  }

  void take_in(const Poll& poll) {
    double sum = 0.0;
    int64_t finite = 0, at_work = 0;
    for (int64_t lane = 0; lane < poll.active; ++lane) {
      const LaneReport& report = poll.reports[lane];
      at_work += !report.done;
      if (report.done || !std::isfinite(report.loss)) continue;
      sum += report.loss;
      ++finite;
    }
    handle(poll);
    progress_ = {.finished = finished_,
                 .targets = options_.queue ? next_ : targets_.count,
                 .active = at_work,
                 .evaluations = summary_.evaluations,
                 .mean_loss = sum / static_cast<double>(finite)};
  }

  void handle(const Poll& poll) {
    for (int64_t lane = 0; lane < poll.active; ++lane) {
      const LaneReport& report = poll.reports[lane];
      // The lane's result was collected before, or the report is about its previous content.
      if (held_[lane].row < 0 || poll.number <= held_[lane].since) continue;
      if (report.done) {
        collect(lane, report);
        ++finished_;
        if (options_.queue) options_.queue->finish(held_[lane].row);
        held_[lane].row = -1;
      } else if (options_.queue && options_.queue->dropped(held_[lane].row)) {
        drop(lane, report);
      } else if (report.objective != held_[lane].objective) {
        held_[lane].objective = report.objective;
        reassignments_.push_back({lane, report.objective});
      }
    }
    if (reassignments_.empty()) return;
    device_->reassign(arrays_, reassignments_);
    reassignments_.clear();
    lanes_changed_ = true;
  }

  // Frees a lane whose target is no longer wanted. Its memory may be in use on the device, until
  // the lane is refilled or no longer active.
  void drop(int64_t lane, const LaneReport& report) {
    const int64_t row = held_[lane].row;
    results_.status[row] = Status::cancelled;
    results_.loss[row] = kNaN;
    results_.steps[row] = report.steps;
    results_.attempts[row] = report.attempts;
    if (results_.normal_equations) results_.normal_equations[row] = report.normal_equations;
    std::fill_n(results_.latent + row * latent_size_, latent_size_, kNaN);
    options_.queue->finish(row);
    held_[lane].row = -1;
  }

  void collect(int64_t lane, const LaneReport& report) {
    const int64_t row = report.row;
    results_.status[row] = static_cast<Status>(report.status);
    results_.loss[row] = report.best_loss;
    results_.steps[row] = report.steps;
    results_.attempts[row] = report.attempts;
    if (results_.normal_equations) results_.normal_equations[row] = report.normal_equations;
    if (results_.min_latent_error) results_.min_latent_error[row] = report.nearest;
    std::copy_n(arrays_.best_latent + lane * latent_size_, latent_size_,
                results_.latent + row * latent_size_);
    if (arrays_.trace_length) {
      std::copy_n(arrays_.trace + lane * arrays_.trace_length, arrays_.trace_length,
                  results_.trace + row * arrays_.trace_length);
    }
  }

  // Queue and lanes -----------------------------------------------------------------------------

  // Refills free lanes from the queue; false once there is nothing left to do.
  bool refill() {
    std::vector<Refill> refills;
    const auto take = [&](int64_t lane, int64_t row) {
      held_[lane] = {row, first_objective_, polls_};
      refills.push_back({lane, row});
      ++next_;
    };
    const auto is_free = [this](int64_t lane) { return held_[lane].row < 0; };
    if (coupled_) {
      int64_t lane = 0;
      while (lane < active_ && is_free(lane)) ++lane;
      if (lane == active_) {
        const int64_t groups = (targets_.count + lanes_ - 1) / lanes_;
        active_ = 0;
        if (next_ < targets_.count) {
          active_ = targets_.count / groups + (group_ < targets_.count % groups ? 1 : 0);
          ++group_;
        }
        for (lane = 0; lane < active_; ++lane) take(lane, next_);
      }
    } else {
      bool idle = options_.queue && std::all_of(held_.begin(), held_.end(),
                                                [](const Held& held) { return held.row < 0; });
      for (int64_t lane = 0; lane < lanes_; ++lane) {
        if (is_free(lane)) {
          const int64_t row = next_row(idle);
          if (row < 0) break;
          take(lane, row);
          idle = false;
        }
        active_ = std::max(active_, lane + 1);
      }
    }
    if (!refills.empty()) {
      loader_->refill(refills);
      lanes_changed_ = true;
    }
    if (!coupled_) {
      close_gaps();
      sort_by_objective();
    }
    return active_ > 0 || (options_.queue && !ended_);
  }

  // The row of the next target; negative if there is none now.
  int64_t next_row(bool wait) {
    if (!options_.queue) return next_ < targets_.count ? next_ : Queue::kEnd;
    if (ended_) return Queue::kEnd;
    const int64_t row = options_.queue->next(wait);
    ended_ = row == Queue::kEnd;
    return row;
  }

  // Moves lanes that the queue could not fill to the end.
  void close_gaps() {
    std::vector<LanePair> pairs;
    for (int64_t lane = 0; lane < active_; ++lane) {
      if (held_[lane].row >= 0) continue;
      while (active_ > lane + 1 && held_[active_ - 1].row < 0) --active_;
      if (--active_ > lane) {
        pairs.push_back({lane, active_});
        std::swap(held_[lane], held_[active_]);
      }
      lanes_changed_ = true;
    }
    swap_lanes(pairs);
  }

  // Sorts lanes by objective, so that each objective evaluates one range.
  void sort_by_objective() {
    int64_t front = 0;
    for (size_t objective = 0; objective + 1 < evaluators_.size(); ++objective) {
      const auto is_ours = [&](int64_t lane) {
        return held_[lane].objective == static_cast<int32_t>(objective);
      };
      // The range grows from the front and swaps in lanes from the back: no lane moves twice.
      std::vector<LanePair> pairs;
      for (int64_t back = active_ - 1;; ++front, --back) {
        while (front < active_ && is_ours(front)) ++front;
        while (back > front && !is_ours(back)) --back;
        if (back <= front) break;
        pairs.push_back({front, back});
        std::swap(held_[front], held_[back]);
      }
      swap_lanes(pairs);
    }
  }

  void swap_lanes(const std::vector<LanePair>& pairs) {
    if (pairs.empty()) return;
    device_->swap_lanes(arrays_, pairs);
    for (const auto& [a, b] : pairs) held_[a].since = held_[b].since = polls_;
    lanes_changed_ = true;
  }

  void abandon() {
    device_->abandon(arrays_, active_);
    device_->step(arrays_, active_);
    // Discard pending reports and request a new one of the lanes' current state.
    while (!asked_.empty()) {
      free_polls_.push_back(std::move(asked_.front()));
      asked_.pop_front();
    }
    ask();
    const Poll& last = asked_.back();
    last.event->wait();
    for (int64_t lane = 0; lane < active_; ++lane) {
      if (held_[lane].row < 0) continue;
      collect(lane, last.reports[lane]);
      if (options_.queue) options_.queue->finish(held_[lane].row);
    }
  }

  const std::shared_ptr<Backend> device_;
  const std::shared_ptr<void> exclusive_;
  const Targets& targets_;
  const RunOptions& options_;
  const Results& results_;
  const int64_t latent_size_, lanes_;
  bool coupled_ = false, over_batch_ = false;
  // Trials and normal equations alternate, and the host must know at once which a lane needs: an
  // evaluation by the other function would overwrite its gram.
  const bool solves_;
  const int64_t reports_ahead_;
  int64_t poll_every_;  // in steps

  std::set<SolverKind> proposing_;  // solvers of this run that make trials

  std::vector<Backend::Memory> memory_;
  LaneArrays arrays_{};
  std::vector<std::unique_ptr<Evaluator>> evaluators_;  // one per objective
  std::vector<bool> has_gram_;                          // one per objective
  std::vector<float> ones_;                             // the weights of targets that have none
  std::unique_ptr<TargetLoader> loader_;
  int32_t first_objective_ = 0;

  // The parameters that a step's launches depend on; everything else is in the arrays.
  struct Shape {
    int64_t steps = 0;
    std::unique_ptr<CapturedGraph> graph;
  };
  std::map<std::vector<Range>, Shape> shapes_;
  Shape* shape_ = nullptr;  // the shape of ranges_
  std::vector<Range> ranges_;
  std::vector<int64_t> largest_;  // largest batch so far, one per objective
  bool lanes_changed_ = true;     // since ranges_ was computed
  int64_t polls_ = 0;             // number of polls requested

  std::vector<Held> held_;
  int64_t active_ = 0;    // lanes [0, active_) have targets, as far as the host knows
  int64_t next_ = 0;      // targets taken so far
  bool ended_ = false;    // the queue has no more targets
  int64_t group_ = 0;     // coupled runs: groups started
  int64_t finished_ = 0;  // finished targets
  std::vector<Reassignment> reassignments_;
  std::vector<Poll> free_polls_;
  std::deque<Poll> asked_;
  Progress progress_;
  RunSummary summary_;
  std::optional<Cancellation::Watch> watch_;  // destroyed before what it uses
};

void expect(bool condition, const std::string& what) {
  if (!condition) throw std::invalid_argument("run(): " + what);
}

void check(const std::vector<const Objective*>& objectives, const Recipe& recipe,
           const Targets& targets, const RunOptions& options, const Results& results) {
  expect(!objectives.empty(), "expected at least one objective, got none");
  const auto sizes = [](const Objective& of) {
    return std::tuple(of.latent_size(), of.image_size(), of.condition_size(), of.takes_weights());
  };
  for (const Objective* objective : objectives) {
    expect(objective != nullptr, "an objective is null");
    expect(sizes(*objective) == sizes(*objectives.front()),
           "the objectives' latents, images, conditions or weights differ in size");
  }
  expect(objectives.front()->condition_size() == 0 || targets.condition,
         "the objective takes a condition, and the targets have none");
  expect(!targets.weights || objectives.front()->takes_weights(),
         "the targets have weights, and the objective takes none");
  expect(!recipe.stages.empty(), "expected a recipe with at least one stage, got none");
  const auto count = static_cast<int64_t>(objectives.size());
  const auto expect_number = [&](int64_t number, const char* what) {
    expect(number >= 0 && number < count, std::string("a stage's ") + what + " number " +
                                              std::to_string(number) + ", of " +
                                              std::to_string(count) + " that were given");
  };
  for (const Stage& stage : recipe.stages) {
    expect_number(stage.objective, "objective is");
    expect(!objectives[stage.objective]->has_gram(),
           "a stage's objective, number " + std::to_string(stage.objective) +
               ", gives normal equations; name it as normal_equations");
    const SolverTraits solver = traits_of(stage);
    std::string problem;
    Solvers::visit(stage.solver.kind, [&](auto of) {
      problem = of.problem(stage.solver, objectives.front()->latent_size());
    });
    expect(problem.empty(), solver.name + " " + problem);
    expect(!solver.makes_trials || stage.penalties.moments == MomentScope::none,
           solver.name + " takes no moment penalty; use the prior's");
    if (!solver.solves_normal_equations) continue;
    expect_number(stage.normal_equations, "normal equations are");
    expect(objectives[stage.normal_equations]->has_gram(),
           "a stage's normal equations, number " + std::to_string(stage.normal_equations) +
               ", have no gram; give an objective with has_gram()");
  }
  expect(recipe.start != Start::encoder || targets.initial,
         "the recipe starts from an encoder, and the targets have no initial latents; pass "
         "those that Encoder::encode() returns for their images");
  expect(recipe.hop_size >= 0.0 && recipe.hop_size <= 1.0,
         "hop_size should be from 0 to 1, is " + std::to_string(recipe.hop_size));
  const bool over_batch =
      std::any_of(recipe.stages.begin(), recipe.stages.end(),
                  [](const Stage& stage) { return stage.penalties.moments == MomentScope::batch; });
  const auto trying = std::find_if(recipe.stages.begin(), recipe.stages.end(), makes_trials);
  if (trying != recipe.stages.end()) {
    expect(!options.coupled && !over_batch,
           traits_of(*trying).name +
               " takes each target on its own, and here targets depend on each other (batch norm "
               "on batch statistics, or a moment penalty over the batch); use adam");
  }
  expect(!options.queue || (!options.coupled && !over_batch),
         "a queue is for targets that do not depend on each other");
  expect(options.lanes >= 1, "lanes should be at least 1, is " + std::to_string(options.lanes));
  expect(!results.trace || options.trace_every >= 1,
         "a trace needs trace_every of at least 1, got " + std::to_string(options.trace_every));
  expect(!results.min_latent_error || targets.true_latent,
         "min_latent_error needs the targets' true_latent, got none");
}

}  // namespace

int64_t trace_length(const Recipe& recipe, int64_t trace_every) {
  int64_t steps = 0;
  for (const Stage& stage : recipe.stages) steps += stage.max_steps;
  return 1 + steps / trace_every;
}

void draw_initial(const Prior& prior, uint64_t seed, uint64_t target, uint32_t restart,
                  int64_t size, float* latent) {
  for (int64_t i = 0; i < size; ++i) {
    latent[i] = initial_draw(prior, {seed, target, restart}, static_cast<uint32_t>(i));
  }
}

RunSummary run(const std::vector<const Objective*>& objectives, const Prior& prior,
               const Recipe& recipe, const Targets& targets, const RunOptions& options,
               const Results& results) {
  check(objectives, recipe, targets, options, results);
  if (options.queue) return Run(objectives, prior, recipe, targets, options, results)();
  std::fill_n(results.loss, targets.count, kNaN);
  std::fill_n(results.status, targets.count, Status::cancelled);
  std::fill_n(results.steps, targets.count, 0);
  std::fill_n(results.attempts, targets.count, 0);
  if (results.normal_equations) std::fill_n(results.normal_equations, targets.count, 0);
  if (results.trace) {
    std::fill_n(results.trace, targets.count * trace_length(recipe, options.trace_every), kNaN);
  }
  if (results.min_latent_error) std::fill_n(results.min_latent_error, targets.count, kNaN);
  // Targets without a finished attempt keep their initial values.
  const auto give_up_unfinished = [&] {
    const int64_t size = objectives.front()->latent_size();
    for (int64_t row = 0; row < targets.count; ++row) {
      if (results.attempts[row] > 0) continue;
      float* latent = results.latent + row * size;
      if (targets.initial) {
        std::copy_n(targets.initial + row * size, size, latent);
      } else if (recipe.start == Start::mean) {
        std::fill_n(latent, size, static_cast<float>(moments_of(prior).mean));
      } else {
        draw_initial(prior, options.seed, targets.id[row], 0, size, latent);
      }
    }
  };
  try {
    const RunSummary summary = Run(objectives, prior, recipe, targets, options, results)();
    if (summary.cancelled) give_up_unfinished();
    return summary;
  } catch (...) {
    give_up_unfinished();
    throw;
  }
}

}  // namespace pyinv
