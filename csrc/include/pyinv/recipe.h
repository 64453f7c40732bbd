// The rules of a run as plain data: one struct per rule class in Python.
#pragma once

#include <cstdint>
#include <vector>

namespace pyinv {

enum class PriorKind : int32_t { uniform, normal };

// The distribution of each latent component, drawn independently.
struct Prior {
  PriorKind kind = PriorKind::uniform;
  float low = -1.0f, high = 1.0f;  // uniform
  float mean = 0.0f, std = 1.0f;   // normal
};

enum class ConstraintKind : int32_t {
  none,
  clip,
  stochastic_clip,
  hard_cutoff,
  logistic_cutoff,
  truncated_normal_cutoff,
};

struct Constraint {
  ConstraintKind kind = ConstraintKind::none;
  float low = -1.0f, high = 1.0f;  // clip, stochastic_clip
  float a = 0.0f, b = 0.0f;        // the cutoffs: c | steepness, midpoint | a
  int64_t horizon = 0;             // steps that the cutoff's probability covers; 0: max_steps
};

enum class SolverKind : int32_t { gradient_descent, adam, levenberg_marquardt, lbfgs, rmsprop };
enum class ScheduleKind : int32_t { constant, step_decay, cosine };

struct Schedule {
  ScheduleKind kind = ScheduleKind::constant;
  int64_t every = 1;    // step_decay
  double factor = 1.0;  // step_decay
  double final = 0.0;   // cosine: the ratio of the last learning rate to the first
};

struct Solver {
  SolverKind kind = SolverKind::adam;
  double learning_rate = 0.01;
  double momentum = 0.0;                                         // gradient_descent, rmsprop
  double beta1 = 0.9, beta2 = 0.999;                             // adam
  double alpha = 0.99;                                           // rmsprop
  double epsilon = 1e-8;                                         // adam, rmsprop
  double damping = 1e-3, damping_up = 4.0, damping_down = 0.25;  // levenberg_marquardt
  int64_t history = 20;     // lbfgs: pairs of steps and gradient differences
  double first_step = 0.3;  // lbfgs: step length in standard deviations of the prior
  // lbfgs: the approximation of the inverse Hessian starts from RunOptions::preconditioner
  bool preconditioned = true;
  Schedule schedule;
};

enum class MomentScope : int32_t { none, batch, latent };

struct Penalties {
  MomentScope moments = MomentScope::none;
  float gamma_mean = 0.0f, gamma_std = 0.0f;
  float prior_weight = 0.0f;
  bool anneal_prior = false;
  bool relative_prior = false;  // multiply the weight by the loss
};

struct Stage {
  Solver solver;
  Constraint constraint;
  Penalties penalties;
  int64_t objective = 0;          // index into the run's objectives
  int64_t normal_equations = -1;  // levenberg_marquardt: index into the run's objectives
  int64_t max_steps = 1000;
  double loss_tolerance = 0.0;             // 0 disables this and the tolerances below
  double change_tolerance = 0.0;           // absolute
  double relative_change_tolerance = 0.0;  // relative to the previous loss
  int64_t patience = 1;
  bool reset_moments = true;
};

enum class Start : int32_t { prior, mean, encoder };

struct Recipe {
  std::vector<Stage> stages;
  int64_t restarts = 0;
  bool keep_best = true;  // return the last stage's best latent, not its last
  // The start of a target's first attempt: a draw from the prior, the prior's mean, or
  // Targets::initial, which for `encoder` must hold an Encoder's latents of the images. If L-BFGS
  // finds no slope at the mean, one more attempt is made.
  Start start = Start::prior;
  // 0: restarts start from a draw. In (0, 1]: restarts run only the last stage, from the best
  // latent so far moved towards a draw; 1 moves it all the way.
  double hop_size = 0.0;
};

}  // namespace pyinv
