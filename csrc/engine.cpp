#include "pyinv/engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>
#include <limits>
#include <map>
#include <memory>
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

// A device that runs ahead is polled about this often, and at least after kMaxStepsPerPoll steps.
constexpr double kSecondsPerPoll = 0.01;
constexpr int64_t kMaxStepsPerPoll = 64;
constexpr int64_t kStepsBeforeCapture = 2;
// Step shapes whose graphs are kept.
constexpr size_t kMaxGraphs = 64;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

Moments moments_of(const Prior& prior) {
  if (prior.kind == PriorKind::normal) return {prior.mean, prior.std};
  return {0.5 * (double{prior.low} + prior.high),
          (double{prior.high} - prior.low) / std::sqrt(12.0)};
}

// What a penalty takes for the prior's density: a uniform one counts as the normal one of its mean
// and deviation.
Prior with_moments(Prior prior) {
  const Moments moments = moments_of(prior);
  prior.mean = static_cast<float>(moments.mean);
  prior.std = static_cast<float>(moments.std);
  return prior;
}

// What its solver says of a stage.
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

// The host's side of a run. It puts steps into the device's stream and polls the lanes' status now
// and then: a lane whose target is finished waits until the host has seen that and
// gives it the next one, and so does a lane whose next stage has another objective.
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
    arrays_.loss = allocate<float>(lanes_);
    arrays_.image = allocate<float>(lanes_ * arrays_.image_size);
    arrays_.condition = allocate<float>(lanes_ * arrays_.condition_size);
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
           arrays_.loss, arrays_.gradient, arrays_.gram_size ? arrays_.gram : nullptr, lanes_}));
    }
    first_objective_ = first_objective(stages.front());
    progress_.targets = targets.count;
    progress_.mean_loss = kNaN;
    loader_ = device_->make_loader(arrays_, targets);
  }

  // What the run's memory holds must not be used any more when it goes.
  ~Run() {
    try {
      device_->synchronize();
    } catch (const std::exception&) {
      // Whoever destroys the run is on the way to report the same error.
    }
  }

  RunSummary operator()() {
    const auto start = Clock::now();
    while (refill()) {
      const auto round = Clock::now();
      for (int64_t i = 0; i < poll_every_; ++i) step();
      poll();
      if (options_.keep_going && !options_.keep_going(progress_)) {
        summary_.cancelled = true;
        break;
      }
      if (reports_ahead_ && !options_.poll_every) adapt(seconds_since(round));
    }
    if (summary_.cancelled) abandon();
    summary_.total_seconds = seconds_since(start);
    return summary_;
  }

 private:
  // What the host knows of a lane.
  struct Held {
    int64_t row = -1;  // of the target
    int32_t objective = 0;
    int64_t since = 0;  // polls requested before it came to this lane; they are of another
  };

  // A report on its way.
  struct Poll {
    LaneReport* reports;
    std::unique_ptr<Event> event;
    int64_t active;  // lanes in it
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

  // Lanes of one objective stand side by side.
  std::vector<Range> ranges() const {
    std::vector<Range> found;
    for (int64_t first = 0; first < active_;) {
      int64_t last = first + 1;
      while (last < active_ && held_[last].objective == held_[first].objective) ++last;
      const int32_t objective = held_[first].objective;
      if (has_gram_[objective]) {
        // No more than needed: each costs as much as a hundred other evaluations, and lanes beyond
        // the range keep their grams.
        while (first < last) {
          const int64_t count = rounded_down(last - first);
          found.push_back({objective, first, count});
          first += count;
        }
        continue;
      }
      // What is evaluated beyond the range is overwritten by the next one, or nobody's.
      const int64_t count =
          coupled_ ? last - first : device_->rounded(last - first, lanes_ - first);
      found.push_back({objective, first, count});
      first = last;
    }
    return found;
  }

  // The most of `count` lanes that the device likes to evaluate at once.
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
    // The first steps of a shape let the runtime prepare itself: ONNX Runtime allocates for the
    // last time in its second one.
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

  // Takes in where lanes stand now.
  void update_ranges() {
    lanes_changed_ = false;
    std::vector<Range> now = ranges();
    if (now == ranges_) return;
    ranges_ = std::move(now);
    // A runtime may move memory when a batch grows, and graphs know where it was.
    bool grows = false;
    for (const Range& range : ranges_) {
      grows |= range.count > largest_[range.objective];
      largest_[range.objective] = std::max(largest_[range.objective], range.count);
    }
    if (grows || shapes_.size() >= kMaxGraphs) shapes_.clear();
    shape_ = &shapes_[ranges_];
    if (!shape_->graph) shape_->steps = 0;  // only steps in a row prepare a runtime
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

  // Lanes that were evaluated without need are done, and stay as they are.
  void advance() {
    const int64_t lanes = ranges_.back().first + ranges_.back().count;
    if (over_batch_) device_->batch_moments(arrays_, lanes);
    device_->update_status(arrays_, lanes);
    if (coupled_) device_->decide_group(arrays_, lanes);
    for (const SolverKind kind : proposing_) device_->propose(arrays_, kind, lanes);
    device_->step(arrays_, lanes);
  }

  // Polls less or more often, so that a poll comes about every kSecondsPerPoll.
  void adapt(double seconds) {
    if (seconds < kSecondsPerPoll) {
      poll_every_ = std::min(2 * poll_every_, kMaxStepsPerPoll);
    } else if (seconds > 4 * kSecondsPerPoll) {
      poll_every_ = std::max<int64_t>(1, poll_every_ / 2);
    }
  }

  // Polls ---------------------------------------------------------------------------------------

  // Asks for a report, and takes in the oldest one as soon as enough newer ones are on their way.
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
                 .targets = targets_.count,
                 .active = at_work,
                 .evaluations = summary_.evaluations,
                 .mean_loss = sum / static_cast<double>(finite)};
  }

  void handle(const Poll& poll) {
    for (int64_t lane = 0; lane < poll.active; ++lane) {
      const LaneReport& report = poll.reports[lane];
      // Collected before, or asked for before the lane had what it has now.
      if (held_[lane].row < 0 || poll.number <= held_[lane].since) continue;
      if (report.done) {
        collect(lane, report);
        ++finished_;
        held_[lane].row = -1;
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

  // Gives free lanes targets from the queue; false once there is nothing left to do.
  bool refill() {
    std::vector<Refill> refills;
    const auto take = [&](int64_t lane) {
      held_[lane] = {next_, first_objective_, polls_};
      refills.push_back({lane, next_++});
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
        for (lane = 0; lane < active_; ++lane) take(lane);
      }
    } else {
      for (int64_t lane = 0; lane < lanes_ && next_ < targets_.count; ++lane) {
        if (is_free(lane)) take(lane);
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
    return active_ > 0;
  }

  // Lanes that the queue could not fill go to the end.
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

  // Lanes of one objective stand side by side, so that each objective sees one range.
  void sort_by_objective() {
    int64_t front = 0;
    for (size_t objective = 0; objective + 1 < evaluators_.size(); ++objective) {
      const auto is_ours = [&](int64_t lane) {
        return held_[lane].objective == static_cast<int32_t>(objective);
      };
      // The range grows from the front and takes its lanes from the back: no lane moves twice.
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
    // Newer than all that are on their way, and of the lanes as they are.
    while (!asked_.empty()) {
      free_polls_.push_back(std::move(asked_.front()));
      asked_.pop_front();
    }
    ask();
    const Poll& last = asked_.back();
    last.event->wait();
    for (int64_t lane = 0; lane < active_; ++lane) {
      if (held_[lane].row >= 0) collect(lane, last.reports[lane]);
    }
  }

  const std::shared_ptr<Backend> device_;
  const std::shared_ptr<void> exclusive_;
  const Targets& targets_;
  const RunOptions& options_;
  const Results& results_;
  const int64_t latent_size_, lanes_;
  bool coupled_ = false, over_batch_ = false;
  // Trials and normal equations take turns, and what a lane's turn is wants to be known at once: an
  // evaluation by the other function would cost it its gram.
  const bool solves_;
  const int64_t reports_ahead_;
  int64_t poll_every_;  // steps

  std::set<SolverKind> proposing_;  // of the stages whose solvers make trials

  std::vector<Backend::Memory> memory_;
  LaneArrays arrays_{};
  std::vector<std::unique_ptr<Evaluator>> evaluators_;  // one an objective
  std::vector<bool> has_gram_;                          // one an objective
  std::unique_ptr<TargetLoader> loader_;
  int32_t first_objective_ = 0;

  // A step's work depends on nothing but these: all else is in the arrays.
  struct Shape {
    int64_t steps = 0;
    std::unique_ptr<CapturedGraph> graph;
  };
  std::map<std::vector<Range>, Shape> shapes_;
  Shape* shape_ = nullptr;  // of ranges_
  std::vector<Range> ranges_;
  std::vector<int64_t> largest_;  // lanes evaluated at once so far, one an objective
  bool lanes_changed_ = true;     // since ranges_ was made
  int64_t polls_ = 0;             // requested

  std::vector<Held> held_;
  int64_t active_ = 0;    // lanes [0, active_) hold targets, as far as the host knows
  int64_t next_ = 0;      // the first target still in the queue
  int64_t group_ = 0;     // coupled: groups started
  int64_t finished_ = 0;  // targets
  std::vector<Reassignment> reassignments_;
  std::vector<Poll> free_polls_;
  std::deque<Poll> asked_;
  Progress progress_;
  RunSummary summary_;
};

void expect(bool condition, const std::string& what) {
  if (!condition) throw std::invalid_argument("run(): " + what);
}

void check(const std::vector<const Objective*>& objectives, const Recipe& recipe,
           const Targets& targets, const RunOptions& options, const Results& results) {
  expect(!objectives.empty(), "expected an objective or more, got none");
  const auto sizes = [](const Objective& of) {
    return std::tuple(of.latent_size(), of.image_size(), of.condition_size());
  };
  for (const Objective* objective : objectives) {
    expect(objective != nullptr, "an objective is null");
    expect(sizes(*objective) == sizes(*objectives.front()),
           "the objectives' latents, images or conditions differ in size");
  }
  expect(objectives.front()->condition_size() == 0 || targets.condition,
         "the objective takes a condition, and the targets have none");
  expect(!recipe.stages.empty(), "expected a recipe with a stage or more, got none");
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
         "the recipe starts from an encoder, and the targets have no initial latents; give what "
         "Encoder::encode() makes of their images");
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
  std::fill_n(results.loss, targets.count, kNaN);
  std::fill_n(results.status, targets.count, Status::cancelled);
  std::fill_n(results.steps, targets.count, 0);
  std::fill_n(results.attempts, targets.count, 0);
  if (results.normal_equations) std::fill_n(results.normal_equations, targets.count, 0);
  if (results.trace) {
    std::fill_n(results.trace, targets.count * trace_length(recipe, options.trace_every), kNaN);
  }
  if (results.min_latent_error) std::fill_n(results.min_latent_error, targets.count, kNaN);
  // Targets that no attempt ended for stay where they began.
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
