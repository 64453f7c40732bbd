// The engine on a GPU against the engine on the CPU: the same targets, objectives and rules must
// end the same way. Runs on the emulator (see CMakeLists.txt), where every rule that reduces
// nothing must agree to the last bit, or on a GPU, where the elementary functions round otherwise.
// What differs is printed, and the exit status says whether something did. Arguments name the tests
// to run; without any, all are.
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "backend.h"
#include "cuda_support.h"
#include "kernels/kernels.h"
#include "pyinv/engine.h"
#include "pyinv/stream.h"

#ifdef PYINV_EMULATED
#include "emulator.h"
constexpr bool kEmulated = true;
#else
constexpr bool kEmulated = false;
#endif

namespace {

using namespace pyinv;

constexpr int kNoGpu = 77;  // the exit status

int failures = 0;

void check(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::printf("FAILED %s\n", what.c_str());
}

// Objectives --------------------------------------------------------------------------------------

// Each is a sum of weighted squares but `fragile` and `tied`, which are more than that. `curved`:
// of differences that all depend on all components. `broken` is curved, with grams that are none.
enum class Loss { quadratic, quartic, fragile, tied, curved, broken };

// Objectives with a condition also take weights.
struct Sizes {
  int64_t latent, image, condition;
};

// `given`: the target's weights, or null.
PYINV_HOST_DEVICE inline float weight_of(const float* given, const Sizes& sizes, int64_t i) {
  const float weight = 0.5f + 0.25f * static_cast<float>(i % 5);
  return given ? weight * given[i % sizes.image] : weight;
}

// What of a curved loss all its differences share, s / (1 + s^2), and how s depends on a component.
// Arithmetic that every device rounds alike.
struct Bend {
  float s = 0.0f, value = 0.0f, slope = 0.0f;
};
PYINV_HOST_DEVICE inline float share_of(int64_t i) {
  return 0.1f + 0.05f * static_cast<float>(i % 3);
}
PYINV_HOST_DEVICE inline Bend bend_of(const float* latent, int64_t d) {
  Bend bend;
  for (int64_t i = 0; i < d; ++i) bend.s += share_of(i) * latent[i];
  const float rest = 1.0f + bend.s * bend.s;
  bend.value = bend.s / rest;
  bend.slope = (1.0f - bend.s * bend.s) / (rest * rest);
  return bend;
}

// The gram, 2/d J^T J.
PYINV_HOST_DEVICE inline void write_gram(Loss kind, const float* latent, const float* difference,
                                         float image, const float* given, const Sizes& sizes,
                                         float* gram) {
  const int64_t d = sizes.latent;
  const float share = 2.0f / static_cast<float>(d);
  const Bend bend = bend_of(latent, d);
  float weights = 0.0f;
  for (int64_t i = 0; i < d; ++i) weights += weight_of(given, sizes, i);
  for (int64_t i = 0; i < d; ++i) {
    for (int64_t j = 0; j < d; ++j) {
      const float weight = weight_of(given, sizes, i);
      float value = i == j ? weight : 0.0f;
      if (kind == Loss::quartic) value *= 4.0f * (difference[i] * difference[i]);
      if (kind == Loss::curved || kind == Loss::broken) {
        const float a = bend.slope * share_of(i), b = bend.slope * share_of(j);
        value += (weight * b + a * weight_of(given, sizes, j)) + weights * (a * b);
      }
      gram[i * d + j] = share * value;
    }
  }
  if (kind != Loss::broken) return;
  if (image > 0.5f) gram[0] = -1.0f;                      // indefinite
  if (image < -0.5f && d > 1) gram[1] = gram[d] = 1e30f;  // beyond any damping
  if (image > 0.0f && image < 0.2f) {                     // singular
    for (int64_t i = 0; i < d * d; ++i) gram[i] = 0.0f;
  }
  if (latent[0] > 0.8f) gram[d * d - 1] = NAN;
}

// Loss and gradient of one lane of the `count` that `first` begins; the gram too if it is asked
// for.
PYINV_HOST_DEVICE inline void evaluate_lane(Loss kind, bool with_gram, const Sizes& sizes,
                                            const LaneBuffers& lanes, int64_t first, int64_t count,
                                            int64_t lane) {
  const int64_t d = sizes.latent;
  const float* latent = lanes.latent + lane * d;
  const float* image = lanes.image + lane * sizes.image;
  const float* condition = lanes.condition ? lanes.condition + lane * sizes.condition : nullptr;
  const float* given = lanes.weights ? lanes.weights + lane * sizes.image : nullptr;
  float* gradient = lanes.gradient + lane * d;
  const float share = 1.0f / static_cast<float>(d);
  const bool curved = kind == Loss::curved || kind == Loss::broken;
  const Bend bend = curved ? bend_of(latent, d) : Bend();
  float loss = 0.0f, pull = 0.0f;
  for (int64_t i = 0; i < d; ++i) {
    const float weight = weight_of(given, sizes, i);
    const float shift = condition ? 0.25f * condition[i % sizes.condition] : 0.0f;
    const float r = latent[i] - (image[i % sizes.image] + shift) + bend.value;
    const float power = kind == Loss::quartic ? r * r : 1.0f;
    loss += weight * (power * (r * r)) * share;
    pull += weight * r;
    gradient[i] = r;
  }
  if (with_gram) {
    write_gram(kind, latent, gradient, image[0], given, sizes, lanes.gram + lane * d * d);
  }
  for (int64_t i = 0; i < d; ++i) {
    const float weight = weight_of(given, sizes, i), r = gradient[i];
    const float power = kind == Loss::quartic ? r * r : 1.0f;
    gradient[i] = weight * (power * r) * share * (kind == Loss::quartic ? 4.0f : 2.0f);
    if (curved) gradient[i] += 2.0f * share * (bend.slope * share_of(i)) * pull;
  }
  if (kind == Loss::broken && latent[d - 1] < -0.8f) loss = NAN;
  if (kind == Loss::fragile) {
    if (latent[0] > 0.7f) loss = NAN;
    if (latent[0] < -0.7f) gradient[d - 1] = INFINITY;
  }
  if (kind == Loss::tied) {
    float sum = 0.0f;
    for (int64_t other = first; other < first + count; ++other) sum += lanes.latent[other * d];
    const float mean = sum / static_cast<float>(count);
    loss += mean * mean;
    gradient[0] += 2.0f * mean / static_cast<float>(count);
  }
  lanes.loss[lane] = loss;
}

constexpr unsigned kThreads = 64;

__global__ void evaluate_kernel(Loss kind, bool with_gram, Sizes sizes, LaneBuffers lanes,
                                int64_t first, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) evaluate_lane(kind, with_gram, sizes, lanes, first, count, first + i);
}

