#include "pyinv/engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <numbers>
#include <optional>
#include <utility>

#include "step.h"

namespace pyinv {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

double learning_rate(const Solver& solver, int64_t k, int64_t max_steps) {
  const Schedule& schedule = solver.schedule;
  switch (schedule.kind) {
    case ScheduleKind::step_decay:
      return solver.learning_rate *
             std::pow(schedule.factor, static_cast<double>(k / schedule.every));
    case ScheduleKind::cosine: {
      const double progress = static_cast<double>(k) / static_cast<double>(max_steps);
      const double falling = 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
      return solver.learning_rate * (schedule.final + (1.0 - schedule.final) * falling);
    }
    case ScheduleKind::constant:
      break;
  }
  return solver.learning_rate;
}

StepRule resolve(const Stage& stage, const Prior& prior) {
  const int64_t horizon = std::max<int64_t>(
      1, stage.constraint.horizon > 0 ? stage.constraint.horizon : stage.max_steps);
  return {.prior = prior,
          .solver = stage.solver.kind,
          .momentum = static_cast<float>(stage.solver.momentum),
          .beta1 = static_cast<float>(stage.solver.beta1),
          .beta2 = static_cast<float>(stage.solver.beta2),
          .rest1 = static_cast<float>(1.0 - stage.solver.beta1),
          .rest2 = static_cast<float>(1.0 - stage.solver.beta2),
          .log_beta1 = static_cast<float>(std::log(stage.solver.beta1)),
          .log_beta2 = static_cast<float>(std::log(stage.solver.beta2)),
          .epsilon = static_cast<float>(stage.solver.epsilon),
          .constraint = stage.constraint,
          .inverse_horizon = static_cast<float>(1.0 / static_cast<double>(horizon)),
          .reset_moments = stage.reset_moments};
}

// Mean and population standard deviation, in double: a batch of long latents has many terms.
struct Moments {
  double mean = 0.0, std = 0.0;
};

Moments moments_of(const float* values, int64_t count) {
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum += values[i];
  const double mean = sum / static_cast<double>(count);
  double squares = 0.0;
  for (int64_t i = 0; i < count; ++i) squares += (values[i] - mean) * (values[i] - mean);
  return {mean, std::sqrt(squares / static_cast<double>(count))};
}

Moments moments_of(const Prior& prior) {
  if (prior.kind == PriorKind::normal) return {prior.mean, prior.std};
  return {0.5 * (double{prior.low} + prior.high),
          (double{prior.high} - prior.low) / std::sqrt(12.0)};
}

// Converged first, then the lower loss; a NaN loss is the worst.
bool better(Status status, float loss, Status than, float than_loss) {
  if ((status == Status::converged) != (than == Status::converged)) {
    return status == Status::converged;
  }
  return std::isnan(than_loss) ? !std::isnan(loss) : loss < than_loss;
}

struct Lane {
  int64_t row = 0;  // of the targets
  uint32_t attempt = 0;
  size_t stage = 0;
  int64_t stage_steps = 0, attempt_steps = 0;
  float previous_loss = kNaN;
  int64_t unchanged = 0;       // evaluations in a row whose loss hardly changed
  float recorded_loss = kNaN;  // of the latent that the attempt would return now
  // Coupled lanes only:
  std::optional<Status> met;  // the stop rule met in this stage
  bool over = false;          // the attempt; the lane stays for its group's sake
};

class Run {
 public:
  Run(const std::vector<const Objective*>& objectives, const Prior& prior, const Recipe& recipe,
      const Targets& targets, const RunOptions& options, const Results& results)
      : prior_(prior),
        recipe_(recipe),
        targets_(targets),
        options_(options),
        results_(results),
        latent_size_(objectives.front()->latent_size()),
        image_size_(objectives.front()->image_size()),
        condition_size_(targets.condition ? objectives.front()->condition_size() : 0),
        trace_length_(results.trace ? trace_length(recipe, options.trace_every) : 0) {
    coupled_ = options.coupled;
    for (const Stage& stage : recipe.stages) {
      rules_.push_back(resolve(stage, prior));
      coupled_ |= stage.penalties.moments == MomentScope::batch;
    }
    const int64_t lanes = std::min(options.lanes, std::max<int64_t>(1, targets.count));
    lanes_.resize(lanes);
    latent_.resize(lanes * latent_size_);
    first_moment_.resize(lanes * latent_size_);
    second_moment_.resize(lanes * latent_size_);
    born_.resize(lanes * latent_size_);
    recorded_.resize(lanes * latent_size_);
    gradient_.resize(lanes * latent_size_);
    loss_.resize(lanes);
    image_.resize(lanes * image_size_);
    condition_.resize(lanes * condition_size_);
    for (const Objective* objective : objectives) {
      evaluators_.push_back(objective->bind({latent_.data(), image_.data(),
                                             condition_size_ ? condition_.data() : nullptr,
                                             loss_.data(), gradient_.data(), lanes}));
    }
  }

  RunSummary operator()() {
    const auto start = Clock::now();
    std::fill_n(results_.loss, targets_.count, kNaN);
    std::fill_n(results_.status, targets_.count, Status::cancelled);
    std::fill_n(results_.steps, targets_.count, 0);
    std::fill_n(results_.attempts, targets_.count, 0);
    if (trace_length_) std::fill_n(results_.trace, targets_.count * trace_length_, kNaN);

    while (refill()) {
      evaluate();
      if (options_.keep_going && !options_.keep_going(progress())) {
        summary_.cancelled = true;
        break;
      }
      coupled_ ? advance_group() : advance_each();
    }
    if (summary_.cancelled) give_up_unfinished();
    summary_.total_seconds = seconds_since(start);
    return summary_;
  }

 private:
  using Clock = std::chrono::steady_clock;

  static double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  // Queue and lanes -----------------------------------------------------------------------------

  // Fills lanes from the queue; false once there is nothing left to do.
  bool refill() {
    if (coupled_) {
      if (active_ == 0 && next_ < targets_.count) {
        const int64_t capacity = static_cast<int64_t>(lanes_.size());
        const int64_t groups = (targets_.count + capacity - 1) / capacity;
        const int64_t size = targets_.count / groups + (group_ < targets_.count % groups ? 1 : 0);
        for (int64_t i = 0; i < size; ++i) start_target();
        ++group_;
      }
    } else {
      while (active_ < static_cast<int64_t>(lanes_.size()) && next_ < targets_.count) {
        start_target();
      }
      sort_by_objective();
    }
    return active_ > 0;
  }

  void start_target() {
    const int64_t lane = active_++;
    const int64_t row = next_++;
    lanes_[lane] = {.row = row};
    std::copy_n(targets_.image + row * image_size_, image_size_, &image_[lane * image_size_]);
    if (condition_size_) {
      std::copy_n(targets_.condition + row * condition_size_, condition_size_,
                  &condition_[lane * condition_size_]);
    }
    start_attempt(lane, 0);
  }

  void start_attempt(int64_t lane, uint32_t attempt) {
    const int64_t row = lanes_[lane].row;
    lanes_[lane] = {.row = row, .attempt = attempt};
    start_latent(row, attempt, latent(lane));
    std::copy_n(latent(lane), latent_size_, recorded(lane));
    clear_moments(lane);
    if (trace_length_ && attempt > 0) {
      std::fill_n(results_.trace + row * trace_length_, trace_length_, kNaN);
    }
  }

  void clear_moments(int64_t lane) {
    std::fill_n(&first_moment_[lane * latent_size_], latent_size_, 0.0f);
    std::fill_n(&second_moment_[lane * latent_size_], latent_size_, 0.0f);
    std::fill_n(&born_[lane * latent_size_], latent_size_, 0u);
  }

  void start_latent(int64_t row, uint32_t attempt, float* latent) const {
    if (attempt == 0 && targets_.initial) {
      std::copy_n(targets_.initial + row * latent_size_, latent_size_, latent);
    } else {
      draw_initial(prior_, options_.seed, targets_.id[row], attempt, latent_size_, latent);
    }
  }

  void start_stage(int64_t lane, size_t stage) {
    Lane& state = lanes_[lane];
    state.stage = stage;
    state.stage_steps = 0;
    state.unchanged = 0;
    state.previous_loss = kNaN;
    state.recorded_loss = kNaN;
    state.met.reset();
    std::copy_n(latent(lane), latent_size_, recorded(lane));
    clear_moments(lane);
  }