// How an evaluator behaves beyond its loss.
struct Manner {
  bool capturable = true;
  bool waits = false;      // for the stream, which no graph can hold
  int64_t throws_at = -1;  // this evaluation, from 0
};

class TestEvaluator : public Evaluator {
 public:
  TestEvaluator(Loss kind, bool with_gram, const Sizes& sizes, const LaneBuffers& lanes,
                const Manner& manner, std::shared_ptr<Device> device)
      : kind_(kind),
        with_gram_(with_gram),
        sizes_(sizes),
        lanes_(lanes),
        manner_(manner),
        device_(std::move(device)) {}

  void evaluate(int64_t first, int64_t count) override {
    if (first < 0 || count <= 0 || first + count > lanes_.lanes) {
      throw std::logic_error("evaluate() beyond the lanes");
    }
    if (evaluations_++ == manner_.throws_at) throw std::runtime_error("the runtime broke");
    if (device_->kind() == DeviceKind::cpu) {
      for (int64_t i = first; i < first + count; ++i) {
        evaluate_lane(kind_, with_gram_, sizes_, lanes_, first, count, i);
      }
      return;
    }
    const auto exclusive = device_->exclusive();
    launch("evaluate kernel", evaluate_kernel, dim3(blocks_for(count, kThreads)), kThreads,
           static_cast<cudaStream_t>(device_->stream()), kind_, with_gram_, sizes_, lanes_, first,
           count);
    if (manner_.waits) device_->synchronize();
  }
  bool capturable() const override { return manner_.capturable; }

 private:
  const Loss kind_;
  const bool with_gram_;
  const Sizes sizes_;
  const LaneBuffers lanes_;
  const Manner manner_;
  const std::shared_ptr<Device> device_;
  int64_t evaluations_ = 0;
};

class TestObjective : public Objective {
 public:
  TestObjective(Loss kind, bool with_gram, const Sizes& sizes, const Manner& manner,
                std::shared_ptr<Device> device)
      : kind_(kind),
        with_gram_(with_gram),
        sizes_(sizes),
        manner_(manner),
        device_(std::move(device)) {}

  int64_t latent_size() const override { return sizes_.latent; }
  int64_t image_size() const override { return sizes_.image; }
  int64_t condition_size() const override { return sizes_.condition; }
  bool takes_weights() const override { return sizes_.condition > 0; }
  bool has_gram() const override { return with_gram_; }
  std::shared_ptr<Device> device() const override { return device_; }
  std::unique_ptr<Evaluator> bind(const LaneBuffers& lanes) const override {
    return std::make_unique<TestEvaluator>(kind_, with_gram_, sizes_, lanes, manner_, device_);
  }

 private:
  const Loss kind_;
  const bool with_gram_;
  const Sizes sizes_;
  const Manner manner_;
  const std::shared_ptr<Device> device_;
};

// Runs --------------------------------------------------------------------------------------------

struct Case {
  std::string name;
  std::vector<Loss> losses = {Loss::quadratic};
  std::vector<Loss> equations;  // whose normal equations follow the losses
  Sizes sizes = {5, 7, 0};
  int64_t count = 9;
  bool initial = false, truth = false;
  Prior prior;
  Recipe recipe;
  RunOptions options;
  Manner manner;
};

struct Outcome {
  RunSummary summary;
  std::vector<float> latent, loss, trace, nearest;
  std::vector<Status> status;
  std::vector<int64_t> steps, normal_equations;
  std::vector<int32_t> attempts;
};

struct Data {
  std::vector<float> image, initial, condition, weights, truth;
  std::vector<uint64_t> id;

  explicit Data(const Case& c) {
    std::mt19937 random(7);
    std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
    const auto fill = [&](std::vector<float>& values, int64_t count) {
      values.resize(static_cast<size_t>(count));
      for (float& value : values) value = uniform(random);
    };
    fill(image, c.count * c.sizes.image);
    fill(condition, c.count * c.sizes.condition);
    if (c.initial) fill(initial, c.count * c.sizes.latent);
    if (c.truth) fill(truth, c.count * c.sizes.latent);
    if (c.sizes.condition) fill(weights, c.count * c.sizes.image);
    for (float& weight : weights) weight = 1.0f + 0.5f * weight;
    for (int64_t i = 0; i < c.count; ++i) id.push_back(static_cast<uint64_t>(i * i + 3));
  }

  static bool shares_weights(const Case& c) { return c.count % 3 == 0; }

  const float* weights_of(const Case& c, int64_t row) const {
    if (!c.sizes.condition || c.initial) return nullptr;
    return weights.data() + (shares_weights(c) ? 0 : row * c.sizes.image);
  }

  Targets targets(const Case& c) const {
    return {.count = c.count,
            .image = image.data(),
            .initial = c.initial ? initial.data() : nullptr,
            .condition = c.sizes.condition ? condition.data() : nullptr,
            // With initial latents all weights are 1.
            .weights = c.sizes.condition && !c.initial ? weights.data() : nullptr,
            .shared_weights = shares_weights(c),
            .true_latent = c.truth ? truth.data() : nullptr,
            .id = id.data()};
  }
};

struct Objectives {
  std::vector<std::unique_ptr<TestObjective>> owners;
  std::vector<const Objective*> list;

  Objectives(const std::shared_ptr<Device>& device, const Case& c) {
    for (const bool with_gram : {false, true}) {
      for (const Loss loss : with_gram ? c.equations : c.losses) {
        owners.push_back(
            std::make_unique<TestObjective>(loss, with_gram, c.sizes, c.manner, device));
        list.push_back(owners.back().get());
      }
    }
  }
};

// What a run that threw had finished is in `outcome`.
void run_on(const std::shared_ptr<Device>& device, const Case& c, Outcome& outcome) {
  const Data data(c);
  const Objectives objectives(device, c);
  const auto count = static_cast<size_t>(c.count);
  outcome.latent.resize(count * static_cast<size_t>(c.sizes.latent));
  outcome.loss.resize(count);
  outcome.status.resize(count);
  outcome.steps.resize(count);
  outcome.normal_equations.resize(count);
  outcome.attempts.resize(count);
  if (c.options.trace_every) {
    outcome.trace.resize(count *
                         static_cast<size_t>(trace_length(c.recipe, c.options.trace_every)));
  }
  if (c.truth) outcome.nearest.resize(count);
  const Results results = {.latent = outcome.latent.data(),
                           .loss = outcome.loss.data(),
                           .status = outcome.status.data(),
                           .steps = outcome.steps.data(),
                           .attempts = outcome.attempts.data(),
                           .trace = c.options.trace_every ? outcome.trace.data() : nullptr,
                           .normal_equations = outcome.normal_equations.data(),
                           .min_latent_error = c.truth ? outcome.nearest.data() : nullptr};
  outcome.summary = run(objectives.list, c.prior, c.recipe, data.targets(c), c.options, results);
}

// The same targets, passed to a stream that has few rows.
Outcome stream_on(const std::shared_ptr<Device>& device, const Case& c) {
  const Data data(c);
  const Objectives objectives(device, c);
  const Targets all = data.targets(c);
  Stream stream(objectives.list, c.prior, c.recipe,
                {.seed = c.options.seed,
                 .lanes = c.options.lanes,
                 .rows = std::max<int64_t>(1, c.count / 2),
                 .has_initial = c.initial,
                 .preconditioner = c.options.preconditioner});
  Outcome outcome;
  const auto count = static_cast<size_t>(c.count);
  outcome.latent.resize(count * static_cast<size_t>(c.sizes.latent));
  outcome.loss.resize(count);
  outcome.status.resize(count);
  outcome.steps.resize(count);
  outcome.normal_equations.resize(count);
  outcome.attempts.resize(count);
  constexpr std::chrono::milliseconds wait{1};
  int64_t next = 0;
  std::optional<std::vector<StreamResult>> taken;
  do {
    if (next < c.count) {
      Targets some = all;
      const auto skip = [next](const float*& values, int64_t size) {
        if (values) values += next * size;
      };
      skip(some.image, c.sizes.image);
      skip(some.initial, c.sizes.latent);
      skip(some.condition, c.sizes.condition);
      if (!some.shared_weights) skip(some.weights, c.sizes.image);
      some.id += next;
      some.count -= next;
      next += stream.put(some, wait);
    }
    if (next == c.count) stream.end();
    taken = stream.take(wait);
    for (const StreamResult& result : taken ? *taken : std::vector<StreamResult>{}) {
      const auto row = static_cast<size_t>(result.number);
      std::copy(result.latent.begin(), result.latent.end(),
                outcome.latent.data() + row * result.latent.size());
      outcome.loss[row] = result.loss;
      outcome.status[row] = result.status;
      outcome.steps[row] = result.steps;
      outcome.normal_equations[row] = result.normal_equations;
      outcome.attempts[row] = result.attempts;
    }
  } while (taken);
  return outcome;
}

Outcome run_on(const std::shared_ptr<Device>& device, const Case& c) {
  Outcome outcome;
  run_on(device, c, outcome);
  return outcome;
}

bool close(const std::vector<float>& a, const std::vector<float>& b, double tolerance) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    if (tolerance == 0.0 ? a[i] != b[i]
                         : !(std::abs(a[i] - b[i]) <= tolerance * (1.0 + std::abs(b[i])))) {
      return false;
    }
  }
  return true;
}

bool reduces(const Case& c) {
  return std::any_of(c.recipe.stages.begin(), c.recipe.stages.end(), [](const Stage& stage) {
    return stage.penalties.moments != MomentScope::none;
  });
}

bool searches(const Case& c) {
  return std::any_of(c.recipe.stages.begin(), c.recipe.stages.end(),
                     [](const Stage& stage) { return stage.solver.kind == SolverKind::lbfgs; });
}

void compare(const Case& c, const Outcome& gpu, const Outcome& cpu) {
  // Of sums, which each device takes in an order of its own; and of steps whose curvature is a
  // difference of gradients.
  const double sums = searches(c) ? (kEmulated ? 1e-4 : 1e-2) : kEmulated ? 1e-6 : 1e-4;
  const double tolerance = !kEmulated || reduces(c) || searches(c) ? sums : 0.0;
  check(gpu.status == cpu.status, c.name + ": statuses");
  check(gpu.steps == cpu.steps, c.name + ": steps");
  check(gpu.attempts == cpu.attempts, c.name + ": attempts");
  check(gpu.normal_equations == cpu.normal_equations, c.name + ": normal equations");
  check(close(gpu.latent, cpu.latent, tolerance), c.name + ": latents");
  check(close(gpu.loss, cpu.loss, tolerance), c.name + ": losses");
  check(close(gpu.trace, cpu.trace, tolerance), c.name + ": traces");
  check(close(gpu.nearest, cpu.nearest, sums), c.name + ": how near they came to the truth");
}

void compare_devices(const std::shared_ptr<Device>& gpu, const Case& c) {
  Outcome cpu = run_on(cpu_device(), c);
  compare(c, run_on(gpu, c), cpu);
  const bool depends =
      c.options.coupled ||
      std::any_of(c.recipe.stages.begin(), c.recipe.stages.end(),
                  [](const Stage& stage) { return stage.penalties.moments == MomentScope::batch; });
  if (depends || c.options.keep_going) return;
  static int turn = 0;
  if (turn++ % 4) return;  // which saves time
  cpu.trace.clear();
  cpu.nearest.clear();
  Case streamed = c;
  streamed.name += ", streamed";
  compare(streamed, stream_on(gpu, c), cpu);
}

void set_pace([[maybe_unused]] uint32_t number) {
#ifdef PYINV_EMULATED
  constexpr emulator::Pace paces[] = {emulator::Pace::late, emulator::Pace::random,
                                      emulator::Pace::early};
  emulator::set_pace(paces[number % 3], number);
#endif
}

// Tests -------------------------------------------------------------------------------------------