  // Lanes of one objective stand side by side, so that each objective sees one range.
  void sort_by_objective() {
    if (evaluators_.size() == 1) return;
    int64_t front = 0;
    for (size_t objective = 0; objective < evaluators_.size(); ++objective) {
      for (int64_t lane = front; lane < active_; ++lane) {
        if (objective_of(lane) == objective) swap_lanes(front++, lane);
      }
    }
  }

  void swap_lanes(int64_t a, int64_t b) {
    if (a == b) return;
    std::swap(lanes_[a], lanes_[b]);
    std::swap(loss_[a], loss_[b]);
    const auto swap_rows = [&](auto& rows, int64_t size) {
      std::swap_ranges(&rows[a * size], &rows[a * size] + size, &rows[b * size]);
    };
    swap_rows(image_, image_size_);
    if (condition_size_) swap_rows(condition_, condition_size_);
    for (auto* rows : {&latent_, &first_moment_, &second_moment_, &recorded_, &gradient_}) {
      swap_rows(*rows, latent_size_);
    }
    swap_rows(born_, latent_size_);
  }

  // One step ------------------------------------------------------------------------------------

  void evaluate() {
    const auto start = Clock::now();
    for (int64_t first = 0; first < active_;) {
      int64_t last = first + 1;
      while (last < active_ && objective_of(last) == objective_of(first)) ++last;
      evaluators_[objective_of(first)]->evaluate(first, last - first);
      first = last;
    }
    summary_.evaluations += active_;
    summary_.objective_seconds += seconds_since(start);
  }

  Progress progress() const {
    double sum = 0.0;
    int64_t finite = 0;
    for (int64_t lane = 0; lane < active_; ++lane) {
      if (!std::isfinite(loss_[lane])) continue;
      sum += loss_[lane];
      ++finite;
    }
    return {.finished = finished_,
            .targets = targets_.count,
            .active = active_,
            .evaluations = summary_.evaluations,
            .mean_loss = sum / static_cast<double>(finite)};
  }

  void advance_each() {
    // Backwards, so that the lane moved into a freed place has had its turn.
    for (int64_t lane = active_ - 1; lane >= 0; --lane) {
      const std::optional<Status> stop = check(lane);
      if (!stop) {
        step(lane, latent_moments(lane));
      } else if (ends_attempt(lane, *stop)) {
        end_attempt(lane, *stop);
        if (restarts(lane)) {
          start_attempt(lane, lanes_[lane].attempt + 1);
        } else {
          ++finished_;
          swap_lanes(lane, --active_);
        }
      } else {
        start_stage(lane, lanes_[lane].stage + 1);
      }
    }
  }

  // The lanes of a group tie each other's losses together: they start and end every stage as one.
  void advance_group() {
    bool all_met = true;
    for (int64_t lane = 0; lane < active_; ++lane) {
      Lane& state = lanes_[lane];
      const std::optional<Status> stop = check(lane);
      // Of several rules met along the way, convergence is the one that counts.
      if (stop == Status::converged || !state.met) state.met = stop;
      all_met &= state.met.has_value();
    }
    if (!all_met) {
      const Moments batch = moments_of(latent_.data(), active_ * latent_size_);
      for (int64_t lane = 0; lane < active_; ++lane) {
        const bool over_batch = penalties(lane).moments == MomentScope::batch;
        if (std::isfinite(loss_[lane]) && all_finite(gradient(lane), latent_size_)) {
          step(lane, over_batch ? batch : latent_moments(lane));
        }
      }
      return;
    }
    const bool last_stage = lanes_[0].stage + 1 == recipe_.stages.size();
    bool retry = false, any_going_on = false;
    for (int64_t lane = 0; lane < active_; ++lane) {
      any_going_on |= !lanes_[lane].over && !ends_attempt(lane, *lanes_[lane].met);
    }
    if (!last_stage && any_going_on) {
      for (int64_t lane = 0; lane < active_; ++lane) {
        if (ends_attempt(lane, *lanes_[lane].met)) end_attempt(lane, *lanes_[lane].met);
        start_stage(lane, lanes_[lane].stage + 1);
      }
      return;
    }
    for (int64_t lane = 0; lane < active_; ++lane) {
      end_attempt(lane, *lanes_[lane].met);
      retry |= restarts(lane);
    }
    if (retry) {
      for (int64_t lane = 0; lane < active_; ++lane) {
        start_attempt(lane, lanes_[lane].attempt + 1);
      }
    } else {
      finished_ += active_;
      active_ = 0;
    }
  }