// Every solver, constraint, prior and penalty, the schedules in turn, and all else at random.
void test_rules(const std::shared_ptr<Device>& gpu) {
  std::mt19937 random(1);
  const auto one_of = [&](auto... values) {
    const std::common_type_t<decltype(values)...> list[] = {values...};
    return list[random() % sizeof...(values)];
  };
  uint32_t number = 0;
  for (const SolverKind solver :
       {SolverKind::gradient_descent, SolverKind::adam, SolverKind::rmsprop}) {
    for (int constraint = 0; constraint < 6; ++constraint) {
      for (const PriorKind prior : {PriorKind::uniform, PriorKind::normal}) {
        for (int penalty = 0; penalty < 4; ++penalty) {
          for (int again = 0; again < (penalty == 2 ? 1 : 3); ++again) {
            const auto schedule = static_cast<ScheduleKind>(number % 3);
            Case c;
            c.name = "rules " + std::to_string(number);
            set_pace(number++);
            c.prior.kind = prior;
            const int stages = one_of(1, 1, 2, 3);
            for (int i = 0; i < stages; ++i) {
              Stage stage;
              stage.solver = {
                  .kind = solver,
                  .learning_rate = one_of(0.02, 0.1, 0.5),
                  .momentum = one_of(0.0, 0.9),
                  .schedule = {.kind = schedule, .every = 3, .factor = 0.5, .final = 0.1}};
              stage.constraint = {.kind = static_cast<ConstraintKind>(constraint),
                                  .low = -0.8f,
                                  .high = 0.9f,
                                  .horizon = one_of(0, 4)};
              switch (stage.constraint.kind) {
                case ConstraintKind::logistic_cutoff:
                  stage.constraint.a = 6.0f;
                  stage.constraint.b = 1.0f;
                  break;
                default:
                  stage.constraint.a = 1.1f;
              }
              stage.max_steps = one_of(0, 6, 14);
              if (penalty == 1 || penalty == 2) {
                stage.penalties.moments = penalty == 1 ? MomentScope::latent : MomentScope::batch;
                stage.penalties.gamma_mean = 0.3f;
                stage.penalties.gamma_std = 0.2f;
              }
              if (penalty == 3 && prior == PriorKind::normal) {
                stage.penalties.prior_weight = 0.1f;
                stage.penalties.anneal_prior = one_of(false, true);
              }
              stage.loss_tolerance = one_of(0.0, 0.01, 0.1);
              stage.change_tolerance = one_of(0.0, 0.0, 0.003);
              stage.relative_change_tolerance = one_of(0.0, 0.0, 0.02);
              stage.patience = one_of(1, 2);
              stage.reset_moments = one_of(false, true);
              stage.objective = one_of(0, 1);
              c.recipe.stages.push_back(stage);
            }
            c.recipe.restarts = one_of(0, 0, 2);
            c.recipe.hop_size = one_of(0.0, 0.3, 1.0);
            c.recipe.keep_best = one_of(false, true);
            c.losses = {one_of(Loss::quadratic, Loss::fragile), Loss::quartic};
            if (penalty == 2) {
              // Coupled lanes leave an objective together.
              for (Stage& stage : c.recipe.stages) stage.objective = 0;
            }
            c.sizes = {one_of(1, 3, 4, 5, 8, 40), one_of(1, 7, 12), one_of(0, 3)};
            c.count = one_of(1, 4, 13, 30);
            c.initial = one_of(false, false, true);
            c.truth = number % 4 != 0;
            c.options = {.seed = 1 + number,
                         .lanes = one_of(1, 2, 3, 5, 8, 33),
                         .trace_every = one_of(0, 1, 3),
                         .poll_every = one_of(0, 1, 3)};
            c.manner.capturable = one_of(true, true, false);
            compare_devices(gpu, c);
          }
        }
      }
    }
  }
}

// Targets that come and go, each when it is its turn: two objectives, restarts, tolerances.
Case uneven_case(int64_t lanes, int64_t count) {
  Case c;
  c.losses = {Loss::fragile, Loss::quartic};
  c.sizes = {4, 6, 2};
  c.count = count;
  c.truth = true;
  c.recipe.stages.resize(3);
  for (int i = 0; i < 3; ++i) {
    Stage& stage = c.recipe.stages[i];
    stage.solver = {.learning_rate = 0.1};
    stage.objective = i % 2;
    stage.max_steps = 8;
    stage.change_tolerance = i == 2 ? 0.0 : 0.004;
    stage.loss_tolerance = i == 2 ? 0.02 : 0.0;
  }
  c.recipe.restarts = 2;
  c.options = {.lanes = lanes, .trace_every = 2};
  return c;
}

// The same with normal equations: lanes of four functions change places all the time.
Case solving_case(int64_t lanes, int64_t count) {
  Case c = uneven_case(lanes, count);
  c.losses = {Loss::curved, Loss::quartic};
  c.equations = {Loss::quartic, Loss::curved};
  for (int i = 0; i < 3; ++i) {
    Stage& stage = c.recipe.stages[i];
    if (i == 0) continue;
    stage.solver = {.kind = SolverKind::levenberg_marquardt, .damping = 10.0};
    stage.normal_equations = 3 - stage.objective;
    stage.constraint = {.kind = ConstraintKind::clip, .low = -0.6f, .high = 0.6f};
    stage.loss_tolerance = i == 2 ? 0.01 : 0.0;
  }
  return c;
}

// And with pairs, which change places with their lanes; a history is shorter than a stage.
Case searching_case(int64_t lanes, int64_t count) {
  Case c = uneven_case(lanes, count);
  c.losses[0] = Loss::curved;
  for (int i = 0; i < 3; ++i) {
    Stage& stage = c.recipe.stages[i];
    if (i > 0) stage.solver = {.kind = SolverKind::lbfgs, .history = 2 + i};
    stage.constraint = {.kind = ConstraintKind::clip, .low = -0.6f, .high = 0.6f};
    if (i == 1) stage.max_steps = 4;
  }
  return c;
}

void test_lanes(const std::shared_ptr<Device>& gpu) {
  for (int64_t lanes = 1; lanes <= 33; ++lanes) {
    Case c = uneven_case(lanes, lanes % 3 ? 70 : lanes + 1);
    c.options.poll_every = lanes % 4;
    c.name = std::to_string(lanes) + " lanes";
    set_pace(static_cast<uint32_t>(lanes));
    compare_devices(gpu, c);
  }
  // Whoever forgets a lane's gram or pairs when it moves finds something else than a lane that
  // never does.
  for (const auto make_case : {solving_case, searching_case}) {
    const Outcome alone = run_on(cpu_device(), make_case(1, 30));
    for (const int64_t lanes : {1, 2, 5, 12, 33}) {
      Case c = make_case(lanes, 30);
      c.name = std::to_string(lanes) + " lanes" + (searches(c) ? ", searching" : ", solving");
      set_pace(static_cast<uint32_t>(lanes));
      compare(c, run_on(gpu, c), alone);
      compare(c, run_on(cpu_device(), c), alone);
    }
  }
}

// Solvers of normal equations among others, with losses that solve well and losses that do not.
void test_solving(const std::shared_ptr<Device>& gpu) {
  std::mt19937 random(3);
  const auto one_of = [&](auto... values) {
    const std::common_type_t<decltype(values)...> list[] = {values...};
    return list[random() % sizeof...(values)];
  };
  std::vector<int64_t> seen(5);
  int64_t progressed = 0, in_vain = 0;
  for (uint32_t number = 0; number < 120; ++number) {
    Case c;
    c.name = "solving " + std::to_string(number);
    set_pace(number);
    c.losses = {one_of(Loss::quadratic, Loss::curved, Loss::broken, Loss::broken),
                one_of(Loss::quartic, Loss::curved)};
    c.equations = {c.losses[1], c.losses[0]};
    // A GPU rounds the draws of a normal prior differently, and what is accepted hangs on a hair.
    c.prior.kind = kEmulated ? one_of(PriorKind::uniform, PriorKind::normal) : PriorKind::uniform;
    c.prior.mean = 0.1f;
    const bool uniform = c.prior.kind == PriorKind::uniform;
    const int stages = one_of(1, 1, 2, 3);
    bool solves = false;
    for (int i = 0; i < stages; ++i) {
      Stage stage;
      stage.objective = one_of(0, 1);
      stage.max_steps = one_of(0, 1, 6, 20);
      stage.loss_tolerance = one_of(0.0, 1e-6, 0.05);
      stage.relative_change_tolerance = one_of(0.0, 1e-3, 0.3);
      stage.patience = one_of(1, 2);
      stage.constraint = {.kind = static_cast<ConstraintKind>(one_of(0, 1, 1, 2, 3, 4, 5)),
                          .low = -0.5f,
                          .high = 0.6f,
                          .a = 1.1f,
                          .b = 1.0f,
                          .horizon = one_of(0, 4)};
      const bool resamples_normal = stage.constraint.kind >= ConstraintKind::hard_cutoff;
      if (resamples_normal == uniform && stage.constraint.kind > ConstraintKind::clip) {
        stage.constraint.kind = ConstraintKind::clip;
      }
      if (one_of(0, 1)) {
        stage.penalties = {.prior_weight = one_of(0.01f, 2.0f),
                           .anneal_prior = one_of(false, true),
                           .relative_prior = one_of(false, true)};
      }
      stage.solver = {.kind = one_of(SolverKind::adam, SolverKind::gradient_descent),
                      .learning_rate = 0.05};
      if (i + 1 == stages ? !solves || one_of(0, 1) : one_of(0, 1)) {
        solves = true;
        stage.solver = {.kind = SolverKind::levenberg_marquardt,
                        .damping = one_of(1e-3, 1e-3, 1e-12, 30.0),
                        .damping_up = one_of(4.0, 1.5),
                        .damping_down = one_of(0.25, 0.9)};
        stage.normal_equations = 3 - stage.objective;
      }
      c.recipe.stages.push_back(stage);
    }
    c.recipe.restarts = one_of(0, 0, 2);
    c.recipe.hop_size = one_of(0.0, 0.3, 1.0);
    c.recipe.keep_best = one_of(true, false);
    c.recipe.start = one_of(Start::prior, Start::mean);
    c.sizes = {one_of(1, 2, 3, 4, 5, 7), one_of(1, 7, 12), one_of(0, 3)};
    c.count = one_of(1, 4, 9, 13);
    c.initial = one_of(false, false, true);
    c.truth = one_of(false, true);
    c.options = {.seed = 1 + number,
                 .lanes = one_of(1, 2, 3, 5, 8, 33),
                 .trace_every = one_of(0, 1, 3),
                 .poll_every = one_of(0, 1, 3)};
    c.manner.capturable = one_of(true, false);
    const bool only_solves = std::all_of(
        c.recipe.stages.begin(), c.recipe.stages.end(),
        [](const Stage& stage) { return stage.solver.kind == SolverKind::levenberg_marquardt; });
    const Outcome cpu = run_on(cpu_device(), c);
    compare(c, run_on(gpu, c), cpu);
    for (size_t i = 0; i < cpu.status.size(); ++i) {
      ++seen[static_cast<size_t>(cpu.status[i])];
      if (!only_solves) continue;
      // Beyond those that a stage begins with, equations follow from accepted trials alone.
      progressed += cpu.normal_equations[i] > stages * cpu.attempts[i];
      in_vain += cpu.steps[i] > cpu.normal_equations[i];
    }
  }
  for (const Status status :
       {Status::converged_tolerance, Status::converged_plateau, Status::step_limit,
        Status::step_limit_improving, Status::non_finite}) {
    check(seen[static_cast<size_t>(status)] > 10,
          std::to_string(seen[static_cast<size_t>(status)]) + " targets end in way " +
              std::to_string(static_cast<int>(status)));
  }
  check(progressed > 30 && in_vain > 30, "trials of " + std::to_string(progressed) +
                                             " targets are accepted, and of " +
                                             std::to_string(in_vain) + " are not");

  // Matrices in shared memory, up to what a block of the emulator has, and beyond it.
  for (const int64_t size : {33, 155, 156, 157, 512}) {
    Case c;
    c.name = "solving for " + std::to_string(size);
    set_pace(static_cast<uint32_t>(size));
    c.losses = c.equations = {Loss::curved};
    c.sizes = {size, 9, 0};
    c.count = 2;
    c.options.lanes = 2;
    Stage stage;
    stage.solver.kind = SolverKind::levenberg_marquardt;
    stage.normal_equations = 1;
    stage.max_steps = 2;
    stage.constraint = {.kind = ConstraintKind::clip, .low = -0.5f, .high = 0.5f};
    c.recipe.stages = {stage};
    compare_devices(gpu, c);
  }
}

// A symmetric, diagonally dominant matrix [size, size].
std::vector<float> some_preconditioner(int64_t size) {
  std::vector<float> matrix(static_cast<size_t>(size * size));
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t j = 0; j < size; ++j) {
      const double mixed =
          0.3 * std::sin(static_cast<double>(i * j + i + j)) / static_cast<double>(size);
      matrix[static_cast<size_t>(i * size + j)] =
          static_cast<float>(i == j ? 0.5 + static_cast<double>(i % 4) : mixed);
    }
  }
  return matrix;
}