  // Records the evaluation and says which stop rule it meets.
  std::optional<Status> check(int64_t lane) {
    Lane& state = lanes_[lane];
    const Stage& stage = recipe_.stages[state.stage];
    const float loss = loss_[lane];
    if (trace_length_ && state.attempt_steps % options_.trace_every == 0) {
      results_.trace[state.row * trace_length_ + state.attempt_steps / options_.trace_every] = loss;
    }
    if (!std::isfinite(loss) || !all_finite(gradient(lane), latent_size_)) {
      return Status::non_finite;
    }
    if (!recipe_.keep_best || std::isnan(state.recorded_loss) || loss < state.recorded_loss) {
      state.recorded_loss = loss;
      std::copy_n(latent(lane), latent_size_, recorded(lane));
    }
    if (stage.loss_tolerance > 0 && loss <= stage.loss_tolerance) return Status::converged;
    if (state.stage_steps > 0) {
      const double change = std::abs(double{loss} - state.previous_loss);
      const bool unchanged =
          (stage.change_tolerance > 0 && change <= stage.change_tolerance) ||
          (stage.relative_change_tolerance > 0 &&
           change <= stage.relative_change_tolerance * std::abs(double{state.previous_loss}));
      state.unchanged = unchanged ? state.unchanged + 1 : 0;
      if (unchanged && state.unchanged >= stage.patience) return Status::stalled;
    }
    state.previous_loss = loss;
    if (state.stage_steps == stage.max_steps) return Status::step_limit;
    return std::nullopt;
  }

  void step(int64_t lane, const Moments& moments) {
    Lane& state = lanes_[lane];
    const Stage& stage = recipe_.stages[state.stage];
    const double d = static_cast<double>(latent_size_);
    const double rate = learning_rate(stage.solver, state.stage_steps, stage.max_steps);
    double step_size = rate, second_root = 1.0;
    if (stage.solver.kind == SolverKind::adam) {
      const double t = static_cast<double>(state.stage_steps + 1);
      step_size /= 1.0 - std::pow(stage.solver.beta1, t);
      second_root = std::sqrt(1.0 - std::pow(stage.solver.beta2, t));
    }
    LaneStep lane_step{.key = {options_.seed, targets_.id[state.row], state.attempt},
                       .update = static_cast<uint32_t>(state.attempt_steps + 1),
                       .stage_update = static_cast<uint32_t>(state.stage_steps + 1),
                       .learning_rate = static_cast<float>(rate),
                       .step_size = static_cast<float>(step_size),
                       .second_root = static_cast<float>(second_root),
                       .moment_center = 0.0f,
                       .moment_shift = 0.0f,
                       .moment_slope = 0.0f,
                       .prior_slope = 0.0f};
    const Penalties& penalty = stage.penalties;
    if (penalty.moments != MomentScope::none) {
      const Moments wanted = moments_of(prior_);
      lane_step.moment_center = static_cast<float>(moments.mean);
      lane_step.moment_shift =
          static_cast<float>(2.0 * penalty.gamma_mean * (moments.mean - wanted.mean) / d);
      if (moments.std > 0.0) {
        lane_step.moment_slope = static_cast<float>(2.0 * penalty.gamma_std *
                                                    (moments.std - wanted.std) / (d * moments.std));
      }
    }
    if (penalty.prior_weight > 0.0f) {
      const double left = static_cast<double>(state.stage_steps) / stage.max_steps;
      lane_step.prior_slope =
          static_cast<float>(penalty.prior_weight * (penalty.anneal_prior ? 1.0 - left : 1.0) /
                             (double{prior_.std} * prior_.std * d));
    }
    step_lane_cpu(rules_[state.stage], lane_step, latent_size_, gradient(lane), latent(lane),
                  &first_moment_[lane * latent_size_], &second_moment_[lane * latent_size_],
                  &born_[lane * latent_size_]);
    ++state.stage_steps;
    ++state.attempt_steps;
    ++results_.steps[state.row];
  }