// Quasi-Newton stages among others, their first steps: what rounding does to them grows.
void test_searching(const std::shared_ptr<Device>& gpu) {
  std::mt19937 random(4);
  const auto one_of = [&](auto... values) {
    const std::common_type_t<decltype(values)...> list[] = {values...};
    return list[random() % sizeof...(values)];
  };
  std::vector<int64_t> seen(5);
  for (uint32_t number = 0; number < 200; ++number) {
    Case c;
    c.name = "searching " + std::to_string(number);
    set_pace(number);
    c.losses = {one_of(Loss::quadratic, Loss::curved, Loss::broken, Loss::fragile),
                one_of(Loss::quartic, Loss::curved)};
    // As in `solving`.
    c.prior.kind = kEmulated ? one_of(PriorKind::uniform, PriorKind::normal) : PriorKind::uniform;
    c.prior.mean = 0.1f;
    const bool uniform = c.prior.kind == PriorKind::uniform;
    const int stages = one_of(1, 1, 2, 3);
    for (int i = 0; i < stages; ++i) {
      Stage stage;
      stage.objective = one_of(0, 1);
      stage.max_steps = one_of(0, 1, 4, 6);
      stage.loss_tolerance = one_of(0.0, 1e-3, 0.05);
      stage.relative_change_tolerance = one_of(0.0, 0.3);
      stage.patience = one_of(1, 2);
      stage.constraint = {
          .kind = one_of(ConstraintKind::none, ConstraintKind::clip,
                         uniform ? ConstraintKind::stochastic_clip : ConstraintKind::hard_cutoff),
          .low = -0.5f,
          .high = 0.6f,
          .a = 1.1f};
      if (one_of(0, 1)) {
        stage.penalties = {.prior_weight = one_of(0.01f, 2.0f),
                           .anneal_prior = one_of(false, true),
                           .relative_prior = one_of(false, true)};
      }
      stage.solver = {.kind = i == 0 || one_of(0, 1) ? SolverKind::lbfgs : SolverKind::adam,
                      .learning_rate = 0.05,
                      .history = one_of(1, 3, 20),
                      .first_step = one_of(0.3, 0.3, 10.0)};
      c.recipe.stages.push_back(stage);
    }
    c.recipe.restarts = one_of(0, 0, 2);
    c.recipe.hop_size = one_of(0.0, 0.3, 1.0);
    c.recipe.keep_best = one_of(true, false);
    c.recipe.start = one_of(Start::prior, Start::mean);
    c.sizes = {one_of(2, 3, 5, 8, 33, 300), one_of(1, 7, 12), one_of(0, 3)};
    c.count = one_of(1, 4, 13);
    c.truth = one_of(false, true);
    c.options = {.seed = 1 + number,
                 .lanes = one_of(1, 2, 3, 5, 8),
                 .trace_every = one_of(0, 1, 3),
                 .poll_every = one_of(0, 1, 3)};
    c.manner.capturable = one_of(true, false);
    const std::vector<float> matrix = some_preconditioner(c.sizes.latent);
    if (one_of(false, true)) c.options.preconditioner = matrix.data();
    const Outcome cpu = run_on(cpu_device(), c);
    compare(c, run_on(gpu, c), cpu);
    for (const Status status : cpu.status) ++seen[static_cast<size_t>(status)];
  }
  for (const Status status :
       {Status::converged_tolerance, Status::converged_plateau, Status::step_limit,
        Status::step_limit_improving, Status::non_finite}) {
    check(seen[static_cast<size_t>(status)] > 10,
          std::to_string(seen[static_cast<size_t>(status)]) + " searches end in way " +
              std::to_string(static_cast<int>(status)));
  }

  // A block takes several rounds of a long latent, and not all its threads have a part in each.
  for (const int64_t size : {1, 31, 32, 511, 513, 20001}) {
    Case c;
    c.name = "searching for " + std::to_string(size);
    set_pace(static_cast<uint32_t>(size));
    c.sizes = {size, 9, 0};
    c.count = 3;
    c.options.lanes = 2;
    Stage stage;
    stage.solver = {.kind = SolverKind::lbfgs, .history = 3};
    stage.max_steps = size == 1 ? 2 : 5;
    stage.constraint = {.kind = ConstraintKind::clip, .low = -0.5f, .high = 0.5f};
    c.recipe.stages = {stage};
    compare_devices(gpu, c);
    if (size > 1000) continue;
    c.name += " with a preconditioner";
    const std::vector<float> matrix = some_preconditioner(size);
    c.options.preconditioner = matrix.data();
    compare_devices(gpu, c);
  }
}

void test_groups(const std::shared_ptr<Device>& gpu) {
  for (const int64_t lanes : {1, 4, 7}) {
    for (const bool tolerant : {false, true}) {
      for (const bool over_batch : {false, true}) {
        Case c = uneven_case(lanes, 17);
        c.losses = {Loss::tied};
        for (Stage& stage : c.recipe.stages) {
          stage.objective = 0;
          stage.loss_tolerance = tolerant ? 0.05 : 0.0;
          stage.max_steps = 4;
          if (over_batch) {
            stage.penalties = {
                .moments = MomentScope::batch, .gamma_mean = 0.5f, .gamma_std = 0.5f};
          }
        }
        c.options.coupled = true;
        c.name = "groups of " + std::to_string(lanes);
        set_pace(static_cast<uint32_t>(lanes));
        compare_devices(gpu, c);
      }
    }
  }
  Case large = uneven_case(300, 300);
  large.name = "a group of 300";
  large.losses = {Loss::tied};
  for (Stage& stage : large.recipe.stages) stage.objective = 0;
  large.recipe.restarts = 0;
  large.options.coupled = true;
  compare_devices(gpu, large);
}

void test_sizes(const std::shared_ptr<Device>& gpu) {
  for (const int64_t size : {1, 32, 33, 256, 257, 100000, 100001}) {
    for (const MomentScope scope : {MomentScope::latent, MomentScope::batch}) {
      Case c;
      c.name = "latents of " + std::to_string(size);
      c.sizes.latent = size;
      c.count = 3;
      c.truth = true;
      c.options.lanes = 2;
      Stage stage;
      stage.max_steps = 2;
      stage.penalties = {.moments = scope, .gamma_mean = 10.0f, .gamma_std = 10.0f};
      c.recipe.stages = {stage};
      compare_devices(gpu, c);
    }
  }
  Case nothing;
  nothing.name = "no targets";
  nothing.count = 0;
  nothing.recipe.stages.resize(1);
  compare_devices(gpu, nothing);
}

// Cancelled at any look, targets are either as if nothing had been or cancelled, and the latents
// are those of the losses.
void test_cancel(const std::shared_ptr<Device>& gpu) {
  for (int number = 2; number < 24; ++number) {
    const bool solving = number % 2;
    const int looks = number / 2 * (solving ? 3 : 1);
    Case c = solving ? solving_case(3, 12) : uneven_case(3, 12);
    if (!solving) c.losses[0] = Loss::quadratic;
    c.options.poll_every = 1 + looks % 3;
    c.options.trace_every = 0;
    c.name = "cancelled at look " + std::to_string(looks) + (solving ? ", solving" : "");
    set_pace(static_cast<uint32_t>(looks));
    const Outcome cpu = run_on(cpu_device(), c);
    int seen = 0;
    c.options.keep_going = [&](const Progress&) { return ++seen < looks; };
    const Outcome cut = run_on(gpu, c);
    check(cut.summary.cancelled, c.name);
    const Data data(c);
    const int64_t d = c.sizes.latent;
    for (int64_t row = 0; row < c.count; ++row) {
      const auto i = static_cast<size_t>(row);
      const float* latent = cut.latent.data() + row * d;
      if (cut.status[i] != Status::cancelled) {
        check(cut.status[i] == cpu.status[i] && cut.steps[i] == cpu.steps[i] &&
                  std::abs(cut.loss[i] - cpu.loss[i]) <= (kEmulated ? 0.0f : 1e-5f) &&
                  std::abs(cut.nearest[i] - cpu.nearest[i]) <= 1e-5f,
              c.name + ": a finished target");
      } else if (cut.attempts[i] == 0) {
        check(std::isnan(cut.nearest[i]), c.name + ": a target in the queue came near something");
        std::vector<float> first(static_cast<size_t>(d));
        draw_initial(c.prior, c.options.seed, data.id[i], 0, d, first.data());
        check(close(first, {latent, latent + d}, kEmulated ? 0.0 : 1e-6),
              c.name + ": a target in the queue");
      } else if (!std::isnan(cut.loss[i])) {
        double error = 0.0;
        for (int64_t k = 0; k < d; ++k) {
          error += std::pow(double{latent[k]} - data.truth[row * d + k], 2.0) / d;
        }
        // Its way so far is a part of its whole way.
        check(cut.nearest[i] <= error + 1e-6 && cut.nearest[i] >= cpu.nearest[i] - 1e-5f,
              c.name + ": how near a target came that was cut short");
        float least = INFINITY, gradient[4], loss = 0.0f;
        for (const Loss kind : c.losses) {
          evaluate_lane(kind, false, c.sizes,
                        {.latent = latent,
                         .image = data.image.data() + row * c.sizes.image,
                         .condition = data.condition.data() + row * c.sizes.condition,
                         .weights = data.weights_of(c, row),
                         .loss = &loss,
                         .gradient = gradient,
                         .lanes = 1},
                        0, 1, 0);
          least = std::min(least, std::abs(loss - cut.loss[i]));
        }
        check(least <= 1e-6f, c.name + ": the loss of a target that was cut short");
      }
    }
  }
}

void test_manners(const std::shared_ptr<Device>& gpu) {
  Case c = uneven_case(5, 20);
  c.name = "an objective that cannot be recorded but says it can";
  c.manner.waits = true;
  compare_devices(gpu, c);

  for (int number = 0; number < 8; ++number) {
    const auto make_case = number % 2 ? uneven_case : solving_case;
    const Outcome whole = run_on(cpu_device(), make_case(5, 20));
    constexpr int64_t evaluations[] = {0, 1, 2, 20};
    const int64_t at = evaluations[number / 2];
    c = make_case(5, 20);
    c.name = "an objective that throws at evaluation " + std::to_string(at);
    c.manner.throws_at = at;
    c.options.poll_every = 1;
    Outcome cut;
    std::string what;
    try {
      run_on(gpu, c, cut);
    } catch (const std::runtime_error& error) {
      what = error.what();
    }
    // A recording may swallow it: the evaluation is then done once more.
    if (what.empty()) {
      compare(c, cut, whole);
      continue;
    }
    check(what == "the runtime broke", c.name + ": " + what);
    for (size_t i = 0; i < cut.status.size(); ++i) {
      check(cut.status[i] == Status::cancelled ||
                (cut.status[i] == whole.status[i] && cut.steps[i] == whole.steps[i] &&
                 std::abs(cut.nearest[i] - whole.nearest[i]) <= 1e-5f),
            c.name + ": a target finished before");
      check(cut.attempts[i] > 0 || std::isnan(cut.nearest[i]),
            c.name + ": a target that was lost came near something");
    }
  }
}

void test_bad_arguments(const std::shared_ptr<Device>& gpu) {
  Case c = uneven_case(2, 3);
  const Data data(c);
  const TestObjective objective(Loss::quadratic, false, c.sizes, c.manner, gpu);
  const TestObjective equations(Loss::quadratic, true, c.sizes, c.manner, gpu);
  const auto says = [&](const char* expected) {
    const TestObjective long_ones(Loss::quadratic, false, {513, 1, 0}, c.manner, gpu);
    const TestObjective long_equations(Loss::quadratic, true, {513, 1, 0}, c.manner, gpu);
    std::vector<const Objective*> objectives = {&objective, &objective, &equations};
    Targets targets = data.targets(c);
    targets.true_latent = nullptr;
    if (c.sizes.latent == 513) {
      objectives = {&long_ones, &long_ones, &long_equations};
      targets.weights = nullptr;
    }
    float nearest[3];
    std::string what;
    try {
      run(objectives, c.prior, c.recipe, targets, c.options,
          {.min_latent_error = c.truth ? nearest : nullptr});
    } catch (const std::invalid_argument& error) {
      what = error.what();
    }
    check(what.starts_with(std::string("run(): ") + expected), what + ", not " + expected);
  };
  says("min_latent_error needs the targets' true_latent, got none");
  c.truth = false;
  Stage& stage = c.recipe.stages[1];
  stage.objective = 3;
  says("a stage's objective is number 3, of 3 that were given");
  stage.objective = 2;
  says("a stage's objective, number 2, gives normal equations");
  stage.objective = 0;
  stage.solver.kind = SolverKind::levenberg_marquardt;
  says("a stage's normal equations are number -1, of 3 that were given");
  stage.normal_equations = 1;
  says("a stage's normal equations, number 1, have no gram");
  stage.normal_equations = 2;
  c.options.coupled = true;
  says("levenberg_marquardt takes each target on its own");
  c.options.coupled = false;
  c.recipe.stages[0].penalties.moments = MomentScope::batch;
  says("levenberg_marquardt takes each target on its own");
  c.recipe.stages[0].penalties.moments = MomentScope::none;
  stage.penalties.moments = MomentScope::latent;
  says("levenberg_marquardt takes no moment penalty");
  stage.penalties.moments = MomentScope::none;
  c.sizes.latent = 513;
  says("levenberg_marquardt takes latents of at most 512 components, got 513; use lbfgs");
}

// Runs of several threads on one device, and on another one.
void test_threads(const std::shared_ptr<Device>& gpu) {
  set_pace(1);
  Case c = uneven_case(4, 30);
  c.name = "several threads";
  const Outcome cpu = run_on(cpu_device(), c);
  std::vector<std::shared_ptr<Device>> devices = {gpu, gpu, cuda_device(0)};
  if (cuda_device_count() > 1) devices.push_back(cuda_device(1));
  std::vector<Outcome> outcomes(devices.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < devices.size(); ++i) {
    threads.emplace_back([&, i] {
      for (int again = 0; again < 3; ++again) outcomes[i] = run_on(devices[i], c);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Outcome& outcome : outcomes) compare(c, outcome, cpu);
}

__global__ void draw_kernel(Prior prior, DrawKey key, int64_t size, float* draws) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < size) draws[i] = initial_draw(prior, key, static_cast<uint32_t>(i));
}