  Moments latent_moments(int64_t lane) const {
    if (penalties(lane).moments == MomentScope::none) return {};
    return moments_of(latent(lane), latent_size_);
  }

  // Attempts ------------------------------------------------------------------------------------

  bool ends_attempt(int64_t lane, Status stop) const {
    return stop == Status::converged || stop == Status::non_finite ||
           lanes_[lane].stage + 1 == recipe_.stages.size();
  }

  bool restarts(int64_t lane) const {
    const Lane& state = lanes_[lane];
    return results_.status[state.row] != Status::converged && state.attempt < recipe_.restarts;
  }

  // The best attempt of a target so far lives in the results.
  void end_attempt(int64_t lane, Status status) {
    Lane& state = lanes_[lane];
    if (std::exchange(state.over, true)) return;
    const int64_t row = state.row;
    if (results_.attempts[row] == 0 ||
        better(status, state.recorded_loss, results_.status[row], results_.loss[row])) {
      results_.status[row] = status;
      results_.loss[row] = state.recorded_loss;
      std::copy_n(recorded(lane), latent_size_, results_.latent + row * latent_size_);
    }
    results_.attempts[row] = static_cast<int32_t>(state.attempt) + 1;
  }

  void give_up_unfinished() {
    for (int64_t lane = 0; lane < active_; ++lane) {
      end_attempt(lane, Status::cancelled);
      results_.status[lanes_[lane].row] = Status::cancelled;
    }
    for (int64_t row = next_; row < targets_.count; ++row) {
      start_latent(row, 0, results_.latent + row * latent_size_);
    }
  }

  size_t objective_of(int64_t lane) const {
    return static_cast<size_t>(recipe_.stages[lanes_[lane].stage].objective);
  }
  const Penalties& penalties(int64_t lane) const {
    return recipe_.stages[lanes_[lane].stage].penalties;
  }
  float* latent(int64_t lane) { return &latent_[lane * latent_size_]; }
  const float* latent(int64_t lane) const { return &latent_[lane * latent_size_]; }
  float* recorded(int64_t lane) { return &recorded_[lane * latent_size_]; }
  float* gradient(int64_t lane) { return &gradient_[lane * latent_size_]; }

  const Prior& prior_;
  const Recipe& recipe_;
  const Targets& targets_;
  const RunOptions& options_;
  const Results& results_;
  const int64_t latent_size_, image_size_, condition_size_, trace_length_;
  bool coupled_ = false;
  std::vector<StepRule> rules_;                         // one a stage
  std::vector<std::unique_ptr<Evaluator>> evaluators_;  // one an objective

  std::vector<Lane> lanes_;
  std::vector<float> latent_, first_moment_, second_moment_, recorded_, gradient_, loss_, image_,
      condition_;
  std::vector<uint32_t> born_;  // the stage's update that reset a component's moments; 0: none
  int64_t active_ = 0;          // lanes [0, active_) hold targets
  int64_t next_ = 0;            // the first target still in the queue
  int64_t group_ = 0;           // coupled: groups started
  int64_t finished_ = 0;
  RunSummary summary_;
};

}  // namespace

int64_t trace_length(const Recipe& recipe, int64_t trace_every) {
  int64_t steps = 0;
  for (const Stage& stage : recipe.stages) steps += stage.max_steps;
  return 1 + steps / trace_every;
}

void draw_initial(const Prior& prior, uint64_t seed, uint64_t target, uint32_t restart,
                  int64_t size, float* latent) {
  for (int64_t i = 0; i < size; ++i) {
    const PhiloxWords words =
        draw_words({seed, target, restart}, DrawPurpose::initial, 0, static_cast<uint32_t>(i));
    latent[i] = prior.kind == PriorKind::uniform ? uniform_draw(words, prior.low, prior.high)
                                                 : normal_draw(words, prior.mean, prior.std);
  }
}

RunSummary run(const std::vector<const Objective*>& objectives, const Prior& prior,
               const Recipe& recipe, const Targets& targets, const RunOptions& options,
               const Results& results) {
  return Run(objectives, prior, recipe, targets, options, results)();
}

}  // namespace pyinv