void test_draws(const std::shared_ptr<Device>& device) {
  const int64_t size = kEmulated ? 1000 : 10'000'000;
  auto& gpu = dynamic_cast<Backend&>(*device);
  for (const PriorKind kind : {PriorKind::uniform, PriorKind::normal}) {
    const Prior prior{.kind = kind, .low = -0.7f, .high = 1.3f, .mean = 0.0f, .std = 1.0f};
    std::vector<float> cpu(static_cast<size_t>(size));
    draw_initial(prior, 5, 77, 2, size, cpu.data());
    const auto bytes = cpu.size() * sizeof(float);
    const Backend::Memory shared = gpu.allocate_shared(bytes);
    const auto exclusive = gpu.exclusive();
    launch("draw kernel", draw_kernel, dim3(blocks_for(size, kThreads)), kThreads,
           static_cast<cudaStream_t>(gpu.stream()), prior, DrawKey{5, 77, 2}, size,
           static_cast<float*>(shared.get()));
    gpu.synchronize();
    const auto* found = static_cast<const float*>(shared.get());
    double most = 0.0;
    for (size_t i = 0; i < cpu.size(); ++i) {
      most = std::max(most, std::abs(double{found[i]} - cpu[i]));
    }
    const bool uniform = kind == PriorKind::uniform;
    check(most <= (uniform ? 0.0 : 1e-6),
          std::string(uniform ? "uniform" : "normal") + " draws differ by " + std::to_string(most));
  }
}

__global__ void copy_kernel(const float* from, int64_t size, float* to) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < size) to[i] = from[i];
}

void test_memory(const std::shared_ptr<Device>& device) {
  auto& gpu = dynamic_cast<Backend&>(*device);
  std::vector<float> values(1000);
  const auto size = static_cast<int64_t>(values.size());
  const Backend::Memory memory = gpu.allocate(values.size() * sizeof(float));
  const Backend::Memory shared = gpu.allocate_shared(values.size() * sizeof(float));
  const auto* seen = static_cast<const float*>(shared.get());
  check(std::equal(values.begin(), values.end(), seen), "shared memory begins as zeros");
  for (const char* what : {"memory begins as zeros", "what was uploaded is there"}) {
    const auto exclusive = gpu.exclusive();
    launch("copy kernel", copy_kernel, dim3(blocks_for(size, kThreads)), kThreads,
           static_cast<cudaStream_t>(gpu.stream()), static_cast<const float*>(memory.get()), size,
           static_cast<float*>(shared.get()));
    gpu.synchronize();
    check(std::equal(values.begin(), values.end(), seen), what);
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
    gpu.upload(memory.get(), values.data(), values.size() * sizeof(float));
  }
}

#ifdef PYINV_EMULATED

// With any amount of memory a run is done or says that there is too little, and leaves nothing.
void test_out_of_memory(const std::shared_ptr<Device>& gpu) {
  const Case cases[] = {uneven_case(8, 20), solving_case(8, 20)};
  const Outcome outcomes[] = {run_on(cpu_device(), cases[0]), run_on(cpu_device(), cases[1])};
  const size_t plenty = emulator::machine().memory;
  int lacked = 0, done = 0;
  for (size_t memory = 0; memory < 60'000; memory += 700) {
    emulator::machine().memory = memory;
    set_pace(static_cast<uint32_t>(memory));
    const int64_t before = emulator::living_objects();
    try {
      const size_t which = memory / 700 % 2;
      compare(cases[which], run_on(gpu, cases[which]), outcomes[which]);
      ++done;
    } catch (const OutOfMemory& error) {
      if (!lacked++) std::printf("out of memory says: %s\n", error.what());
      check(std::strstr(error.what(), "fewer lanes"), error.what());
    }
    check(emulator::living_objects() == before, "memory is given back");
    check(cudaGetLastError() == cudaSuccess, "the error is cleared");
  }
  emulator::machine().memory = plenty;
  check(lacked > 5 && done > 5, "too little memory and enough of it");
}

void test_opening() {
  const auto says = [](const emulator::Machine& machine, int index, const char* expected) {
    const emulator::Machine before = std::exchange(emulator::machine(), machine);
    try {
      cuda_device(index);
      check(false, std::string("opened, but expected: ") + expected);
    } catch (const DeviceError& error) {
      check(std::strstr(error.what(), expected), error.what());
    }
    emulator::machine() = before;
  };
  says({.driver = 0}, 0, "no NVIDIA driver");
  says({.driver = 12020}, 0, "for CUDA 12.2, older than this build's 13.0");
  says({.gpus = 0}, 0, "no GPU");
  says({.gpus = 1}, 1, "GPU 1 cannot be used: this machine has one GPU, number 0");
  says({.gpus = 3}, -1, "this machine has GPUs 0 to 2");
  says({.runs_kernels = false}, 0, "compute capability 7.0, and this build is for 8.0");
  check(cuda_device_count() == 2 && cuda_device_name(1) == "Emulated GPU 1" &&
            cuda_device_name(2).empty(),
        "the GPUs' names");
}

#endif

}  // namespace

int main(int count, char** names) try {
  {
    const std::shared_ptr<Device> gpu = cuda_device(0);
    const auto test = [&](const char* name, auto run) {
      const auto is_wanted = [&](const char* wanted) { return !std::strcmp(wanted, name); };
      if (count > 1 && std::none_of(names + 1, names + count, is_wanted)) return;
      const auto start = std::chrono::steady_clock::now();
      run(gpu);
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
      std::printf("%-10s %5.1f s\n", name, taken.count());
      std::fflush(stdout);
    };
    test("memory", test_memory);
    test("draws", test_draws);
    test("rules", test_rules);
    test("solving", test_solving);
    test("searching", test_searching);
    test("lanes", test_lanes);
    test("groups", test_groups);
    test("sizes", test_sizes);
    test("cancel", test_cancel);
    test("manners", test_manners);
    test("arguments", test_bad_arguments);
    test("threads", test_threads);
#ifdef PYINV_EMULATED
    check(count > 1 || emulator::graph_launches() > 1000, "steps run from recordings");
    test("shortage", test_out_of_memory);
    test("opening", [](const auto&) { test_opening(); });
#endif
  }
#ifdef PYINV_EMULATED
  check(emulator::living_objects() == 0, "everything is destroyed");
#endif
  std::printf(failures ? "%d failures\n" : "all well\n", failures);
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
} catch (const DeviceError& error) {
  std::printf("%s\n", error.what());
  return kNoGpu;
} catch (const std::exception& error) {
  std::printf("FAILED %s\n", error.what());
  return EXIT_FAILURE;
}
